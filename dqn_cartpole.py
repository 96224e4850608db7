"""Train a Deep Q-Network (DQN) on CartPole with PyTorch Lightning.

    pip install -r requirements.txt
    python dqn_cartpole.py                    # on the CPU; with --gpus 1 on a GPU
    tensorboard --logdir lightning_logs       # watch it learn
    python dqn_cartpole.py --help             # every setting and its default

Read it from top to bottom: the model, the replay buffer, the dataset, the agent, the Lightning module, main.
The structure is that of an article by Donal Byrne (2020); the algorithm is from Mnih et al., "Human-level
control through deep reinforcement learning", Nature 518 (2015).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import math
import os
import pickle
import shlex
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

if __name__ == "__main__":
    gc.disable()  # searching half a million imported objects for garbage, all of them in use, delays the start

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageOps
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

try:
    import gymnasium as gym
except ModuleNotFoundError:  # gym 0.26, the last release before Gymnasium took over, has the same interface
    import gym  # type: ignore[no-redef]

# Validation and test play the same episodes every time, so that checkpoints compare; training plays others.
VAL_SEEDS, TEST_SEEDS, TRAIN_SEEDS = range(20), range(1000, 1100), range(2000, 2**31)
EVAL_STEPS = 1000  # cut a validation or test episode where the environment itself never does
LARGEST_REWARD = float(np.finfo(np.float32).max)
LOG_EVERY = 50  # steps between points of what changes with every step: writing one takes nearly half the time of a step

say = rank_zero_only(print)  # where there are several processes, the first speaks for all


class UsageError(ValueError):
    """Input that cannot work; the message is one line that names the flag, the value and the remedy."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says where it failed."""


class DQN(nn.Module):
    """Multilayer perceptron that estimates the Q-value of every action (article, "Model").

    Args:
        obs_size: numbers in one observation
        n_actions: discrete actions in the environment
        hidden_size: units in a hidden layer
        hidden_layers: hidden layers; the article's network has one
    """

    def __init__(self, obs_size: int, n_actions: int, hidden_size: int = 128, hidden_layers: int = 1) -> None:
        super().__init__()
        sizes = [obs_size] + [hidden_size] * hidden_layers
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(sizes[-1], n_actions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x`, any dtype (batch, obs_size)."""
        q_values: torch.Tensor = self.net(x.float())
        return q_values


# One step in the environment; in a sample, each field is an array with a row per step. `done` is terminated: the
# return ends there. The last step of an episode that was only cut is not done.
Experience = namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])


class ReplayBuffer:
    """The last `capacity` experiences, to be sampled uniformly (article, "Replay buffer"; Lin 1992).

    Rings of preallocated arrays: memory is `capacity` times the bytes of one experience, and the cost of
    `append` and `sample` does not depend on `capacity`.

    Args:
        capacity: experiences kept; the oldest goes first
        seed: of the buffer's own generator, which draws the samples
    """

    def __init__(self, capacity: int, seed: int | None = None) -> None:
        self.capacity = capacity
        self.appended = 0  # experiences ever; modulo capacity, the slot of the next
        self.rng = np.random.default_rng(seed)
        self.arrays: Experience | None = None  # made by the first append, which knows the shape of a state

    def __len__(self) -> int:
        return min(self.appended, self.capacity)

    def append(self, experience: Experience) -> None:
        """Store an experience in the place of the oldest.

        Raises:
            ValueError: the reward or a state is not finite, and would spoil all that is learned from it
        """
        states_finite = np.isfinite(experience.state).all() and np.isfinite(experience.new_state).all()
        if not (states_finite and abs(experience.reward) <= LARGEST_REWARD):
            raise ValueError(f"reward and observation must be finite: {experience}")
        if self.arrays is None:
            dtypes = (np.asarray(experience.state).dtype, np.int64, np.float32, np.bool_)
            shapes = [(self.capacity, *np.shape(value)) for value in experience]
            self.arrays = Experience._make(map(np.empty, shapes, (*dtypes, dtypes[0])))
        slot = self.appended % self.capacity
        for array, value in zip(self.arrays, experience):
            array[slot] = value
        self.appended += 1

    def sample(self, batch_size: int) -> Experience:
        """Draw experiences uniformly, without replacement.

        Returns:
            states (batch_size, *state shape), actions int64, rewards float32, dones bool, each (batch_size,),
            and new_states, shaped as states

        Raises:
            ValueError: the buffer holds fewer than `batch_size` experiences
        """
        if self.arrays is None or batch_size > len(self):
            raise ValueError(f"cannot sample {batch_size} experiences: the buffer holds {len(self)}")
        rows = self.rng.choice(len(self), batch_size, replace=False)
        return Experience._make(array[rows] for array in self.arrays)

    def state_dict(self) -> dict[str, Any]:
        """What the buffer holds and will draw, in tensors and plain numbers."""
        arrays = [torch.from_numpy(array[: len(self)]) for array in self.arrays or ()]
        return {"arrays": arrays, "appended": self.appended, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the buffer of `state` stood; a ValueError says that it was one of other experiences."""
        saved, held = [part.numpy() for part in state["arrays"]], min(state["appended"], self.capacity)
        if self.arrays is None and saved:
            self.arrays = Experience._make(np.empty((self.capacity, *a.shape[1:]), a.dtype) for a in saved)
        for array, part in zip(self.arrays or (), saved, strict=True):
            if array[:held].shape != part.shape:
                raise ValueError(f"the replay buffer has {part.shape} where {array[:held].shape} is expected")
            array[:held] = part
        self.appended, self.rng.bit_generator.state = state["appended"], state["rng"]


class RLDataset(IterableDataset[Experience]):
    """A dataset that changes while it is learned from: each pass is drawn anew from the replay buffer.

    Args:
        buffer: replay buffer, as it is when the pass begins
        sample_size: experiences in one pass
        batch_size: yield the pass in minibatches of this size, as tensors, for a `DataLoader(batch_size=None)`:
            to split one draw is cheaper than to collate single experiences. None yields them one by one.
    """

    def __init__(self, buffer: ReplayBuffer, sample_size: int = 200, batch_size: int | None = None) -> None:
        self.buffer = buffer
        self.sample_size = sample_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Experience]:
        fields: Any = self.buffer.sample(self.sample_size)
        if self.batch_size is not None:
            fields = [torch.split(torch.from_numpy(array), self.batch_size) for array in fields]
        yield from map(Experience._make, zip(*fields))


class Agent:
    """Plays in the environment and remembers what happened (article, "Agent").

    Args:
        env: environment with a `Discrete` action space
        replay_buffer: where the experiences go
        seed: of the agent's own generator, which explores and seeds each episode
    """

    state: np.ndarray  # the last observation, from which the next action is chosen
    seeds = TRAIN_SEEDS  # of which each episode takes one

    def __init__(self, env: gym.Env[Any, Any], replay_buffer: ReplayBuffer, seed: int | None = None) -> None:
        self.env = env
        self.replay_buffer = replay_buffer
        self.rng = np.random.default_rng(seed)
        self.n_actions = int(env.action_space.n)  # type: ignore[attr-defined]
        self.reset()

    def reset(self) -> None:
        """Begin a new episode; its first observation becomes `state`."""
        self.episode_seed = self.seeds[self.rng.integers(len(self.seeds))]
        self.actions: list[int] = []  # of the episode so far
        self.state, _ = self.env.reset(seed=self.episode_seed)

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        """Choose an action epsilon-greedily: with probability `epsilon` any, else that of highest Q-value.

        Args:
            net: maps observations (1, *state shape) to Q-values (1, n_actions)
            epsilon: probability of a random action, in [0, 1]
            device: where `net` is
        """
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.n_actions))
        state = torch.as_tensor(self.state, device=device).unsqueeze(0)
        return int(net(state).argmax())

    @torch.inference_mode()
    def play_step(self, net: nn.Module, epsilon: float = 0.0, device: torch.device | str = "cpu") -> tuple[float, bool]:
        """Take one step in the environment and store it; if it ends the episode, begin the next.

        Returns:
            the reward of the step, and whether the episode is over
        """
        action = self.get_action(net, epsilon, device)
        self.actions.append(action)
        try:
            new_state, reward, terminated, truncated, _ = self.env.step(action)
            # An episode cut by its time limit would have gone on, so its last state keeps its value: the buffer
            # is told `terminated` alone, although the episode is over either way (Pardo et al. 2018).
            self.replay_buffer.append(Experience(self.state, action, float(reward), terminated, new_state))
            self.state = new_state
            if terminated or truncated:
                self.reset()
        except Exception as error:
            where = f"step {len(self.actions)} of the episode with seed {self.episode_seed}"
            raise RunError(f"the environment failed at {where}: {error!r}") from error
        return float(reward), terminated or truncated

    def state_dict(self) -> dict[str, Any]:
        """The generator and the running episode: its seed and the actions so far, to be played again."""
        return {"rng": self.rng.bit_generator.state, "episode_seed": self.episode_seed, "actions": self.actions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the agent of `state` stood, with no need to pickle an environment."""
        self.rng.bit_generator.state = state["rng"]
        self.episode_seed, self.actions = state["episode_seed"], list(state["actions"])
        self.state, _ = self.env.reset(seed=self.episode_seed)
        for action in self.actions:
            self.state, *_ = self.env.step(action)


def make_env(env: str, episode_length: int | None = None, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """The environment with id `env`, its episodes cut after `episode_length` steps, its observations flat.

    Raises:
        UsageError: there is no such environment, its package is missing, or a DQN cannot play it
    """
    with warnings.catch_warnings():  # CartPole-v0 is CartPole-v1 with a cap of 200, and the article's task
        warnings.filterwarnings("ignore", ".*(is out of date|latest versioned environment|render_mode)")
        try:
            drawn = {"render_mode": render_mode} if render_mode else {}  # not every environment knows the word
            made = gym.make(env, max_episode_steps=episode_length, disable_env_checker=True, **drawn)
            if len(made.observation_space.shape or ()) != 1:
                made = gym.wrappers.FlattenObservation(made)
            if render_mode not in (None, *made.metadata.get("render_modes", ())):
                raise ValueError(f"it has no render mode {render_mode}")
            if render_mode == "human":
                made.reset(seed=0)  # opens a window, or fails, at once
        except Exception as error:  # gym's own errors, and whatever an environment's package does
            raise UsageError(f"--env {env}: {' '.join(str(error).split())}") from None
    if not isinstance(made.action_space, gym.spaces.Discrete) or made.action_space.start != 0:
        raise UsageError(f"--env {env}: DQN needs a Discrete action space from 0, not {made.action_space}")
    return made


def hyperparameters() -> dict[str, tuple[Any, ...]]:
    """Type, default, meaning and what is allowed (least and greatest, or the choices) of each hyperparameter.

    Read off the signature of `DQNLightning`: there they are written, and only there.
    """
    hints = get_type_hints(DQNLightning.__init__, include_extras=True)
    settings = {}
    for name, default in (DQNLightning.__init__.__kwdefaults__ or {}).items():
        kind, meaning, *allowed = get_args(hints[name])
        settings[name] = (next(iter(get_args(kind)), kind), default, meaning, allowed)  # int of int | None
    return settings


def check(settings: dict[str, tuple[Any, ...]], values: Mapping[str, Any]) -> None:
    """Raise a UsageError for the first of `values` that its setting does not allow."""
    for name, (kind, default, _, allowed) in settings.items():
        value = values[name]
        if not allowed or (value is None and default is None):
            continue
        if kind is str and value not in allowed:
            raise UsageError(f"--{name} {value}: must be one of {', '.join(allowed)}")
        number = isinstance(value, int if kind is int else (int, float))
        if kind is not str and not (number and allowed[0] <= value <= allowed[1]):
            raise UsageError(f"--{name} {value}: must be from {allowed[0]} to {allowed[1]}")


def gather(value: Any) -> list[Any]:
    """`value` of every process by rank. All processes have to call this together, for each waits for the others."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class DQNLightning(pl.LightningModule):
    """The DQN algorithm as a LightningModule: plays, learns, validates (article, "Lightning module").

    Every keyword is a flag of the command line too: its meaning, range and default are written here.

    Raises:
        UsageError: a value is out of its range, two contradict each other, or a DQN cannot play `env`
    """

    hparams: Any  # the keywords by name, saved in every checkpoint

    def __init__(
        self,
        *,
        env: Annotated[str, "id of the environment"] = "CartPole-v0",
        episode_length: Annotated[int | None, "steps that cut an episode; None: env's own", 1, 10**9] = None,
        batch_size: Annotated[int, "experiences in a minibatch", 1, 10**6] = 16,
        lr: Annotated[float, "learning rate", 1e-9, 10.0] = 5e-3,
        gamma: Annotated[float, "discount of the return", 0, 1] = 0.99,
        sync_rate: Annotated[int, "steps between copies to the target network", 1, 10**9] = 10,
        tau: Annotated[float, "below 1: blend this share into the target at every step instead", 1e-9, 1] = 1.0,
        replay_size: Annotated[int, "capacity of the replay buffer", 1, 10**8] = 5000,
        warm_start_steps: Annotated[int, "random steps before training", 1, 10**9] = 1000,
        sample_size: Annotated[int, "experiences in an epoch", 1, 10**8] = 200,
        eps_start: Annotated[float, "epsilon at the first step", 0, 1] = 1.0,
        eps_end: Annotated[float, "epsilon from eps_last_frame on", 0, 1] = 0.5,
        eps_last_frame: Annotated[int, "steps over which epsilon changes linearly", 1, 10**9] = 1000,
        hidden_size: Annotated[int, "units in a hidden layer", 1, 10**5] = 128,
        hidden_layers: Annotated[int, "hidden layers", 1, 100] = 1,
        lr_schedule: Annotated[str, "how lr changes over the run", "constant", "linear", "cosine"] = "cosine",
        double_dqn: Annotated[bool, "let the online network choose the next action"] = False,
        grad_clip: Annotated[float | None, "greatest norm of the gradient; None: any", 1e-9, 1e9] = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check(hyperparameters(), self.hparams)
        if not batch_size <= sample_size <= min(warm_start_steps, replay_size):
            raise UsageError(
                f"--sample_size {sample_size}: must be at least --batch_size ({batch_size}), and at most"
                f" --warm_start_steps ({warm_start_steps}) and --replay_size ({replay_size})"
            )
        self.steps_per_epoch = -(-sample_size // batch_size)  # rounded up; each step is one in the environment too
        self.env = make_env(env, episode_length)
        spec: Any = self.env.spec
        self.max_episode_steps, self.reward_threshold = spec.max_episode_steps, spec.reward_threshold

        # Torch's generator, which --seed seeds, makes the weights and seeds the other two.
        self.buffer = ReplayBuffer(replay_size, seed=int(torch.randint(2**62, ())))
        self.agent = Agent(self.env, self.buffer, seed=int(torch.randint(2**62, ())))
        obs_size = math.prod(self.env.observation_space.shape or ())
        shape = (obs_size, self.agent.n_actions, hidden_size, hidden_layers)
        self.net, self.target_net = DQN(*shape), DQN(*shape).requires_grad_(False)
        self.target_net.load_state_dict(self.net.state_dict())

        self.episode_reward = 0.0  # of the running episode so far
        self.total_reward = 0.0  # of the last finished episode
        self.returns: deque[float] = deque(maxlen=100)  # of the last finished episodes, of all processes
        self.finished: list[tuple[int, float]] = []  # step and return of this process's episodes that ended this epoch
        self.solved_at: int | None = None  # step of the first validation at reward_threshold
        self.epoch_loss = torch.zeros(())  # summed over the epoch so far
        self.populate(warm_start_steps)

    def populate(self, steps: int = 1000) -> None:
        """Fill the replay buffer with `steps` random steps, then begin a fresh episode."""
        for _ in range(steps):
            self.agent.play_step(self.net, epsilon=1.0)
        self.agent.reset()

    def setup(self, stage: str) -> None:
        """Where several processes train one network, give each its own generators, episodes and replay buffer."""
        if stage == "fit" and self.trainer.world_size > 1:
            for part in (self.buffer, self.agent):
                part.rng = part.rng.spawn(self.trainer.world_size)[self.global_rank]
            self.agent.seeds = TRAIN_SEEDS[self.global_rank :: self.trainer.world_size]
            self.agent.reset()
            self.buffer.appended = 0
            self.populate(self.hparams.warm_start_steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x` (batch, obs_size)."""
        q_values: torch.Tensor = self.net(x)
        return q_values

    def dqn_mse_loss(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean squared error between Q(s, a) and its target r + gamma * max_a' Q_target(s', a').

        With `double_dqn` the target is r + gamma * Q_target(s', argmax_a' Q(s', a')) (van Hasselt et al. 2016).

        Args:
            batch: states, actions, rewards, dones, new_states, as `ReplayBuffer.sample` gives them
        """
        states, actions, rewards, dones, new_states = batch
        q_values = self.net(states).gather(1, actions.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            next_q_values = self.target_net(new_states)
            if self.hparams.double_dqn:
                next_values = next_q_values.gather(1, self.net(new_states).argmax(1, keepdim=True)).squeeze(1)
            else:
                next_values = next_q_values.amax(1)
            targets = rewards + self.hparams.gamma * next_values.masked_fill(dones, 0.0)
        return functional.mse_loss(q_values, targets)

    def configure_optimizers(self) -> Any:
        """Adam, fused because that is the fastest, and a learning rate that changes between epochs."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr, fused=True)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)]

    def lr_factor(self, epoch: int) -> float:
        """What `lr` is multiplied by in an epoch: 1 at the start of the run, as `lr_schedule` says later."""
        progress = epoch / (self.trainer.max_epochs or 1)
        factors = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return factors[self.hparams.lr_schedule]

    def train_dataloader(self) -> DataLoader[Experience]:
        """Minibatches of the replay buffer, made in this process: a worker's copy would miss what is new."""
        dataset = RLDataset(self.buffer, self.hparams.sample_size, self.hparams.batch_size)
        return DataLoader(dataset, batch_size=None)

    @property
    def avg_reward(self) -> float:
        """Mean return of the last 100 episodes, 0 before the first has ended."""
        return statistics.fmean(self.returns or [0.0])

    @property
    def epsilon(self) -> float:
        """Probability of a random action at this step."""
        progress = min(1.0, self.global_step / self.hparams.eps_last_frame)
        return float(self.hparams.eps_start + progress * (self.hparams.eps_end - self.hparams.eps_start))

    def training_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One step of DQN (Mnih et al. 2015, algorithm 1): act and store, learn, sync, log.

        Lightning takes the loss that is returned and makes one step of the optimizer of it.
        """
        reward, done = self.agent.play_step(self.net, self.epsilon, self.device)
        loss = self.dqn_mse_loss(batch)
        self.sync_target()
        self.log_step(reward, done, loss, batch)
        return loss

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copy the weights to the target network every `sync_rate` steps; with `tau` below 1, blend always."""
        if self.hparams.tau < 1 or self.global_step % self.hparams.sync_rate == 0:
            for target, weight in zip(self.target_net.parameters(), self.net.parameters()):
                target.lerp_(weight, self.hparams.tau)

    def log_step(self, reward: float, done: bool, loss: torch.Tensor, batch: Sequence[torch.Tensor]) -> None:
        """Note the return of an episode that ends, and log, now and then, what changes with every step.

        Straight to the logger, because `self.log` on every step would cost more than the learning.
        """
        self.epoch_loss = self.epoch_loss + loss.detach()
        self.episode_reward += reward
        if done:
            self.finished.append((self.global_step, self.episode_reward))
            self.episode_reward = 0.0
        if self.global_step % LOG_EVERY == 0 and self.logger is not None:
            with torch.no_grad():
                q_mean = self.net(batch[0]).amax(1).mean().item()
            scalars = {"reward": reward, "train_loss": loss.item(), "epsilon": self.epsilon, "q_mean": q_mean}
            scalars["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.logger.log_metrics(scalars, step=self.global_step)

    def on_train_epoch_end(self) -> None:
        """Log every episode that ended in this epoch; stop where the loss or a weight is not finite.

        Once an epoch, because to look at a number on a GPU is to wait until all before it is computed, and to
        tell the other processes of it is to wait for them.
        """
        finite = torch.stack([number.isfinite().all() for number in (self.epoch_loss, *self.net.parameters())])
        all_finite, all_finished = zip(*gather((bool(finite.all()), self.finished)))
        for step, self.total_reward in sorted(episode for finished in all_finished for episode in finished):
            self.returns.append(self.total_reward)
            if self.logger is not None:
                self.logger.log_metrics({"total_reward": self.total_reward, "avg_reward": self.avg_reward}, step=step)
        self.epoch_loss, self.finished = torch.zeros(()), []
        if not all(all_finite):
            step = self.global_step
            raise RunError(f"the loss stopped being finite before step {step}; try a lower --lr, or --grad_clip 10")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of: with it a resumed run equals one that never stopped."""
        score = [self.episode_reward, self.total_reward, list(self.returns), self.solved_at]
        states = {"buffer": self.buffer.state_dict(), "agent": self.agent.state_dict()}
        checkpoint["dqn"] = gather({**states, "score": score, "torch_rng": torch.get_rng_state()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added; what Lightning would fail to load raises here already."""
        optimizer = checkpoint["optimizer_states"][0]["state"].values()
        for weight, state in zip(self.net.parameters(), optimizer, strict=True):
            if not weight.shape == state["exp_avg"].shape == state["exp_avg_sq"].shape:
                raise ValueError("the optimizer's state is of another network")  # fused Adam would crash the process
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        numbers = (progress["processed"], checkpoint["lr_schedulers"][0]["last_epoch"], checkpoint["epoch"] + 1)
        if len(set(numbers)) > 1 or checkpoint["global_step"] < 1 or not checkpoint["pytorch-lightning_version"]:
            raise ValueError(f"its counts of epochs contradict each other: {numbers}")
        saved = checkpoint["dqn"][self.global_rank % len(checkpoint["dqn"])]  # to test, any process's will do
        self.buffer.load_state_dict(saved["buffer"])
        self.agent.load_state_dict(saved["agent"])
        self.episode_reward, self.total_reward, returns, self.solved_at = saved["score"]
        self.returns = deque(returns, maxlen=self.returns.maxlen)
        torch.set_rng_state(saved["torch_rng"])

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        """Seeds of the episodes to validate on, in one batch."""
        return DataLoader([torch.tensor(VAL_SEEDS)], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[torch.Tensor]:
        """Seeds of the episodes to test on, in one batch."""
        return DataLoader([torch.tensor(TEST_SEEDS)], batch_size=None)  # type: ignore[arg-type]

    def validation_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        """Play greedily; the mean return, `val_reward`, decides which checkpoint is the best."""
        mean = self.evaluate(seeds).mean()
        self.log("val_reward", mean)
        if self.solved_at is None and self.reward_threshold is not None and mean >= self.reward_threshold:
            self.solved_at = self.global_step

    def test_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        """Play greedily; `test_reward` is the mean return. `main` logs it, with the hyperparameters."""
        returns = self.evaluate(seeds)
        self.log_dict({"test_reward": returns.mean(), "test_reward_std": returns.std(correction=0)}, logger=False)

    def evaluate(self, seeds: torch.Tensor) -> torch.Tensor:
        """The return of a greedy episode for each seed, by rank, float32 (episodes,); the processes share them."""
        return torch.cat(gather(self.play_episodes(seeds[self.global_rank :: self.trainer.world_size])))

    @torch.inference_mode()
    def play_episodes(
        self, seeds: torch.Tensor, render_mode: str | None = None, watch: Callable[..., None] | None = None
    ) -> torch.Tensor:
        """Play a greedy episode for each seed, in lockstep, in environments apart from the agent's.

        Args:
            seeds: of the episodes' resets, int64 (episodes,)
            render_mode: gym's; "human" opens windows
            watch: called before each step with the first environment, the step, and its Q-values (n_actions,)

        Returns:
            the return of each episode, float32 (episodes,)
        """
        envs = [make_env(self.hparams.env, self.hparams.episode_length, render_mode) for _ in seeds]
        states = {i: env.reset(seed=seed)[0] for i, (env, seed) in enumerate(zip(envs, seeds.tolist()))}
        returns = [0.0] * len(envs)
        for step in range(1, 1 + (self.max_episode_steps or EVAL_STEPS)):
            if not states:
                break
            q_values = self.net(torch.as_tensor(np.stack(list(states.values())), device=self.device))
            if watch:
                watch(envs[0], step, q_values[0])
            for i, action in zip(list(states), q_values.argmax(1).tolist()):
                try:
                    states[i], reward, terminated, truncated, _ = envs[i].step(action)
                except Exception as error:
                    where = f"step {step} with seed {int(seeds[i])}"
                    raise RunError(f"the environment failed at {where}: {error!r}") from error
                returns[i] += float(reward)
                if terminated or truncated:
                    del states[i]  # its episode is over, the others play on
        for env in envs:
            env.close()
        return torch.tensor(returns)

    # What Lightning and PyTorch would do too, but slower: the three together take 13 % off a step.

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a minibatch to where the network is; it is made on the CPU."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of the last step."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, without `nn.Module`'s search for a weight where the value cannot be one.

        Lightning sets one before and after every hook, 46 times a step.
        """
        if name in self.__dict__ and (value is None or isinstance(value, str)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


RUN_SETTINGS = {
    "gpus": (int, 0, "GPUs to train on; 0 is the CPU, -1 all there are", [-1, 10**6]),
    "num_nodes": (int, 1, "machines to train on", [1, 10**6]),
    "num_processes": (int, 1, "processes to train in, on the CPU of each machine", [1, 10**6]),
    "max_epochs": (int, 1200, "epochs to train", [1, 10**9]),
    "seed": (int, 0, "decides everything that is random", [0, 2**32 - 1]),
    "val_check_interval": (int, 520, "steps between validations, in whole epochs", [1, 10**9]),
    "render": (bool, False, "show the trained agent playing, in a window", []),
    "video": (bool, False, "write agent.gif, the trained agent playing, beside the logs", []),
}


class Progress(Callback):
    """A line for every validation and, where there is a terminal, one bar for the whole run."""

    bar = tqdm(disable=True)  # until training starts, and in all processes but the first

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:  # type: ignore[override]
        self.bar = tqdm(
            total=(trainer.max_epochs or 0) * module.steps_per_epoch,
            initial=trainer.global_step,
            unit="step",
            bar_format="{n_fmt}/{total_fmt} {bar} {remaining} left, {rate_fmt}{postfix}",
            mininterval=0.3,  # seconds between two drawings
            miniters=1,
            dynamic_ncols=True,
            disable=None,  # where there is no terminal
        )

    def on_train_batch_end(self, trainer: pl.Trainer, module: DQNLightning, *_: Any) -> None:  # type: ignore[override]
        if self.bar.update():  # it was drawn, which happens three times a second; the next time will show this
            now = f"reward {module.total_reward:g}, avg {module.avg_reward:.1f}, epsilon {module.epsilon:.2f}"
            self.bar.set_postfix_str(now, refresh=False)

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reward = trainer.callback_metrics["val_reward"]
        self.bar.write(f"step {trainer.global_step:,}: val_reward {reward:.2f}", file=sys.stderr)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.bar.close()

    on_exception = on_train_end


class Checkpoints(ModelCheckpoint):
    """Writes `last.ckpt` too, every two seconds, or less often where that would take more than 4 % of the time.

    Between two epochs, where no sample is half used. Ctrl-C or SIGTERM end the run there.
    """

    write_at = 0.0  # by time.monotonic
    stopped_by = 0  # the signal that asked for it
    state_key = "Checkpoints"  # Lightning's own holds the validation interval: with another the best would be forgotten

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def stop(number: int, _: Any) -> None:
            self.stopped_by = number
            signal.signal(number, signal.SIG_DFL)  # a second time ends it at once
            if trainer.testing:  # nothing is left to be saved
                sys.exit(128 + number)

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)

    on_test_start = on_train_start

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Of checkpoints that are equally good keep the latest: it is from the lowest learning rate."""
        as_good = current is not None and current == self.best_model_score
        return as_good or super().check_monitor_top_k(trainer, current)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        begun = time.monotonic()
        due = begun >= self.write_at or trainer.current_epoch + 1 == trainer.max_epochs
        signals, dues = zip(*gather((self.stopped_by, due)))  # what one process is told to do, all do
        self.stopped_by = max(signals)
        trainer.should_stop |= self.stopped_by > 0
        if self.stopped_by or dues[0]:
            if trainer.logger:
                trainer.logger.save()  # the curves up to this step
            trainer.save_checkpoint(Path(self.dirpath or "", "last.ckpt"))
            now = time.monotonic()
            self.write_at = now + max(2.0, 25 * (now - begun))


class AtomicIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then moves it there: the one in place is always whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        partial = Path(f"{path}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            reason: BaseException = error
            while reason.__context__:  # under what torch says of it is what the system said
                reason = reason.__context__
            raise RunError(f"cannot write {path}: {reason}") from error


class NoProfiler(PassThroughProfiler):
    """Measures nothing. Nor does Lightning's own, but it makes a context manager for every hook: 5 % of a step."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


def film(model: DQNLightning) -> bytes:
    """An animated GIF of the first test episode with the Q-values drawn in, empty if `env` cannot be drawn."""
    frames: list[Image.Image] = []

    def shoot(env: gym.Env[Any, Any], step: int, q_values: torch.Tensor) -> None:
        if step % 2 and len(frames) < 500:
            frame = Image.fromarray(env.render())  # type: ignore[arg-type]
            frame.thumbnail((300, 300))
            frame = ImageOps.expand(frame, (0, 20, 0, 0), "white")
            text = f"episode {TEST_SEEDS[0]}, step {step}, Q {', '.join(f'{q:.1f}' for q in q_values)}"
            ImageDraw.Draw(frame).text((5, 3), text, fill="black", font_size=12)
            frames.append(frame.quantize(32))

    gif = io.BytesIO()
    try:
        model.play_episodes(torch.tensor(TEST_SEEDS[:1]), "rgb_array", shoot)
        pause = 2000 / (model.env.metadata.get("render_fps") or 30)  # milliseconds, for every other step is shown
        frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=pause, loop=0)
    except Exception as error:  # whatever keeps an environment from being drawn
        print(f"not filmed: {error}")
    return gif.getvalue()


def describe_run(logger: TensorBoardLogger, step: int) -> None:
    """Write what TensorBoard shows beside the curves: the command, the versions, which curves belong together."""
    versions = [f"{package.__name__} {package.__version__}" for package in (torch, pl, gym, np)]
    logger.experiment.add_text("command", shlex.join(["python", *sys.argv]), step)
    logger.experiment.add_text("versions", ", ".join(versions), step)
    charts = {
        "Is it learning?": {"return": ["Multiline", ["total_reward", "avg_reward", "val_reward"]]},
        "How?": {name: ["Multiline", [name]] for name in ("epsilon", "q_mean", "train_loss", "lr")},
    }
    logger.experiment.add_custom_scalars(charts)


def read_checkpoint(flag: str, path: Path) -> dict[str, Any]:
    """Load the checkpoint given with a flag, from whomever it comes: code that it may carry does not run."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get("hyper_parameters"), dict):
            return checkpoint
        problem = "not a checkpoint of this script"
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        problem = f"cannot be read ({error.strerror})"
    except pickle.UnpicklingError:
        problem = "no checkpoint, or one that carries code"
    except Exception:  # whatever a damaged file does to the reader
        problem = "damaged or cut short"
    raise UsageError(f"--{flag} {path}: {problem}; give a last.ckpt of lightning_logs/version_N/checkpoints")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is not given is not in the result. Exits with 2 if it cannot be read."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, usage=argparse.SUPPRESS, allow_abbrev=False)
    run, environment, dqn = map(parser.add_argument_group, ("run", "environment", "DQN"))
    for name, (kind, default, meaning, allowed) in (RUN_SETTINGS | hyperparameters()).items():
        group = run if name in RUN_SETTINGS else environment if name in ("env", "episode_length") else dqn
        choices = f", {' or '.join(allowed)}" if kind is str and allowed else ""
        group.add_argument(
            f"--{name}",
            default=argparse.SUPPRESS,
            help=f"{meaning}{choices} (default: {default})",
            **{"action": "store_true"} if kind is bool else {"type": kind, "metavar": kind.__name__.upper()},
        )
    which = run.add_mutually_exclusive_group()
    newest = "go on from this checkpoint (no value: the newest run's last.ckpt)"
    runs = sorted(Path("lightning_logs").glob("version_*/checkpoints/last.ckpt"), key=lambda last: last.stat().st_mtime)
    last = runs[-1] if runs else Path("lightning_logs", "version_0", "checkpoints", "last.ckpt")
    which.add_argument("--resume", metavar="CKPT", nargs="?", type=Path, const=last, help=newest)
    which.add_argument("--test", metavar="CKPT", type=Path, help="only test this checkpoint")
    return parser.parse_args(argv)


def read_settings(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by name, given or saved or default, and the checkpoint to resume or test, empty if there is none."""
    flag, path = ("test", args.test) if args.test else ("resume", args.resume)
    checkpoint = read_checkpoint(flag, path) if path else {}
    saved = checkpoint.get("hyper_parameters", {})
    given = {name: value for name, value in vars(args).items() if name not in ("resume", "test")}
    for name in given.keys() & saved.keys() - {"max_epochs", "val_check_interval"}:
        if given[name] != saved[name]:
            raise UsageError(f"--{name} {given[name]}: {path} was trained with {saved[name]}; leave it out")
    settings = {name: default for name, (_, default, _, _) in RUN_SETTINGS.items()} | saved | given
    check(RUN_SETTINGS, settings)
    gpus, visible = settings["gpus"], torch.cuda.device_count()
    if gpus > visible or (gpus and not visible):
        raise UsageError(f"--gpus {gpus}: the number of visible GPUs is {visible}; --gpus 0 is the CPU")
    settings["gpus"] = visible if gpus == -1 else gpus
    if settings["num_nodes"] > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise UsageError(f"--num_nodes {settings['num_nodes']}: start it on every machine, with torchrun or srun")
    if settings["gpus"] and settings["num_processes"] > 1:
        raise UsageError(f"--num_processes {settings['num_processes']}: is for the CPU; leave it or --gpus out")
    return settings, checkpoint


def make_model(settings: dict[str, Any], checkpoint: dict[str, Any], path: Path | None) -> DQNLightning:
    """The agent that the settings describe, as it is at the start, or as the checkpoint at `path` has it."""
    pl.seed_everything(settings["seed"], verbose=False)
    try:
        model = DQNLightning(**{name: settings[name] for name in hyperparameters() if name in settings})
        if checkpoint:
            model.load_state_dict(checkpoint["state_dict"])
            model.on_load_checkpoint(checkpoint)
    except Exception as error:  # whatever an ill-fitting checkpoint does to the loader
        if isinstance(error, UsageError) or not checkpoint:
            raise
        raise UsageError(f"{path}: does not fit {settings.get('env')}: {' '.join(repr(error).split())}") from None
    for flag, mode in (("render", "human"), ("video", "rgb_array")):
        if settings[flag]:
            try:
                make_env(model.hparams.env, render_mode=mode).close()
            except UsageError as error:
                raise UsageError(f"--{flag}: leave it out; {error}") from None
    model.save_hyperparameters({name: settings[name] for name in ("seed", "max_epochs", "val_check_interval")})
    return model


def make_trainer(settings: dict[str, Any], model: DQNLightning, logger: TensorBoardLogger | None) -> pl.Trainer:
    """A Trainer that validates and checkpoints between epochs."""
    # What Lightning would say of choices made on purpose: no workers, because the replay buffer lives in this
    # process; the CPU as default; a resumed run in its own folder, or a checkpoint that was copied elsewhere.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    said = "many workers|sync_dist|GPU available but not used|exists and is not empty|The dirpath has changed|LeafSpec"
    warnings.filterwarnings("ignore", f".*({said})")
    if model.hparams.batch_size * model.hparams.hidden_size < 2**16:
        os.environ["OMP_NUM_THREADS"] = "1"  # more would wait for each other longer than they compute
        torch.set_num_threads(1)
    val_epochs = min(settings["max_epochs"], -(-settings["val_check_interval"] // model.steps_per_epoch))
    devices = settings["gpus"] or settings["num_processes"]
    between: Any = {"every_n_epochs": val_epochs, "save_on_train_epoch_end": True, "enable_version_counter": False}
    return pl.Trainer(
        accelerator="gpu" if settings["gpus"] else "cpu",
        devices=devices,
        num_nodes=settings["num_nodes"],
        strategy="ddp" if devices * settings["num_nodes"] > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=settings["max_epochs"],
        check_val_every_n_epoch=val_epochs,
        num_sanity_val_steps=0,
        gradient_clip_val=model.hparams.grad_clip,
        logger=logger or False,
        callbacks=[Progress(), Checkpoints(filename="best", monitor="val_reward", mode="max", **between)],
        plugins=[AtomicIO()],
        profiler=NoProfiler(),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(model: DQNLightning, trainer: pl.Trainer, path: Path | None, resume: list[str]) -> Path:
    """Train, from the checkpoint at `path` if there is one, and say what came of it.

    Args:
        resume: the command to go on with, but for the checkpoint

    Returns:
        path of the best checkpoint
    """
    checkpoints: Any = trainer.checkpoint_callback
    try:
        trainer.fit(model, ckpt_path=path, weights_only=True)
    except RuntimeError as error:
        if isinstance(error, RunError) and trainer.strategy.launcher:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the other processes: on GPUs they would wait for this one
        last = Path(checkpoints.dirpath or "", "last.ckpt")
        go_on = shlex.join([*resume, str(last)])
        hint = f"; to go on from the last checkpoint: {go_on}" if last.exists() else ""
        if isinstance(error, RunError) and error.__cause__:  # without a cause it would only fail again
            raise RunError(f"{error}{hint}") from error.__cause__
        if trainer.world_size > 1 and not isinstance(error, RunError):
            raise RunError(f"this process failed, or lost another one{hint}") from error
        raise
    last = Path(checkpoints.dirpath, "last.ckpt")
    if checkpoints.stopped_by:
        say(f"stopped at step {trainer.global_step:,}; to go on:\n{shlex.join([*resume, str(last)])}")
        # Where one process fails Lightning kills the first, so only that may say how the run ended.
        sys.exit(128 + checkpoints.stopped_by if trainer.is_global_zero else 0)
    if checkpoints.best_model_score is not None:
        solved = "not solved" if model.solved_at is None else f"solved at step {model.solved_at:,}"
        threshold = "" if model.reward_threshold is None else f"{solved} (val_reward {model.reward_threshold:g}); "
        say(f"{threshold}best val_reward: {checkpoints.best_model_score:.2f}")
    best = last.with_name("best.ckpt")
    return best if best.exists() else last  # a run resumed shortly before its end may have none in this folder


def main(args: argparse.Namespace) -> None:
    """Train, and test the best checkpoint; or only test the checkpoint `args.test`.

    Raises:
        UsageError: `args` cannot work; nothing was written
        RunError: the run cannot go on; its last checkpoint is in place
        SystemExit: Ctrl-C or SIGTERM stopped the run, after a checkpoint
    """
    settings, checkpoint = read_settings(args)
    path = args.resume or args.test
    model = make_model(settings, checkpoint, path)
    if args.resume and settings["max_epochs"] <= checkpoint["epoch"]:
        raise UsageError(f"--max_epochs {settings['max_epochs']}: {path} has trained {checkpoint['epoch'] + 1} already")
    run = path.resolve().parent.parent if path else Path()
    logger = TensorBoardLogger(
        ".",
        "lightning_logs",
        version=run.name if run.parent == Path("lightning_logs").resolve() else None,  # a resumed run's own folder
        default_hp_metric=False,
        flush_secs=5,
        purge_step=checkpoint.get("global_step"),  # what a killed run logged after its last checkpoint comes again
    )
    trainer = make_trainer(settings, model, None if args.test else logger)
    if args.resume and (needed := len(checkpoint["dqn"])) != trainer.world_size:
        raise UsageError(f"--resume {path}: has to go on in {needed} processes, as before, not in {trainer.world_size}")
    if not args.test:
        weights = sum(weight.numel() for weight in model.net.parameters())
        number, device = trainer.world_size, trainer.strategy.root_device.type
        devices = f"{number} x {device}" if number > 1 else device
        where = f"{model.hparams.env} on {devices}, network of {weights:,} weights"
        length = f"{settings['max_epochs']:,} epochs of {model.steps_per_epoch} steps"
        say(f"{where}: {length}, logged in {Path(logger.log_dir)}", flush=True)
        describe_run(logger, checkpoint.get("global_step", 0))
    changed = [name for name in ("gpus", "num_nodes", "num_processes") if settings[name] != RUN_SETTINGS[name][1]]
    resume = ["python", sys.argv[0], *[f"--{name}={settings[name]}" for name in changed], "--resume"]
    best = args.test or fit(model, trainer, path, resume)
    trainer.test(model, ckpt_path=best, verbose=False, weights_only=True)
    if not trainer.is_global_zero:
        return
    mean, std = (trainer.callback_metrics[name].item() for name in ("test_reward", "test_reward_std"))
    if not args.test:
        logger.log_hyperparams(model.hparams, {"test_reward": mean}, trainer.global_step)  # for the HParams tab
    if not settings["render"]:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # a film alone needs no display
    gif = film(model) if settings["video"] or not args.test else b""
    if gif and settings["video"]:
        video = Path(logger.log_dir, "agent.gif")
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(gif)
        print(f"the agent playing: {video}")
    if not args.test:
        if gif:
            image = Summary.Value(tag="agent", image=Summary.Image(encoded_image_string=gif))
            logger.experiment.file_writer.add_summary(Summary(value=[image]), trainer.global_step)
        logger.finalize("success")
    print(f"test_reward: {mean:.2f} +/- {std:.2f} over {len(TEST_SEEDS)} episodes")
    print("tensorboard --logdir lightning_logs")
    print(shlex.join(["python", sys.argv[0], "--test", str(best)]), flush=True)
    if settings["render"]:
        model.play_episodes(torch.tensor(TEST_SEEDS[:1]), "human")


if __name__ == "__main__":
    gc.freeze()  # what was imported is not searched later either
    gc.enable()
    try:
        main(parse_args())
    except KeyboardInterrupt:  # before training began
        sys.exit(130)
    except SystemExit as ended:  # Lightning, interrupted while it sets up, exits with 1
        sys.exit(130 if isinstance(ended.__context__, KeyboardInterrupt) else ended.code)
    except (UsageError, RunError) as error:
        if error.__cause__:
            traceback.print_exception(error.__cause__)
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
