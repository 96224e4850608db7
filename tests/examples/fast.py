"""The same agent, bit for bit, in two thirds of the time: Lightning's loop is called once an epoch, not once a step.

    python -m tests.examples.fast
Measured: 0.61 of the time of a step (tests/benchmarks/RESULTS.md)
"""

import math
from typing import Any

from torch.utils.data import DataLoader

from dqn_cartpole import ImprovedDQN, RLDataset, main, parse_args


class Fast(ImprovedDQN):
    def train_dataloader(self) -> DataLoader:
        self.automatic_optimization = False  # only now, because Lightning would have refused --grad_clip
        return DataLoader(RLDataset(self.buffer, self.hparams.sample_size, self.hparams.sample_size), batch_size=None)

    def training_step(self, sample: Any, batch_idx: int) -> None:
        optimizer, weights = self.optimizers(), list(self.net.parameters())
        for batch in zip(*(field.split(self.hparams.batch_size) for field in sample)):
            for weight in weights:
                weight.grad = None  # faster than optimizer.zero_grad()
            super().training_step(type(sample)(*batch), batch_idx).backward()
            self.clip_gradients(optimizer)  # to --grad_clip
            optimizer.step()
        self.lr_schedulers().step()

    def total_steps(self) -> float:  # for Lightning an epoch is one step here
        return super().total_steps() * math.ceil(self.hparams.sample_size / self.hparams.batch_size)

    def validation_step(self, seeds: Any, batch_idx: int) -> None:
        super().validation_step(seeds, batch_idx)
        self.log("step", self.global_step - 1.0)  # where the point of val_reward goes; else at the number of epochs


if __name__ == "__main__":
    main(parse_args(module=Fast))
