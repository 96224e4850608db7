"""Where only gym 0.26 is installed, the same file runs on it."""

import os

import pytest
from helpers import run_script, scalars


@pytest.fixture
def without_gymnasium(tmp_path) -> str:
    """A PYTHONPATH on which `import gymnasium` fails as if it were not installed."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text('import sys\nsys.modules["gymnasium"] = None\n')
    return os.pathsep.join(filter(None, [str(hidden), os.environ.get("PYTHONPATH")]))


def test_script_runs_on_gym_026(tmp_path, without_gymnasium):
    done = run_script("--max_epochs", "20", cwd=tmp_path, PYTHONPATH=without_gymnasium)
    assert done.returncode == 0, done.stderr
    assert "Gym has been unmaintained" in done.stderr  # what gym itself says, so it was gym that ran
    assert "Traceback" not in done.stderr
    assert "test_reward: " in done.stdout
    curves = scalars(tmp_path / "lightning_logs" / "version_0")
    returns = [value for _, value in curves["total_reward"]]
    assert 260 - 200 < sum(returns) <= 260


def test_unknown_environment_is_refused_on_gym_026_too(tmp_path, without_gymnasium):
    done = run_script("--env", "CartPoll-v0", cwd=tmp_path, PYTHONPATH=without_gymnasium)
    assert done.returncode == 2
    assert "--env CartPoll-v0: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "lightning_logs").exists()
