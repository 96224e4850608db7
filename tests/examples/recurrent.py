"""A memory: CartPole without its velocities, and a GRU over the last frames (DRQN, Hausknecht and Stone 2015).

    python -m tests.examples.recurrent --lr 2e-3

One frame does not show where the pole moves to; a few do. The GRU begins anew with each stack of frames, so that the
replay buffer needs no hidden states.
"""

from typing import Annotated, Any

import gymnasium as gym
import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, main


class LastOutput(nn.GRU):
    """The output of a GRU after the last frame, (batch, hidden_size), for flattened stacks of frames."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, _ = super().forward(x.unflatten(1, (-1, self.input_size)))
        return outputs[:, -1]


class Recurrent(ImprovedDQN):
    def __init__(self, frames: Annotated[int, "frames in an observation"] = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def make_env(self, **options: Any) -> gym.Env:
        env = super().make_env(**options)
        low, high = env.observation_space.low[::2], env.observation_space.high[::2]
        env = gym.wrappers.TransformObservation(env, lambda state: state[::2], gym.spaces.Box(low, high))
        return gym.wrappers.FrameStackObservation(env, self.hparams.frames)

    def make_net(self, **options: Any) -> nn.Module:
        """The first layer becomes a GRU."""
        net = super().make_net(**options)
        net.net[0] = LastOutput(self.env.observation_space.shape[1], self.hparams.hidden_size, batch_first=True)
        return net


if __name__ == "__main__":
    main(Recurrent)
