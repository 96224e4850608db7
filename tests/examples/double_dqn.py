"""Double DQN: `net` chooses the next action, `target_net` rates it (van Hasselt, Guez and Silver 2016).

    python -m tests.examples.double_dqn

One network for both takes the highest of several noisy estimates, which is too high on average.
"""

import torch

from dqn_cartpole import ImprovedDQN, NStepExperience, main


class DoubleDQN(ImprovedDQN):
    def td_targets(self, batch: NStepExperience) -> torch.Tensor:
        actions = self.net(batch.new_state).argmax(1, keepdim=True)
        values = self.target_net(batch.new_state).gather(1, actions).squeeze(1).masked_fill(batch.done, 0.0)
        return batch.reward + batch.discount * values


if __name__ == "__main__":
    main(DoubleDQN)
