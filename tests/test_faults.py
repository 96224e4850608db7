"""Whatever goes wrong is said in a sentence, and costs nothing that was there before."""

import argparse
import contextlib
import errno
import functools
import io
import os
import re
import resource
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SCRIPT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_resume import contents, last_of, load, run, same

import dqn_cartpole
from dqn_cartpole import Parser, UsageError, read_checkpoint

TRAINED = "--max_epochs 4 --val_check_interval 26 --warm_start_steps 300 --episode_length 20"


def outcome(flags: str) -> tuple[object, str]:
    """Exit code and standard error of the script, run in this process."""
    errors, handlers = io.StringIO(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", [SCRIPT.name, *shlex.split(flags)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code
    for number, handler in handlers.items():
        signal.signal(number, handler)  # or Ctrl-C would no longer end the tests
    return code, errors.getvalue()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a short run that went well."""
    folder = tmp_path_factory.mktemp("trained")
    code, _, errors = run(TRAINED, folder)
    assert code == 0, errors
    return folder


@pytest.fixture
def copied(tmp_path, trained, monkeypatch) -> Path:
    """A copy of that folder, which is where the script runs."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    monkeypatch.chdir(folder)
    return folder


# Strangers' checkpoints


class Code:
    """What leaves a marker when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def checkpoint_with_code(good: bytes) -> bytes:
    file = io.BytesIO()
    torch.save(torch.load(io.BytesIO(good), weights_only=True) | {"more": Code()}, file)
    return file.getvalue()


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


BAD_FILES = {
    "empty": lambda good: b"",
    "one byte": lambda good: good[:1],
    "100 bytes": lambda good: good[:100],
    "a third": lambda good: good[: len(good) // 3],
    "half": lambda good: good[: len(good) // 2],
    "all but 100 bytes": lambda good: good[:-100],
    "all but one byte": lambda good: good[:-1],
    "its second half": lambda good: good[len(good) // 2 :],
    "zeros": lambda good: bytes(len(good)),
    "zeros after half": lambda good: good[: len(good) // 2] + bytes(len(good) - len(good) // 2),
    "noise": lambda good: np.random.default_rng(0).bytes(len(good)),
    "text": lambda good: b"lr: 0.01\n",
    "code": checkpoint_with_code,
    "a tensor": lambda good: saved(torch.zeros(3)),
    "a number": lambda good: saved(3),
    "a list": lambda good: saved([1, 2]),
    "an empty dictionary": lambda good: saved({}),
    "weights alone": lambda good: saved(torch.nn.Linear(4, 2).state_dict()),
    "another program's": lambda good: saved({"epoch": 3, "state_dict": {}, "optimizer_states": []}),
}


@pytest.mark.parametrize("flag", ["--resume", "--test"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_refused_in_one_line(copied, kind, flag):
    """Put in the place of last.ckpt, where it would continue, and overwrite, the run."""
    last = last_of(copied)
    last.write_bytes(BAD_FILES[kind](last.read_bytes()))
    before = contents(copied)
    code, errors = outcome(f"{flag} {last.relative_to(copied)}")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert flag in errors
    assert "last.ckpt" in errors
    assert contents(copied) == before  # which has no marker either


@pytest.mark.parametrize("flag", ["--resume", "--test"])
@pytest.mark.parametrize(("path", "reason"), [("gone.ckpt", "No such file"), ("lightning_logs", "[Dd]irectory")])
def test_path_without_a_file_is_refused_in_one_line(copied, path, reason, flag):
    before = contents(copied)
    code, errors = outcome(f"{flag} {path}")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert re.search(f"{flag}.*{path}.*{reason}", errors)
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("half", "damaged"), ("code", "code"), ("text", "not a checkpoint"), ("a list", "not a checkpoint")],
)
def test_refusal_says_what_is_wrong_with_the_file(copied, kind, reason):
    last = last_of(copied)
    last.write_bytes(BAD_FILES[kind](last.read_bytes()))
    assert re.search(reason, outcome("--resume")[1])


def test_code_in_a_checkpoint_would_run_where_it_is_not_refused(copied):
    """The marker of the test above is no empty promise."""
    torch.load(io.BytesIO(checkpoint_with_code(last_of(copied).read_bytes())), weights_only=False)
    assert Path("marker").exists()


def test_one_changed_bit_is_noticed_or_changes_nothing(copied):
    """All of what the file holds is under a checksum; the rest is padding."""
    last, chance, refused = last_of(copied), np.random.default_rng(0), 0
    good, wanted = last.read_bytes(), load(last)
    for bit in chance.integers(8 * len(good), size=100):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << (bit % 8)
        last.write_bytes(damaged)
        try:
            assert same(read_checkpoint(last, "--resume"), wanted)
        except UsageError:
            refused += 1
    assert refused > 80


@pytest.mark.parametrize("flag", ["--resume", "--test"])
@pytest.mark.parametrize("env", ["Acrobot-v1", "CartPole-v1"])
def test_checkpoint_of_another_environment_than_asked_for_is_refused(copied, env, flag):
    before = contents(copied)
    code, errors = outcome(f"{flag} {last_of(copied).relative_to(copied)} --env {env}")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert f"--env {env}" in errors
    assert "CartPole-v0" in errors
    assert contents(copied) == before


# What a file of the right form may still hold: a path in the checkpoint, and what stands there instead.
REMOVED = object()
ILL_FITTING = [
    ("hyper_parameters/env", "Acrobot-v1"),
    ("hyper_parameters/env", "FrozenLake-v1"),
    ("hyper_parameters/env", "NoSuchEnv-v0"),
    ("hyper_parameters/env", "Pendulum-v1"),
    ("hyper_parameters/env", 3),
    ("hyper_parameters/env", "Cart\nPole-v0"),
    ("hyper_parameters/hidden_size", 64),
    ("hyper_parameters/hidden_size", -1),
    ("hyper_parameters/hidden_size", "a\nb"),
    ("hyper_parameters/gamma", torch.zeros(3)),
    ("hyper_parameters/hidden_layers", 2),
    ("hyper_parameters/replay_size", 200),
    ("hyper_parameters/lr", float("nan")),
    ("hyper_parameters/seed", "x"),
    ("hyper_parameters", None),
    ("hyper_parameters", [1]),
    ("state_dict", REMOVED),
    ("state_dict", {}),
    ("state_dict/net.net.0.weight", REMOVED),
    ("state_dict/target_net.net.0.weight", torch.zeros(64, 4)),
    ("dqn", None),
    ("dqn/0/buffer", REMOVED),
    ("dqn/0/buffer/arrays", []),
    ("dqn/0/buffer/arrays/0", torch.zeros(200, 6)),
    ("dqn/0/buffer/appended", 5),
    ("dqn/0/returns", ["x"]),
    ("dqn/0/best_reward", REMOVED),
    ("dqn/0/buffer/rng", {}),
    ("dqn/0/agent", REMOVED),
    ("dqn/0/agent/seed", "x"),
    ("dqn/0/agent/actions", [7]),
    ("dqn/0/torch_rng", torch.zeros(3)),
    ("optimizer_states", REMOVED),
    ("optimizer_states", None),
    ("optimizer_states", []),
    ("optimizer_states/0", {}),
    ("lr_schedulers", REMOVED),
    ("lr_schedulers", None),
    ("loops", REMOVED),
    ("loops", {}),
    ("loops/fit_loop/epoch_progress/current/completed", 10),
    ("epoch", REMOVED),
    ("epoch", "x"),
    ("pytorch-lightning_version", REMOVED),
]


@pytest.mark.parametrize(("place", "value"), ILL_FITTING, ids=lambda part: "removed" if part is REMOVED else None)
def test_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(copied, place, value):
    """Such a one is never half-loaded: neither the weights of another network nor a buffer of other states."""
    change(last_of(copied), place, value)
    before = contents(copied)
    code, errors = outcome("--resume --max_epochs 5")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert contents(copied) == before


def test_optimizer_state_of_another_shape_does_not_crash_the_process(copied):
    """In a process of its own: PyTorch's fused Adam reads beyond a moment that is too small."""
    change(last_of(copied), "optimizer_states/0/state/0/exp_avg", torch.zeros(1, 4))
    before = contents(copied)
    code, _, errors = run("--resume --max_epochs 5", copied)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert contents(copied) == before


def change(path: Path, place: str, value: object) -> None:
    """Put another value in the place, a path, of a checkpoint."""
    checkpoint = load(path)
    *folders, name = place.split("/")
    inner = checkpoint
    for folder in folders:
        inner = inner[int(folder) if folder.isdigit() else folder]
    key = int(name) if name.isdigit() else name
    if value is REMOVED:
        del inner[key]
    else:
        inner[key] = value
    torch.save(checkpoint, path)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_good_checkpoint_is_tested_and_left_alone(copied, name):
    """All of the above is refused for what is wrong with it."""
    before = contents(copied)
    code, errors = outcome(f"--test lightning_logs/version_0/checkpoints/{name}")
    assert (code, errors) == (0, "")
    assert contents(copied) == before


@pytest.mark.parametrize("flags", ["--resume", "--test gone.ckpt"])
def test_refused_checkpoint_ends_the_process_with_2(tmp_path, flags):
    folder = tmp_path / "run"
    folder.mkdir()
    code, output, errors = run(flags, folder)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert re.search("--resume: there is no run in lightning_logs|--test gone.ckpt: .*No such file", errors)
    assert not list(folder.iterdir())


def test_resume_of_a_run_that_has_no_checkpoint_yet_is_refused(copied):
    """Rather than to go on, in silence, with an older run."""
    Path("lightning_logs/version_1/checkpoints").mkdir(parents=True)
    before = contents(copied)
    code, errors = outcome("--resume --max_epochs 5")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "version_1/checkpoints/last.ckpt" in errors
    assert contents(copied) == before


def test_other_folders_among_the_runs_do_not_matter(copied):
    for name in ("version_copy", "reference"):
        shutil.copytree("lightning_logs/version_0", f"lightning_logs/{name}")
    last_of(copied).touch()
    code, errors = outcome("--resume --lr 0.5")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "version_0" in errors


def test_checkpoint_that_names_a_module_is_not_imported(copied):
    """Unless the same name is given with --env: then it is the user's wish."""
    Path("extras.py").write_text("open('imported', 'w')\n")
    change(last_of(copied), "hyper_parameters/env", "extras:CartPole-v0")
    for flag in ("--resume", "--test"):
        code, errors = outcome(f"{flag} {last_of(copied).relative_to(copied)}")
        assert (code, errors.count("\n")) == (2, 1), errors
        assert "--env extras:CartPole-v0" in errors
        assert not Path("imported").exists()
    change(last_of(copied), "hyper_parameters/env", "extras:\nCartPole-v0")
    code, errors = outcome("--resume")
    assert (code, errors.count("\n")) == (2, 1), errors


def test_settings_of_the_run_do_not_come_from_a_checkpoint(copied):
    for name, value in {"num_processes": 5, "render": True, "video": True, "gpus": 1}.items():
        change(last_of(copied), f"hyper_parameters/{name}", value)
    args = dqn_cartpole.parse_args(["--resume"])
    assert (args.num_processes, args.render, args.video, args.gpus) == (1, False, False, 0)


def test_folder_that_a_checkpoint_names_stays(copied):
    """Lightning's own ModelCheckpoint restores such paths, and removes them at the next better validation."""
    precious = copied / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    paths = {"best_model_path": str(precious), "kth_best_model_path": str(precious), "dirpath": str(precious)}
    state = {**paths, "best_k_models": {str(precious): torch.tensor(-1.0)}, "best_model_score": torch.tensor(-1.0)}
    change(last_of(copied), "callbacks", {"ModelCheckpoint": state, "Checkpoints": state})
    change(last_of(copied), "dqn/0/best_reward", -1.0)
    code, errors = outcome("--resume --max_epochs 8 --val_check_interval 13")
    assert code == 0, errors
    assert (precious / "file").read_text() == "mine"


# Bad command lines, more than anybody would think of

FLAGS = [action for action in Parser()._actions if action.type not in (None, Path)]
NAMES = {action.dest for action in Parser()._actions}


def refused_by(action, text: str) -> bool:
    try:
        action.type(text)
    except argparse.ArgumentTypeError:
        return True
    return False


@st.composite
def bad_flags(draw) -> tuple[str, str]:
    """A flag that exists with a value that it cannot have: no number, or one out of the range."""
    action = draw(st.sampled_from([action for action in FLAGS if action.dest != "env"]))
    words = st.text("abcdefghijklmnopqrstuvwxyz_+,. ", max_size=12)
    numbers = st.integers().map(str) | st.floats().map(str)
    return action.dest, draw((words | numbers).filter(lambda text: refused_by(action, text)))


def assert_refused(flags: list[str], *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.chdir(folder)
        code, errors = outcome(shlex.join(flags))
        assert (code, errors.count("\n")) == (2, 1), errors
        assert all(word in errors for word in words)
        assert os.listdir() == []


@given(bad_flags())
@settings(max_examples=40, deadline=None)
@example(("env", ""))
@example(("env", "Cart\nPole-v0"))
@example(("lr", "-1e-05"))
@example(("max_epochs", "9" * 5000))
def test_value_that_a_flag_cannot_have_is_refused(flag):
    name, value = flag
    assert_refused([f"--{name}={value}"], f"--{name}")


@given(st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=1, max_size=12).filter(lambda name: name not in NAMES))
@settings(max_examples=15, deadline=None)
@example("lr_")
@example("max-epochs")
@example("batch")  # nothing is guessed from its beginning
def test_unknown_flag_is_refused(name):
    if name not in ("help", "test", "resume"):
        assert_refused([f"--{name}=1"])


# Training that goes wrong


class Toy(gym.Env):
    """Random numbers; a fault, named by its kind, in the `at`th training step of the process, and ever after."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def __init__(self, fault: str = "", at: int = 0) -> None:
        self.fault, self.at = fault, at

    def faulty(self, fault: str) -> bool:
        return self.fault == fault and Toy.steps >= self.at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.taken = seed, 0
        if self.faulty("reset raises") and seed >= dqn_cartpole.TRAIN_SEEDS.start:
            raise OSError(f"no simulator in {seed}:0")
        return np.full(2, np.nan, np.float32) if self.faulty("reset to nan") else self.observe(), {}

    def observe(self) -> np.ndarray:
        return self.np_random.normal(size=2).astype(np.float32)

    def step(self, action):
        validating = self.seed < dqn_cartpole.TRAIN_SEEDS.start
        Toy.steps += not validating
        self.taken += 1
        state, reward, where = self.observe(), 1.0, f"{self.seed}:{self.taken}"
        if self.faulty("step raises") or (validating and self.faulty("validation raises")):
            raise OSError(f"no simulator in {where}")
        if self.faulty("one nan, slowly") and Toy.steps == self.at:
            state[1] = np.nan
            time.sleep(2.1)  # so that last.ckpt is due at the end of this epoch
        if self.faulty("reward overflows"):
            reward = 1e39
        for fault, value in (("nan", np.nan), ("inf", -np.inf)):
            if self.faulty(f"observation {fault}"):
                state[1] = value
            if self.faulty(f"reward {fault}"):
                reward = value
        if self.faulty("empty message"):
            print(f"fault in {where}", flush=True)
            raise ValueError
        if self.faulty("exits"):
            sys.exit(0)
        if validating and self.faulty("validation nan"):
            reward = np.nan
        if self.faulty("loss overflows"):
            reward = 1e25
        if self.faulty("weights overflow"):
            reward = 3e38
        if self.fault and Toy.steps == self.at:
            print(f"fault in {where}", flush=True)
        return state, reward, self.taken == 10, False, {}


def register(fault: str = "", at: int = 0) -> None:
    Toy.steps = 0
    gym.register("Toy-v0", Toy, kwargs={"fault": fault, "at": at})


TOY = "--env Toy-v0 --warm_start_steps 400 --max_epochs 8 --val_check_interval 104"
POPULATED = 400  # steps before the first of training


def toy_run(folder: Path, fault: str, flags: str = "", at: int = POPULATED + 33) -> tuple[int | None, str, str]:
    """Train on an environment that develops a fault in the third epoch, when last.ckpt is there since the first."""
    folder.mkdir()
    return run(f"{TOY} {flags}", folder, functools.partial(register, fault, at))


@pytest.mark.parametrize("fault", ["step raises", "reset raises", "empty message"])
def test_environment_that_fails_keeps_its_traceback_with_seed_and_step_and_the_run_can_go_on(tmp_path, fault):
    code, output, errors = toy_run(tmp_path / "run", fault)
    assert code == 1, errors
    assert "Traceback" in errors
    assert ", in step\n" in errors or ", in reset\n" in errors  # the line of the environment's author
    seed, step = re.search(r"(?:no simulator|fault) in (\d+):(\d+)", errors + output).groups()
    assert f"The agent was in step {step} of the training episode with seed {seed}." in errors
    assert load(last_of(tmp_path / "run"))["global_step"] in (13, 26)
    code, _, errors = run("--resume", tmp_path / "run", register)  # the fault is mended
    assert code == 0, errors


def test_environment_that_fails_in_the_warm_start_has_written_nothing(tmp_path):
    code, _, errors = toy_run(tmp_path / "run", "step raises", at=100)
    assert code == 1
    assert "The agent was in step" in errors
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("at", [100, POPULATED + 33])
def test_environment_that_ends_the_program_has_failed(tmp_path, at):
    code, _, errors = toy_run(tmp_path / "run", "exits", at=at)
    assert code == 1
    assert "the environment tried to end the program" in errors


def test_environment_that_fails_in_a_validation_is_not_said_to_have_failed_in_training(tmp_path):
    code, _, errors = toy_run(tmp_path / "run", "validation raises", "--val_check_interval 52")
    assert code == 1, errors
    assert "OSError: no simulator in 0:1\n" in errors
    assert "training episode" not in errors


@pytest.mark.parametrize(
    "fault", ["observation nan", "observation inf", "reset to nan", "reward nan", "reward inf", "reward overflows"]
)
def test_what_is_not_finite_ends_the_run_and_never_enters_a_checkpoint(tmp_path, fault):
    code, _, errors = toy_run(tmp_path / "run", fault)
    assert (code, errors.splitlines()[-1].count("not finite")) == (1, 1), errors
    checkpoint = load(last_of(tmp_path / "run"))
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    assert all(array.isfinite().all() for array in checkpoint["dqn"][0]["buffer"]["arrays"])


def test_a_single_nan_that_is_not_learned_from_yet_never_enters_a_checkpoint(tmp_path):
    """A run resumed from there would fail again, and there is no older last.ckpt."""
    code, _, errors = toy_run(tmp_path / "run", "one nan, slowly")
    assert (code, errors.splitlines()[-1].count("not finite")) == (1, 1), errors
    assert all(array.isfinite().all() for array in load(last_of(tmp_path / "run"))["dqn"][0]["buffer"]["arrays"])
    code, _, errors = run("--resume", tmp_path / "run", register)  # the fault is mended
    assert code == 0, errors


def test_validation_that_is_not_finite_ends_the_run(tmp_path):
    code, _, errors = toy_run(tmp_path / "run", "validation nan", "--val_check_interval 26")
    assert code == 1
    assert "val_reward" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("fault", "flags"), [("loss overflows", "--lr 10"), ("weights overflow", "--lr 10 --grad_clip 10")]
)
def test_loss_that_is_no_longer_finite_stops_the_run_before_it_is_saved(tmp_path, fault, flags):
    code, _, errors = toy_run(tmp_path / "run", fault, flags)
    assert code == 1, errors
    message = errors.splitlines()[-1]
    step = int(re.search(r"not finite at step ([\d,]+)", message).group(1).replace(",", ""))
    assert 33 <= step <= 65  # the fault's, or the end of an epoch that learned from it
    assert re.search(r"--lr\b.*--grad_clip\b", message)
    checkpoint = load(last_of(tmp_path / "run"))
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("value", [deque([1]), {(np.float32(1), 2): 3}, gym.spaces.Discrete(2)], ids=type)
def test_state_that_could_not_be_read_again_fails_at_the_first_checkpoint(tmp_path, monkeypatch, value):
    """A copy of the file that saves more must not find out at --resume, hours later."""
    monkeypatch.chdir(tmp_path)
    state_dict = dqn_cartpole.Agent.state_dict
    monkeypatch.setattr(dqn_cartpole.Agent, "state_dict", lambda agent: state_dict(agent) | {"more": value})
    with pytest.raises(TypeError, match="a state_dict of agent, buffer or module may hold only numbers"):
        dqn_cartpole.main(dqn_cartpole.parse_args(TRAINED.split()))
    assert not list(tmp_path.rglob("*last.ckpt*"))


def test_arrays_and_numbers_of_numpy_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"array": np.arange(6).reshape(2, 3), "number": np.float64(0.5), "list": [np.int64(3), "text"]}
    state_dict, load_state_dict, back = dqn_cartpole.Agent.state_dict, dqn_cartpole.Agent.load_state_dict, []
    monkeypatch.setattr(dqn_cartpole.Agent, "state_dict", lambda agent: state_dict(agent) | {"more": more})

    def load_more(agent, state):
        back.append(state["more"])
        load_state_dict(agent, state)

    monkeypatch.setattr(dqn_cartpole.Agent, "load_state_dict", load_more)
    for flags in (TRAINED.split(), ["--resume", "--max_epochs", "5"]):
        dqn_cartpole.main(dqn_cartpole.parse_args(flags))
    (loaded,) = back
    assert isinstance(loaded["array"], np.ndarray)
    assert (loaded["array"] == more["array"]).all()
    assert (loaded["number"], loaded["list"]) == (0.5, [3, "text"])


# A folder, a memory, a disk that refuse


@pytest.mark.parametrize("target", ["a file", "nowhere", "/sys"])
def test_lightning_logs_that_cannot_be_written_is_refused_in_one_line(tmp_path, target):
    """It is a file, a dangling link, a link to a folder that takes no files."""
    folder = tmp_path / "run"
    folder.mkdir()
    logs = folder / "lightning_logs"
    logs.touch() if target == "a file" else logs.symlink_to(target)
    code, output, errors = run("", folder)
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert "error: lightning_logs: cannot be written" in errors
    assert list(folder.iterdir()) == [logs]


def no_memory_beyond(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@pytest.mark.parametrize("flags", ["--hidden_size 100000 --hidden_layers 2", "--replay_size 100000000"])
def test_memory_that_is_refused_is_said_in_one_line(tmp_path, flags):
    folder = tmp_path / "run"
    folder.mkdir()
    code, output, errors = run(flags, folder, functools.partial(no_memory_beyond, 4 * 10**9))
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert flags.split()[0] in errors
    assert list(folder.iterdir()) == []


def no_file_beyond(size: int) -> None:
    """Let writing fail in a file of that many bytes, as it would on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_the_disk() -> None:
    """Let the third checkpoint, and all after it, find no space left."""
    save, written = torch.save, []

    def full(checkpoint, file):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(file)
        return save(checkpoint, file)

    torch.save = full


def assert_disk_full(code: int | None, errors: str, reason: str, folder: Path) -> None:
    assert code == 1, errors
    message = errors.splitlines()[-1]
    assert message.startswith(f"{SCRIPT.name}: error: ")
    assert re.search(rf"cannot write to .*lightning_logs.*{reason}", message)
    assert {path.name for path in last_of(folder).parent.iterdir()} <= {"last.ckpt", "best.ckpt"}


@pytest.mark.parametrize("size", [4_000, 20_000])
def test_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(copied, size):
    """Whether nothing or half of a checkpoint can be written."""
    assert last_of(copied).stat().st_size > 20_000
    before = contents(last_of(copied).parent)
    code, _, errors = run("--resume --max_epochs 50", copied, functools.partial(no_file_beyond, size))
    assert_disk_full(code, errors, "File too large", copied)
    assert contents(last_of(copied).parent) == before
    code, _, errors = run("--resume --max_epochs 5", copied)  # there is space again
    assert code == 0, errors


def test_disk_that_fills_up_during_the_run_leaves_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    code, _, errors = run(TRAINED, folder, fill_the_disk)
    assert_disk_full(code, errors, "No space left on device", folder)
    assert load(last_of(folder))["global_step"] >= 13


def test_disk_that_takes_no_more_curves_ends_the_run_in_one_line(tmp_path):
    """The file of the curves is the first that becomes too large; a thread of TensorBoard's writes it."""
    folder = tmp_path / "run"
    folder.mkdir()
    small = "--hidden_size 1 --replay_size 200 --warm_start_steps 200 --n_step 1 --episode_length 1"
    code, _, errors = run(f"{small} --max_epochs 200", folder, functools.partial(no_file_beyond, 30_000))
    assert_disk_full(code, errors, "File too large", folder)
    assert "Traceback" not in errors
    load(last_of(folder))
