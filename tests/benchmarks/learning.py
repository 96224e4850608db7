"""Train many seeds of a command line of dqn_cartpole.py and print, as Markdown, how well they learned.

    python tests/benchmarks/learning.py                                        # the default, seeds 0 to 19
    python tests/benchmarks/learning.py --seeds 100-104 -- --env Acrobot-v1    # any other command line
    python tests/benchmarks/learning.py --seeds 0-9 --table tests/benchmarks/article_list.txt
    python tests/benchmarks/learning.py --seeds 0-4 --table tests/benchmarks/recipes.txt
    python tests/benchmarks/learning.py --seeds 0-9 --module tests.examples.dueling -- --env CartPole-v1

Without --table a row is a seed; with it a row is a command line, `name: arguments` on a line of the file.
Every run is a process of its own, in a folder of its own, of the script and the examples as they were at the start.

Steps to solved is the step of the first validation at or above the environment's reward threshold. In the
medians and worst cases a seed that was never solved, or crashed, counts as worse than any that was not.
The last 20 training episodes are the mean of the last 20 points of `total_reward`: where its curve ends.
The line of a seed also has the highest and the last mean of `q_mean` over 520 steps.
The exit code is 1 if a seed crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
LAST_EPISODES = 20
Q_STEPS = 520
TRAINING = f"last {LAST_EPISODES} training episodes"
TEST_LINE = re.compile(r"^test_reward: (\S+) \+/- (\S+) over \d+ episodes$", re.MULTILINE)


@dataclass
class Result:
    """What came of one seed; a test is its mean and standard deviation."""

    seed: int
    crash: str | None = None
    threshold: float | None = None  # of the reward, at which the environment is solved
    maximum: float | None = None  # of the reward, where it is known
    steps: int | None = None  # to the first validation at or above the threshold
    best: tuple[float, float] | None = None  # test of the best checkpoint
    last: tuple[float, float] | None = None  # test of the last weights
    training: float | None = None  # mean return of the last training episodes
    q_peak: float | None = None  # highest mean of q_mean over Q_STEPS
    q_end: float | None = None  # the last of these means
    seconds: float | None = None  # that the training command took

    def __str__(self) -> str:
        return self.crash or (
            f"solved at {number(self.steps, 'no step')}, best {mean(self.best)}, last {mean(self.last)},"
            f" last training episodes {number(self.training)}, q_mean at most {number(self.q_peak)},"
            f" at the end {number(self.q_end)}, {number(self.seconds)} s"
        )


def run(program: Sequence[str], source: Path, folder: Path, args: Sequence[str]) -> tuple[float, float]:
    """Run the program from `source` in `folder`; return the mean and standard deviation of the test it ends with."""
    command, env = [sys.executable, *program, *args], os.environ | {"PYTHONPATH": str(source)}
    process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {process.stderr.strip().rpartition(chr(10))[2]}")
    if not (found := TEST_LINE.search(process.stdout)):
        raise RuntimeError("printed no test_reward")
    return float(found[1]), float(found[2])


def train(
    program: Sequence[str], source: Path, folder: Path, args: Sequence[str], seed: int, threshold: float | None
) -> Result:
    """Train one seed in the new `folder`, test its last weights, and read what the run wrote."""
    result = Result(seed)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    try:
        result.best = run(program, source, folder, [*args, "--seed", str(seed)])
        result.seconds = round(time.perf_counter() - start, 1)
        (logs,) = folder.glob("lightning_logs/version_*")
        hparams = yaml.safe_load((logs / "hparams.yaml").read_text())
        result.threshold = threshold
        with contextlib.suppress(gym.error.Error):  # an example's own environment is not registered here
            spec = gym.spec(hparams["env"])
            result.threshold = spec.reward_threshold if threshold is None else threshold
            if hparams["env"].startswith("CartPole"):  # a reward of 1 a step, so the cap is the most there is
                result.maximum = hparams["episode_length"] or spec.max_episode_steps
        events = EventAccumulator(str(logs), size_guidance={"scalars": 0}).Reload()  # 0 is all of them
        if returns := [point.value for point in events.Scalars("total_reward")[-LAST_EPISODES:]]:
            result.training = statistics.fmean(returns)
        windows = itertools.groupby(events.Scalars("q_mean"), lambda point: point.step // Q_STEPS)
        q_means = [statistics.fmean(point.value for point in window) for _, window in windows]
        result.q_peak, result.q_end = max(q_means), q_means[-1]
        points = events.Scalars("val_reward")
        if result.threshold is not None:
            result.steps = next((point.step + 1 for point in points if point.value >= result.threshold), None)
        result.last = run(program, source, folder, ["--test", str(logs / "checkpoints" / "last.ckpt")])
    except Exception as error:  # whatever went wrong is this seed's result, and the others go on
        result.crash = f"crashed: {error}"
    return result


def number(value: float | None, none: str = "-") -> str:
    """At most two decimals; what is infinite, or missing, is `none`."""
    return none if value is None or math.isinf(value) else f"{round(value, 2) + 0:.12g}"  # + 0 makes 0 of -0


def mean(test: tuple[float, float] | None) -> str:
    return number(test and test[0])


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def summary(results: Sequence[Result]) -> tuple[str, list[str], list[str]]:
    """How many seeds were solved, then the medians and the worst of steps, best, last, training and seconds."""
    medians, worst = [], []
    for name, sign in (("steps", 1), ("best", -1), ("last", -1), ("training", -1), ("seconds", 1)):
        found = [None if r.crash else getattr(r, name) for r in results]
        # Less is better, so a reward changes its sign; what a seed did not get to is infinitely bad.
        values = [math.inf if v is None else sign * (v[0] if isinstance(v, tuple) else v) for v in found]
        none = "never" if name == "steps" else "crashed"
        medians.append(number(sign * statistics.median(values), none))
        worst.append(number(sign * max(values), none))
    crashed = sum(r.crash is not None for r in results)
    solved = f"{sum(r.steps is not None and not r.crash for r in results)} of {len(results)}"
    if crashed < len(results) and all(r.threshold is None for r in results):
        solved = "no threshold"
    return solved + (f", {crashed} crashed" if crashed else ""), medians, worst


def seed_table(results: Sequence[Result]) -> str:
    """A row for each seed, then the medians, the worst, and how many are at the threshold and the maximum."""
    titles = ("seed", "solved", "steps to solved", "best test", "last test", TRAINING, "seconds")
    lines = [row(*titles), "|---" * len(titles) + "|"]
    for r in results:
        solved = r.crash or ("yes" if r.steps is not None else "no" if r.threshold is not None else "no threshold")
        tests = (mean(r.best), mean(r.last), number(r.training))
        lines.append(row(str(r.seed), solved, number(r.steps), *tests, number(r.seconds)))
    solved, medians, worst = summary(results)
    lines += [row("median", solved, *medians), row("worst", "", *worst)]
    for name, word in (("threshold", "at least"), ("maximum", "exactly")):
        limit = next((value for r in results if (value := getattr(r, name)) is not None), None)
        if limit is not None:  # the maximum has no spread: a mean just below it can be printed as the maximum
            tests = ([r.best for r in results], [r.last for r in results])
            counts = [
                sum(t is not None and t[0] >= limit and (name == "threshold" or t[1] == 0) for t in column)
                for column in tests
            ]
            lines.append(row(f"{word} {limit:g}", "", "", *(f"{n} of {len(results)}" for n in counts), "", ""))
    return "\n".join(lines)


def seeds(text: str) -> list[int]:
    """Read `0-19`, `7`, or several of them with commas between."""
    ranges = (part.partition("-") for part in text.split(","))
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


def read_table(path: Path) -> dict[str, list[str]]:
    """Read lines of `name: arguments`; what follows a # is a comment."""
    lines = filter(None, (line.partition("#")[0].strip() for line in path.read_text().splitlines()))
    return {name: shlex.split(args) for name, args in (line.split(":", 1) for line in lines)}


def main() -> int:
    usage = "learning.py [options] [-- arguments of dqn_cartpole.py]"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], usage=usage)
    parser.add_argument("--seeds", type=seeds, default=seeds("0-19"), help="such as 0-19 (the default) or 3,5-7")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--out", type=Path, help="empty folder for what the runs write (default: not kept)")
    parser.add_argument("--json", type=Path, help="file for every seed's results")
    parser.add_argument("--threshold", type=float, help="reward that solves (default: the environment's own)")
    parser.add_argument("--table", type=Path, help="file of named command lines, to be a row each")
    parser.add_argument("--module", help="example to train in the script's place, such as tests.examples.dueling")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the script and the examples (default: here)")
    parser.add_argument("args", nargs="*", help="passed on, in front of a line's own")
    args = parser.parse_args()
    if not args.seeds:
        parser.error("--seeds: must be at least one")
    if args.out and args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out}: must be empty")

    commands = read_table(args.table) if args.table else {shlex.join(args.args) or "default": []}
    total, done = len(commands) * len(args.seeds), itertools.count(1)
    report: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        source = out / "source"
        shutil.copytree(args.root / "tests" / "examples", source / "tests" / "examples")
        script = shutil.copy(args.root / "dqn_cartpole.py", source)
        program = ["-m", args.module] if args.module else [str(script)]

        def job(index: int, name: str, own: list[str], seed: int) -> Result:
            folder = out / re.sub(r"\W+", "_", f"{index:02}_{name}")[:80].strip("_") / f"seed_{seed}"
            result = train(program, source, folder, [*args.args, *own], seed, args.threshold)
            print(f"[{next(done)}/{total}] {name}, seed {seed}: {result}", file=sys.stderr, flush=True)
            return result

        pool = ThreadPoolExecutor(args.jobs)
        try:
            futures = {
                name: [pool.submit(job, index, name, own, seed) for seed in args.seeds]
                for index, (name, own) in enumerate(commands.items())
            }
            if args.table:
                titles = ("steps to solved", "best test", "last test")
                alone = (f"{TRAINING}: median", "seconds: median")
                print(row("", "solved", *(f"{title}: median, worst" for title in titles), *alone))
                print("|---" * 7 + "|", flush=True)
            for name, own in commands.items():
                results = [future.result() for future in futures[name]]
                solved, medians, worst = summary(results)
                pairs = (f"{median}, {least}" for median, least in zip(medians[:3], worst))
                print(row(name, solved, *pairs, *medians[3:]) if args.table else seed_table(results), flush=True)
                report.append({"name": name, "args": [*args.args, *own], "results": [*map(asdict, results)]})
                if args.json:
                    args.json.write_text(json.dumps(report, indent=1) + "\n")
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, begin no more
    return int(any(result["crash"] for line in report for result in line["results"]))  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
