"""Where only gym 0.26 is installed, the same file runs on it."""

import os

import pytest
from helpers import RUN, last_of, load, run_script, scalars


@pytest.fixture(scope="module")
def without_gymnasium(tmp_path_factory) -> str:
    """A PYTHONPATH on which `import gymnasium` fails as if it were not installed."""
    pytest.importorskip("gym")
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "sitecustomize.py").write_text('import sys\nsys.modules["gymnasium"] = None\n')
    return os.pathsep.join([str(hidden), os.environ["PYTHONPATH"]])


def test_script_trains_and_resumes_on_gym_026(tmp_path, without_gymnasium):
    done = run_script("--max_epochs", "15", cwd=tmp_path, PYTHONPATH=without_gymnasium)
    assert done.returncode == 0, done.stderr
    assert "Gym has been unmaintained" in done.stderr  # what gym itself says, so it was gym that ran
    assert "Traceback" not in done.stderr
    assert "test_reward: " in done.stdout
    assert (tmp_path / RUN / "agent.gif").exists()
    scores = [value for _, value in scalars(tmp_path / RUN)["total_reward"]]
    assert 195 - 200 < sum(scores) <= 195
    done = run_script("--resume", "--max_epochs", "20", cwd=tmp_path, PYTHONPATH=without_gymnasium)
    assert done.returncode == 0, done.stderr
    assert load(last_of(tmp_path / RUN))["global_step"] == 260


@pytest.mark.slow
def test_unknown_environment_is_refused_on_gym_026_too(tmp_path, without_gymnasium):
    done = run_script("--env", "CartPoll-v0", cwd=tmp_path, PYTHONPATH=without_gymnasium)
    assert done.returncode == 2
    assert "--env CartPoll-v0: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "lightning_logs").exists()
