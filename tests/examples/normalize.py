"""Normalized observations: minus the mean, divided by the standard deviation of those of the random steps.

    python -m tests.examples.normalize

The network normalizes, and not a wrapper of the environment such as Gymnasium's NormalizeObservation: that one would
begin anew in each environment, those of the evaluation too, and change what the replay buffer already holds. As buffers
of the network, mean and standard deviation are in every checkpoint and belong to what is exported.
"""

from typing import Any

import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, main


class Normalize(ImprovedDQN):
    def make_net(self, **options: Any) -> nn.Module:
        net, shape = super().make_net(**options), self.env.observation_space.shape
        net.register_buffer("mean", torch.zeros(shape))
        net.register_buffer("std", torch.ones(shape))
        net.register_forward_pre_hook(lambda net, inputs: ((inputs[0] - net.mean) / net.std,))
        return net

    def populate(self, steps: int = 1000) -> None:
        super().populate(steps)
        if not self.net.mean.any():  # otherwise they came with the weights (--start)
            states = torch.from_numpy(self.buffer.arrays.state[: len(self.buffer)]).float()
            for net in (self.net, self.target_net):
                net.mean.copy_(states.mean(0))
                net.std.copy_(states.std(0).clamp(min=1e-6))


if __name__ == "__main__":
    main(Normalize)
