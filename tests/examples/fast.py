"""The same agent in one process, bit for bit but faster: Lightning is called once an epoch, not once a minibatch.

    python -m tests.examples.fast

Every flag works; accumulate_grad_batches and several processes do not.
"""

import gc

gc.set_threshold(100_000)  # the imports take less time with fewer searches for garbage
from dqn_cartpole import ImprovedDQN, main  # noqa: E402


class Fast(ImprovedDQN):
    global_step = 0  # counted here, because Lightning sees one step an epoch

    def train_dataloader(self) -> range:
        self.minibatches = super().train_dataloader()
        self.global_step = self.trainer.global_step * self.hparams.steps_per_epoch  # not 0 if the run was resumed
        return range(1)  # one call of training_step an epoch

    def training_step(self, number, batch_idx):
        optimizer, device, clip = self.optimizers(use_pl_optimizer=False), self.device, self.trainer.gradient_clip_val
        for step, batch in enumerate(self.minibatches, start=1):
            batch = batch._make(field.to(device) for field in batch)
            loss = super().training_step(batch, batch_idx)
            self.global_step += 1
            if step < len(self.minibatches):  # the last step is Lightning's, so that it counts and saves the epoch
                optimizer.zero_grad()
                loss.backward()
                if clip:
                    self.configure_gradient_clipping(optimizer, clip, self.trainer.gradient_clip_algorithm)
                optimizer.step()
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("step", self.global_step - 1.0)  # where val_reward is drawn

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["global_step"] = self.global_step  # from here a resumed run draws its curves


if __name__ == "__main__":
    main(Fast)
