"""Parts 1 and 2 of dqn_cartpole.py, piece by piece: network, buffers, dataset, agent, algorithm, evaluation."""

from collections import Counter, deque

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import FixedQ, Toy, fit, main, same
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from dqn_cartpole import DQN, Agent, DQNLightning, Experience, ImprovedDQN, NStepBuffer, ReplayBuffer, RLDataset

SPACE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
RIGHT = FixedQ(0.0, 1.0)


def number(i: int) -> Experience:
    """An experience in which every field tells that it is number `i`."""
    return Experience(np.full(4, i, np.float32), i % 2, float(i), i % 3 == 0, np.full(4, i + 0.5, np.float32))


def buffer_of(capacity: int, count: int = 0, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, SPACE, np.random.default_rng(seed))
    for i in range(count):
        buffer.append(number(i))
    return buffer


def held(buffer: ReplayBuffer) -> dict[float, list]:
    """What the buffer holds, by the first number of the state. A thousand draws miss none of a few rows."""
    sample = buffer.sample(1000)
    keys, rows = np.unique(sample.state[:, 0], return_index=True)
    return {key: [field[row] for field in sample] for key, row in zip(keys.tolist(), rows)}


class Recorder(list):
    """Stands in for a replay buffer and keeps every experience in order."""

    def end_episode(self) -> None:
        pass


def agent_of(env: gym.Env | str = "CartPole-v0", buffer: object = None, seed: int = 0) -> Agent:
    env = gym.make(env) if isinstance(env, str) else env
    return Agent(env, Recorder() if buffer is None else buffer, np.random.default_rng(seed))


def small(module: type[DQNLightning] = DQNLightning, **arguments) -> DQNLightning:
    """A model with ten steps in an epoch."""
    torch.manual_seed(0)
    return module(**{"warm_start_steps": 100, "replay_size": 300, "steps_per_epoch": 10} | arguments)


def by_hand(q_values: list[float], target_q_values: list[float], module=DQNLightning, **arguments) -> DQNLightning:
    """A model whose networks give these Q-values for every state."""
    model = small(module, **arguments)
    model.net, model.target_net = FixedQ(*q_values), FixedQ(*target_q_values).requires_grad_(False)
    return model


def batch_of(rewards: list[float], dones: list[bool], actions: list[int]) -> Experience:
    states = torch.zeros(len(rewards), 4)
    return Experience(states, torch.tensor(actions), torch.tensor(rewards), torch.tensor(dones), states)


class Watch(pl.Callback):
    """Notes what each step begins with, and the target network's weights that it ends with."""

    def __init__(self) -> None:
        self.progress, self.epsilon, self.lr, self.net, self.target = [], [], [], [], []

    def on_train_batch_start(self, trainer, module, *_):
        self.progress.append(module.progress)
        self.epsilon.append(module.epsilon)
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.net.append(parameters_to_vector(module.net.parameters()).detach().clone())

    def on_train_batch_end(self, trainer, module, *_):
        self.target.append(parameters_to_vector(module.target_net.parameters()).detach().clone())


def test_network_is_the_articles_and_can_be_deeper():
    assert [type(layer) for layer in DQN(4, 2).net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in DQN(4, 2).parameters()] == [(128, 4), (128,), (2, 128), (2,)]
    weights = DQN(4, 2, hidden_size=8, hidden_layers=3).parameters()
    assert [tuple(p.shape) for p in weights if p.ndim == 2] == [(8, 4), (8, 8), (8, 8), (2, 8)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_network_takes_any_dtype_and_shape(dtype):
    q_values = DQN(4, 3)(torch.ones(5, 2, 2, dtype=getattr(torch, dtype)))
    assert (q_values.shape, q_values.dtype) == ((5, 3), torch.float32)


def test_layer_norm_normalizes_what_enters_every_activation():
    model, entering = ImprovedDQN(hidden_layers=3), []
    for layer in model.net.net:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    model(torch.randn(5, 4))
    assert len(entering) == 3
    for units in entering:
        torch.testing.assert_close(units.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(units.var(1, correction=0), torch.ones(5), atol=1e-3, rtol=0)


# The replay buffer and its dataset


def test_sample_is_five_arrays_whose_rows_belong_together():
    sample = buffer_of(50, 70).sample(60)
    assert sample._fields == ("state", "action", "reward", "done", "new_state")
    assert [array.dtype for array in sample] == [np.float32, np.int64, np.float32, np.bool_, np.float32]
    assert [array.shape for array in sample] == [(60, 4), (60,), (60,), (60,), (60, 4)]
    for row in zip(*sample):
        assert same([field.tolist() for field in row], [np.asarray(f).tolist() for f in number(int(row[2]))])


@settings(deadline=None, max_examples=30)
@given(capacity=st.integers(1, 20), bursts=st.lists(st.integers(1, 25), min_size=1, max_size=5))
def test_the_oldest_experience_goes_first(capacity, bursts):
    buffer, kept, i = buffer_of(capacity), deque(maxlen=capacity), 0
    for burst in bursts:
        for _ in range(burst):
            buffer.append(number(i))
            kept.append(float(i))
            i += 1
        assert len(buffer) == len(kept)
        assert list(held(buffer)) == list(kept)


def test_sample_is_uniform_and_with_replacement():
    buffer, draws = buffer_of(10, 17), 5000
    samples = [buffer.sample(3).reward for _ in range(draws)]
    for place in range(3):
        counts = Counter(sample[place] for sample in samples)
        assert set(counts) == set(range(7, 17))
        assert all(abs(count - draws / 10) < 4.5 * (draws * 0.09) ** 0.5 for count in counts.values())
    repeated = sum(len(set(sample)) < 3 for sample in samples) / draws
    assert repeated == pytest.approx(1 - 0.9 * 0.8, abs=0.03)
    assert buffer.sample(31).reward.shape == (31,)  # more than it holds


def test_the_generator_decides_the_samples():
    draws = [[buffer.sample(20).reward.tolist() for _ in "ab"] for buffer in (buffer_of(99, 99, i) for i in (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]


def test_an_epoch_is_as_many_minibatches_as_the_dataset_says():
    assert (len(RLDataset(buffer_of(9))), RLDataset(buffer_of(9)).batch_size) == (500, 16)
    dataset = RLDataset(buffer_of(300, 300), batch_size=7, steps=9)
    assert len(dataset) == 9
    batches = list(DataLoader(dataset, batch_size=None))
    assert len(batches) == 9
    for batch in batches:
        assert [tuple(field.shape) for field in batch] == [(7, 4), (7,), (7,), (7,), (7, 4)]
        assert (batch.action.dtype, batch.reward.dtype, batch.done.dtype) == (torch.int64, torch.float32, torch.bool)
        assert (batch.state[:, 0] == batch.reward).all()
    assert len({tuple(batch.reward.tolist()) for batch in batches}) == 9  # each is drawn anew


def test_a_minibatch_is_drawn_when_it_is_needed_and_may_hold_the_step_before():
    sizes, model = [], small()
    sample = model.buffer.sample
    model.buffer.sample = lambda size: [sizes.append(len(model.buffer)), sample(size)][1]
    fit(model, 2)
    assert sizes == list(range(100, 120))


# The agent


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_agent_explores_with_probability_epsilon_and_is_greedy_otherwise(epsilon):
    agent = agent_of("Acrobot-v1")
    actions = [agent.get_action(FixedQ(0.0, 0.0, 1.0), epsilon, "cpu") for _ in range(3000)]
    assert {type(action) for action in actions} == {int}
    for action, probability in enumerate([epsilon / 3, epsilon / 3, 1 - epsilon * 2 / 3]):
        assert actions.count(action) / 3000 == pytest.approx(probability, abs=0.04 * (epsilon > 0))


def test_agent_stores_every_step_it_plays():
    agent = agent_of()
    before = agent.state
    assert agent.play_step(RIGHT) == (1.0, False)
    (stored,) = agent.replay_buffer
    assert np.array_equal(stored.state, before)
    assert (stored.action, stored.reward, stored.done) == (1, 1.0, False)
    assert np.array_equal(stored.new_state, agent.state)


def test_a_termination_is_not_bootstrapped():
    agent = agent_of()
    while not agent.play_step(RIGHT)[1]:  # always to the right: falls after about ten steps
        pass
    assert [e.done for e in agent.replay_buffer] == [False] * (len(agent.replay_buffer) - 1) + [True]
    assert abs(agent.replay_buffer[-1].new_state[2]) > 0.2  # the pole's angle, and not that of the next episode
    assert (abs(agent.state) < 0.05).all()  # begun anew


def test_time_limit_still_bootstraps():
    agent = agent_of(gym.make("MountainCar-v0", max_episode_steps=30))  # too few to get up the hill
    over = [agent.play_step(FixedQ(0.0, 0.0, 1.0))[1] for _ in range(60)]
    assert over == ([False] * 29 + [True]) * 2  # over for the agent
    assert not any(e.done for e in agent.replay_buffer)  # not for the value
    assert agent.replay_buffer[29].new_state[1] != 0  # the last state of the cut episode, in which the car moves
    assert agent.state[1] == agent.replay_buffer[30].state[1] == 0  # begun anew: the car stands


def test_episodes_and_exploration_follow_from_the_generator_unless_reset_is_given_a_seed():
    def play(seed: int) -> list:
        agent = agent_of(seed=seed)
        states = [[agent.reset(), agent.state.tolist()][1] for _ in range(3)]
        return [states, [agent.get_action(RIGHT, 0.8, "cpu") for _ in range(50)]]

    first, second, other = map(play, (1, 1, 2))
    assert first == second
    assert first[1] != other[1]
    assert len({tuple(state) for state in first[0] + other[0]}) == 6
    agent = agent_of()
    for seed in (7, 8, 7):
        agent.reset(seed)
        assert np.array_equal(agent.state, gym.make("CartPole-v0").reset(seed=seed)[0])


class Odd(Toy):
    """Returns always the same array, changed in place, and pays and tells the number of the step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    array = np.zeros(2, np.float32)
    length = 4

    def observe(self):
        self.array[:] = self.taken / 2
        return self.array

    def step(self, action):
        observation, _, *over, _ = super().step(action)
        return observation, self.taken, *over, {"taken": self.taken}


def test_observations_are_copied_and_the_last_steps_info_and_the_scores_are_kept():
    agent = agent_of(Odd())
    infos = [[agent.play_step(RIGHT), agent.info][1] for _ in range(9)]
    assert infos == [{"taken": taken} for taken in (1, 2, 3, 4, 1, 2, 3, 4, 1)]
    assert list(agent.scores) == [10, 10]
    assert [e.state[0] for e in agent.replay_buffer] == [0, 0.5, 1, 1.5] * 2 + [0]
    assert [e.new_state[0] for e in agent.replay_buffer] == [0.5, 1, 1.5, 2] * 2 + [0.5]
    for _ in range(500):
        agent.play_step(RIGHT)
    assert len(agent.scores) == 100  # those of the last episodes


class Broken(Toy):
    """Once it returns a number that is none, in the observation or as the reward."""

    def __init__(self, where: str, step: int, number: float) -> None:
        self.where, self.step_, self.number, self.count = where, step, number, 0

    def observe(self):
        broken = self.where == "observation" and self.count == self.step_
        return np.array([0, self.number if broken else 0.5, 0], np.float32)

    def step(self, action):
        self.count += 1
        observation, reward, *rest = super().step(action)
        return observation, self.number if self.where == "reward" and self.count == self.step_ else reward, *rest


gym.register("Broken-v0", Broken)


@pytest.mark.filterwarnings("ignore:.*not within the observation space", "ignore:.*NaN value", "ignore:overflow")
@pytest.mark.parametrize(
    ("where", "step", "number"),  # step 0: from reset; the first 100 steps are the warm start
    [("observation", 0, np.nan), ("observation", 5, np.inf), ("observation", 120, -np.inf)]
    + [("reward", 5, np.nan), ("reward", 120, -np.inf), ("reward", 5, 1e39)],  # float32 holds up to 3.4e38
)
def test_a_number_that_is_not_finite_is_named(where, step, number):
    gym.spec("Broken-v0").kwargs.update(where=where, step=step, number=number)
    with pytest.raises(FloatingPointError, match=rf"{where} is not finite: .*(nan|inf)") as raised:
        fit(small(env="Broken-v0", steps_per_epoch=50))
    assert "--lr" not in str(raised.value)


def test_a_loss_that_is_not_finite_is_named_with_the_learning_rate():
    with pytest.raises(FloatingPointError, match=r"the loss is (inf|nan) at step .*--lr"):
        fit(small(lr=1e30, steps_per_epoch=50))


# Targets and loss, by hand


def test_target_is_the_reward_and_the_discounted_value_of_the_new_state():
    """The numbers of the docstring, and others."""
    plain, improved = (by_hand([1, 3], [8, 10], module) for module in (DQNLightning, ImprovedDQN))
    batch = batch_of([1.0, 1.0, -2.0], [False, True, False], [0, 0, 1])
    assert plain.td_targets(batch).tolist() == pytest.approx([10.9, 1, 7.9])
    batch = improved.buffer.sample(0)._make([*batch, torch.tensor([0.99, 0.99, 0.5])])
    assert improved.td_targets(batch).tolist() == pytest.approx([10.9, 1, 3])


def test_loss_is_the_mean_squared_error_of_the_chosen_q_values_which_alone_are_trained():
    model = by_hand([1, 2, 3], [10, 4, 0], gamma=0.9)
    loss = model.dqn_mse_loss(batch_of([1.0, 1.0], [False, True], [0, 2]))  # errors: 1 - 10 and 3 - 1
    assert loss.item() == pytest.approx((81 + 4) / 2)
    loss.backward()
    assert model.net.q_values.grad.tolist() == [-9, 0, 2]
    assert model.target_net.q_values.grad is None
    assert not any(p.requires_grad for p in DQNLightning().target_net.parameters())


def test_no_gradient_flows_into_targets_of_ones_own():
    model = by_hand([1, 3], [0, 0])
    model.td_targets = lambda batch: model.net(batch.new_state).amax(1)
    model.dqn_mse_loss(batch_of([1.0], [False], [0])).backward()
    assert model.net.q_values.grad.tolist() == [-4, 0]  # the first moves up to the second, which stays


# n-step returns


def reference(steps: list[tuple], ends: list[int], n: int, gamma: float) -> dict[float, tuple]:
    """The experience that begins at each step, from the formula: by the number of its state."""
    found = {}
    for first, (state, action, *_) in enumerate(steps):
        end = next((end for end in ends if end > first), len(steps))
        span = steps[first : min(first + n, end)]
        terms = [gamma**k * reward for k, (_, _, reward, *_) in enumerate(span)]
        found[state] = action, sum(terms), span[-1][3], span[-1][4], gamma ** len(span), sum(map(abs, terms))
    return found


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9),
    capacity=st.integers(1, 30),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1]),
    episodes=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    rewards=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=7),
    size=st.sampled_from([1e-6, 1.0, 1e6, 1e30]),
)
@example(n=9, capacity=4, gamma=0.9, episodes=[(12, False), (5, True)], rewards=[1.0, -0.5], size=1.0)
def test_n_step_experiences_are_what_a_plain_computation_gives(n, capacity, gamma, episodes, rewards, size):
    """An episode is a number of steps, and whether it is terminated then, or truncated. No step is dropped."""
    buffer = NStepBuffer(n, gamma, capacity, SPACE, np.random.default_rng(0))
    steps, ends = [], []
    for length, terminated in episodes:
        for k in range(length):
            i = len(steps)
            steps.append((float(i), i % 2, size * rewards[i % len(rewards)], terminated and k == length - 1, i + 0.5))
            state, *fields, new_state = steps[-1]
            buffer.append(Experience(np.full(4, state), *fields, np.full(4, new_state)))
            expected = dict(list(reference(steps, ends, n, gamma).items())[-capacity:])
            found = held(buffer)
            assert list(found) == list(expected)
            for state, (action, reward, done, new_state, discount, magnitude) in expected.items():
                _, action_, reward_, done_, new_state_, discount_ = found[state]
                assert (action_, done_, new_state_.tolist()) == (action, done, [new_state] * 4)
                assert reward_ == pytest.approx(reward, rel=0, abs=1e-6 * magnitude)
                assert discount_ == pytest.approx(discount, rel=1e-5)
        buffer.end_episode()
        ends.append(len(steps))


def test_agent_tells_the_buffer_where_an_episode_ends():
    buffer = NStepBuffer(4, 0.5, 100, gym.spaces.Box(-1, 1, (2,)), np.random.default_rng(0))
    agent = agent_of(gym.make("MountainCar-v0", max_episode_steps=3), buffer)
    for steps in (5, 1):  # an episode of three steps, and two that a reset ends
        for _ in range(steps):
            agent.play_step(FixedQ(0.0, 0.0, 1.0))
        agent.reset()
    assert sorted(row[-1] for row in held(buffer).values()) == [0.125, 0.25, 0.25, 0.5, 0.5, 0.5]


class Memory(Toy):
    """A reward of 1 at the last step, for choosing 0 at the first and 1 at the last. Time ends the episode."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, length: int) -> None:
        self.length = length

    def observe(self):
        return np.full(1, self.taken / self.length, np.float32)

    def step(self, action):
        observation, _, last, *_ = super().step(action)
        if self.taken == 1:
            self.first = action
        return observation, float(last and (self.first, action) == (0, 1)), False, last, {}


gym.register("Memory-v0", Memory)


@pytest.mark.parametrize(("length", "epochs"), [(4, 1), pytest.param(8, 6, marks=pytest.mark.slow)])
def test_a_reward_at_the_time_limit_is_learned(folder, length, epochs):
    gym.spec("Memory-v0").kwargs.update(length=length)
    assert main(f"--env Memory-v0 --max_epochs {epochs}")["test_reward"] == 1


def test_with_everything_off_part_2_is_part_1_bit_for_bit():
    plain, improved = small(), small(ImprovedDQN, n_step=1, layer_norm=False, lr_decay=False)
    for model in (plain, improved):
        fit(model, 3)
    assert same(dict(plain.state_dict()), dict(improved.state_dict()))
    assert all(np.array_equal(*fields) for fields in zip(plain.buffer.sample(300), improved.buffer.sample(300)))
    assert not same(dict(plain.state_dict()), dict(small().state_dict()))


# Training


def test_an_agent_needs_no_arguments_and_hparams_hold_all_of_them():
    model, other = DQNLightning(), DQNLightning()
    assert not np.array_equal(model.agent.state, other.agent.state)  # they follow torch's generator, as `small` shows
    assert np.array_equal(small().agent.state, small().agent.state)
    assert model(torch.zeros(3, 4)).shape == (3, 2)
    assert same(*(dict(net.state_dict()) for net in (model.net, model.target_net)))
    plain = {"env": "CartPole-v0", "episode_length": 0, "max_epochs": 30, "steps_per_epoch": 500, "sync_rate": 10}
    plain |= {"warm_start_steps": 1000, "replay_size": 5000, "batch_size": 16, "lr": 5e-3, "gamma": 0.99}
    plain |= {"hidden_size": 128, "hidden_layers": 1, "eps_start": 0.7, "eps_end": 0.02, "eps_fraction": 1.0}
    assert dict(model.hparams) == plain
    assert dict(ImprovedDQN(lr=1e-3).hparams) == plain | {"n_step": 5, "layer_norm": True, "lr_decay": True, "lr": 1e-3}


def test_training_begins_after_a_warm_start_at_random_and_plays_a_step_for_each_minibatch():
    model = small()
    model.populate(250)
    assert len(model.buffer) == 250
    assert 0.4 < model.buffer.sample(1000).action.mean() < 0.6
    assert (model.avg_reward, model.agent.score) == (0, 0)  # the scores are those of training
    assert (np.abs(model.agent.state) < 0.05).all()
    model = small(warm_start_steps=150, steps_per_epoch=7)
    assert fit(model, 3).global_step == 21
    assert len(model.buffer) == 150 + 21


def test_a_training_step_acts_learns_copies_logs_and_updates_in_this_order():
    model, events = small(), []
    model.populate(100)
    step = ["sample", "play_step", "dqn_mse_loss", "sync_target", "log_step", "on_before_zero_grad"]
    for owner, name in zip([model.buffer, model.agent] + [model] * 4, step):
        method = getattr(owner, name)
        setattr(owner, name, lambda *args, name=name, method=method: [events.append(name), method(*args)][1])
    fit(model)
    assert events == step * 10


def test_optimizer_is_adam_on_the_network_alone():
    model = small(lr=0.02)
    (optimizer,) = fit(model).optimizers
    (group,) = optimizer.param_groups
    assert (type(optimizer), group["lr"]) == (torch.optim.Adam, 0.02)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.net.parameters()}


def test_the_network_in_training_plays_and_not_its_target():
    model = by_hand([0, 1], [1, 0], eps_start=0.0, eps_end=0.0, lr=1e-9)
    model.populate(200)
    model.sync_target = lambda: None
    played = model.agent.replay_buffer = Recorder()
    fit(model)
    assert [e.action for e in played] == [1] * 10


def test_target_network_is_copied_every_sync_rate_steps():
    watch = Watch()
    fit(small(sync_rate=4), 2, watch)
    for step in range(20):
        assert torch.equal(watch.target[step], watch.net[step - step % 4])
    assert len({tuple(net.tolist()) for net in watch.net}) == 20  # every step learned something


@pytest.mark.parametrize(("fraction", "steps"), [(1.0, 20), (0.5, 10), (2.0, 40)])
def test_epsilon_falls_linearly_over_its_fraction_of_the_run_and_then_stays(fraction, steps):
    watch = Watch()
    fit(small(max_epochs=2, eps_start=1.0, eps_end=0.2, eps_fraction=fraction), 2, watch)
    assert watch.progress == pytest.approx(np.arange(20) / 20)
    assert watch.epsilon == pytest.approx([max(0.2, 1 - 0.8 * step / steps) for step in range(20)])


def test_the_learning_rate_falls_to_0_epoch_by_epoch_in_part_2_alone():
    for module, more, expected in (
        (ImprovedDQN, {}, [0.01] * 10 + [0.0075] * 10 + [0.005] * 10 + [0.0025] * 10),
        (ImprovedDQN, {"lr_decay": False}, [0.01] * 40),
        (DQNLightning, {}, [0.01] * 40),
    ):
        watch = Watch()
        fit(small(module, lr=0.01, max_epochs=4, **more), 4, watch)
        assert watch.lr == pytest.approx(expected)


def test_in_a_trainer_that_goes_on_longer_the_schedules_stay_at_their_end():
    watch = Watch()
    fit(small(ImprovedDQN, max_epochs=2), -1, watch, max_steps=40)
    assert watch.epsilon == pytest.approx([0.7 - 0.68 * min(1, step / 20) for step in range(40)])
    assert watch.lr == pytest.approx([5e-3] * 10 + [2.5e-3] * 10 + [0] * 20)


def test_in_a_run_without_end_the_schedules_stay_at_their_beginning():
    watch = Watch()
    fit(small(ImprovedDQN, max_epochs=-1), 3, watch)
    assert watch.epsilon == pytest.approx([0.7] * 30)
    assert watch.lr == pytest.approx([5e-3] * 30)


def test_a_finished_run_that_is_resumed_for_longer_goes_on_where_the_longer_run_would_be(folder):
    watch = Watch()
    main("--max_epochs 2 --steps_per_epoch 10 --warm_start_steps 100")
    main("--resume 0 --max_epochs 4", callbacks=[watch])
    assert watch.progress == pytest.approx(np.arange(20, 40) / 40)
    assert watch.epsilon == pytest.approx([0.7 - 0.68 * step / 40 for step in range(20, 40)])
    assert watch.lr == pytest.approx([0.0] * 10 + [5e-3 * 0.25] * 10)  # the first epoch has the rate of the end


class Notes(DummyLogger):
    """A logger that keeps the points of each curve."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((step, value))


def test_every_episode_is_one_point_and_the_other_curves_have_one_every_50_steps():
    model = small(steps_per_epoch=120, max_epochs=2)
    model.populate(100)
    played = model.agent.replay_buffer = Recorder()
    loggers = Notes(), Notes()
    fit(model, 2, logger=loggers)
    curves = loggers[0].curves
    assert loggers[1].curves == curves
    ends = [step for step, e in enumerate(played) if e.done]
    scores = np.diff([-1, *ends])  # each step has a reward of 1
    assert curves["total_reward"] == list(zip(ends, scores))
    assert curves["avg_reward"] == [(end, pytest.approx(scores[:i].mean())) for i, end in enumerate(ends, 1)]
    for name in ("reward", "train_loss", "epsilon", "lr", "q_mean"):
        assert [step for step, _ in curves[name]] == [0, 50, 100, 150, 200]
    assert curves["epsilon"] == [(step, pytest.approx(0.7 - 0.68 * step / 240)) for step in range(0, 240, 50)]
    assert [{value for _, value in curves[name]} for name in ("lr", "reward")] == [{5e-3}, {1.0}]


def test_q_mean_is_that_of_the_best_action_by_the_target_network():
    model = by_hand([2, 3], [0, 0], steps_per_epoch=60, sync_rate=1000, lr=0.1)
    notes = Notes()
    fit(model, logger=notes)  # the network is copied in the first step alone
    assert notes.curves["q_mean"] == [(0, 3), (50, 3)]
    assert model.net.q_values.min() > 3.5


# Evaluation


def test_validation_and_test_always_play_the_same_episodes_and_training_others():
    class Payday(Toy):
        """One step, which pays the seed of the episode."""

        length = 1

        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, float(self.np_random_seed), *rest

    gym.register("Payday-v0", Payday)
    model = DQNLightning("Payday-v0")
    trainer = pl.Trainer(enable_checkpointing=False, logger=False, enable_progress_bar=False, accelerator="cpu")
    for _ in range(2):
        assert trainer.validate(model, verbose=False)[0]["val_reward"] == np.mean(range(20))
        assert trainer.test(model, verbose=False)[0]["test_reward"] == np.mean(range(1000, 1100))
    model.populate(1000)
    played = set(model.buffer.sample(3000).reward)
    assert len(played) > 900
    assert not played & {*range(20), *range(1000, 1100)}


@torch.no_grad()
def test_evaluation_is_greedy_and_plays_in_parallel_what_an_agent_plays_one_by_one():
    model, passes, agent = small(lr=1e-3), [], agent_of()
    with torch.enable_grad():
        fit(model, 10)
    before = model.agent.state.tolist(), model.agent.rng.bit_generator.state, model.buffer.appended
    hook = model.net.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    seeds = [5, 6, 7, 5, 1000, 1001]
    scores = model.play_episodes(seeds)
    hook.remove()
    assert passes == [6] * int(scores.max())  # one forward pass for all, until the last has ended
    for seed in seeds:
        agent.reset(seed)
        while not agent.play_step(model.net)[1]:
            pass
    assert scores.tolist() == list(agent.scores)
    assert len(set(agent.scores)) > 1
    # The episode of training goes on as if nothing had been.
    assert before == (model.agent.state.tolist(), model.agent.rng.bit_generator.state, model.buffer.appended)


gym.register("Endless-v0", type("Endless", (Toy,), {"length": np.inf}))


@torch.no_grad()
def test_evaluation_ends_at_the_time_limit_or_after_10000_steps():
    assert small(env="Endless-v0", episode_length=5).play_episodes(range(3)).tolist() == [5, 5, 5]
    model = small(env="Endless-v0")
    model.net = RIGHT
    assert model.play_episodes(range(2)).tolist() == [10_000, 10_000]
