"""Train a Deep Q-Network (DQN) on CartPole with PyTorch Lightning.

    pip install -r requirements.txt && python dqn_cartpole.py   # reaches 200, the maximum, in 20 s (GPU: --gpus 1)
    python dqn_cartpole.py --n_step 1 --lr_schedule constant    # plain DQN, as in part 1
    tensorboard --logdir lightning_logs     # watch it learn
    python dqn_cartpole.py --resume         # after Ctrl-C, a crash or a kill: continue from the last validation
    python dqn_cartpole.py --help           # every setting and its default

Part 1 is DQN as in the article that this file rebuilds: Donal Byrne, "En-Lightning Reinforcement Learning: Building a
DQN with PyTorch Lightning" (2020, pytorchlightning.ai/blog). The algorithm is from Mnih et al., "Human-level control
through deep reinforcement learning", Nature 518 (2015). Part 2 adds later improvements: n-step returns and a decaying
learning rate (on), double DQN, Huber loss and soft updates (off). Part 3 runs it. To build your own agent, subclass:

    from torch import nn
    from dqn_cartpole import ImprovedDQN, main, parse_args

    class MyDQN(ImprovedDQN):
        def __init__(self, width: int = 64, **kwargs):  # becomes the flag --width
            super().__init__(**kwargs)  # stores all arguments, including width, in self.hparams; then calls make_net

        def make_net(self):
            obs_size, n_actions = self.env.observation_space.shape[0], self.env.action_space.n
            hidden = nn.Linear(obs_size, self.hparams.width)
            return nn.Sequential(hidden, nn.Tanh(), nn.Linear(self.hparams.width, n_actions))

    main(parse_args(module=MyDQN))
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import itertools
import logging
import math
import os
import shlex
import sys
import warnings
from collections import deque, namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

try:
    import gymnasium as gym
except ModuleNotFoundError:  # gym 0.26, the last release before Gymnasium took over, has the same interface
    import gym

# Validations share their seeds, so that checkpoints are comparable. The best is partly luck, so the test has others.
VAL_SEEDS, TEST_SEEDS, TRAIN_SEEDS = range(20), range(1000, 1100), range(2000, 2**31)
EVAL_STEPS = 10_000  # step limit of an episode in validation or test
LOG_EVERY = 50  # logging interval of per-step metrics


# ---------------------------------------------------------------------------------------------------------------------
# Part 1: DQN. The whole algorithm, and where to find its lines:
#
#     play random steps, to fill the replay buffer                    DQNLightning.populate
#     for each epoch (13 minibatches by default):                     Lightning's Trainer
#         draw a sample from the buffer (in the paper: every step)    RLDataset; * ReplayBuffer
#         for each minibatch of the sample:                           DQNLightning.training_step
#             act epsilon-greedily, store the experience              Agent.play_step
#             target = r + gamma * max_a' Q_target(s', a')            * DQNLightning.td_targets
#             loss = mean of (Q(s, a) - target)^2                     DQNLightning.losses, dqn_mse_loss
#             every sync_rate steps: Q_target = Q                     * DQNLightning.sync_target
#             take a gradient step on the loss                        Lightning; * configure_optimizers
#         every 40 epochs: play greedily, to see how good it is       DQNLightning.validation_step
#
# *: replaced by part 2's subclass, which runs by default. On a first reading, skip the methods that save and load.


class DQN(nn.Module):
    """The Q-network: it estimates the Q-value of every action (article, "Model"). The algorithm is `DQNLightning`.

    The return is the sum of the future rewards, each reward k steps ahead weighted by gamma^k. The Q-value of an action
    is the expected return of taking it and acting optimally afterwards. `obs_size` is the length of an observation.
    """

    def __init__(self, obs_size: int, n_actions: int, hidden_size: int = 128, hidden_layers: int = 1) -> None:
        super().__init__()
        layers = [nn.Linear(obs_size, hidden_size), nn.ReLU()]
        for _ in range(hidden_layers - 1):
            layers += [nn.Linear(hidden_size, hidden_size), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden_size, n_actions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x`, any dtype (batch, *observation shape)."""
        return self.net(x.flatten(1).float())


# A step in the environment, or a batch of them. `done`: terminated (the pole fell), not truncated by a time limit.
Experience = namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])


class ReplayBuffer:
    """The last `capacity` experiences, sampled with its own random generator (article, "Replay buffer").

    Consecutive steps are alike, and a network trained on them in order forgets older ones; samples mix them (Lin 1992).
    """

    def __init__(self, capacity: int, seed: int | None = None) -> None:
        self.capacity = capacity
        self.appended = 0  # experiences so far, overwritten ones included
        self.arrays: Experience | None = None  # an array for each field, once the shape of a state is known
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.appended, self.capacity)

    def allocate(self, state: np.ndarray) -> None:
        """Make the arrays for states like `state`."""
        shape = (self.capacity, *state.shape)
        states, new_states = np.empty(shape, state.dtype), np.empty(shape, state.dtype)
        actions, rewards, dones = (np.empty(self.capacity, dtype) for dtype in (np.int64, np.float32, np.bool_))
        self.arrays = Experience(states, actions, rewards, dones, new_states)

    def append(self, experience: Experience) -> None:
        if self.arrays is None:
            self.allocate(experience.state)
        for array, value in zip(self.arrays, experience):
            array[self.appended % self.capacity] = value
        self.appended += 1

    def begin_episode(self) -> None:
        """Called before each episode; a hook for buffers that combine steps (`NStepBuffer` in part 2)."""

    def sample(self, batch_size: int) -> Experience:
        """Draw uniformly, without replacement; ValueError if the buffer holds too few.

        Returns arrays: states (batch_size, *observation shape), actions int64, rewards float32, dones bool, new_states.
        """
        if batch_size > len(self):
            raise ValueError(f"cannot sample {batch_size} of {len(self)} experiences: raise --warm_start_steps")
        rows = self.rng.choice(len(self), batch_size, replace=False)
        return Experience(*(array[rows] for array in self.arrays))

    def state_dict(self) -> dict[str, Any]:
        """State needed to resume, as tensors and plain numbers, which `torch.load` accepts."""
        arrays = [torch.from_numpy(array[: len(self)]) for array in self.arrays or ()]
        return {"arrays": arrays, "appended": self.appended, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.appended, self.rng.bit_generator.state = state["appended"], state["rng"]
        if state["arrays"]:
            self.allocate(state["arrays"][0][0].numpy())
            for array, saved in zip(self.arrays, state["arrays"]):
                array[: len(saved)] = saved


class RLDataset(IterableDataset):
    """The replay buffer as the dataset that Lightning needs: each pass, an epoch, is a new sample (article, "Dataset").

    It yields minibatches of `batch_size`, as tensors: 12 of 16 and one of 8 at the defaults of `DQNLightning`. Without
    `batch_size`: single experiences, as in the article. Mnih et al. draw a sample at every step; here one lasts 13.
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
            yield from (type(sample)(*fields) for fields in zip(*sample))  # `type`: a buffer may have more fields
            return
        tensors = [torch.from_numpy(array) for array in sample]
        for start in range(0, self.sample_size, self.batch_size):
            yield type(sample)(*(tensor[start : start + self.batch_size] for tensor in tensors))


class Agent:
    """Acts in `env` and stores its experiences in `replay_buffer` (article, "Agent"); `seed` seeds its generator."""

    def __init__(self, env: gym.Env, replay_buffer: ReplayBuffer, seed: int | None = None) -> None:
        self.env = env
        self.replay_buffer = replay_buffer
        self.rng = np.random.default_rng(seed)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode with `seed` (default: a random one); its first observation becomes `state`."""
        self.episode_seed = int(self.rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)) if seed is None else seed
        self.actions: list[int] = []  # of this episode; with the seed, enough to replay it on resume
        self.replay_buffer.begin_episode()
        observation, _ = self.env.reset(seed=self.episode_seed)
        self.state = copy_observation(observation, self.env)

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        """Epsilon-greedy: with probability `epsilon` a random action, to explore; else that of the highest Q-value."""
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.env.action_space.n))
        state = torch.as_tensor(self.state, device=device).unsqueeze(0)
        return int(net(state).argmax())  # a batch of one, in training mode: no BatchNorm

    @torch.no_grad()
    def play_step(self, net: nn.Module, epsilon: float = 0.0, device: torch.device | str = "cpu") -> tuple[float, bool]:
        """Choose an action and take it; return the reward, and whether the episode is over."""
        return self.take(self.get_action(net, epsilon, device))

    def take(self, action: int) -> tuple[float, bool]:
        """Take `action` in the environment and store the experience; if the episode is over, begin the next."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        new_state = copy_observation(observation, self.env)
        # A time limit truncates the episode, but its last state is not terminal: the agent could have earned more. So
        # only `terminated` is stored, and the target still bootstraps from that state (Pardo et al. 2018).
        self.replay_buffer.append(Experience(self.state, action, float(reward), bool(terminated), new_state))
        self.state = new_state
        self.actions.append(action)
        episode_over = bool(terminated or truncated)
        if episode_over:
            self.reset()
        return float(reward), episode_over

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "seed": self.episode_seed, "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the unfinished episode. Its steps are appended to the buffer again; restore the buffer afterwards."""
        self.reset(state["seed"])
        for action in state["actions"]:
            self.take(action)
        self.rng.bit_generator.state = state["rng"]


def copy_observation(observation: Any, env: gym.Env) -> np.ndarray:
    """A copy (`env` may reuse the array), its dtype wide enough for its space; float64 becomes float32."""
    array = np.array(observation)
    dtype = np.result_type(array, env.observation_space.dtype)
    return array.astype(np.float32 if dtype == np.float64 else dtype, copy=False)


class DQNLightning(pl.LightningModule):
    """The DQN algorithm as a LightningModule (article). Its arguments become flags; `Annotated` has their help."""

    agent_class = Agent  # override it in a subclass

    def __init__(
        self,
        env: Annotated[str, "id of the environment; module:Name-v0 imports the module first"] = "CartPole-v0",
        episode_length: Annotated[int | None, "time limit in steps; None: the environment's own"] = None,
        replay_size: Annotated[int, "capacity of the replay buffer"] = 5000,
        warm_start_steps: Annotated[int, "random steps before the first training step"] = 1000,
        sample_size: Annotated[int, "experiences sampled for an epoch"] = 200,
        batch_size: Annotated[int, "experiences in a minibatch"] = 16,
        lr: Annotated[float, "learning rate"] = 5e-3,
        gamma: Annotated[float, "discount factor"] = 0.99,
        sync_rate: Annotated[int, "steps between updates of the target network"] = 10,
        hidden_size: Annotated[int, "units in a hidden layer"] = 128,
        hidden_layers: Annotated[int, "hidden layers"] = 1,
        eps_start: Annotated[float, "initial epsilon, the probability of a random action"] = 0.7,
        eps_end: Annotated[float, "final epsilon"] = 0.02,
        eps_last_frame: Annotated[int | None, "steps over which epsilon decays; None: the whole run"] = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # self.hparams: all arguments, a subclass's too (Lightning inspects the call stack)
        self.env = self.make_env()  # make_* run before the rest of a subclass's __init__, so use self.hparams
        self.net = self.make_net()
        self.target_net = copy.deepcopy(self.net).requires_grad_(False).eval()
        buffer_seed, agent_seed = torch.randint(2**62, (2,)).tolist()  # determined by --seed
        self.buffer = self.make_buffer(buffer_seed)
        self.agent = self.agent_class(self.env, self.buffer, agent_seed)
        self.criterion: nn.Module = nn.MSELoss(reduction="none")
        self.score = 0.0  # undiscounted sum of the rewards of the current episode; logged as total_reward
        self.scores: deque[float] = deque(maxlen=100)  # of the last finished episodes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x` (batch, *observation shape)."""
        return self.net(x)

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        """Act once, and compute the loss of `batch`, drawn when the epoch began; Lightning takes the gradient step."""
        reward, episode_over = self.agent.play_step(self.net, self.epsilon, self.device)
        loss = self.dqn_mse_loss(batch)
        self.sync_target()
        self.log_step(reward, episode_over, loss, batch)
        return loss

    @property
    def epsilon(self) -> float:
        """Probability of a random action: high at first, when the Q-values mean little, and then less and less."""
        progress = min(1.0, self.global_step / (self.hparams.eps_last_frame or self.total_steps()))
        return self.hparams.eps_start + progress * (self.hparams.eps_end - self.hparams.eps_start)

    def total_steps(self) -> float:
        """Training steps of the whole run."""
        return self.trainer.estimated_stepping_batches

    def dqn_mse_loss(self, batch: Experience) -> torch.Tensor:
        """The loss, under the article's name: the mean of `losses`, which are squared errors unless overridden."""
        return self.losses(batch).mean()

    def losses(self, batch: Experience) -> torch.Tensor:
        """The loss of each experience, float32 (batch,), so that a subclass can weight them."""
        q_values = self.net(batch.state).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # of the actions taken
        with torch.no_grad():  # the targets count as constants
            targets = self.td_targets(batch)
        return self.criterion(q_values, targets)  # squared errors

    def td_targets(self, batch: Experience) -> torch.Tensor:
        """A better estimate of Q(s, a), one step later: r + gamma * max_a' Q_target(s', a'), float32 (batch,).

        A reward of 1, gamma 0.99 and a best next Q-value of 10 make 10.9; if the step ended the episode, 1. Using an
        estimate for the rest of the return is called bootstrapping. It comes from the target network, a copy that lags
        behind: if every update moved the targets too, the network would chase its own tail.
        """
        next_values = self.target_net(batch.new_state).amax(1)
        return batch.reward + self.hparams.gamma * next_values.masked_fill(batch.done, 0.0)  # no future after the end

    def sync_target(self) -> None:
        """Copy the weights, as they are before this step's update, to the target network every `sync_rate` steps."""
        if self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr, fused=True)  # fused is faster

    def train_dataloader(self) -> DataLoader:
        """Called once. Each pass over the loader, an epoch, draws a new sample of the replay buffer."""
        dataset = RLDataset(self.buffer, self.hparams.sample_size, self.hparams.batch_size)
        return DataLoader(dataset, batch_size=None)  # the dataset makes the minibatches

    def on_fit_start(self) -> None:
        """Fill the buffer with random steps, unless the run is resumed and the buffer restored."""
        if self.global_rank > 0:  # with several processes, each plays different episodes
            for part in (self.agent, self.buffer):
                part.rng = np.random.Generator(part.rng.bit_generator.jumped(self.global_rank))
            self.agent.reset()
        if len(self.buffer) == 0:
            self.populate(self.hparams.warm_start_steps)

    def populate(self, steps: int = 1000) -> None:
        """Fill the replay buffer with `steps` random steps, so that the first samples vary, then begin an episode."""
        for _ in range(steps):
            self.agent.play_step(self.net, epsilon=1.0, device=self.device)
        self.agent.reset()

    # The parts, each made by a method: override these for a network, an environment or a buffer of your own
    def make_env(self, **options: Any) -> gym.Env:
        """A new environment, for training or evaluation; gym.error.Error if DQN cannot play it.

        Array observations keep their shape. Others are flattened, a Dict by its keys, which Gymnasium sorts by name.
        """
        disable_checker = True if gym.__name__ == "gym" else None  # gym 0.26's checks fail with NumPy 2
        limit = self.hparams.episode_length
        env = gym.make(self.hparams.env, max_episode_steps=limit, disable_env_checker=disable_checker, **options)
        if not env.observation_space.shape:
            with contextlib.suppress(NotImplementedError):  # what cannot be flattened is refused below
                env = gym.wrappers.FlattenObservation(env)
        if env.observation_space.shape is None:
            raise gym.error.Error(f"its observations have no fixed size: {env.observation_space}")
        if not isinstance(env.action_space, gym.spaces.Discrete) or env.action_space.start != 0:
            raise gym.error.Error(f"DQN needs Discrete actions from 0, not {env.action_space}")
        return env

    def make_net(self) -> nn.Module:
        """The network: from observations (batch, *shape), in their own dtype, to Q-values (batch, n_actions)."""
        obs_size, n_actions = math.prod(self.env.observation_space.shape), int(self.env.action_space.n)
        return DQN(obs_size, n_actions, self.hparams.hidden_size, self.hparams.hidden_layers)

    def make_buffer(self, seed: int) -> ReplayBuffer:
        return ReplayBuffer(self.hparams.replay_size, seed)

    def log_step(self, reward: float, episode_over: bool, loss: torch.Tensor, batch: Experience) -> None:
        """Log the score when an episode ends, and per-step metrics every `LOG_EVERY` steps."""
        scalars: dict[str, float] = {}
        self.score += reward
        if episode_over:
            self.scores.append(self.score)
            scalars |= {"total_reward": self.score, "avg_reward": self.avg_reward}
            self.score = 0.0
        if self.global_step % LOG_EVERY == 0:
            scalars |= {"reward": reward, "train_loss": loss.item(), "epsilon": self.epsilon}
            scalars["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            scalars["q_mean"] = self.target_net(batch.state).amax(1).mean().item()  # target_net needs no gradients
        if scalars:
            for logger in self.loggers:  # `self.log` at every step would take longer than the learning
                logger.log_metrics(scalars, step=self.global_step)

    @property
    def avg_reward(self) -> float:
        """Mean score of the last 100 episodes, 0 before the first has ended."""
        return sum(self.scores) / max(1, len(self.scores))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(VAL_SEEDS, batch_size=len(VAL_SEEDS))  # the seeds of the episodes to play

    def test_dataloader(self) -> DataLoader:
        return DataLoader(TEST_SEEDS, batch_size=len(TEST_SEEDS))

    def validation_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        """Play greedily; the mean score, `val_reward`, decides which checkpoint is the best."""
        self.log("val_reward", self.play_episodes(seeds).mean(), sync_dist=True)
        self.log("avg_reward", self.avg_reward, sync_dist=True, logger=False)  # so that a callback can monitor it

    def test_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        """Play greedily; `test_reward` is the mean score, `test_reward_std` its standard deviation."""
        scores = torch.cat([self.play_episodes(chunk) for chunk in seeds.split(20)])  # 20 environments at a time
        self.log_dict({"test_reward": scores.mean(), "test_reward_std": scores.std(correction=0)}, sync_dist=True)

    def play_episodes(self, seeds: torch.Tensor) -> torch.Tensor:
        """The score of a greedy episode for each of `seeds`, float32 (episodes,), all played side by side."""
        scores, over = [0.0] * len(seeds), [False] * len(seeds)
        with contextlib.ExitStack() as stack:  # closes the environments
            envs = [stack.enter_context(self.make_env()) for _ in seeds]
            states = [copy_observation(env.reset(seed=seed)[0], env) for env, seed in zip(envs, seeds.tolist())]
            for _ in range(EVAL_STEPS):
                actions = self(torch.as_tensor(np.stack(states), device=self.device)).argmax(1).tolist()
                for i in range(len(envs)):
                    if not over[i]:
                        observation, reward, terminated, truncated, _ = envs[i].step(actions[i])
                        states[i] = copy_observation(observation, envs[i])
                        scores[i] += float(reward)
                        over[i] = bool(terminated or truncated)
                if all(over):
                    break
        return torch.tensor(scores, device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs beyond weights and optimizer; extend both hooks to add your own."""
        checkpoint |= {"class": type(self).__name__, "global_step": self.global_step}  # examples/fast.py counts it
        if "optimizer_states" in checkpoint:  # not in best.ckpt, which is for playing only
            checkpoint["buffer"], checkpoint["agent"] = self.buffer.state_dict(), self.agent.state_dict()
            checkpoint["scores"] = (self.score, list(self.scores))
            checkpoint["torch_rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "buffer" in checkpoint:
            self.agent.load_state_dict(checkpoint["agent"])  # before the buffer, to which it appends steps again
            self.buffer.load_state_dict(checkpoint["buffer"])
            self.score, scores = checkpoint["scores"]
            self.scores = deque(scores, self.scores.maxlen)
            torch.set_rng_state(checkpoint["torch_rng"])


# ---------------------------------------------------------------------------------------------------------------------
# Part 2: what later papers added, each by overriding a method or two
#
# Plain DQN solves CartPole-v0 at step 3,120 (median of ten seeds), with 5-step returns at 2,080, and with a decaying
# learning rate as well, which is the default, at 1,560. tests/benchmarks/RESULTS.md has each addition alone.


class NStepBuffer(ReplayBuffer):
    """A replay buffer whose experiences span `n_step` steps (Sutton 1988; Hessel et al. 2018).

    An experience holds a state, the action taken there, the sum r_0 + gamma r_1 + ... + gamma^(n-1) r_(n-1) of the
    rewards that followed, and the state after them; the target adds gamma^n times the value of that state. Rewards
    propagate faster, at the price of a bias: the later actions were chosen by an older, exploratory policy.
    """

    def __init__(self, capacity: int, n_step: int, gamma: float, seed: int | None = None) -> None:
        super().__init__(capacity, seed)
        self.n_step, self.gamma = n_step, gamma
        self.pending: list[Experience] = []  # the last steps of this episode; on resume, the agent's replay refills it

    def append(self, experience: Experience) -> None:
        """Store the oldest pending step once n rewards have arrived; on termination all, since no reward follows.

        With n = 3, an episode that terminates at its fifth step gives five experiences, of 3, 3, 3, 2 and 1 rewards.
        """
        self.pending.append(experience)
        # One pass once n steps are pending; on termination one for each of them.
        while len(self.pending) == self.n_step or (experience.done and self.pending):
            reward = sum(self.gamma**k * step.reward for k, step in enumerate(self.pending))
            oldest = self.pending.pop(0)
            super().append(oldest._replace(reward=reward, done=experience.done, new_state=experience.new_state))

    def begin_episode(self) -> None:
        """Drop the last steps of a truncated episode: `td_targets` assumes n rewards, and they have fewer."""
        self.pending.clear()


class ImprovedDQN(DQNLightning):
    """DQN with n-step returns and a decaying learning rate; optionally double DQN, Huber loss and soft updates."""

    def __init__(
        self,
        n_step: Annotated[int, "rewards summed before bootstrapping"] = 5,
        lr_schedule: Annotated[Literal["constant", "linear", "cosine"], "decay of lr over the run"] = "cosine",
        double_dqn: Annotated[bool, "let the online network select the next action (van Hasselt et al. 2016)"] = False,
        clip_error: Annotated[float | None, "delta of the Huber loss (Mnih et al.: 1); None: squared errors"] = None,
        tau: Annotated[float, "below 1: soft updates of the target, by this share at every step; 1: copies"] = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # saves all arguments, these too, in self.hparams; then calls make_buffer
        if clip_error is not None:
            self.criterion = nn.HuberLoss(reduction="none", delta=clip_error)

    def make_buffer(self, seed: int) -> ReplayBuffer:
        """n-step returns, first half: the buffer adds up n rewards. (A buffer that does not needs --n_step 1.)"""
        return NStepBuffer(self.hparams.replay_size, self.hparams.n_step, self.hparams.gamma, seed)

    def td_targets(self, batch: Experience) -> torch.Tensor:
        """n-step returns, second half: the new states are n steps later, so their values are discounted by gamma^n.

        Double DQN: the online network selects the next action, the target network evaluates it. Using one for both, as
        part 1 does, overestimates the values: the maximum prefers the action whose error is the highest.
        """
        next_q_values = self.target_net(batch.new_state)
        next_values = next_q_values.amax(1)
        if self.hparams.double_dqn:
            actions = self.net(batch.new_state).argmax(1, keepdim=True)
            next_values = next_q_values.gather(1, actions).squeeze(1)
        return batch.reward + self.hparams.gamma**self.hparams.n_step * next_values.masked_fill(batch.done, 0.0)

    def sync_target(self) -> None:
        """Soft updates: with `tau` below 1 the target network moves a little at every step (Lillicrap et al. 2016).

        With `tau` = 1 it becomes a copy every `sync_rate` steps, as in part 1.
        """
        if self.hparams.tau == 1 and self.global_step % self.hparams.sync_rate != 0:
            return
        with torch.no_grad():
            for target, weight in zip(self.target_net.parameters(), self.net.parameters()):
                target.lerp_(weight, self.hparams.tau)
        for target, statistic in zip(self.target_net.buffers(), self.net.buffers()):  # PyTorch's, such as running means
            target.copy_(statistic)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)]

    def lr_factor(self, _epoch: int) -> float:
        """Multiplier of `lr`, updated after each epoch: unless constant, it falls from 1 to 0 over the run."""
        progress = min(1.0, self.global_step / self.total_steps())
        factors = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return factors[self.hparams.lr_schedule]


# ---------------------------------------------------------------------------------------------------------------------
# Part 3: the run


class Progress(pl.Callback):
    """One progress bar for the `steps` of the whole run, and a line for every validation."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.bar = tqdm(disable=True)  # until training starts, and in all processes but the first

    @pl.utilities.rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        print(f"{module.hparams.env} on {module.device}, logged in {os.path.relpath(trainer.logger.log_dir)}")
        hide = False if "ipykernel" in sys.modules else None  # None: hide it if there is no terminal
        self.bar = tqdm(total=self.steps, initial=module.global_step, unit="step", mininterval=0.3, disable=hide)

    def on_train_batch_end(self, trainer: pl.Trainer, module: DQNLightning, *_: Any) -> None:
        if self.bar.update(module.global_step - self.bar.n):  # True if the bar was just drawn
            self.bar.set_postfix_str(f"avg_reward {module.avg_reward:.1f}, epsilon {module.epsilon:.2f}", refresh=False)

    @pl.utilities.rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        reward, threshold = trainer.callback_metrics["val_reward"], getattr(module.env.spec, "reward_threshold", None)
        solved = " (solved)" if threshold is not None and reward >= threshold else ""
        self.bar.write(f"step {module.global_step:,}: val_reward {reward:.2f}{solved}")

    def on_train_end(self, *_: Any) -> None:
        self.bar.close()

    on_exception = on_train_end


class Checkpoints(pl.callbacks.Checkpoint):
    """Writes best.ckpt, weights of the best validation, and last.ckpt, from which a single process resumes exactly.

    last.ckpt also holds the replay buffer and the `settings`. Only the steps since the last validation can be lost.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}
        self.best_reward = -math.inf
        self.folder = Path()  # of the checkpoints, known when training starts

    def on_fit_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        self.folder = Path(trainer.log_dir, "checkpoints")
        if not Path(self.folder, "best.ckpt").exists():  # the resumed checkpoint came from elsewhere
            self.best_reward = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        """Save between two epochs, so that no sample is left half used."""
        epoch = trainer.current_epoch + 1
        validated = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        if not validated and epoch != trainer.max_epochs:
            return
        if not all(weight.isfinite().all() for weight in module.net.parameters()):
            raise FloatingPointError(f"a weight is not finite at step {module.global_step}: start with a lower --lr")
        if validated and trainer.callback_metrics["val_reward"] >= self.best_reward:  # ties go to the newer
            self.best_reward = trainer.callback_metrics["val_reward"].item()
            self.save(trainer, "best.ckpt", weights_only=True)
        self.save(trainer, "last.ckpt")

    def save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        """Write to another file, then rename it, so that a kill never leaves half a checkpoint."""
        partial = Path(self.folder, f"{name}.partial")
        trainer.save_checkpoint(partial, weights_only)
        if trainer.is_global_zero:
            partial.replace(Path(self.folder, name))

    @pl.utilities.rank_zero_only
    def on_exception(self, trainer: pl.Trainer, module: DQNLightning, error: BaseException) -> None:
        """Print how to resume; the cause may be an error, Ctrl-C (KeyboardInterrupt) or SIGTERM."""
        if isinstance(error, SIGTERMException):
            error.code = 143  # 128 + 15, the convention; Lightning's own is 0
        last = Path(self.folder, "last.ckpt")
        if last.exists() and not isinstance(error, FloatingPointError):  # it would diverge again
            print(f"stopped; to resume: {program()} --resume {shlex.quote(os.path.relpath(last))}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {"best_reward": self.best_reward, "settings": self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_reward = state["best_reward"]


@torch.no_grad()
def play(model: DQNLightning, render_mode: str) -> Iterator[gym.Env]:
    """Play the first test episode greedily ("human": in a window); yield the environment before each step."""
    model.eval()
    with model.make_env(render_mode=render_mode) as env:
        observation, _ = env.reset(seed=TEST_SEEDS[0])
        for _ in range(EVAL_STEPS):
            yield env
            state = torch.as_tensor(copy_observation(observation, env), device=model.device)
            observation, _, terminated, truncated, _ = env.step(int(model(state.unsqueeze(0)).argmax()))
            if terminated or truncated:
                return


def film(model: DQNLightning, path: Path, steps: int = 1000) -> bytes:
    """Write the episode as an animated GIF, of at most 25 frames a second."""
    fps = model.env.metadata.get("render_fps", 30)
    every = math.ceil(fps / 25)
    scenes = itertools.islice(play(model, "rgb_array"), 0, steps, every)
    frames = [ImageOps.contain(Image.fromarray(env.render()), (300, 300)).quantize(32) for env in scenes]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 * every / fps, loop=0)
    return path.read_bytes()


def program() -> str:
    """The command that started this program."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else f"python {shlex.quote(sys.argv[0])}"


def run_folder(resume: str | None) -> Path:  # type: ignore[return]
    """The folder of the run to resume, or a new lightning_logs/version_N, a different one for each concurrent run."""
    folder = Path(resume or ".").resolve().parent
    if resume and folder.name == "checkpoints" and folder.parent.name:  # else it was moved; continue in a new run
        return folder.parent
    for version in itertools.count():
        run = Path("lightning_logs", f"version_{version}")
        with contextlib.suppress(FileExistsError):  # another run has taken it
            run.mkdir(parents=True)
            return run


def add_flags(group: Any, module: type[DQNLightning]) -> list[str]:
    """Make flags of the arguments of `module` and its bases: `lr: Annotated[float, "learning rate"] = 5e-3` is --lr."""
    arguments: dict[str, inspect.Parameter] = {}
    for base in reversed(module.__mro__):
        if base not in pl.LightningModule.__mro__ and "__init__" in vars(base):
            arguments |= inspect.signature(base, eval_str=True).parameters
    names = [name for name, argument in arguments.items() if argument.default is not argument.empty]
    for name in names:
        kind, text = arguments[name].annotation, name  # argparse shows a default only beside a help text
        if kind is inspect.Parameter.empty:
            kind = type(arguments[name].default)
        if get_origin(kind) is Annotated:
            kind, text = get_args(kind)[:2]
        options: dict[str, Any] = {"type": get_args(kind)[0] if get_args(kind) else kind}  # int, for `int | None`
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif get_origin(kind) is Literal:
            options = {"choices": get_args(kind), "type": type(get_args(kind)[0])}
        group.add_argument(f"--{name}", default=arguments[name].default, help=text.replace("%", "%%"), **options)
    return names


def parse_args(argv: Sequence[str] | None = None, module: type[DQNLightning] = ImprovedDQN) -> argparse.Namespace:
    """Read the command line: the settings of the run, and the arguments of `module`."""
    parser = argparse.ArgumentParser(usage="%(prog)s [--flag value ...]", description=module.__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add_either = parser.add_mutually_exclusive_group().add_argument
    add("--gpus", type=int, default=0, help="GPUs to train on; 0: the CPU, -1: all")
    add("--num_nodes", type=int, default=1, help="machines to train on, under torchrun or srun")
    add("--max_epochs", type=int, default=1200, help="epochs to train, each of sample_size / batch_size steps")
    add("--val_check_interval", type=int, default=520, help="steps between validations, rounded up to epochs")
    add("--grad_clip", type=float, help="maximum gradient norm; None: no clipping")
    add("--seed", type=int, default=0, help="seed of all randomness")
    add("--render", action="store_true", help="show the trained agent playing, in a window")
    add_either("--resume", metavar="CKPT", nargs="?", const="", help="resume from a last.ckpt, or the newest run's")
    add_either("--test", metavar="CKPT", help="only test this checkpoint")
    names = add_flags(parser.add_argument_group("environment and DQN"), module)

    args = parser.parse_args(argv)
    resume, step = args.resume, None
    if resume == "":
        runs = sorted(Path("lightning_logs").glob("version_*"), key=lambda run: (len(run.name), run.name))
        resume = f"{runs[-1] if runs else 'lightning_logs/version_0'}/checkpoints/last.ckpt"
    if path := resume or args.test:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
            trained, owner, step = checkpoint["hyper_parameters"], checkpoint["class"], checkpoint["global_step"]
            settings = checkpoint["callbacks"]["Checkpoints"]["settings"] if resume else {}
        except Exception as error:
            parser.error(f"{path}: --resume needs a last.ckpt, --test that or a best.ckpt ({type(error).__name__})")
        if owner != module.__name__:
            parser.error(f"{path} is a checkpoint of {owner}, not of {module.__name__}")
        parser.set_defaults(**trained, **settings)
        args = parser.parse_args(argv)  # again, now that the checkpoint's settings are the defaults
        fixed = trained | ({"seed": settings["seed"]} if resume else {})  # the other settings may change
        for flag, value in fixed.items():
            if getattr(args, flag) != value:
                parser.error(f"--{flag} {getattr(args, flag)}: {path} was trained with {value}; leave it out")

    check(args, parser)
    args.parser, args.module, args.resume, args.step = parser, module, resume, step
    args.dqn = {name: getattr(args, name) for name in names}
    args.settings = {name: getattr(args, name) for name in ("seed", "max_epochs", "val_check_interval", "grad_clip")}
    return args


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse settings that cannot work, and say which."""
    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if abs(args.gpus) > gpus:
        parser.error(f"--gpus {args.gpus}: the number of visible GPUs is {gpus}; --gpus 0 is the CPU")
    counts = ("max_epochs", "val_check_interval", "batch_size", "sync_rate", "hidden_layers", "n_step")
    for name in (*counts, "eps_last_frame"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    n_step = getattr(args, "n_step", 1)
    if args.episode_length is not None and args.episode_length < n_step:
        parser.error(f"--episode_length {args.episode_length}: shorter than --n_step {n_step}; try --n_step 1")
    largest = min(args.replay_size, args.warm_start_steps + 1 - n_step)  # up to n - 1 steps are still pending
    if not args.batch_size <= args.sample_size <= largest:
        parser.error(f"--sample_size {args.sample_size}: must be --batch_size to {largest}; see --warm_start_steps")


def main(args: argparse.Namespace) -> None:
    """Train, and test the best checkpoint; or only test the checkpoint `args.test`."""
    expected = "out of date|many workers|LeafSpec|smaller than the logging|__len__|GPU available|in eval mode"
    warnings.filterwarnings("ignore", f".*({expected})")  # warnings about deliberate choices
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if not args.render:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the film needs no display

    pl.seed_everything(args.seed, verbose=False)
    try:
        model = args.module(**args.dqn)
    except (gym.error.Error, ModuleNotFoundError) as error:
        args.parser.error(f"--env {args.env}: {error} (--env module:Name-v0 imports a module of your own first)")
    if args.batch_size * sum(weight.numel() for weight in model.net.parameters()) < 2**24:
        torch.set_num_threads(1)  # measured: more threads slow a small network down

    logger: Any = False
    if not args.test:
        run = run_folder(args.resume) if pl.utilities.rank_zero_only.rank == 0 else Path("unused")
        logger = TensorBoardLogger(run.parent, "", run.name, default_hp_metric=False, purge_step=args.step)
        logger.log_hyperparams(args.settings)
    steps_per_epoch = math.ceil(args.sample_size / args.batch_size)
    trainer = pl.Trainer(
        accelerator="gpu" if args.gpus else "cpu",
        devices=args.gpus or int(os.environ.get("LOCAL_WORLD_SIZE", 1)),  # of torchrun
        num_nodes=args.num_nodes,
        max_epochs=args.max_epochs,
        check_val_every_n_epoch=min(args.max_epochs, math.ceil(args.val_check_interval / steps_per_epoch)),
        num_sanity_val_steps=0,
        gradient_clip_val=args.grad_clip,
        use_distributed_sampler=False,  # each process has its own data
        logger=logger,
        callbacks=[Progress(args.max_epochs * steps_per_epoch), Checkpoints(args.settings)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with model.env:  # closes it at the end
        if not args.test:
            trainer.fit(model, ckpt_path=args.resume, weights_only=True)
        best = args.test or os.path.relpath(Path(trainer.log_dir, "checkpoints", "best.ckpt"))
        (test,) = trainer.test(model, ckpt_path=best, weights_only=True, verbose=False)
    if not trainer.is_global_zero:
        return

    print(f"test_reward: {test['test_reward']:.2f} +/- {test['test_reward_std']:.2f} over {len(TEST_SEEDS)} episodes")
    print(f"tensorboard --logdir lightning_logs\n{program()} --test {shlex.quote(best)}")
    if logger:
        logger.log_hyperparams({**args.dqn, **args.settings}, test, model.global_step)
        try:
            gif = Summary.Image(encoded_image_string=film(model, Path(logger.log_dir, "agent.gif")))
            logger.experiment.file_writer.add_summary(Summary(value=[Summary.Value(tag="video", image=gif)]))
        except Exception as error:  # a failed film must not fail the run
            print(f"no film: {type(error).__name__}: {error}")
        logger.finalize("success")
    if args.render:
        list(play(model, "human"))  # in a window


if __name__ == "__main__":
    main(parse_args())
