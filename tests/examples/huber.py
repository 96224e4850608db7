"""The Huber loss: errors beyond a threshold count linearly, so that a few large ones do not rule an update.

    python -m tests.examples.huber --clip_error 1

Its gradient is the error, clipped to the threshold, as in Mnih et al. (2015). Alone, in plain DQN, it learns nothing
with the default --sync_rate.
"""

from typing import Annotated, Any

import torch
from torch import nn

from dqn_cartpole import Experience, ImprovedDQN, main


class Huber(ImprovedDQN):
    def __init__(self, clip_error: Annotated[float, "threshold of the Huber loss"] = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def dqn_mse_loss(self, batch: Experience) -> torch.Tensor:
        q_values = self.net(batch.state).gather(1, batch.action.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            targets = self.td_targets(batch)
        return nn.functional.huber_loss(q_values, targets, delta=self.hparams.clip_error)


if __name__ == "__main__":
    main(Huber)
