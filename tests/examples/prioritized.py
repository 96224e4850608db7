"""Prioritized replay: experiences with a large error are sampled more often, and count less (Schaul et al. 2016).

    python -m tests.examples.prioritized

Measured: see tests/benchmarks/RESULTS.md
"""

from collections import namedtuple
from typing import Any

import numpy as np
import torch

from dqn_cartpole import Experience, ImprovedDQN, NStepBuffer, ReplayBuffer, main, parse_args

Sample = namedtuple("Sample", [*Experience._fields, "place", "priority"])


class PrioritizedBuffer(ReplayBuffer):
    def __init__(self, capacity: int, seed: int | None = None) -> None:
        super().__init__(capacity, seed)
        self.priorities = np.zeros(capacity)  # 0: an empty place; when all are taken, the newest takes the oldest's
        self.appended = 0

    def append(self, experience: Experience) -> None:
        super().append(experience)
        self.priorities[self.appended % len(self.priorities)] = self.priorities.max(initial=1.0)  # soon to be sampled
        self.appended += 1

    def sample(self, batch_size: int) -> Sample:
        places = self.rng.choice(len(self.priorities), batch_size, p=self.priorities / self.priorities.sum())
        rows = (places - self.appended) % len(self)  # of which 0 is the oldest
        return Sample(*self.read(rows), places, self.priorities[places].astype(np.float32))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"priorities": torch.tensor(self.priorities), "appended": self.appended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.priorities[:], self.appended = state["priorities"].numpy(), state["appended"]


class PrioritizedNStepBuffer(NStepBuffer, PrioritizedBuffer):  # the first sums rewards, for the second to store
    pass


class Prioritized(ImprovedDQN):
    def make_buffer(self, seed: int) -> ReplayBuffer:
        return PrioritizedNStepBuffer(self.hparams.replay_size, self.hparams.n_step, self.hparams.gamma, seed)

    def losses(self, batch: Any) -> torch.Tensor:
        *experiences, places, priorities = batch
        losses = super().losses(experiences)
        self.buffer.priorities[places.cpu().numpy()] = (losses.detach().sqrt().cpu().numpy() + 1e-6) ** 0.6
        beta = 0.4 + 0.6 * self.global_step / self.trainer.estimated_stepping_batches  # 1, all bias undone, at the end
        return (priorities / priorities.min()) ** -beta * losses


if __name__ == "__main__":
    main(parse_args(module=Prioritized))
