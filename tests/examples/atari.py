"""Atari games from pixels, with the network and the preprocessing of Mnih et al. (2015).

    pip install ale-py opencv-python
    python -m tests.examples.atari --gpus 1 --max_epochs 200 --steps_per_epoch 5000 --warm_start_steps 10000 \\
        --replay_size 50000 --batch_size 32 --lr 1e-4 --sync_rate 1000 --hidden_size 512 --n_step 3 --eps_start 1 \\
        --eps_fraction 0.1

A step takes 56 KB in the replay buffer: 2.8 GB in all, and last.ckpt is as large.
"""

from typing import Any

import ale_py
import gymnasium as gym
import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, main

gym.register_envs(ale_py)


class AtariDQN(nn.Module):
    def __init__(self, n_actions: int, hidden_size: int, layer_norm: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(4, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, hidden_size),
            nn.LayerNorm(hidden_size) if layer_norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(hidden_size, n_actions),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x / 255)  # the buffer keeps bytes, a quarter of the memory of float32


class Atari(ImprovedDQN):
    def __init__(self, env: str = "ALE/Pong-v5", **kwargs: Any) -> None:
        super().__init__(env=env, **kwargs)

    def make_env(self, **options: Any) -> gym.Env:
        env = super().make_env(frameskip=1, **options)
        env = gym.wrappers.AtariPreprocessing(env)  # keeps every fourth frame, 84 x 84 and grey
        return gym.wrappers.FrameStackObservation(env, 4)  # four of them, so that it shows where things move

    def make_net(self, **options: Any) -> nn.Module:
        return AtariDQN(int(self.env.action_space.n), self.hparams.hidden_size, self.hparams.layer_norm)


if __name__ == "__main__":
    main(Atari)
