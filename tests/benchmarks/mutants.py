"""Plant faults in dqn_cartpole.py, one at a time, and report which of them the tests do not notice.

    pip install -r requirements.txt -r tests/requirements.txt
    python tests/benchmarks/mutants.py                  # 20 minutes on two cores
    python tests/benchmarks/mutants.py --only sync      # those whose text holds a word

Each fault is a small change: a sign, a bound, a line left out. The file of tests whose promise it breaks should notice;
it runs on a copy of the project and stops at the first test that fails. The exit code is 1 if a fault survived.
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
# The file of tests that should notice it, what stands in the file, and the fault in its place. A text that is not there
# exactly once is an error.
FAULTS = [
    ("parts", "for _ in range(hidden_layers - 1):", "for _ in range(0):"),
    ("parts", "return self.net(x.flatten(1).float())", "return self.net(x.float())"),
    ("parts", "return min(self.appended, self.capacity)", "return self.appended"),
    ("parts", "array[self.appended % self.capacity] = value", "array[min(self.appended, self.capacity - 1)] = value"),
    ("parts", "if batch_size > len(self):", "if batch_size >= len(self):"),
    ("parts", "len(self), batch_size, replace=False)", "len(self), batch_size, replace=True)"),
    ("parts", "(np.int64, np.float32, np.bool_)", "(np.int64, np.float64, np.bool_)"),
    ("parts", 'buffer.rng.bit_generator.state = checkpoint["rng"]', '_ = checkpoint["rng"]'),
    ("parts", "                array[: len(saved)] = saved\n", "                pass\n"),
    ("parts", "math.ceil(self.sample_size / (self.batch_size or 1))", "self.sample_size // (self.batch_size or 1)"),
    (
        "parts",
        "range(0, self.sample_size, self.batch_size)",
        "range(0, self.sample_size - self.batch_size, self.batch_size)",
    ),
    ("parts", "np.random.default_rng(seed)\n        self.reset()", "np.random.default_rng()\n        self.reset()"),
    ("parts", "self.rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)", "self.rng.integers(20)"),
    ("parts", "        self.replay_buffer.begin_episode()\n", ""),
    ("parts", "if self.rng.random() < epsilon:", "if self.rng.random() > epsilon:"),
    ("parts", "bool(terminated), new_state))", "bool(terminated or truncated), new_state))"),
    ("parts", "        self.state = new_state\n", ""),
    ("parts", "array = np.array(observation)", "array = np.asarray(observation)"),
    ("parts", "np.float32 if dtype == np.float64 else dtype", "dtype"),
    ("parts", ".requires_grad_(False).eval()", ".requires_grad_(False)"),
    ("parts", "self.criterion: nn.Module = nn.MSELoss()", "self.criterion = nn.L1Loss()"),
    ("parts", "self.hparams.eps_last_frame or self.total_steps()", "self.hparams.eps_last_frame or 15600"),
    ("parts", "self.hparams.eps_last_frame or self.total_steps()", "self.total_steps()"),
    (
        "parts",
        "with torch.no_grad():  # the targets count as constants",
        "if True:",
    ),
    ("parts", "amax(1).masked_fill(batch.done, 0.0)", "amax(1)"),
    ("parts", "self.discount = gamma  #", "self.discount = 1.0  #"),
    ("parts", "self.global_step % self.hparams.sync_rate == 0", "self.global_step % (self.hparams.sync_rate + 1) == 0"),
    ("parts", "        self.score += reward\n", "        self.score = reward\n"),
    ("command_line", "            self.score = 0.0\n        if", "        if"),
    ("parts", "scores.std(correction=0)", "scores.std()"),
    (
        "parts",
        "                        scores[i] += float(reward)\n",
        "                        scores[i] = float(reward)\n",
    ),
    ("parts", "over[i] = bool(terminated or truncated)", "over[i] = bool(terminated)"),
    ("parts", "while len(self.pending) == self.n_step or", "while len(self.pending) > self.n_step or"),
    ("parts", "self.gamma**k * step.reward", "step.reward"),
    ("parts", "new_state=experience.new_state))", "new_state=oldest.new_state))"),
    ("parts", "        self.pending.clear()\n", "        pass\n"),
    ("parts", "delta=clip_error", "delta=1.0"),
    ("parts", "self.discount = self.hparams.gamma**self.buffer.n_step", "pass"),
    ("parts", "if not self.hparams.double_dqn:", "if False:"),
    ("parts", "actions).squeeze(1).masked_fill(batch.done, 0.0)", "actions).squeeze(1)"),
    ("parts", "self.net(batch.new_state).argmax(1", "self.target_net(batch.new_state).argmax(1"),
    ("parts", "zip(self.target_net.state_dict().values(), self", "zip(self.target_net.parameters(), self"),
    ("parts", "target.lerp_(value, self.hparams.tau)", "target.lerp_(value, 1 - self.hparams.tau)"),
    ("parts", "net.net.insert(3 * layer + 1,", "net.net.insert(3 * layer + 2,"),
    ("parts", "if self.hparams.layer_norm:", "if True:"),
    ("parts", '"linear": 1 - progress', '"linear": progress'),
    ("environments", "envs = [stack.enter_context(self.make_env()) for", "envs = [self.make_env() for"),
    ("environments", "    with model.env:  # closes it at the end", "    if True:"),
    ("environments", "max_episode_steps=limit", "max_episode_steps=None"),
    ("environments", "or env.action_space.start != 0:", "or False:"),
    ("environments", "        if env.observation_space.shape is None:", "        if False:"),
    ("resume", "torch_rng, agent.rng.bit_generator.state, ", "torch_rng, _, "),
    ("resume", "(agent.episode_seed, list(agent.actions), ", "(agent.episode_seed, [], "),
    ("resume", "        torch.set_rng_state(torch_rng)\n", ""),
    ("resume", "            self.score += agent.take(action)[0]\n", "            pass\n"),
    ("resume", "            self.score += agent.take(action)[0]\n", "            agent.take(action)\n"),
    ("resume", "purge_step=args.step", "purge_step=None"),
    ("resume", 'partial = Path(self.folder, f"{name}.partial")', "partial = Path(self.folder, name)"),
    ("resume", "error.code = 143", "pass"),
    ("resume", ">= self.best_reward:", "> self.best_reward:"),
    ("resume", '        self.best_reward = state["best_reward"]\n', "        pass\n"),
    ("resume", "if owner != module.__name__:", "if False:"),
    ("resume", "weights_only=True)  # never", "weights_only=False)  # never"),
    ("resume", '({"seed": settings["seed"]} if resume else {})', "{}"),
    ("resume", "if not all(weight.isfinite()", "if False and not all(weight.isfinite()"),
    ("resume", "if not validated and epoch != trainer.max_epochs:", "if not validated:"),
    ("resume", 'if resume and folder.name == "checkpoints" and folder.parent.name:', "if resume:"),
    ("lightning", "        if self.global_rank > 0:", "        if False:"),
    (
        "lightning",
        "self.play_episodes(seeds).mean(), sync_dist=True)",
        "self.play_episodes(seeds).mean(), sync_dist=False)",
    ),
    ("lightning", "for logger in self.loggers:", "for logger in self.loggers[:1]:"),
    ("lightning", '        self.log("avg_reward", self.avg_reward', '        self.log("mean_score", self.avg_reward'),
    ("subclass", ' and "__init__" in vars(base)', ""),
    ("subclass", "            kind = type(arguments[name].default)\n", "            pass\n"),
    ("subclass", "arguments[name].replace(default=new.default) if known else new", "new"),
    ("subclass", 'options = {"action": argparse.BooleanOptionalAction}', "pass"),
    ("examples", 'f"python -m {spec.name}" if spec else', '"python dqn_cartpole.py" if spec else'),
    ("command_line", "gradient_clip_val=args.grad_clip", "gradient_clip_val=None"),
    ("command_line", "pl.seed_everything(args.seed, verbose=False)", "pl.seed_everything(0, verbose=False)"),
    ("command_line", "run.mkdir(parents=True)", "run.mkdir(parents=True, exist_ok=True)"),
    ("command_line", '        logger.finalize("success")\n', ""),
    ("command_line", "        logger.log_hyperparams(args.settings)\n", ""),
    ("command_line", "        except Exception as error:  # a failed", "        except KeyError as error:  # a failed"),
    ("command_line", "    if args.gpus < -1 or abs(args.gpus) > gpus:", "    if False:"),
]


def survives(tests: str, old: str, new: str) -> bool:
    """Whether these tests pass on a copy of the project with `new` in the place of `old`."""
    if SOURCE.count(old) != 1:
        raise RuntimeError(f"{old!r} is there {SOURCE.count(old)} times, not once")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ROOT, Path(folder, "copy"), ignore=shutil.ignore_patterns(".git", ".venv", "version_*"))
        Path(copy, "dqn_cartpole.py").write_text(SOURCE.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        command.append(f"tests/test_{tests}.py")
        try:
            return subprocess.run(command, cwd=copy, capture_output=True, timeout=3600).returncode == 0
        except subprocess.TimeoutExpired:  # a run that never ends is noticed
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="only the faults whose text holds this")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: %(default)s)")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if args.only in "".join(fault)]
    done, survivors = itertools.count(1), []

    def judge(fault: tuple[str, str, str]) -> None:
        survived = survives(*fault)
        verdict = "SURVIVED" if survived else "noticed"
        print(f"[{next(done)}/{len(faults)}] {verdict}: {fault[1]!r} became {fault[2]!r}", flush=True)
        if survived:
            survivors.append(fault)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(judge, faults))
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults were noticed")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
