"""Your own agent: a subclass gets flags, checkpoints and curves, and overrides what it changes."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import RUN, Toy, last_of, load, main, refusal, same
from torch import nn

import dqn_cartpole
from dqn_cartpole import Agent, DQNLightning, ImprovedDQN, NStepBuffer

SHORT = "--max_epochs 2 --steps_per_epoch 20 --warm_start_steps 60 --replay_size 100"
TOY = f"--env Toy-v0 {SHORT}"
gym.register("Toy-v0", Toy)


def hparams(flags: str, module: type[DQNLightning]) -> dict[str, Any]:
    return dict(dqn_cartpole.set_up(module, shlex.split(flags))[1].hparams)


ONLY = (1, [2.5, "a"], None)  # a default that no flag can have, but a checkpoint can hold


class Mixin:
    def __init__(self, mixed: Annotated[int, "of the mixin"] = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Mine(Mixin, ImprovedDQN):
    """DQN with a temperature."""

    def __init__(
        self,
        temperature: Annotated[float, "of the softmax"] = 10.0,
        none: int = 0,
        less: float = -1,
        yes: bool = True,
        no: bool = False,
        word: str = "word",
        share: Annotated[float, "20% by default"] = 0.2,
        maybe: Annotated[float | None, "a number, maybe"] = 2.5,
        untyped=64,
        only_in_python: tuple = ONLY,
        lr: float = 1e-3,
        n_step: Annotated[int, "rewards to sum"] = 4,
        gamma: float = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, n_step=n_step, gamma=gamma, **kwargs)


OWN = {"temperature": 10.0, "none": 0, "less": -1, "yes": True, "no": False, "word": "word", "share": 0.2}
OWN |= {"maybe": 2.5, "untyped": 64, "mixed": 3, "lr": 1e-3, "n_step": 4, "gamma": 1}
CHANGED = {"temperature": 2.0, "none": 5, "less": 0.5, "yes": False, "no": True, "word": "other", "share": 0.0}
CHANGED |= {"maybe": 1.0, "untyped": 3, "mixed": 1, "lr": 1e-4, "n_step": 2, "gamma": 0.9}
FLAGS = "--temperature 2 --none 5 --less .5 --no-yes --no --word other --share 0"
FLAGS += " --maybe 1 --untyped 3 --mixed 1 --lr 1e-4 --n_step 2 --gamma 0.9"


def test_every_argument_of_the_class_and_those_it_extends_is_a_flag_of_its_type():
    defaults = hparams("", ImprovedDQN) | OWN | {"only_in_python": ONLY}
    assert hparams("", Mine) == defaults
    assert hparams(FLAGS, Mine) == defaults | CHANGED
    assert all(type(hparams(FLAGS, Mine)[name]) is type(value) for name, value in CHANGED.items())
    assert hparams("--batch_size 8 --no-lr_decay", Mine) == defaults | {"batch_size": 8, "lr_decay": False}


@pytest.mark.parametrize("flags", ["--none 1.5", "--temperature", "--gamma x", "--only_in_python 1"])
def test_a_value_of_another_type_is_refused(folder, capsys, flags):
    assert flags.split()[0] in refusal(flags, capsys, Mine)


@pytest.mark.parametrize("flags", ["--untyped 0", "--mixed -1", "--n_step 0"])
def test_a_count_below_1_is_refused(folder, capsys, flags):
    assert refusal(flags, capsys, Mine).endswith(f"error: {flags.split()[0]} must be at least 1")


def test_help_is_in_its_own_words(capsys):
    """A default that changes alone keeps the help text, a new text wins, and a percent sign is no format."""
    with pytest.raises(SystemExit):
        main("-h", Mine)
    text = " ".join(capsys.readouterr().out.split())
    assert " DQN with a temperature. " in text
    assert " --mixed MIXED of the mixin (default: 3) " in text
    assert " --share SHARE 20% by default (default: 0.2) --maybe MAYBE a number, maybe (default: 2.5) " in text
    assert " --lr LR learning rate (default: 0.001) " in text
    assert " --n_step N_STEP rewards to sum (default: 4) " in text
    assert "--only_in_python" not in text


BAD = {"nested": [Path("x")], "float64": np.float64(1), "array": np.arange(3), "function": lambda: 0}


@pytest.mark.parametrize("name", BAD)
def test_what_a_checkpoint_cannot_give_back_is_refused_before_training(folder, capsys, name):
    class Extra(ImprovedDQN):
        def __init__(self, extra: Any = BAD[name], **kwargs: Any) -> None:
            super().__init__(**kwargs)

    assert "a checkpoint cannot restore extra=" in refusal(TOY, capsys, Extra)


def test_its_settings_and_weights_are_in_both_checkpoints_and_no_other_class_loads_them(folder, capsys):
    main(f"{TOY} {FLAGS} --hidden_size 7", Mine)
    main("--resume 0 --max_epochs 3", Mine)
    capsys.readouterr()
    for path in (RUN / "checkpoints").iterdir():
        model = Mine.load_from_checkpoint(path, weights_only=True)
        assert dict(model.hparams).items() >= (CHANGED | {"hidden_size": 7, "only_in_python": ONLY}).items()
        assert same(dict(model.state_dict()), dict(load(path)["state_dict"]))
        assert "not of ImprovedDQN" in refusal(f"--test {path}", capsys)
    assert load(last_of(RUN))["global_step"] == 60
    assert main(f"--test {last_of(RUN)}", Mine) == {"test_reward": 10}


class InTurn(Agent):
    def get_action(self, net, epsilon, device):
        return np.int64(self.env.unwrapped.taken % 2)  # as many of NumPy's functions would


class Doubled(NStepBuffer):
    def append(self, experience):
        super().append(experience._replace(reward=experience.reward * 2))


def times(env: gym.Env, factor: float) -> gym.Env:
    return gym.wrappers.TransformReward(env, lambda reward: factor * reward)


class OwnParts(ImprovedDQN):
    def make_env(self, **options):
        return times(super().make_env(**options), 1 / 4)

    def make_net(self):
        return nn.Sequential(nn.Linear(3, 7), nn.LeakyReLU(), nn.Linear(7, 2))

    def make_buffer(self, rng):
        return Doubled(1, self.hparams.gamma, self.hparams.replay_size, self.env.observation_space, rng)

    def make_agent(self, rng):
        return InTurn(times(self.env, 10), self.buffer, rng)  # this wrapper is for learning alone


def test_make_env_make_net_make_buffer_and_make_agent(folder):
    assert main(TOY, OwnParts) == {"test_reward": 10 / 4}
    last = load(last_of(RUN))
    assert last["state_dict"]["net.0.weight"].shape == last["state_dict"]["target_net.0.weight"].shape == (7, 3)
    _, (_, actions, rewards, *_) = last["buffer"]
    assert set(rewards.tolist()) == {1 / 4 * 10 * 2}
    assert set(actions.diff().abs().tolist()) == {1}


def test_dqn_mse_loss_and_configure_optimizers(folder):
    class OwnLoss(ImprovedDQN):
        def dqn_mse_loss(self, batch):
            return (self.net(batch.state) - 7).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.5)

    main(f"{TOY} --steps_per_epoch 120 --no-layer_norm", OwnLoss)
    model = OwnLoss.load_from_checkpoint(last_of(RUN), weights_only=True)
    assert model(torch.rand(50, 3) - 0.5).detach().numpy() == pytest.approx(np.full((50, 2), 7), abs=0.1)


def test_reduce_lr_on_plateau_follows_val_reward(folder):
    class Plateau(ImprovedDQN):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_reward"}}

    main(f"{TOY} --max_epochs 4", Plateau)
    assert load(last_of(RUN))["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(5e-4)  # it never rises
