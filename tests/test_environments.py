"""Environments other than CartPole, by `--env` alone."""

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from dqn_cartpole import TEST_SEEDS, Agent, DQNLightning, ReplayBuffer, UsageError, make_env

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*has no __module__ attribute"
)

# Numbers in a flat observation, actions, the environment's own cap and the reward at which it is solved.
ENVIRONMENTS = {
    "CartPole-v0": (4, 2, 200, 195.0),
    "CartPole-v1": (4, 2, 500, 475.0),
    "FrozenLake-v1": (16, 4, 100, 0.7),
    "Taxi-v4": (500, 6, 200, 8.0),
    "CliffWalking-v1": (48, 4, None, None),
    "Blackjack-v1": (32 + 11 + 2, 2, None, None),
    "Acrobot-v1": (6, 3, 500, -100.0),
    "MountainCar-v0": (2, 3, 200, -110.0),
    "LunarLander-v3": (8, 4, 1000, 200),
}


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_environment_trains_and_tests_by_its_name_alone(env):
    torch.manual_seed(0)
    model = DQNLightning(env=env, warm_start_steps=200, n_step=1)
    before = model.net.state_dict()["net.0.weight"].clone()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    assert trainer.global_step == 39
    assert len(model.buffer) == 239
    assert not torch.equal(model.net.state_dict()["net.0.weight"], before)
    returns = model.play_episodes(torch.arange(3))
    assert returns.shape == (3,)
    assert returns.isfinite().all()


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_sizes_cap_and_threshold_are_the_environments_own(env):
    obs_size, n_actions, cap, threshold = ENVIRONMENTS[env]
    model = DQNLightning(env=env)
    assert model.agent.state.shape == (obs_size,)
    assert model(torch.as_tensor(model.agent.state).unsqueeze(0)).shape == (1, n_actions)
    assert (model.env.spec.max_episode_steps, model.env.spec.reward_threshold) == (cap, threshold)


@pytest.mark.parametrize(("given", "steps"), [(None, 200), (30, 30), (250, 250)])
def test_episode_length_overrides_the_environments_cap(given, steps):
    agent = Agent(make_env("MountainCar-v0", given), ReplayBuffer(1), seed=0)
    stand = torch.nn.Linear(2, 3)
    torch.nn.init.zeros_(stand.weight)
    stand.bias.data = torch.tensor([0.0, 1.0, 0.0])  # the action that does not push
    over = [agent.play_step(stand)[1] for _ in range(steps)]
    assert over == [False] * (steps - 1) + [True]


def test_episode_length_cuts_validation_episodes_too():
    model = DQNLightning(env="MountainCar-v0", episode_length=25)
    assert model.play_episodes(torch.arange(4)).tolist() == [-25.0] * 4


class Endless(gym.Env):
    """A reward of 1 for ever, seen as a picture."""

    observation_space = gym.spaces.Box(0, 255, (5, 6, 3), "uint8")
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


class DictObservations(Endless):
    observation_space = gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(-1, 1, (2, 2))})


class ActionsFromOne(Endless):
    action_space = gym.spaces.Discrete(2, start=1)


class ManyActions(Endless):
    action_space = gym.spaces.MultiDiscrete([2, 2])


@pytest.fixture
def register():
    """Register an environment class for the length of a test; gives its id."""
    ids = []

    def under_an_id(env_class: type[gym.Env], **spec) -> str:
        ids.append(f"{env_class.__name__}-v0")
        gym.register(ids[-1], env_class, **spec)
        return ids[-1]

    yield under_an_id
    for env in ids:
        del gym.registry[env]


@pytest.mark.parametrize(
    ("env_class", "shape", "dtype"), [(Endless, (5, 6, 3), "uint8"), (DictObservations, (7,), "float32")]
)
def test_pictures_keep_their_shape_and_dictionaries_are_flattened(register, env_class, shape, dtype):
    model = DQNLightning(env=register(env_class))
    model.populate(200)
    states = model.buffer.sample(10).state
    assert (states.shape, states.dtype) == ((10, *shape), dtype)
    assert model(torch.as_tensor(states)).shape == (10, 2)


class HomeMade(gym.Env):
    """Integers from `reset`, floats from `step`, and always in the same array, which is changed in place."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.array = np.zeros(2, self.observation_space.dtype)
        return [0, 0], {}

    def step(self, action):
        self.array += 0.5
        return self.array, 1.0, False, self.array[0] == 5, {}


class HomeMadeFloat32(HomeMade):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.mark.parametrize("env_class", [HomeMade, HomeMadeFloat32])
def test_what_a_home_made_environment_returns_is_copied_as_float32(register, env_class):
    model = DQNLightning(env=register(env_class), n_step=1)
    model.populate(200)
    sample = model.buffer.sample(200)
    assert sample.state.dtype == np.float32
    assert (sample.new_state == sample.state + 0.5).all()
    assert set(sample.state[:, 0]) == {n / 2 for n in range(10)}
    assert model.play_episodes(torch.arange(2)).tolist() == [10.0, 10.0]


def test_validation_ends_where_the_environment_never_does(register):
    model = DQNLightning(env=register(Endless))
    returns = model.play_episodes(torch.arange(2))
    assert 0 < returns[0] == returns[1] <= 10_000


def test_threshold_and_cap_come_from_the_registration(register):
    env = register(Endless, max_episode_steps=17, reward_threshold=16.5)
    model = DQNLightning(env=env)
    assert model.env.spec.reward_threshold == 16.5
    assert model.play_episodes(torch.arange(2)).tolist() == [17.0, 17.0]


@pytest.mark.parametrize("env_class", [ActionsFromOne, ManyActions])
def test_only_discrete_actions_from_zero_are_played(register, env_class):
    env = register(env_class)
    with pytest.raises(UsageError, match=f"--env {env}.*Discrete"):
        DQNLightning(env=env)


def test_the_optimal_policy_of_frozen_lake_scores_what_the_readme_says():
    """Value iteration, then the 100 test episodes: what no learned policy is expected to beat by much."""
    env = gym.make("FrozenLake-v1")
    moves = env.unwrapped.P
    values = np.zeros(len(moves))
    for _ in range(1000):
        q_values = np.array(
            [
                [sum(p * (reward + 0.99 * values[to] * (not end)) for p, to, reward, end in moves[state][action])]
                for state in moves
                for action in moves[state]
            ]
        ).reshape(len(moves), -1)
        values = q_values.max(1)
    policy, returns = q_values.round(9).argmax(1), []
    for seed in TEST_SEEDS:
        state, _ = env.reset(seed=seed)
        over = False
        while not over:
            state, reward, terminated, truncated, _ = env.step(int(policy[state]))
            over = terminated or truncated
        returns.append(reward)
    assert np.mean(returns) == 0.63
