"""Train a Deep Q-Network (DQN) on CartPole with PyTorch Lightning.

    pip install -r requirements.txt
    python dqn_cartpole.py                    # on the CPU; with --gpus 1 on a GPU
    tensorboard --logdir lightning_logs       # watch it learn
    python dqn_cartpole.py --resume           # go on after Ctrl-C, a crash or a kill, as if nothing had happened
    python dqn_cartpole.py --help             # every setting and its default

Part 1 is DQN, in the order of Donal Byrne's article (2020): model, replay buffer, dataset, agent, Lightning module.
The algorithm is from Mnih et al., "Human-level control through deep reinforcement learning", Nature 518 (2015).
Part 2 is the run: progress bar, checkpoints, film, command line, main.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import inspect
import io
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__" and "ipykernel" not in sys.modules:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once, until there is something to save

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from lightning_utilities import apply_to_collection
from PIL import Image, ImageDraw, ImageOps
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.tensorboard.summary import Summary, hparams
from tqdm.auto import tqdm

try:
    import gymnasium as gym
except ModuleNotFoundError:  # gym 0.26, the last release before Gymnasium took over, has the same interface
    import gym

# Validation and test play the same episodes every time, so that checkpoints compare; training plays others.
VAL_SEEDS, TEST_SEEDS, TRAIN_SEEDS = range(20), range(1000, 1100), range(2000, 2**31)
EVAL_STEPS = 1000  # cut a validation or test episode where the environment itself never does
LOG_EVERY = 50  # steps between two points of a curve that changes with every step


# ---------------------------------------------------------------------------------------------------------------------
# Part 1: DQN


class DQN(nn.Module):
    """Multilayer perceptron that estimates the Q-value of every action in a state (article, "Model").

    The return is the sum of the rewards to come; a reward k steps ahead is multiplied by gamma^k. The Q-value of an
    action is the return to expect after it, if the best actions follow. To play well, take that of highest Q-value.

    Args:
        obs_size: numbers in one observation
        n_actions: discrete actions in the environment
        hidden_size: units in a hidden layer
        hidden_layers: hidden layers; the article's network has one
    """

    def __init__(self, obs_size: int, n_actions: int, hidden_size: int = 128, hidden_layers: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = obs_size
        for _ in range(hidden_layers):
            layers += [nn.Linear(size, hidden_size), nn.ReLU()]
            size = hidden_size
        self.net = nn.Sequential(*layers, nn.Linear(size, n_actions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x`, any dtype (batch, *observation shape)."""
        return self.net(x.flatten(1).float())


# One step in the environment; `NStepBuffer` (part 2) makes n of it. `done` means terminated: the pole fell, and no
# reward can follow. An episode that only ran out of time would have gone on, so its last step is not done.
Experience = namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])


class ReplayBuffer:
    """The last `capacity` experiences, to be sampled uniformly (article, "Replay buffer"; Lin 1992).

    Args:
        capacity: experiences kept; a new one then takes the place of the oldest
        seed: of the buffer's own generator, which draws the samples
    """

    def __init__(self, capacity: int, seed: int | None = None) -> None:
        self.capacity = capacity
        self.appended = 0  # experiences so far, those included that were overwritten since
        self.arrays: Experience | None = None  # one for each field, made when the shape of a state is known
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.appended, self.capacity)

    def allocate(self, state: np.ndarray) -> Experience:
        """Empty arrays for `capacity` experiences with states like `state`. A new field needs a line here."""
        return Experience(
            state=np.empty((self.capacity, *state.shape), state.dtype),
            action=np.empty(self.capacity, np.int64),
            reward=np.empty(self.capacity, np.float32),
            done=np.empty(self.capacity, np.bool_),
            new_state=np.empty((self.capacity, *state.shape), state.dtype),
        )

    def append(self, experience: Experience) -> None:
        """Store an experience in the place of the oldest."""
        if self.arrays is None:
            self.arrays = self.allocate(experience.state)
        place = self.appended % self.capacity
        for array, value in zip(self.arrays, experience):
            array[place] = value
        self.appended += 1

    def begin_episode(self) -> None:
        """Called before an episode begins. It matters to `NStepBuffer`, which must not add up rewards of two."""

    def sample(self, batch_size: int) -> Experience:
        """Draw uniformly, without replacement, an array for each field; ValueError where the buffer holds too few.

        They are states (batch_size, *state shape), actions int64, rewards float32, dones bool, and new_states.
        """
        if batch_size > len(self):
            raise ValueError(f"cannot sample {batch_size} experiences: the buffer holds {len(self)}")
        rows = self.rng.choice(len(self), batch_size, replace=False)
        return Experience(*(array[rows] for array in self.arrays))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the buffer. State that you add goes here and into `load_state_dict`."""
        arrays = [array[: len(self)] for array in self.arrays or ()]
        return {"arrays": arrays, "appended": self.appended, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the buffer of `state` stood."""
        self.appended, self.rng.bit_generator.state = state["appended"], state["rng"]
        if self.arrays is None and len(self):
            self.arrays = self.allocate(state["arrays"][0][0])
        for array, saved in zip(self.arrays or (), state["arrays"], strict=True):
            array[: len(self)] = saved


class RLDataset(IterableDataset):
    """Each pass over this dataset is a new sample of the replay buffer (article, "Dataset").

    Args:
        buffer: replay buffer, as it is when the pass begins
        sample_size: experiences in one pass
        batch_size: yield minibatches of this size, as tensors; None yields the experiences one by one
    """

    def __init__(self, buffer: ReplayBuffer, sample_size: int = 200, batch_size: int | None = None) -> None:
        self.buffer = buffer
        self.sample_size = sample_size
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(self.sample_size / (self.batch_size or 1))

    def __iter__(self) -> Iterator[Experience]:
        sample = self.buffer.sample(self.sample_size)
        if self.batch_size is None:
            for row in range(self.sample_size):
                yield Experience(*(array[row] for array in sample))
            return
        tensors = [torch.from_numpy(array) for array in sample]
        for start in range(0, self.sample_size, self.batch_size):
            yield Experience(*(tensor[start : start + self.batch_size] for tensor in tensors))


class Agent:
    """Plays in the environment and remembers what happened (article, "Agent").

    Args:
        env: environment with a `Discrete` action space
        replay_buffer: where the experiences go
        seed: of the agent's own generator, which explores and chooses each episode's seed
    """

    def __init__(self, env: gym.Env, replay_buffer: ReplayBuffer, seed: int | None = None) -> None:
        self.env = env
        self.replay_buffer = replay_buffer
        self.rng = np.random.default_rng(seed)
        self.seeds = TRAIN_SEEDS
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin the episode of `seed`, by default a random one; its first observation becomes `state`."""
        self.episode_seed = self.seeds[self.rng.integers(len(self.seeds))] if seed is None else seed
        self.actions: list[int] = []  # with the seed they are enough to play the episode again, after a resume
        self.replay_buffer.begin_episode()
        observation, _ = self.env.reset(seed=self.episode_seed)
        self.state = copy_observation(observation, self.env)

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        """Choose an action epsilon-greedily: with probability `epsilon` any, else that of highest Q-value.

        `net`, which is on `device`, maps observations (1, *state shape) to Q-values (1, n_actions).
        """
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.env.action_space.n))
        state = torch.as_tensor(self.state, device=device).unsqueeze(0)
        return int(net(state).argmax())

    @torch.inference_mode()
    def play_step(self, net: nn.Module, epsilon: float = 0.0, device: torch.device | str = "cpu") -> tuple[float, bool]:
        """Take one step in the environment and store it; return its reward, and whether the episode is over."""
        return self.take(self.get_action(net, epsilon, device))

    def take(self, action: int) -> tuple[float, bool]:
        """The rest of `play_step`, once the action is chosen; if it ends the episode, the next one begins."""
        self.actions.append(action)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        new_state = copy_observation(observation, self.env)
        # A time limit ends the episode, but not what the agent could still have earned. So the buffer is told only
        # `terminated`, and the target still includes the value of the last state (Pardo et al. 2018).
        self.replay_buffer.append(Experience(self.state, action, float(reward), terminated, new_state))
        self.state = new_state
        episode_over = bool(terminated or truncated)
        if episode_over:
            self.reset()
        return float(reward), episode_over

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the agent. State that you add goes here and into `load_state_dict`."""
        return {"rng": self.rng.bit_generator.state, "seed": self.episode_seed, "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the agent of `state` stood: play its episode again up to there. The buffer is restored later."""
        self.reset(state["seed"])
        for action in state["actions"]:
            self.take(action)
        self.rng.bit_generator.state = state["rng"]


def make_env(env: str, episode_length: int | None = None, render_mode: str | None = None) -> gym.Env:
    """The environment with id `env`, its episodes cut after `episode_length` steps, its observations arrays."""
    drawn = {} if render_mode is None else {"render_mode": render_mode}  # not every environment knows the word
    try:
        made = gym.make(env, max_episode_steps=episode_length, disable_env_checker=True, **drawn)
        # Arrays keep their shape; what is not an array (Discrete, Tuple and Dict spaces) becomes one.
        made = made if made.observation_space.shape else gym.wrappers.FlattenObservation(made)
    except NotImplementedError:
        raise UsageError(f"--env {env}: an observation does not become an array; give it a wrapper that does") from None
    except (gym.error.Error, ImportError) as error:  # there is no such environment, or its package is missing
        hint = " (--env package:Name-v0 imports it)" if isinstance(error, gym.error.NamespaceNotFound) else ""
        raise UsageError(f"--env {env}: {one_line(error)}{hint}") from None
    if not isinstance(made.action_space, gym.spaces.Discrete) or made.action_space.start != 0:
        raise UsageError(f"--env {env}: DQN needs a Discrete action space from 0, not {made.action_space}")
    return made


def copy_observation(observation: Any, env: gym.Env) -> np.ndarray:
    """A copy, for an environment may change its array later; in the dtype of its space, float64 as float32."""
    dtype = env.observation_space.dtype
    return np.array(observation, np.float32 if dtype == np.float64 else dtype)


class DQNLightning(pl.LightningModule):
    """The DQN algorithm as a LightningModule: plays, learns, validates (article, "Lightning module").

    An epoch is one sample of the replay buffer, learned from in minibatches. With each the agent also takes a step.

    Args, each of which is a flag of the command line too:
        env: id of the environment
        episode_length: steps that cut an episode; None: env's own
        batch_size: experiences in a minibatch
        lr: learning rate
        gamma: discount of the return
        sync_rate: steps between copies to the target network
        tau: share of the network that is blended into the target network at every step; 1: copies, every sync_rate
        replay_size: capacity of the replay buffer
        warm_start_steps: random steps before training
        sample_size: experiences in an epoch, drawn at its start
        eps_start: epsilon, the share of random actions, at the first step
        eps_end: epsilon from eps_last_frame on
        eps_last_frame: steps over which epsilon changes linearly
        hidden_size: units in a hidden layer
        hidden_layers: hidden layers
        lr_schedule: how lr changes over the run
        n_step: steps of rewards that are counted before the target network estimates the rest
        double_dqn: let the online network choose the next action (van Hasselt et al. 2016)
        clip_error: errors beyond it count linearly (Mnih et al. 2015: 1); None: squared errors, as in the article
        grad_clip: greatest norm of the gradient; None: any
    """

    def __init__(
        self,
        env: str = "CartPole-v0",
        episode_length: int | None = None,
        batch_size: int = 16,
        lr: float = 5e-3,
        gamma: float = 0.99,
        sync_rate: int = 10,
        tau: float = 1.0,
        replay_size: int = 5000,
        warm_start_steps: int = 1000,
        sample_size: int = 200,
        eps_start: float = 0.7,
        eps_end: float = 0.02,  # so few random actions that an episode can reach the full 200
        eps_last_frame: int = 15600,  # the whole run: 1,200 epochs of 13 minibatches
        hidden_size: int = 128,
        hidden_layers: int = 1,
        lr_schedule: str = "cosine",
        n_step: int = 5,
        double_dqn: bool = False,
        clip_error: float | None = None,
        grad_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not batch_size <= sample_size <= min(warm_start_steps, replay_size):
            most = f"at most --warm_start_steps ({warm_start_steps}) and --replay_size ({replay_size})"
            raise UsageError(f"--sample_size {sample_size}: must be at least --batch_size ({batch_size}), {most}")
        self.steps_per_epoch = math.ceil(sample_size / batch_size)  # with each goes a step in the environment
        self.env = make_env(env, episode_length)

        buffer_seed, agent_seed = int(torch.randint(2**62, ())), int(torch.randint(2**62, ()))
        self.buffer = ReplayBuffer(replay_size, buffer_seed)
        if n_step > 1:
            self.buffer = NStepBuffer(replay_size, n_step, gamma, buffer_seed)
        self.agent = Agent(self.env, self.buffer, agent_seed)

        obs_size, n_actions = math.prod(self.env.observation_space.shape), int(self.env.action_space.n)
        self.net = DQN(obs_size, n_actions, hidden_size, hidden_layers)
        self.target_net = DQN(obs_size, n_actions, hidden_size, hidden_layers).requires_grad_(False)
        self.target_net.load_state_dict(self.net.state_dict())

        # State that you add here goes into `Checkpoints.on_save_checkpoint` and `on_load_checkpoint` too.
        self.episode_reward = 0.0  # sum of the rewards of the running episode, without discount
        self.returns: deque[float] = deque(maxlen=100)  # the same of the last finished episodes

    def on_fit_start(self) -> None:
        """Before training, play at random until there is something to learn from; a resumed run has that already."""
        if len(self.buffer) == 0:
            self.populate(self.hparams.warm_start_steps)

    def populate(self, steps: int = 1000) -> None:
        """Fill the replay buffer with `steps` random steps, then begin the first episode of training."""
        for _ in range(steps):
            self.agent.play_step(self.net, epsilon=1.0)
        self.agent.reset()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x` (batch, *observation shape)."""
        return self.net(x)

    def training_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One step of DQN (Mnih et al. 2015, algorithm 1). Lightning then does the backward pass and Adam's step."""
        reward, episode_over = self.agent.play_step(self.net, self.epsilon, self.device)
        loss = self.dqn_mse_loss(batch)
        self.sync_target()
        self.log_step(reward, episode_over, loss, batch)
        return loss

    @property
    def epsilon(self) -> float:
        """Probability of a random action at this step."""
        progress = min(1.0, self.global_step / self.hparams.eps_last_frame)
        return self.hparams.eps_start + progress * (self.hparams.eps_end - self.hparams.eps_start)

    def dqn_mse_loss(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean squared error between Q(s, a) and its target r + gamma * max_a' Q_target(s', a').

        The target comes from a second network, a copy that lags behind. Otherwise each update would move its own
        target, and the network would chase itself.

        With `n_step` above 1, r is the discounted sum of n rewards, s' is n steps later, and gamma becomes gamma^n.
        """
        states, actions, rewards, dones, new_states = batch
        q_values = self.net(states).gather(1, actions.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            next_q_values = self.target_net(new_states)
            next_values = next_q_values.amax(1)
            if self.hparams.double_dqn:
                next_actions = self.net(new_states).argmax(1, keepdim=True)
                next_values = next_q_values.gather(1, next_actions).squeeze(1)
            next_values = next_values.masked_fill(dones, 0.0)  # after the end there is nothing to earn
            targets = rewards + self.hparams.gamma**self.hparams.n_step * next_values
        if self.hparams.clip_error is not None:
            return nn.functional.huber_loss(q_values, targets, delta=self.hparams.clip_error)
        return nn.functional.mse_loss(q_values, targets)

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copy the weights to the target network every `sync_rate` steps; with `tau` below 1, blend at each."""
        if self.hparams.tau < 1:
            for target, weight in zip(self.target_net.parameters(), self.net.parameters()):
                target.lerp_(weight, self.hparams.tau)
        elif self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())

    def log_step(self, reward: float, episode_over: bool, loss: torch.Tensor, batch: Sequence[torch.Tensor]) -> None:
        """Log the return of an episode that ends and, every `LOG_EVERY` steps, what changes with every step."""
        scalars: dict[str, float] = {}
        self.episode_reward += reward
        if episode_over:
            self.returns.append(self.episode_reward)
            scalars |= {"total_reward": self.episode_reward, "avg_reward": self.avg_reward}
            self.episode_reward = 0.0
        if self.global_step % LOG_EVERY == 0:
            q_mean = self.net(batch[0]).amax(1).mean().item()
            scalars |= {"reward": reward, "train_loss": loss.item(), "epsilon": self.epsilon, "q_mean": q_mean}
            scalars["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if scalars and self.logger:
            self.logger.log_metrics(scalars, step=self.global_step)

    @property
    def avg_reward(self) -> float:
        """Mean return of the last 100 episodes, 0 before the first has ended."""
        return sum(self.returns) / max(1, len(self.returns))

    def configure_optimizers(self) -> Any:
        """Adam, with a learning rate that is set anew at every epoch."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr, fused=True)  # fused is faster
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)]

    def lr_factor(self, epoch: int) -> float:
        """Factor on `lr`: from 1 at the start of the run to 0 at its end, unless it is constant."""
        progress = min(1.0, self.global_step / self.trainer.estimated_stepping_batches)  # of the whole run
        factors = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return factors[self.hparams.lr_schedule]

    def train_dataloader(self) -> DataLoader:
        """One sample of the replay buffer, in minibatches: what is played now can be drawn for the next epoch."""
        dataset = RLDataset(self.buffer, self.hparams.sample_size, self.hparams.batch_size)
        return DataLoader(dataset, batch_size=None)  # the dataset makes the minibatches

    def val_dataloader(self) -> DataLoader:
        return DataLoader(VAL_SEEDS, batch_size=len(VAL_SEEDS))  # the seeds of the episodes to play

    def test_dataloader(self) -> DataLoader:
        return DataLoader(TEST_SEEDS, batch_size=len(TEST_SEEDS))

    def validation_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        """Play greedily; the mean return, `val_reward`, decides which checkpoint is the best."""
        self.log("val_reward", self.play_episodes(seeds).mean())

    def test_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        """Play greedily; `test_reward` is the mean return, `test_reward_std` its standard deviation."""
        returns = self.play_episodes(seeds)
        self.log_dict({"test_reward": returns.mean(), "test_reward_std": returns.std(correction=0)})

    @torch.inference_mode()
    def play_episodes(self, seeds: torch.Tensor) -> torch.Tensor:
        """The return of a greedy episode for each seed, float32 (episodes,), all played side by side."""
        envs = gym.vector.SyncVectorEnv([lambda: make_env(self.hparams.env, self.hparams.episode_length)] * len(seeds))
        states, _ = envs.reset(seed=seeds.tolist())
        returns, playing = np.zeros(len(seeds), np.float32), np.ones(len(seeds), bool)
        for _ in range(self.env.spec.max_episode_steps or EVAL_STEPS):
            actions = self.net(torch.as_tensor(copy_observation(states, self.env), device=self.device)).argmax(1)
            states, rewards, terminated, truncated, _ = envs.step(actions.cpu().numpy())
            returns[playing] += rewards[playing]
            playing &= ~(terminated | truncated)  # gym begins another episode then, which does not count
            if not playing.any():
                break
        envs.close()
        return torch.from_numpy(returns)


# ---------------------------------------------------------------------------------------------------------------------
# Part 2: the run


NOTEBOOK = "ipykernel" in sys.modules


class UsageError(ValueError):
    """Input that cannot work; the message is one line that names the flag, its value and the remedy."""


class NStepBuffer(ReplayBuffer):
    """A replay buffer whose experiences span n steps: what is learned of a reward reaches earlier actions sooner.

    An experience holds the state and the action of n steps ago, the discounted sum of the n rewards since, and the
    newest state (Sutton 1988; Hessel et al. 2018). A checkpoint leaves out the steps that wait: a resumed agent plays
    its episode again, which brings them back.
    """

    def __init__(self, capacity: int, n_step: int, gamma: float, seed: int | None = None) -> None:
        super().__init__(capacity, seed)
        self.n_step, self.gamma = n_step, gamma
        self.waiting: list[Experience] = []  # the last steps of this episode

    def append(self, experience: Experience) -> None:
        """Store the oldest step that waits, once there are n; at a termination store all, for no reward can follow."""
        self.waiting.append(experience)
        while len(self.waiting) == self.n_step or (experience.done and self.waiting):
            reward = sum(self.gamma**age * step.reward for age, step in enumerate(self.waiting))
            oldest = self.waiting.pop(0)
            super().append(oldest._replace(reward=reward, done=experience.done, new_state=experience.new_state))

    def begin_episode(self) -> None:
        """Drop the steps that wait: a time limit cut their episode, and the rewards that they miss are unknown."""
        self.waiting.clear()


class FastDQN(DQNLightning):
    """The same agent without what Lightning does around every step for models that may need it."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:  # saves 4 % of a step
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def __setattr__(self, name: str, value: Any) -> None:  # 8 %: Lightning notes the name of every hook
        if name in self.__dict__ and (value is None or isinstance(value, str)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class NoProfiler(pl.profilers.PassThroughProfiler):  # 5 %: Lightning's idle one makes a context manager for every hook
    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


class Progress(pl.Callback):
    """Tells of the training: how it begins, every validation, and a bar for the whole run where somebody can see it."""

    bar = tqdm(disable=True)  # until training starts, and in all processes but the first

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        begun, steps = trainer.global_step, trainer.max_epochs * module.steps_per_epoch
        run = f"{module.hparams.env}, seed {module.hparams.get('seed')}, on {trainer.world_size} x {module.device.type}"
        length = f"{trainer.max_epochs:,} epochs of {module.steps_per_epoch} steps"
        since = f" from step {begun:,}" if begun else ""
        say(f"{run}: {length}{since}, logged in {Path(trainer.logger.log_dir)}")
        size = sum(array.nbytes for array in module.buffer.arrays)
        if size > 10**9:
            say(f"the replay buffer takes {size / 10**9:.1f} GB of memory and of last.ckpt; --replay_size sets it")
        pixels, layers = module.agent.state.size, module.net.modules()
        if pixels > 10_000 and any(isinstance(layer, nn.Linear) and layer.in_features == pixels for layer in layers):
            say(f"{pixels:,} numbers in an observation: the README has a better network for pixels")
        hidden = False if NOTEBOOK else None  # None: where there is no terminal
        self.bar = tqdm(total=steps, initial=begun, unit="step", mininterval=0.3, dynamic_ncols=True, disable=hidden)

    def on_train_batch_end(self, trainer: pl.Trainer, module: DQNLightning, *_: Any) -> None:
        if self.bar.update():  # True where the bar was just drawn; the text shows at the next time
            self.bar.set_postfix_str(f"avg {module.avg_reward:.1f}, epsilon {module.epsilon:.2f}", refresh=False)

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        reward, threshold = trainer.callback_metrics["val_reward"], module.env.spec.reward_threshold
        solved = " (solved)" if threshold is not None and reward >= threshold else ""
        self.bar.write(f"step {trainer.global_step:,}: val_reward {reward:.2f}{solved}", file=sys.stderr)

    def on_train_end(self, *_: Any) -> None:
        self.bar.close()

    on_exception = on_train_end


class RunFolder(pl.Callback):
    """Gives the run its folder and its logger when training begins, so that a run that fails before leaves no folder.

    The folder is a new lightning_logs/version_N, or that of the checkpoint `resume`. It stays locked while training.
    """

    def __init__(self, resume: Path | None = None) -> None:
        folder = resume.resolve().parent.parent if resume else Path()
        ours = folder.parent == Path("lightning_logs").resolve()
        self.version = folder.name if ours else None  # what comes from elsewhere goes on in a new one
        self.locked = contextlib.ExitStack()

    def on_train_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        asked, held = module.hparams, len(module.buffer)
        if held < asked.sample_size:  # a time limit cuts episodes before they have n_step rewards
            few = f"with --n_step {asked.n_step} makes {held} experiences, fewer than --sample_size {asked.sample_size}"
            raise UsageError(f"--warm_start_steps {asked.warm_start_steps}: {few}; give more")
        again = trainer.global_step or None  # curves from this step on are dropped, and logged again
        logger = TensorBoardLogger(".", version=self.version, default_hp_metric=False, flush_secs=5, purge_step=again)
        trainer.logger = logger
        self.claim(logger)
        logger.log_hyperparams(asked)
        logger.save()

    def on_fit_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        if not trainer.logger:  # a finished run was resumed: on_train_start was not called
            self.on_train_start(trainer, module)

    @rank_zero_only
    def claim(self, logger: TensorBoardLogger) -> None:
        logs = Path("lightning_logs")
        try:
            logs.mkdir(exist_ok=True)
            with FileLock(logs / ".lock", timeout=10):  # so that each of two runs that start together has its own
                logs = Path(logger.log_dir)
                logs.mkdir(exist_ok=True)
                self.locked.enter_context(FileLock(logs / ".lock", timeout=0))  # of a dead process it is free
        except Timeout:
            raise UsageError(f"{logs}: is locked by a run that still goes; stop that first") from None
        except OSError as error:
            raise UsageError(f"{logs}: cannot be written in this folder ({error.strerror})") from None

    def teardown(self, *_: Any, **__: Any) -> None:
        self.locked.close()

    on_exception = teardown


class Checkpoints(pl.callbacks.Checkpoint):
    """Writes best.ckpt, the weights of the best validation, and last.ckpt, from which a run goes on exactly.

    Always between two epochs, where no sample is half used: last.ckpt every two seconds (less often where that would
    take more than 4 % of the time), at the end, and at Ctrl-C or SIGTERM, which end the run there.
    """

    best_reward = -math.inf  # highest val_reward so far
    stopped_by: int | None = None  # the signal that asked for it
    folder: Path  # known when training begins
    next_write = 0.0  # by time.monotonic

    def setup(self, trainer: pl.Trainer, module: DQNLightning, stage: str) -> None:
        """Where several processes train one network, let each play other episodes and explore in its own way."""
        if stage == "fit" and trainer.world_size > 1:
            for part in (module.agent, module.buffer):
                part.rng = part.rng.spawn(trainer.world_size)[trainer.global_rank]
            module.agent.seeds = TRAIN_SEEDS[trainer.global_rank :: trainer.world_size]
            module.agent.reset()

    def on_train_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        self.folder = Path(trainer.log_dir or trainer.default_root_dir, "checkpoints")
        if trainer.is_global_zero:
            for partial in self.folder.glob("*.ckpt.*.partial"):
                partial.unlink()  # whoever wrote it was killed
        if not Path(self.folder, "best.ckpt").exists():  # it goes on in a new folder
            self.best_reward = -math.inf
        self.answer_signals(self.stop)

    def on_test_start(self, *_: Any) -> None:
        self.answer_signals(lambda signum, _: sys.exit(128 + signum))  # at once: nothing is left to be saved

    def answer_signals(self, answer: Any) -> None:
        with contextlib.suppress(ValueError):  # only the main thread may ask for signals
            signal.signal(signal.SIGINT, answer)
            signal.signal(signal.SIGTERM, answer)

    def stop(self, signum: int, _: Any) -> None:
        """Note a signal: the run ends after this epoch. A second one ends the process at once."""
        self.stopped_by = signum
        self.answer_signals(signal.SIG_DFL)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        names: list[str] = []
        reward = trainer.callback_metrics.get("val_reward", torch.tensor(0.0))
        moments = [moment for state in trainer.optimizers[0].state.values() for moment in state.values()]
        if not all(tensor.isfinite().all() for tensor in (reward, *module.net.parameters(), *moments)):
            where = f"val_reward, a weight or its gradient is not finite at step {trainer.global_step}"
            raise FloatingPointError(f"{where}; try a lower --lr, or --grad_clip 10")
        validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if validated and reward >= self.best_reward:  # >=: of equals the latest
            self.best_reward = reward.item()
            names.append("best.ckpt")
        stop = self.told_to_stop(trainer)
        if stop:
            trainer.should_stop = True
        if stop or trainer.current_epoch + 1 == trainer.max_epochs or time.monotonic() >= self.next_write:
            names.append("last.ckpt")
        for name in trainer.strategy.broadcast(names):  # what the first process decides, all do
            self.save(trainer, name)

    def on_train_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        self.told_to_stop(trainer)  # while the last checkpoint was written

    def told_to_stop(self, trainer: pl.Trainer) -> bool:
        """Whether a signal has come, to this process or to another: all have to answer alike."""
        told = trainer.strategy.reduce_boolean_decision(self.stopped_by is not None, all=False)
        if told:
            self.stopped_by = self.stopped_by or signal.SIGTERM
        return told

    def save(self, trainer: pl.Trainer, name: str) -> None:
        """Write beside the place, then move: the file in place is always whole."""
        begun, partial = time.monotonic(), self.folder / f"{name}.{os.getpid()}.partial"
        try:
            trainer.save_checkpoint(partial, weights_only=name == "best.ckpt")
            if trainer.is_global_zero:
                if not self.next_write:
                    self.read_back(partial)
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
                partial.replace(self.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        for logger in trainer.loggers:
            logger.save()  # the curves up to this step
        if name == "last.ckpt":
            self.next_write = time.monotonic() + max(2.0, 25 * (time.monotonic() - begun))

    def read_back(self, path: Path) -> None:
        """Find out now, and not at --resume, whether a state_dict that was extended can be loaded."""
        try:
            torch.load(path, mmap=True, weights_only=True)
        except Exception as error:
            allowed = "numbers, text, arrays, tensors, and lists and dicts of them"
            raise TypeError(f"a state_dict of agent, buffer or module may hold only {allowed}") from error

    def on_save_checkpoint(self, trainer: pl.Trainer, module: DQNLightning, checkpoint: dict[str, Any]) -> None:
        """Add to last.ckpt what Lightning does not know of, once for each process."""
        mine = {
            "buffer": module.buffer.state_dict(),
            "agent": module.agent.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "returns": [module.episode_reward, *module.returns],
            "best_reward": self.best_reward,
        }
        if not all(np.isfinite(array).all() for array in mine["buffer"]["arrays"] if array.dtype.kind == "f"):
            raise FloatingPointError(f"an observation or a reward up to step {trainer.global_step} is not finite")
        mine = apply_to_collection(mine, np.ndarray, torch.from_numpy)  # a checkpoint holds tensors and plain numbers
        mine = apply_to_collection(mine, np.generic, np.generic.item)
        checkpoint["dqn"] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(checkpoint["dqn"], mine)  # fills in the others'

    def on_load_checkpoint(self, trainer: pl.Trainer, module: DQNLightning, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added, after a look at whether the checkpoint fits this run."""
        if not trainer.training:  # to play, the weights are enough
            return
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        if not epochs["completed"] == epochs["processed"] - 1 == checkpoint["epoch"]:
            raise ValueError("its counts of epochs contradict each other")
        if checkpoint["epoch"] >= trainer.max_epochs > 0:  # below 0: any
            raise ValueError(f"--max_epochs {trainer.max_epochs} are fewer than it has trained")
        if len(checkpoint["dqn"]) != trainer.world_size:
            raise ValueError(f"it has to go on in {len(checkpoint['dqn'])} processes, as before")
        states = checkpoint["optimizer_states"][0]["state"].values()
        for weight, state in zip(module.net.parameters(), states, strict=True):
            if not state["exp_avg"].shape == state["exp_avg_sq"].shape == weight.shape:
                raise ValueError("the optimizer's state is of another network")  # fused Adam would end the process
        mine = apply_to_collection(checkpoint["dqn"][trainer.global_rank], torch.Tensor, torch.Tensor.numpy)
        module.agent.load_state_dict(mine["agent"])  # first, for it plays into the buffer
        module.buffer.load_state_dict(mine["buffer"])
        torch.set_rng_state(torch.from_numpy(mine["torch_rng"]))
        module.episode_reward, *returns = map(float, mine["returns"])
        module.returns = deque(returns, module.returns.maxlen)
        self.best_reward = float(mine["best_reward"])

    def on_exception(self, trainer: pl.Trainer, module: DQNLightning, error: BaseException) -> None:
        """End the other processes, which would wait for this one, and say where it happened."""
        if trainer.strategy.launcher:
            trainer.strategy.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has only the second
        if isinstance(error, SystemExit) and error.code not in (130, 143):  # which are the answers to a signal
            raise RuntimeError("the environment tried to end the program") from error
        if trainer.training:
            step, seed = len(module.agent.actions), module.agent.episode_seed
            error.add_note(f"The agent was in step {step} of the training episode with seed {seed}.")


@torch.inference_mode()
def play(model: DQNLightning, render_mode: str) -> list[Image.Image]:
    """Play the first test episode, in a window ("human") or into pictures with the Q-values drawn in ("rgb_array")."""
    env = make_env(model.hparams.env, model.hparams.episode_length, render_mode)
    agent, pictures, episode_over = Agent(env, ReplayBuffer(1)), [], False
    agent.reset(TEST_SEEDS[0])
    model.eval()
    while not episode_over and len(agent.actions) < EVAL_STEPS:
        if render_mode == "rgb_array" and len(agent.actions) % 2 == 0:  # every other picture is enough
            q_values = model.net(torch.as_tensor(agent.state, device=model.device).unsqueeze(0))[0].tolist()
            frame = np.squeeze(env.render())
            frame = np.uint8(frame * 255 if frame.dtype.kind == "f" else frame)  # some draw with floats, from 0 to 1
            picture = ImageOps.contain(Image.fromarray(frame).convert("RGB"), (300, 300))
            picture = ImageOps.expand(picture, (0, 20, 0, 0), "white")
            text = f"step {len(agent.actions)}, Q {', '.join(f'{q:.1f}' for q in q_values)}"
            ImageDraw.Draw(picture).text((5, 3), text, fill="black", font_size=12)
            pictures.append(picture.quantize(32))
        _, episode_over = agent.play_step(model.net, device=model.device)
    env.close()
    return pictures


def film(model: DQNLightning) -> bytes:
    """An animated GIF of the agent playing; empty, after a word of why, where the environment cannot be drawn."""
    gif = io.BytesIO()
    try:
        if "rgb_array" not in model.env.metadata.get("render_modes", ()):
            raise ValueError("the environment has no render mode rgb_array")
        first, *others = play(model, "rgb_array")
        pause = 2000 / (model.env.metadata.get("render_fps") or 30)  # milliseconds, for every other picture is shown
        first.save(gif, "GIF", save_all=True, append_images=others, duration=pause, loop=0)
    except (Exception, SystemExit) as error:  # a run that has learned must not end because of its film
        say(f"not filmed: {one_line(error)}")
    return gif.getvalue()


@rank_zero_only
def say(text: str) -> None:
    """Print, from the first process only; where the reader has gone (`| head -1`) go on without him."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def one_line(message: object) -> str:
    return " ".join(str(message).split()) or repr(message)


def shell(*words: object) -> str:
    """A command line of this script, to be pasted into the system's own shell."""
    script = sys.argv[0] if Path(sys.argv[0]).name == Path(__file__).name else __file__  # in a notebook
    line = ["python", script, *map(str, words)]
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


def number(kind: type, least: float, greatest: float) -> Callable[[str], Any]:
    """A reader for argparse of numbers in a range; argparse reports what it refuses, with the flag."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= greatest:
                return value
        raise argparse.ArgumentTypeError(f"{text[:50]!r}: must be {kind.__name__}, from {least} to {greatest}")

    return read


def env_id(text: str) -> str:
    """A reader for argparse of environment ids, which may name a module before a colon."""
    if not text.strip() or not text.isprintable() or text.count(":") > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be the id of an environment, such as CartPole-v1")
    return text


count, fraction, positive = number(int, 1, 10**9), number(float, 0, 1), number(float, 1e-9, 1e9)
READERS = {"str": str, "int": count, "int | None": count, "float": fraction, "float | None": positive}
# By name, where the type does not say it.
READERS |= {"env": env_id, "lr": number(float, 1e-9, 10), "tau": number(float, 1e-9, 1)}
READERS["hidden_layers"] = number(int, 1, 100)
KEPT = ("seed", "max_epochs", "val_check_interval")  # settings of the run that a checkpoint keeps too


class Parser(argparse.ArgumentParser):
    """The command line: the settings of the run, and the arguments of `DQNLightning` as it documents them."""

    def __init__(self) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        self.usage, self.description = "python dqn_cartpole.py [--flag value ...]", __doc__.partition("\n")[0]
        run, dqn = self.add_argument_group("run"), self.add_argument_group("environment and DQN")
        add, either = run.add_argument, run.add_mutually_exclusive_group()
        add("--gpus", type=number(int, -1, 10**6), default=0, help="GPUs to train on; 0 is the CPU, -1 all there are")
        add("--num_nodes", type=count, default=1, help="machines to train on")
        add("--num_processes", type=count, default=1, help="processes to train in, on the CPU of each machine")
        add("--max_epochs", type=count, default=1200, help="epochs to train")
        add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="decides everything that is random")
        add("--val_check_interval", type=count, default=520, help="steps between validations, in whole epochs")
        add("--test_episodes", type=number(int, 1, 1000), default=100, help="episodes of the test at the end")
        add("--render", action="store_true", help="show the trained agent playing, in a window")
        add("--video", action="store_true", help="write agent.gif, the trained agent playing, beside the logs")
        newest = "go on from this last.ckpt; without a value, from the newest run's"
        either.add_argument("--resume", metavar="CKPT", nargs="?", type=Path, const=Path(), help=newest)
        either.add_argument("--test", metavar="CKPT", type=Path, help="only test this checkpoint")
        for name, keyword in inspect.signature(DQNLightning).parameters.items():
            meaning = re.search(rf"^ +{name}: (.*)$", DQNLightning.__doc__, re.MULTILINE)[1]
            if keyword.annotation == "bool":
                how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            elif name == "lr_schedule":
                how = {"choices": ("constant", "linear", "cosine")}
            else:
                how = {"type": READERS.get(name) or READERS[keyword.annotation]}
            dqn.add_argument(f"--{name}", default=keyword.default, help=meaning, **how)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; with --resume or --test, the checkpoint's settings take the place of the defaults."""
    parser, argv = Parser(), list(sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0].strip("-").replace("-", "_")
        near = difflib.get_close_matches(name, vars(args), 1) or ["help"]
        raise UsageError(f"{' '.join(unknown)}: no such flag; did you mean --{near[0]}?")
    dqn, checkpoint = list(inspect.signature(DQNLightning).parameters), {}
    if args.resume or args.test:
        flag = "--resume" if args.resume else "--test"
        path = newest_checkpoint() if args.resume == Path() else args.resume or args.test
        checkpoint = read_checkpoint(path, flag)
        saved = {name: checkpoint["hyper_parameters"].get(name) for name in (*KEPT, *dqn)}
        if ":" in str(saved["env"]) and args.env != saved["env"]:
            remedy = f"if you trust it, add --env {one_line(saved['env'])}"
            raise UsageError(f"{flag} {path}: its environment imports a module; {remedy}")
        switches = {name: value for name, value in saved.items() if isinstance(value, bool)}
        words = [f"--{name}" if on else f"--no-{name}" for name, on in switches.items()]
        words += [f"--{name}={value}" for name, value in saved.items() if name not in switches and value is not None]
        trained, args = parser.parse_args(words), parser.parse_args([*words, *argv, f"{flag}={path}"])
        for name in ("seed", *dqn):
            given, was = getattr(args, name), getattr(trained, name)
            if given != was:
                raise UsageError(f"--{name} {given}: {path} was trained with {was}; leave it out")
        if args.resume and "dqn" not in checkpoint:
            raise UsageError(f"{flag} {path}: holds weights only; give a last.ckpt, or play it with --test")
    check_devices(args)
    args.argv, args.checkpoint = argv, checkpoint
    args.dqn = {name: getattr(args, name) for name in dqn}
    return args


def newest_checkpoint() -> Path:
    """last.ckpt of the newest run in lightning_logs."""
    names = [run.name.removeprefix("version_") for run in Path("lightning_logs").glob("version_*")]
    numbers = [int(name) for name in names if name.isdigit()]
    if not numbers:
        raise UsageError("--resume: there is no run in lightning_logs; give a last.ckpt")
    return Path("lightning_logs", f"version_{max(numbers)}", "checkpoints", "last.ckpt")


def read_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Load a checkpoint from whomever it comes: code that it carries does not run, and damage is noticed."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # compares what it holds with its checksums
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["hyper_parameters"].keys()
        return checkpoint
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except Exception as error:  # whatever a damaged file does to the readers
        problem = f"damaged, with code in it, or not a checkpoint of this script ({type(error).__name__})"
    raise UsageError(f"{flag} {path}: {problem}; give a checkpoint of lightning_logs/version_N/checkpoints")


def check_devices(args: argparse.Namespace) -> None:
    """Raise a UsageError where the devices or processes that are asked for cannot be had."""
    visible = pl.accelerators.CUDAAccelerator.auto_device_count() or int(pl.accelerators.MPSAccelerator.is_available())
    if args.gpus > visible or (args.gpus and not visible):
        raise UsageError(f"--gpus {args.gpus}: the number of visible GPUs is {visible}; --gpus 0 is the CPU")
    args.gpus = visible if args.gpus == -1 else args.gpus
    if args.gpus and args.num_processes > 1:
        raise UsageError(f"--num_processes {args.num_processes}: is for the CPU; leave it or --gpus out")
    if args.num_nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise UsageError(f"--num_nodes {args.num_nodes}: start it on every machine, with torchrun or srun")
    args.processes = (args.gpus or args.num_processes) * args.num_nodes
    # What torchrun and srun set; SLURM_NTASKS alone may be left over.
    launched = {"MASTER_ADDR", "SLURM_NTASKS_PER_NODE"} & os.environ.keys()
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    for name in (*ranks, "WORLD_SIZE", "SLURM_NTASKS"):  # what a launcher left would make this process wait for others
        total = args.num_nodes if name == "NODE_RANK" else args.processes
        fits = range(total) if name in ranks else [total]
        left = os.environ.get(name)
        unexpected = args.processes > 1 and not launched  # Lightning starts the processes, and numbers them
        if left and (unexpected or left not in map(str, fits)):
            raise UsageError(f"{name}={left}: the flags ask for {total} in all; unset it")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what gym and Lightning say of choices made on purpose; leave a notebook's threads and variables alone."""
    said = "is out of date|latest versioned|many workers|LeafSpec|GPU available but|sync_dist|exists and is not empty"
    said += "|has `__len__` defined|smaller than the logging interval|overflow encountered in cast"
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    threads, variables = torch.get_num_threads(), dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f".*({said})")
            yield
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(variables)


def show(model: DQNLightning, trainer: pl.Trainer, args: argparse.Namespace, folder: Path) -> None:
    """Film the agent, and write what TensorBoard shows beside the curves."""
    gif = film(model) if args.video or not args.test else b""
    if gif and args.video:
        path = Path(os.path.normpath(folder / ".." if folder.resolve().name == "checkpoints" else folder), "agent.gif")
        path.write_bytes(gif)
        say(f"the agent playing: {path}")
    if args.test:
        return
    step, writer = trainer.global_step, trainer.logger.experiment
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, pl, gym, np))
    device = f"{args.processes} x {trainer.strategy.root_device.type}"
    card = f"`{shell(*args.argv)}`, seed {args.seed}, {device}, {versions}"
    writer.add_text("run", card, step)
    defaults = vars(Parser().parse_args([])) | {"env": None, "seed": None}  # so that these two are always shown
    differs = {name: value for name, value in model.hparams.items() if value != defaults[name]}
    _, *summaries = hparams(differs, {})  # left out: the list of columns, which is of this run only
    if gif:
        summaries.append(Summary(value=[Summary.Value(tag="agent", image=Summary.Image(encoded_image_string=gif))]))
    for summary in summaries:
        writer.file_writer.add_summary(summary, step)
    trainer.logger.finalize("success")


@quiet()
def main(args: argparse.Namespace) -> None:
    """Train, and test the best checkpoint; or only test the checkpoint `args.test`."""
    pl.seed_everything(args.seed, verbose=False)
    model = FastDQN(**args.dqn)
    model.save_hyperparameters({name: getattr(args, name) for name in KEPT})
    for flag, mode in (("render", "human"), ("video", "rgb_array")):
        if getattr(args, flag) and mode not in model.env.metadata.get("render_modes", ()):
            raise UsageError(f"--{flag}: leave it out; {args.env} has no render mode {mode}")
    if args.batch_size * args.hidden_size < 2**16:
        torch.set_num_threads(1)  # a small network waits for more threads longer than it computes
    os.environ["SDL_NO_SIGNAL_HANDLERS"] = "1"  # or Ctrl-C would only ask the window to close
    if not args.render:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # a film alone needs no display

    trainer = pl.Trainer(
        accelerator="gpu" if args.gpus else "cpu",
        devices=args.gpus or args.num_processes,
        num_nodes=args.num_nodes,
        strategy="ddp" if args.processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=args.max_epochs,
        check_val_every_n_epoch=min(args.max_epochs, math.ceil(args.val_check_interval / model.steps_per_epoch)),
        num_sanity_val_steps=0,
        gradient_clip_val=args.grad_clip,
        profiler=NoProfiler(),
        logger=False,  # until RunFolder brings it
        callbacks=[RunFolder(args.resume), Progress(), Checkpoints()],  # in this order
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        if args.test:
            model.load_state_dict(args.checkpoint["state_dict"])
        else:
            trainer.fit(model, ckpt_path=args.resume, weights_only=True)
    except Exception as error:
        if not args.checkpoint or trainer.logger:  # the checkpoint was loaded, so it is not at fault
            raise
        source = f"--test {args.test}" if args.test else f"--resume {args.resume}"
        raise UsageError(f"{source}: does not fit: {one_line(error)}") from None

    best = args.test or Path(trainer.log_dir, "checkpoints", "best.ckpt")
    last = best.with_name("last.ckpt")
    if stopped_by := trainer.checkpoint_callback.stopped_by:
        say(f"stopped at step {trainer.global_step:,}; to go on:\n{shell(*args.argv, '--resume', last)}")
        # Where one process fails Lightning ends the first, so only that may say how the run ended.
        sys.exit(128 + stopped_by if trainer.is_global_zero else 0)
    best = best if best.exists() else last  # a run resumed shortly before its end may have none
    seeds = range(TEST_SEEDS.start, TEST_SEEDS.start + args.test_episodes)
    episodes: DataLoader = DataLoader(seeds, batch_size=len(seeds))
    (result,) = trainer.test(model, episodes, ckpt_path=None if args.test else best, verbose=False, weights_only=True)
    if trainer.is_global_zero:
        show(model, trainer, args, best.parent)
        say(f"test_reward: {result['test_reward']:.2f} +/- {result['test_reward_std']:.2f} over {len(seeds)} episodes")
        say("tensorboard --logdir lightning_logs")
        say(shell("--test", best, *(["--env", args.env] if ":" in args.env else [])))
        if args.render:
            play(model, "human")


if __name__ == "__main__":
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  # it may be closed
    with contextlib.suppress(AttributeError):  # standard output may be closed too, or a notebook's
        sys.stdout.reconfigure(errors="backslashreplace")  # its encoding may not know all the letters of a path
    if not NOTEBOOK:  # what fails in the thread that writes the curves is raised again here, and answered below
        threading.excepthook = lambda failed: issubclass(failed.exc_type, OSError) or threading.__excepthook__(failed)
    code: Any = 0
    try:
        main(parse_args())
    except SystemExit as end:  # of a run that was stopped, or of --help
        code = end.code
    except Exception as error:
        code, message = 1, str(error)
        if isinstance(error, UsageError):
            code = 2
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            message = f"cannot write to lightning_logs: {error.strerror}"
        elif isinstance(error, MemoryError | RuntimeError) and "allocate" in message:  # as NumPy and PyTorch say it
            code, sizes = 2, "a smaller --replay_size, --hidden_size or --batch_size takes less"
            message = f"{one_line(error)}; {sizes}"
        elif not isinstance(error, FloatingPointError):
            raise
        print(f"{Path(__file__).name}: error: {message}", file=sys.stderr)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)  # threads between the processes can abort a Python that winds up: PyTorch's issue 190489
    if code:
        sys.exit(code)
