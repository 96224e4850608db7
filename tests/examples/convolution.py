"""A convolutional network for small images, that of Young and Tian ("MinAtar", 2019, section 4).

    python -m tests.examples.convolution
    python -m tests.examples.convolution --env MinAtar/Breakout-v1 --max_epochs 40 --steps_per_epoch 1000 \\
        --warm_start_steps 5000 --replay_size 100000 --batch_size 64 --lr 1e-3 --sync_rate 250 --n_step 3 --eps_start 1

It plays Catch by default, and MinAtar's five games after `pip install minatar`. The images have their channels last.
"""

import contextlib
from typing import Any

import gymnasium as gym
import torch
from torch import nn

import tests.examples.catch  # noqa: F401  registers Catch-v0
from dqn_cartpole import ImprovedDQN, main

with contextlib.suppress(ModuleNotFoundError):
    from minatar.gym import register_envs

    register_envs()


class ConvolutionalDQN(nn.Module):
    def __init__(self, shape: tuple[int, int, int], n_actions: int, hidden_size: int, layer_norm: bool) -> None:
        super().__init__()
        rows, columns, channels = shape
        self.net = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (rows - 2) * (columns - 2), hidden_size),
            nn.LayerNorm(hidden_size) if layer_norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(hidden_size, n_actions),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.movedim(-1, 1).float())  # a convolution wants the channels first


class Convolution(ImprovedDQN):
    def __init__(self, env: str = "Catch-v0", **kwargs: Any) -> None:
        super().__init__(env=env, **kwargs)

    def make_env(self, **options: Any) -> gym.Env:
        env = super().make_env(**options)
        env.metadata = {}  # no video, because MinAtar's pictures are no bytes
        return env

    def make_net(self, **options: Any) -> nn.Module:
        shape, n_actions = self.env.observation_space.shape, int(self.env.action_space.n)
        return ConvolutionalDQN(shape, n_actions, self.hparams.hidden_size, self.hparams.layer_norm)


if __name__ == "__main__":
    main(Convolution)
