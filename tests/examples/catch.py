"""Your own environment: a ball falls through 8 x 8 pixels, and the paddle in the lowest row must catch it.

    python -m tests.examples.catch
    python dqn_cartpole.py --env tests.examples.catch:Catch-v0

An environment is a class with `reset` and `step`, registered under an id. The second command finds it too, because such
an id first imports the module before the colon. The game is from Mnih et al., "Recurrent models of visual attention"
(2014).
"""

from typing import Any

import gymnasium as gym
import numpy as np

from dqn_cartpole import ImprovedDQN, main


class CatchEnv(gym.Env):
    """An episode is one ball; the reward is 1 if it is caught."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  for the video
    observation_space = gym.spaces.Box(0, 1, (8, 8, 1), np.float32)  # rows, columns, and one channel like an image
    action_space = gym.spaces.Discrete(3)  # left, stay, right

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)  # seeds self.np_random
        self.row, (self.ball, self.paddle) = 0, self.np_random.integers(8, size=2).tolist()
        return self.image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.row += 1
        self.paddle = min(max(self.paddle + int(action) - 1, 0), 7)
        terminated = self.row == 7
        return self.image(), float(terminated and self.ball == self.paddle), terminated, False, {}

    def image(self) -> np.ndarray:
        image = np.zeros((8, 8, 1), np.float32)
        image[self.row, self.ball] = image[7, self.paddle] = 1
        return image

    def render(self) -> np.ndarray:
        return np.kron(self.image(), np.full((30, 30, 3), 255)).astype(np.uint8)


gym.register("Catch-v0", CatchEnv, reward_threshold=0.95)


class Catch(ImprovedDQN):
    def __init__(self, env: str = "Catch-v0", **kwargs: Any) -> None:
        super().__init__(env=env, **kwargs)


if __name__ == "__main__":
    main(Catch)
