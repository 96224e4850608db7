"""A dueling network: the value of a state, and what each action adds to it (Wang et al. 2016).

    python -m tests.examples.dueling

In many states it hardly matters what one does. The network then learns the value of the state from every action.
It replaces the last layer of the network that the classes it extends make, so it combines with other examples:
`class Both(Dueling, Prioritized)` is a dueling network that learns from prioritized replay.
"""

from typing import Any

import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, main


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean of A(s, .); without the mean V and A would not be determined."""

    def __init__(self, features: int, n_actions: int) -> None:
        super().__init__()
        self.value = nn.Linear(features, 1)
        self.advantage = nn.Linear(features, n_actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Dueling(ImprovedDQN):
    def make_net(self, **options: Any) -> nn.Module:
        net = super().make_net(**options)
        last = net.net[-1]
        net.net[-1] = DuelingHead(last.in_features, last.out_features)
        return net


if __name__ == "__main__":
    main(Dueling)
