"""Observations of several parts, a Dict space, and a network with a branch for each part.

    python -m tests.examples.two_branches

The base class flattens a Dict space into one vector. The network splits it again, in the order of the keys, which
Gymnasium sorts. Here the parts are the cart and the pole; with a camera and a speed one branch would be a convolution.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from torch import nn

from dqn_cartpole import ImprovedDQN, main

SPACE = gym.spaces.Dict({part: gym.spaces.Box(-np.inf, np.inf, (2,)) for part in ("cart", "pole")})


def cart_and_pole(**options: Any) -> gym.Env:
    """CartPole with {"cart": [position, speed], "pole": [angle, speed]} as its observation."""
    env = CartPoleEnv(**options)
    return gym.wrappers.TransformObservation(env, lambda state: {"cart": state[:2], "pole": state[2:]}, SPACE)


gym.register("CartAndPole-v0", cart_and_pole, max_episode_steps=200, reward_threshold=195.0)


class BranchesNet(nn.Module):
    """A layer for each part of the observation, and one more for their outputs."""

    def __init__(self, sizes: list[int], n_actions: int, hidden_size: int, layer_norm: bool) -> None:
        super().__init__()
        norm = nn.LayerNorm if layer_norm else nn.Identity
        self.sizes = sizes
        self.branches = nn.ModuleList(
            [nn.Sequential(nn.Linear(size, hidden_size), norm(hidden_size), nn.ReLU()) for size in sizes]
        )
        self.head = nn.Linear(len(sizes) * hidden_size, n_actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.float().split(self.sizes, dim=1)
        return self.head(torch.cat([branch(part) for branch, part in zip(self.branches, parts)], dim=1))


class TwoBranches(ImprovedDQN):
    def __init__(self, env: str = "CartAndPole-v0", **kwargs: Any) -> None:
        super().__init__(env=env, **kwargs)

    def make_net(self, **options: Any) -> nn.Module:
        sizes = [gym.spaces.flatdim(space) for space in SPACE.values()]
        return BranchesNet(sizes, int(self.env.action_space.n), self.hparams.hidden_size, self.hparams.layer_norm)


if __name__ == "__main__":
    main(TwoBranches)
