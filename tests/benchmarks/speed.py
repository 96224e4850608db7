"""Time dqn_cartpole.py beside a loop written by hand, the article's structure and Stable-Baselines3; print Markdown.

    pip install -r requirements.txt -r tests/benchmarks/requirements.txt
    python tests/benchmarks/speed.py --only step    # or scale, solved, processes, lightning

Every measurement is a process of its own, in a temporary folder and on a pseudo-terminal as a user's is (so this needs
Linux or macOS), and one at a time. The contenders take turns within a round, and a ratio is taken within a round: what
slows the machine slows both. Values are medians over the rounds, with the least and the greatest. Steps are timed at a
constant epsilon, the mean of a default run, and without validation; logs, the bar and checkpoints are in them. All have
the same network, without layer normalization, except where the row says so.

Torch's threads: one for a small network, as in dqn_cartpole.py, also in (b) and (d); in (c) as many as there are cores,
because nobody told it otherwise. So measure on a machine that does nothing else: where a core is taken, threads wait
for each other, and (c) takes many times as long.

Stable-Baselines3 brings Matplotlib with it, which one of Lightning's packages imports wherever it is installed. So that
the others start as they do for a user, give them an environment of their own:

    python -m venv .venv/user && .venv/user/bin/pip install -r requirements.txt
    python tests/benchmarks/speed.py --python .venv/user/bin/python
"""

import argparse
import contextlib
import functools
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
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {name: (ROOT / name).read_bytes() for name in ("dqn_cartpole.py", "tests/examples/fast.py")}
NAMES = {  # of a function below, and flags
    "script": "(a) dqn_cartpole.py",
    "script --layer_norm": "(a) with layer normalization, the default",
    "fast": "(a') tests.examples.fast",
    "bare": "(b) bare PyTorch loop",
    "article": "(c) the article's structure",
    "sb3": "(d) Stable-Baselines3 DQN",
    "script --gpus=1": "(a) with --gpus 1",
    "fast --gpus=1": "(a') with --gpus 1",
}
LINES = ["act", "environment, and store", "sample", "forward", "backward", "optimizer", "sync", "logging"]
LINES += ["bar, callbacks", "saving", "training_step itself", "the rest: Lightning"]
EPSILON = {"eps_start": 0.36, "eps_end": 0.36}  # the mean of a default run
SKIP = 300  # training steps before the first that is timed
SOLVED, VALIDATE = 195, 260  # mean reward of 20 greedy episodes; steps between two validations
SCALE = [  # what differs from the defaults, and by what to divide SKIP and --steps
    ({"replay_size": 10**3}, 1),
    ({"replay_size": 10**5}, 1),
    ({"replay_size": 10**6}, 6),
    ({"batch_size": 256}, 2),
    ({"batch_size": 4096}, 6),
    ({"hidden_size": 1024}, 2),
    ({"hidden_size": 1024, "batch_size": 4096}, 6),
]
# fmt: off
ZOO = {  # CartPole-v1 in rl-baselines3-zoo's hyperparams/dqn.yml, today (as of commit 019107e) and before (ce95481)
    "rl-baselines3-zoo, today": {
        "n_timesteps": 200_000, "learning_rate": 2.5e-4, "batch_size": 512, "buffer_size": 100_000,
        "learning_starts": 0, "train_freq": 16, "gradient_steps": 4, "target_update_interval": 5000,
        "exploration_fraction": 0.06, "exploration_final_eps": 0.11,
    },
    "rl-baselines3-zoo, former": {
        "n_timesteps": 50_000, "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000,
        "learning_starts": 1000, "train_freq": 256, "gradient_steps": 128, "target_update_interval": 10,
        "exploration_fraction": 0.16, "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
    },
}
# fmt: on

# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own. Nothing is imported that the contender does not need.


def report(**figures):
    """Leave the figures to the parent and end this process."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path("result.json").write_text(json.dumps(figures))
    os._exit(0)


class Clock:
    """Counts the steps of whatever optimizer there is, and reports once those to be timed are done.

    Every moment belongs to one label: that of the innermost function that is timed.
    """

    def __init__(self, job):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.job, self.step, self.last = job, 0, time.monotonic()
        self.labels, self.spent, self.calls = [LINES[-1]], Counter(), Counter()
        if job.steps:
            register_optimizer_step_post_hook(lambda *_: self.tick())

    def enter(self, label):
        """From now on time belongs to `label`; None: to the one before."""
        now = time.monotonic()
        self.spent[self.labels[-1]] += now - self.last
        self.last = now
        if label is None:
            self.labels.pop()
        else:
            self.labels.append(label)
            self.calls[label] += 1

    def timed(self, function, label):
        @functools.wraps(function)  # Lightning looks at the arguments
        def wrapper(*args, **kwargs):
            self.enter(label)
            result = function(*args, **kwargs)
            self.enter(None)
            return result

        return wrapper

    def tick(self):
        self.step += 1
        if self.step == 1:
            self.first = time.monotonic() - self.job.started
        if self.step == self.job.skip:
            self.last = time.monotonic()
            self.spent.clear()
            self.calls.clear()
        elif self.step == self.job.skip + self.job.steps:
            self.enter("end")
            validation, count = self.spent.pop("validation", 0.0), self.calls["validation"]
            lines = {label: 1000 * seconds / self.job.steps for label, seconds in self.spent.items()}
            each = {"validation": validation / count, "saving": self.spent["saving"] / count} if count else {}
            report(first=self.first, step=sum(lines.values()), lines=lines, **each)


def defaults(job):
    """No contender: report the script's defaults, and whether there is a GPU."""
    import torch

    args = runpy.run_path("dqn_cartpole.py")["parse_args"]([])
    report(settings=args.dqn | args.settings, gpu=torch.cuda.is_available())


def script(job):
    """(a) and (a') from the command line on; only that `Trainer.fit` first lets a clock watch."""
    import pytorch_lightning as pl

    fit, clock = pl.Trainer.fit, Clock(job)

    def watched_fit(trainer, model, **options):
        watch(trainer, model, clock)
        fit(trainer, model, **options)

    pl.Trainer.fit = watched_fit
    sys.argv = ["dqn_cartpole.py", *job.flags]
    if job.kind == "fast":
        runpy.run_module("tests.examples.fast", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path("dqn_cartpole.py", run_name="__main__")


fast = script


def watch(trainer, model, clock):
    """Let the clock know of validations and checkpoints and, if `lines` are asked for, of all that a step does."""
    import torch

    loop = trainer.fit_loop.epoch_loop.val_loop
    validate = clock.timed(loop.run, "validation")

    def run():
        validate()
        if not clock.job.steps and trainer.callback_metrics["val_reward"] >= SOLVED:
            steps = model.hparams.warm_start_steps + model.global_step
            report(seconds=time.monotonic() - clock.job.started, steps=steps)

    loop.run = run
    trainer.save_checkpoint = clock.timed(trainer.save_checkpoint, "saving")
    if not clock.job.lines:
        return

    module = type(model)
    hooks = [(type(callback), name) for callback in trainer.callbacks for name in vars(type(callback))]
    for owner, name, label in [
        (type(model.agent), "get_action", "act"),
        (type(model.agent), "play_step", "environment, and store"),
        (module, "dqn_mse_loss", "forward"),
        (torch.Tensor, "backward", "backward"),
        (torch.optim.Optimizer, "zero_grad", "optimizer"),
        (torch.optim.lr_scheduler.LRScheduler, "step", "optimizer"),
        (module, "sync_target", "sync"),
        (module, "log_step", "logging"),
        (module, "training_step", "training_step itself"),
        *[(owner, name, "bar, callbacks") for owner, name in hooks if name.startswith("on_train_")],
    ]:
        setattr(owner, name, clock.timed(getattr(owner, name), label))
    base = next(base for base in module.__mro__ if base.__name__ == "DQNLightning")
    dataset, adam = sys.modules[base.__module__].RLDataset, clock.timed(torch.optim.Adam.step, "optimizer")
    sample = dataset.__iter__
    dataset.__iter__ = lambda self: iter(clock.timed(functools.partial(next, sample(self), None), "sample"), None)

    def step(optimizer, closure=None):  # Lightning's closure does the rest of the step
        return adam(optimizer, closure and clock.timed(closure, LINES[-1]))

    torch.optim.Adam.step = step


def bare(job):
    """(b) What an expert writes who wants the same work done, fast and no more: no logs, bar or checkpoints."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import nn

    s = SimpleNamespace(**job.settings)
    Clock(job)
    env, rng = gym.make(s.env, disable_env_checker=True), np.random.default_rng(s.seed)
    state, _ = env.reset(seed=s.seed)
    net, target = (nn.Sequential(nn.Linear(4, s.hidden_size), nn.ReLU(), nn.Linear(s.hidden_size, 2)) for _ in "12")
    weights, target_weights = list(net.parameters()), list(target.parameters())
    if s.batch_size * sum(weight.numel() for weight in weights) < 2**24:
        torch.set_num_threads(1)
    optimizer = torch.optim.Adam(weights, lr=s.lr, fused=True)
    states, new_states = (np.empty((s.replay_size, 4), np.float32) for _ in "12")
    actions, rewards, dones = (np.empty(s.replay_size, kind) for kind in (np.int64, np.float32, np.bool_))
    ring, stored = (states, actions, rewards, dones, new_states), 0
    waiting = []  # the steps of this episode whose n rewards are not complete

    def act(epsilon):
        nonlocal state, stored
        if rng.random() < epsilon:
            action = int(rng.integers(2))
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
    step, steps = 0, s.max_epochs * math.ceil(s.sample_size / s.batch_size)
    for epoch in range(s.max_epochs):
        optimizer.param_groups[0]["lr"] = s.lr * (1 + math.cos(math.pi * epoch / s.max_epochs)) / 2
        drawn = rng.choice(min(stored, s.replay_size), s.sample_size, replace=False, shuffle=False)
        for batch in zip(*(torch.from_numpy(array[drawn]).split(s.batch_size) for array in ring)):
            act(s.eps_start + step / steps * (s.eps_end - s.eps_start))
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


def article(job):
    """(c) Part 1 as the article has it: single experiences to collate, all logged in every step, Lightning's bar."""
    import pytorch_lightning as pl
    import torch

    from dqn_cartpole import DQNLightning, RLDataset

    class Article(DQNLightning):
        total_reward = 0.0

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), lr=self.hparams.lr)

        def train_dataloader(self):
            dataset = RLDataset(self.buffer, self.hparams.sample_size)
            return torch.utils.data.DataLoader(dataset, batch_size=self.hparams.batch_size)

        def log_step(self, reward, episode_over, loss, batch):
            self.score += reward
            if episode_over:
                self.total_reward, self.score = self.score, 0.0
            self.log_dict({"reward": reward, "train_loss": loss})
            self.log("total_reward", self.total_reward, prog_bar=True)
            self.log("steps", float(self.global_step), logger=False, prog_bar=True)

        def on_save_checkpoint(self, checkpoint):  # the weights and the optimizer only
            pass

    Clock(job)
    pl.seed_everything(job.settings["seed"])
    trainer = pl.Trainer(accelerator="cpu", max_epochs=job.settings["max_epochs"], limit_val_batches=0)
    trainer.fit(Article(**EPSILON))


def sb3(job):
    """(d) Stable-Baselines3, as fast as it can be had: no environment checker, one thread."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
    from stable_baselines3.common.env_util import make_vec_env

    def make():
        return gym.make(job.settings["env"], disable_env_checker=True)

    Clock(job)
    torch.set_num_threads(1)
    seed, steps, validate = job.settings["seed"], job.sb3.pop("n_timesteps"), None
    model = DQN("MlpPolicy", make(), seed=seed, device="cpu", **job.sb3)
    if not job.steps:  # validate as often as the script, and like it with 20 episodes side by side
        stop, envs = StopTrainingOnRewardThreshold(SOLVED), make_vec_env(make, n_envs=20, seed=seed)
        validate = EvalCallback(envs, callback_on_new_best=stop, n_eval_episodes=20, eval_freq=VALIDATE, verbose=0)
    model.learn(steps, validate)
    if validate and validate.best_mean_reward >= SOLVED:
        report(seconds=time.monotonic() - job.started, steps=model.num_timesteps)


def processes(job):
    """A program of one's own; with two devices Lightning starts it once more."""
    import pytorch_lightning as pl
    import torch

    from dqn_cartpole import ImprovedDQN

    Clock(job)
    torch.set_num_threads(1)
    pl.seed_everything(job.settings["seed"])
    off = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"]
    options = {"max_epochs": job.settings["max_epochs"], "limit_val_batches": 0} | dict.fromkeys(off, False)
    strategy = "ddp" if job.devices > 1 else "auto"
    trainer = pl.Trainer(accelerator="cpu", devices=job.devices, strategy=strategy, **options)
    trainer.fit(ImprovedDQN(hidden_size=job.settings["hidden_size"], layer_norm=False, **EPSILON))


# ---------------------------------------------------------------------------------------------------------------------
# The parent


def measure(job, python):
    """Do a job in a process of its own; return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        for name, source in SOURCES.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_bytes(source)
        terminal, end = pty.openpty()
        termios.tcsetwinsize(end, (24, 120))
        command = [python, __file__, "--job", json.dumps(job | {"started": time.monotonic()})]
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=end, stderr=end)
        os.close(end)
        output = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(terminal, 2**16):
                output = (output + chunk)[-4000:]
        os.close(terminal)
        if process.wait() or not Path(folder, "result.json").exists():
            raise RuntimeError(f"{job['kind']} ended with {process.returncode}:\n{output.decode(errors='replace')}")
        return json.loads(Path(folder, "result.json").read_text())


def spread(values, digits=2):
    """The median, and the least and the greatest."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def table(titles, rows):
    print("\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)) + "\n", flush=True)


class Bench:
    """The parts; each measures and prints a table."""

    def __init__(self, args):
        self.args, self.python = args, os.path.abspath(shutil.which(args.python) or args.python)
        found = measure({"kind": "defaults"}, self.python)
        self.settings = found["settings"]
        self.ours, self.gpus = ["script", "fast"], []
        if args.gpu and found["gpu"]:
            self.gpus = [kind for kind in NAMES if "gpus" in kind]
        elif args.gpu:
            print("No GPU is visible, so nothing is measured on one.\n")

    def job(self, contender, changed=EPSILON, divisor=1, **options):
        kind, *own = contender.split()
        flags = ["--no-layer_norm", *own, *(f"--{name}={value}" for name, value in changed.items())]
        job = {"kind": kind, "settings": self.settings | changed, "flags": flags, "lines": False}
        return job | {"skip": SKIP // divisor, "steps": self.args.steps // divisor} | options

    def turns(self, rounds, jobs):
        """Do the jobs of each round in turn; for each of their names return its figures in all rounds."""
        results = {}
        for n in range(rounds):
            for name, job in jobs(n).items():
                figures = measure(job, sys.executable if job["kind"] == "sb3" else self.python)
                results.setdefault(name, []).append(figures)
                print(f"round {n + 1} of {rounds}, {name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
        return results

    def step(self):
        s = SimpleNamespace(**self.settings | EPSILON)
        # fmt: off
        equal = {
            "n_timesteps": s.warm_start_steps + s.max_epochs * math.ceil(s.sample_size / s.batch_size),
            "learning_rate": s.lr, "buffer_size": s.replay_size, "learning_starts": s.warm_start_steps,
            "batch_size": s.batch_size, "gamma": s.gamma, "n_steps": s.n_step, "train_freq": 1,
            "target_update_interval": s.sync_rate, "policy_kwargs": {"net_arch": [s.hidden_size]},
            "exploration_initial_eps": s.eps_start, "exploration_final_eps": s.eps_end,
        }
        # fmt: on
        kinds = [kind for kind in NAMES if "gpus" not in kind] + self.gpus
        results = self.turns(self.args.rounds, lambda n: {kind: self.job(kind, sb3=equal) for kind in kinds})
        rows = []
        for kind in kinds:
            step, first, memory = ([each[name] for each in results[kind]] for name in ("step", "first", "memory"))
            ratios = [[a / b["step"] for a, b in zip(step, results[other])] for other in ("bare", "sb3")]
            rows.append([NAMES[kind], spread(step), *map(spread, ratios), spread(first), spread(memory, 0)])
        table(["", "training step, ms", "/ (b)", "/ (d)", "start to first step, s", "peak memory, MiB"], rows)
        values = [each["validation"] for each in results["script"] if "validation" in each]
        print(f"A validation of (a), left out: {spread(values, 3)} s\n")

    def scale(self):
        kinds, jobs, rows = [*self.ours, "bare", *self.gpus], {}, []
        for n, (sizes, divisor) in enumerate(SCALE):
            changed = self.settings | sizes
            # An epoch has as many steps as at the defaults, and the warm start fills the buffer.
            changed["sample_size"] = self.settings["sample_size"] * changed["batch_size"] // self.settings["batch_size"]
            changed["replay_size"] = max(changed["replay_size"], changed["sample_size"])
            changed["warm_start_steps"] = changed["replay_size"] + changed["n_step"]
            changed = {name: value for name, value in changed.items() if value != self.settings[name]} | EPSILON
            jobs |= {(n, kind): self.job(kind, changed, divisor) for kind in kinds}
        results = self.turns(self.args.rounds, lambda n: jobs)
        for n in range(len(SCALE)):
            settings = jobs[n, "script"]["settings"]
            sizes = [f"{settings[name]:,}" for name in ("replay_size", "batch_size", "hidden_size")]
            steps = {kind: [x["step"] - x["lines"].get("saving", 0) for x in results[n, kind]] for kind in kinds}
            ratios = [[a / b for a, b in zip(steps[kind], steps["bare"])] for kind in self.ours]
            saving = [each["saving"] for each in results[n, "script"] if "saving" in each]
            memory = [each["memory"] for each in results[n, "script"]]
            cells = [*map(spread, steps.values()), *map(spread, ratios), spread(saving, 3), spread(memory, 0)]
            rows.append(sizes + cells)
        titles = ["replay", "batch", "hidden", *[f"{NAMES[kind]}, ms" for kind in kinds], "(a) / (b)", "(a') / (b)"]
        table([*titles, "(a)'s checkpoints after a validation, left out, s", "(a)'s peak memory, MiB"], rows)

    def solved(self):
        def jobs(seed):
            changed, cap = {"seed": seed, "val_check_interval": VALIDATE}, {"steps": 0, "cap": self.args.cap}
            ours = {NAMES[kind]: self.job(kind, changed, **cap) for kind in self.ours + self.gpus}
            return ours | {name: self.job("sb3", changed, sb3=values, **cap) for name, values in ZOO.items()}

        rows = []
        for name, runs in self.turns(self.args.seeds, jobs).items():
            seconds = [each.get("seconds", math.inf) for each in runs]
            steps = statistics.median(each.get("steps", math.inf) for each in runs)
            count = f"{sum(map(math.isfinite, seconds))} of {len(seconds)}"
            rows.append([name, count, spread(seconds, 1).replace("inf", "over"), f"{steps:,.0f}"])
        table(["", f"solved in {self.args.cap:g} s", "seconds", "environment steps, with the warm start"], rows)

    def processes(self):
        jobs, rows = {}, []
        for hidden, divisor in ((128, 1), (1024, 2)):
            changed = EPSILON | {"hidden_size": hidden}
            jobs |= {(hidden, n): self.job("processes", changed, divisor, devices=n) for n in (1, 2)}
        results = self.turns(self.args.rounds, lambda n: jobs)
        for hidden in (128, 1024):
            one, two = ([n * 1000 / each["step"] for each in results[hidden, n]] for n in (1, 2))
            rows.append([str(hidden), spread(one, 0), spread(two, 0), spread([b / a for a, b in zip(one, two)])])
        table(["hidden", "environment steps a second, 1 process", "2 processes", "ratio"], rows)

    def lightning(self):
        results = self.turns(self.args.rounds, lambda n: {kind: self.job(kind, lines=True) for kind in self.ours})
        rows = []
        for label in [*LINES, "all"]:
            rows.append([label])
            for runs in results.values():
                values = [each["step"] if label == "all" else each["lines"].get(label, 0.0) for each in runs]
                shares = [100 * value / each["step"] for value, each in zip(values, runs)]
                rows[-1] += [spread(values, 3), spread(shares, 0)]
        table(["", "(a), ms", "(a), %", "(a'), ms", "(a'), %"], rows)


def main():
    parts = ("step", "scale", "solved", "processes", "lightning")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="of all parts but solved (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3120, help="to time, six validations' (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="of solved, from 0 on (default: %(default)s)")
    parser.add_argument("--cap", type=float, default=120, help="seconds to be solved in (default: %(default)s)")
    parser.add_argument("--gpu", action="store_true", help="also measure with --gpus 1, where there is one")
    parser.add_argument("--python", default=sys.executable, help="for all but Stable-Baselines3 (default: this one)")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = SimpleNamespace(**args.job)
        if "cap" in args.job:
            timer = threading.Timer(job.cap, report)  # of nothing: it was not solved in time
            timer.daemon = True
            timer.start()
        sys.path.insert(0, os.getcwd())
        globals()[job.kind](job)
        if job.steps:
            raise RuntimeError("the run was over before all the steps were timed")
        report()  # it was not solved
    bench = Bench(args)
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores\n", flush=True)
    for part in args.only:
        getattr(bench, part)()


if __name__ == "__main__":
    main()
