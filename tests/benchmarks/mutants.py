"""Plant faults in dqn_cartpole.py, one at a time, and report which of them the tests do not notice.

    pip install -r requirements.txt -r tests/requirements.txt
    python tests/benchmarks/mutants.py                  # or --only WORD: those whose text holds it

Each fault is a small change: a sign, a bound, a line left out. The file of tests whose promise it breaks should notice;
it runs on a copy of the project and stops at the first test that fails. The exit code is 1 if a fault survived.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "dqn_cartpole.py").read_text()
# The file of tests that should notice, what stands in the file exactly once, and the fault in its place.
FAULTS = [
    ("parts", "[hidden_size] * (hidden_layers - 1)", "[hidden_size] * 0"),
    ("parts", "return self.net(x.flatten(1).float())", "return self.net(x.float())"),
    ("parts", "return min(self.appended, self.capacity)", "return self.appended"),
    ("parts", "array[self.appended % self.capacity] = value", "array[min(self.appended, self.capacity - 1)] = value"),
    ("parts", "        self.episode_steps += 1\n", ""),
    ("parts", "        self.episode_steps = 0\n\n", "        pass\n\n"),
    ("parts", "rows = self.rng.integers(len(self), size=batch_size)", "rows = np.arange(batch_size) % len(self)"),
    ("parts", "self.rng.integers(len(self), size", "self.rng.integers(self.capacity, size"),
    ("parts", "for _ in range(self.steps):", "for _ in range(self.steps + 1):"),
    ("parts", "        self.replay_buffer.end_episode()\n", ""),
    ("parts", "        self.score = 0.0\n", "        self.score = getattr(self, 'score', 0.0)\n"),
    ("parts", "TRAIN_SEEDS[self.rng.integers(len(TRAIN_SEEDS))]", "int(self.rng.integers(20))"),
    ("parts", "self.state = np.array(observation)  # a copy", "self.state = np.asarray(observation)  # a copy"),
    ("parts", "if self.rng.random() < epsilon:", "if self.rng.random() > epsilon:"),
    ("parts", "new_state, reward = np.array(observation)", "new_state, reward = np.asarray(observation)"),
    ("parts", "if not np.isfinite(value).all():", "if False:"),
    ("parts", "action, reward, terminated, new_state", "action, reward, terminated or truncated, new_state"),
    ("parts", "            self.scores.append(self.score)\n", ""),
    ("parts", "torch.randint(2**62, ()).item()", "0"),
    ("parts", ".requires_grad_(False)", ""),
    ("parts", "if len(self.buffer) == 0:", "if True:"),
    ("parts", "self.populate(self.hparams.warm_start_steps)", "self.populate()"),
    ("parts", "play_step(self.net, epsilon=1.0,", "play_step(self.net, epsilon=0.5,"),
    ("parts", "        self.agent.scores.clear()", "        pass"),
    ("parts", "play_step(self.net, self.epsilon, self.device)", "play_step(self.net, 1.0, self.device)"),
    ("parts", "if not np.isfinite(loss.item()):", "if False:"),
    ("parts", "        self.sync_target()\n", ""),
    ("parts", "self.hparams.max_epochs * self.hparams.steps_per_epoch", "self.hparams.max_epochs * 500"),
    ("parts", "self.progress / max(self.hparams.eps_fraction, 1e-9)", "self.progress"),
    ("parts", "fraction * (self.hparams.eps_end - self.hparams.eps_start)", "fraction * self.hparams.eps_end"),
    ("parts", "with torch.no_grad():  # the targets", "if True:  # the targets"),
    ("parts", "nn.functional.mse_loss(q_values", "nn.functional.l1_loss(q_values"),
    ("parts", "self.global_step % self.hparams.sync_rate == 0", "self.global_step % (self.hparams.sync_rate + 1) == 0"),
    ("parts", "self.target_net(batch.state).amax(1).mean()", "self.net(batch.state).mean()"),
    ("parts", "% self.trainer.log_every_n_steps == 0", "% 49 == 0"),
    ("parts", "for _ in range(10_000):", "for _ in range(100):"),
    ("parts", "if not over[i]:", "if True:"),
    ("parts", "over[i] = terminated or truncated", "over[i] = terminated"),
    ("parts", "self.n_step - 1, self.capacity - 1)", "self.n_step, self.capacity - 1)"),
    ("parts", "row = (self.appended - age)", "row = (self.appended - age + 1)"),
    ("parts", "self.gamma**age * experience.reward", "experience.reward"),
    ("parts", "        self.arrays.done[row] = experience.done\n", ""),
    ("parts", "        self.arrays.new_state[row] = experience.new_state\n", ""),
    ("parts", "        self.arrays.discount[row] *= self.gamma\n", ""),
    ("parts", "\n        return batch.reward + batch.discount", "\n        return batch.reward + self.hparams.gamma"),
    ("parts", "self.agent.scores or [self.agent.score]", "self.agent.scores or [0]"),
    ("parts", "layer_norm=self.hparams.layer_norm, **options", "layer_norm=True, **options"),
    ("parts", "lambda _: 1 - self.progress", "lambda _: 1.0"),
    ("environments", "max_episode_steps=self.hparams.episode_length or None", "max_episode_steps=None"),
    ("environments", "gym.spaces.Box) or not env.observation_space.shape:", "gym.spaces.Box):"),
    ("environments", "if states.shape is None or not", "if not"),
    ("environments", "or actions.start != 0:", "or False:"),
    ("environments", "in (np.float64, np.int64) else", "in (np.float64,) else"),
    ("environments", "return gym.wrappers.DtypeObservation(env, dtype)", "return env"),
    ("environments", "            env.close()\n", ""),
    ("environments", "stack.enter_context(self.make_env(**options))", "self.make_env(**options)"),
    ("environments", "with model.agent.env:  # closes", "if True:  # closes"),
    ("resume", "bool(current >= self.best_model_score)", "bool(current > self.best_model_score)"),
    ("resume", 'mode="max", save_weights_only=True', 'mode="max", save_weights_only=False'),
    ("resume", "            model.agent.reset()\n\n", "\n"),
    ("resume", "env.seed, env.actions, torch", "env.seed, [], torch"),
    ("resume", "if not np.array_equal(agent.state, state):", "if False:"),
    ("resume", "agent.state, agent.score = state.numpy(), score", "agent.state = state.numpy()"),
    ("resume", "agent.scores = deque(scores, agent.scores.maxlen)", "pass"),
    ("resume", "        buffer.episode_steps = len(actions)\n", ""),
    ("resume", "            array[: len(saved)] = saved\n", "            pass\n"),
    ("resume", "        torch.set_rng_state(torch_state)\n", ""),
    ("resume", "agent.rng.bit_generator.state, torch_state = ", "_, torch_state = "),
    ("resume", "        model.on_load_checkpoint(checkpoint)  # again", "        pass  # again"),
    ("resume", "exception.code = 143", "pass"),
    ("resume", '"tempdir", "lightning_logs"', '"tempdir", None'),
    ("resume", "purge_step=step", "purge_step=None"),
    ("resume", "if owner != module.__name__:", "if False:"),
    ("resume", "torch.load(path, mmap=True, weights_only=True)", "torch.load(path, mmap=True, weights_only=False)"),
    ("resume", '(args.seed or given.keys() - {"max_epochs"})', '(given.keys() - {"max_epochs"})'),
    ("lightning", "if trainer.global_rank > 0:\n", "if False:\n"),
    ("lightning", "trainer.is_global_zero and trainer.logger and os", "trainer.is_global_zero and os"),
    ("lightning", "args.seed + pl.utilities.rank_zero_only.rank", "args.seed"),
    ("lightning", "for logger in self.loggers:", "for logger in self.loggers[:1]:"),
    ("lightning", '"avg_reward": self.avg_reward}, sync', '"mean_score": self.avg_reward}, sync'),
    ("subclass", "for base in reversed(module.__mro__):", "for base in [module]:"),
    ("subclass", '(type(argument.default), "", None)', '(str, "", None)'),
    ("subclass", "                    kind = annotation\n", "                    pass\n"),
    ("subclass", "torch.load(io.BytesIO(file.getvalue()), weights_only=True)", "pass"),
    ("command_line", "and given.get(name, 1) < 1:", "and False:"),
    ("command_line", "pl.seed_everything(args.seed", "pl.seed_everything(0"),
    ("command_line", "with contextlib.suppress(FileExistsError):", "if True:"),
    ("command_line", "        logger.log_hyperparams(", "        (lambda *_: None)("),
    ("command_line", "if args.gpus and not torch.accelerator.is_available():", "if False:"),
]


def survives(tests: str, old: str, new: str) -> bool:
    """Whether these tests pass on a copy of the project with `new` in the place of `old`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ROOT, Path(folder, "copy"), ignore=shutil.ignore_patterns(".git", ".venv", "version_*"))
        Path(copy, "dqn_cartpole.py").write_text(SOURCE.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        command.append(f"tests/test_{tests}.py")
        try:
            return subprocess.run(command, cwd=copy, capture_output=True, timeout=600).returncode == 0
        except subprocess.TimeoutExpired:  # a run that never ends is noticed
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="only the faults whose text holds this")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if args.only in "".join(fault)]
    for _, old, _ in faults:
        if SOURCE.count(old) != 1:
            parser.error(f"{old!r} is there {SOURCE.count(old)} times, not once")
    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for fault, survived in zip(faults, pool.map(lambda fault: survives(*fault), faults)):
            survivors += survived
            print(f"{'SURVIVED' if survived else 'noticed'}: {fault[1]!r} became {fault[2]!r}", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults were noticed")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
