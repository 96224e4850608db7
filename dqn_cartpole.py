"""Train a Deep Q-Network (DQN) on CartPole with PyTorch Lightning.

    pip install -r requirements.txt
    python dqn_cartpole.py                  # trains the agent of part 2 in a minute; add --gpus 1 to use a GPU
    tensorboard --logdir lightning_logs     # shows the curves in a browser
    python dqn_cartpole.py --resume 0       # continues lightning_logs/version_0 after it was stopped
    python dqn_cartpole.py --n_step 1 --no-layer_norm --no-lr_decay     # plain DQN, as part 1 alone

This rebuilds Donal Byrne's article "En-Lightning Reinforcement Learning: Building a DQN with PyTorch Lightning" (2020).
Part 1 is DQN (Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015), with Adam and
squared errors. Part 2 improves it in a subclass; build your own agent the same way. Part 3 runs any such agent.
"""

import argparse
import contextlib
import copy
import inspect
import io
import itertools
import logging
import os
import sys
import tempfile
import warnings
from collections import deque, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin
from unittest import mock

import gymnasium as gym
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

# Every validation starts from the same states, so that scores are comparable. Training and the test have others.
VAL_SEEDS, TEST_SEEDS, TRAIN_SEEDS = range(20), range(1000, 1100), range(2000, 2**31)

# ---------------------------------------------------------------------------------------------------------------------
# Part 1: DQN
# The task: push a cart left or right so that the pole on it stays up. The state is four numbers: position and velocity
# of the cart, angle and angular velocity of the pole. Every step earns a reward of 1. An episode ends when the pole
# falls or the cart leaves the track. CartPole-v0, used in the article, also cuts every episode off after 200 steps.
#
# The return is the sum of all rewards to come, each multiplied by gamma once per step of delay. The optimal Q-value
# Q(s, a) is the expected return of taking action a in state s and acting optimally afterwards. Once you know it, acting
# optimally is easy: take the action with the highest Q-value. It satisfies the Bellman equation:
#
#     Q(s, a) = mean of [r + gamma * V(s')]           over the rewards r and the states s' that can follow
#     V(s')   = max_a' Q(s', a'), or 0 if s' is terminal
#
# DQN trains a network to satisfy it: the right side is the target, and every update moves the left side towards it.
# - Replay buffer: consecutive steps are alike, and a network trained on them alone forgets other states. So the last
#   few thousand steps are kept, and a minibatch is a random sample of them. Those that an older network chose remain
#   valid: the equation holds for any action, however it was chosen (off-policy learning).
# - Target network: the targets come from an older copy of the network. Otherwise every update would move them too.
# - Epsilon-greedy: with probability epsilon the agent takes a random action, to discover better ones.
#
# The loop is Lightning's. This is what trainer.fit(model) does with the methods below:
#     batches = model.train_dataloader()              # 1000 random steps into the replay buffer
#     for epoch in range(max_epochs):
#         for batch in batches:                       # 500 random minibatches from the replay buffer
#             loss = model.training_step(batch)       # take one step in the environment, compute the loss of the batch
#             optimizer.zero_grad(); loss.backward(); optimizer.step()
#         model.validation_step(seeds)                # play 20 episodes without exploring, to see how good the agent is
# In TensorBoard, total_reward, the sum of an episode's rewards, rises from about 20 to 200, with setbacks. train_loss
# says little, as the targets move. q_mean, the highest Q-value of a state, averaged over a minibatch, ends near 100 =
# 1 / (1 - gamma), the return of balancing forever. Plain DQN overshoots: the maximum of noisy estimates is too high.


class DQN(nn.Module):
    """The Q-network: estimates the Q-value of every action in a state. (DQNLightning is the algorithm.)"""

    def __init__(
        self, obs_size: int, n_actions: int, hidden_size: int = 128, hidden_layers: int = 1, layer_norm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in [obs_size] + [hidden_size] * (hidden_layers - 1):  # the input size of each hidden layer
            layers.append(nn.Linear(size, hidden_size))
            if layer_norm:
                layers.append(nn.LayerNorm(hidden_size))
            layers.append(nn.ReLU())
        self.net = nn.Sequential(*layers, nn.Linear(hidden_size, n_actions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q-values, float32 (batch, n_actions), for observations `x` of any dtype, (batch, *observation shape)."""
        return self.net(x.flatten(1).float())


# One step in the environment, or a batch of them. `done`: the new state is terminal, so no reward follows.
Experience = namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])


class ReplayBuffer:
    """A ring of the last `capacity` experiences (Lin 1992). Each occupies two observations plus 13 bytes."""

    def __init__(self, capacity: int, observation_space: gym.Space, rng: np.random.Generator) -> None:
        self.capacity = capacity
        self.rng = rng
        self.appended = 0  # experiences so far, overwritten ones included
        self.episode_steps = 0  # steps of the running episode
        shape, dtype = (capacity, *observation_space.shape), observation_space.dtype
        self.arrays = Experience(
            state=np.empty(shape, dtype),
            action=np.empty(capacity, np.int64),
            reward=np.empty(capacity, np.float32),
            done=np.empty(capacity, np.bool_),
            new_state=np.empty(shape, dtype),
        )

    def __len__(self) -> int:
        return min(self.appended, self.capacity)

    def append(self, experience: Experience) -> None:
        """Store an experience; once the buffer is full, overwrite the oldest."""
        for array, value in zip(self.arrays, experience):
            array[self.appended % self.capacity] = value
        self.appended += 1
        self.episode_steps += 1

    def end_episode(self) -> None:
        """Called when an episode is over: the next step begins another. (Part 2 combines the steps of one episode.)"""
        self.episode_steps = 0

    def sample(self, batch_size: int) -> Experience:
        """A random minibatch: an array with `batch_size` rows for each field."""
        rows = self.rng.integers(len(self), size=batch_size)
        return self.arrays._make(array[rows] for array in self.arrays)


class RLDataset(IterableDataset):
    """The replay buffer as a dataset for Lightning: an epoch is `steps` minibatches, each drawn when it is needed."""

    def __init__(self, buffer: ReplayBuffer, batch_size: int = 16, steps: int = 500) -> None:
        self.buffer = buffer
        self.batch_size = batch_size
        self.steps = steps

    def __len__(self) -> int:  # without it Lightning would draw a minibatch ahead, before the newest step
        return self.steps

    def __iter__(self) -> Iterator[Experience]:
        for _ in range(self.steps):
            batch = self.buffer.sample(self.batch_size)
            yield batch._make(torch.from_numpy(array) for array in batch)


class Agent:
    """Acts in `env` and stores its experiences in `replay_buffer`."""

    def __init__(self, env: gym.Env, replay_buffer: ReplayBuffer, rng: np.random.Generator) -> None:
        self.env = env
        self.replay_buffer = replay_buffer
        self.rng = rng
        self.scores: deque[float] = deque(maxlen=100)  # total reward of each of the last episodes
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode. Each has its own seed, so that it can be replayed (part 3)."""
        self.replay_buffer.end_episode()
        self.score = 0.0
        seed = TRAIN_SEEDS[self.rng.integers(len(TRAIN_SEEDS))] if seed is None else seed
        observation, _ = self.env.reset(seed=seed)
        self.state = np.array(observation)  # a copy, because the environment may reuse its array

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        """With probability `epsilon` a random action, to explore; otherwise the one with the highest Q-value."""
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.env.action_space.n))
        state = torch.as_tensor(self.state, device=device).unsqueeze(0)
        return int(net(state).argmax())

    @torch.no_grad()
    def play_step(self, net: nn.Module, epsilon: float = 0.0, device: torch.device | str = "cpu") -> tuple[float, bool]:
        """Take a step and store the experience; return the reward, and whether the episode is over."""
        action = self.get_action(net, epsilon, device)
        observation, reward, terminated, truncated, self.info = self.env.step(action)  # info: for log_step
        new_state, reward = np.array(observation), float(reward)
        for name, value in ("observation", self.state), ("observation", new_state), ("reward", np.float32(reward)):
            if not np.isfinite(value).all():
                raise FloatingPointError(f"the environment's {name} is not finite: {value}")
        # A time limit truncates the episode, but its last state is not terminal: the pole still stands. So `done` means
        # `terminated` only, and the target includes the value of that state (Pardo et al. 2018).
        self.replay_buffer.append(Experience(self.state, action, reward, terminated, new_state))
        self.state = new_state
        self.score += reward
        if episode_over := bool(terminated or truncated):
            self.scores.append(self.score)
            self.reset()
        return reward, episode_over


class DQNLightning(pl.LightningModule):
    """DQN as a LightningModule. Each argument becomes a command-line flag; `Annotated` holds its help text."""

    def __init__(
        self,
        env: Annotated[str, "id of the environment; module:Name-v0 imports the module first"] = "CartPole-v0",
        episode_length: Annotated[int, "time limit in steps; 0: the environment's own"] = 0,
        max_epochs: Annotated[int, "epochs of the run, over which epsilon and the learning rate fall"] = 30,
        steps_per_epoch: Annotated[int, "training steps in an epoch, which ends with a validation"] = 500,
        warm_start_steps: Annotated[int, "random steps before the first training step"] = 1000,
        replay_size: Annotated[int, "capacity of the replay buffer, all of which last.ckpt stores"] = 5000,
        batch_size: Annotated[int, "experiences in a minibatch"] = 16,
        lr: Annotated[float, "learning rate"] = 5e-3,
        gamma: Annotated[float, "discount factor"] = 0.99,
        sync_rate: Annotated[int, "training steps between two updates of the target network"] = 10,
        hidden_size: Annotated[int, "units of a hidden layer"] = 128,
        hidden_layers: Annotated[int, "hidden layers"] = 1,
        eps_start: Annotated[float, "initial epsilon, the probability of a random action"] = 0.7,
        eps_end: Annotated[float, "final epsilon"] = 0.02,
        eps_fraction: Annotated[float, "fraction of the run over which epsilon falls"] = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # self.hparams: these arguments, and those of a subclass's __init__
        rng = np.random.default_rng(torch.randint(2**62, ()).item())  # follows torch's seed
        self.env = self.make_env()
        self.net = self.make_net()
        self.target_net = copy.deepcopy(self.net).requires_grad_(False)
        self.buffer = self.make_buffer(rng)
        self.agent = self.make_agent(rng)

    # The parts. A subclass's super().__init__() calls these methods: read self.hparams.n_step here, not self.n_step.
    def make_env(self, **options: Any) -> gym.Env:
        """A new environment, for training or evaluation; gym.error.Error if DQN cannot play it."""
        env = gym.make(self.hparams.env, max_episode_steps=self.hparams.episode_length or None, **options)
        if not isinstance(env.observation_space, gym.spaces.Box) or not env.observation_space.shape:
            env = gym.wrappers.FlattenObservation(env)  # Discrete becomes one-hot, a Dict or Tuple one vector
        states, actions = env.observation_space, env.action_space
        if states.shape is None or not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
            env.close()
            raise gym.error.Error(f"DQN needs observations of fixed size, Discrete actions from 0: {states}, {actions}")
        # Observations get the dtype that their space declares; float64, and the int64 of one-hot, become float32.
        dtype = np.float32 if states.dtype in (np.float64, np.int64) else states.dtype.type
        return gym.wrappers.DtypeObservation(env, dtype)

    def make_net(self, **options: Any) -> nn.Module:
        """The Q-network; Adam trains all its parameters. `options` are further arguments of DQN."""
        obs_size, n_actions = int(np.prod(self.env.observation_space.shape)), int(self.env.action_space.n)
        return DQN(obs_size, n_actions, self.hparams.hidden_size, self.hparams.hidden_layers, **options)

    def make_buffer(self, rng: np.random.Generator) -> ReplayBuffer:
        return ReplayBuffer(self.hparams.replay_size, self.env.observation_space, rng)

    def make_agent(self, rng: np.random.Generator) -> Agent:
        return Agent(self.env, self.buffer, rng)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    # Training
    def train_dataloader(self) -> RLDataset:
        """The minibatches of an epoch. Lightning calls this once; any iterable of batches will do."""
        if len(self.buffer) == 0:  # otherwise the run was resumed, and its buffer restored
            self.populate(self.hparams.warm_start_steps)
        return RLDataset(self.buffer, self.hparams.batch_size, self.hparams.steps_per_epoch)

    def populate(self, steps: int = 1000) -> None:
        """Take random steps, so that the first minibatches vary."""
        for _ in range(steps):
            self.agent.play_step(self.net, epsilon=1.0, device=self.device)
        self.agent.reset()
        self.agent.scores.clear()  # avg_reward must not count random steps

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        """Take a step in the environment; return the loss of a minibatch. Lightning then takes the gradient step."""
        reward, episode_over = self.agent.play_step(self.net, self.epsilon, self.device)
        loss = self.dqn_mse_loss(batch)
        if not np.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.global_step}; a lower --lr may help")
        self.sync_target()
        self.log_step(reward, episode_over, loss, batch)
        return loss

    @property
    def progress(self) -> float:
        """The fraction of the run that is done. `global_step` counts the gradient steps."""
        return max(0.0, min(1.0, self.global_step / (self.hparams.max_epochs * self.hparams.steps_per_epoch)))

    @property
    def epsilon(self) -> float:
        """Probability of a random action: high at first, when the Q-values mean little, then less and less."""
        fraction = min(1.0, self.progress / max(self.hparams.eps_fraction, 1e-9))
        return self.hparams.eps_start + fraction * (self.hparams.eps_end - self.hparams.eps_start)

    def dqn_mse_loss(self, batch: Experience) -> torch.Tensor:
        """The mean squared error between the Q-values of the actions that were taken and their targets."""
        q_values = self.net(batch.state).gather(1, batch.action.unsqueeze(1)).squeeze(1)
        with torch.no_grad():  # the targets are constants: only the left side of the equation is trained
            targets = self.td_targets(batch)
        return nn.functional.mse_loss(q_values, targets)

    def td_targets(self, batch: Experience) -> torch.Tensor:
        """r + gamma * max_a' Q_target(s', a'), float32 (batch,): the reward and the discounted value of the new state.

        With reward 1, gamma 0.99 and Q-values of 8 and 10 in the new state it is 1 + 0.99 * 10 = 10.9; if terminal, 1.
        """
        values = self.target_net(batch.new_state).amax(1).masked_fill(batch.done, 0.0)
        return batch.reward + self.hparams.gamma * values

    def sync_target(self) -> None:
        """Every `sync_rate` steps, copy the weights to the target network."""
        if self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr, fused=True)  # fused: faster

    def log_step(self, reward: float, episode_over: bool, loss: torch.Tensor, batch: Experience) -> None:
        """Log the score of every episode, and the other metrics every 50 steps (the Trainer's log_every_n_steps)."""
        metrics: dict[str, float] = {}
        if episode_over:
            metrics |= {"total_reward": self.agent.scores[-1], "avg_reward": self.avg_reward}
        if self.global_step % self.trainer.log_every_n_steps == 0:
            metrics |= {"reward": reward, "train_loss": loss.item(), "epsilon": self.epsilon}
            metrics["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            metrics["q_mean"] = self.target_net(batch.state).amax(1).mean().item()  # of the best actions
        if metrics:
            for logger in self.loggers:  # self.log in every step would take longer than learning
                logger.log_metrics(metrics, step=self.global_step)

    @property
    def avg_reward(self) -> float:
        """Mean score of the last 100 training episodes; before the first is over, its score so far."""
        return float(np.mean(self.agent.scores or [self.agent.score]))

    # Evaluation. A batch holds the seeds of the episodes to play.
    def val_dataloader(self) -> DataLoader:
        return DataLoader(VAL_SEEDS, batch_size=len(VAL_SEEDS))

    def test_dataloader(self) -> DataLoader:
        return DataLoader(TEST_SEEDS, batch_size=20)

    def validation_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        val_reward = self.play_episodes(seeds.tolist()).mean()
        self.log_dict({"val_reward": val_reward, "avg_reward": self.avg_reward}, sync_dist=True, prog_bar=True)
        self.print(f"step {self.global_step:,}: val_reward {val_reward:.2f}")

    def test_step(self, seeds: torch.Tensor, batch_idx: int) -> None:
        self.log("test_reward", self.play_episodes(seeds.tolist()).mean(), sync_dist=True)

    def play_episodes(self, seeds: Sequence[int], frames: list[Any] | None = None, **options: Any) -> torch.Tensor:
        """Play one episode per seed without exploring, side by side; return the scores, float32 (episodes,)."""
        with contextlib.ExitStack() as stack:  # closes the environments
            envs = [stack.enter_context(self.make_env(**options)) for _ in seeds]
            states = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds)]
            scores, over = torch.zeros(len(envs)), [False] * len(envs)
            for _ in range(10_000):  # at most, for environments that never end
                if frames is not None and not over[0] and len(frames) < 500:
                    frames.append(envs[0].render())  # for a video of the first episode
                actions = self.net(torch.as_tensor(np.stack(states), device=self.device)).argmax(1).tolist()
                for i, env in enumerate(envs):
                    if not over[i]:
                        states[i], reward, terminated, truncated, _ = env.step(actions[i])
                        scores[i] += float(reward)
                        over[i] = terminated or truncated
                if all(over):
                    break
        return scores.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class"] = type(self).__name__  # part 3 refuses to load it into another class


# ---------------------------------------------------------------------------------------------------------------------
# Part 2: three improvements
# Plain DQN may forget what it has learned. With n-step returns, layer normalization and a decaying learning rate it
# learns faster and forgets less. Build your own agent the same way, in a file of its own (see tests/examples):
#
#     from dqn_cartpole import ImprovedDQN, main
#     class DoubleDQN(ImprovedDQN):  # net chooses the next action, target_net evaluates it (van Hasselt et al. 2016)
#         def td_targets(self, batch):
#             actions = self.net(batch.new_state).argmax(1, keepdim=True)
#             values = self.target_net(batch.new_state).gather(1, actions).squeeze(1).masked_fill(batch.done, 0.0)
#             return batch.reward + batch.discount * values
#     if __name__ == "__main__":
#         main(DoubleDQN)

NStepExperience = namedtuple("NStepExperience", [*Experience._fields, "discount"])


class NStepBuffer(ReplayBuffer):
    """A replay buffer of n-step returns (Watkins 1989; Hessel et al. 2018): rewards reach earlier states sooner.

    An experience begins as one step and grows with those that follow, up to n. Then its reward is the sum
    r_0 + gamma r_1 + ... + gamma^(n-1) r_(n-1), its new state the one after n steps, and its discount gamma^n. It stops
    growing at the end of the episode: with n = 3, an episode of five steps leaves experiences of 3, 3, 3, 2, 1 steps.
    The price is a bias: the later actions came from an older policy or were random, yet their rewards count.
    """

    def __init__(self, n_step: int, gamma: float, capacity: int, *args: Any) -> None:
        super().__init__(capacity, *args)
        self.arrays = NStepExperience(*self.arrays, discount=np.empty(capacity, np.float32))
        self.n_step = n_step
        self.gamma = gamma

    def append(self, experience: Experience) -> None:
        """Store a step, and let the n - 1 experiences before it grow, if they are of the same episode."""
        growing = min(self.episode_steps, self.n_step - 1, self.capacity - 1)
        for age in range(1, growing + 1):
            row = (self.appended - age) % self.capacity
            self.arrays.reward[row] += self.gamma**age * experience.reward
            self.arrays.done[row] = experience.done
            self.arrays.new_state[row] = experience.new_state
            self.arrays.discount[row] *= self.gamma
        super().append(NStepExperience(*experience, discount=self.gamma))


class ImprovedDQN(DQNLightning):
    """DQN with n-step returns, layer normalization and a decaying learning rate."""

    def __init__(
        self,
        n_step: Annotated[int, "steps of an experience; 1: one-step targets"] = 5,
        layer_norm: Annotated[bool, "layer normalization in the hidden layers"] = True,
        lr_decay: Annotated[bool, "let the learning rate fall to 0 over the run"] = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # also saves the arguments above in self.hparams, which the methods below read

    def make_buffer(self, rng: np.random.Generator) -> ReplayBuffer:
        hparams = self.hparams
        return NStepBuffer(hparams.n_step, hparams.gamma, hparams.replay_size, self.env.observation_space, rng)

    def td_targets(self, batch: NStepExperience) -> torch.Tensor:
        """As in part 1, but with the discount of each experience instead of gamma."""
        values = self.target_net(batch.new_state).amax(1).masked_fill(batch.done, 0.0)
        return batch.reward + batch.discount * values

    def make_net(self, **options: Any) -> nn.Module:
        """With layer normalization (Ba et al. 2016): hidden units keep their scale, so Q-values rarely blow up."""
        return super().make_net(layer_norm=self.hparams.layer_norm, **options)

    def configure_optimizers(self) -> Any:
        """With a learning rate that falls after every epoch, finally to 0, so that late updates change little."""
        optimizer = super().configure_optimizers()
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1 - self.progress)
        return ([optimizer], [decay]) if self.hparams.lr_decay else optimizer


# ---------------------------------------------------------------------------------------------------------------------
# Part 3: the run


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: weights and settings of the highest val_reward. Ties are common at the maximum: the newer wins."""

    def __init__(self) -> None:
        super().__init__(None, "best", "val_reward", mode="max", save_weights_only=True, enable_version_counter=False)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        return current is not None and (self.best_model_score is None or bool(current >= self.best_model_score))


class EpisodeRecorder(gym.Wrapper):
    """Remembers the seed and the actions of the running episode, so that it can be replayed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seed, self.actions = seed, []
        return super().reset(seed=seed, options=options)

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(int(action))  # a checkpoint could not restore NumPy's integers
        return super().step(action)


class ExactResume(ModelCheckpoint):
    """last.ckpt after every epoch, with all that a single process on the CPU needs to resume bit for bit."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def setup(self, trainer: pl.Trainer, model: DQNLightning, stage: str) -> None:
        super().setup(trainer, model, stage)
        if stage == "fit":
            model.agent.env = EpisodeRecorder(model.agent.env)
            model.agent.reset()

    def on_save_checkpoint(self, trainer: pl.Trainer, model: DQNLightning, checkpoint: dict[str, Any]) -> None:
        agent, buffer, env = model.agent, model.buffer, model.agent.env
        checkpoint["buffer"] = buffer.appended, [torch.from_numpy(array[: len(buffer)]) for array in buffer.arrays]
        checkpoint["episode"] = env.seed, env.actions, torch.from_numpy(agent.state), agent.score, list(agent.scores)
        checkpoint["rng"] = agent.rng.bit_generator.state, torch.get_rng_state()

    def on_load_checkpoint(self, trainer: pl.Trainer, model: DQNLightning, checkpoint: dict[str, Any]) -> None:
        if trainer.global_rank > 0:
            return  # the checkpoint has the state of the first process only
        agent, buffer = model.agent, model.buffer
        seed, actions, state, score, scores = checkpoint["episode"]
        agent.reset(seed)
        for action in actions:  # an environment cannot be saved, so replay its episode
            agent.state = np.array(agent.env.step(action)[0])
        if not np.array_equal(agent.state, state):
            warnings.warn("the environment did not repeat its episode: the resumed run will differ", stacklevel=1)
        agent.state, agent.score = state.numpy(), score
        agent.scores = deque(scores, agent.scores.maxlen)
        buffer.appended, arrays = checkpoint["buffer"]
        buffer.episode_steps = len(actions)
        for array, saved in zip(buffer.arrays, arrays):
            array[: len(saved)] = saved
        agent.rng.bit_generator.state, torch_state = checkpoint["rng"]
        torch.set_rng_state(torch_state)
        model.on_load_checkpoint(checkpoint)  # again: the replay may have changed what a subclass restored

    def on_exception(self, trainer: pl.Trainer, model: DQNLightning, exception: BaseException) -> None:
        if isinstance(exception, pl.utilities.exceptions.SIGTERMException):
            exception.code = 143  # 128 + SIGTERM; Lightning would exit with 0, as if nothing had happened
        if trainer.is_global_zero and trainer.logger and os.path.exists(f"{self.dirpath}/last.ckpt"):
            print(f"stopped; to continue, run it with --resume {trainer.logger.version}", file=sys.stderr)


@pl.utilities.rank_zero_only
def new_version() -> int:
    """Make the first free lightning_logs/version_N; runs that start together never share one."""
    for version in itertools.count():
        with contextlib.suppress(FileExistsError):
            os.makedirs(f"lightning_logs/version_{version}")
            return version


def arguments(module: type[DQNLightning]) -> dict[str, tuple[type, str, Any]]:
    """Type, help text and default of each argument of `module` and the classes it extends that can be a flag."""
    found: dict[str, tuple[type, str, Any]] = {}
    for base in reversed(module.__mro__):  # a subclass may change the default alone: it keeps type and help text
        for name, argument in inspect.signature(vars(base).get("__init__", object), eval_str=True).parameters.items():
            if isinstance(argument.default, bool | int | float | str):
                kind, text, _ = found.get(name, (type(argument.default), "", None))
                annotation = argument.annotation
                if get_origin(annotation) is Annotated:
                    annotation, text = get_args(annotation)
                if annotation in (bool, int, float, str):
                    kind = annotation
                found[name] = kind, text, argument.default
    return found


def set_up(module: type[DQNLightning], argv: Sequence[str] | None) -> tuple[argparse.Namespace, DQNLightning]:
    """Read the command line and make the model; a usage error is reported in one line and ends the program."""
    parser = argparse.ArgumentParser(usage="%(prog)s [--flag value ...]", description=module.__doc__)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to train on; 0: the CPU, -1: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument("--render", action="store_true", help="show the trained agent in a window")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", type=int, metavar="N", help="continue lightning_logs/version_N")
    begin.add_argument("--start", metavar="CKPT", help="begin with the weights and settings of this checkpoint")
    begin.add_argument("--test", metavar="CKPT", help="only test this checkpoint")
    group, flags = parser.add_argument_group("environment and DQN"), arguments(module)
    for name, (kind, text, default) in flags.items():  # lr: Annotated[float, "learning rate"] = 5e-3 becomes --lr
        options = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        group.add_argument(f"--{name}", help=f"{text} (default: {default})".replace("%", "%%"), **options)
    args = parser.parse_args(argv)
    given = {name: value for name in flags if (value := getattr(args, name)) is not None}
    for name, (kind, _, default) in flags.items():
        if kind is int and default > 0 and given.get(name, 1) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.gpus and not torch.accelerator.is_available():
        parser.error("no GPU found; omit --gpus to train on the CPU")
    if args.resume is not None and (args.seed or given.keys() - {"max_epochs"}):
        parser.error("--resume keeps all settings but --max_epochs; to change others, use --start")
    args.last = None if args.resume is None else f"lightning_logs/version_{args.resume}/checkpoints/last.ckpt"
    if path := args.last or args.start or args.test:
        try:
            saved = torch.load(path, mmap=True, weights_only=True)  # runs no code from the file
            owner, args.step = saved["class"], saved["global_step"]
        except Exception as error:
            parser.error(f"no checkpoint in {path} ({type(error).__name__})")
        if owner != module.__name__:
            parser.error(f"{path} is a checkpoint of {owner}, not of {module.__name__}")
    pl.seed_everything(args.seed + pl.utilities.rank_zero_only.rank, verbose=False)  # processes play different episodes
    try:
        model = module.load_from_checkpoint(path, "cpu", weights_only=True, **given) if path else module(**given)
    except (gym.error.Error, ModuleNotFoundError, NotImplementedError) as error:
        if getattr(error, "name", None):  # one of the program's own imports failed; gym.make gives no name
            raise
        parser.error(f"--env: {str(error) or 'its observations cannot be flattened'}")
    for name, value in model.hparams.items():
        try:
            torch.save(value, file := io.BytesIO())
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        except Exception:
            parser.error(f"a checkpoint cannot restore {name}={value!r}: pass a number, a str or a list of these")
    return args, model


@mock.patch.dict(os.environ, SDL_VIDEODRIVER="dummy")  # draw without a display
def save_gif(model: DQNLightning, path: str) -> None:
    """Write the first test episode as an animated GIF, at half size and half the frames."""
    frames: list[np.ndarray] = []
    model.play_episodes(TEST_SEEDS[:1], frames, render_mode="rgb_array")
    first, *others = [Image.fromarray(np.uint8(frame)).reduce(2) for frame in frames[::2]]
    first.save(path, save_all=True, append_images=others, duration=40, loop=0)


def main(
    module: type[DQNLightning] = ImprovedDQN,
    argv: Sequence[str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **options: Any,
) -> Mapping[str, float]:
    """Train a model of class `module`, test its best weights and return the result, such as {"test_reward": 200.0}.

    `argv`: the command line; `callbacks`: more callbacks; `options`: more arguments of the Trainer.
    """
    # Leave out what Lightning and Gymnasium say about things that are deliberate here.
    warnings.filterwarnings("ignore", ".*(of date|workers|LeafSpec|logging interval|not empty|GPU available|lowered)")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # more threads slow a small network down
    args, model = set_up(module, argv)
    logger: Any = False
    if not args.test:  # purge_step: drop the points of the curves after the checkpoint
        version, step = (args.resume, args.step) if args.last else (new_version(), None)
        logger = TensorBoardLogger("lightning_logs", "", version, default_hp_metric=False, purge_step=step)
    trainer = pl.Trainer(
        accelerator="gpu" if args.gpus else "cpu",
        devices=args.gpus or int(os.environ.get("LOCAL_WORLD_SIZE", 1)),  # set by torchrun
        max_epochs=model.hparams.max_epochs,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # each process has data of its own
        enable_model_summary=False,
        logger=logger,
        callbacks=[BestCheckpoint(), ExactResume(), TQDMProgressBar(50 if sys.stdout.isatty() else 0), *callbacks],
        **options,
    )
    with model.agent.env:  # closes it, even after an error
        if not args.test:
            with mock.patch.object(tempfile, "tempdir", "lightning_logs"):  # from there a checkpoint moves in one piece
                trainer.fit(model, ckpt_path=args.last, weights_only=True)
        weights = trainer.checkpoint_callback.best_model_path or None  # None: it was never validated
        (result,) = trainer.test(model, ckpt_path=weights, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        print(f"test_reward: {result['test_reward']:.2f} over {len(TEST_SEEDS)} episodes")
        if not args.test:
            logger.log_hyperparams({**model.hparams, "seed": torch.initial_seed()}, result, model.global_step)
            logger.finalize("success")
            print(f"weights: {weights}\ncurves: tensorboard --logdir lightning_logs")
            if "rgb_array" in model.env.metadata.get("render_modes", []):
                save_gif(model, f"{logger.log_dir}/agent.gif")
                print(f"video: {logger.log_dir}/agent.gif")
        if args.render:
            model.play_episodes(TEST_SEEDS[:1], render_mode="human")
    return result


if __name__ == "__main__":
    main()
