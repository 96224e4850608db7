"""A run that is stopped, at any moment and any number of times, and resumed equals the run that never was.

The script runs in forks of a server that has imported PyTorch already, so that a start costs next to nothing.
"""

import functools
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
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SCRIPT, scalars

import dqn_cartpole
from dqn_cartpole import Agent, Experience, ReplayBuffer, make_env

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["helpers", "dqn_cartpole"])
CURVES = ("total_reward", "avg_reward", "reward", "train_loss", "val_reward", "epsilon", "lr", "q_mean")

# A run to be killed, long enough for several kills and with all that changes on its way; and a shorter one, which is
# validated after epoch 20 only.
LONG = "--max_epochs 400 --val_check_interval 260 --lr_schedule linear"
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
        assert our.keys() == their.keys() >= {"buffer", "agent", "returns", "best_reward", "torch_rng"}
        for entry in our:
            assert same(our[entry], their[entry]), entry
    assert same(*(load(last_of(folder).with_name("best.ckpt"))["state_dict"] for folder in (a, b)))
    curves = scalars(version_of(a))
    for curve in CURVES:
        steps = [step for step, _ in curves[curve]]
        assert all(before <= after for before, after in pairwise(steps)), f"{curve} steps back"
    expected = scalars(version_of(b))
    for curve in CURVES:
        assert curves[curve] == expected[curve], curve


@pytest.fixture(scope="session")
def long_run(tmp_path_factory) -> tuple[Path, list[int]]:
    """Folder of the long run in one go, and the epochs of last.ckpt as a reader saw them meanwhile."""
    folder, epochs = tmp_path_factory.mktemp("long"), []
    process = start(LONG, folder)
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


def kill_and_resume(flags: str, folder: Path, kills: list[tuple[int, float]]) -> int:
    """Kill a run that many seconds after its last.ckpt was written that often, resume it, and so on to the end.

    Returns:
        how often the run was killed before it had trained to the end
    """
    killed, epochs = 0, int(flags.split("--max_epochs ")[1].split()[0])
    for writes, seconds in kills:
        process = start(flags if not killed else "--resume", folder)
        wait_for_changes(last_of(folder), writes, process)
        process.join(seconds)
        process.kill()
        code, _, errors = finish(process, folder)
        if code == 0 or load(last_of(folder))["epoch"] + 1 == epochs:
            break
        assert code == -signal.SIGKILL, errors
        killed += 1
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert len(list(folder.glob("lightning_logs/version_*"))) == 1
    return killed


# Killed


def test_run_killed_at_random_moments_and_resumed_equals_the_run_never_killed(tmp_path, long_run):
    kills = [(1, random.uniform(0, 1)), (2, random.uniform(0, 0.3)), (1, random.uniform(0, 1))]
    folder = tmp_path / "run"
    folder.mkdir()
    assert kill_and_resume(LONG, folder, kills) >= 2, kills  # a very fast machine may be done before the last
    assert_same_run(folder, long_run[0])


KINDS = {
    "one step": "--n_step 1",
    "three steps and double DQN": "--n_step 3 --double_dqn",
    "a Tuple space": "--env Blackjack-v1 --n_step 3 --episode_length 100",
    "a renamed folder": "",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_resumes_exactly(kind, tmp_path):
    flags = f"{SHORT} {KINDS[kind]} --max_epochs 120"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    code, _, errors = run(flags, straight)
    assert code == 0, errors
    process = start(flags, killed)
    wait_for_changes(last_of(killed), 1, process)
    process.kill()
    finish(process, killed)
    last = last_of(killed)
    if kind == "a renamed folder":
        version_of(killed).rename(killed / "lightning_logs" / "mine")
        last = killed / "lightning_logs" / "mine" / "checkpoints" / "last.ckpt"
    code, _, errors = run(f"--resume {last.relative_to(killed)}", killed)
    assert code == 0, errors
    if kind == "a renamed folder":
        (killed / "lightning_logs" / "mine").rename(version_of(killed))
    assert_same_run(killed, straight)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(20))
def test_a_random_kill_of_a_random_kind_leaves_no_trace(kill, tmp_path):
    chance = random.Random(kill)
    kinds = {**KINDS, "two processes": "--num_processes 2"}
    kind = chance.choice(list(kinds))
    flags = f"{SHORT} {kinds[kind]} --max_epochs 400"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    devices = "--num_processes 2" if kind == "two processes" else ""
    command = [sys.executable, SCRIPT, *shlex.split(flags)]
    subprocess.run(command, cwd=straight, check=True, capture_output=True)
    with subprocess.Popen(command, cwd=killed, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not last_of(killed).exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
        os.killpg(process.pid, signal.SIGKILL)
    folder = version_of(killed)
    if kind == "a renamed folder":
        folder = folder.rename(killed / "lightning_logs" / "mine")
    resume = [sys.executable, SCRIPT, *devices.split(), "--resume", folder / "checkpoints" / "last.ckpt"]
    subprocess.run(resume, cwd=killed, check=True, capture_output=True)
    if kind == "a renamed folder":
        folder.rename(version_of(killed))
    assert_same_run(killed, straight)


def test_runs_that_start_together_each_have_a_folder_as_if_alone(tmp_path, short_run):
    processes = []
    for seed in range(4):
        (tmp_path / f"run{seed}").symlink_to(tmp_path)  # of the same folder, but with an output of its own
        processes.append(start(f"{SHORT} --seed {seed}", tmp_path / f"run{seed}"))
    for seed, process in enumerate(processes):
        code, _, errors = finish(process, tmp_path / f"run{seed}")
        assert code == 0, errors
    folders = {load(path)["hyper_parameters"]["seed"]: path for path in tmp_path.glob("lightning_logs/*/*/last.ckpt")}
    assert sorted(folders) == [0, 1, 2, 3]
    ours, theirs = load(folders[0]), load(last_of(short_run))
    for entry in ("state_dict", "optimizer_states", "dqn"):
        assert same(ours[entry], theirs[entry]), entry


def test_run_that_still_goes_cannot_be_resumed_but_one_that_was_killed_can(tmp_path):
    folder, beside = tmp_path / "run", tmp_path / "beside"
    folder.mkdir()
    beside.symlink_to(folder)
    process = start(LONG, folder)
    wait_for_changes(last_of(folder), 1, process)
    code, _, errors = run("--resume", beside)
    assert (code, errors.count("\n")) == (2, 1)
    assert "its run still goes" in errors
    assert process.is_alive()
    process.kill()
    finish(process, folder)
    code, _, errors = run(f"--resume --max_epochs {load(last_of(folder))['epoch'] + 20}", beside)
    assert code == 0, errors


def signal_in_the_decision() -> None:
    """Let SIGTERM arrive while the processes agree on whether one was told to stop."""
    from pytorch_lightning.strategies import SingleDeviceStrategy

    decide, asked = SingleDeviceStrategy.reduce_boolean_decision, []

    def interrupted(self, decision, all=True):
        answer = decide(self, decision, all)
        asked.append(answer)
        if len(asked) == 200:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    SingleDeviceStrategy.reduce_boolean_decision = interrupted


def test_signal_that_arrives_during_the_decision_is_not_lost(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    code, output, errors = run(LONG, folder, signal_in_the_decision)
    assert code == 128 + signal.SIGTERM, errors
    assert "stopped at step" in output


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(tmp_path):
    flags = LONG.replace("--max_epochs 400", "--max_epochs 2500")
    chance = random.Random(0)
    kills = [(chance.choice([1, 1, 2]), chance.uniform(0, 1.9)) for _ in range(20)]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    code, _, errors = run(flags, straight)
    assert code == 0, errors
    assert kill_and_resume(flags, killed, kills) == 20
    assert_same_run(killed, straight)


def test_last_checkpoint_is_whole_whenever_it_is_read(long_run):
    """The fixture read it over and over while the run wrote it; a torn or missing file would have raised."""
    _, epochs = long_run
    assert len(set(epochs)) >= 2
    assert epochs == sorted(epochs)


def die_while_writing(writes: int) -> None:
    """Let the process be killed in the middle of writing a checkpoint, the first after that many whole ones."""
    save, written = torch.save, []

    def torn(checkpoint, file):
        save(checkpoint, file)
        if len(written) == writes:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(file)

    torch.save = torn


def die_in_the_first() -> None:
    die_while_writing(0)


def die_in_the_third() -> None:
    die_while_writing(2)


def test_killed_while_a_checkpoint_is_written_the_one_before_stays_whole(tmp_path, short_run):
    folder = tmp_path / "run"
    folder.mkdir()
    code, _, errors = run(SHORT, folder, die_in_the_third)
    assert code == -signal.SIGKILL, errors
    load(last_of(folder))
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert_same_run(folder, short_run)
    assert {path.name for path in last_of(folder).parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_killed_before_its_first_checkpoint_a_run_has_nothing_to_resume(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert run(SHORT, folder, die_in_the_first)[0] == -signal.SIGKILL
    assert not last_of(folder).exists()
    code, output, errors = run("--resume", folder)
    assert (code, output, errors.count("\n")) == (2, "", 1)


# Interrupted


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_and_continued_as_it_says_equals_one_go(tmp_path, short_run, number, expected):
    folder = tmp_path / "run"
    folder.mkdir()
    process = start(SHORT, folder)
    wait_for_changes(last_of(folder), 1, process)
    process.join(random.uniform(0, 0.3))
    written = mtime(last_of(folder))
    os.kill(process.pid, number)
    code, output, errors = finish(process, folder)
    assert code == expected, errors
    assert "Traceback" not in errors
    assert mtime(last_of(folder)) > written
    checkpoint = load(last_of(folder))
    assert f"step {checkpoint['global_step']}" in output.replace(",", "")
    assert scalars(version_of(folder))["epsilon"][-1][0] >= checkpoint["global_step"] - 50  # the curves are flushed
    python, name, *flags = shlex.split(output.splitlines()[-1])
    assert (python, Path(name).name, flags[0]) == ("python", SCRIPT.name, "--resume")
    code, _, errors = run(shlex.join(flags), folder)
    assert code == 0, errors
    assert_same_run(folder, short_run)


def signal_in_the_test(number: int) -> None:
    """Let the process be signalled when the first of the closing test's episodes begins."""
    from gymnasium.envs.classic_control import CartPoleEnv

    reset = CartPoleEnv.reset

    def signalled(self, *, seed=None, options=None):
        if seed == dqn_cartpole.TEST_SEEDS[0]:
            os.kill(os.getpid(), number)
        return reset(self, seed=seed, options=options)

    CartPoleEnv.reset = signalled


@pytest.mark.parametrize("flags", ["--resume", "--test lightning_logs/version_0/checkpoints/last.ckpt"])
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_the_closing_test_ends_it_and_loses_nothing(copied, number, expected, flags):
    before = last_of(copied).read_bytes()
    code, _, errors = run(flags, copied, functools.partial(signal_in_the_test, number))
    assert code == expected, errors
    assert last_of(copied).read_bytes() == before


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


@pytest.fixture
def copied(tmp_path, short_run) -> Path:
    """A folder with a copy of the short run, to be changed."""
    return Path(shutil.copytree(short_run, tmp_path / "copy"))


def test_best_checkpoint_holds_weights_only_and_says_so(copied):
    best = last_of(copied).with_name("best.ckpt")
    assert best.stat().st_size < 20_000
    before = contents(copied)
    code, _, errors = run(f"--resume {best.relative_to(copied)}", copied)
    assert (code, errors.count("\n")) == (2, 1)
    assert "holds weights only" in errors
    assert contents(copied) == before


def test_checkpoint_from_elsewhere_continues_exactly_in_a_run_of_its_own(copied, tmp_path):
    """Not in a folder that happens to have the number of the one that it came from."""
    elsewhere = tmp_path / "elsewhere" / "version_0" / "checkpoints" / "mine.ckpt"
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(last_of(copied), elsewhere)
    before = contents(version_of(copied))
    for flags, folder in ((f"--resume {elsewhere}", "version_1"), ("--resume", "version_1")):
        code, _, errors = run(f"{flags} --max_epochs 40", copied)
        assert code == 0, errors
        assert load(copied / "lightning_logs" / folder / "checkpoints" / "last.ckpt")["epoch"] == 39
    assert contents(version_of(copied)) == before


def test_best_score_is_remembered_when_validations_come_at_another_interval(copied):
    """Otherwise the first of them would overwrite best.ckpt with what may be worse."""
    best, checkpoint = last_of(copied).with_name("best.ckpt"), load(last_of(copied))
    checkpoint["dqn"][0]["best_reward"] = 1e6  # out of reach
    torch.save(checkpoint, last_of(copied))
    before = best.read_bytes()
    version_of(copied).rename(copied / "lightning_logs" / "mine")  # nor does the name of the folder matter
    last = "lightning_logs/mine/checkpoints/last.ckpt"
    code, _, errors = run(f"--resume {last} --max_epochs 32 --val_check_interval 26", copied)
    assert code == 0, errors
    assert len(scalars(copied / "lightning_logs" / "mine")["val_reward"]) == 2
    assert load(copied / last)["dqn"][0]["best_reward"] == 1e6
    assert (copied / last).with_name("best.ckpt").read_bytes() == before


def test_larger_max_epochs_trains_on_as_if_asked_for_at_once(tmp_path, short_run):
    folder = tmp_path / "run"
    folder.mkdir()
    for flags in (SHORT.replace("--max_epochs 30", "--max_epochs 20"), "--resume --max_epochs 30"):
        code, _, errors = run(flags, folder)
        assert code == 0, errors
    assert load(last_of(folder))["hyper_parameters"]["max_epochs"] == 30
    assert_same_run(folder, short_run)


def test_resume_takes_the_newest_run(copied):
    logs = copied / "lightning_logs"
    for number in (2, 10):
        shutil.copytree(logs / "version_0", logs / f"version_{number}")
    before = {path: mtime(path) for path in logs.rglob("*.ckpt")}
    code, _, errors = run("--resume --max_epochs 31", copied)
    assert code == 0, errors
    written = {path.parents[1].name for path in logs.rglob("last.ckpt") if mtime(path) != before[path]}
    assert written == {"version_10"}


def test_resume_does_not_take_an_older_run_than_the_newest(copied):
    (copied / "lightning_logs" / "version_11").mkdir()  # killed before its first checkpoint, or just begun
    before = contents(copied)
    code, _, errors = run("--resume", copied)
    assert (code, errors.count("\n")) == (2, 1)
    assert "version_11" in errors
    assert contents(copied) == before


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
    ],
)
def test_flag_that_contradicts_the_run_is_refused_with_both_values(short_run, flags):
    flag, *value = flags.split()
    trained_with = load(last_of(short_run))["hyper_parameters"][flag.removeprefix("--")]
    words = re.split(r"[:;,]? ", refusal(flags, short_run))
    assert {flag, *value, str(trained_with)} <= set(words)


@pytest.mark.parametrize("epochs", ["29", "1"])
def test_fewer_epochs_than_the_run_has_are_refused(short_run, epochs):
    assert f"--max_epochs {epochs}" in refusal(f"--max_epochs {epochs}", short_run)


def refusal(flags: str, folder: Path) -> str:
    """The line with which `--resume FLAGS` is refused, nothing in the folder having changed."""
    before = contents(folder)
    code, _, errors = run(f"--resume {flags}", folder)
    assert (code, errors.count("\n")) == (2, 1)
    assert contents(folder) == before
    return errors.strip()


def test_flag_that_repeats_the_runs_own_value_is_no_contradiction(copied):
    lr = load(last_of(copied))["hyper_parameters"]["lr"]
    code, _, errors = run(f"--resume --lr {lr} --episode_length 50 --seed 0 --max_epochs 30", copied)
    assert code == 0, errors


def test_settings_of_zero_are_kept(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for flags in ("--eps_end 0 --gamma 0 --double_dqn --max_epochs 2", "--resume --max_epochs 3"):
        code, _, errors = run(flags, folder)
        assert code == 0, errors
    kept = load(last_of(folder))["hyper_parameters"]
    assert (kept["eps_end"], kept["gamma"], kept["double_dqn"]) == (0, 0, True)


# The state of the parts


def experience(i: int) -> Experience:
    return Experience(np.full(3, i, np.float32), i, float(i), i % 2 == 0, np.full(3, i + 1, np.float32))


@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 37])
def test_buffer_goes_on_where_it_stood(tmp_path, count):
    """Empty, in part full, full and wrapped: what it holds, what it draws and what it forgets next."""
    buffer, again = ReplayBuffer(10, seed=1), ReplayBuffer(10, seed=2)
    for i in range(count):
        buffer.append(experience(i))
    if count:
        buffer.sample(1)
    torch.save(buffer.state_dict(), tmp_path / "state")
    again.load_state_dict(load(tmp_path / "state"))
    for i in range(count, count + 15):
        assert len(again) == len(buffer)
        buffer.append(experience(i))
        again.append(experience(i))
        for ours, theirs in zip(again.sample(len(again)), buffer.sample(len(buffer))):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("steps", [0, 1, 9, 60])
def test_agent_goes_on_in_the_middle_of_an_episode(tmp_path, steps):
    net = torch.nn.Linear(4, 2)
    agents = [Agent(make_env("CartPole-v0", 25), ReplayBuffer(500, seed=0), seed=seed) for seed in (1, 2)]
    for _ in range(steps):
        agents[0].play_step(net, epsilon=0.5)
    torch.save(agents[0].state_dict(), tmp_path / "state")
    agents[1].play_step(net)  # it was somewhere else
    agents[1].load_state_dict(load(tmp_path / "state"))
    for _ in range(100):
        assert np.array_equal(agents[1].state, agents[0].state)
        assert agents[1].play_step(net, epsilon=0.5) == agents[0].play_step(net, epsilon=0.5)


def test_state_of_an_agent_does_not_change_as_it_plays_on():
    agent = Agent(make_env("CartPole-v0"), ReplayBuffer(500, seed=0), seed=0)
    net = torch.nn.Linear(4, 2)
    agent.play_step(net)
    state = agent.state_dict()
    other = Agent(make_env("CartPole-v0"), ReplayBuffer(500, seed=0), seed=1)
    other.load_state_dict(state)
    other.play_step(net)
    assert len(state["actions"]) == 1
