"""A simulator of which only one can be open: validation and test play in the environment of training, one by one.

    python -m tests.examples.one_simulator

A validation drops the training episode that it interrupts. The film comes when the environment of training is closed.
Measured: the default command, one seed: 200 over 100 episodes
"""

import contextlib
from typing import Any

import torch

from dqn_cartpole import ImprovedDQN, main, parse_args


class OneSimulator(ImprovedDQN):
    def make_env(self, **options: Any) -> Any:
        """For training and for the film a new environment, else that of training; `nullcontext` leaves it open."""
        if options or not hasattr(self, "env"):
            return super().make_env(**options)
        return contextlib.nullcontext(self.env)

    def play_episodes(self, seeds: torch.Tensor) -> torch.Tensor:
        scores = [super(OneSimulator, self).play_episodes(seed) for seed in seeds.split(1)]
        self.agent.reset()
        self.score = 0.0
        return torch.cat(scores)


if __name__ == "__main__":
    main(parse_args(module=OneSimulator))
