"""Each part of dqn_cartpole.py by itself: network, memory, dataset, agent, algorithm."""

import tracemalloc
from collections import Counter, deque
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import same_tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from dqn_cartpole import (
    DQN,
    Agent,
    DQNLightning,
    Experience,
    NStepBuffer,
    ReplayBuffer,
    RLDataset,
    UsageError,
    make_env,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


def experience(i: int) -> Experience:
    """An experience in which every field tells that it is number `i`."""
    return Experience(np.full(4, i, np.float32), i % 2, float(i), i % 3 == 0, np.full(4, i + 0.5, np.float32))


def filled(capacity: int, count: int) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, seed=0)
    for i in range(count):
        buffer.append(experience(i))
    return buffer


def small_model(**keywords) -> DQNLightning:
    """A model with an experience for each of 200 random steps."""
    torch.manual_seed(0)
    small = {"warm_start_steps": 200, "replay_size": 300, "sample_size": 160, "batch_size": 16, "n_step": 1}
    model = DQNLightning(**small | keywords)
    model.populate(200)
    return model


class Recorder(list):
    """Stands in for a replay buffer and keeps every experience in order."""

    def begin_episode(self) -> None:
        pass


def fit(model: DQNLightning, max_epochs: int, *callbacks: pl.Callback, max_steps: int = -1) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        max_steps=max_steps,
        limit_val_batches=0,
        callbacks=list(callbacks),
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(model)
    return trainer


class FixedQ(nn.Module):
    """Gives the same Q-values for every observation."""

    def __init__(self, *q_values: float) -> None:
        super().__init__()
        self.q_values = torch.tensor(q_values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_values.expand(len(x), -1)


# The network


def test_network_is_the_articles():
    net = DQN(4, 2)
    assert [type(layer) for layer in net.net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in net.parameters()] == [(128, 4), (128,), (2, 128), (2,)]


def test_network_can_be_deeper_and_wider():
    net = DQN(4, 2, hidden_size=8, hidden_layers=3)
    assert [tuple(p.shape) for p in net.parameters() if p.ndim == 2] == [(8, 4), (8, 8), (8, 8), (2, 8)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_network_takes_any_dtype(dtype):
    q_values = DQN(4, 3)(torch.ones(5, 4, dtype=getattr(torch, dtype)))
    assert (q_values.shape, q_values.dtype) == ((5, 3), torch.float32)


# The replay buffer


def test_experience_has_the_articles_fields():
    assert Experience._fields == ("state", "action", "reward", "done", "new_state")


def test_sample_is_five_arrays():
    sample = filled(10, 10).sample(6)
    assert all(isinstance(array, np.ndarray) for array in sample)
    states, actions, rewards, dones, new_states = sample
    assert (states.shape, states.dtype) == ((6, 4), np.float32)
    assert (new_states.shape, new_states.dtype) == ((6, 4), np.float32)
    assert (actions.shape, actions.dtype.kind) == ((6,), "i")
    assert (rewards.shape, rewards.dtype) == ((6,), np.float32)
    assert (dones.shape, dones.dtype) == ((6,), bool)


def test_fields_of_an_experience_stay_together():
    for state, action, reward, done, new_state in zip(*filled(50, 70).sample(50)):
        i = int(reward)
        assert (action, done) == (i % 2, i % 3 == 0)
        assert (state == i).all()
        assert (new_state == i + 0.5).all()


def test_buffer_keeps_a_copy_of_the_state():
    buffer, state = ReplayBuffer(1), np.zeros(4, np.float32)
    buffer.append(Experience(state, 0, 0.0, False, state))
    state += 1  # as an environment may that hands out the same array every time
    assert not buffer.sample(1)[0].any()


@settings(deadline=None)
@given(capacity=st.integers(1, 20), bursts=st.lists(st.integers(1, 25), min_size=1, max_size=5))
def test_buffer_holds_what_a_deque_would(capacity, bursts):
    buffer, model, i = ReplayBuffer(capacity), deque(maxlen=capacity), 0
    for burst in bursts:
        for _ in range(burst):
            buffer.append(experience(i))
            model.append(float(i))
            i += 1
        assert len(buffer) == len(model)
        assert sorted(buffer.sample(len(model))[2]) == list(model)


@settings(deadline=None)
@given(data=st.data(), capacity=st.integers(1, 30), count=st.integers(1, 60))
def test_sample_is_without_replacement(data, capacity, count):
    size = data.draw(st.integers(1, min(capacity, count)))
    rewards = filled(capacity, count).sample(size)[2]
    assert len(set(rewards)) == size
    assert set(rewards) <= set(range(max(0, count - capacity), count))


def test_sample_is_uniform():
    buffer, draws = filled(10, 17), 5000
    counts = Counter(reward for _ in range(draws) for reward in buffer.sample(3)[2])
    assert set(counts) == set(range(7, 17))
    expected, sigma = draws * 0.3, (draws * 0.3 * 0.7) ** 0.5
    assert all(abs(count - expected) < 4 * sigma for count in counts.values())


def test_position_in_a_sample_is_uniform():
    """Minibatches are slices of one sample, so an old experience must not be sure to come early in it."""
    buffer, draws = filled(10, 10), 5000
    first = Counter(buffer.sample(10)[2][0] for _ in range(draws))
    expected, sigma = draws * 0.1, (draws * 0.1 * 0.9) ** 0.5
    assert all(abs(first[i] - expected) < 4 * sigma for i in range(10))


@pytest.mark.parametrize("held", [0, 7])
def test_asking_for_too_much_gives_both_numbers(held):
    with pytest.raises(ValueError, match=rf"\b31\b.*\b{held}\b"):
        filled(100, held).sample(31)


def test_same_seed_same_samples():
    a, b, c = (ReplayBuffer(100, seed) for seed in (1, 1, 2))
    for i in range(100):
        for buffer in (a, b, c):
            buffer.append(experience(i))
    a, b, c = ([buffer.sample(20)[2].tolist() for _ in range(3)] for buffer in (a, b, c))
    assert a == b != c
    assert a[0] != a[1]


def test_cost_of_a_sample_does_not_depend_on_capacity():
    buffer = filled(1_000_000, 100_000)
    tracemalloc.start()
    buffer.sample(200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000, "sampling 200 made an array as long as the buffer"


def test_memory_is_capacity_times_one_experience_from_the_start():
    buffer, capacity = ReplayBuffer(10_000), 10_000
    one = 4 * 4 + 8 + 4 + 1 + 4 * 4
    tracemalloc.start()
    buffer.append(experience(0))
    first = tracemalloc.get_traced_memory()[0]
    for i in range(2 * capacity):
        buffer.append(experience(i))
    full = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert first == pytest.approx(capacity * one, rel=0.05)
    assert full - first < 10_000


# The dataset


def test_dataset_yields_experiences_one_by_one():
    items = list(RLDataset(filled(300, 300), sample_size=50))
    assert len(items) == 50
    assert all(len(item) == 5 for item in items)
    assert all((state == reward).all() for state, _, reward, _, _ in items)


def test_dataset_draws_200_by_default():
    assert len(list(RLDataset(filled(300, 300)))) == 200


def test_each_pass_is_drawn_from_the_buffer_as_it_is_then():
    buffer = filled(10, 10)
    dataset = RLDataset(buffer, 10)
    assert sorted(item[2] for item in dataset) == list(range(10))
    for i in range(10, 20):
        buffer.append(experience(i))
    assert sorted(item[2] for item in dataset) == list(range(10, 20))


@pytest.mark.parametrize("sliced", [False, True])
def test_minibatches_can_be_collated_by_the_loader_or_sliced_by_the_dataset(sliced):
    dataset = RLDataset(filled(300, 300), 200, batch_size=16 if sliced else None)
    batches = list(DataLoader(dataset, batch_size=None if sliced else 16))
    assert [len(batch[2]) for batch in batches] == [16] * 12 + [8]
    for states, actions, rewards, dones, new_states in batches:
        assert states.shape == new_states.shape == (len(rewards), 4)
        assert (states[:, 0] == rewards).all()
        assert actions.dtype == torch.int64
        assert dones.dtype == torch.bool
    assert len({reward for batch in batches for reward in batch[2].tolist()}) == 200


@pytest.mark.parametrize(("sample_size", "batch_size", "length"), [(200, 16, 13), (200, 20, 10), (7, None, 7)])
def test_dataset_knows_its_length(sample_size, batch_size, length):
    dataset = RLDataset(filled(300, 300), sample_size, batch_size)
    assert len(dataset) == len(list(dataset)) == length


# Experiences of several steps

ENDINGS = st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=8)


@settings(deadline=None)
@given(n_step=st.sampled_from([1, 2, 3, 5]), episodes=ENDINGS)
@example(n_step=3, episodes=[(2, True), (2, False), (6, True), (6, False)])
def test_n_step_experiences_are_what_a_plain_computation_gives(n_step, episodes):
    """Each episode has a number of steps, and is terminated or cut by a time limit."""
    buffer, gamma, expected, i = NStepBuffer(1000, n_step, gamma=0.9), 0.9, [], 0
    for steps, terminated in episodes:
        buffer.begin_episode()
        played = [experience(i + k)._replace(done=terminated and k == steps - 1) for k in range(steps)]
        i += steps
        for first in range(steps):
            span = played[first : first + n_step]
            if len(span) == n_step or terminated:
                rewards = sum(gamma**k * step.reward for k, step in enumerate(span))
                expected.append((span[0].state[0], span[0].action, rewards, span[-1].done, span[-1].new_state[0]))
        for step in played:
            buffer.append(step)
    assert len(buffer) == len(expected)
    if expected:
        states, actions, rewards, dones, new_states = buffer.sample(len(expected))
        stored = sorted(zip(states[:, 0], actions, rewards, dones, new_states[:, 0]))
        np.testing.assert_allclose(stored, expected, rtol=1e-6)


def test_agent_tells_the_buffer_where_an_episode_begins():
    buffer = NStepBuffer(1000, 4, 0.9)
    agent = Agent(make_env("MountainCar-v0", 10), buffer, seed=0)  # every episode is cut after ten steps
    for _ in range(50):
        agent.play_step(FixedQ(0.0, 0.0, 1.0))
    assert len(buffer) == 5 * 7
    assert buffer.sample(35).reward == pytest.approx(-(1 + 0.9 + 0.9**2 + 0.9**3))


# The agent


def test_agent_without_epsilon_is_greedy():
    agent = Agent(make_env("CartPole-v0"), ReplayBuffer(10), seed=0)
    for q_values, best in (((0.0, 1.0), 1), ((1.0, 0.0), 0)):
        actions = [agent.get_action(FixedQ(*q_values), 0.0, "cpu") for _ in range(20)]
        assert actions == [best] * 20
        assert all(type(action) is int for action in actions)


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_agent_explores_with_probability_epsilon(epsilon):
    agent = Agent(make_env("Acrobot-v1"), ReplayBuffer(10), seed=0)
    counts = Counter(agent.get_action(FixedQ(0.0, 0.0, 1.0), epsilon, "cpu") for _ in range(3000))
    for action, probability in enumerate([epsilon / 3, epsilon / 3, 1 - epsilon * 2 / 3]):
        assert counts[action] / 3000 == pytest.approx(probability, abs=0.04)


def test_agent_stores_every_step_it_plays():
    experiences = Recorder()
    agent = Agent(make_env("CartPole-v0"), experiences, seed=0)
    before = agent.state
    reward, done = agent.play_step(FixedQ(0.0, 1.0))
    assert (reward, done) == (1.0, False)
    (stored,) = experiences
    assert np.array_equal(stored.state, before)
    assert (stored.action, stored.reward, stored.done) == (1, 1.0, False)
    assert np.array_equal(stored.new_state, agent.state)
    assert not np.array_equal(stored.new_state, before)


def test_a_fall_is_terminal():
    experiences = Recorder()
    agent = Agent(make_env("CartPole-v0"), experiences, seed=0)
    while not agent.play_step(FixedQ(0.0, 1.0))[1]:  # always to the right: falls after about ten steps
        pass
    assert [e.done for e in experiences] == [False] * (len(experiences) - 1) + [True]
    assert len(experiences) < 20
    assert abs(experiences[-1].new_state[2]) > 0.2  # the pole's angle, and not that of the next episode
    assert (abs(agent.state) < 0.05).all()  # begun anew


def test_time_limit_still_bootstraps():
    experiences = Recorder()
    agent = Agent(make_env("MountainCar-v0", 30), experiences, seed=0)  # nobody is on the hill in 30 steps
    over = [agent.play_step(FixedQ(0.0, 0.0, 1.0))[1] for _ in range(60)]
    assert over == ([False] * 29 + [True]) * 2  # over for the agent
    assert not any(e.done for e in experiences)  # not for the value
    assert agent.state[1] == 0  # reset: the car stands
    assert experiences[29].new_state[1] != 0  # and the last state of the cut episode is that of the episode
    assert experiences[30].state[1] == 0


def test_episodes_differ_and_the_seed_decides_them():
    def first_states(seed: int) -> list[list[float]]:
        agent = Agent(make_env("CartPole-v0"), ReplayBuffer(10), seed)
        states = [agent.state.tolist()]
        for _ in range(2):
            agent.reset()
            states.append(agent.state.tolist())
        return states

    a, b, c = map(first_states, (1, 1, 2))
    assert a == b
    assert len({tuple(state) for state in a + c}) == 6


def test_same_seed_same_exploration():
    def actions(seed: int) -> list[int]:
        agent = Agent(make_env("CartPole-v0"), ReplayBuffer(10), seed)
        return [agent.get_action(FixedQ(0.0, 1.0), 0.8, "cpu") for _ in range(50)]

    assert actions(1) == actions(1) != actions(2)


def test_agent_and_buffer_go_on_where_their_saved_state_stood():
    def play(agent: Agent, steps: int) -> list[list[float]]:
        for _ in range(steps):
            agent.play_step(FixedQ(0.0, 1.0), 0.8)
        return [array.tolist() for array in agent.replay_buffer.sample(20)]

    first, second = (Agent(make_env("CartPole-v0"), NStepBuffer(100, 3, 0.9, seed), seed) for seed in (1, 2))
    play(first, 60)
    assert first.actions  # in the middle of an episode
    agent_state, buffer_state = first.state_dict(), deepcopy(first.replay_buffer.state_dict())
    goes_on = play(first, 60)
    second.load_state_dict(agent_state)
    second.replay_buffer.load_state_dict(buffer_state)
    assert play(second, 60) == goes_on


# The loss


def numpy_q(net: nn.Module, x: np.ndarray) -> np.ndarray:
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in net.parameters())
    return np.maximum(x @ w1.T + b1, 0) @ w2.T + b2


def with_other_target(model: DQNLightning) -> DQNLightning:
    torch.manual_seed(1)
    model.target_net.load_state_dict(DQN(4, 2).state_dict())
    return model


def batch_of(model: DQNLightning, size: int = 200) -> list[torch.Tensor]:
    return [torch.as_tensor(array) for array in model.buffer.sample(size)]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("double_dqn", [False, True])
def test_loss_is_the_bellman_error(double_dqn, n_step):
    model = with_other_target(small_model(double_dqn=double_dqn, gamma=0.9, n_step=n_step))
    batch = batch_of(model, 150)
    states, actions, rewards, dones, new_states = (tensor.double().numpy() for tensor in batch)
    assert 0 < dones.sum() < len(dones)
    rows = np.arange(len(rewards))
    next_q = numpy_q(model.target_net, new_states)
    next_action = (numpy_q(model.net, new_states) if double_dqn else next_q).argmax(1)
    target = rewards + 0.9**n_step * (1 - dones) * next_q[rows, next_action]
    error = numpy_q(model.net, states)[rows, actions.astype(int)] - target
    assert model.dqn_mse_loss(batch).item() == pytest.approx((error**2).mean(), rel=1e-4)


@pytest.mark.parametrize("clip", [1.0, 1.2])
def test_errors_beyond_clip_error_count_linearly(clip):
    model = with_other_target(small_model(clip_error=clip, gamma=0.9))
    batch = batch_of(model)
    states, actions, rewards, dones, new_states = (tensor.double().numpy() for tensor in batch)
    targets = rewards + 0.9 * (1 - dones) * numpy_q(model.target_net, new_states).max(1)
    error = abs(numpy_q(model.net, states)[np.arange(200), actions.astype(int)] - targets)
    assert 0 < (error > clip).sum() < 200
    expected = np.where(error <= clip, error**2 / 2, clip * (error - clip / 2)).mean()
    assert model.dqn_mse_loss(batch).item() == pytest.approx(expected, rel=1e-4)


def test_double_dqn_differs_from_dqn_here():
    """Or the two tests above would be one."""
    losses = []
    for double_dqn in (False, True):
        model = with_other_target(small_model(double_dqn=double_dqn))
        losses.append(model.dqn_mse_loss(batch_of(model)).item())
    assert losses[0] != losses[1]


def test_terminal_states_are_not_bootstrapped():
    model = small_model()
    states, actions, rewards, dones, new_states = batch_of(model)
    terminal = torch.ones_like(dones)
    loss = model.dqn_mse_loss((states, actions, rewards, terminal, new_states))
    elsewhere = model.dqn_mse_loss((states, actions, rewards, terminal, new_states + 1))
    assert loss == elsewhere
    going_on = model.dqn_mse_loss((states, actions, rewards, ~terminal, new_states))
    assert loss != going_on


@pytest.mark.parametrize("double_dqn", [False, True])
def test_gradient_flows_through_the_chosen_q_value_only(double_dqn):
    model = small_model(double_dqn=double_dqn)
    states, actions, rewards, _, new_states = batch_of(model)
    zero = torch.zeros_like(actions)
    model.dqn_mse_loss((states, zero, rewards, zero.bool(), new_states)).backward()
    output_bias = list(model.net.parameters())[-1].grad
    assert output_bias[0] != 0
    assert output_bias[1] == 0  # action 1 is best in some new states, but was not taken in any state
    assert not any(p.requires_grad for p in model.target_net.parameters())


# The Lightning module


def test_default_agent_needs_no_arguments():
    model = DQNLightning()
    assert model.env.spec.id == "CartPole-v0"
    assert model(torch.zeros(3, 4)).shape == (3, 2)


def test_environment_can_be_given_without_its_name():
    assert DQNLightning("CartPole-v1").env.spec.max_episode_steps == 500


def test_training_begins_after_a_warm_start():
    model = DQNLightning(n_step=1)
    assert len(model.buffer) == 0
    fit(model, 1)
    assert len(model.buffer) == 1000 + 13


def test_target_network_starts_as_a_copy():
    model = small_model()
    assert same_tensors(model.net.state_dict(), model.target_net.state_dict())


def test_populate_plays_at_random():
    model = small_model()
    before = len(model.buffer)
    model.populate(60)
    assert len(model.buffer) == before + 60
    right = model.buffer.sample(200)[1].mean()
    assert 0.35 < right < 0.65


def test_hyperparameters_are_saved():
    assert small_model(lr=0.5).hparams.lr == 0.5
    assert small_model().hparams.gamma == 0.99


@pytest.mark.parametrize("wrong", [{"batch_size": 201}, {"warm_start_steps": 199}, {"replay_size": 199}])
def test_sizes_that_contradict_each_other_are_refused_in_a_program_too(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=rf"--sample_size 200.*--{name} \({value}\)"):
        DQNLightning(**wrong)


def test_optimizer_is_adam_on_the_network_alone():
    model = small_model(lr=0.02, lr_schedule="constant")
    optimizer = fit(model, 1).optimizers[0]
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.02
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.net.parameters()}
    assert model.automatic_optimization


def test_a_training_step_is_one_step_in_the_environment():
    model = small_model(replay_size=1000)
    assert fit(model, 3).global_step == 30
    assert len(model.buffer) == 200 + 30


def test_an_epoch_is_13_steps_at_the_defaults():
    assert fit(DQNLightning(), 2).global_step == 26


def test_network_that_is_trained_plays_not_its_target():
    model = small_model(eps_start=0.0, eps_end=0.0, lr=1e-9, tau=1e-9)
    for net, bias in ((model.net, [0.0, 100.0]), (model.target_net, [100.0, 0.0])):
        net.net[-1].bias.data = torch.tensor(bias)
    played = model.agent.replay_buffer = Recorder()
    fit(model, 1)
    assert [e.action for e in played] == [1] * 10


def test_returns_are_those_of_the_episodes_that_were_played():
    model = small_model(eps_start=1.0, eps_end=1.0)
    played = model.agent.replay_buffer = Recorder()
    assert model.avg_reward == 0
    fit(model, 10)
    falls = [step for step, e in enumerate(played, 1) if e.done]
    assert len(falls) > 2
    assert list(model.returns) == np.diff([0, *falls]).tolist()  # each step has a reward of 1
    assert model.avg_reward == pytest.approx(falls[-1] / len(falls))


class Epsilons(pl.Callback):
    """Notes epsilon at the start of each step."""

    def __init__(self) -> None:
        self.epsilon: list[float] = []

    def on_train_batch_start(self, trainer, module, *_):
        self.epsilon.append(module.epsilon)


def test_epsilon_falls_linearly_and_then_stays():
    epsilons = Epsilons()
    fit(small_model(eps_start=1.0, eps_end=0.2, eps_last_frame=16), 2, epsilons)
    assert epsilons.epsilon == pytest.approx([1 - 0.05 * step for step in range(16)] + [0.2] * 4)


class Weights(pl.Callback):
    """Notes the weights each step begins with, and the target's it ends with."""

    def __init__(self) -> None:
        self.net: list[torch.Tensor] = []
        self.target: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, module, *_):
        self.net.append(parameters_to_vector(module.net.parameters()).detach().clone())

    def on_train_batch_end(self, trainer, module, *_):
        self.target.append(parameters_to_vector(module.target_net.parameters()).detach().clone())


def test_target_network_is_copied_every_sync_rate_steps():
    weights = Weights()
    fit(small_model(sync_rate=4), 2, weights)
    for step in range(20):
        assert torch.equal(weights.target[step], weights.net[step - step % 4])
    assert len({tuple(net.tolist()) for net in weights.net}) == 20  # every step learned something


def test_tau_below_one_blends_the_target_every_step():
    weights = Weights()
    fit(small_model(tau=0.1, sync_rate=7), 2, weights)
    for step in range(1, 20):
        blend = 0.9 * weights.target[step - 1] + 0.1 * weights.net[step]
        torch.testing.assert_close(weights.target[step], blend)


class LearningRates(pl.Callback):
    """Notes the learning rate at the start of each epoch."""

    def __init__(self) -> None:
        self.lr: list[float] = []

    def on_train_epoch_start(self, trainer, module):
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("epochs", [10, 20])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_falls_over_the_whole_run_as_scheduled(schedule, epochs):
    rates = LearningRates()
    fit(small_model(lr=0.01, lr_schedule=schedule, sample_size=16), epochs, rates)
    progress = np.arange(epochs) / epochs
    shape = {"constant": np.ones(epochs), "linear": 1 - progress, "cosine": (1 + np.cos(np.pi * progress)) / 2}
    assert rates.lr[0] == pytest.approx(0.01)
    assert np.array(rates.lr) == pytest.approx(0.01 * shape[schedule], abs=0.0003)
    assert min(rates.lr) > 0


@pytest.mark.parametrize("max_epochs", [-1, 1000])
def test_learning_rate_falls_as_well_where_max_steps_ends_the_run(max_epochs):
    rates = LearningRates()
    trainer = fit(small_model(lr=0.01, lr_schedule="linear"), max_epochs, rates, max_steps=100)
    assert trainer.global_step == 100
    assert rates.lr == pytest.approx([0.01 * (1 - epoch / 10) for epoch in range(10)])


# Validation and test


def greedy_return(model: DQNLightning, seed: int) -> float:
    """The return of one episode, played by the plainest loop there is."""
    env = make_env(model.hparams.env, model.hparams.episode_length)
    state, _ = env.reset(seed=seed)
    total = 0.0
    while True:
        action = model(torch.as_tensor(state).unsqueeze(0)).argmax().item()
        state, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return total


@torch.no_grad()
def test_episodes_in_lockstep_are_the_same_as_one_by_one():
    model = small_model(lr=1e-3)
    fit(model, 10)
    seeds = [5, 6, 7, 5, 1000, 1001]
    returns = model.play_episodes(torch.tensor(seeds)).tolist()
    assert returns == [greedy_return(model, seed) for seed in seeds]
    assert len(set(returns)) > 1


def test_validation_does_not_touch_the_agents_episode():
    model = small_model()
    state, held = model.agent.state.copy(), len(model.buffer)
    model.play_episodes(torch.arange(5))
    assert np.array_equal(model.agent.state, state)
    assert len(model.buffer) == held


class Seeds(gym.Wrapper):
    """Notes the seeds of the episodes."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.seeds: set[int | None] = set()

    def reset(self, *, seed=None, options=None):
        self.seeds.add(seed)
        return super().reset(seed=seed, options=options)


def test_validation_test_and_training_episodes_are_seeded_apart():
    model = small_model()
    validation = {int(seed) for batch in model.val_dataloader() for seed in batch}
    test = {int(seed) for batch in model.test_dataloader() for seed in batch}
    env = Seeds(make_env("CartPole-v0"))
    agent = Agent(env, ReplayBuffer(1), seed=0)
    for _ in range(1000):
        agent.reset()
    assert len(test) == 100
    assert len(env.seeds) > 990
    assert not validation & test
    assert not env.seeds & (validation | test | {None})


def test_a_plain_trainer_tests_the_agent():
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    (result,) = pl.Trainer(accelerator="cpu", **quiet).test(DQNLightning(), verbose=False)
    assert 0 < result["test_reward"] <= 200
