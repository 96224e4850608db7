"""A reward for learning only: a bonus for states that were seldom visited, to explore more (Tang et al. 2017).

    python -m tests.examples.count_bonus --env MountainCar-v0 --max_epochs 80 --batch_size 64 --lr 1e-3 \\
        --sync_rate 250 --replay_size 50000 --hidden_size 256 --eps_start 0.3 --eps_end 0.05

The bonus is in the agent's environment alone, so evaluations are without it, and the agent takes it off its scores.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dqn_cartpole import Agent, ImprovedDQN, main

BONUS, BITS = 0.1, 10  # for the first visit; and the size of the hash that tells states apart


class CountBonus(gym.Wrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        size = math.prod(env.observation_space.shape)
        self.planes = np.random.default_rng(0).normal(size=(BITS, size))  # states on the same sides of all count as one
        self.counts = torch.zeros(2**BITS, dtype=torch.int64)

    def step(self, action: int) -> tuple[Any, ...]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        place = int((self.planes @ observation.ravel() > 0) @ 2 ** np.arange(BITS))
        self.counts[place] += 1
        bonus = BONUS / math.sqrt(self.counts[place])
        return observation, reward + bonus, terminated, truncated, info


class CountingAgent(Agent):
    def play_step(self, *args: Any, **kwargs: Any) -> tuple[float, bool]:
        reward, episode_over = super().play_step(*args, **kwargs)
        if episode_over:
            self.scores[-1] = float(self.info["episode"]["r"])  # the sum of the rewards without the bonus
        return reward, episode_over


class Counting(ImprovedDQN):
    def make_agent(self, rng: np.random.Generator) -> Agent:
        self.bonus = CountBonus(gym.wrappers.RecordEpisodeStatistics(self.env))
        return CountingAgent(self.bonus, self.buffer, rng)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["counts"] = self.bonus.counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.bonus.counts.copy_(checkpoint["counts"])


if __name__ == "__main__":
    main(Counting)
