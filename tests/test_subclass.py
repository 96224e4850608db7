"""A subclass in a file of its own gets flags, checkpoints, resume, test and film."""

import re
import textwrap
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import RUN, Toy, last_of, load, main, run_script, same, scalars
from torch import nn

import dqn_cartpole
from dqn_cartpole import Agent, DQNLightning, ImprovedDQN, NStepBuffer, parse_args
from tests.examples.one_simulator import OneSimulator

SHORT = "--max_epochs 3 --warm_start_steps 300 --replay_size 400"


class Mixin:
    """Knows nothing of Lightning."""

    def __init__(self, mixed: Annotated[int, "of the mixin"] = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Mine(Mixin, ImprovedDQN):
    """DQN with a temperature."""

    def __init__(
        self,
        temperature: Annotated[float, "of the softmax"] = 10.0,
        none: int = 0,
        less: float = -1,
        perhaps: int | None = None,
        maybe: Annotated[float | None, "a number, maybe"] = 2.5,
        yes: bool = True,
        no: bool = False,
        word: str = "word",
        choice: Literal["first", "second"] = "first",
        number: Annotated[Literal[1, 2, 4], "one of these"] = 2,
        lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)


OWN = {"temperature": 10.0, "none": 0, "less": -1, "perhaps": None, "maybe": 2.5, "yes": True, "no": False}
OWN |= {"word": "word", "choice": "first", "number": 2, "mixed": 3}
CHANGED = {"temperature": 2.0, "none": 5, "less": 0.5, "perhaps": 7, "maybe": 0.0, "yes": False, "no": True}
CHANGED |= {"word": "other", "choice": "second", "number": 4, "mixed": 1}
FLAGS = "--temperature 2 --none 5 --less .5 --perhaps 7 --maybe 0 --no-yes --no --word other --choice second --number 4"
FLAGS += " --mixed 1"


# Flags


def test_every_argument_with_a_default_is_a_flag_of_its_type():
    assert OWN.items() <= parse_args([], Mine).dqn.items()
    changed = parse_args(FLAGS.split(), Mine).dqn
    assert CHANGED.items() <= changed.items()
    assert all(type(changed[name]) is type(value) for name, value in CHANGED.items())


def test_the_flags_of_its_bases_are_there_too():
    theirs, ours = parse_args([]).dqn, parse_args([], Mine).dqn
    assert theirs.keys() | OWN.keys() == ours.keys()
    assert ours == theirs | OWN | {"lr": 1e-3}  # the default that it redefines


class Bare(Mixin, ImprovedDQN):
    """Has no `__init__` of its own."""


def test_the_arguments_of_a_mixin_are_saved(folder):
    main(f"{SHORT} --mixed 7", Bare)
    assert load(last_of(RUN))["hyper_parameters"]["mixed"] == 7
    assert Bare.load_from_checkpoint(last_of(RUN), weights_only=True).hparams.n_step == 5


class Slower(DQNLightning):
    def __init__(self, lr: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(lr=lr, **kwargs)


class Without(DQNLightning):
    """Overrides methods only."""


class Both(Without, Slower):
    """After its own `__init__` Python looks for one in Without, finds none, and takes that of Slower."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_a_default_is_the_one_that_python_takes():
    assert Both().hparams.lr == 1e-4
    assert parse_args([], Both).lr == 1e-4


@pytest.mark.parametrize("flags", ["--number 3", "--choice third", "--perhaps x", "--no 1", "--temperature"])
def test_a_value_that_its_type_does_not_have_is_refused(capsys, flags):
    with pytest.raises(SystemExit) as ended:
        parse_args(flags.split(), Mine)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_help_is_in_its_own_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_args(["-h"], Mine)
    text = capsys.readouterr().out
    assert "DQN with a temperature." in text
    for line in ("of the softmax (default: 10.0)", "of the mixin (default: 3)", "a number, maybe (default: 2.5)"):
        assert line in text
    for name in OWN:
        assert f"--{name}" in text


def test_help_shows_the_default_of_an_argument_without_a_help_text(capsys):
    with pytest.raises(SystemExit):
        parse_args(["-h"], Mine)
    assert "default: word" in capsys.readouterr().out


class Untyped(ImprovedDQN):
    def __init__(self, width=64, **kwargs):
        super().__init__(**kwargs)


def test_an_argument_without_a_type_has_that_of_its_default():
    assert parse_args(["--width", "32"], Untyped).width == 32


class Redefined(ImprovedDQN):
    def __init__(self, gamma=1, lr: float = 1e-3, lr_schedule: Literal["step"] = "step", **kwargs):
        super().__init__(gamma=gamma, lr=lr, lr_schedule=lr_schedule, **kwargs)


def test_an_argument_with_only_a_new_default_keeps_its_help_text_and_type(capsys, monkeypatch):
    assert parse_args(["--gamma", "0.5"], Redefined).gamma == 0.5
    assert parse_args(["--lr_schedule", "step"], Redefined).lr_schedule == "step"  # a type of its own
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_args(["-h"], Redefined)
    text = capsys.readouterr().out
    assert "learning rate (default: 0.001)" in text
    assert "discount factor (default: 1)" in text


class Percent(ImprovedDQN):
    def __init__(self, share: Annotated[float, "20% by default"] = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_a_help_text_may_have_a_percent_sign(capsys):
    with pytest.raises(SystemExit):
        parse_args(["-h"], Percent)
    assert "20% by default" in capsys.readouterr().out


# A run


def test_its_arguments_are_saved_and_loaded_and_refused_when_they_change(folder, capsys):
    main(f"{SHORT} {FLAGS}", Mine)
    assert CHANGED.items() <= load(last_of(RUN))["hyper_parameters"].items()
    for name in ("last.ckpt", "best.ckpt"):
        model = Mine.load_from_checkpoint(RUN / "checkpoints" / name, weights_only=True)
        assert {"temperature": 2.0, "perhaps": 7, "lr": 1e-3, "n_step": 5}.items() <= model.hparams.items()
        assert same(dict(model.state_dict()), dict(load(RUN / "checkpoints" / name)["state_dict"]))
    main("--resume --max_epochs 4", Mine)
    assert load(last_of(RUN))["global_step"] == 4 * 13
    main(f"--test {last_of(RUN)}", Mine)
    for flag in ("--temperature 3", "--mixed 3", "--yes"):
        with pytest.raises(SystemExit):
            main(f"--resume {flag}", Mine)
        assert f"error: {flag.split()[0]} " in capsys.readouterr().err.splitlines()[-1]


def test_the_program_in_the_files_head_runs_and_prints_commands_that_name_it(tmp_path):
    program = tmp_path / "my program.py"
    program.write_text(textwrap.dedent(re.search(r"    from torch.*main\(.*?\n", dqn_cartpole.__doc__, re.S).group()))
    done = run_script("--slope", "0.3", "--hidden_size", "16", *SHORT.split(), cwd=tmp_path, script=program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"python '{program}' --test ")
    checkpoint = load(last_of(tmp_path / RUN))
    assert {"slope": 0.3, "lr": 3e-3}.items() <= checkpoint["hyper_parameters"].items()
    assert len(checkpoint["state_dict"]["net.net.0.bias"]) == 16


# What it can override


class Cycles(Agent):
    """Takes the actions in turn."""

    def get_action(self, net, epsilon, device):
        return len(self.actions) % 2


class OwnAgent(ImprovedDQN):
    def make_agent(self, seed):
        return Cycles(self.env, self.buffer, seed)


def test_make_agent(folder):
    main(SHORT, OwnAgent)
    model = OwnAgent(n_step=1)
    model.populate(100)
    assert 0.4 < model.buffer.sample(100).action.mean() <= 0.5


class OwnNet(ImprovedDQN):
    def make_net(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2))


def test_make_net(folder):
    main(SHORT, OwnNet)
    weights = load(last_of(RUN))["state_dict"]
    assert weights["net.1.weight"].shape == weights["target_net.1.weight"].shape == (7, 4)
    assert not same(weights["net.1.weight"], weights["target_net.1.weight"])


class Doubled(NStepBuffer):
    def append(self, experience):
        super().append(experience._replace(reward=experience.reward * 2))


class OwnBuffer(ImprovedDQN):
    def make_buffer(self, seed):
        return Doubled(self.hparams.replay_size, self.hparams.n_step, self.hparams.gamma, seed)


def test_make_buffer(folder):
    main(f"{SHORT} --n_step 1", OwnBuffer)
    buffer = OwnBuffer.load_from_checkpoint(last_of(RUN), weights_only=True).buffer
    assert set(buffer.sample(len(buffer)).reward) == {2.0}
    assert {value for _, value in scalars(RUN)["reward"]} == {1.0}  # the environment's


class OwnEnv(ImprovedDQN):
    def make_env(self, **options):
        return gym.wrappers.TransformReward(super().make_env(**options), lambda reward: reward / 2)


def test_make_env(folder, capfd):
    main(f"{SHORT} --env Toy-v0", OwnEnv)
    assert "test_reward: 5.00 +/- 0.00" in capfd.readouterr().out
    assert {value for _, value in scalars(RUN)["total_reward"]} == {5.0}


gym.register("Toy-v0", Toy)


class OwnLoss(ImprovedDQN):
    """Learns that every action is worth 7."""

    def dqn_mse_loss(self, batch):
        return (self.net(batch[0]) - 7).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.5)


def test_dqn_mse_loss_and_configure_optimizers(folder):
    main("--env Toy-v0 --max_epochs 20 --no-layer_norm", OwnLoss)
    model = OwnLoss.load_from_checkpoint(last_of(RUN), weights_only=True)
    assert model(torch.rand(50, 3) - 0.5).detach().numpy() == pytest.approx(np.full((50, 2), 7), abs=0.1)
    assert "momentum_buffer" in next(iter(load(last_of(RUN))["optimizer_states"][0]["state"].values()))


class OwnStep(ImprovedDQN):
    """Learns from every other minibatch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if batch_idx % 2 else loss * 0


def test_training_step(folder):
    main(SHORT, OwnStep)
    assert load(last_of(RUN))["global_step"] == 39


class Single(Toy):
    """A simulator of which only one can be open."""

    opened = 0

    def __init__(self, render_mode: str | None = None) -> None:
        if Single.opened:
            raise RuntimeError("the simulator is in use")
        Single.opened += 1

    def close(self):
        Single.opened -= 1


gym.register("Single-v0", Single)


def test_play_episodes_where_only_one_instance_can_be_open(folder, capfd):
    with pytest.raises(RuntimeError, match="in use"):
        main(f"{SHORT} --env Single-v0")
    main(f"{SHORT} --env Single-v0 --lr_schedule constant --eps_last_frame 50", OneSimulator)
    assert "test_reward: 10.00 +/- 0.00 over 3 episodes" in capfd.readouterr().out
    main("--resume --max_epochs 6", OneSimulator)
    main(
        f"{SHORT} --env Single-v0 --lr_schedule constant --eps_last_frame 50 --max_epochs 6 --val_check_interval 39",
        OneSimulator,
    )
    resumed, straight = (load(last_of(RUN.with_name(f"version_{n}"))) for n in (1, 2))
    assert same(resumed["state_dict"], straight["state_dict"])
    assert all(same(resumed[key], straight[key]) for key in ("episode", "buffer", "rng"))


def test_play_episodes_one_after_the_other_gives_the_same_scores():
    torch.manual_seed(0)
    one = OneSimulator()
    torch.manual_seed(0)
    assert one.play_episodes(torch.arange(5)).tolist() == ImprovedDQN().play_episodes(torch.arange(5)).tolist()
