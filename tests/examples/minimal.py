"""Part 1 alone with a `main` of your own and a plain Trainer.

    python -m tests.examples.minimal
    python -m tests.examples.minimal --resume 0

best.ckpt and last.ckpt are written as by the whole program, and the second command continues from last.ckpt.
"""

import argparse

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from dqn_cartpole import BestCheckpoint, DQNLightning, ExactResume


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a DQN.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v0", help="id of the environment")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate")
    parser.add_argument("--max_epochs", type=int, default=30, help="epochs to train")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument("--resume", type=int, metavar="N", help="continue lightning_logs/version_N")
    args = parser.parse_args()

    torch.set_num_threads(1)  # more threads slow a small network down
    pl.seed_everything(args.seed)
    model = DQNLightning(env=args.env, lr=args.lr, max_epochs=args.max_epochs)
    last = None if args.resume is None else f"lightning_logs/version_{args.resume}/checkpoints/last.ckpt"
    step = torch.load(last, mmap=True)["global_step"] if last else None  # points of the curves after it are dropped
    logger = TensorBoardLogger(".", version=args.resume, default_hp_metric=False, purge_step=step)
    trainer = pl.Trainer(max_epochs=args.max_epochs, logger=logger, callbacks=[BestCheckpoint(), ExactResume()])
    trainer.fit(model, ckpt_path=last, weights_only=True)
    trainer.test(model, ckpt_path="best", weights_only=True)


if __name__ == "__main__":
    main()
