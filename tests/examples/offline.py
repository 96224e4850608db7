"""Data of your own: transitions from a file in place of the random steps, or in place of the agent (offline learning).

    python -c "from tests.examples.offline import record; record('data.npz', 'best.ckpt', epsilon=0.5)"
    python -m tests.examples.offline --data data.npz --offline

The file holds an array for each field of Experience, oldest first. Without `--offline` the agent adds to them.
"""

from typing import Annotated, Any

import numpy as np
import torch

from dqn_cartpole import Agent, Experience, ImprovedDQN, ReplayBuffer, main


class Offline(ImprovedDQN):
    def __init__(
        self,
        data: Annotated[str, "file of transitions for the replay buffer; none: random steps"] = "",
        offline: Annotated[bool, "learn from what is in the replay buffer, without acting"] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def populate(self, steps: int = 1000) -> None:
        if not self.hparams.data:
            return super().populate(steps)
        with np.load(self.hparams.data) as file:
            arrays = [file[name] for name in Experience._fields]
        state = None
        for experience in map(Experience, *arrays):
            if not np.array_equal(experience.state, state):  # it does not go on where the last one ended
                self.buffer.end_episode()
            self.buffer.append(experience)
            state = experience.new_state
        self.agent.reset()

    def training_step(self, batch: Experience, batch_idx: int) -> torch.Tensor:
        if not self.hparams.offline:
            return super().training_step(batch, batch_idx)
        loss = self.dqn_mse_loss(batch)
        self.sync_target()
        self.log_step(0.0, False, loss, batch)
        return loss


def record(path: str, checkpoint: str = "", epsilon: float = 1.0, steps: int = 5000) -> None:
    """Write the steps of an agent, by default a random one, to a file for --data."""
    model = ImprovedDQN.load_from_checkpoint(checkpoint, weights_only=True) if checkpoint else ImprovedDQN()
    buffer = ReplayBuffer(steps, model.env.observation_space, np.random.default_rng(0))
    agent = Agent(model.env, buffer, buffer.rng)
    for _ in range(steps):
        agent.play_step(model.net, epsilon)
    np.savez(path, **buffer.arrays._asdict())


if __name__ == "__main__":
    main(Offline)
