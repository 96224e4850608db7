"""What the tests share: run the script, in this process or as a person does, and read back what it wrote."""

import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import dqn_cartpole

SCRIPT = Path(__file__).resolve().parents[1] / "dqn_cartpole.py"
RUN = Path("lightning_logs", "version_0")
os.environ["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parent), str(Path(__file__).parent)])  # of the processes below
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["helpers"])

Module = type[dqn_cartpole.DQNLightning]


def run_script(*flags: str, cwd: Path, script: Path = SCRIPT, **env: str) -> subprocess.CompletedProcess[str]:
    """`python dqn_cartpole.py FLAGS` in the folder `cwd`, with `env` on top of this environment."""
    command = [sys.executable, str(script), *flags]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300)


def main(flags: str = "", module: Module = dqn_cartpole.ImprovedDQN, **options: Any) -> Mapping[str, float]:
    """The same in this process and in the current folder."""
    return dqn_cartpole.main(module, shlex.split(flags), **options)


def start(
    flags: str, folder: Path, prepare: Callable[[], object] = object, module: Module = dqn_cartpole.ImprovedDQN
) -> BaseProcess:
    """The same in a process of its own and in `folder`, after `prepare`; its output goes to files beside the folder.

    It is the fork of a server that has imported PyTorch already, so that a start costs next to nothing.
    """
    folder.mkdir(exist_ok=True)
    process = FORKS.Process(target=child, args=(flags, folder, prepare, module))
    process.start()
    return process


def child(flags: str, folder: Path, prepare: Callable[[], object], module: Module) -> None:
    os.chdir(folder)
    write_to(folder)
    dqn_cartpole.VAL_SEEDS, dqn_cartpole.TEST_SEEDS = range(3), range(1000, 1003)  # quicker
    dqn_cartpole.save_gif = lambda *_: None
    sys.argv = ["program.py"]
    prepare()
    main(flags, module)


def write_to(path: Path) -> None:
    """Let the output of this process go to files beside a path."""
    for suffix, descriptor in ((".stdout", 1), (".stderr", 2)):
        with path.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), descriptor)


def finish(process: BaseProcess, folder: Path) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of what `start` began."""
    process.join(300)
    return process.exitcode, *(folder.with_suffix(suffix).read_text() for suffix in (".stdout", ".stderr"))


def run(flags: str, folder: Path, *how: Any) -> tuple[int | None, str, str]:
    return finish(start(flags, folder, *how), folder)


def refusal(flags: str, capsys: pytest.CaptureFixture[str], module: Module = dqn_cartpole.ImprovedDQN) -> str:
    """The line with which a command line is refused, nothing in the current folder having changed."""
    before = contents(Path())
    with pytest.raises(SystemExit) as ended:
        main(flags, module)
    output = capsys.readouterr()
    assert (ended.value.code, output.out, contents(Path())) == (2, "", before)
    usage, line = output.err.splitlines()
    assert usage.startswith("usage: ")
    return line


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def fit(model: pl.LightningModule, epochs: int = 1, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """Train with a plain, quiet Trainer that does not validate."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": epochs}
    trainer = pl.Trainer(**quiet | {"callbacks": list(callbacks)} | settings)
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
