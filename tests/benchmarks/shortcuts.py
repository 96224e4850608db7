"""What each method by which dqn_cartpole.py overtakes Lightning is worth: a run with it switched off and on in turns.

    pip install -r requirements.txt
    python tests/benchmarks/shortcuts.py        # three minutes

Every ten epochs the method is taken away, or put back, and the time of those epochs is noted: two things compared
within a run, seconds apart, show differences of a per cent, which runs beside each other do not.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import dqn_cartpole
from dqn_cartpole import FastDQN, NoProfiler

SHORTCUTS: dict[str, tuple[type, str]] = {
    "attributes set as `nn.Module` sets them": (FastDQN, "__setattr__"),
    "Lightning's own idle profiler": (NoProfiler, "profile"),
    "gradients forgotten as the optimizer does it": (FastDQN, "optimizer_zero_grad"),
}
BLOCK = 10  # epochs
FIRST = 80  # epoch of the first change
FLAGS = ["--max_epochs=1600", f"--val_check_interval={10**6}", "--eps_start=0.36", "--eps_end=0.36"]


class Switch(pl.Callback):
    """Takes the method away and puts it back, and times the epochs between, but for the first of each block."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name, self.method = owner, name, vars(owner)[name]
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.on, self.begun = True, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        epoch, now = trainer.current_epoch, time.perf_counter()
        if epoch >= FIRST and epoch % BLOCK == 0:
            self.on = not self.on
            if self.on:
                setattr(self.owner, self.name, self.method)
            else:
                delattr(self.owner, self.name)
        elif epoch % BLOCK == 1:
            self.begun = now
        elif epoch > FIRST and epoch % BLOCK == BLOCK - 1:
            self.seconds[self.on].append(now - self.begun)

    def on_train_end(self, *_: Any) -> None:
        setattr(self.owner, self.name, self.method)


def main() -> None:
    os.chdir(tempfile.mkdtemp())
    fit = pl.Trainer.fit
    print("| undone | ms a step | with it | ratio |\n| --- | --- | --- | --- |")
    for what, (owner, name) in SHORTCUTS.items():
        switch = Switch(owner, name)

        def switched_fit(trainer: pl.Trainer, model: FastDQN, switch: Switch = switch, **kwargs: Any) -> None:
            trainer.callbacks.append(switch)
            fit(trainer, model, **kwargs)

        pl.Trainer.fit = switched_fit  # type: ignore[method-assign,assignment]
        args = dqn_cartpole.parse_args(FLAGS)
        with contextlib.redirect_stdout(sys.stderr):
            dqn_cartpole.main(args)
        steps = (BLOCK - 2) * -(-args.sample_size // args.batch_size)
        without, with_it = (1000 * statistics.median(switch.seconds[on]) / steps for on in (False, True))
        print(f"| {what} | {without:.2f} | {with_it:.2f} | {without / with_it:.3f} |", flush=True)


if __name__ == "__main__":
    main()
