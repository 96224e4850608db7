"""Quantile regression: learn how the return is distributed, not only its mean (QR-DQN, Dabney et al. 2018).

    python -m tests.examples.quantile

The Q-value of an action is the mean of its quantiles.
"""

from typing import Annotated, Any

import torch
from torch import nn

from dqn_cartpole import DQN, ImprovedDQN, NStepExperience, main


class QuantileDQN(nn.Module):
    """The Q-value of an action is the mean of its quantiles."""

    def __init__(self, dqn: DQN, quantiles: int) -> None:
        super().__init__()
        self.net, last = dqn.net, dqn.net[-1]
        self.net[-1] = nn.Linear(last.in_features, quantiles * last.out_features)
        self.shape = quantiles, last.out_features

    def quantiles(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, quantiles, n_actions)"""
        return self.net(x.flatten(1).float()).unflatten(1, self.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quantiles(x).mean(1)


class Quantile(ImprovedDQN):
    def __init__(self, quantiles: Annotated[int, "that describe the return of an action"] = 50, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def make_net(self, **options: Any) -> nn.Module:
        return QuantileDQN(super().make_net(**options), self.hparams.quantiles)

    def dqn_mse_loss(self, batch: NStepExperience) -> torch.Tensor:
        rows, count = torch.arange(len(batch.action)), self.hparams.quantiles
        quantiles = self.net.quantiles(batch.state)[rows, :, batch.action]
        with torch.no_grad():
            next_quantiles = self.target_net.quantiles(batch.new_state)
            best = next_quantiles.mean(1).argmax(1)
            discounts = (batch.discount * ~batch.done).unsqueeze(1)  # 0 if the new state is terminal
            targets = batch.reward.unsqueeze(1) + discounts * next_quantiles[rows, :, best]
        # Compare each quantile with each target. The k-th of N should lie above (k - 1/2) / N of the targets: a target
        # above it pulls with that weight, a target below it with the rest.
        quantiles, targets = torch.broadcast_tensors(quantiles.unsqueeze(2), targets.unsqueeze(1))
        shares = (torch.arange(count, device=self.device).unsqueeze(1) + 0.5) / count
        weights = torch.where(targets > quantiles, shares, 1 - shares)
        errors = nn.functional.huber_loss(quantiles, targets, reduction="none")
        return (weights * errors).mean(2).sum(1).mean()


if __name__ == "__main__":
    main(Quantile)
