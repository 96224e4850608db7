"""Self-play: tic-tac-toe, only legal moves, against an older copy of itself (as Tesauro's TD-Gammon, 1995).

    python -m tests.examples.self_play

The copy is made anew once an epoch, between two games, and saved with the weights: so a resumed game is the same.
Validation and test play against random moves.
"""

import gymnasium as gym
import numpy as np
import torch

from dqn_cartpole import main
from tests.examples.action_masks import ActionMasks


class TicTacToe(gym.Env):
    observation_space, action_space, opponent = gym.spaces.Box(0, 1, (18,), np.int8), gym.spaces.Discrete(9), None
    lines = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.squares = np.zeros((2, 9), np.int8)  # the player's and the opponent's
        if self.np_random.random() < 0.5:
            self.mark(1, self.reply())
        return self.squares.flatten(), {"action_mask": self.squares.sum(0) == 0}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward, over = self.mark(0, action)
        if not over:
            reward, over = self.mark(1, self.reply())
        return self.squares.flatten(), reward, over, False, {"action_mask": self.squares.sum(0) == 0}

    def mark(self, player: int, square: int) -> tuple[float, bool]:
        self.squares[player, square] = 1
        won = bool(self.squares[player, self.lines].all(1).any())
        return won * (1.0, -1.0)[player], won or bool(self.squares.any(0).all())

    def reply(self) -> int:
        if self.opponent is None or self.np_random.random() < 0.3:  # some random moves, so that the games vary
            return self.np_random.choice(np.flatnonzero(self.squares.sum(0) == 0))
        return self.opponent(np.append(self.squares[::-1], self.squares.sum(0) == 0))


gym.register("TicTacToe-v0", TicTacToe)


class SelfPlay(ActionMasks):
    def __init__(self, env: str = "TicTacToe-v0", **kwargs) -> None:
        super().__init__(env=env, **kwargs)
        self.opponent = self.make_net().requires_grad_(False)
        self.env.unwrapped.opponent = lambda x: self.opponent(torch.tensor(x, device=self.device)[None]).argmax().item()

    def on_train_epoch_start(self) -> None:
        self.opponent.load_state_dict(self.net.state_dict())
        self.agent.reset()


if __name__ == "__main__":
    main(SelfPlay)
