"""Exploration by a softmax of the Q-values: the better an action seems, the more often it is tried (Sutton 1990).

    python -m tests.examples.boltzmann --temp_start 10 --temp_end 0.1

The temperature decides how much better counts. It falls, and with it the share of inferior actions.
Epsilon is 0, and 1 only for the random steps before training.
"""

from typing import Annotated, Any

import torch
from torch import nn

from dqn_cartpole import Agent, Experience, ImprovedDQN, main


class BoltzmannAgent(Agent):
    temperature = 1.0  # set before each step

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.env.action_space.n))
        q_values = net(torch.as_tensor(self.state, device=device).unsqueeze(0))[0].cpu().double()
        return int(self.rng.choice(len(q_values), p=(q_values / self.temperature).softmax(0).numpy()))


class Boltzmann(ImprovedDQN):
    def __init__(
        self,
        temp_start: Annotated[float, "temperature at the first step"] = 10.0,
        temp_end: Annotated[float, "temperature at the last step"] = 0.1,
        eps_start: float = 0.0,
        eps_end: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(eps_start=eps_start, eps_end=eps_end, **kwargs)

    def make_agent(self, rng: Any) -> Agent:
        return BoltzmannAgent(self.env, self.buffer, rng)

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        start, end = self.hparams.temp_start, self.hparams.temp_end
        self.agent.temperature = start * (end / start) ** self.progress  # falls by the same factor in every step
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    main(Boltzmann)
