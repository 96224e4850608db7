"""A sweep: learning rate x n-step in one process, with a Markdown table at the end.

    python -m tests.examples.sweep --env CartPole-v1 --max_epochs 10

Further flags go to every run. Each is a run of its own in lightning_logs, and TensorBoard's HParams tab compares them.
"""

import sys

from dqn_cartpole import ImprovedDQN, main

LEARNING_RATES, N_STEPS = (1e-3, 3e-3, 1e-2), (1, 3, 5)


def sweep(*flags: str) -> str:
    """The table of the test scores."""
    lines = ["| lr | " + " | ".join(f"n = {n}" for n in N_STEPS) + " |", "| --- |" + " --- |" * len(N_STEPS)]
    for lr in LEARNING_RATES:
        results = [main(ImprovedDQN, [*flags, "--lr", str(lr), "--n_step", str(n)]) for n in N_STEPS]
        lines.append(f"| {lr} | " + " | ".join(f"{result['test_reward']:.2f}" for result in results) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(sweep(*sys.argv[1:]))
