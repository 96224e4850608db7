"""A run that ends at any moment, whatever the cause, goes on with `--resume N` as if nothing had happened."""

import functools
import itertools
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import RUN, Toy, fit, last_of, load, main, refusal, run, same, scalars
from torch import nn

from dqn_cartpole import Agent, BestCheckpoint, DQNLightning, ExactResume, ImprovedDQN

WARM, EPOCH = 100, 40  # steps at random before training, and of an epoch
SHORT = f"--warm_start_steps {WARM} --steps_per_epoch {EPOCH} --replay_size 150 --max_epochs 3"


KILL = signal.raise_signal, signal.SIGKILL


def allow(size: int, handler: Any = signal.SIG_DFL) -> None:
    """No file may grow larger: the process is killed when that much of a checkpoint is on the disk."""
    signal.signal(signal.SIGXFSZ, handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def at(step: int, end: Callable[..., None], *how: Any, where: type = Agent, method: str = "play_step") -> None:
    """Let the process end in this way, in this call of the method."""
    original, calls = getattr(where, method), itertools.count()

    def dying(*args, **kwargs):
        if next(calls) == step:
            end(*how)
        return original(*args, **kwargs)

    setattr(where, method, dying)


def assert_same_run(ours: Path, theirs: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        ours_saved, theirs_saved = (load(run / "checkpoints" / name) for run in (ours, theirs))
        for each in [*ours_saved.get("callbacks", {}).values(), *theirs_saved.get("callbacks", {}).values()]:
            each.pop("current_score", None)  # Lightning's ModelCheckpoint writes it, but neither restores nor uses it
        assert ours_saved.keys() == theirs_saved.keys()
        for entry in ours_saved:
            assert same(ours_saved[entry], theirs_saved[entry]), (name, entry)
    our_curves, their_curves = scalars(ours), scalars(theirs)
    assert our_curves.keys() == their_curves.keys() >= {"total_reward", "train_loss", "val_reward", "test_reward"}
    for curve in our_curves:
        once = set if curve.startswith("test_") else list  # the result is logged twice: as a curve and for HParams
        assert once(our_curves[curve]) == once(their_curves[curve]), curve


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """The folder of a short run that was never stopped."""
    folder = tmp_path_factory.mktemp("short") / "run"
    code, _, errors = run(SHORT, folder)
    assert code == 0, errors
    return folder


class Own(ImprovedDQN):
    """Another optimizer and order of the weights; a network that is partly frozen, or draws random numbers."""

    def __init__(self, optimizer: str = "Adam", frozen: bool = False, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)

    def make_net(self):
        net = super().make_net()
        next(net.parameters()).requires_grad_(not self.hparams.frozen)
        return nn.Sequential(net, nn.Dropout(self.hparams.dropout))

    def configure_optimizers(self):
        return getattr(torch.optim, self.hparams.optimizer)(reversed(list(self.net.parameters())), lr=1e-3)


class Bonus(gym.Wrapper):
    """A larger reward for what is new: its counts change with every step, also of an episode that is replayed."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.counts: Counter[int] = Counter()

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        place = int(observation.sum() * 10)
        self.counts[place] += 1
        return observation, float(reward) + 1 / self.counts[place], *rest


class Curious(ImprovedDQN):
    """State of its own, in a wrapper that training alone uses and in the loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.losses = 0

    def make_agent(self, rng):
        self.bonus = Bonus(self.env)
        return Agent(self.bonus, self.buffer, rng)

    def dqn_mse_loss(self, batch):
        self.losses += 1
        return super().dqn_mse_loss(batch) / self.losses

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["own"] = dict(self.bonus.counts), self.losses

    def on_load_checkpoint(self, checkpoint):
        counts, self.losses = checkpoint["own"]
        self.bonus.counts = Counter(counts)


class Forgetful(ImprovedDQN):
    """Leaves the replay buffer out of last.ckpt."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["buffer"] = 0, []


def register(name: str, space: gym.Space, observe: Callable[[Toy], Any], **limits: int) -> None:
    gym.register(f"{name}-v0", type(name, (Toy,), {"observation_space": space, "observe": observe}), **limits)


PICTURES = gym.spaces.Box(0, 255, (3, 4, 2), np.uint8)
PARTS = gym.spaces.Dict(place=Toy.observation_space, kind=gym.spaces.Discrete(4))
register("Pictures", PICTURES, lambda env: env.np_random.integers(0, 256, (3, 4, 2), np.uint8), max_episode_steps=7)
register("Parts", PARTS, lambda env: {"place": Toy.observe(env), "kind": int(env.np_random.integers(4))})
register("Loose", Toy.observation_space, lambda env: np.random.default_rng().random(3, np.float32))  # whatever the seed

MIDDLE = functools.partial(at, WARM + 105, *KILL)  # with a curve's points after the checkpoint at step 80
KINDS = {
    "default": (ImprovedDQN, ""),
    "one step": (ImprovedDQN, "--n_step 1"),
    "part 1": (DQNLightning, ""),
    "Discrete": (ImprovedDQN, "--env FrozenLake-v1"),
    "Dict": (ImprovedDQN, "--env test_resume:Parts-v0"),
    "pictures": (ImprovedDQN, "--env test_resume:Pictures-v0"),
    "RMSprop, frozen": (Own, "--optimizer RMSprop --frozen"),
    "Dropout": (Own, "--dropout 0.1"),
    "own state": (Curious, ""),
}


def resumed(folder: Path, flags: str, module: type[DQNLightning], *ends: Callable[[], None]) -> str:
    """Stop a run, and each time it was resumed; at last let it end, and give what it then says on stderr."""
    for number, end in enumerate(ends):
        code, _, errors = run("--resume 0" if number else flags, folder, end, module)
        assert code in (-signal.SIGKILL, -signal.SIGXFSZ), errors
    code, _, errors = run("--resume 0", folder, object, module)
    assert code == 0, errors
    assert [path.name for path in (folder / "lightning_logs").glob("version_*")] == ["version_0"]
    return errors


def stop_and_compare(folder: Path, kind: str, flags: str, *ends: Callable[[], None]) -> None:
    """A run of this kind that was stopped and resumed equals one that was never stopped."""
    module, more = KINDS[kind]
    code, _, errors = run(f"{flags} {more}", folder / "straight", object, module)
    assert (code, errors) == (0, "")
    assert resumed(folder / "stopped", f"{flags} {more}", module, *ends) == ""
    assert_same_run(folder / "stopped" / RUN, folder / "straight" / RUN)


MOMENTS = {kind: (kind, MIDDLE) for kind in KINDS} | {
    "best.ckpt is written": ("pictures", functools.partial(at, WARM + 60, allow, 8_000)),  # of equals always the newer
    "last.ckpt is written": ("default", functools.partial(at, WARM + 60, allow, 18_000)),
    "it is tested": ("default", functools.partial(at, 0, *KILL, where=DQNLightning, method="test_step")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_never_killed(tmp_path, moment):
    kind, end = MOMENTS[moment]
    stop_and_compare(tmp_path, kind, SHORT, end)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", ["default", "one step", "Discrete", "Dict", "own state"])
def test_killed_at_random_and_resumed_equals_never_killed(tmp_path, kind, number):
    chance, ends = random.Random(number), []
    for warm in (WARM + EPOCH, 0, 0):  # three times
        how = chance.choice([KILL, KILL, (allow, 12_000), (allow, 30_000)])
        ends.append(functools.partial(at, warm + chance.randrange(3 * EPOCH), *how))
    stop_and_compare(tmp_path, kind, SHORT.replace("--max_epochs 3", "--max_epochs 20"), *ends)


def test_checkpoints_are_written_beside_the_runs_and_moved_into_place(folder, monkeypatch):
    """Wherever the temporary folder is: moved from another file system they would be copied, which a kill can cut."""
    moved, move = [], shutil.move
    monkeypatch.setattr(shutil, "move", lambda *paths: (moved.append(paths), move(*paths)))
    main(SHORT)
    assert {Path(path).name for _, path in moved} == {"last.ckpt", "best.ckpt"}
    assert {Path(path).resolve().parent for path, _ in moved} == {folder / "lightning_logs"}


ENDS: dict[str, tuple[Any, ...]] = {
    "Ctrl-C": (signal.raise_signal, signal.SIGINT),
    "SIGTERM": (signal.raise_signal, signal.SIGTERM),
    "No such file or directory: 'gone'": (os.listdir, "gone"),  # an error of the simulator
    "File too large": (allow, 18_000, signal.SIG_IGN),  # as on a full disk
}


@pytest.mark.parametrize("cause", ENDS)
def test_after_any_end_one_line_says_how_to_go_on_and_that_equals_one_go(tmp_path, short, cause):
    folder = tmp_path / "run"
    code, output, errors = run(SHORT, folder, functools.partial(at, WARM + 75, *ENDS[cause]))
    assert code == (128 + signal.SIGTERM if cause == "SIGTERM" else 1)
    (advice,) = (line for line in errors.splitlines() if "--resume" in line)
    assert "test_reward" not in output
    if cause in ("Ctrl-C", "SIGTERM"):
        assert errors.splitlines() == [advice]
    else:
        assert errors.splitlines()[-1].endswith(cause)
        assert errors.count("Traceback") == 1
    assert load(last_of(folder / RUN))["global_step"] == EPOCH
    assert scalars(folder / RUN)["total_reward"][-1][0] > EPOCH  # curves past the checkpoint
    assert run(advice[advice.index("--resume") :], folder)[::2] == (0, "")
    assert_same_run(folder / RUN, short / RUN)  # they were dropped, and logged again


@pytest.mark.parametrize("step", [20, WARM + 20])
@pytest.mark.parametrize("cause", list(ENDS)[:3])
def test_where_there_is_nothing_to_go_on_from_none_is_advised(tmp_path, cause, step):
    code, _, errors = run(SHORT, tmp_path / "run", functools.partial(at, step, *ENDS[cause]))
    assert code not in (0, None)
    assert "--resume" not in errors
    assert errors == "" or errors.splitlines()[-1].endswith(cause)


@pytest.fixture
def copied(short, folder) -> Path:
    """A copy of the short run, in the current folder."""
    shutil.copytree(short / "lightning_logs", "lightning_logs")
    return RUN


def test_more_epochs_train_on_as_if_asked_for_at_once(folder):
    constant = f"{SHORT} --no-lr_decay --eps_start 0.1 --eps_end 0.1"  # whatever the number of epochs
    main(f"{constant} --max_epochs 3")
    once = Path("lightning_logs/version_0").rename("once")
    main(f"{constant} --max_epochs 2")
    main("--resume 0 --max_epochs 3")
    assert load(last_of(RUN))["global_step"] == 3 * EPOCH
    assert same(load(last_of(RUN))["state_dict"], load(last_of(once))["state_dict"])
    for curve in ("total_reward", "val_reward", "q_mean", "epsilon", "lr"):
        assert scalars(RUN)[curve] == scalars(once)[curve]


@pytest.mark.parametrize("flags", ["--seed 3", "--lr 0.5", "--lr 0.005", "--env Acrobot-v1", "--no-lr_decay"])
def test_another_setting_or_seed_is_refused(copied, capsys, flags):
    assert "--resume keeps all settings but --max_epochs" in refusal(f"--resume 0 {flags}", capsys)


@pytest.mark.parametrize("flag", ["--resume 0", "--start {}", "--test {}"])
@pytest.mark.parametrize("module", [DQNLightning, Forgetful])
def test_a_checkpoint_of_another_class_is_refused(copied, capsys, module, flag):
    for path in copied.glob("checkpoints/*.ckpt"):
        line = f"is a checkpoint of ImprovedDQN, not of {module.__name__}"
        assert refusal(flag.format(path), capsys, module).endswith(line)


class Code:
    """What leaves a marker when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


BAD_FILES: dict[str, Callable[[Path], Any]] = {
    "gone": lambda path: path.unlink(),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "code": lambda path: torch.save(load(path) | {"more": Code()}, path),
    "a number": lambda path: torch.save(3, path),
    "another program's": lambda path: torch.save({"hyper_parameters": {}, "global_step": 3, "callbacks": {}}, path),
}


@pytest.mark.parametrize("flag", ["--resume 0", "--start {}", "--test {}"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_checkpoint_is_refused_and_its_code_does_not_run(copied, capsys, kind, flag):
    BAD_FILES[kind](last_of(copied))
    assert f"no checkpoint in {last_of(copied)}" in refusal(flag.format(last_of(copied)), capsys)
    assert not Path("marker").exists()
    if kind == "code":
        torch.load(last_of(copied), weights_only=False)
        assert Path("marker").exists()  # so it would have run


def test_best_checkpoint_is_small_and_of_the_highest_validation_and_ties_go_to_the_newer(tmp_path):
    rewards = [1.0, 3.0, 2.0, 3.0, 1.0]  # of the validations after each epoch

    class Scripted(DQNLightning):
        def validation_step(self, seeds, batch_idx):
            self.log("val_reward", rewards[self.current_epoch])

    settings = {"default_root_dir": tmp_path, "enable_checkpointing": True, "limit_val_batches": 1.0}
    fit(Scripted(steps_per_epoch=9), 5, BestCheckpoint(), ExactResume(), num_sanity_val_steps=0, **settings)
    best, last = (tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert (load(best)["global_step"], load(last)["global_step"]) == (4 * 9, 5 * 9)
    assert best.stat().st_size < 20_000 < last.stat().st_size
    assert not {"buffer", "episode", "rng", "optimizer_states"} & load(best).keys()


def test_an_environment_that_does_not_repeat_its_episode_is_said(tmp_path):
    errors = resumed(tmp_path / "run", f"{SHORT} --env test_resume:Loose-v0", ImprovedDQN, MIDDLE)
    assert "did not repeat its episode" in errors


def test_one_line_leaves_the_buffer_out_and_a_resumed_run_fills_it_anew(tmp_path, short):
    assert resumed(tmp_path / "run", SHORT, Forgetful, MIDDLE) == ""
    ours, theirs = last_of(tmp_path / "run" / RUN), last_of(short / RUN)
    assert ours.stat().st_size < theirs.stat().st_size - 5_000
    assert load(ours)["global_step"] == 3 * EPOCH
