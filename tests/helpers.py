"""What the tests share: run the script, in this process or as a person does, and read back what it wrote."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import dqn_cartpole

SCRIPT = Path(__file__).resolve().parents[1] / "dqn_cartpole.py"
RUN = Path("lightning_logs", "version_0")


def run_script(*flags: str, cwd: Path, script: Path = SCRIPT, **env: str) -> subprocess.CompletedProcess[str]:
    """`python dqn_cartpole.py FLAGS` in the folder `cwd`, with `env` on top of this environment."""
    command = [sys.executable, str(script), *flags]
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parent)} | env
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def main(flags: str = "", module: type[dqn_cartpole.DQNLightning] = dqn_cartpole.ImprovedDQN) -> None:
    """The same in this process and in the current folder."""
    dqn_cartpole.main(dqn_cartpole.parse_args(flags.split(), module))


def fit(model: pl.LightningModule, max_epochs: int = 1, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """Train with a plain, quiet Trainer that does not validate."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": max_epochs}
    trainer = pl.Trainer(callbacks=list(callbacks), **quiet | settings)
    trainer.fit(model)
    return trainer


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def last_of(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in the folder of a run, as TensorBoard reads them: (step, value) points by name."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def same(a: Any, b: Any) -> bool:
    """Whether two values of a checkpoint are equal bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


class Toy(gym.Env):
    """Three random numbers, and a reward of 1 in each of the `length` steps of an episode."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": []}  # noqa: RUF012
    length: float = 10

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return self.observe(), {}

    def step(self, action):
        self.taken += 1
        return self.observe(), 1.0, self.taken >= self.length, False, {}


class FixedQ(nn.Module):
    """Gives the same Q-values for every observation."""

    def __init__(self, *q_values: float) -> None:
        super().__init__()
        self.q_values = nn.Parameter(torch.tensor(q_values, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_values.expand(len(x), -1)
