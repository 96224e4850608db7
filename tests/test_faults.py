"""Whatever goes wrong is said in a sentence, and costs nothing that was there before."""

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
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SCRIPT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_resume import contents, last_of, load, run

import dqn_cartpole
from dqn_cartpole import Agent, DQNLightning, Experience, ReplayBuffer, RunError

TRAINED = "--max_epochs 4 --val_check_interval 26 --warm_start_steps 200 --episode_length 20"


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
    [("half", "damaged|cut short"), ("code", "code"), ("text", "no.* checkpoint"), ("a list", "not a checkpoint")],
)
def test_refusal_says_what_is_wrong_with_the_file(copied, kind, reason):
    last = last_of(copied)
    last.write_bytes(BAD_FILES[kind](last.read_bytes()))
    assert re.search(reason, outcome("--resume")[1])


def test_code_in_a_checkpoint_would_run_where_it_is_not_refused(copied):
    """The marker of the test above is no empty promise."""
    torch.load(io.BytesIO(checkpoint_with_code(last_of(copied).read_bytes())), weights_only=False)
    assert Path("marker").exists()


def test_no_damaged_byte_crashes_the_reader(copied):
    """One inside a tensor is not noticed; any other is refused as it should be."""
    last, chance, refused = last_of(copied), np.random.default_rng(0), 0
    good = last.read_bytes()
    for at in chance.integers(len(good), size=50):
        damaged = bytearray(good)
        damaged[at] ^= 0xFF
        last.write_bytes(damaged)
        try:
            dqn_cartpole.read_checkpoint("resume", last)
        except dqn_cartpole.UsageError:
            refused += 1
    assert refused


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
    ("hyper_parameters/hidden_size", 64),
    ("hyper_parameters/hidden_size", -1),
    ("hyper_parameters/hidden_size", "128"),
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
    ("dqn/0/buffer/rng", {}),
    ("dqn/0/agent", REMOVED),
    ("dqn/0/agent/episode_seed", "x"),
    ("dqn/0/agent/actions", [7]),
    ("dqn/0/score", REMOVED),
    ("dqn/0/torch_rng", torch.zeros(3)),
    ("optimizer_states", REMOVED),
    ("optimizer_states", None),
    ("optimizer_states", []),
    ("optimizer_states/0", {}),
    ("lr_schedulers", REMOVED),
    ("lr_schedulers", None),
    ("loops", REMOVED),
    ("loops", {}),
    ("epoch", REMOVED),
    ("epoch", "x"),
    ("global_step", REMOVED),
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
    assert not list(folder.iterdir())


def test_other_folders_among_the_runs_do_not_matter(copied):
    for name in ("version_copy", "reference"):
        shutil.copytree("lightning_logs/version_0", f"lightning_logs/{name}")
    last_of(copied).touch()
    code, errors = outcome("--resume --lr 0.5")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "version_0" in errors


# Bad command lines, more than anybody would think of

SETTINGS = dqn_cartpole.RUN_SETTINGS | dqn_cartpole.hyperparameters()


@st.composite
def bad_flags(draw) -> tuple[str, str]:
    """A flag that exists with a value that it cannot have."""
    name = draw(st.sampled_from([name for name, (kind, *_) in SETTINGS.items() if kind is not bool]))
    kind, _, _, allowed = SETTINGS[name]
    words = st.text("abcdefghijklmnopqrstuvwxyz_+,. ", max_size=12)
    if kind is str:
        value = draw(words.filter(lambda word: word not in allowed))
    elif kind is int:
        outside = st.integers(max_value=allowed[0] - 1) | st.integers(min_value=allowed[1] + 1)
        fraction = st.floats().map(str)
        value = draw(outside.map(str) | fraction | words)
    else:
        outside = st.floats(max_value=allowed[0], exclude_max=True) | st.floats(allowed[1], exclude_min=True)
        value = draw(outside.map(str) | st.just("nan") | words.filter(lambda word: word not in ("inf", "nan")))
    return name, value


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
@example(("lr", "-1e-05"))
@example(("max_epochs", "9" * 5000))
def test_value_that_a_flag_cannot_have_is_refused(flag):
    name, value = flag
    assert_refused([f"--{name}={value}"], f"--{name}")


@given(st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=1, max_size=12).filter(lambda name: name not in SETTINGS))
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
        if self.faulty("reset raises"):
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
        for fault, value in (("nan", np.nan), ("inf", -np.inf)):
            if self.faulty(f"observation {fault}"):
                state[1] = value
            if self.faulty(f"reward {fault}"):
                reward = value
        if self.faulty("reward overflows"):
            reward = 1e39
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


TOY = "--env Toy-v0 --warm_start_steps 200 --max_epochs 8 --val_check_interval 104"
POPULATED = 200  # steps before the first of training


def toy_run(folder: Path, fault: str, flags: str = "", at: int = POPULATED + 33) -> tuple[int | None, str, str]:
    """Train on an environment that develops a fault in the third epoch, when last.ckpt is there since the first."""
    folder.mkdir()
    return run(f"{TOY} {flags}", folder, functools.partial(register, fault, at))


@pytest.mark.parametrize("fault", ["step raises", "observation nan"])
def test_environment_that_fails_is_named_with_seed_and_step_and_the_run_can_go_on(tmp_path, fault):
    code, output, errors = toy_run(tmp_path / "run", fault)
    assert code == 1, errors
    message = errors.splitlines()[-1]
    seed, step = (
        re.search(r"fault in (\d+):(\d+)", output) or re.search(r"no simulator in (\d+):(\d+)", message)
    ).groups()
    assert re.search(rf"step {step}\b.*seed {seed}\b", message)
    assert load(last_of(tmp_path / "run"))["global_step"] in (13, 26)
    _, _, *flags = shlex.split(message[message.index("python ") :])
    code, _, errors = run(shlex.join(flags), tmp_path / "run", register)  # the fault is mended
    assert code == 0, errors


def agent_with(fault: str, at: int) -> Agent:
    Toy.steps = 0
    return Agent(Toy(fault, at), ReplayBuffer(100, seed=0), seed=0)


FAULTS = ["step raises", "observation nan", "observation inf", "reward nan", "reward inf", "reward overflows"]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_step_is_named_and_does_not_enter_the_buffer(fault):
    agent, net = agent_with(fault, 24), torch.nn.Linear(2, 2)
    for _ in range(23):
        agent.play_step(net, 1.0)
    seed = agent.env.seed
    with pytest.raises(RunError, match=rf"step 4 of.*seed {seed}\b"):
        agent.play_step(net, 1.0)
    assert len(agent.replay_buffer) == 23
    assert all(np.isfinite(array).all() for array in agent.replay_buffer.sample(23))


@pytest.mark.parametrize("fault", ["reset raises", "reset to nan"])
def test_fault_in_a_reset_is_named_and_does_not_enter_the_buffer(fault):
    agent, net = agent_with(fault, 20), torch.nn.Linear(2, 2)
    for _ in range(19):
        agent.play_step(net, 1.0)
    with pytest.raises(RunError, match=r"seed \d+") as failed:
        any(agent.play_step(net, 1.0) is None for _ in range(2))  # the first ends an episode
    assert f"seed {agent.env.seed}" in str(failed.value)
    assert all(np.isfinite(array).all() for array in agent.replay_buffer.sample(20))


@pytest.mark.parametrize("field", ["state", "reward", "new_state"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_buffer_refuses_what_is_not_finite(field, value):
    buffer = ReplayBuffer(10)
    good = Experience(np.zeros(2, np.float32), 0, 1.0, False, np.zeros(2, np.float32))
    buffer.append(good)
    bad = good._replace(**{field: value if field == "reward" else np.array([0, value], np.float32)})
    with pytest.raises(ValueError, match="finite"):
        buffer.append(bad)
    assert len(buffer) == 1


@pytest.fixture
def toy():
    """A model on the environment, of which the test chooses the fault."""
    register()
    yield lambda **keywords: DQNLightning(env="Toy-v0", warm_start_steps=200, **keywords)
    del gym.registry["Toy-v0"]


def test_fault_in_a_validation_episode_is_named(toy):
    model = toy()
    gym.registry["Toy-v0"].kwargs = {"fault": "validation raises"}
    with pytest.raises(RunError, match=r"step 1\b.*seed 7\b"):
        model.play_episodes(torch.tensor([7]))


@pytest.mark.parametrize("fault", ["loss overflows", "weights overflow"])
@pytest.mark.parametrize("flags", ["--lr 10", "--lr 10 --grad_clip 10"])
def test_loss_that_is_no_longer_finite_stops_the_run_before_it_is_saved(tmp_path, fault, flags):
    code, _, errors = toy_run(tmp_path / "run", fault, flags)
    assert code == 1, errors
    message = errors.splitlines()[-1]
    assert "loss" in message
    step = int(re.search(r"step ([\d,]+)", message).group(1).replace(",", ""))
    assert 33 <= step <= 52  # the fault's, or the end of the next epoch, whose sample holds it
    assert re.search(r"--lr\b.*--grad_clip\b", message)
    checkpoint = load(last_of(tmp_path / "run"))
    assert checkpoint["global_step"] <= 39
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


# A full disk


def no_file_beyond(size: int) -> None:
    """Let writing fail in a file of that many bytes, as it would on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_the_disk() -> None:
    """Let the third checkpoint, and all after it, find no space left."""
    save, written = torch.save, []

    def full(checkpoint, file):
        if len(written) == 2:
            file.write(bytes(100))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(file)
        return save(checkpoint, file)

    torch.save = full


def assert_disk_full(code: int | None, errors: str, reason: str, folder: Path) -> None:
    assert code == 1, errors
    message = errors.splitlines()[-1]
    assert message.startswith(f"{SCRIPT.name}: error: ")
    assert re.search(rf"cannot write .*\.ckpt.*{reason}", message)
    assert not list(folder.rglob("*.partial"))


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
