"""What MountainCar needs: random actions that last, and observations rescaled to -1 to 1.

    python -m tests.examples.mountain_car --max_epochs 240 --batch_size 128 --lr 1e-3 --sync_rate 200 \\
        --replay_size 50000 --hidden_size 256 --eps_start 0.1 --eps_fraction 0.2

The car has to swing to climb, many steps in each direction: random actions of a single step hardly ever do it.
Here they last longer (Dabney et al., "Temporally-Extended Epsilon-Greedy Exploration", 2021). Its speed is at most
0.07, its position up to 1.2: without rescaling, which needs finite bounds, a network hardly sees the speed.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from dqn_cartpole import Agent, ImprovedDQN, main

LONGEST = 40  # a random action lasts from 1 to this many steps


class HoldingAgent(Agent):
    def reset(self, seed: int | None = None) -> None:
        self.steps_left = self.held_action = 0
        super().reset(seed)

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        if self.steps_left == 0 and self.rng.random() < epsilon:
            self.steps_left = int(self.rng.integers(1, LONGEST + 1))
            self.held_action = int(self.rng.integers(self.env.action_space.n))
        if self.steps_left == 0:
            return super().get_action(net, 0.0, device)
        self.steps_left -= 1
        return self.held_action


class MountainCar(ImprovedDQN):
    def __init__(self, env: str = "MountainCar-v0", **kwargs: Any) -> None:
        super().__init__(env=env, **kwargs)

    def make_env(self, **options: Any) -> gym.Env:
        return gym.wrappers.RescaleObservation(super().make_env(**options), -1, 1)

    def make_agent(self, rng: np.random.Generator) -> Agent:
        return HoldingAgent(self.env, self.buffer, rng)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["held"] = self.agent.steps_left, self.agent.held_action

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.agent.steps_left, self.agent.held_action = checkpoint["held"]


if __name__ == "__main__":
    main(MountainCar)
