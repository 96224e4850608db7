"""Environments other than CartPole, by `--env` alone."""

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from helpers import RUN, Toy, fit, last_of, load, main, refusal, same
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import dqn_cartpole
from dqn_cartpole import DQNLightning, ImprovedDQN

SHORT = "--steps_per_epoch 20 --warm_start_steps 50"

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
    if env.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    obs_size, n_actions, limit, threshold = ENVIRONMENTS[env]
    model = DQNLightning(env, warm_start_steps=100, steps_per_epoch=20)
    assert model.agent.state.shape == (obs_size,)
    assert model(torch.as_tensor(model.agent.state).unsqueeze(0)).shape == (1, n_actions)
    assert (model.env.spec.max_episode_steps, model.env.spec.reward_threshold) == (limit, threshold)
    weights = model.net.state_dict()["net.0.weight"].clone()
    assert fit(model, 2).global_step == 40
    assert len(model.buffer) == 140
    assert not torch.equal(model.net.state_dict()["net.0.weight"], weights)
    assert env == "CliffWalking-v1" or model.play_episodes(range(2)).isfinite().all()  # or the walk has no end


@pytest.mark.parametrize("limit", [30, 250])
def test_episode_length_overrides_the_environments_time_limit(limit):
    model = DQNLightning("MountainCar-v0", episode_length=limit)
    assert model.play_episodes(range(2)).tolist() == [-limit] * 2
    over = [model.agent.play_step(model.net, epsilon=1.0)[1] for _ in range(limit)]
    assert over == [False] * (limit - 1) + [True]


PACKAGES = {  # how each registers an environment, its name, and its observations
    "ale_py": ("gym.register_envs(ale_py)", "ALE/Pong-v5", (210, 160, 3), np.uint8),
    "minatar": ("from minatar.gym import register_envs; register_envs()", "MinAtar/Breakout-v1", (10, 10, 4), np.bool_),
    "minigrid": (
        "from minigrid.wrappers import ImgObsWrapper\n"
        'gym.register("Grid-v0", lambda **options: ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", **options)))',
        *("Grid-v0", (7, 7, 3), np.uint8),
    ),
}


@pytest.mark.parametrize("package", [pytest.param("ale_py", marks=pytest.mark.slow), "minatar", "minigrid"])
def test_an_environment_of_another_package_trains_by_its_module_and_name(folder, monkeypatch, package):
    pytest.importorskip(package)
    code, name, *observation = PACKAGES[package]
    (folder / f"my_{package}.py").write_text(f"import gymnasium as gym\nimport {package}\n{code}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(dqn_cartpole, "save_gif", lambda *_: None)
    main(f"--env my_{package}:{name} --max_epochs 1 --episode_length 10 --replay_size 100 --hidden_size 8 {SHORT}")
    states = load(last_of(RUN))["buffer"][1][0].numpy()
    assert [states[0].shape, states.dtype] == observation
    assert states.any()


# Observations


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
    "Dict": (spaces.Dict({"b": BOX, "a": THREE}), {"b": HALVES, "a": 6}, [0, 1, 0] + [2.5] * 4),  # sorted by key
    "Tuple": (spaces.Tuple([BOX, THREE]), (HALVES, 6), [2.5] * 4 + [0, 1, 0]),
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


@pytest.mark.parametrize(("dtype", "kept"), [("u1", "u1"), ("i4", "i4"), ("f4", "f4"), ("f2", "f2"), ("f8", "f4")])
def test_an_array_keeps_its_shape_and_its_dtype_but_for_float64(dtype, kept):
    model = DQNLightning(register(f"Image{dtype}", spaces.Box(0, 9, (5, 6, 3), np.dtype(dtype).type)))
    model.populate(50)
    states = model.buffer.sample(10).state
    assert (states.shape, states.dtype, model.agent.state.dtype) == ((10, 5, 6, 3), kept, kept)
    assert len(np.unique(states)) >= 9


REFUSED = {
    "Sequence": {"observation_space": spaces.Sequence(THREE)},
    "Graph": {"observation_space": spaces.Graph(spaces.Box(-1, 1, (2,)), None)},
    "Snake": {"observation_space": spaces.Dict(head=THREE, tail=spaces.Sequence(THREE))},
    "Unknown": {"observation_space": spaces.Dict(mission=spaces.Space())},  # a kind of its own, as MiniGrid has one
    "Continuous": {"action_space": spaces.Box(-1, 1, (1,))},
    "ManyActions": {"action_space": spaces.MultiDiscrete([2, 2])},
    "FromOne": {"action_space": spaces.Discrete(2, start=1)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_dqn_cannot_play_is_refused_in_one_line(folder, capsys, name):
    line = refusal(f"--env {register(name, **REFUSED[name])}", capsys)
    assert "error: --env: " in line
    assert ("Discrete actions" if "action_space" in REFUSED[name] else "observations") in line


def test_an_observation_that_its_space_cannot_hold_is_named():
    env = register("Pixels", spaces.Box(0, 255, (3,), np.uint8), observe=lambda env: env.np_random.uniform(0, 1, 3))
    with pytest.warns(UserWarning, match=r"numpy array dtype to be uint8, actual type: float64"):
        DQNLightning(env).populate(5)


def test_info_and_render_modes_may_be_anything(folder):
    infos = [{"a": None}, {"a": 3}, {"a": "lost"}, {"a": np.arange(2)}, {"a": np.arange(3)}, {"a": {"b": 1.0}}, {}]

    def step(env: Toy, action: int) -> tuple:
        return *Toy.step(env, action)[:4], infos[env.np_random.integers(7)]

    env = register("Infos", step=step, metadata={})
    assert main(f"--env {env} --max_epochs 1 {SHORT}")["test_reward"] == 10


class Bounds(Toy):
    """Draws its bounds with each instance, and says with a number whether it has ended."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1 + np.random.default_rng().random(), (3,), np.float32)

    def step(self, action):
        observation, _, over, *_ = super().step(action)
        return observation, np.float32(1), int(over), 0, {}


class Home(ImprovedDQN):
    def make_env(self, **options):
        return Toy()  # not made by gym.make


@pytest.mark.filterwarnings("ignore:.*np.bool")
def test_instances_may_differ_and_a_spec_and_truth_values_be_missing(folder):
    gym.register("Bounds-v0", Bounds)
    assert main(f"--env Bounds-v0 --max_epochs 1 {SHORT}")["test_reward"] == 10
    assert main(f"--max_epochs 1 {SHORT}", Home)["test_reward"] == 10


class Counted(Toy):
    """Knows how many of its kind are open."""

    open = made = 0
    fails_at = np.inf

    def __init__(self) -> None:
        Counted.open += 1
        Counted.made += 1

    def step(self, action):
        if self.taken >= self.fails_at:
            raise OSError("the simulator is gone")
        return super().step(action)

    def close(self):
        Counted.open -= 1


gym.register("Counted-v0", Counted)


def test_every_environment_is_closed_at_the_end(folder):
    Counted.open = Counted.made = 0
    main(f"--env Counted-v0 --max_epochs 2 {SHORT}")
    assert (Counted.open, Counted.made) == (0, 1 + 3 + 3 + 3)  # training, two validations and the test
    main(f"--env Counted-v0 --test {last_of(RUN)}")
    assert Counted.open == 0


@pytest.mark.parametrize("when", ["training", "validating"])
def test_every_environment_is_closed_after_an_error(folder, monkeypatch, when):
    Counted.open = Counted.made = 0
    play_episodes = DQNLightning.play_episodes

    def fail(*args):
        monkeypatch.setattr(Counted, "fails_at", 3)
        return play_episodes(*args)

    if when == "training":
        monkeypatch.setattr(Counted, "fails_at", 0)
    monkeypatch.setattr(DQNLightning, "play_episodes", fail)
    with pytest.raises(OSError, match="the simulator is gone"):
        main(f"--env Counted-v0 --max_epochs 2 {SHORT}")
    assert (Counted.open, Counted.made) == (0, 1 if when == "training" else 1 + 3)


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


def train_kill_and_resume(tmp_path_factory, kwargs: dict, n_step: int, step: int) -> None:
    """A run that ends with an error in a step of its second or third epoch ends as one that was not stopped."""

    def kill(trainer, *_):
        if trainer.global_step == step:
            raise ConnectionAbortedError

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("any")
        patch.chdir(folder)
        patch.setattr(dqn_cartpole, "VAL_SEEDS", range(3))
        patch.setattr(dqn_cartpole, "TEST_SEEDS", range(1000, 1003))
        patch.setitem(gym.registry, "Any-v0", gym.envs.registration.EnvSpec("Any-v0", Any, kwargs=kwargs))
        flags = f"--env Any-v0 --n_step {n_step} --max_epochs 3 --replay_size 80 {SHORT}"
        straight = main(flags)
        with pytest.raises(ConnectionAbortedError):
            main(flags, callbacks=[pl.callbacks.LambdaCallback(on_train_batch_end=kill)])
        assert main("--resume 1") == straight
        assert np.isfinite(straight["test_reward"])
        first, second = (load(last_of(RUN.with_name(f"version_{n}"))) for n in (0, 1))
        assert first["global_step"] == 60
        for entry in first.keys() - {"callbacks", "loops"}:  # paths, and how often a loop was begun
            assert same(first[entry], second[entry]), entry


DRAWN = given(kwargs=ANY, n_step=st.integers(1, 9), step=st.integers(21, 60))
FAST = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}


@DRAWN
@settings(max_examples=6, **FAST)
def test_any_environment_is_trained_killed_and_resumed_exactly(tmp_path_factory, kwargs, n_step, step):
    train_kill_and_resume(tmp_path_factory, kwargs, n_step, step)


@pytest.mark.slow
@DRAWN
@settings(max_examples=200, **FAST)
def test_200_environments_are_trained_killed_and_resumed_exactly(tmp_path_factory, kwargs, n_step, step):
    train_kill_and_resume(tmp_path_factory, kwargs, n_step, step)
