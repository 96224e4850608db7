"""Prioritized replay: experiences with a large error are sampled more often, and count less (Schaul et al. 2016).

    python -m tests.examples.prioritized

Measured: CartPole-v1, ten seeds: solved by 10, at step 8,008 in the median
"""

from collections import namedtuple
from typing import Any

import numpy as np
import torch

from dqn_cartpole import Experience, ImprovedDQN, NStepBuffer, ReplayBuffer, main, parse_args

Sample = namedtuple("Sample", ["state", "action", "reward", "done", "new_state", "place", "priority"])


class PrioritizedBuffer(ReplayBuffer):
    """Two more arrays beside the five: the place of each experience, and its priority. They are resumed, too."""

    def allocate(self, state: np.ndarray) -> None:
        super().allocate(state)
        self.arrays = Sample(*self.arrays, np.arange(self.capacity), np.zeros(self.capacity, np.float32))

    def append(self, experience: Experience) -> None:
        super().append(experience)
        newest = (self.appended - 1) % self.capacity
        self.arrays.priority[newest] = self.arrays.priority.max(initial=1.0)  # so that it is soon sampled

    def sample(self, batch_size: int) -> Sample:
        priorities = self.arrays.priority.astype(np.float64)  # 0 where there is no experience yet
        rows = self.rng.choice(self.capacity, batch_size, p=priorities / priorities.sum())
        return Sample(*(array[rows] for array in self.arrays))


class PrioritizedNStepBuffer(NStepBuffer, PrioritizedBuffer):
    """NStepBuffer sums the rewards and hands each experience on to the next class, PrioritizedBuffer."""


class Prioritized(ImprovedDQN):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion.reduction = "none"  # a loss for each experience, weighted below

    def make_buffer(self, seed: int) -> NStepBuffer:
        return PrioritizedNStepBuffer(self.hparams.replay_size, self.hparams.n_step, self.hparams.gamma, seed)

    def dqn_mse_loss(self, batch: Any) -> torch.Tensor:
        losses = super().dqn_mse_loss(batch)
        errors = losses.detach().sqrt().cpu().numpy()
        self.buffer.arrays.priority[batch.place.cpu().numpy()] = (errors + 1e-6) ** 0.6
        # What is sampled more often counts less each time: partly at first, and fully (beta = 1) at the end of the run.
        beta = 0.4 + 0.6 * self.global_step / self.total_steps()
        return ((batch.priority / batch.priority.min()) ** -beta * losses).mean()


if __name__ == "__main__":
    main(parse_args(module=Prioritized))
