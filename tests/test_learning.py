"""It learns."""

import pytest
from helpers import RUN, last_of, load, run, scalars


@pytest.mark.slow
def test_the_default_run_solves_cartpole_and_ends_solved(tmp_path):
    """Solved is a mean score of 195; with no setting but the seed, the best weights and the last ones reach it."""
    code, _, errors = run("--seed 700", tmp_path / "run")
    assert (code, errors) == (0, "")
    curves = scalars(tmp_path / "run" / RUN)
    assert curves["test_reward"][-1][1] >= 195
    assert curves["val_reward"][-1][1] >= 195
    assert max(value for _, value in curves["total_reward"]) == 200
    assert load(last_of(tmp_path / "run" / RUN))["global_step"] == 30 * 500
