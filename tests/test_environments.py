"""Environments other than CartPole, by `--env` alone."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import Toy, fit, last_of, load, main, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dqn_cartpole import DQNLightning, ImprovedDQN

# Numbers in a flat observation, actions, the environment's own time limit and the reward at which it is solved.
ENVIRONMENTS = {
    "CartPole-v0": (4, 2, 200, 195.0),
    "CartPole-v1": (4, 2, 500, 475.0),
    "Acrobot-v1": (6, 3, 500, -100.0),
    "MountainCar-v0": (2, 3, 200, -110.0),
    "FrozenLake-v1": (16, 4, 100, 0.7),
    "Taxi-v4": (500, 6, 200, 8.0),
    "CliffWalking-v1": (48, 4, None, None),
    "Blackjack-v1": (32 + 11 + 2, 2, None, None),
    "LunarLander-v3": (8, 4, 1000, 200),
}


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_an_environment_trains_by_its_name_alone(env):
    obs_size, n_actions, limit, threshold = ENVIRONMENTS[env]
    model = DQNLightning(env, warm_start_steps=200)
    assert model.agent.state.shape == (obs_size,)
    assert model(torch.as_tensor(model.agent.state).unsqueeze(0)).shape == (1, n_actions)
    assert (model.env.spec.max_episode_steps, model.env.spec.reward_threshold) == (limit, threshold)
    assert fit(model, 3).global_step == 39
    assert len(model.buffer) == 239
    assert not same(model.net.state_dict(), model.target_net.state_dict())
    assert env == "CliffWalking-v1" or model.play_episodes(torch.arange(3)).isfinite().all()  # or the walk has no end


@pytest.mark.parametrize("limit", [30, 250])
def test_episode_length_overrides_the_environments_time_limit(limit):
    model = DQNLightning("MountainCar-v0", episode_length=limit)
    assert model.play_episodes(torch.arange(2)).tolist() == [-limit] * 2
    over = [model.agent.play_step(model.net, epsilon=1.0)[1] for _ in range(limit)]
    assert over == [False] * (limit - 1) + [True]


# Observations


def register(name: str, observation_space: spaces.Space, **more) -> str:
    """An environment with these observations, drawn at random."""

    def observe(env):
        return env.observation_space.sample()

    members = {"observation_space": observation_space, "observe": observe} | more
    gym.register(f"{name}-v0", type(name, (Toy,), members))
    return f"{name}-v0"


IMAGE = register("Image", spaces.Box(0, 255, (5, 6, 3), np.uint8))
PARTS = spaces.Dict({"b": spaces.Box(2, 3, (2, 2)), "a": spaces.Discrete(3, start=5)})
DICT = register("Dict", PARTS, observe=lambda env: {"b": np.full((2, 2), 2.5, np.float32), "a": 6})
TUPLE = register(
    "Tuple", spaces.Tuple([PARTS["a"], PARTS["b"]]), observe=lambda env: (6, np.full((2, 2), 2.5, np.float32))
)
MULTI = register("Multi", spaces.MultiDiscrete([3, 2]), observe=lambda env: np.array([2, 1]))


@pytest.mark.parametrize("env", [DICT, TUPLE])
def test_parts_are_flattened_in_alphabetical_order_and_discrete_ones_become_one_hot(env):
    assert DQNLightning(env).agent.state.tolist() == [0, 1, 0, 2.5, 2.5, 2.5, 2.5]


def test_images_keep_their_shape_and_their_bytes():
    model = DQNLightning(IMAGE)
    model.populate(200)
    states = model.buffer.sample(10).state
    assert (states.shape, states.dtype) == ((10, 5, 6, 3), np.uint8)
    assert model(torch.as_tensor(states)).shape == (10, 2)


def test_an_array_of_whole_numbers_stays_as_it_is():
    assert DQNLightning(MULTI).agent.state.tolist() == [2, 1]


class Words(spaces.Space):
    """A space of somebody's own, as MiniGrid has one."""

    def sample(self, mask=None, probability=None):
        return "go to the goal"


REFUSED = {
    "Sequence": {"observation_space": spaces.Sequence(spaces.Discrete(3))},
    "Graph": {"observation_space": spaces.Graph(spaces.Box(-1, 1, (2,)), None)},
    "Snake": {"observation_space": spaces.Dict(head=spaces.Discrete(3), tail=spaces.Sequence(spaces.Discrete(3)))},
    "Words": {"observation_space": spaces.Dict(mission=Words())},
    "Continuous": {"action_space": spaces.Box(-1, 1, (1,))},
    "ManyActions": {"action_space": spaces.MultiDiscrete([2, 2])},
    "FromOne": {"action_space": spaces.Discrete(2, start=1)},
}
for name, members in REFUSED.items():
    register(name, **{"observation_space": Toy.observation_space} | members)


@pytest.mark.parametrize("name", REFUSED)
def test_what_dqn_cannot_play_is_refused_in_one_line(folder, capsys, name):
    with pytest.raises(SystemExit) as ended:
        main(f"--env {name}-v0")
    _, line = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert f"--env {name}-v0: " in line
    assert "its observations have no fixed size" in line or "Discrete actions" in line
    assert not list(folder.iterdir())


# What else an environment may lack


class NoSpec(gym.Wrapper):
    """As some packages make their environments: not by `gym.make`."""

    spec = None


class Home(ImprovedDQN):
    def make_env(self, **options):
        return NoSpec(gym.make("CartPole-v0", **options))


def test_an_environment_without_a_spec_is_trained(folder, capfd):
    main("--max_epochs 3", Home)
    assert "test_reward" in capfd.readouterr().out


def test_an_environment_without_render_modes_is_trained(folder, capfd):
    register("Invisible", Toy.observation_space, metadata={})
    main("--env Invisible-v0 --max_epochs 3")
    assert "test_reward: 10.00" in capfd.readouterr().out


class Counted(Toy):
    """Knows how many of its kind are open."""

    open = 0
    fails_at = math.inf

    def __init__(self, render_mode: str | None = None) -> None:
        Counted.open += 1

    def step(self, action):
        if self.taken >= self.fails_at:
            raise OSError("the simulator is gone")
        return super().step(action)

    def close(self):
        Counted.open -= 1


gym.register("Counted-v0", Counted)
gym.register("CountedFromOne-v0", type("CountedFromOne", (Counted,), {"action_space": spaces.Discrete(2, start=1)}))


def test_every_environment_is_closed_at_the_end(folder):
    main("--env Counted-v0 --max_epochs 2")
    assert Counted.open == 0


@pytest.mark.parametrize("validating", [False, True])
def test_every_environment_is_closed_after_an_error(folder, monkeypatch, validating):
    """It comes in the first step, be it of the training or of the first validation."""
    play_episodes = DQNLightning.play_episodes

    def fail(model, seeds):
        monkeypatch.setattr(Counted, "fails_at", 0)
        return play_episodes(model, seeds)

    if validating:
        monkeypatch.setattr(DQNLightning, "play_episodes", fail)
    else:
        monkeypatch.setattr(Counted, "fails_at", 0)
    with pytest.raises(OSError, match="the simulator is gone"):
        main("--env Counted-v0 --max_epochs 2")
    assert Counted.open == 0


# Any environment at all


def boxes() -> st.SearchStrategy[spaces.Space]:
    shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    floats = st.builds(
        lambda shape, dtype: spaces.Box(-1, 1, shape, dtype), shapes, st.sampled_from(["f2", "f4", "f8"])
    )
    dtypes = st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
    whole = st.builds(lambda shape, dtype: spaces.Box(0, 100, shape, dtype), shapes, dtypes)
    return floats | whole


SIMPLE = (
    boxes()
    | st.builds(spaces.Discrete, st.integers(1, 5), start=st.integers(-3, 3))
    | st.builds(spaces.MultiBinary, st.integers(1, 4))
    | st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3))
)
SPACES = st.recursive(
    SIMPLE,
    lambda parts: (
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple)
        | st.dictionaries(st.sampled_from("abc"), parts, min_size=1, max_size=3).map(spaces.Dict)
    ),
    max_leaves=4,
)


class Any(Toy):
    """Observations from any space, episodes of random lengths, terminated or cut at random, with rewards of a size."""

    def __init__(self, space, actions, longest, cut, size) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(actions)
        self.longest, self.cut, self.size = longest, cut, size

    def observe(self):
        if self.taken == 0:
            self.length = int(self.np_random.integers(1, self.longest + 1))
            self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def step(self, action):
        observation, _, over, _, info = super().step(action)
        cut = over and bool(self.np_random.random() < self.cut)
        return observation, self.size * float(self.np_random.normal()), over and not cut, cut, info


ANY = st.fixed_dictionaries(
    {
        "space": SPACES,
        "actions": st.integers(1, 4),
        "longest": st.sampled_from([1, 2, 7, 30]),
        "cut": st.sampled_from([0.0, 0.3, 1.0]),
        "size": st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    }
)


def train_and_resume(folder, kwargs: dict, n_step: int) -> None:
    """Three epochs in one go equal one and then two, and the episodes of validation end."""
    gym.register("Any-v0", Any, kwargs=kwargs)
    try:
        schedules = "--lr_schedule constant --eps_last_frame 40"  # that do not depend on the length of the run
        flags = f"--env Any-v0 --n_step {n_step} {schedules} --val_check_interval 13 --warm_start_steps 900"
        ends = []
        for epochs in (["--max_epochs 3"], ["--max_epochs 1", "--resume --max_epochs 3"]):
            for more in epochs:
                main(more if "--resume" in more else f"{flags} {more}")
            ends.append(load(last_of(max((folder / "lightning_logs").iterdir()))))
        assert ends[0]["global_step"] == 39
        assert all(same(ends[0][entry], ends[1][entry]) for entry in ends[0])
    finally:
        del gym.registry["Any-v0"]


FAST = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check_any(tmp_path_factory, kwargs, n_step):
    n_step = 1 if kwargs["cut"] and kwargs["longest"] < 7 else n_step  # short episodes need it
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("any")
        patch.chdir(folder)
        patch.setattr("dqn_cartpole.TEST_SEEDS", range(1000, 1003))
        patch.setattr("dqn_cartpole.film", lambda *_: b"")
        train_and_resume(folder, kwargs, n_step)


@given(kwargs=ANY, n_step=st.sampled_from([1, 3]))
@settings(max_examples=8, **FAST)
def test_any_environment_is_trained_validated_and_resumed_exactly(tmp_path_factory, kwargs, n_step):
    check_any(tmp_path_factory, kwargs, n_step)


@pytest.mark.slow
@given(kwargs=ANY, n_step=st.sampled_from([1, 3]))
@settings(max_examples=200, **FAST)
def test_200_environments_are_trained_validated_and_resumed_exactly(tmp_path_factory, kwargs, n_step):
    check_any(tmp_path_factory, kwargs, n_step)
