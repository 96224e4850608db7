"""Prioritized replay: experiences with a large error are sampled more often, and count less (Schaul et al. 2016).

    python -m tests.examples.prioritized

The priorities are in last.ckpt, too: a resumed run samples the same.
"""

from collections import namedtuple
from typing import Any

import numpy as np
import torch
from torch import nn

from dqn_cartpole import Experience, ImprovedDQN, NStepBuffer, NStepExperience, main

PrioritizedExperience = namedtuple("PrioritizedExperience", [*NStepExperience._fields, "place", "priority"])


class PrioritizedBuffer(NStepBuffer):
    """Two more arrays: the place of each experience in the buffer, and its priority. Both are in last.ckpt too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        places, priorities = np.arange(self.capacity), np.zeros(self.capacity, np.float32)
        self.arrays = PrioritizedExperience(*self.arrays, place=places, priority=priorities)

    def append(self, experience: Experience) -> None:
        highest = self.arrays.priority.max(initial=1.0)  # so that it is soon sampled
        self.arrays.priority[self.appended % self.capacity] = highest
        super().append(experience)

    def sample(self, batch_size: int) -> PrioritizedExperience:
        priorities = self.arrays.priority[: len(self)].astype(np.float64)
        rows = self.rng.choice(len(self), size=batch_size, p=priorities / priorities.sum())
        return self.arrays._make(array[rows] for array in self.arrays)


class Prioritized(ImprovedDQN):
    def make_buffer(self, rng: np.random.Generator) -> NStepBuffer:
        hparams = self.hparams
        return PrioritizedBuffer(hparams.n_step, hparams.gamma, hparams.replay_size, self.env.observation_space, rng)

    def dqn_mse_loss(self, batch: PrioritizedExperience) -> torch.Tensor:
        q_values = self.net(batch.state).gather(1, batch.action.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            targets = self.td_targets(batch)
        losses = nn.functional.mse_loss(q_values, targets, reduction="none")
        errors = losses.detach().sqrt().cpu().numpy()
        self.buffer.arrays.priority[batch.place.cpu().numpy()] = (errors + 1e-6) ** 0.6
        # What is sampled more often counts less each time: partly at first, and fully (beta = 1) at the end of the run.
        beta = 0.4 + 0.6 * self.progress
        return ((batch.priority / batch.priority.min()) ** -beta * losses).mean()


if __name__ == "__main__":
    main(Prioritized)
