"""The programs in tests/examples extend dqn_cartpole.py from files of their own: they train, resume and combine."""

import ast
import functools
import os
import pkgutil
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FORKS, SCRIPT, scalars

import dqn_cartpole

ROOT = SCRIPT.parent
PROGRAMS = {path.stem: path.read_text() for path in sorted(Path(ROOT, "tests", "examples").glob("*.py"))}
SHORT = "--max_epochs 24 --val_check_interval 78 --episode_length 50 --replay_size 500 --warm_start_steps 400"
FLAGS = dict.fromkeys(PROGRAMS, SHORT) | {
    "minimal": "--max_epochs 40",
    "prioritized": f"{SHORT} --double_dqn",
    "fast": f"{SHORT} --grad_clip 1",
    "count_bonus": f"{SHORT} --env MountainCar-v0",
    "convolution": f"{SHORT} --env MinAtar/Breakout-v1",
    "atari": "--max_epochs 20 --val_check_interval 4 --episode_length 100 --replay_size 60 --warm_start_steps 50"
    " --sample_size 16 --batch_size 8 --hidden_size 16",
}
NEEDS = {"atari": ("ale_py", "cv2"), "convolution": ("minatar",)}
ALL = [pytest.param(name, marks=pytest.mark.slow) if name == "atari" else name for name in PROGRAMS]
# Two classes that extend several examples, made here.
COMBINED = {
    "both": ("dueling:Dueling", "prioritized:Prioritized"),
    "many": ("fast:Fast", "boltzmann:Boltzmann", "noisy:Noisy", "dueling:Dueling", "prioritized:Prioritized"),
}


def start(program: str, flags: str, folder: Path, few_episodes: bool = True) -> BaseProcess:
    """Begin `python -m tests.examples.PROGRAM FLAGS` in `folder`, in a fork of a server that has imported PyTorch."""
    folder.mkdir(exist_ok=True)
    process = FORKS.Process(target=child, args=(program, flags, folder, few_episodes))
    process.start()
    return process


def child(program: str, flags: str, folder: Path, few_episodes: bool) -> None:
    os.chdir(folder)
    with Path("output.txt").open("a") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    if few_episodes:  # of validation and test, and two pictures for the film
        dqn_cartpole.VAL_SEEDS, dqn_cartpole.TEST_SEEDS = range(2), range(1000, 1002)
        dqn_cartpole.film = functools.partial(dqn_cartpole.film, steps=4)
    sys.argv = [program, *flags.split()]
    if program in COMBINED:
        parts = tuple(pkgutil.resolve_name(f"tests.examples.{part}") for part in COMBINED[program])
        dqn_cartpole.main(dqn_cartpole.parse_args(module=type(program, parts, {})))
    elif program == "default":
        dqn_cartpole.main(dqn_cartpole.parse_args())
    else:
        runpy.run_module(f"tests.examples.{program}", run_name="__main__", alter_sys=True)


def finish(process: BaseProcess, folder: Path) -> str:
    process.join(600)
    output = Path(folder, "output.txt").read_text()
    assert process.exitcode == 0, output
    return output


def run(program: str, flags: str, folder: Path, **how: bool) -> str:
    return finish(start(program, flags, folder, **how), folder)


def kill_when(ready: Callable[[], bool], process: BaseProcess) -> None:
    while not ready():
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def last(folder: Path, version: int = 0) -> dict:
    path = Path(folder, "lightning_logs", f"version_{version}", "checkpoints", "last.ckpt")
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


def different(a: dict, b: dict) -> set[str]:
    """The entries of two checkpoints that are not the same."""
    return {entry for entry in a.keys() | b.keys() if entry not in a or entry not in b or not same(a[entry], b[entry])}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Callable[[str], tuple[Path, str]]:
    """Folder and output of a program's run in one go."""
    done: dict[str, tuple[Path, str]] = {}

    def once(program: str) -> tuple[Path, str]:
        for package in NEEDS.get(program, ()):
            pytest.importorskip(package)
        if program not in done:
            folder = tmp_path_factory.mktemp(program)
            done[program] = folder, run(program, FLAGS.get(program, SHORT), folder)
        return done[program]

    return once


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short_and_says_what_it_is(name):
    text = PROGRAMS[name]
    assert len(text.splitlines()) <= (40 if name in ("fast", "minimal") else 60)
    docstring = text.split('"""')[1]
    assert ("`" if name == "fast" else "\n    ") + f"python -m tests.examples.{name}" in docstring
    assert "Measured: " in docstring


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_uses_only_public_names(name):
    tree = ast.parse(PROGRAMS[name])
    imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names]
    imported += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert "dqn_cartpole" not in imported  # whose names it could then change
    private = re.compile(r"_[a-z]\w*")  # but namedtuples have public methods of such names
    assert not [name for name in imported if private.fullmatch(name)]
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in read if private.fullmatch(name)} <= {"_fields", "_make", "_replace"}


@pytest.mark.parametrize("name", [name for name in ALL if name != "minimal"])
def test_a_program_trains_tests_and_names_itself(name, straight):
    folder, output = straight(name)
    assert "Traceback" not in output
    assert "no film" not in output or "MinAtar" in output  # whose pictures are no bytes
    assert len(re.findall(r"step [\d,]+: val_reward -?[\d.]+", output)) >= 4
    assert re.search(r"test_reward: -?[\d.]+ \+/- [\d.]+ over 2 episodes", output)
    version = Path(folder, "lightning_logs", "version_0")
    command = f"python -m tests.examples.{name} --test lightning_logs/version_0/checkpoints/best.ckpt"
    assert command in output.splitlines()
    curves = scalars(version)
    assert curves.keys() >= {"total_reward", "avg_reward", "train_loss", "val_reward", "epsilon", "lr", "q_mean"}
    assert all(loss >= 0 for _, loss in curves["train_loss"])


def test_the_minimal_program_trains_and_tests(straight):
    folder, output = straight("minimal")
    assert float(re.search(r"test_reward\D+([\d.]+)", output).group(1)) >= 8
    assert scalars(Path(folder, "lightning_logs", "version_0")).keys() >= {"total_reward", "val_reward", "train_loss"}


@pytest.mark.parametrize("name", [name for name in ALL if name != "minimal"] + list(COMBINED))
def test_a_killed_program_resumes_exactly(name, straight, tmp_path):
    expected, _ = straight(name)
    process = start(name, FLAGS.get(name, SHORT), tmp_path)
    output = tmp_path / "output.txt"
    kill_when(lambda: output.exists() and output.read_text().count("val_reward") >= 2, process)
    killed_at = last(tmp_path)["global_step"]
    assert killed_at < last(expected)["global_step"]
    run(name, "--resume", tmp_path)
    assert different(last(tmp_path), last(expected)) == set()
    curves = [scalars(Path(folder, "lightning_logs", "version_0")) for folder in (tmp_path, expected)]
    for curve in ("total_reward", "avg_reward", "reward", "train_loss", "val_reward", "epsilon", "lr", "q_mean"):
        assert curves[0][curve] == curves[1][curve], curve


def test_the_killed_minimal_program_resumes_exactly(straight, tmp_path):
    expected, _ = straight("minimal")
    process = start("minimal", FLAGS["minimal"], tmp_path)
    checkpoints = Path("lightning_logs", "version_0", "checkpoints")
    kill_when(Path(tmp_path, checkpoints, "best.ckpt").exists, process)  # which is written after last.ckpt
    run("minimal", f"{FLAGS['minimal']} --resume {checkpoints}/last.ckpt", tmp_path)
    assert different(last(tmp_path, 1), last(expected)) <= {"callbacks"}  # which hold the name of the folder


SETTINGS = [
    "--grad_clip 0.5 --lr_schedule linear --double_dqn --tau 0.01",
    pytest.param("", marks=pytest.mark.slow),
    pytest.param("--lr_schedule constant --n_step 1 --batch_size 32 --clip_error 1", marks=pytest.mark.slow),
    pytest.param("--grad_clip 5 --n_step 3 --sample_size 100 --seed 7", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("flags", SETTINGS)
def test_fast_is_the_default_program_bit_for_bit(flags, tmp_path):
    fast, default = tmp_path / "fast", tmp_path / "default"
    run("fast", f"{SHORT} {flags}", fast)
    run("default", f"{SHORT} {flags}", default)
    assert different(last(fast), last(default)) == {"loops", "class"}
    ours, theirs = (scalars(Path(folder, "lightning_logs", "version_0")) for folder in (fast, default))
    for curve in theirs.keys() - {"epoch", "test_reward", "test_reward_std"}:
        assert ours[curve] == theirs[curve], curve


def test_dueling_and_prioritized_combine(straight):
    folder, _ = straight("both")
    checkpoint = last(folder)
    assert {"net.net.3.value.weight", "net.net.3.advantage.weight"} <= checkpoint["state_dict"].keys()
    arrays = checkpoint["buffer"][1]
    assert len(arrays[-1].unique()) > 100


# What a program reaches in 250 epochs: the best mean score of a validation.
GOOD = dict.fromkeys(PROGRAMS, 150.0) | {"catch": 0.8, "convolution": 0.8}
LONGER = ("action_masks", "atari", "minimal", "mountain_car")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in LONGER])
def test_a_program_learns(name, tmp_path):
    command = [sys.executable, "-m", f"tests.examples.{name}", "--max_epochs", "250"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert max(map(float, re.findall(r"val_reward (-?[\d.]+)", output))) >= GOOD[name]
    assert f"python -m tests.examples.{name} --test" in output


@pytest.mark.slow
def test_the_taxi_learns_to_drive_among_legal_actions(tmp_path):
    flags = re.search(r"action_masks (--.*?)\n\n", PROGRAMS["action_masks"], re.S).group(1).replace("\\", "")
    output = run("action_masks", f"{flags} --max_epochs 1500 --val_check_interval 2600", tmp_path, few_episodes=False)
    assert max(map(float, re.findall(r"val_reward (-?[\d.]+)", output))) >= -100  # -200: it arrives nowhere


@pytest.mark.slow
def test_the_minimal_program_learns(tmp_path):
    output = run("minimal", "--env CartPole-v0 --max_epochs 400", tmp_path, few_episodes=False)
    assert float(re.search(r"test_reward\D+([\d.]+)", output).group(1)) >= 50


def test_catch_is_found_by_the_default_program(tmp_path):
    output = run("default", f"{SHORT} --env tests.examples.catch:Catch-v0", tmp_path)
    assert "Catch-v0 on cpu" in output


def test_observations_are_rescaled():
    model = pytest.importorskip("tests.examples.mountain_car").MountainCar()
    for _ in range(10):
        model.agent.take(2)
    position, speed = model.env.unwrapped.state
    assert model.agent.state == pytest.approx([(position + 0.3) / 0.9, speed / 0.07], rel=1e-4)


def test_random_actions_last():
    model = pytest.importorskip("tests.examples.mountain_car").MountainCar()
    model.populate(199)
    actions = model.buffer.arrays.action[: len(model.buffer)]
    assert 3 <= np.count_nonzero(np.diff(actions)) <= 40  # about 120, if each lasted for a step


def test_only_legal_actions_are_played(monkeypatch):
    """In training, also at random, and in validation."""
    action_masks = pytest.importorskip("tests.examples.action_masks")
    model = action_masks.ActionMasks(warm_start_steps=50, episode_length=60)
    step, played = action_masks.AppendMask.step, []

    def checked(env, action):
        played.append(env.unwrapped.action_mask(env.unwrapped.s)[action])
        return step(env, action)

    monkeypatch.setattr(action_masks.AppendMask, "step", checked)
    model.populate(100)
    for _ in range(100):
        model.agent.play_step(model.net, 0.5)
    model.play_episodes(torch.tensor([1, 2]))
    assert len(played) == 320
    assert all(played)
    batch = dqn_cartpole.Experience(*(torch.from_numpy(array) for array in model.buffer.sample(50)))
    assert model.td_targets(batch).isfinite().all()


def test_a_branch_sees_its_part_of_the_observation():
    two_branches = pytest.importorskip("tests.examples.two_branches")
    model = two_branches.TwoBranches()
    state, parts = torch.from_numpy(model.agent.state), model.env.unwrapped.state
    seen = {}
    for part, branch in zip(("cart", "pole"), model.net.branches):
        branch.register_forward_hook(lambda _, x, y, part=part: seen.update({part: x[0][0]}))
    model(state.unsqueeze(0))
    assert seen["cart"].tolist() == pytest.approx(parts[:2])
    assert seen["pole"].tolist() == pytest.approx(parts[2:])


def test_priorities_decide_what_is_sampled():
    prioritized = pytest.importorskip("tests.examples.prioritized")
    buffer = prioritized.PrioritizedNStepBuffer(10, n_step=1, gamma=0.9, seed=0)
    for number in range(25):  # of which 15 to 24 are kept, 20 in the first place
        buffer.append(dqn_cartpole.Experience(np.float32([number]), number, float(number), False, np.float32([0])))
    assert set(buffer.sample(500).priority) == {1.0}
    assert set(buffer.sample(500).action) == set(range(15, 25))
    buffer.arrays.priority[7] = 9  # as high as the other nine together
    sample = buffer.sample(1000)
    assert (sample.action == 17).mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(sample.place == 7, sample.action == 17)
    assert np.array_equal(sample.priority == 9, sample.action == 17)


def test_a_bonus_is_learned_from_but_not_shown():
    count_bonus = pytest.importorskip("tests.examples.count_bonus")
    model = count_bonus.Counting(env="CartPole-v1", n_step=1)
    agent, buffer = model.agent, model.buffer
    rewards = [agent.take(step % 2)[0] for step in range(50)]
    assert rewards == [1.0] * 50
    bonuses = buffer.arrays.reward[:50] - 1
    assert bonuses[0] == pytest.approx(count_bonus.BONUS)
    assert bonuses.min() < count_bonus.BONUS / 2  # for what was seen often
