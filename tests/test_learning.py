"""It learns."""

from helpers import RUN, main, scalars


def test_default_settings_reach_an_episode_of_200_steps(folder):
    main("--max_epochs 300")
    curves = scalars(RUN)
    assert max(value for _, value in curves["total_reward"]) == 200
    untrained = [value for _, value in curves["total_reward"][:10]]
    assert max(value for _, value in curves["val_reward"]) > 2 * sum(untrained) / len(untrained)
