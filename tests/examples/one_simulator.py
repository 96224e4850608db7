"""A simulator of which only one can be open: training, validation and test share it.

    python -m tests.examples.one_simulator

Episodes are then evaluated one after the other, and a validation ends the training episode that it interrupts.
The video needs a simulator of its own, and is made when the other is closed.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from dqn_cartpole import ImprovedDQN, main


class OneSimulator(ImprovedDQN):
    def make_env(self, **options: Any) -> Any:
        if options or not hasattr(self, "env"):  # for the video, and at first
            return super().make_env(**options)
        return contextlib.nullcontext(self.env)  # does not close it

    def play_episodes(self, seeds: Sequence[int], *frames: Any, **options: Any) -> torch.Tensor:
        scores = torch.cat([super(OneSimulator, self).play_episodes([seed], *frames, **options) for seed in seeds])
        if not options:
            self.agent.reset()
        return scores


if __name__ == "__main__":
    main(OneSimulator)
