"""Plant faults in dqn_cartpole.py, one at a time, and report which of them the tests do not notice.

    pip install -r requirements.txt -r tests/requirements.txt
    python tests/benchmarks/mutants.py                  # some hours on two cores
    python tests/benchmarks/mutants.py --only sync      # those whose text holds a word

Each fault is a small change of part 1 or of the checkpoints' callback: a sign, a bound, a line left out. The tests run
on a copy of the project and stop at the first that fails. The exit code is 1 if a fault survived.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "dqn_cartpole.py").read_text()
# Those first that are most likely to notice a fault, of part 1 or of the callbacks.
TESTS = ("parts", "environments", "resume", "faults", "command_line", "processes", "watching", "template", "everywhere")
RUN_TESTS = (
    "resume",
    "processes",
    "faults",
    "command_line",
    "template",
    "parts",
    "environments",
    "watching",
    "everywhere",
)

# What stands in the file, and the fault in its place. A text that is not there exactly once is an error.
FAULTS = [
    ("for _ in range(hidden_layers):", "for _ in range(1):"),
    ("return self.net(x.flatten(1).float())", "return self.net(x.float())"),
    ("return min(self.appended, self.capacity)", "return self.appended"),
    ("place = self.appended % self.capacity", "place = min(self.appended, self.capacity - 1)"),
    ("        self.appended += 1\n", "        self.appended += 1 + (self.appended == 3 * self.capacity)\n"),
    ("if batch_size > len(self):", "if batch_size >= len(self):"),
    (
        "rows = self.rng.choice(len(self), batch_size, replace=False)",
        "rows = self.rng.integers(len(self), size=batch_size)",
    ),
    (
        "rows = self.rng.choice(len(self), batch_size, replace=False)",
        "rows = np.sort(self.rng.choice(len(self), batch_size, replace=False))",
    ),
    (
        "rows = self.rng.choice(len(self), batch_size, replace=False)",
        "rows = np.random.choice(len(self), batch_size, replace=False)",
    ),
    ("reward=np.empty(self.capacity, np.float32)", "reward=np.empty(self.capacity, np.float64)"),
    (
        'self.appended, self.rng.bit_generator.state = state["appended"], state["rng"]',
        'self.appended = state["appended"]',
    ),
    (
        "return math.ceil(self.sample_size / (self.batch_size or 1))",
        "return self.sample_size // (self.batch_size or 1)",
    ),
    (
        "for start in range(0, self.sample_size, self.batch_size):",
        "for start in range(0, self.sample_size - self.batch_size, self.batch_size):",
    ),
    (
        "self.seeds[self.rng.integers(len(self.seeds))] if seed is None else seed",
        "self.seeds[self.rng.integers(1000)] if seed is None else seed",
    ),
    ("        self.replay_buffer.begin_episode()\n", ""),
    ("observation, _ = self.env.reset(seed=self.episode_seed)", "observation, _ = self.env.reset()"),
    ("if self.rng.random() < epsilon:", "if self.rng.random() > epsilon:"),
    ("if self.rng.random() < epsilon:", "if np.random.random() < epsilon:"),
    ("return int(self.rng.integers(self.env.action_space.n))", "return int(self.rng.integers(2))"),
    ("return int(net(state).argmax())", "return int(net(state).argmin())"),
    ("float(reward), terminated, new_state)", "float(reward), terminated or truncated, new_state)"),
    ("float(reward), terminated, new_state)", "float(reward), False, new_state)"),
    ("Experience(self.state, action,", "Experience(new_state, action,"),
    ("        self.state = new_state\n", ""),
    ("episode_over = bool(terminated or truncated)", "episode_over = bool(terminated)"),
    ('"actions": list(self.actions)}', '"actions": self.actions}'),
    (
        "            self.take(action)\n        self.rng.bit_generator.state",
        "            self.take(0)\n        self.rng.bit_generator.state",
    ),
    ("max_episode_steps=episode_length, ", ""),
    ("made.action_space.start != 0", "False"),
    ("np.float32 if dtype == np.float64 else dtype)", "dtype)"),
    ("return np.array(observation, np", "return np.asarray(observation, np"),
    (
        "if not batch_size <= sample_size <= min(warm_start_steps, replay_size):",
        "if not sample_size <= min(warm_start_steps, replay_size):",
    ),
    (
        "        self.target_net.load_state_dict(self.net.state_dict())\n\n        # State",
        "        # State",
    ),
    (".requires_grad_(False)", ""),
    ("        if len(self.buffer) == 0:\n", "        if True:\n"),
    ("self.agent.play_step(self.net, epsilon=1.0)", "self.agent.play_step(self.net, epsilon=0.0)"),
    (
        "self.agent.play_step(self.net, self.epsilon, self.device)",
        "self.agent.play_step(self.target_net, self.epsilon, self.device)",
    ),
    (
        "progress = min(1.0, self.global_step / self.hparams.eps_last_frame)",
        "progress = self.global_step / self.hparams.eps_last_frame",
    ),
    ("next_q_values = self.target_net(new_states)", "next_q_values = self.net(new_states)"),
    ("next_values = next_q_values.amax(1)", "next_values = next_q_values.mean(1)"),
    (
        "next_actions = self.net(new_states).argmax(1, keepdim=True)",
        "next_actions = self.target_net(new_states).argmax(1, keepdim=True)",
    ),
    ("next_values = next_values.masked_fill(dones, 0.0)", "next_values = next_values.masked_fill(~dones, 0.0)"),
    ("self.hparams.gamma**self.hparams.n_step * next_values", "self.hparams.gamma * next_values"),
    (
        "functional.huber_loss(q_values, targets, delta=self.hparams.clip_error)",
        "functional.huber_loss(q_values, targets)",
    ),
    ("target.lerp_(weight, self.hparams.tau)", "target.lerp_(weight, 1 - self.hparams.tau)"),
    ("elif self.global_step % self.hparams.sync_rate == 0:", "elif self.global_step % self.hparams.sync_rate == 1:"),
    ("            self.episode_reward = 0.0\n        if", "        if"),
    (
        "progress = min(1.0, self.global_step / self.trainer.estimated_stepping_batches)",
        "progress = min(1.0, epoch / self.trainer.estimated_stepping_batches)",
    ),
    ("playing &= ~(terminated | truncated)", "playing &= ~terminated"),
    ("self.gamma**age * step.reward", "step.reward"),
    ("len(self.waiting) == self.n_step or (experience.done and self.waiting)", "len(self.waiting) == self.n_step"),
    ("        self.waiting.clear()\n", "        pass\n"),
]
# Faults of the callbacks.
RUN_FAULTS = [
    ("module.agent.seeds = TRAIN_SEEDS[trainer.global_rank :: trainer.world_size]", "pass"),
    ("signal.signal(signal.SIGTERM, answer)", "pass"),
    ("        self.answer_signals(signal.SIG_DFL)\n", ""),
    ("        self.told_to_stop(trainer)  # while", "        pass  # while"),
    ("for tensor in (reward, *module.net.parameters(), *moments)", "for tensor in (reward,)"),
    ("if validated and reward >= self.best_reward:", "if validated and reward > self.best_reward:"),
    ("self.best_reward = reward.item()", "pass"),
    ("            trainer.should_stop = True\n", ""),
    ("max(2.0, 25 * (time.monotonic() - begun))", "1e9"),
    ("partial.replace(self.folder / name)", "shutil.copy(partial, self.folder / name)"),
    ('"agent": module.agent.state_dict(),', '"agent": module.agent.state_dict() | {"actions": []},'),
    ('        torch.set_rng_state(torch.from_numpy(mine["torch_rng"]))\n', ""),
    ('        self.best_reward = float(mine["best_reward"])\n', ""),
    (
        "module.returns = deque(returns, module.returns.maxlen)",
        "module.returns = deque(returns[1:], module.returns.maxlen)",
    ),
    ('apply_to_collection(checkpoint["dqn"][trainer.global_rank],', 'apply_to_collection(checkpoint["dqn"][0],'),
    ("trainer.strategy.launcher.kill(", "print("),
    ('if checkpoint["epoch"] >= trainer.max_epochs > 0:', 'if checkpoint["epoch"] > trainer.max_epochs > 0:'),
    ('"best_reward": self.best_reward,', '"best_reward": -math.inf,'),
    ('self.locked.enter_context(FileLock(logs / ".lock", timeout=0))', "pass"),
    ("        self.locked.close()\n", "        pass\n"),
]


def survives(old: str, new: str) -> bool:
    """Whether all tests pass on a copy of the project with `new` in the place of `old`."""
    if SOURCE.count(old) != 1:
        raise RuntimeError(f"{old!r} is there {SOURCE.count(old)} times, not once")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ROOT, Path(folder, "copy"), ignore=shutil.ignore_patterns(".git", ".venv", "version_*"))
        fault = SOURCE.replace(old, new).replace("import shlex\n", "import shlex\nimport shutil\n", 1)
        Path(copy, "dqn_cartpole.py").write_text(fault)
        files = [f"tests/test_{name}.py" for name in (RUN_TESTS if (old, new) in RUN_FAULTS else TESTS)]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        try:
            return subprocess.run(command, cwd=copy, capture_output=True, timeout=3600).returncode == 0
        except subprocess.TimeoutExpired:  # a run that never ends is noticed
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="only the faults whose text holds this")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: %(default)s)")
    args = parser.parse_args()
    faults = [(old, new) for old, new in FAULTS + RUN_FAULTS if args.only in old + new]
    done, survivors = itertools.count(1), []

    def judge(fault: tuple[str, str]) -> None:
        survived = survives(*fault)
        print(f"[{next(done)}/{len(faults)}] {'SURVIVED' if survived else 'noticed'}: {fault[1]!r}", flush=True)
        if survived:
            survivors.append(fault)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(judge, faults))
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults were noticed")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
