"""`python -m tests.examples.fast`: the same agent, bit for bit. Measured: 0.55 of the time of a step (RESULTS.md)."""

from dqn_cartpole import Experience, ImprovedDQN, main, parse_args


class Fast(ImprovedDQN):
    global_step = 0  # counted here, because Lightning does not see these steps

    def train_dataloader(self):
        self.automatic_optimization = False  # only now, because Lightning would have refused --grad_clip
        loader = super().train_dataloader()
        self.minibatches, loader.dataset.batch_size = len(loader), self.hparams.sample_size  # one call an epoch
        return loader

    def training_step(self, sample: Experience, batch_idx: int) -> None:
        optimizer, weights = self.optimizers(use_pl_optimizer=False), list(self.net.parameters())
        for batch in zip(*(field.split(self.hparams.batch_size) for field in sample)):
            for weight in weights:
                weight.grad = None  # faster than optimizer.zero_grad()
            super().training_step(type(sample)(*batch), batch_idx).backward()
            if self.trainer.gradient_clip_val:  # from --grad_clip
                self.clip_gradients(optimizer)
            optimizer.step()
            self.global_step += 1
        self.lr_schedulers().step()

    def total_steps(self) -> float:
        return super().total_steps() * self.minibatches

    def validation_step(self, seeds, batch_idx: int) -> None:
        super().validation_step(seeds, batch_idx)
        self.log("step", self.global_step - 1.0)  # where the point of val_reward goes

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.global_step = checkpoint["global_step"]


if __name__ == "__main__":
    main(parse_args(module=Fast))
