"""A simulator of which only one can be open: validation and test play in the environment of training, one by one.

    python -m tests.examples.one_simulator

The training episode that a validation interrupts is dropped, so this learns a little less from each step. There is no
film, because that would need a second simulator.
"""

import contextlib
from typing import Any

import torch

from dqn_cartpole import ImprovedDQN, main, parse_args


class OneSimulator(ImprovedDQN):
    def make_env(self, **options: Any) -> Any:
        """The first time a new environment, then always the same; `nullcontext` leaves it open."""
        return contextlib.nullcontext(self.env) if hasattr(self, "env") else super().make_env(**options)

    def play_episodes(self, seeds: torch.Tensor) -> torch.Tensor:
        scores = [super(OneSimulator, self).play_episodes(seed) for seed in seeds.split(1)]
        self.agent.reset()
        self.score = 0.0
        return torch.cat(scores)


if __name__ == "__main__":
    main(parse_args(module=OneSimulator))
