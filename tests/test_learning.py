"""It learns."""

from helpers import run_script, scalars


def test_default_command_reaches_an_episode_reward_of_200(tmp_path):
    done = run_script("--max_epochs", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    curves = scalars(tmp_path / "lightning_logs" / "version_0")
    assert max(value for _, value in curves["total_reward"]) == 200
    untrained = [value for _, value in curves["total_reward"][:10]]
    assert max(value for _, value in curves["val_reward"]) > 2 * sum(untrained) / len(untrained)
