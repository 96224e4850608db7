"""Train a Deep Q-Network (DQN) on CartPole with PyTorch Lightning.

    pip install -r requirements.txt
    python dqn_cartpole.py                  # reaches the maximum score, 200, in half a minute; --gpus 1: on a GPU
    tensorboard --logdir lightning_logs     # watch it learn
    python dqn_cartpole.py --n_step 1 --lr_schedule constant --no-layer_norm    # plain DQN: part 1 alone
    python dqn_cartpole.py --resume         # after Ctrl-C, a crash or a kill: continue from the last validation

Part 1 is DQN as in the article that this file rebuilds: Donal Byrne, "En-Lightning Reinforcement Learning: Building a
DQN with PyTorch Lightning" (2020, pytorchlightning.ai/blog). The algorithm is from Mnih et al., "Human-level control
through deep reinforcement learning", Nature 518 (2015). Part 2 extends it: by default n-step returns, a decaying
learning rate and layer normalization, optionally double DQN, a Huber loss and soft updates. Part 3 runs it. To learn
DQN, run plain DQN and read part 1 up to "Logging and evaluation". To build an agent, subclass (more: tests/examples):

    from torch import nn
    from dqn_cartpole import ImprovedDQN, main, parse_args

    class MyDQN(ImprovedDQN):
        def __init__(self, lr: float = 3e-3, slope: float = 0.1, **kwargs):  # a default of its own, and a new flag
            super().__init__(lr=lr, **kwargs)  # saves all arguments, slope too, in self.hparams; then calls make_net

        def make_net(self):
            network = super().make_net()
            network.net[-2] = nn.LeakyReLU(self.hparams.slope)  # in place of the last ReLU; there is no self.slope yet
            return network

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
except ModuleNotFoundError:  # gym 0.26, the last release of Gymnasium's predecessor, has the same interface
    import gym

# All validations play the same episodes, so that checkpoints are comparable. The test plays others, to be unbiased.
VAL_SEEDS, TEST_SEEDS, TRAIN_SEEDS = range(20), range(1000, 1100), range(2000, 2**31)
EVAL_STEPS = 10_000  # step limit of an episode that is played greedily


# ---------------------------------------------------------------------------------------------------------------------
# Part 1: DQN
# The task: push a cart left or right to balance its pole, given position and velocity, angle and angular velocity. Each
# step has a reward of 1, until the pole falls, the cart leaves the track or, in CartPole-v0, 200 steps are over.
# The return is the sum of the future rewards, a reward k steps ahead weighted by gamma^k. The Q-value Q(s, a) is the
# expected return of taking action a in state s and then acting optimally: Q(s, a) = E[r + gamma * max_a' Q(s', a')],
# with s' the next state (Bellman). The best policy, or way to act, is greedy: take the action with the highest Q-value.
#
# The loop is Lightning's: pl.Trainer(max_epochs=1200, check_val_every_n_epoch=40).fit(model) calls methods of model:
#     model.on_fit_start()                                        # fill the replay buffer with random steps
#     for epoch in range(1200):
#         for batch in loader:                                    # train_dataloader's: 200 experiences in 13 batches
#             loss = model.training_step(batch)                   # the Trainer has moved the batch to the device
#             #   act greedily; with probability epsilon randomly  in Agent.play_step, which also stores the step
#             #   target = r + gamma * max_a' Q_target(s', a')     in td_targets
#             #   loss = mean of (Q(s, a) - target)^2              in dqn_mse_loss
#             #   every 10 steps: Q_target = Q                     in sync_target
#             optimizer.zero_grad(); loss.backward(); optimizer.step()    # Adam's step, counted by model.global_step
#         every 40 epochs: model.validation_step()                # play greedily, to see how good the agent is
#
# In TensorBoard, total_reward rises from about 20 to 200, with setbacks. train_loss grows at first, as the Q-values do.
# q_mean ends near 1 / (1 - gamma) = 100, the return of balancing forever; plain DQN overestimates it up to fourfold.


class DQN(nn.Module):
    """The Q-network: it estimates the Q-value of every action in a state."""

    def __init__(self, obs_size: int, n_actions: int, hidden_size: int = 128, hidden_layers: int = 1) -> None:
        super().__init__()
        layers = [nn.Linear(obs_size, hidden_size), nn.ReLU()]
        for _ in range(hidden_layers - 1):
            layers += [nn.Linear(hidden_size, hidden_size), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden_size, n_actions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x`, any dtype (batch, *observation shape)."""
        return self.net(x.flatten(1).float())


# A step in the environment, or a batch of them. `done`: the new state is terminal; a time limit only truncates.
Experience = namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])


class ReplayBuffer:
    """The last `capacity` experiences; a random sample breaks the correlation of consecutive steps (Lin 1992).

    Experiences of an older policy remain useful, because DQN is off-policy: whatever action was played after the new
    state, the target uses the best one.
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
        """Store one experience; once the buffer is full, in the place of the oldest."""
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


class RLDataset(IterableDataset):
    """The replay buffer as a dataset for Lightning, which trains in epochs, that is, passes over a dataset.

    Each pass draws one new sample, as in the article; Mnih et al. draw a minibatch for every step, and so does
    `--sample_size 16 --max_epochs 15600`. It yields tensors of `batch_size` experiences; without it, one by one.
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
    """Acts in `env` and stores its experiences in `replay_buffer`; `seed` seeds its generator."""

    def __init__(self, env: gym.Env, replay_buffer: ReplayBuffer, seed: int | None = None) -> None:
        self.env = env
        self.replay_buffer = replay_buffer
        self.rng = np.random.default_rng(seed)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode, by default with a random `seed`; its first observation becomes `state`."""
        self.episode_seed = int(self.rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)) if seed is None else seed
        self.actions: list[int] = []  # of this episode; with its seed, they let a resumed run repeat it
        self.replay_buffer.begin_episode()
        observation, _ = self.env.reset(seed=self.episode_seed)
        self.state = copy_observation(observation, self.env)

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        """With probability `epsilon` a random action, to explore; otherwise the one with the highest Q-value."""
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.env.action_space.n))
        state = torch.as_tensor(self.state, device=device).unsqueeze(0)
        return int(net(state).argmax())

    @torch.no_grad()
    def play_step(self, net: nn.Module, epsilon: float = 0.0, device: torch.device | str = "cpu") -> tuple[float, bool]:
        """Choose an action and take it; return the reward, and whether the episode is over."""
        return self.take(self.get_action(net, epsilon, device))

    def take(self, action: int) -> tuple[float, bool]:
        """Take `action` in the environment and store the experience; if the episode is over, begin the next."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        new_state = copy_observation(observation, self.env)
        # A time limit truncates the episode, but its last state is not terminal: the agent could have earned more. So
        # only `terminated` is stored, and the target still includes the value of that state (Pardo et al. 2018).
        self.replay_buffer.append(Experience(self.state, action, float(reward), bool(terminated), new_state))
        self.state = new_state
        self.actions.append(action)
        episode_over = bool(terminated or truncated)
        if episode_over:
            self.reset()
        return float(reward), episode_over


def copy_observation(observation: Any, env: gym.Env) -> np.ndarray:
    """A copy, because `env` may reuse the array, in a dtype wide enough for its space; float64 becomes float32."""
    array = np.array(observation)
    dtype = np.result_type(array, env.observation_space.dtype)
    return array.astype(np.float32 if dtype == np.float64 else dtype, copy=False)


class DQNLightning(pl.LightningModule):
    """The DQN algorithm as a LightningModule. Its arguments become flags, with the help text in `Annotated`."""

    def __init__(
        self,
        env: Annotated[str, "id of the environment; module:Name-v0 imports the module first"] = "CartPole-v0",
        episode_length: Annotated[int | None, "time limit in steps (unset: the environment's own)"] = None,
        replay_size: Annotated[int, "capacity of the replay buffer"] = 5000,
        warm_start_steps: Annotated[int, "random steps before the first training step"] = 1000,
        sample_size: Annotated[int, "experiences sampled for an epoch of sample_size / batch_size steps"] = 200,
        batch_size: Annotated[int, "experiences in a minibatch; the larger, the fewer steps in an epoch"] = 16,
        lr: Annotated[float, "learning rate"] = 5e-3,
        gamma: Annotated[float, "discount factor"] = 0.99,
        sync_rate: Annotated[int, "steps between updates of the target network"] = 10,
        hidden_size: Annotated[int, "units in a hidden layer"] = 128,
        hidden_layers: Annotated[int, "hidden layers"] = 1,
        eps_start: Annotated[float, "initial epsilon, the probability of a random action"] = 0.7,
        eps_end: Annotated[float, "final epsilon"] = 0.02,
        eps_last_frame: Annotated[int | None, "steps over which epsilon decays (unset: the whole run)"] = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # self.hparams: all arguments, a subclass's too (Lightning inspects the call stack)
        self.env = self.make_env()  # make_* run before the rest of a subclass's __init__, so use self.hparams
        self.net = self.make_net()
        self.target_net = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.discount = gamma  # of the value of an experience's new state; in part 2 gamma^n
        buffer_seed, agent_seed = torch.randint(2**62, (2,)).tolist()  # determined by --seed
        self.buffer = self.make_buffer(buffer_seed)
        self.agent = self.make_agent(agent_seed)
        self.criterion: nn.Module = nn.MSELoss()
        self.score = 0.0  # undiscounted sum of the rewards of the current episode; logged as total_reward
        self.scores: deque[float] = deque(maxlen=100)  # of the last finished episodes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), of the observations `x` (batch, *observation shape)."""
        return self.net(x)

    # Training, in the order of the loop at the head of part 1
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

    def train_dataloader(self) -> DataLoader:
        """Lightning calls this once. Each pass over the loader is an epoch, with a new sample."""
        dataset = RLDataset(self.buffer, self.hparams.sample_size, self.hparams.batch_size)
        return DataLoader(dataset, batch_size=None)  # the dataset makes the minibatches

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        """Act once and store the step; return the loss of `batch`, with which Lightning then takes a gradient step."""
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
        """The mean squared error of Q(s, a) against its target, float32 scalar; part 2 can make it a Huber loss."""
        q_values = self.net(batch.state).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # of the actions taken
        with torch.no_grad():  # the targets count as constants
            targets = self.td_targets(batch)
        return self.criterion(q_values, targets)

    def td_targets(self, batch: Experience) -> torch.Tensor:
        """A better estimate of Q(s, a), from one real step: r + gamma * max_a' Q_target(s', a'), float32 (batch,).

        A reward of 1, gamma 0.99 and a best next Q-value of 10 make 10.9; if the new state is terminal, 1. Using an
        estimate for the rest of the return is called bootstrapping. It comes from the target network, a copy that lags
        behind the online network, `net`. Otherwise every update would move the targets too: a dog chasing its own tail.
        """
        values = self.target_net(batch.new_state).amax(1).masked_fill(batch.done, 0.0)  # a terminal state has value 0
        return batch.reward + self.discount * values

    def sync_target(self) -> None:
        """Every `sync_rate` steps, before the gradient step, copy the weights to the target network."""
        if self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr, fused=True)  # fused is faster

    # The parts, each made by a method: override it for one of your own
    def make_env(self, **options: Any) -> gym.Env:
        """A new environment, for training or evaluation; gym.error.Error if DQN cannot play it.

        Array observations keep their shape. Others are flattened, a Dict in the alphabetical order of its keys.
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
        """All that is trained: from observations (batch, *shape), in their dtype, to Q-values (batch, n_actions)."""
        # The agent acts with it in training mode and on one state at a time, so use no BatchNorm or Dropout.
        obs_size, n_actions = math.prod(self.env.observation_space.shape), int(self.env.action_space.n)
        return DQN(obs_size, n_actions, self.hparams.hidden_size, self.hparams.hidden_layers)

    def make_buffer(self, seed: int) -> ReplayBuffer:
        return ReplayBuffer(self.hparams.replay_size, seed)

    def make_agent(self, seed: int) -> Agent:
        return Agent(self.env, self.buffer, seed)

    # Logging and evaluation
    def log_step(self, reward: float, episode_over: bool, loss: torch.Tensor, batch: Experience) -> None:
        """Log the score when an episode ends, and what changes with every step every 50 steps."""
        scalars: dict[str, float] = {}
        self.score += reward
        if episode_over:
            self.scores.append(self.score)
            scalars |= {"total_reward": self.score, "avg_reward": self.avg_reward}
            self.score = 0.0
        if self.global_step % 50 == 0:
            scalars |= {"reward": reward, "train_loss": loss.item(), "epsilon": self.epsilon}
            scalars["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            scalars["q_mean"] = self.target_net(batch.state).amax(1).mean().item()  # the target network's: no gradients
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

    # Saving and resuming
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs beyond weights and optimizer; extend both hooks to add state of your own."""
        checkpoint |= {"class": type(self).__name__, "global_step": self.global_step}  # a subclass may count its own
        if "optimizer_states" not in checkpoint:  # best.ckpt, which is for playing only
            return
        agent, buffer = self.agent, self.buffer
        arrays = [torch.from_numpy(array[: len(buffer)]) for array in buffer.arrays or ()]
        checkpoint["buffer"] = (buffer.appended, arrays)
        checkpoint["episode"] = (agent.episode_seed, list(agent.actions), list(self.scores))
        checkpoint["rng"] = (torch.get_rng_state(), agent.rng.bit_generator.state, buffer.rng.bit_generator.state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was added. The episode is played again; its seed must determine what the environment does."""
        if "buffer" not in checkpoint:
            return
        agent, buffer = self.agent, self.buffer
        episode_seed, actions, scores = checkpoint["episode"]
        self.scores = deque(scores, self.scores.maxlen)
        agent.reset(episode_seed)
        self.score = 0.0
        for action in actions:
            self.score += agent.take(action)[0]
        buffer.appended, arrays = checkpoint["buffer"]  # last, because those steps were stored again
        if arrays:
            buffer.allocate(arrays[0][0].numpy())
            for array, saved in zip(buffer.arrays, arrays):
                array[: len(saved)] = saved
        torch_rng, agent.rng.bit_generator.state, buffer.rng.bit_generator.state = checkpoint["rng"]
        torch.set_rng_state(torch_rng)


# ---------------------------------------------------------------------------------------------------------------------
# Part 2: common extensions, each by overriding a method or two
# Plain DQN solves CartPole-v0 (a validation at 195) at step 3,120 in the median of ten seeds, with n-step returns at
# 2,080. A decaying learning rate keeps what was learned. Layer normalization steadies it: the worst of 40 seeds scores
# 199.92 in the end, without it 148.59. tests/benchmarks/RESULTS.md has what each does alone.


class NStepBuffer(ReplayBuffer):
    """A replay buffer whose experiences span `n_step` steps (Sutton 1988; Hessel et al. 2018).

    An experience holds a state, the action taken there, the sum r_0 + gamma r_1 + ... + gamma^(n-1) r_(n-1) of the
    rewards that followed, and the state after them; the target adds gamma^n times the value of that state. Rewards
    propagate faster, at the price of a bias: the later actions were chosen by an older, exploratory policy.
    """

    def __init__(self, capacity: int, n_step: int, gamma: float, seed: int | None = None) -> None:
        super().__init__(capacity, seed)
        self.n_step, self.gamma = n_step, gamma
        self.pending: list[Experience] = []  # the last steps of this episode; on resume, taking them again refills it

    def append(self, experience: Experience) -> None:
        """Store the oldest pending step once n rewards have arrived; on termination all, since no reward follows.

        With n = 3, an episode that terminates at its fifth step gives five experiences, of 3, 3, 3, 2 and 1 rewards.
        """
        self.pending.append(experience)
        while len(self.pending) == self.n_step or (experience.done and self.pending):
            reward = sum(self.gamma**k * step.reward for k, step in enumerate(self.pending))
            oldest = self.pending.pop(0)
            super().append(oldest._replace(reward=reward, done=experience.done, new_state=experience.new_state))

    def begin_episode(self) -> None:
        """Drop the last steps of a truncated episode: they have fewer than the n rewards that `td_targets` assumes."""
        self.pending.clear()


class ImprovedDQN(DQNLightning):
    """DQN with n-step returns, a decaying learning rate and layer normalization; other extensions are optional."""

    def __init__(
        self,
        n_step: Annotated[int, "rewards summed before bootstrapping"] = 5,
        lr_schedule: Annotated[Literal["constant", "linear", "cosine"], "decay of lr over the run"] = "cosine",
        layer_norm: Annotated[bool, "normalize the units of each hidden layer (Ba et al. 2016)"] = True,
        double_dqn: Annotated[bool, "let the online network select the next action (van Hasselt et al. 2016)"] = False,
        clip_error: Annotated[float | None, "delta of a Huber loss (Mnih et al.: 1; unset: squared errors)"] = None,
        tau: Annotated[float, "below 1: soft updates, target += tau * (net - target), at every step; 1: copies"] = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # saves all arguments, these too, in self.hparams; then calls make_buffer
        self.buffer: NStepBuffer
        self.discount = self.hparams.gamma**self.buffer.n_step
        if clip_error is not None:
            self.criterion = nn.HuberLoss(delta=clip_error)  # half the squared error below delta

    def make_net(self) -> nn.Module:
        """Layer normalization: in each state the units of a hidden layer are standardized, then scaled and shifted."""
        net: Any = super().make_net()
        if self.hparams.layer_norm:
            for layer in range(self.hparams.hidden_layers):  # makes it Linear, LayerNorm, ReLU, Linear, ...
                net.net.insert(3 * layer + 1, nn.LayerNorm(self.hparams.hidden_size))
        return net

    def make_buffer(self, seed: int) -> NStepBuffer:
        """n-step returns: the buffer sums n rewards. The value of the state after them is discounted by gamma^n."""
        return NStepBuffer(self.hparams.replay_size, self.hparams.n_step, self.hparams.gamma, seed)

    def td_targets(self, batch: Experience) -> torch.Tensor:
        """Double DQN: the online network selects the next action, the target network evaluates it.

        Using one for both, as part 1 does, overestimates the values: the maximum prefers actions of positive error.
        """
        if not self.hparams.double_dqn:
            return super().td_targets(batch)
        actions = self.net(batch.new_state).argmax(1, keepdim=True)
        values = self.target_net(batch.new_state).gather(1, actions).squeeze(1).masked_fill(batch.done, 0.0)
        return batch.reward + self.discount * values

    def sync_target(self) -> None:
        """Soft updates: with `tau` below 1 the target network moves a little at every step (Lillicrap et al. 2016)."""
        if self.hparams.tau == 1:
            super().sync_target()
            return
        for target, value in zip(self.target_net.state_dict().values(), self.net.state_dict().values()):
            if target.is_floating_point():  # not a counter
                target.lerp_(value, self.hparams.tau)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: self.lr_factor())]

    def lr_factor(self) -> float:
        """Multiplier of `lr`, updated after each epoch; unless constant, it falls from 1 to 0 over the run."""
        progress = min(1.0, self.global_step / self.total_steps())
        factors = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return factors[self.hparams.lr_schedule]


# ---------------------------------------------------------------------------------------------------------------------
# Part 3: the run: progress bar, checkpoints, film, command line; nothing about DQN from here on


class Progress(pl.Callback):
    """One bar for the steps of the whole run (Lightning's is for an epoch), and a line for every validation."""

    def __init__(self) -> None:
        self.bar = tqdm(disable=True)  # until training starts, and in all processes but the first

    @pl.utilities.rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        print(f"{module.hparams.env} on {module.device}, logged in {os.path.relpath(trainer.logger.log_dir)}")
        hide = False if "ipykernel" in sys.modules else None  # None: hide it if there is no terminal
        self.bar = tqdm(total=module.total_steps(), initial=module.global_step, unit="step", disable=hide)

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
    """Writes best.ckpt, weights of the best validation, and last.ckpt, from which a single process resumes exactly."""

    # Not a ModelCheckpoint: when resumed, Lightning's deletes files at the paths that the checkpoint names.
    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}  # of the run; last.ckpt has them too
        self.best_reward = -math.inf
        self.folder = Path()  # of the checkpoints, known when training starts

    def on_fit_start(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        self.folder = Path(trainer.log_dir, "checkpoints")
        if not Path(self.folder, "best.ckpt").exists():  # the best of a resumed run lies elsewhere
            self.best_reward = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, module: DQNLightning) -> None:
        """Save between two epochs, after the validation if there is one, so that no sample is left half used."""
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
            for name, new in inspect.signature(base, eval_str=True).parameters.items():
                known = name in arguments and new.annotation in (new.empty, *get_args(arguments[name].annotation))
                arguments[name] = arguments[name].replace(default=new.default) if known else new  # keeps the help text
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
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to train on; 0: the CPU, -1: all")
    parser.add_argument("--num_nodes", type=int, default=1, help="machines to train on, under torchrun or srun")
    parser.add_argument("--max_epochs", type=int, default=1200, help="epochs of sample_size / batch_size steps")
    parser.add_argument("--val_check_interval", type=int, default=520, help="steps between validations (rounded up)")
    parser.add_argument("--grad_clip", type=float, help="maximum gradient norm (unset: no clipping)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument("--render", action="store_true", help="show the trained agent playing, in a window")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", metavar="CKPT", nargs="?", const="", help="resume a last.ckpt, or the newest run's")
    either.add_argument("--test", metavar="CKPT", help="only test this checkpoint")
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
    if args.gpus < -1 or abs(args.gpus) > gpus:
        parser.error(f"--gpus {args.gpus}: the number of visible GPUs is {gpus}; --gpus 0 is the CPU")
    counts = ("max_epochs", "val_check_interval", "batch_size", "sync_rate", "hidden_size", "hidden_layers", "n_step")
    for name in (*counts, "eps_last_frame"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    n_step = getattr(args, "n_step", 1)
    if args.episode_length is not None and args.episode_length < n_step:
        parser.error(f"--episode_length {args.episode_length}: shorter than --n_step {n_step}; try --n_step 1")
    largest = min(args.replay_size, args.warm_start_steps + 1 - n_step)  # up to n - 1 steps are still pending
    if not args.batch_size <= args.sample_size <= largest:
        parser.error(f"--sample_size {args.sample_size}: below --batch_size or above {largest}; see --warm_start_steps")


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
        callbacks=[Progress(), Checkpoints(args.settings)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with model.env:  # closes it at the end
        if not args.test:
            trainer.fit(model, ckpt_path=args.resume, weights_only=True)  # as in torch.load: no code is run
        best = args.test or os.path.relpath(Path(trainer.log_dir, "checkpoints", "best.ckpt"))
        if not os.path.exists(best):  # a finished run whose last.ckpt was moved: there was nothing left to train
            best = args.resume
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
