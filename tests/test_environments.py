"""Environments other than CartPole, by `--env` alone."""

from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from helpers import RUN, Toy, fit, last_of, load, main, refusal, same
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dqn_cartpole import DQNLightning, ImprovedDQN

SHORT = "--steps_per_epoch 20 --warm_start_steps 50"

# Numbers in an observation, and actions.
SIZES = {"CartPole-v1": (4, 2), "Acrobot-v1": (6, 3), "MountainCar-v0": (2, 3), "LunarLander-v3": (8, 4)}
SIZES |= {"FrozenLake-v1": (16, 4), "Taxi-v4": (500, 6), "CliffWalking-v1": (48, 4), "Blackjack-v1": (32 + 11 + 2, 2)}


@pytest.mark.parametrize("env", SIZES)
def test_an_environment_trains_by_its_name_alone(env):
    if env.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    obs_size, n_actions = SIZES[env]
    model = DQNLightning(env, warm_start_steps=100, steps_per_epoch=20)
    assert model.agent.state.shape == (obs_size,)
    assert model(torch.as_tensor(model.agent.state).unsqueeze(0)).shape == (1, n_actions)
    weights = model.net.state_dict()["net.0.weight"].clone()
    assert (fit(model, 2).global_step, len(model.buffer)) == (40, 140)
    assert not torch.equal(model.net.state_dict()["net.0.weight"], weights)
    assert env == "CliffWalking-v1" or model.play_episodes(range(2)).isfinite().all()  # or the walk has no end


@pytest.mark.parametrize("limit", [30, 250])
def test_episode_length_overrides_the_environments_time_limit(limit):
    model = DQNLightning("MountainCar-v0", episode_length=limit)
    assert model.play_episodes(range(2)).tolist() == [-limit] * 2
    over = [model.agent.play_step(model.net, epsilon=1.0)[1] for _ in range(limit)]
    assert over == [False] * (limit - 1) + [True]


def test_an_environment_of_another_package_trains_by_its_module_and_name(folder, monkeypatch):
    pytest.importorskip("minatar")
    (folder / "my_games.py").write_text("from minatar.gym import register_envs\n\nregister_envs()\n")
    monkeypatch.syspath_prepend(folder)
    main(f"--env my_games:MinAtar/Breakout-v1 --max_epochs 1 --episode_length 10 {SHORT}")
    states = load(last_of(RUN))["buffer"][1][0]
    assert (states.shape[1:], states.dtype, states.any()) == ((10, 10, 4), torch.bool, True)


def register(name: str, observation_space: spaces.Space = Toy.observation_space, **more) -> str:
    """An environment with these observations, by default drawn at random."""
    members = {"observation_space": observation_space, "observe": lambda env: env.observation_space.sample()} | more
    gym.register(f"{name}-v0", type(name, (Toy,), members))
    return f"{name}-v0"


BOX, HALVES, THREE = spaces.Box(2, 3, (2, 2)), np.full((2, 2), 2.5, np.float32), spaces.Discrete(3, start=5)
TREE = spaces.Dict({"b": BOX, "a": spaces.Tuple([THREE, spaces.Dict(c=spaces.MultiBinary(2))])})
# A space, one of its observations, and what the network sees of it.
FLAT = {
    "Discrete": (THREE, 6, [0, 1, 0]),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 2]), np.array([2, 1]), [0, 0, 1, 0, 1]),
    "MultiBinary": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    "Scalar": (spaces.Box(-1, 1, (), np.float32), np.array(0.5, np.float32), [0.5]),
    "Tree": (TREE, {"b": HALVES, "a": (5, {"c": np.array([0, 1], np.int8)})}, [1, 0, 0, 0, 1] + [2.5] * 4),
}


@pytest.mark.parametrize("name", FLAT)
def test_what_is_discrete_becomes_one_hot_and_what_is_nested_flat(name):
    space, observation, flat = FLAT[name]
    env = register(f"Flat{name}", space, observe=lambda _: observation)
    model = DQNLightning(env, warm_start_steps=20, steps_per_epoch=5)
    assert model.agent.state.tolist() == flat
    fit(model)
    assert {tuple(state) for state in model.buffer.sample(50).state.tolist()} == {tuple(flat)}
    assert model.play_episodes(range(2)).tolist() == [10, 10]


@pytest.mark.parametrize(("dtype", "kept"), [("u1", "u1"), ("i4", "i4"), ("f4", "f4"), ("f8", "f4"), ("i8", "f4")])
def test_an_array_keeps_its_shape_and_has_a_dtype_of_at_most_32_bits_whatever_is_returned(dtype, kept):
    space = spaces.Box(0, 9, (5, 6, 3), np.dtype(dtype).type)
    model = DQNLightning(register(f"Image{dtype}", space, observe=lambda _: space.sample().astype("f8")))
    model.populate(50)
    states = model.buffer.sample(10).state
    assert (states.shape, states.dtype, model.agent.state.dtype) == ((10, 5, 6, 3), kept, kept)
    assert len(np.unique(states)) >= 9


REFUSED = {
    "Sequence": {"observation_space": spaces.Sequence(THREE)},
    "Unknown": {"observation_space": spaces.Dict(mission=spaces.Space())},  # a kind of its own, as MiniGrid has one
    "Continuous": {"action_space": spaces.Box(-1, 1, (1,))},
    "FromOne": {"action_space": spaces.Discrete(2, start=1)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_dqn_cannot_play_is_refused_in_one_line_and_closed(folder, capsys, name):
    closed = []
    line = refusal(f"--env {register(name, close=lambda env: closed.append(env), **REFUSED[name])}", capsys)
    assert "error: --env: " in line
    assert ("Discrete actions" if "action_space" in REFUSED[name] else "observations") in line
    assert len(closed) == (name != "Unknown")  # which fails in Gymnasium's wrapper


class Careless(Toy):
    """Says with a number whether it has ended, and gives any info."""

    metadata = {}  # noqa: RUF012

    def step(self, action):
        observation, _, over, *_ = super().step(action)
        info = {"a": [None, 3, "lost", np.arange(self.taken), {"b": 1.0}][self.taken % 5]}
        return observation, np.float32(1), int(over), 0, info


class Home(ImprovedDQN):
    def make_env(self, **options):
        return Careless()  # not made by gym.make, so that nothing checks or wraps it


def test_info_render_modes_and_truth_values_may_be_anything_and_a_spec_be_missing(folder):
    assert main(f"--max_epochs 1 {SHORT}", Home) == {"test_reward": 10}
    assert load(last_of(RUN))["episode"][-1] == [10, 10]  # the scores of 20 steps of training


class Counted(Toy):
    """Knows how many of its kind are open, and fails once as many as `last` were made."""

    open = made = last = 0

    def __init__(self) -> None:
        Counted.open += 1
        Counted.made += 1

    def step(self, action):
        if Counted.made == Counted.last:
            raise OSError("the simulator is gone")
        return super().step(action)

    def close(self):
        Counted.open -= 1


gym.register("Counted-v0", Counted)


@pytest.mark.parametrize("last", [1, 1 + 3, 1 + 3 + 3 + 3, np.inf])  # training, two validations and the test
def test_every_environment_is_closed_at_the_end_and_after_an_error(folder, last):
    Counted.open, Counted.made, Counted.last = 0, 0, last
    with pytest.raises(OSError, match="the simulator is gone") if last <= 10 else nullcontext():
        main(f"--env Counted-v0 --max_epochs 2 {SHORT}")
    assert (Counted.open, Counted.made) == (0, min(last, 10))


# Any environment at all

DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
SIMPLE = (
    st.builds(lambda shape, dtype: spaces.Box(0, 100, shape, dtype), SHAPES, DTYPES)
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


ANY = st.builds(
    dict,
    space=SPACES,
    actions=st.integers(1, 4),
    longest=st.sampled_from([1, 2, 7, 30]),
    cut=st.sampled_from([0.0, 0.3, 1.0]),
    size=st.sampled_from([0.0, 1e-6, 1.0, 1e4, 1e12]),
)


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_any_environment_is_trained_killed_and_resumed_exactly(folder, monkeypatch, tmp_path_factory, count):
    """A run that ends with an error in a step of its second or third epoch ends as one that was not stopped."""

    @settings(max_examples=count, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(kwargs=ANY, n_step=st.integers(1, 9), step=st.integers(21, 60))
    def check(kwargs: dict, n_step: int, step: int) -> None:
        def kill(trainer, *_):
            if trainer.global_step == step:
                raise ConnectionAbortedError

        monkeypatch.chdir(tmp_path_factory.mktemp("any"))
        monkeypatch.setitem(gym.registry, "Any-v0", EnvSpec("Any-v0", Any, kwargs=kwargs))
        flags = f"--env Any-v0 --n_step {n_step} --max_epochs 3 --replay_size 80 {SHORT}"
        straight = main(flags)
        with pytest.raises(ConnectionAbortedError):
            main(flags, callbacks=[pl.callbacks.LambdaCallback(on_train_batch_end=kill)])
        assert main("--resume 1") == straight
        first, second = (load(last_of(RUN.with_name(f"version_{n}"))) for n in (0, 1))
        assert first["global_step"] == 60
        for entry in first.keys() - {"callbacks", "loops"}:  # paths, and how often a loop was begun
            assert same(first[entry], second[entry]), entry

    check()
