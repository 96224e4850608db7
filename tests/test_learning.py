"""It learns."""

import gymnasium as gym
import pytest
from helpers import RUN, Toy, last_of, load, main, run, scalars


class Memory(Toy):
    """Time ends the episode. Its last step pays 1, if the first action was 0 and the last one is 1."""

    def observe(self):
        return self.observation_space.high * self.taken / 4

    def step(self, action):
        self.first = self.first if self.taken else action
        return *super().step(action)[:1], float(self.taken == 4 and action > self.first), False, self.taken == 4, {}


gym.register("Memory-v0", Memory)


def test_a_reward_at_the_time_limit_is_learned(folder):
    assert main("--env Memory-v0 --max_epochs 1")["test_reward"] == 1


@pytest.mark.slow
def test_the_default_run_solves_cartpole_and_ends_solved(tmp_path):
    """Solved is a mean score of 195; with no setting but the seed, the best weights and the last ones reach it."""
    code, _, errors = run("--seed 700", tmp_path / "run")
    assert (code, errors) == (0, "")
    curves = scalars(tmp_path / "run" / RUN)
    assert all(curves[name][-1][1] >= 195 for name in ("val_reward", "test_reward"))
    assert max(value for _, value in curves["total_reward"]) == 200
    assert load(last_of(tmp_path / "run" / RUN))["global_step"] == 30 * 500
