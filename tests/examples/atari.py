"""Atari games from pixels, with the network and the preprocessing of Mnih et al. (2015).

    pip install ale-py opencv-python
    python -m tests.examples.atari --gpus 1 --max_epochs 38000 --val_check_interval 26000 --replay_size 50000 \\
        --warm_start_steps 10000 --batch_size 32 --sample_size 416 --lr 1e-4 --sync_rate 1000 --hidden_size 512 \\
        --n_step 3 --clip_error 1 --eps_start 1 --eps_last_frame 100000

Measured: test score -21 of 21 after 520 steps, which is nothing yet: a real run takes hours
"""

from typing import Any

import ale_py
import gymnasium as gym
import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, main, parse_args

gym.register_envs(ale_py)


class AtariDQN(nn.Module):
    """Q-values of four grey pictures of 84 x 84 pixels, the newest last."""

    def __init__(self, n_actions: int, hidden_size: int) -> None:
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

    def make_net(self) -> nn.Module:
        return AtariDQN(int(self.env.action_space.n), self.hparams.hidden_size)


if __name__ == "__main__":
    main(parse_args(module=Atari))
