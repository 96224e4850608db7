"""Legal actions only: Taxi says in info["action_mask"] which actions have an effect (Huang and Ontanon 2022).

    python -m tests.examples.action_masks --max_epochs 80 --batch_size 32 --replay_size 20000 --lr 1e-3 \\
        --sync_rate 100 --n_step 3 --eps_start 1 --eps_end 0.1 --eps_fraction 0.2

A wrapper appends the mask to the observation. A hook on the network gives illegal actions a Q-value of -infinity.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from torch import nn

from dqn_cartpole import Agent, ImprovedDQN, main

TAXI = max(name for name in gym.registry if name.startswith("Taxi-v"))  # Taxi-v3, or Taxi-v4 in newer Gymnasium


class AppendMask(gym.Wrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 1, (env.observation_space.shape[0] + env.action_space.n,), np.int8)

    def reset(self, **options: Any) -> tuple[Any, ...]:
        return self.append(*self.env.reset(**options))

    def step(self, action: int) -> tuple[Any, ...]:
        return self.append(*self.env.step(action))

    def append(self, observation: np.ndarray, *rest: Any) -> tuple[Any, ...]:
        return np.append(observation, rest[-1]["action_mask"]).astype(np.int8), *rest


class MaskedAgent(Agent):
    def get_action(self, net: nn.Module, epsilon: float, device: Any) -> int:
        if self.rng.random() < epsilon:
            return int(self.rng.choice(np.flatnonzero(self.state[-self.env.action_space.n :])))
        return super().get_action(net, 0.0, device)


class ActionMasks(ImprovedDQN):
    def __init__(self, env: str = TAXI, **kwargs: Any) -> None:
        super().__init__(env=env, **kwargs)

    def make_env(self, **options: Any) -> gym.Env:
        return AppendMask(super().make_env(**options))

    def make_agent(self, rng: np.random.Generator) -> Agent:
        return MaskedAgent(self.env, self.buffer, rng)

    def make_net(self, **options: Any) -> nn.Module:
        net, n_actions = super().make_net(**options), int(self.env.action_space.n)
        net.register_forward_hook(lambda _, x, q_values: q_values.masked_fill(x[0][:, -n_actions:] == 0, -np.inf))
        return net


if __name__ == "__main__":
    main(ActionMasks)
