"""Time the program beside a loop written by hand and Stable-Baselines3; print Markdown tables.

    pip install -r requirements.txt -r tests/benchmarks/requirements.txt
    python tests/benchmarks/speed.py step     # or parts, sizes, solved, processes; --gpu adds --gpus 1 to step, sizes

Every measurement is a process of its own, one at a time. The contenders take turns within a round, and a ratio is taken
within a round: what slows the machine slows both. Figures are medians over the rounds, with the least and the greatest.
Steps are timed without validation, at the mean epsilon of a default run; curves and the bar are in them. All contenders
have the same network, without layer normalization where nothing else is said, and use one thread. Run it on a machine
that does nothing else.
"""

import argparse
import json
import math
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, FAST = "dqn_cartpole:ImprovedDQN", "tests.examples.fast:Fast"
FLAGS = ["--no-layer_norm", "--eps_start", "0.36", "--eps_end", "0.36"]
SKIP, SOLVED = 300, 195  # training steps before the first that is timed; score at which CartPole-v0 is solved
EQUAL = (  # to the program's defaults
    "learning_rate=5e-3, buffer_size=5000, learning_starts=1000, batch_size=16, gamma=0.99, n_steps=5, train_freq=1,"
    "target_update_interval=10, policy_kwargs={'net_arch': [128]}, exploration_fraction=1e-9,"
    "exploration_final_eps=0.36"
)
ZOO = {  # CartPole-v1 in rl-baselines3-zoo's hyperparams/dqn.yml, as of commits 019107e and ce95481
    "rl-baselines3-zoo, today": "learning_rate=2.5e-4, batch_size=512, learning_starts=0, train_freq=16,"
    "gradient_steps=4, target_update_interval=5000, exploration_fraction=0.06, exploration_final_eps=0.11,"
    "buffer_size=100_000",
    "rl-baselines3-zoo, former": "learning_rate=2.3e-3, batch_size=64, learning_starts=1000, train_freq=256,"
    "gradient_steps=128, target_update_interval=10, exploration_fraction=0.16, exploration_final_eps=0.04,"
    "buffer_size=100_000, policy_kwargs={'net_arch': [256, 256]}",
}

# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own


def report(**figures: float) -> None:
    """Leave the figures to the parent, and end."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path("figures.json").write_text(json.dumps(figures))
    os._exit(0)


def time_steps(steps: int) -> None:
    """Report the milliseconds of a step of whatever optimizer there is, after SKIP steps."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    times: list[float] = []

    def count(*_: Any) -> None:
        times.append(time.perf_counter())
        if len(times) == SKIP + steps:
            report(ms=1000 * (times[-1] - times[SKIP - 1]) / steps)

    register_optimizer_step_post_hook(count)


def program(job: dict[str, Any]) -> None:
    """The program from the command line on, with the bar; `change` may alter the class or the Trainer's arguments."""
    module, options = pkgutil.resolve_name(job["module"]), {}  # first: `fast` makes the imports faster
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    import dqn_cartpole

    sys.stdout.isatty = lambda: job["change"] != "without the bar"  # type: ignore[method-assign]

    class Changed(module):  # type: ignore[misc, valid-type]
        def train_dataloader(self) -> Any:
            loader = super().train_dataloader()
            return DataLoader(loader, batch_size=None) if job["change"] == "with a DataLoader" else loader

        if job["change"] == "without moving the batch to the device":

            def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
                return batch

        if job["change"] == "with self.log in every step":

            def log_step(self, reward: float, over: bool, loss: Any, batch: Any) -> None:
                self.log_dict({"reward": reward, "train_loss": loss, "epsilon": self.epsilon})

    trainer, left_out = pl.Trainer, job["change"].removeprefix("without ")
    dqn_cartpole.pl.Trainer = lambda callbacks, **how: trainer(  # type: ignore[misc, assignment]
        callbacks=[callback for callback in callbacks if type(callback).__name__ != left_out], **how
    )
    if job["steps"]:
        time_steps(job["steps"])
    else:

        class Watch(pl.Callback):
            def on_validation_end(self, trainer: pl.Trainer, model: Any) -> None:
                if trainer.callback_metrics["val_reward"] >= SOLVED:
                    report(seconds=time.time() - job["began"], steps=model.global_step + model.hparams.warm_start_steps)

        options = {"callbacks": [Watch()]}
    dqn_cartpole.main(Changed, job["flags"], **options)


def bare(job: dict[str, Any]) -> None:
    """What an expert writes who wants the same work done and no more: no classes, curves, bar or checkpoints."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(1)
    time_steps(job["steps"])
    size, n_step, gamma = job["sizes"], 5, 0.99
    env, rng = gym.make("CartPole-v0", disable_env_checker=True), np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    net, target = (nn.Sequential(nn.Linear(4, size["hidden"]), nn.ReLU(), nn.Linear(size["hidden"], 2)) for _ in "12")
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, fused=True)
    states, new_states = (np.empty((size["replay"], 4), np.float32) for _ in "12")
    actions, rewards, dones, discounts = (np.empty(size["replay"], t) for t in (np.int64, "f4", np.bool_, "f4"))
    ring, stored = (states, actions, rewards, dones, new_states, discounts), 0
    waiting: list[Any] = []  # the steps of this episode whose n rewards are not complete

    def act(epsilon: float) -> None:
        nonlocal state, stored
        if rng.random() < epsilon:
            action = int(rng.integers(2))
        else:
            with torch.inference_mode():
                action = int(net(torch.from_numpy(state).unsqueeze(0)).argmax())
        new_state, reward, terminated, truncated, _ = env.step(action)
        waiting.append((state, action, float(reward)))
        while len(waiting) == n_step or ((terminated or truncated) and waiting):
            row = stored % size["replay"]
            rewards[row] = sum(gamma**age * waited for age, (_, _, waited) in enumerate(waiting))
            discounts[row] = gamma ** len(waiting)
            states[row], actions[row], _ = waiting.pop(0)
            dones[row], new_states[row] = terminated, new_state
            stored += 1
        state = env.reset()[0] if terminated or truncated else new_state

    for _ in range(1000):
        act(1.0)
    for step in range(SKIP + job["steps"]):
        rows = rng.integers(min(stored, size["replay"]), size=size["batch"])
        batch = [torch.from_numpy(array[rows]) for array in ring]
        act(0.36)
        q_values = net(batch[0]).gather(1, batch[1].unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            targets = batch[2] + batch[5] * target(batch[4]).amax(1).masked_fill(batch[3], 0.0)
        loss = nn.functional.mse_loss(q_values, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            target.load_state_dict(net.state_dict())


def sb3(job: dict[str, Any]) -> None:
    """Stable-Baselines3's DQN, on one thread and without the environment's checker."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
    from stable_baselines3.common.env_util import make_vec_env

    def make() -> gym.Env:
        return gym.make("CartPole-v0", disable_env_checker=True)

    torch.set_num_threads(1)
    validate = None
    if job["steps"]:
        time_steps(job["steps"])
    else:
        stop, envs = StopTrainingOnRewardThreshold(SOLVED, verbose=0), make_vec_env(make, n_envs=20, seed=job["seed"])
        validate = EvalCallback(envs, callback_on_new_best=stop, n_eval_episodes=20, eval_freq=500, verbose=0)
    settings = eval(f"dict({job['settings']})")  # the text of this file
    model = DQN("MlpPolicy", make(), seed=job["seed"], device="cpu", **settings)
    model.learn(200_000, validate)
    if validate and validate.best_mean_reward >= SOLVED:
        report(seconds=time.time() - job["began"], steps=model.num_timesteps)


def ddp(job: dict[str, Any]) -> None:
    """A plain Trainer in one or two processes; Lightning starts the second."""
    import pytorch_lightning as pl
    import torch

    from dqn_cartpole import ImprovedDQN

    torch.set_num_threads(1)
    time_steps(job["steps"])
    pl.seed_everything(int(os.environ.get("LOCAL_RANK", "0")))
    off = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    strategy = "ddp" if job["devices"] > 1 else "auto"
    trainer = pl.Trainer(accelerator="cpu", devices=job["devices"], strategy=strategy, limit_val_batches=0, **off)
    trainer.fit(ImprovedDQN(hidden_size=job["hidden"], steps_per_epoch=10**6, layer_norm=False))


# ---------------------------------------------------------------------------------------------------------------------
# The parent


def measure(job: dict[str, Any], seconds: float = 600) -> dict[str, float]:
    """Do a job in a process of its own; return its figures, or none if it was not done in time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "job", json.dumps(job | {"began": time.time()})]
        env, out = os.environ | {"PYTHONPATH": str(ROOT)}, Path(folder, "output.txt")
        with out.open("w") as file:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return {}
        if process.returncode:
            raise RuntimeError(f"{job}:\n{out.read_text()[-3000:]}")
        figures = Path(folder, "figures.json")
        return json.loads(figures.read_text()) if figures.exists() else {}


def turns(rounds: int, jobs: dict[str, dict[str, Any]], figure: str = "ms") -> dict[str, list[float]]:
    """One figure of each job in each round."""
    results: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            results[name].append(measure(job).get(figure, math.inf))
            print(f"{name}: {results[name][-1]:.3f}", file=sys.stderr, flush=True)
    return results


def spread(values: list[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def table(results: dict[str, list[float]], *references: str, title: str = "ms") -> None:
    """A row for each job: its figure, and the figure divided by that of each of the references."""
    titles = ["", title, *(f"/ {name}" for name in references)]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for name, values in results.items():
        ratios = [spread([a / b for a, b in zip(values, results[other])]) for other in references]
        print(f"| {' | '.join([name, spread(values), *ratios])} |", flush=True)
    print()


def contenders(steps: int, gpu: bool, **sizes: int) -> dict[str, dict[str, Any]]:
    sizes = {"hidden": 128, "batch": 16, "replay": 5000} | sizes
    names = {"hidden": "--hidden_size", "batch": "--batch_size", "replay": "--replay_size"}
    flags = [*FLAGS, "--steps_per_epoch", "1000000", *(f"{names[key]}={value}" for key, value in sizes.items())]
    own = {"kind": "program", "steps": steps, "change": "", "flags": flags, "sizes": sizes}
    jobs = {"the file": own | {"module": SCRIPT}, "`fast`": own | {"module": FAST}}
    if gpu:
        jobs |= {f"{name}, `--gpus 1`": job | {"flags": [*flags, "--gpus=1"]} for name, job in jobs.items()}
    return jobs | {"a bare loop": own | {"kind": "bare"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["step", "parts", "sizes", "solved", "processes", "job"])
    parser.add_argument("job", nargs="?", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, or seeds of solved")
    parser.add_argument("--steps", type=int, default=3000, help="training steps to time")
    parser.add_argument("--gpu", action="store_true", help="also measure --gpus 1")
    args = parser.parse_args()
    if args.job:
        globals()[args.job["kind"]](args.job)
        return
    print(f"{platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores\n", flush=True)
    jobs = contenders(args.steps, args.gpu)
    if args.table == "step":
        jobs["the file with layer normalization"] = jobs["the file"] | {"flags": jobs["the file"]["flags"][1:]}
        jobs["Stable-Baselines3"] = {"kind": "sb3", "steps": args.steps, "seed": 0, "settings": EQUAL}
        table(turns(args.rounds, jobs), "a bare loop", "Stable-Baselines3")
    elif args.table == "parts":
        changes = ["", "without the bar", "without BestCheckpoint", "without ExactResume"]
        changes += ["without moving the batch to the device", "with a DataLoader", "with self.log in every step"]
        table(turns(args.rounds, {c or "the file": jobs["the file"] | {"change": c} for c in changes}), "the file")
    elif args.table == "sizes":
        for hidden, batch, replay in [(128, 16, 100_000), (128, 4096, 5000), (1024, 16, 5000), (1024, 4096, 5000)]:
            print(f"hidden {hidden}, batch {batch}, replay {replay:,}:\n")
            sizes = contenders(300 if batch > 16 else args.steps, args.gpu, hidden=hidden, batch=batch, replay=replay)
            table(turns(args.rounds, sizes), "a bare loop")
    elif args.table == "processes":
        for hidden in (128, 1024):
            job = {"kind": "ddp", "steps": args.steps, "hidden": hidden}
            results = turns(args.rounds, {f"{n} process(es), hidden {hidden}": job | {"devices": n} for n in (1, 2)})
            speeds = {name: [n * 1000 / ms for ms in values] for n, (name, values) in enumerate(results.items(), 1)}
            table(speeds, title="steps / s")
    else:
        results = {}
        for seed in range(args.rounds):
            own = {"kind": "program", "steps": 0, "change": "", "flags": ["--seed", str(seed)]}
            jobs = {"the file": own | {"module": SCRIPT}, "`fast`": own | {"module": FAST}}
            zoo = {"kind": "sb3", "steps": 0, "seed": seed}
            for name, job in (jobs | {name: zoo | {"settings": text} for name, text in ZOO.items()}).items():
                results.setdefault(name, []).append(measure(job, 60))
                print(f"seed {seed}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
        print("| | solved in 60 s | seconds | environment steps |\n| --- | --- | --- | --- |")
        for name, runs in results.items():
            seconds, steps = ([run.get(key, math.inf) for run in runs] for key in ("seconds", "steps"))
            print(f"| {name} | {sum(map(bool, runs))} of {len(runs)} | {spread(seconds, 1)} | {median(steps):,.0f} |")


if __name__ == "__main__":
    main()
