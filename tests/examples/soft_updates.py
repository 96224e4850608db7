"""Soft updates: the target network follows the network a little with every step (DDPG, Lillicrap et al. 2016).

    python -m tests.examples.soft_updates --tau 0.05

An update follows each step: --sync_rate is 1 here.
"""

from typing import Annotated, Any

from dqn_cartpole import ImprovedDQN, main


class SoftUpdates(ImprovedDQN):
    def __init__(
        self,
        tau: Annotated[float, "share of the new weights in an update of the target network"] = 0.05,
        sync_rate: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(sync_rate=sync_rate, **kwargs)

    def sync_target(self) -> None:
        if self.global_step % self.hparams.sync_rate == 0:
            for target, weight in zip(self.target_net.parameters(), self.net.parameters()):
                target.lerp_(weight.detach(), self.hparams.tau)


if __name__ == "__main__":
    main(SoftUpdates)
