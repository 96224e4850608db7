"""What each of the things that make the script fast is worth: undo one, time a step and the start, print Markdown.

    pip install -r requirements.txt -r tests/benchmarks/requirements.txt
    python tests/benchmarks/leads.py --rounds 5

Each row is dqn_cartpole.py with one piece of its text replaced, run as in speed.py's row (a), with its --python; the
ratio to the script as it is is taken within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import speed

# What is undone, and the text that does it. A text that is not in the script any more is an error.
LEADS: dict[str, list[tuple[str, str]]] = {
    "log everything with `self.log_dict` in every step": [
        (
            "        self.log_step(reward, episode_over, loss, batch)\n",
            "        self.log_step(reward, episode_over, loss, batch)\n"
            "        self.log_dict({'a': reward, 'b': loss, 'c': self.epsilon, 'd': self.episode_reward})\n",
        )
    ],
    "write `train_loss` and its like in every step instead of every 50": [("LOG_EVERY = 50", "LOG_EVERY = 1")],
    "redraw the bar in every step": [("mininterval=0.3", "mininterval=0")],
    "one more callback, which does nothing": [("Progress(), Checkpoints", "Progress(), pl.Callback(), Checkpoints")],
    "Adam without `fused=True`": [("fused=True", "foreach=True")],
    "single experiences, collated to minibatches": [
        ("self.hparams.sample_size, self.hparams.batch_size)", "self.hparams.sample_size)"),
        ("DataLoader(dataset, batch_size=None)", "DataLoader(dataset, batch_size=self.hparams.batch_size)"),
    ],
    "minibatches of arrays, made tensors one by one": [
        ("tensors = [torch.from_numpy(array) for array in sample]", "tensors = sample")
    ],
    "gym's environment checker on": [("disable_env_checker=True", "disable_env_checker=False")],
    "act under `no_grad`, not `inference_mode`": [
        ("    @torch.inference_mode()\n    def play_step", "    @torch.no_grad()\n    def play_step")
    ],
    "as many threads as cores": [("torch.set_num_threads(1)", "pass")],
    "all shortcuts around Lightning": [("model = FastDQN(", "model = DQNLightning("), ("profiler=NoProfiler(),", "")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3000, help="training steps to time (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the script (default: this one)")
    args = parser.parse_args()
    speed.use_python(args.python)
    source = speed.SOURCE.decode()
    variants = {"as it is": source}
    for name, replacements in LEADS.items():
        variants[name] = source
        for old, new in replacements:
            if variants[name].count(old) != 1:
                raise RuntimeError(f"{name}: {old!r} is there {variants[name].count(old)} times, not once")
            variants[name] = variants[name].replace(old, new)
    settings = speed.measure(speed.Job("defaults"))["settings"]
    changed = speed.constant(settings)
    times: dict[str, list[float]] = {name: [] for name in variants}
    starts: dict[str, list[float]] = {name: [] for name in variants}
    for n in range(args.rounds):
        for name, text in variants.items():
            speed.SOURCE = text.encode()
            job = speed.Job("script", settings | changed, speed.flags_of(changed), skip=speed.SKIP, steps=args.steps)
            figures = speed.shown(f"round {n + 1}, {name}", speed.measure(job))
            times[name].append(figures["step"])
            starts[name].append(figures["start"])
    rows = []
    for name, found in times.items():
        ratio = statistics.median(time / base for time, base in zip(found, times["as it is"]))
        rows.append([name, speed.spread(found), f"{ratio:.2f}", speed.spread(starts[name])])
    print(speed.table(("undone", "training step, ms", "ratio", "start to first step, s"), rows))


if __name__ == "__main__":
    main()
