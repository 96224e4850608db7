"""A run that is stopped, at any moment and any number of times, and resumed equals the run that never was.

The script runs in forks of a server that has imported PyTorch already, so that a start costs next to nothing.
"""

import copy
import functools
import itertools
import multiprocessing
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium.vector import SyncVectorEnv
from helpers import SCRIPT, scalars
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import Strategy

from dqn_cartpole import Agent, Checkpoints, DQNLightning, Experience, NStepBuffer, ReplayBuffer, make_env

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["helpers", "dqn_cartpole"])
CURVES = ("total_reward", "avg_reward", "reward", "train_loss", "val_reward", "epsilon", "lr", "q_mean")

# A run to be killed, long enough for several kills and with all that changes on its way; and a shorter one, which is
# validated after epoch 20 only.
LONG = "--max_epochs 200 --val_check_interval 520 --lr_schedule linear"
SHORT = "--max_epochs 30 --val_check_interval 260 --episode_length 50 --lr_schedule constant"


def start(flags: str, folder: Path, prepare: Callable[[], object] | None = None) -> BaseProcess:
    """Begin `python dqn_cartpole.py FLAGS` in `folder`, after `prepare`; its output goes to files beside the folder."""
    process = FORKS.Process(target=script, args=(flags, folder, prepare))
    process.start()
    return process


def script(flags: str, folder: Path, prepare: Callable[[], object] | None) -> None:
    os.chdir(folder)
    for suffix, descriptor in ((".stdout", 1), (".stderr", 2)):
        with folder.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    if prepare:
        prepare()
    sys.argv = [SCRIPT.name, *shlex.split(flags)]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def finish(process: BaseProcess, folder: Path) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of what `start` began."""
    process.join(1200)
    return process.exitcode, *(folder.with_suffix(suffix).read_text() for suffix in (".stdout", ".stderr"))


def run(flags: str, folder: Path, prepare: Callable[[], object] | None = None) -> tuple[int | None, str, str]:
    return finish(start(flags, folder, prepare), folder)


def version_of(folder: Path) -> Path:
    return folder / "lightning_logs" / "version_0"


def last_of(folder: Path) -> Path:
    return version_of(folder) / "checkpoints" / "last.ckpt"


def mtime(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_changes(path: Path, times: int, process: BaseProcess) -> None:
    """Wait until `path` was written `times` times, or the process is over."""
    for _ in range(times):
        before = mtime(path)
        while mtime(path) == before and process.is_alive():
            time.sleep(0.005)


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def same(a: object, b: object) -> bool:
    """Whether two values of a checkpoint are equal bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "lightning_logs").glob("version_*"))


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder in a folder, with what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_same_run(a: Path, b: Path) -> None:
    """The runs in two folders ended in the same state, have the same best checkpoint and show the same curves."""
    ours, theirs = load(last_of(a)), load(last_of(b))
    assert any(name.startswith("target_net") for name in ours["state_dict"])
    for entry in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert same(ours[entry], theirs[entry]), entry
    assert len(ours["dqn"]) == len(theirs["dqn"]) >= 1
    for our, their in zip(ours["dqn"], theirs["dqn"]):
        assert our.keys() == their.keys() >= {"buffer", "agent", "torch_rng", "returns", "best_reward"}
        for entry in our:
            assert same(our[entry], their[entry]), entry
    assert same(*(load(last_of(folder).with_name("best.ckpt"))["state_dict"] for folder in (a, b)))
    curves = scalars(version_of(a))
    for curve in CURVES:
        steps = [step for step, _ in curves[curve]]
        assert all(before <= after for before, after in itertools.pairwise(steps)), f"{curve} steps back"
    expected = scalars(version_of(b))
    for curve in CURVES:
        assert curves[curve] == expected[curve], curve


def hurry() -> None:
    """Let the clock of the process run so fast that it writes last.ckpt every 25 epochs or so."""
    clock, ahead = time.monotonic, itertools.count()
    time.monotonic = lambda: clock() + next(ahead)


@pytest.fixture(scope="session")
def long_run(tmp_path_factory) -> tuple[Path, list[int]]:
    """Folder of the long run in one go, and the epochs of last.ckpt as a reader saw them meanwhile."""
    folder, epochs = tmp_path_factory.mktemp("long"), []
    process = start(LONG, folder, hurry)
    wait_for_changes(last_of(folder), 1, process)
    while process.is_alive():
        epochs.append(load(last_of(folder))["epoch"])
        time.sleep(0.03)
    code, _, errors = finish(process, folder)
    assert code == 0, errors
    return folder, epochs


@pytest.fixture(scope="session")
def short_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    code, _, errors = run(SHORT, folder)
    assert code == 0, errors
    return folder


@pytest.fixture
def copied(tmp_path, short_run) -> Path:
    """A folder with a copy of the short run, to be changed."""
    return Path(shutil.copytree(short_run, tmp_path / "copy"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """An empty folder for a run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def kill(flags: str, folder: Path, writes: int, seconds: float, prepare: Callable[[], object] | None = None) -> bool:
    """Kill a run that many seconds after its last.ckpt was written that often; False where it was faster."""
    process = start(flags, folder, prepare)
    wait_for_changes(last_of(folder), writes, process)
    process.join(seconds)
    process.kill()
    code, _, errors = finish(process, folder)
    assert code in (0, -signal.SIGKILL), errors
    checkpoint = load(last_of(folder))
    return code != 0 and checkpoint["epoch"] + 1 < checkpoint["hyper_parameters"]["max_epochs"]


def refusal(flags: str, folder: Path) -> str:
    """The line with which `python dqn_cartpole.py FLAGS` is refused, nothing in the folder having changed."""
    before = contents(folder)
    code, output, errors = run(flags, folder)
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert contents(folder) == before
    return errors


# Killed


def test_run_killed_at_random_moments_and_resumed_equals_the_run_never_killed(folder, long_run):
    for number, writes in enumerate([1, 3, 2]):
        assert kill(LONG if number == 0 else "--resume", folder, writes, random.uniform(0, 0.1), hurry)
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert versions(folder) == ["version_0"]
    assert_same_run(folder, long_run[0])


KINDS = {
    "one step": "--n_step 1 --eps_end 0",
    "three steps and double DQN": "--n_step 3 --double_dqn",
    "a Tuple space": "--env Blackjack-v1 --n_step 3",
    "a renamed folder": "",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_resumes_exactly(tmp_path, folder, kind):
    flags, straight = f"{SHORT} --max_epochs 120 --replay_size 1200 {KINDS[kind]}", tmp_path / "straight"
    straight.mkdir()
    code, _, errors = run(flags, straight)
    assert code == 0, errors
    assert kill(flags, folder, 3, random.uniform(0, 0.1), hurry)
    name = "mine" if kind == "a renamed folder" else "version_0"
    renamed = version_of(folder).rename(folder / "lightning_logs" / name)
    code, _, errors = run(f"--resume lightning_logs/{name}/checkpoints/last.ckpt", folder)
    assert code == 0, errors
    renamed.rename(version_of(folder))
    assert versions(folder) == ["version_0"]
    assert_same_run(folder, straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_random_kill_of_a_random_kind_leaves_no_trace(tmp_path, folder, number):
    chance, kinds, straight = random.Random(number), KINDS | {"two processes": ""}, tmp_path / "straight"
    kind = chance.choice(list(kinds))
    command = [sys.executable, SCRIPT, *(["--num_processes", "2"] if kind == "two processes" else [])]
    flags = shlex.split(f"{SHORT} --max_epochs 400 --replay_size 1200 {kinds[kind]}")
    straight.mkdir()
    subprocess.run([*command, *flags], cwd=straight, check=True, capture_output=True)
    with subprocess.Popen([*command, *flags], cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not last_of(folder).exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
        os.killpg(process.pid, signal.SIGKILL)
    renamed = version_of(folder)
    if kind == "a renamed folder":
        renamed = renamed.rename(folder / "lightning_logs" / "mine")
    last = renamed / "checkpoints" / "last.ckpt"
    subprocess.run([*command, "--resume", last], cwd=folder, check=True, capture_output=True)
    renamed.rename(version_of(folder))
    assert_same_run(folder, straight)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(tmp_path, folder):
    flags, straight = LONG.replace("--max_epochs 200", "--max_epochs 2500"), tmp_path / "straight"
    straight.mkdir()
    code, _, errors = run(flags, straight)
    assert code == 0, errors
    chance = random.Random(0)
    for number in range(20):
        writes, seconds = chance.choice([1, 1, 2]), chance.uniform(0, 1.9)
        assert kill(flags if number == 0 else "--resume", folder, writes, seconds)
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert_same_run(folder, straight)


def test_last_checkpoint_is_whole_whenever_it_is_read(long_run):
    """The fixture read it over and over while the run wrote it; a torn or missing file would have raised."""
    _, epochs = long_run
    assert len(set(epochs)) >= 2
    assert epochs == sorted(epochs)


def die_while_writing(writes: int) -> None:
    """Let the process be killed when half of a checkpoint is on the disk, the first after that many whole ones."""
    sync, written = os.fsync, []

    def torn(descriptor):
        sync(descriptor)
        if len(written) == writes:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(descriptor)

    os.fsync = torn


def die_in_the_first() -> None:
    die_while_writing(0)


def die_in_the_third() -> None:
    die_while_writing(2)


def test_killed_while_a_checkpoint_is_written_the_one_before_stays_whole(folder, short_run):
    code, _, errors = run(SHORT, folder, die_in_the_third)
    assert code == -signal.SIGKILL, errors
    load(last_of(folder))
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert_same_run(folder, short_run)
    assert {path.name for path in last_of(folder).parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_killed_before_its_first_checkpoint_a_run_has_nothing_to_resume(folder):
    assert run(SHORT, folder, die_in_the_first)[0] == -signal.SIGKILL
    assert not last_of(folder).exists()
    assert "version_0" in refusal("--resume", folder)


# Several at once


def test_runs_started_together_have_a_folder_each_and_are_as_if_alone(tmp_path, folder, short_run):
    processes = [start(f"{SHORT} --seed {seed}", folder) for seed in range(4)]
    for process in processes:
        code, _, errors = finish(process, folder)
        assert code == 0, errors
    assert versions(folder) == [f"version_{number}" for number in range(4)]
    runs = [folder / "lightning_logs" / version for version in versions(folder)]
    seeds = [load(run / "checkpoints" / "last.ckpt")["hyper_parameters"]["seed"] for run in runs]
    assert sorted(seeds) == [0, 1, 2, 3]
    alone = version_of(tmp_path / "alone")
    alone.parent.mkdir(parents=True)
    runs[seeds.index(0)].rename(alone)
    assert_same_run(tmp_path / "alone", short_run)


def test_resume_of_a_run_that_still_goes_is_refused_until_it_is_dead(tmp_path, folder):
    process = start(f"{SHORT} --max_epochs 120", folder)
    wait_for_changes(last_of(folder), 1, process)
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not end meanwhile
    second = tmp_path / "second"  # the same folder, but the output of the second process goes beside this name
    second.symlink_to(folder)
    assert "still goes" in refusal("--resume", second)
    process.kill()
    finish(process, folder)
    code, _, errors = run("--resume", folder)
    assert code == 0, errors


# Interrupted


def signal_in(owner: object, name: str, number: int) -> None:
    """Let the process get a signal when it calls this function for the first time."""
    function = getattr(owner, name)

    def signalled(*args, **kwargs):
        setattr(owner, name, function)
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, signalled)


def in_the_decision(number: int) -> None:
    """Let it come when the processes have been asked for theirs, and the answer is not there yet."""
    signal_in(Strategy, "reduce_boolean_decision", number)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["anywhere", "in the decision"])
def test_stopped_by_a_signal_and_continued_as_it_says_equals_one_go(folder, short_run, number, expected, where):
    process = start(SHORT, folder, functools.partial(in_the_decision, number) if where == "in the decision" else None)
    if where == "anywhere":
        wait_for_changes(last_of(folder), 1, process)
        process.join(random.uniform(0, 0.05))
        written = mtime(last_of(folder))
        os.kill(process.pid, number)
    else:
        written = 0
    code, output, errors = finish(process, folder)
    assert code == expected, errors
    assert where == "anywhere" or load(last_of(folder))["global_step"] <= 2 * 13  # it came in the first epoch
    assert "Traceback" not in errors
    assert mtime(last_of(folder)) > written
    checkpoint = load(last_of(folder))
    assert f"step {checkpoint['global_step']}" in output.replace(",", "")
    assert scalars(version_of(folder))["epsilon"][-1][0] >= checkpoint["global_step"] - 50  # the curves are flushed
    python, name, *flags = shlex.split(output.splitlines()[-1])
    assert (python, Path(name).name, flags[-2]) == ("python", SCRIPT.name, "--resume")
    code, _, errors = run(shlex.join(flags), folder)
    assert code == 0, errors
    assert_same_run(folder, short_run)


@pytest.mark.parametrize(
    ("flags", "owner", "name"),
    [
        ("--resume --max_epochs 31", torch.optim.Adam, "__init__"),  # before the first step
        ("--resume", SyncVectorEnv, "reset"),  # in the closing test
        ("--resume", Image.Image, "quantize"),  # while it is filmed
        ("--test lightning_logs/version_0/checkpoints/last.ckpt", SyncVectorEnv, "reset"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_where_nothing_is_to_be_saved_ends_it_and_loses_nothing(copied, number, flags, owner, name):
    before = last_of(copied).read_bytes()
    code, _, errors = run(flags, copied, functools.partial(signal_in, owner, name, number))
    assert code in (128 + number, -number), errors
    assert "Traceback" not in errors
    assert last_of(copied).read_bytes() == before


@pytest.mark.parametrize(("number", "other"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_of_either_kind_would_end_it_at_once(number, other):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    callback = Checkpoints()
    try:
        callback.answer_signals(callback.stop)
        signal.raise_signal(number)
        assert callback.stopped_by == number
        assert signal.getsignal(number) == signal.getsignal(other) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


@pytest.mark.slow
def test_ctrl_c_on_a_real_command_line_exits_with_130(tmp_path):
    command = [sys.executable, SCRIPT, "--max_epochs", "100000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not last_of(tmp_path).exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "--resume" in output.splitlines()[-1]


# Continued on purpose


def test_best_checkpoint_is_small_and_its_resume_refused(copied):
    """It is for playing and sharing: weights and hyperparameters, whatever the size of the buffer."""
    best, last = load(last_of(copied).with_name("best.ckpt")), load(last_of(copied))
    assert not {"dqn", "optimizer_states"} & best.keys()
    assert best["hyper_parameters"] == last["hyper_parameters"]
    assert "weights only" in refusal("--resume lightning_logs/version_0/checkpoints/best.ckpt", copied)


def test_checkpoint_from_elsewhere_continues_exactly_in_a_run_of_its_own(copied, short_run, tmp_path):
    """Not in a folder that happens to have the number of the one that it came from."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, _, errors = run(f"{SHORT} --max_epochs 20", elsewhere)
    assert code == 0, errors
    before = contents(version_of(copied))
    code, _, errors = run(f"--resume {last_of(elsewhere)} --max_epochs 30", copied)
    assert code == 0, errors
    assert contents(version_of(copied)) == before
    ours, theirs = load(copied / "lightning_logs/version_1/checkpoints/last.ckpt"), load(last_of(short_run))
    for checkpoint in (ours, theirs):
        checkpoint["dqn"][0]["best_reward"] = None
    for entry in ("global_step", "state_dict", "optimizer_states", "dqn"):
        assert same(ours[entry], theirs[entry]), entry


def test_a_run_that_left_its_best_elsewhere_looks_for_a_best_again(copied, tmp_path):
    """Rather than to test its last, because the best that it remembers is not there."""
    elsewhere = Path(shutil.copy(last_of(copied), tmp_path / "last.ckpt"))
    checkpoint = load(elsewhere)
    checkpoint["dqn"][0]["best_reward"] = 1e6
    torch.save(checkpoint, elsewhere)
    code, output, errors = run(f"--resume {elsewhere} --max_epochs 32 --val_check_interval 13", copied)
    assert code == 0, errors
    assert "--test lightning_logs/version_1/checkpoints/best.ckpt" in output
    assert load(copied / "lightning_logs/version_1/checkpoints/last.ckpt")["dqn"][0]["best_reward"] < 1e6


def test_best_score_is_remembered_in_a_renamed_folder_and_at_another_interval(copied):
    """Otherwise the first validation would overwrite best.ckpt with what may be worse."""
    checkpoint = load(last_of(copied))
    checkpoint["dqn"][0]["best_reward"] = 1e6  # out of reach
    torch.save(checkpoint, last_of(copied))
    renamed = version_of(copied).rename(copied / "lightning_logs" / "renamed")
    last, best = (renamed / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    before = best.read_bytes()
    code, _, errors = run(f"--resume {last} --max_epochs 32 --val_check_interval 26", copied)
    assert code == 0, errors
    assert len(scalars(renamed)["val_reward"]) == 2
    assert load(last)["dqn"][0]["best_reward"] == 1e6
    assert best.read_bytes() == before


def test_best_is_of_the_highest_validation_and_of_equals_the_latest(tmp_path):
    rewards = [1.0, 3.0, 2.0, 3.0, 1.0]  # of the validations after each epoch

    class Scripted(DQNLightning):
        def validation_step(self, seeds, batch_idx):
            self.log("val_reward", rewards[self.current_epoch])

    kept = {"logger": False, "accelerator": "cpu", "default_root_dir": tmp_path, "num_sanity_val_steps": 0}
    pl.Trainer(max_epochs=5, callbacks=[Checkpoints()], **kept).fit(Scripted())
    assert load(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 4 * 13
    assert load(tmp_path / "checkpoints" / "last.ckpt")["dqn"][0]["best_reward"] == 3


def test_folder_that_a_strangers_checkpoint_names_stays(copied):
    """Lightning's ModelCheckpoint takes paths from there, and deletes one at the next better validation."""
    precious = copied / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    callback, low, checkpoint = ModelCheckpoint(), torch.tensor(-1.0), load(last_of(copied))
    own = "./lightning_logs/version_0/checkpoints"
    named = f"{own}/../../../precious"  # it deletes in its own folder only, it thinks
    state = callback.state_dict() | {"best_k_models": {named: low}, "kth_best_model_path": named, "dirpath": own}
    state |= {"kth_value": low, "best_model_score": low}
    checkpoint["callbacks"] = {"Checkpoints": state, callback.state_key: state}
    checkpoint["dqn"][0]["best_reward"] = -1.0
    torch.save(checkpoint, last_of(copied))
    best = mtime(last_of(copied).with_name("best.ckpt"))
    code, _, errors = run("--resume --max_epochs 32 --val_check_interval 26", copied)
    assert code == 0, errors
    assert mtime(last_of(copied).with_name("best.ckpt")) > best
    assert (precious / "file").read_text() == "mine"


def test_larger_max_epochs_trains_on_as_if_asked_for_at_once(folder, short_run):
    for flags in (f"{SHORT} --max_epochs 20", "--resume --max_epochs 30"):
        code, _, errors = run(flags, folder)
        assert code == 0, errors
    assert load(last_of(folder))["hyper_parameters"]["max_epochs"] == 30
    assert_same_run(folder, short_run)


def test_resume_takes_the_newest_run_or_none(copied):
    logs = copied / "lightning_logs"
    for number in (10, 2):  # the newest has the highest number, whatever was written last
        shutil.copytree(logs / "version_0", logs / f"version_{number}")
    before = {path: mtime(path) for path in logs.rglob("*.ckpt")}
    code, _, errors = run("--resume --max_epochs 31", copied)
    assert code == 0, errors
    written = {path.parents[1].name for path in logs.rglob("last.ckpt") if mtime(path) != before[path]}
    assert written == {"version_10"}
    (logs / "version_11").mkdir()  # killed before its first checkpoint
    assert "version_11" in refusal("--resume", copied)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(copied, short_run):
    code, output, errors = run("--resume", copied)
    assert code == 0, errors
    assert "test_reward: " in output
    assert_same_run(copied, short_run)


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 0.5",
        "--seed 3",
        "--env Acrobot-v1",
        "--hidden_size 65",
        "--replay_size 2001",
        "--episode_length 51",
        "--lr_schedule linear",
        "--double_dqn",
        "--grad_clip 12.5",
        "--n_step 2",
    ],
)
def test_flag_that_contradicts_the_run_is_refused_with_both_values(short_run, flags):
    flag, *value = flags.split()
    trained_with = load(last_of(short_run))["hyper_parameters"][flag.removeprefix("--")]
    words = re.split(r"[:;,]? ", refusal(f"--resume {flags}", short_run))
    assert {flag, *value, str(trained_with)} <= set(words)


@pytest.mark.parametrize("epochs", ["29", "1"])
def test_fewer_epochs_than_the_run_has_are_refused(short_run, epochs):
    assert f"--max_epochs {epochs}" in refusal(f"--resume --max_epochs {epochs}", short_run)


def test_flag_that_repeats_the_runs_own_value_is_no_contradiction(copied):
    lr = load(last_of(copied))["hyper_parameters"]["lr"]
    code, _, errors = run(f"--resume --lr {lr} --episode_length 50 --seed 0 --max_epochs 30", copied)
    assert code == 0, errors


def test_settings_of_zero_are_kept(folder):
    for flags in ("--eps_end 0 --gamma 0 --double_dqn --max_epochs 2", "--resume --max_epochs 3"):
        code, _, errors = run(flags, folder)
        assert code == 0, errors
    kept = load(last_of(folder))["hyper_parameters"]
    assert (kept["eps_end"], kept["gamma"], kept["double_dqn"]) == (0, 0, True)


# The state of the parts


def experience(i: int) -> Experience:
    return Experience(np.full(3, i, np.float32), i, float(i), i % 2 == 0, np.full(3, i + 1, np.float32))


@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 37])
def test_buffer_goes_on_where_it_stood(count):
    """Empty, in part full, full and wrapped: what it holds, what it draws and what it forgets next."""
    buffer, again = ReplayBuffer(10, seed=1), ReplayBuffer(10, seed=2)
    for i in range(count):
        buffer.append(experience(i))
    if count:
        buffer.sample(1)
    again.load_state_dict(copy.deepcopy(buffer.state_dict()))
    for i in range(count, count + 15):
        assert len(again) == len(buffer)
        buffer.append(experience(i))
        again.append(experience(i))
        for ours, theirs in zip(again.sample(len(again)), buffer.sample(len(buffer))):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("n_step", [1, 4])
@pytest.mark.parametrize("steps", [4, 9, 60])
def test_agent_and_buffer_go_on_in_the_middle_of_an_episode(steps, n_step):
    """With n-step returns the steps that wait are no part of the state: the agent plays them again."""
    net = torch.nn.Linear(4, 2)
    buffers = [ReplayBuffer(30, seed) if n_step == 1 else NStepBuffer(30, n_step, 0.9, seed) for seed in (1, 2)]
    agents = [Agent(make_env("CartPole-v0", 25), buffer, seed=seed) for seed, buffer in enumerate(buffers)]
    for _ in range(steps):
        agents[0].play_step(net, epsilon=0.5)
    state = copy.deepcopy({"agent": agents[0].state_dict(), "buffer": buffers[0].state_dict()})
    for _ in range(5):
        agents[1].play_step(net)  # it was somewhere else
    agents[1].load_state_dict(state["agent"])
    buffers[1].load_state_dict(state["buffer"])
    for _ in range(100):
        assert np.array_equal(agents[1].state, agents[0].state)
        assert agents[1].play_step(net, epsilon=0.5) == agents[0].play_step(net, epsilon=0.5)
        assert len(buffers[1]) == len(buffers[0])
        for ours, theirs in zip(*(buffer.sample(len(buffer)) for buffer in buffers)):
            assert np.array_equal(ours, theirs)


def test_state_of_an_agent_does_not_change_as_it_plays_on():
    agent = Agent(make_env("CartPole-v0"), ReplayBuffer(500, seed=0), seed=0)
    net = torch.nn.Linear(4, 2)
    agent.play_step(net)
    state = agent.state_dict()
    other = Agent(make_env("CartPole-v0"), ReplayBuffer(500, seed=0), seed=1)
    other.load_state_dict(state)
    other.play_step(net)
    assert len(state["actions"]) == 1
