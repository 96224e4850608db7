"""A run that ends at any moment, whatever the cause, goes on with `--resume` as if nothing had happened."""

import contextlib
import functools
import itertools
import os
import random
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import RUN, Toy, last_of, load, main, run, same, scalars
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

import dqn_cartpole
from dqn_cartpole import Agent, Checkpoints, DQNLightning, ImprovedDQN, parse_args

WARM = 300  # steps at random before training
SHORT = f"--warm_start_steps {WARM} --replay_size 400 --max_epochs 14 --val_check_interval 52"  # each fourth epoch
CONSTANT = f"{SHORT} --lr_schedule constant --eps_last_frame 100"  # whatever the number of epochs


def die(number: int, step: int) -> None:
    """Let the process get this signal, or an error for 0, when the agent is to play this step."""
    play, played = Agent.play_step, itertools.count()

    def dying(*args, **how):
        if next(played) == step:
            if number == 0:
                raise OSError("the simulator is gone")
            os.kill(os.getpid(), number)
        return play(*args, **how)

    Agent.play_step = dying


def die_in_save(save: int, number: int = signal.SIGKILL) -> None:
    """Let the process be killed when half of a checkpoint is on the disk, the first after this many whole ones."""
    written, saved = pl.Trainer.save_checkpoint, itertools.count()

    def torn(trainer, path, *args):
        written(trainer, path, *args)
        if next(saved) == save:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), number)

    pl.Trainer.save_checkpoint = torn


def die_in_test() -> None:
    def dying(model, *args):
        os.kill(os.getpid(), signal.SIGKILL)

    DQNLightning.test_step = dying


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder in a folder, with what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs ended in the same state, have the same best checkpoint and show the same curves."""
    for name in ("last.ckpt", "best.ckpt"):
        ours_saved, theirs_saved = (load(run / "checkpoints" / name) for run in (ours, theirs))
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


# Every kind of run


class Optimizer(ImprovedDQN):
    def configure_optimizers(self):
        return self.optimizer(self.net.parameters(), lr=1e-3)


class RMSprop(Optimizer):
    optimizer = torch.optim.RMSprop


class SGD(Optimizer):
    optimizer = torch.optim.SGD


class Frozen(ImprovedDQN):
    def make_net(self):
        net = super().make_net()
        next(net.parameters()).requires_grad_(False)
        return net


class Dropout(ImprovedDQN):
    """A network that draws numbers from PyTorch's generator."""

    def make_net(self):
        return nn.Sequential(super().make_net(), nn.Dropout(0.1))


class Curious(ImprovedDQN):
    """State of its own, which decides what is learned, and a module more."""

    def __init__(self, bonus: Annotated[float, "for what is new"] = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.seen: dict[int, int] = {}
        self.extra = nn.Linear(4, 4)

    def dqn_mse_loss(self, batch):
        place = int(batch[0].sum() * 10)
        self.seen[place] = self.seen.get(place, 0) + 1
        extra = (self.extra(batch[0]) - batch[4]).pow(2).mean()
        return super().dqn_mse_loss(batch) + extra * self.hparams.bonus / self.seen[place]

    def configure_optimizers(self):
        return torch.optim.Adam(reversed([*self.net.parameters(), *self.extra.parameters()]))

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["seen"] = dict(self.seen)

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        self.seen = checkpoint["seen"]


class Article(DQNLightning):
    """Part 1 alone."""


class Pictures(Toy):
    """Bytes, and episodes that only a time limit ends."""

    observation_space = gym.spaces.Box(0, 255, (3, 4, 2), np.uint8)
    length = np.inf

    def observe(self):
        return self.np_random.integers(0, 256, (3, 4, 2), np.uint8)


gym.register("Pictures-v0", Pictures, max_episode_steps=23)

KINDS = {
    "default": "",
    "one step": "--n_step 1",
    "double DQN": "--double_dqn --n_step 3 --clip_error 1 --grad_clip 1",
    "soft updates": "--tau 0.05 --lr_schedule linear",
    "a Tuple space": "--env Blackjack-v1",
    "pictures": "--env test_resume:Pictures-v0",
    **{each.__name__: each for each in (Article, RMSprop, SGD, Frozen, Dropout, Curious)},
}


def kill_and_compare(folder: Path, kind: str, flags: str, steps: list[int]) -> None:
    """Kill a run of this kind, and each time it was resumed, after so many steps; compare it with one never killed."""
    more = KINDS[kind]
    flags, module = (f"{flags} {more}", ImprovedDQN) if isinstance(more, str) else (flags, more)
    code, _, errors = run(flags, folder / "straight", object, module)
    assert code == 0, errors
    for number, step in enumerate(steps):
        killed = functools.partial(die, signal.SIGKILL, step + (0 if number else WARM))
        code, _, errors = run("--resume" if number else flags, folder / "killed", killed, module)
        assert code == -signal.SIGKILL, errors
    code, _, errors = run("--resume", folder / "killed", object, module)
    assert code == 0, errors
    assert [path.name for path in (folder / "killed/lightning_logs").iterdir()] == ["version_0"]
    assert_same_run(folder / "killed" / RUN, folder / "straight" / RUN)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_never_killed(tmp_path, kind):
    kill_and_compare(tmp_path, kind, SHORT, [130])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_random_steps_and_resumed_equals_never_killed(tmp_path, number):
    chance = random.Random(number)
    kind, steps = chance.choice(list(KINDS)), [chance.randint(52, 250) for _ in range(3)]
    kill_and_compare(tmp_path, kind, SHORT.replace("--max_epochs 14", "--max_epochs 60"), steps)


@pytest.mark.parametrize("save", [2, 3])
def test_killed_while_a_checkpoint_is_written_the_one_before_is_whole(tmp_path, short, save):
    """The first two are best.ckpt and last.ckpt after epoch 4; then one of those after epoch 8."""
    folder = tmp_path / "run"
    assert run(SHORT, folder, functools.partial(die_in_save, save))[0] == -signal.SIGKILL
    assert load(last_of(folder / RUN))["global_step"] == 52
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert_same_run(folder / RUN, short / RUN)
    assert {path.name for path in (folder / RUN / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_a_checkpoint_is_replaced_and_never_overwritten(copied):
    """So whoever reads it meanwhile reads a whole one."""
    before = last_of(copied).read_bytes()
    os.link(last_of(copied), "the same file")
    main("--resume --max_epochs 16")
    assert last_of(copied).read_bytes() != Path("the same file").read_bytes() == before


def test_killed_in_the_closing_test_nothing_is_lost(tmp_path, short):
    folder = tmp_path / "run"
    assert run(SHORT, folder, die_in_test)[0] == -signal.SIGKILL
    code, _, errors = run("--resume", folder)
    assert code == 0, errors
    assert_same_run(folder / RUN, short / RUN)


# It ends on its own


ENDS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "an error": 0}


@pytest.mark.parametrize("cause", ENDS)
def test_after_any_end_one_line_says_how_to_go_on_and_that_equals_one_go(tmp_path, short, cause):
    folder = tmp_path / "run"
    code, output, errors = run(SHORT, folder, functools.partial(die, ENDS[cause], WARM + 91))
    assert code not in (0, None)
    if cause == "SIGTERM":
        assert code == 128 + signal.SIGTERM
    assert ("Traceback" in errors) == (cause == "an error")
    (advice,) = (line for line in errors.splitlines() if "--resume" in line)
    assert cause == "an error" or errors.splitlines() == [advice]
    assert "test_reward" not in output
    assert scalars(folder / RUN)["total_reward"][-1][0] > 52  # curves past the checkpoint
    assert load(last_of(folder / RUN))["global_step"] == 52
    python, program, *flags = shlex.split(advice[advice.index("python ") :])
    assert (python, program) == ("python", "program.py")
    code, _, errors = run(shlex.join(flags), folder)
    assert code == 0, errors
    assert_same_run(folder / RUN, short / RUN)  # they were dropped, and logged again


@pytest.mark.parametrize("cause", ENDS)
@pytest.mark.parametrize("step", [20, WARM + 20])
def test_where_there_is_nothing_to_go_on_from_none_is_advised(tmp_path, cause, step):
    folder = tmp_path / "run"
    code, _, errors = run(SHORT, folder, functools.partial(die, ENDS[cause], step))
    assert code not in (0, None)
    assert "--resume" not in errors
    assert ("Traceback" in errors) == (cause == "an error")


class Explodes(Toy):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1e30, *rest


gym.register("Explodes-v0", Explodes)


def test_weights_that_are_not_finite_end_the_run_and_are_never_saved(folder):
    main(f"{CONSTANT} --env Explodes-v0 --max_epochs 4 --lr 1e-9")
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+.*--lr"):
        main(f"{CONSTANT} --env Explodes-v0 --lr 1e9")
    assert not any(Path("lightning_logs/version_1/checkpoints").glob("*"))


# Resumed on purpose


@pytest.fixture
def copied(short, folder) -> Path:
    """A copy of the short run, in the current folder."""
    shutil.copytree(short / "lightning_logs", "lightning_logs")
    return RUN


def refusal(flags: str, capsys, module: type[DQNLightning] = ImprovedDQN) -> str:
    """The line with which a command line is refused, nothing in the folder having changed."""
    before = contents(Path())
    with pytest.raises(SystemExit) as ended:
        main(flags, module)
    output = capsys.readouterr()
    assert (ended.value.code, output.out) == (2, "")
    assert contents(Path()) == before
    usage, refused = output.err.splitlines()
    assert usage.startswith("usage: ")
    return refused


def test_a_finished_run_stays_as_it_is(copied, short):
    before = last_of(copied).read_bytes()
    main("--resume")
    assert last_of(copied).read_bytes() == before
    assert_same_run(copied, short / RUN)


def test_more_epochs_train_on_as_if_asked_for_at_once(folder):
    main(f"{CONSTANT} --max_epochs 12")
    once = Path("lightning_logs/version_0").rename("once")
    main(f"{CONSTANT} --max_epochs 8")
    main("--resume --max_epochs 12")
    ours, theirs = load(last_of(RUN)), load(last_of(once))
    assert ours["global_step"] == 12 * 13
    assert same(ours, theirs)


def test_resume_alone_takes_the_newest_run(copied):
    main(f"{CONSTANT} --max_epochs 4")
    shutil.copytree(copied, "lightning_logs/copy")
    before = last_of(copied).read_bytes()
    main("--resume --max_epochs 5")
    assert load(last_of(Path("lightning_logs/version_1")))["global_step"] == 5 * 13
    assert last_of(copied).read_bytes() == before


def test_resume_alone_is_refused_where_there_is_no_run_or_it_has_no_checkpoint_yet(copied, capsys):
    Path("lightning_logs/version_1/checkpoints").mkdir(parents=True)
    assert "version_1/checkpoints/last.ckpt" in refusal("--resume", capsys)
    shutil.rmtree("lightning_logs")
    assert "--resume" in refusal("--resume", capsys)


@pytest.mark.parametrize(
    "flags",
    [
        "--seed 3",
        "--lr 0.5",
        "--env Acrobot-v1",
        "--hidden_size 65",
        "--episode_length 51",
        "--lr_schedule linear",
        "--double_dqn",
        "--n_step 2",
        "--clip_error 1.5",
    ],
)
def test_another_setting_or_seed_is_refused_with_both_values(copied, capsys, flags):
    flag, *value = flags.split()
    checkpoint = load(last_of(copied))
    settings = checkpoint["hyper_parameters"] | checkpoint["callbacks"]["Checkpoints"]["settings"]
    words = re.split(r"[:;,]? ", refusal(f"--resume {flags}", capsys))
    assert {flag, *value, str(settings[flag.removeprefix("--")])} <= set(words)


def test_a_setting_that_is_repeated_is_none_that_is_changed(copied):
    args = parse_args(["--resume", "--lr", "0.005", "--seed", "0", "--n_step", "5", "--warm_start_steps", "300"])
    assert (args.lr, args.max_epochs, args.val_check_interval) == (0.005, 14, 52)


@pytest.mark.parametrize("epochs", [13, 1])
def test_fewer_epochs_than_the_run_has_leave_it_as_it_is(copied, epochs):
    before = last_of(copied).read_bytes()
    with contextlib.suppress(MisconfigurationException):
        main(f"--resume --max_epochs {epochs}")
    assert last_of(copied).read_bytes() == before


class SameArguments(ImprovedDQN):
    """Another class, with the same arguments."""


@pytest.mark.parametrize("flag", ["--resume", "--test"])
@pytest.mark.parametrize("module", [DQNLightning, Curious, SameArguments])
def test_a_checkpoint_of_another_class_is_refused(copied, capsys, module, flag):
    message = refusal(f"{flag} {last_of(copied)}", capsys, module)
    assert "ImprovedDQN" in message
    assert module.__name__ in message


class Code:
    """What leaves a marker when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


BAD_FILES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "text": lambda path: path.write_text("lr: 0.01"),
    "code": lambda path: torch.save(load(path) | {"more": Code()}, path),
    "a number": lambda path: torch.save(3, path),
    "weights alone": lambda path: torch.save(load(path)["state_dict"], path),
    "another program's": lambda path: torch.save({"hyper_parameters": {}, "global_step": 3, "callbacks": {}}, path),
}


@pytest.mark.parametrize("flag", ["--resume", "--test"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_checkpoint_is_refused_and_its_code_does_not_run(copied, capsys, kind, flag):
    BAD_FILES[kind](last_of(copied))
    message = refusal(f"{flag} {last_of(copied)}", capsys)
    assert flag in message
    assert str(last_of(copied)) in message
    assert not Path("marker").exists()


def test_code_in_a_checkpoint_would_run_where_it_is_not_refused(copied):
    """The marker of the test above is no empty promise."""
    BAD_FILES["code"](last_of(copied))
    torch.load(last_of(copied), weights_only=False)
    assert Path("marker").exists()


def test_best_checkpoint_is_small_and_refused_for_resume(copied, capsys):
    best = last_of(copied).with_name("best.ckpt")
    assert best.stat().st_size < 16_000
    assert not {"buffer", "agent", "optimizer_states"} & load(best).keys()
    assert "--resume needs a last.ckpt" in refusal(f"--resume {best}", capsys)


def test_best_checkpoint_is_of_the_highest_validation_and_ties_go_to_the_newer(tmp_path):
    rewards = [1.0, 3.0, 2.0, 3.0, 1.0]  # of the validations after each epoch

    class Scripted(DQNLightning):
        def validation_step(self, seeds, batch_idx):
            self.log("val_reward", rewards[self.current_epoch])

    kept = {"logger": False, "accelerator": "cpu", "default_root_dir": tmp_path, "enable_progress_bar": False}
    pl.Trainer(max_epochs=5, num_sanity_val_steps=0, callbacks=[Checkpoints()], **kept).fit(Scripted())
    best, last = (load(tmp_path / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt"))
    assert (best["global_step"], last["global_step"]) == (4 * 13, 5 * 13)


def test_the_best_validation_is_remembered_and_not_overwritten_by_a_worse_one(copied):
    checkpoint = load(last_of(copied))
    checkpoint["callbacks"]["Checkpoints"]["best_reward"] = 1e6  # out of reach
    torch.save(checkpoint, last_of(copied))
    before = last_of(copied).with_name("best.ckpt").read_bytes()
    main("--resume --max_epochs 20")
    assert last_of(copied).with_name("best.ckpt").read_bytes() == before


# A checkpoint that was moved


def test_a_renamed_run_goes_on_in_its_folder(tmp_path, short):
    folder = tmp_path / "run"
    assert run(SHORT, folder, functools.partial(die, signal.SIGKILL, WARM + 91))[0] == -signal.SIGKILL
    renamed = (folder / RUN).rename(folder / "my run")
    code, _, errors = run("--resume 'my run/checkpoints/last.ckpt'", folder)
    assert code == 0, errors
    assert not list((folder / "lightning_logs").iterdir())
    assert_same_run(renamed, short / RUN)


def test_a_checkpoint_moved_elsewhere_goes_on_in_a_new_run_which_looks_for_a_best_again(copied, tmp_path):
    before = contents(copied)
    checkpoint = load(last_of(copied))
    checkpoint["callbacks"]["Checkpoints"]["best_reward"] = 1e6
    torch.save(checkpoint, "moved.ckpt")
    main("--resume moved.ckpt --max_epochs 16")
    assert contents(copied) == before
    assert {path.name for path in Path("lightning_logs").iterdir()} == {"version_0", "version_1"}
    again = load(last_of(Path("lightning_logs/version_1")))
    assert again["global_step"] == 16 * 13
    assert 0 < again["callbacks"]["Checkpoints"]["best_reward"] < 1e6


def test_a_finished_run_whose_checkpoint_was_moved_is_tested_with_it(copied, capsys):
    last_of(copied).rename("moved.ckpt")
    main("--resume moved.ckpt")
    assert "--test moved.ckpt" in capsys.readouterr().out


def test_nothing_is_ever_written_to_the_root(folder):
    """Where a disk of checkpoints is mounted, as in a container."""
    assert dqn_cartpole.run_folder("/checkpoints/last.ckpt").resolve().is_relative_to(folder)


def test_no_path_that_a_checkpoint_names_is_used(copied, tmp_path):
    """Lightning's ModelCheckpoint takes paths from there, and deletes one at the next better validation."""
    precious = tmp_path / "precious"
    precious.mkdir()
    state = {"best_model_path": str(precious), "kth_best_model_path": str(precious), "dirpath": str(precious)}
    state |= {"best_k_models": {str(precious): torch.tensor(-1.0)}, "best_model_score": torch.tensor(-1.0)}
    checkpoint = load(last_of(copied))
    checkpoint["callbacks"]["Checkpoints"] |= state | {"best_reward": -1.0, "folder": str(precious)}
    checkpoint["callbacks"]["ModelCheckpoint"] = state
    torch.save(checkpoint, last_of(copied))
    main("--resume --max_epochs 16 --val_check_interval 13")
    assert list(precious.iterdir()) == []
    assert load(last_of(copied))["global_step"] == 16 * 13
