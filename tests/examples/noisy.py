"""Noisy layers explore instead of epsilon: noise moves each weight, as far as training finds useful (Fortunato 2018).

    python -m tests.examples.noisy

Epsilon is 0. It replaces every linear layer of the network that the classes it extends make.
"""

import math
from typing import Any

import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, main


class NoisyLinear(nn.Linear):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight_noise = nn.Parameter(torch.full((out_features, in_features), 0.5 / math.sqrt(in_features)))
        self.bias_noise = nn.Parameter(torch.full((out_features,), 0.5 / math.sqrt(in_features)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """With new noise each time in training, and with none in validation and test."""
        if not self.training:
            return super().forward(x)
        # Factorised noise: a random number for each output and each input, whose products are the noise of the weights.
        # They are drawn on the CPU, also for a GPU, because that generator is restored when a run is resumed.
        noise = [torch.randn(size).to(x.device) for size in self.weight.shape]
        outputs, inputs = (number.sign() * number.abs().sqrt() for number in noise)
        weight = self.weight + self.weight_noise * torch.outer(outputs, inputs)
        return nn.functional.linear(x, weight, self.bias + self.bias_noise * outputs)


class Noisy(ImprovedDQN):
    def __init__(self, eps_start: float = 0.0, eps_end: float = 0.0, **kwargs: Any) -> None:
        super().__init__(eps_start=eps_start, eps_end=eps_end, **kwargs)

    def make_net(self, **options: Any) -> nn.Module:
        net = super().make_net(**options)
        for part in list(net.modules()):
            for name, layer in part.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(part, name, NoisyLinear(layer.in_features, layer.out_features))
        return net


if __name__ == "__main__":
    main(Noisy)
