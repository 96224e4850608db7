"""Train many seeds of a command line, and print how well they learned as rows of a Markdown table.

    python tests/benchmarks/learning.py --seeds 0-19                                     # the default
    python tests/benchmarks/learning.py --seeds 0-9 --bar -80 -- --env Acrobot-v1        # any command line
    python tests/benchmarks/learning.py --seeds 0-9 --module tests.examples.dueling:Dueling -- --env CartPole-v1
    python tests/benchmarks/learning.py --module tests.examples.fast:Fast+tests.examples.dueling:Dueling    # faster

The last row sums up: medians, worst seeds, and how many seeds reach the bar, by default the environment's
reward_threshold. "Solved" is the step of the first validation at the bar. "Best" and "last" are tests of best.ckpt and
last.ckpt over 100 episodes.
"""

import argparse
import contextlib
import io
import math
import multiprocessing
import os
import pkgutil
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gymnasium as gym

import dqn_cartpole


class Result(NamedTuple):
    """What came of one seed."""

    solved: float  # training steps; infinite: never
    best: float
    last: float
    seconds: float
    bar: float


def train(module: str, flags: list[str], seed: int, bar: float | None) -> Result:
    """Train one seed in a folder of its own."""
    start, output = time.monotonic(), io.StringIO()
    agent = type("Agent", tuple(map(pkgutil.resolve_name, module.split("+"))), {})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(output):
        os.chdir(folder)
        best = dqn_cartpole.main(agent, [*flags, "--seed", str(seed)])["test_reward"]
        seconds = time.monotonic() - start
        last = dqn_cartpole.main(agent, ["--test", "lightning_logs/version_0/checkpoints/last.ckpt"])["test_reward"]
        hparams = Path("lightning_logs/version_0/hparams.yaml").read_text()
        tempfile.tempdir = None
        os.chdir("/")
    if bar is None:
        env = re.search(r"^env: (.*:)?(.*)$", hparams, re.MULTILINE)
        bar = gym.spec(env.group(2) if env else "").reward_threshold or math.inf
    validations = re.findall(r"step ([\d,]+): val_reward (\S+)", output.getvalue())
    solved = min((int(step.replace(",", "")) for step, value in validations if float(value) >= bar), default=math.inf)
    return Result(solved, best, last, seconds, bar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-19", help="from-to")
    parser.add_argument("--module", default="dqn_cartpole:ImprovedDQN", help="module:class to train; + joins several")
    parser.add_argument("--bar", type=float, help="score that counts as good")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("flags", nargs="*", help="flags of the program, after --")
    args = parser.parse_args()
    first, last = map(int, args.seeds.split("-"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dqn_cartpole"])
    results = []
    print("| seed | solved | best | last | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    with context.Pool(args.jobs, maxtasksperchild=1) as pool:
        jobs = [(args.module, args.flags, seed, args.bar) for seed in range(first, last + 1)]
        handles = [pool.apply_async(train, job) for job in jobs]
        for (_, _, seed, _), handle in zip(jobs, handles):
            result = handle.get()
            results.append(result)
            print(
                f"| {seed} | {result.solved:,.0f} | {result.best:.2f} | {result.last:.2f} | {result.seconds:.0f} |",
                flush=True,
            )
    solved, best, last, seconds, bars = zip(*results)
    row = f"| all | {median(solved):,.0f}, worst {max(solved):,.0f}"
    for scores in (best, last):
        good, perfect = (sum(score >= bar for score in scores) for bar in (bars[0], max(best)))
        row += f" | {median(scores):.2f}, worst {min(scores):.2f}; {good} at {bars[0]:g}, {perfect} at {max(best):.2f}"
    print(f"{row} | {median(seconds):.0f} |")


if __name__ == "__main__":
    main()
