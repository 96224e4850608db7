"""C51: learn the probabilities of 51 returns, not only their mean (Bellemare, Dabney and Munos 2017).

    python -m tests.examples.c51 --v_max 100

Returns outside of --v_min to --v_max count as the nearest of the two.
"""

from typing import Annotated, Any

import torch
from torch import nn

from dqn_cartpole import ImprovedDQN, NStepExperience, main


class CategoricalDQN(nn.Module):
    """The Q-value of an action is the mean of its distribution: a probability for each of `returns`."""

    def __init__(self, net: nn.Module, returns: torch.Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("returns", returns)

    def log_probabilities(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).unflatten(1, (-1, len(self.returns))).log_softmax(2)  # (batch, n_actions, 51)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.log_probabilities(x).exp() @ self.returns


class C51(ImprovedDQN):
    def __init__(
        self,
        v_min: Annotated[float, "lowest return"] = 0.0,
        v_max: Annotated[float, "highest return"] = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def make_net(self, **options: Any) -> nn.Module:
        net = super().make_net(**options)
        net.net[-1] = nn.Linear(net.net[-1].in_features, int(self.env.action_space.n) * 51)
        return CategoricalDQN(net, torch.linspace(self.hparams.v_min, self.hparams.v_max, 51))

    def dqn_mse_loss(self, batch: NStepExperience) -> torch.Tensor:
        rows, returns = torch.arange(len(batch.action), device=self.device), self.net.returns
        with torch.no_grad():
            actions = self.target_net(batch.new_state).argmax(1)
            probabilities = self.target_net.log_probabilities(batch.new_state)[rows, actions].exp()
            discounts = batch.discount.masked_fill(batch.done, 0.0)
            new_returns = batch.reward.unsqueeze(1) + discounts.unsqueeze(1) * returns
            # A new return lies between two of the 51. They share its probability: the nearer gets the more.
            distances = (new_returns.clamp(returns[0], returns[-1]).unsqueeze(1) - returns.unsqueeze(1)).abs()
            shares = (1 - distances / (returns[1] - returns[0])).clamp(min=0)
            targets = (shares @ probabilities.unsqueeze(2)).squeeze(2)
        return -(targets * self.net.log_probabilities(batch.state)[rows, batch.action]).sum(1).mean()


if __name__ == "__main__":
    main(C51)
