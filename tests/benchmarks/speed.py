"""Time dqn_cartpole.py against a loop written by hand, the article's port and Stable-Baselines3; print Markdown.

    pip install -r requirements.txt -r tests/benchmarks/requirements.txt
    python tests/benchmarks/speed.py --json speed.json            # everything: about an hour on two cores
    python tests/benchmarks/speed.py --only step                  # six minutes
    python tests/benchmarks/speed.py --only scale --rounds 3      # eight minutes
    python tests/benchmarks/speed.py --only solved                # about 20 minutes, 90 at the most
    python tests/benchmarks/speed.py --only processes --rounds 3  # four minutes

Parts:
    step       time of a training step; start of the process to the end of its first training step; peak memory
    scale      time of a step, and (b)'s beside it, against replay capacity (filled), batch and hidden size; what
               share of (a)'s is Lightning's: not the sample, `training_step`, the backward pass, Adam, nor clearing
               the gradients
    solved     start of the process to the first validation at 195, of (a) at its defaults and at a command line that
               was tuned for this, as rl-baselines3-zoo's settings are, beside its two settings for CartPole
    processes  environment steps a second, in all, of (a) in one process and in two

Contenders:
    (a) dqn_cartpole.py as a user runs it: a fresh process on a terminal; logs, bar and checkpoints are on
    (b) the same work in a loop of PyTorch written by hand
    (c) the article's structure, ported to current packages and not otherwise changed
    (d) Stable-Baselines3's DQN with the same network, batch, buffer, warm start, epsilon, sync, n-step returns and
        update rate

Stable-Baselines3 brings Matplotlib with it, which one of Lightning's packages imports wherever it is installed. So that
(a) starts as it does for a user, run it from an environment of its own:

    python -m venv .venv/user && .venv/user/bin/pip install -r requirements.txt
    python tests/benchmarks/speed.py --python .venv/user/bin/python

Every measurement is a process of its own, in a temporary folder and on a pseudo-terminal (so this needs Linux
or macOS), one at a time. The contenders take turns within a round, and a ratio is taken within a round: what
slows the machine slows both. Values are medians over the rounds, with the least and the greatest. A training
step is timed at a constant epsilon, the mean of a default run; logs and checkpoints are part of it, validation is
counted apart. ((c) learns from single steps, as the article does.)

Torch's threads: (a) and (b) use one where the network is small; Stable-Baselines3 uses one, in its favour; (c) as
many as there are cores, because nobody told it otherwise. Measure on a machine that does nothing else: where a
core is taken, threads wait for each other, and (c) is several times slower than it is (not so with
OMP_NUM_THREADS=1 in the environment, which holds for all).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib.util
import itertools
import json
import math
import os
import platform
import pty
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

SCRIPT = "dqn_cartpole.py"  # in the folder of each measurement: a copy of what it was at the start
SOURCE = (Path(__file__).resolve().parents[2] / SCRIPT).read_bytes()
USER_PYTHON = sys.executable  # what runs (a)
PARTS = ("step", "scale", "solved", "processes")
NAMES = {"script": "(a) dqn_cartpole.py", "bare": "(b) bare PyTorch loop", "article": "(c) the article's structure"}
NAMES |= {"sb3": "(d) Stable-Baselines3 DQN", "gpu": "(a) with --gpus 1"}
SKIP = 300  # training steps before the first that is timed
SOLVED = 195  # mean reward of 20 greedy episodes
SCALE: list[tuple[dict[str, int], int]] = [  # what differs from the defaults, and by what to divide --steps
    ({}, 1),
    ({"replay_size": 10**3}, 1),
    ({"replay_size": 10**5}, 1),
    ({"replay_size": 10**6}, 1),
    ({"batch_size": 256}, 2),
    ({"batch_size": 4096}, 5),
    ({"hidden_size": 1024}, 2),
    ({"hidden_size": 1024, "batch_size": 4096}, 15),
]
PROCESSES: list[tuple[dict[str, int], int]] = [({}, 1), ({"hidden_size": 1024}, 2)]  # as in SCALE
# What it solves CartPole soonest with. Larger minibatches learn more from a step.
QUICK = {"batch_size": 32, "sample_size": 416, "replay_size": 20000, "lr": 1e-2, "n_step": 1}
QUICK |= {"eps_start": 1.0, "eps_end": 0.5, "eps_last_frame": 200}
QUICK |= {"val_check_interval": 260}  # as often as the network changes at the zoo's former settings
# CartPole-v1 in rl-baselines3-zoo's hyperparams/dqn.yml, today (as of commit 019107e) and before (ce95481).
ZOO: dict[str, dict[str, Any]] = {
    "rl-baselines3-zoo, today": {
        "n_timesteps": 200_000,
        "learning_rate": 2.5e-4,
        "batch_size": 512,
        "buffer_size": 100_000,
        "learning_starts": 0,
        "train_freq": 16,
        "gradient_steps": 4,
        "target_update_interval": 5000,
        "exploration_fraction": 0.06,
        "exploration_final_eps": 0.11,
    },
    "rl-baselines3-zoo, former": {
        "n_timesteps": 50_000,
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1000,
        "train_freq": 256,
        "gradient_steps": 128,
        "target_update_interval": 10,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
}


@dataclass
class Job:
    """What a process of this file is told to do."""

    kind: str  # name of the function that does it
    settings: dict[str, Any] = field(default_factory=dict)  # of dqn_cartpole.py, each by name
    flags: list[str] = field(default_factory=list)  # for dqn_cartpole.py: which of them are not its defaults
    zoo: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    skip: int = 0  # training steps before the first that is timed
    steps: int = sys.maxsize  # training steps to time; so many mean: go on until it is solved
    fill: bool = False  # fill the replay buffer before training
    started: float = 0.0  # by time.monotonic, which all processes share


def report(**figures: Any) -> NoReturn:
    """Leave the figures to the parent and end this process."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    Path("result.json").write_text(json.dumps(figures))
    os._exit(0)


class Clock:
    """Times the training steps of a job, and ends the process once they are done."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start = self.begun = math.nan
        self.validations: list[float] = []  # seconds of each since `begun`
        self.work = 0.0  # seconds since `begun` in what a loop without Lightning would do too

    def tick(self, step: int) -> None:
        """To be called before every training step, with the number of those that are done."""
        if step == 1:
            self.start = time.monotonic() - self.job.started
        if step == self.job.skip:
            self.begun = time.monotonic()
            self.validations.clear()
            self.work = 0.0
        elif step == self.job.skip + self.job.steps:
            seconds = time.monotonic() - self.begun - sum(self.validations)
            validation = statistics.fmean(self.validations) if self.validations else None
            share = 1 - self.work / seconds if self.work else None
            report(start=self.start, step=1000 * seconds / self.job.steps, validation=validation, share=share)

    def counted(self, function: Callable[..., Any], sign: int = 1) -> Callable[..., Any]:
        """The function, its time counted as work; or taken out again, where what calls it is counted."""

        @functools.wraps(function)  # Lightning looks at the arguments
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            result = function(*args, **kwargs)
            self.work += sign * (time.monotonic() - began)
            return result

        return timed


def watch(module: Any, clock: Clock) -> None:
    """Let a class of LightningModules tell the clock of its training steps and validations, by public hooks."""
    training_step, steps, began = module.training_step, itertools.count(), 0.0
    validation_start, validation_end = module.on_validation_start, module.on_validation_end

    @functools.wraps(training_step)  # Lightning looks at the arguments
    def timed_step(*args: Any) -> Any:
        clock.tick(next(steps))
        return training_step(*args)

    def on_validation_start(self: Any) -> None:
        nonlocal began
        began = time.monotonic()
        validation_start(self)

    def on_validation_end(self: Any) -> None:
        validation_end(self)
        now = time.monotonic()
        clock.validations.append(now - began)
        if clock.job.steps == sys.maxsize and self.trainer.callback_metrics["val_reward"] >= SOLVED:
            report(seconds=now - clock.job.started, steps=self.hparams.warm_start_steps + self.global_step)

    module.training_step = timed_step
    module.on_validation_start, module.on_validation_end = on_validation_start, on_validation_end


def count_work(module: Any, clock: Clock) -> None:
    """Let the clock know how long the classes of the script and of PyTorch work: what is left is Lightning's.

    (And that of the bar, of checkpoints, and of what is done between epochs.)
    """
    import torch

    dataset = sys.modules[module.__module__].RLDataset
    sample, adam = dataset.__iter__, clock.counted(torch.optim.Adam.step)
    dataset.__iter__ = lambda self: iter(clock.counted(functools.partial(next, sample(self), None)), None)
    module.training_step = clock.counted(module.training_step)
    module.optimizer_zero_grad = clock.counted(module.optimizer_zero_grad)
    torch.Tensor.backward = clock.counted(torch.Tensor.backward)  # type: ignore[method-assign]
    # Lightning calls these from within the step of Adam, where they are counted already.
    torch.optim.Adam.step = lambda self, closure: adam(self, clock.counted(closure, -1))  # type: ignore[method-assign]


def fill(arrays: Sequence[Any], held: int) -> None:
    """Fill a replay buffer's arrays with copies of their first `held` rows: a full one costs what it costs."""
    for array in arrays:
        for row in range(held, len(array), held):
            array[row : row + held] = array[: min(held, len(array) - row)]


# The functions that a process of its own calls, by name. Each imports what it needs and nothing that another does.


def defaults(job: Job) -> None:
    """No contender: report the script's defaults, and whether there is a GPU."""
    import torch

    settings = vars(runpy.run_path(SCRIPT)["Parser"]().parse_args([]))
    report(settings=settings, gpu=torch.cuda.is_available())


def script(job: Job) -> None:
    """(a) The script itself, from its command line on; only that `Trainer.fit` first lets it know the clock."""
    import pytorch_lightning as pl

    fit = pl.Trainer.fit

    def clocked_fit(trainer: pl.Trainer, model: Any, **kwargs: Any) -> None:
        clock = Clock(job)
        if job.fill:
            count_work(type(model), clock)
            model.populate(model.hparams.warm_start_steps)
            fill(model.buffer.arrays, len(model.buffer))
            model.buffer.appended = model.buffer.capacity
        watch(type(model), clock)
        fit(trainer, model, **kwargs)

    pl.Trainer.fit = clocked_fit  # type: ignore[method-assign,assignment]
    sys.argv = [SCRIPT, *job.flags]
    runpy.run_path(SCRIPT, run_name="__main__")


def bare(job: Job) -> None:
    """(b) What an expert writes who wants the same work done, fast and no more: no logs, bar or checkpoints."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import nn

    s, clock = SimpleNamespace(**job.settings), Clock(job)
    if s.batch_size * s.hidden_size < 2**16:
        torch.set_num_threads(1)
    env, rng = gym.make(s.env, disable_env_checker=True), np.random.default_rng(job.seed)
    state, _ = env.reset(seed=job.seed)
    n_actions = int(env.action_space.n)  # type: ignore[attr-defined]
    net, target = (
        nn.Sequential(nn.Linear(len(state), s.hidden_size), nn.ReLU(), nn.Linear(s.hidden_size, n_actions))
        for _ in range(2)
    )
    weights, target_weights = list(net.parameters()), list(target.parameters())
    optimizer = torch.optim.Adam(weights, lr=s.lr, fused=True)
    states, new_states = (np.empty((s.replay_size, len(state)), np.float32) for _ in range(2))
    actions, rewards, dones = (np.empty(s.replay_size, kind) for kind in (np.int64, np.float32, np.bool_))
    ring, stored = (states, actions, rewards, dones, new_states), 0
    waiting: list[tuple[Any, int, float]] = []  # the steps of this episode whose n rewards are not complete

    def act(epsilon: float) -> None:
        nonlocal state, stored
        if rng.random() < epsilon:
            action = int(rng.integers(n_actions))
        else:
            with torch.inference_mode():
                action = int(net(torch.from_numpy(state).unsqueeze(0)).argmax())
        new_state, reward, terminated, truncated, _ = env.step(action)
        waiting.append((state, action, float(reward)))
        while len(waiting) == s.n_step or (terminated and waiting):
            row = stored % s.replay_size
            rewards[row] = sum(s.gamma**age * waited for age, (_, _, waited) in enumerate(waiting))
            states[row], actions[row], _ = waiting.pop(0)
            dones[row], new_states[row] = terminated, new_state
            stored += 1
        state = new_state
        if terminated or truncated:
            state, _ = env.reset()
            waiting.clear()

    for _ in range(s.warm_start_steps):
        act(1.0)
    if job.fill:
        fill(ring, min(stored, s.replay_size))
        stored = s.replay_size
    step = 0
    for epoch in range(s.max_epochs):
        for group in optimizer.param_groups:
            group["lr"] = s.lr * (1 + math.cos(math.pi * epoch / s.max_epochs)) / 2
        drawn = rng.choice(min(stored, s.replay_size), s.sample_size, replace=False, shuffle=False)
        for batch in zip(*(torch.from_numpy(array[drawn]).split(s.batch_size) for array in ring)):
            clock.tick(step)
            act(s.eps_start + min(1.0, step / s.eps_last_frame) * (s.eps_end - s.eps_start))
            q_values = net(batch[0]).gather(1, batch[1].unsqueeze(1)).squeeze(1)
            with torch.no_grad():
                targets = batch[2] + s.gamma**s.n_step * target(batch[4]).amax(1).masked_fill(batch[3], 0.0)
            loss = nn.functional.mse_loss(q_values, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % s.sync_rate == 0:
                with torch.no_grad():
                    for copy, weight in zip(target_weights, weights):
                        copy.copy_(weight)
            step += 1


def article(job: Job) -> None:
    """(c) The article's classes and flow, with only what today's packages force on them and its bugs mended."""
    import gymnasium as gym
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, IterableDataset

    warnings.simplefilter("ignore")
    s = SimpleNamespace(**job.settings)
    experience = collections.namedtuple("Experience", ["state", "action", "reward", "done", "new_state"])

    class DQN(nn.Module):
        def __init__(self, obs_size: int, n_actions: int) -> None:
            super().__init__()
            first, last = nn.Linear(obs_size, s.hidden_size), nn.Linear(s.hidden_size, n_actions)
            self.net = nn.Sequential(first, nn.ReLU(), last)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x.float())

    class ReplayBuffer:
        def __init__(self) -> None:
            self.buffer: Any = collections.deque(maxlen=s.replay_size)

        def sample(self, size: int) -> tuple[np.ndarray, ...]:
            indices = np.random.choice(len(self.buffer), size, replace=False)
            states, actions, rewards, dones, new_states = zip(*[self.buffer[index] for index in indices])
            numbers = np.array(actions), np.array(rewards, dtype=np.float32), np.array(dones, dtype=np.bool_)
            return np.array(states), *numbers, np.array(new_states)

    class RLDataset(IterableDataset):  # type: ignore[type-arg]
        def __init__(self, buffer: ReplayBuffer) -> None:
            self.buffer = buffer

        def __iter__(self) -> Any:
            states, actions, rewards, dones, new_states = self.buffer.sample(s.sample_size)
            for i in range(len(dones)):
                yield states[i], actions[i], rewards[i], dones[i], new_states[i]

    class Agent:
        def __init__(self, env: Any, replay_buffer: ReplayBuffer) -> None:
            self.env, self.replay_buffer = env, replay_buffer
            self.reset()

        def reset(self) -> None:
            self.state, _ = self.env.reset()

        def get_action(self, net: nn.Module, epsilon: float) -> int:
            if np.random.random() < epsilon:
                return int(self.env.action_space.sample())
            _, action = torch.max(net(torch.tensor([self.state])), dim=1)
            return int(action.item())

        @torch.no_grad()
        def play_step(self, net: nn.Module, epsilon: float = 0.0) -> tuple[float, bool]:
            action = self.get_action(net, epsilon)
            new_state, reward, terminated, truncated, _ = self.env.step(action)
            done = terminated or truncated
            self.replay_buffer.buffer.append(experience(self.state, action, reward, done, new_state))
            self.state = new_state
            if done:
                self.reset()
            return reward, done

    class DQNLightning(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            env = gym.make(s.env)
            shape = env.observation_space.shape[0], env.action_space.n  # type: ignore[index,attr-defined]
            self.net, self.target_net = DQN(*shape), DQN(*shape)
            self.buffer = ReplayBuffer()
            self.agent = Agent(env, self.buffer)
            self.total_reward = self.episode_reward = 0.0
            for _ in range(s.warm_start_steps):
                self.agent.play_step(self.net, epsilon=1.0)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x)

        def dqn_mse_loss(self, batch: Any) -> torch.Tensor:
            states, actions, rewards, dones, new_states = batch
            values = self.net(states).gather(1, actions.unsqueeze(-1)).squeeze(-1)
            with torch.no_grad():
                new_values = self.target_net(new_states).max(1)[0]
                new_values[dones] = 0.0
            return nn.MSELoss()(values, new_values.detach() * s.gamma + rewards)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            epsilon = max(s.eps_end, s.eps_start - (self.global_step + 1) / s.eps_last_frame)
            reward, done = self.agent.play_step(self.net, epsilon)
            self.episode_reward += reward
            loss = self.dqn_mse_loss(batch)
            if done:
                self.total_reward, self.episode_reward = self.episode_reward, 0.0
            if self.global_step % s.sync_rate == 0:
                self.target_net.load_state_dict(self.net.state_dict())
            self.log_dict({"reward": reward, "train_loss": loss})
            self.log("total_reward", self.total_reward, prog_bar=True)
            self.log("steps", float(self.global_step), logger=False, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(self.net.parameters(), lr=s.lr)]

        def train_dataloader(self) -> Any:
            return DataLoader(RLDataset(self.buffer), batch_size=s.batch_size)

    watch(DQNLightning, Clock(job))
    pl.seed_everything(job.seed)
    pl.Trainer(accelerator="cpu", max_epochs=s.max_epochs).fit(DQNLightning())


def sb3(job: Job) -> None:
    """(d) Stable-Baselines3 at the same settings; as fast as it can be had: no environment checker, one thread."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback

    s, clock = SimpleNamespace(**job.settings), Clock(job)
    torch.set_num_threads(1)

    class Tick(BaseCallback):
        def _on_step(self) -> bool:
            clock.tick(self.num_timesteps - s.warm_start_steps - 1)  # it learns after this call
            return True

    steps = s.warm_start_steps + s.max_epochs * -(-s.sample_size // s.batch_size)
    model = DQN(
        "MlpPolicy",
        gym.make(s.env, disable_env_checker=True),
        learning_rate=s.lr,
        buffer_size=s.replay_size,
        learning_starts=s.warm_start_steps,
        batch_size=s.batch_size,
        gamma=s.gamma,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=s.sync_rate,
        n_steps=s.n_step,
        exploration_initial_eps=s.eps_start,
        exploration_fraction=(s.warm_start_steps + s.eps_last_frame) / steps,
        exploration_final_eps=s.eps_end,
        policy_kwargs={"net_arch": [s.hidden_size]},
        seed=job.seed,
        device="cpu",
    )
    model.learn(steps, Tick())


def zoo(job: Job) -> None:
    """Stable-Baselines3 until it is solved, validated as often as the script and, like there, in 20 environments."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
    from stable_baselines3.common.env_util import make_vec_env

    def make() -> Any:
        return gym.make(job.settings["env"], disable_env_checker=True)

    validate = EvalCallback(
        make_vec_env(make, n_envs=20, seed=job.seed),
        callback_on_new_best=StopTrainingOnRewardThreshold(SOLVED),
        n_eval_episodes=20,
        eval_freq=QUICK["val_check_interval"],
        verbose=0,
    )
    torch.set_num_threads(1)
    settings = dict(job.zoo)
    steps = settings.pop("n_timesteps")
    model = DQN("MlpPolicy", make(), seed=job.seed, device="cpu", **settings).learn(steps, validate)
    if validate.best_mean_reward >= SOLVED:
        report(seconds=time.monotonic() - job.started, steps=model.num_timesteps)


def use_python(python: str) -> None:
    """Run (a) with this interpreter, wherever its process starts."""
    global USER_PYTHON
    USER_PYTHON = os.path.abspath(shutil.which(python) or python)


def measure(job: Job, limit: float | None = None) -> dict[str, Any]:
    """Do a job in a process of its own; its figures, or none if it is stopped after `limit` seconds.

    Raises:
        RuntimeError: it failed
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, SCRIPT).write_bytes(SOURCE)
        terminal, end = pty.openpty()
        termios.tcsetwinsize(end, (24, 120))
        job.started = time.monotonic()
        python = USER_PYTHON if job.kind == "script" else sys.executable
        command = [python, str(Path(__file__).resolve()), "--job", json.dumps(asdict(job))]
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=end, stderr=end)
        os.close(end)
        timer = threading.Timer(limit or threading.TIMEOUT_MAX, process.kill)
        timer.start()
        output = b""
        try:
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                while chunk := os.read(terminal, 2**16):
                    output = (output + chunk)[-4000:]
            process.wait()
        finally:
            stopped = not timer.is_alive()
            timer.cancel()
            process.kill()  # after Ctrl-C
            process.wait()
            os.close(terminal)
        if (result := Path(folder, "result.json")).exists():
            return dict(json.loads(result.read_text()))
    if not stopped:
        raise RuntimeError(f"{job.kind} ended with {process.returncode}:\n{output.decode(errors='replace')}")
    return {}


def flags_of(changed: dict[str, Any]) -> list[str]:
    """The flags of the script that change these settings."""
    return [f"--{name}={value}" for name, value in changed.items()]


def constant(settings: dict[str, Any]) -> dict[str, float]:
    """The mean epsilon of a default run, in which it falls to the end, from the first step to the last."""
    epsilon = (settings["eps_start"] + settings["eps_end"]) / 2
    return {"eps_start": epsilon, "eps_end": epsilon}


def steps(rounds: int, count: int, settings: dict[str, Any], gpu: bool) -> Iterable[dict[str, Any]]:
    """Measure each contender at the defaults."""
    changed = constant(settings)
    for n in range(rounds):
        results = {}
        for kind in NAMES if gpu else [kind for kind in NAMES if kind != "gpu"]:
            flags = flags_of(changed) + ["--gpus=1"] * (kind == "gpu")
            job = Job("script" if kind == "gpu" else kind, settings | changed, flags)
            job.skip, job.steps = SKIP, count
            results[kind] = shown(f"step, round {n + 1} of {rounds}, {NAMES[kind]}", measure(job))
        yield results


def scales(rounds: int, count: int, settings: dict[str, Any], gpu: bool) -> Iterable[dict[str, Any]]:
    """Measure (a) and (b) at every size."""
    for n, (sizes, divisor) in itertools.product(range(rounds), SCALE):
        # An epoch is as many steps as at the defaults, the buffer holds one, and epsilon is constant.
        sample = settings["sample_size"] * sizes.get("batch_size", settings["batch_size"]) // settings["batch_size"]
        changed: dict[str, Any] = {"sample_size": sample} | constant(settings)
        changed["replay_size"] = max(settings["replay_size"], sample)
        changed["warm_start_steps"] = max(settings["warm_start_steps"], sample + settings["n_step"])
        changed |= sizes
        results: dict[str, Any] = {"settings": settings | changed}
        for kind in ["script", "bare"] + ["gpu"] * gpu:
            flags = flags_of(changed) + ["--gpus=1"] * (kind == "gpu")
            job = Job("bare" if kind == "bare" else "script", settings | changed, flags, fill=True)
            job.skip, job.steps = SKIP // divisor, count // divisor
            title = f"scale, round {n + 1} of {rounds}, {sizes or 'defaults'}, {NAMES[kind]}"
            results[kind] = shown(title, measure(job))
        yield results


def processes(rounds: int, count: int, settings: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Measure (a) in one process and in two, with a small network and a large one."""
    for n, (sizes, divisor) in itertools.product(range(rounds), PROCESSES):
        results: dict[str, Any] = {"settings": settings | sizes}
        for number in (1, 2):
            changed = {"num_processes": number} | constant(settings) | sizes
            job = Job("script", settings | changed, flags_of(changed))
            job.skip, job.steps = SKIP // divisor, count // divisor
            figures = measure(job)
            figures["rate"] = 1000 * number / figures["step"]
            title = f"processes, round {n + 1} of {rounds}, {sizes or 'defaults'}, {number}"
            results[str(number)] = shown(title, figures)
        yield results


def solved(seeds: Sequence[int], cap: float, settings: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Measure who solves it first; all are validated as often, on 20 episodes."""
    often = {"val_check_interval": QUICK["val_check_interval"]}
    for seed in seeds:
        jobs = {
            "(a) at its defaults": Job("script", settings, flags_of(often | {"seed": seed})),
            "(a) at a command line tuned for this": Job("script", settings, flags_of(QUICK | {"seed": seed})),
        }
        jobs |= {name: Job("zoo", settings, zoo=values, seed=seed) for name, values in ZOO.items()}
        yield {name: shown(f"solved, seed {seed}, {name}", measure(job, cap)) for name, job in jobs.items()}


def shown(title: str, figures: dict[str, Any]) -> dict[str, Any]:
    text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
    print(f"{title}: {text or 'nothing in time'}", file=sys.stderr, flush=True)
    return figures


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)) + "\n"


def step_table(rounds: Sequence[dict[str, Any]]) -> str:
    rows = []
    for kind in rounds[0]:
        step, start, memory = ([results[kind][name] for results in rounds] for name in ("step", "start", "memory"))
        ratios = [results["script"]["step"] / results[kind]["step"] for results in rounds]
        rows.append([NAMES[kind], spread(step), spread(ratios), spread(start), spread(memory, 0)])
    titles = ("", "training step, ms", "(a)'s step / this", "start to first step, s", "peak memory, MiB")
    validations = [value for results in rounds if (value := results["script"]["validation"])]
    note = f"\nA validation of (a), counted apart: {spread(validations)} s.\n" if validations else ""
    return table(titles, rows) + note


def scale_table(measured: Sequence[dict[str, Any]]) -> str:
    rows = []
    for n in range(len(SCALE)):
        results = measured[n :: len(SCALE)]
        a, b, gpu = ([result[kind] for result in results if kind in result] for kind in ("script", "bare", "gpu"))
        times = [spread([figures["step"] for figures in kind]) if kind else "-" for kind in (a, b, gpu)]
        share = spread([100 * figures["share"] for figures in a], 1)
        sizes = [f"{results[0]['settings'][name]:,}" for name in ("replay_size", "batch_size", "hidden_size")]
        rows.append([*sizes, *times[:2], share, times[2], spread([figures["memory"] for figures in a], 0)])
    titles = ["replay", "batch", "hidden", "(a), ms", "(b), ms", "Lightning's share of (a), %", "(a) on the GPU, ms"]
    return table([*titles, "(a)'s peak memory, MiB"], rows)


def processes_table(measured: Sequence[dict[str, Any]]) -> str:
    rows = []
    for n in range(len(PROCESSES)):
        results = measured[n :: len(PROCESSES)]
        one, two = ([result[number]["rate"] for result in results] for number in "12")
        ratios = [b / a for a, b in zip(one, two)]
        rows.append([str(results[0]["settings"]["hidden_size"]), spread(one, 0), spread(two, 0), spread(ratios)])
    return table(("hidden", "steps a second in 1 process", "in 2", "ratio"), rows)


def solved_table(seeds: Sequence[dict[str, Any]], cap: float) -> str:
    """A seed that was not solved within the cap took infinitely long; a ratio to it is at most that to the cap."""
    rows = []
    ours, *_ = times = [[result[name].get("seconds", math.inf) for result in seeds] for name in seeds[0]]
    for name, seconds in zip(seeds[0], times):
        cells = [name, f"{sum(map(math.isfinite, seconds))} of {len(seeds)}"]
        for figure in (statistics.median, max):
            value, ratio = figure(seconds), figure(ours) / min(figure(seconds), cap)
            cells.append(f"{value:.1f}" if math.isfinite(value) else f"over {cap:g}")
            cells.append(("" if math.isfinite(value) else "under ") + f"{ratio:.2f}" if math.isfinite(ratio) else "-")
        steps = statistics.median(result[name].get("steps", math.inf) for result in seeds)
        rows.append([*cells, f"{steps:,.0f}" if math.isfinite(steps) else "-"])
    titles = ("", "solved", "median, s", "defaults / this", "worst, s", "defaults / this", "environment steps, median")
    return table(titles, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="of step and scale (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="training steps to time (default: %(default)s)")
    parser.add_argument("--seeds", default="0-19", help="of solved, as in learning.py (default: %(default)s)")
    parser.add_argument("--cap", type=float, default=120, help="seconds to be solved in (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter for (a) (default: this one)")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = Job(**json.loads(args.job))
        globals()[job.kind](job)
        if job.steps < sys.maxsize:
            raise RuntimeError("the run was over before all the steps were timed")
        report()  # it was not solved
    if args.rounds < 1 or args.steps < 15:
        parser.error("--rounds must be at least 1, --steps at least 15")
    if not importlib.util.find_spec("stable_baselines3"):
        parser.error("first: pip install -r tests/benchmarks/requirements.txt")
    from learning import seeds  # not in the processes that are timed, for it imports a good deal

    use_python(args.python)
    found = measure(Job("defaults"))
    packages = ("torch", "pytorch-lightning", "gymnasium", "numpy", "stable-baselines3")
    machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    machine |= {package: version(package) for package in packages} | {"gpu": found["gpu"], "load": os.getloadavg()[0]}
    measured: dict[str, Any] = {"machine": machine, "settings": found["settings"]}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("" if found["gpu"] else "\nNo GPU is visible, so nothing was measured on one.\n", flush=True)
    at = (args.rounds, args.steps, found["settings"], found["gpu"])
    parts = {
        "step": (steps(*at), step_table),
        "scale": (scales(*at), scale_table),
        "solved": (
            solved(seeds(args.seeds), args.cap, found["settings"]),
            lambda results: solved_table(results, args.cap),
        ),
        "processes": (processes(args.rounds, args.steps, found["settings"]), processes_table),
    }
    for part in args.only:
        results, tabulate = parts[part]
        measured[part] = []
        for result in results:
            measured[part].append(result)
            if args.json:
                args.json.write_text(json.dumps(measured, indent=1) + "\n")
        print(tabulate(measured[part]), flush=True)


if __name__ == "__main__":
    main()
