"""C51: learn the distribution of the return as the probabilities of 51 values (Bellemare, Dabney and Munos 2017).

    python -m tests.examples.c51 --v_max 100

Measured: not yet
"""

from typing import Annotated, Any

import torch
from torch import nn

from dqn_cartpole import DQN, Experience, ImprovedDQN, main


class CategoricalDQN(nn.Module):
    """The Q-value of an action is the mean of its distribution."""

    def __init__(self, net: DQN, values: torch.Tensor) -> None:
        super().__init__()
        self.net = net.net
        self.net[-1] = nn.Linear(net.net[-1].in_features, net.net[-1].out_features * len(values))
        self.register_buffer("values", values)

    def log_probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n_actions, values)"""
        return self.net(x.flatten(1).float()).unflatten(1, (-1, len(self.values))).log_softmax(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.log_probabilities(x).exp() @ self.values


class C51(ImprovedDQN):
    def __init__(
        self,
        v_min: Annotated[float, "lowest return"] = 0.0,
        v_max: Annotated[float, "highest return"] = 100.0,
        atoms: Annotated[int, "values in between, both included"] = 51,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def make_net(self, **options: Any) -> nn.Module:
        hparams = self.hparams
        return CategoricalDQN(super().make_net(**options), torch.linspace(hparams.v_min, hparams.v_max, hparams.atoms))

    def dqn_mse_loss(self, batch: Experience) -> torch.Tensor:
        """The cross-entropy between the distribution of the return and its target."""
        rows, values = torch.arange(len(batch.action)), self.net.values
        with torch.no_grad():
            actions = self.target_net(batch.new_state).argmax(1)
            probabilities = self.target_net.log_probabilities(batch.new_state)[rows, actions].exp()
            discounts = (batch.discount * ~batch.done).unsqueeze(1)
            returns = (batch.reward.unsqueeze(1) + discounts * values).clamp(values[0], values[-1])
            # A return between two values gives each of them a share of its probability: the nearer, the more.
            shares = 1 - (returns.unsqueeze(1) - values.unsqueeze(1)).abs() / (values[1] - values[0])
            targets = (shares.clamp(min=0) @ probabilities.unsqueeze(2)).squeeze(2)
        return -(targets * self.net.log_probabilities(batch.state)[rows, batch.action]).sum(1).mean()


if __name__ == "__main__":
    main(C51)
