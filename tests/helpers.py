"""What the tests share: run the script as a person does, and read back what it wrote."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).resolve().parents[1] / "dqn_cartpole.py"


def run_script(*flags: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`python dqn_cartpole.py FLAGS` in the folder `cwd`, with `env` on top of this environment."""
    command = [sys.executable, SCRIPT, *flags]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300)


def scalars(version: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in the folder of a run, as TensorBoard reads them: (step, value) points by name."""
    events = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def last_checkpoint(version: Path) -> dict[str, torch.Tensor]:
    """The weights with which the run ended."""
    checkpoint = torch.load(version / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return checkpoint["state_dict"]


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
