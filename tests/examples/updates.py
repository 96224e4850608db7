"""Several steps in the environment for each update, as with games: Mnih et al. (2015) take four.

    python -m tests.examples.updates --steps_per_update 4

All that counts steps counts updates here: the curves, the bar, epsilon, the copies to the target network.
"""

from typing import Annotated, Any

import torch

from dqn_cartpole import Experience, ImprovedDQN, main


class Updates(ImprovedDQN):
    def __init__(
        self, steps_per_update: Annotated[int, "steps in the environment for each update"] = 4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        for _ in range(self.hparams.steps_per_update - 1):  # the last step is that of the base class
            _, episode_over = self.agent.play_step(self.net, self.epsilon, self.device)
            if episode_over:
                for logger in self.loggers:
                    logger.log_metrics({"total_reward": self.agent.scores[-1]}, step=self.global_step)
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    main(Updates)
