"""Each part of dqn_cartpole.py by itself: network, memory, dataset, agent, algorithm, evaluation."""

from collections import Counter, deque

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import FixedQ, Toy, fit, same, state_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

import dqn_cartpole
from dqn_cartpole import DQN, Agent, DQNLightning, Experience, ImprovedDQN, NStepBuffer, ReplayBuffer, RLDataset


def experience(i: int) -> Experience:
    """An experience in which every field tells that it is number `i`."""
    return Experience(np.full(4, i, np.float32), i % 2, float(i), i % 3 == 0, np.full(4, i + 0.5, np.float32))


def filled(capacity: int, count: int, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, seed)
    for i in range(count):
        buffer.append(experience(i))
    return buffer


def cartpole() -> gym.Env:
    return gym.make("CartPole-v0")


def small(module: type[DQNLightning] = DQNLightning, **arguments) -> DQNLightning:
    """A model with ten steps in an epoch."""
    torch.manual_seed(0)
    return module(**{"warm_start_steps": 200, "replay_size": 300, "sample_size": 160, "batch_size": 16} | arguments)


class Recorder(list):
    """Stands in for a replay buffer and keeps every experience in order."""

    def begin_episode(self) -> None:
        pass


# The network


def test_network_is_the_articles():
    net = DQN(4, 2)
    assert [type(layer) for layer in net.net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in net.parameters()] == [(128, 4), (128,), (2, 128), (2,)]


def test_network_can_be_deeper_and_wider():
    net = DQN(4, 2, hidden_size=8, hidden_layers=3)
    assert [tuple(p.shape) for p in net.parameters() if p.ndim == 2] == [(8, 4), (8, 8), (8, 8), (2, 8)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_network_takes_any_dtype_and_shape(dtype):
    q_values = DQN(4, 3)(torch.ones(5, 2, 2, dtype=getattr(torch, dtype)))
    assert (q_values.shape, q_values.dtype) == ((5, 3), torch.float32)


# The replay buffer


def test_experience_has_the_articles_fields():
    assert Experience._fields == ("state", "action", "reward", "done", "new_state")


def test_sample_is_five_arrays_whose_rows_belong_together():
    sample = filled(50, 70).sample(50)
    assert [array.dtype for array in sample] == [np.float32, np.int64, np.float32, np.bool_, np.float32]
    assert [array.shape for array in sample] == [(50, 4), (50,), (50,), (50,), (50, 4)]
    for row in zip(*sample):
        assert same([field.tolist() for field in row], [np.asarray(f).tolist() for f in experience(int(row[2]))])


@settings(deadline=None)
@given(capacity=st.integers(1, 20), bursts=st.lists(st.integers(1, 25), min_size=1, max_size=5))
def test_the_oldest_experience_goes_first(capacity, bursts):
    buffer, held, i = ReplayBuffer(capacity), deque(maxlen=capacity), 0
    for burst in bursts:
        for _ in range(burst):
            buffer.append(experience(i))
            held.append(float(i))
            i += 1
        assert len(buffer) == len(held)
        assert sorted(buffer.sample(len(held)).reward) == list(held)


def test_sample_is_uniform_and_without_replacement():
    """In any place of the sample: minibatches are slices of it, and an old experience must not be sure to be first."""
    buffer, draws = filled(10, 17), 5000
    samples = [buffer.sample(3).reward for _ in range(draws)]
    assert all(len(set(sample)) == 3 for sample in samples)
    for place in range(3):
        counts = Counter(sample[place] for sample in samples)
        assert set(counts) == set(range(7, 17))
        assert all(abs(count - draws / 10) < 4.5 * (draws * 0.09) ** 0.5 for count in counts.values())


@pytest.mark.parametrize("held", [0, 7])
def test_asking_for_too_much_gives_both_numbers(held):
    with pytest.raises(ValueError, match=rf"\b31\b.*\b{held}\b"):
        filled(100, held).sample(31)


def test_the_seed_decides_the_samples():
    first, second, other = ([buffer.sample(20).reward.tolist() for _ in range(3)] for buffer in map_seeds(1, 1, 2))
    assert first == second != other
    assert first[0] != first[1]


def map_seeds(*seeds: int) -> list[ReplayBuffer]:
    return [filled(100, 100, seed) for seed in seeds]


# The dataset


def test_dataset_yields_200_experiences_one_by_one():
    items = list(RLDataset(filled(300, 300)))
    assert len(items) == 200
    assert all(len(item) == 5 and (item[0] == item[2]).all() for item in items)


def test_each_pass_is_drawn_from_the_buffer_as_it_is_then():
    buffer = filled(10, 10)
    dataset = RLDataset(buffer, 10)
    assert sorted(item[2] for item in dataset) == list(range(10))
    for i in range(10, 20):
        buffer.append(experience(i))
    assert sorted(item[2] for item in dataset) == list(range(10, 20))


@pytest.mark.parametrize("by_the_dataset", [False, True])
def test_minibatches_can_be_made_by_the_loader_or_the_dataset(by_the_dataset):
    dataset = RLDataset(filled(300, 300), 200, batch_size=16 if by_the_dataset else None)
    batches = list(DataLoader(dataset, batch_size=None if by_the_dataset else 16))
    assert [len(batch[2]) for batch in batches] == [16] * 12 + [8]
    for states, actions, rewards, dones, new_states in batches:
        assert states.shape == new_states.shape == (len(rewards), 4)
        assert (states[:, 0] == rewards).all()
        assert (actions.dtype, dones.dtype) == (torch.int64, torch.bool)
    assert len({reward for batch in batches for reward in batch[2].tolist()}) == 200


@pytest.mark.parametrize(("sample_size", "batch_size", "length"), [(200, 16, 13), (200, 20, 10), (7, None, 7)])
def test_dataset_knows_its_length(sample_size, batch_size, length):
    dataset = RLDataset(filled(300, 300), sample_size, batch_size)
    assert len(dataset) == len(list(dataset)) == length


# n-step returns


@settings(deadline=None)
@given(
    n_step=st.sampled_from([1, 2, 3, 5]),
    episodes=st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=8),
)
@example(n_step=3, episodes=[(2, True), (2, False), (6, True), (6, False)])
def test_n_step_experiences_are_what_a_plain_computation_gives(n_step, episodes):
    """An episode is a number of steps, and terminated (the last steps are stored) or cut (they are dropped)."""
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
    agent = Agent(gym.make("MountainCar-v0", max_episode_steps=10), buffer, seed=0)
    for _ in range(50):
        agent.play_step(FixedQ(0.0, 0.0, 1.0))
    assert len(buffer) == 5 * 7
    assert buffer.sample(35).reward == pytest.approx(-(1 + 0.9 + 0.9**2 + 0.9**3))


# The agent


def test_agent_without_epsilon_is_greedy():
    agent = Agent(cartpole(), ReplayBuffer(10), seed=0)
    for q_values, best in (((0.0, 1.0), 1), ((1.0, 0.0), 0)):
        actions = [agent.get_action(FixedQ(*q_values), 0.0, "cpu") for _ in range(20)]
        assert actions == [best] * 20
        assert all(type(action) is int for action in actions)


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_agent_explores_with_probability_epsilon(epsilon):
    agent = Agent(gym.make("Acrobot-v1"), ReplayBuffer(10), seed=0)
    counts = Counter(agent.get_action(FixedQ(0.0, 0.0, 1.0), epsilon, "cpu") for _ in range(3000))
    for action, probability in enumerate([epsilon / 3, epsilon / 3, 1 - epsilon * 2 / 3]):
        assert counts[action] / 3000 == pytest.approx(probability, abs=0.04)


def test_agent_stores_every_step_it_plays():
    experiences = Recorder()
    agent = Agent(cartpole(), experiences, seed=0)
    before = agent.state
    assert agent.play_step(FixedQ(0.0, 1.0)) == (1.0, False)
    (stored,) = experiences
    assert np.array_equal(stored.state, before)
    assert (stored.action, stored.reward, stored.done) == (1, 1.0, False)
    assert np.array_equal(stored.new_state, agent.state)
    assert not np.array_equal(stored.new_state, before)


def test_a_termination_is_not_bootstrapped():
    experiences = Recorder()
    agent = Agent(cartpole(), experiences, seed=0)
    while not agent.play_step(FixedQ(0.0, 1.0))[1]:  # always to the right: falls after about ten steps
        pass
    assert [e.done for e in experiences] == [False] * (len(experiences) - 1) + [True]
    assert abs(experiences[-1].new_state[2]) > 0.2  # the pole's angle, and not that of the next episode
    assert (abs(agent.state) < 0.05).all()  # begun anew


def test_time_limit_still_bootstraps():
    experiences = Recorder()
    agent = Agent(gym.make("MountainCar-v0", max_episode_steps=30), experiences, seed=0)  # too few to get up the hill
    over = [agent.play_step(FixedQ(0.0, 0.0, 1.0))[1] for _ in range(60)]
    assert over == ([False] * 29 + [True]) * 2  # over for the agent
    assert not any(e.done for e in experiences)  # not for the value
    assert experiences[29].new_state[1] != 0  # the last state of the cut episode, in which the car moves
    assert agent.state[1] == experiences[30].state[1] == 0  # begun anew: the car stands


def test_episodes_and_exploration_follow_from_the_seed():
    def play(seed: int) -> list:
        agent = Agent(cartpole(), ReplayBuffer(10), seed)
        states = [agent.state.tolist()]
        for _ in range(2):
            agent.reset()
            states.append(agent.state.tolist())
        return [states, [agent.get_action(FixedQ(0.0, 1.0), 0.8, "cpu") for _ in range(50)]]

    first, second, other = map(play, (1, 1, 2))
    assert first == second
    assert first[1] != other[1]
    assert len({tuple(state) for state in first[0] + other[0]}) == 6


class Reuses(Toy):
    """Whole numbers from `reset`, then always the same array, changed in place."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def observe(self):
        if self.taken == 0:
            self.array = np.zeros(2, self.observation_space.dtype)
            return [0, 0]
        self.array += 0.5
        return self.array


class ReusesFloat32(Reuses):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.mark.parametrize("env_class", [Reuses, ReusesFloat32])
def test_observations_are_copied_as_float32(env_class):
    buffer = ReplayBuffer(200)
    agent = Agent(env_class(), buffer, seed=0)
    for _ in range(200):
        agent.play_step(FixedQ(0.0, 1.0))
    sample = buffer.sample(200)
    assert sample.state.dtype == sample.new_state.dtype == np.float32
    assert (sample.new_state == sample.state + 0.5).all()
    assert set(sample.state[:, 0]) == {n / 2 for n in range(10)}


class SaysBytes(Toy):
    """Says 0 to 255 and returns 0 to 1, as a wrapper leaves behind that scales pictures and not their space."""

    observation_space = gym.spaces.Box(0, 255, (3,), np.uint8)

    def observe(self):
        return self.np_random.uniform(0, 1, 3)


class Bytes(SaysBytes):
    def observe(self):
        return self.observation_space.sample()


@pytest.mark.parametrize(
    ("env_class", "dtype"),
    [(SaysBytes, np.float32), (Bytes, np.uint8)],
)
def test_an_observation_keeps_its_values_and_its_spaces_dtype_where_that_can_hold_them(env_class, dtype):
    buffer, env = ReplayBuffer(50), env_class()
    agent = Agent(env, buffer, seed=0)
    for _ in range(50):
        agent.play_step(FixedQ(0.0, 1.0))
    states = buffer.sample(50).state
    assert states.dtype == dtype
    assert len(np.unique(states)) > 40


# The state of buffer and agent


@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 37])
def test_buffer_goes_on_from_its_saved_state(count):
    """Empty, in part full, full and wrapped: what it holds, what it draws and what it forgets next."""
    models = [DQNLightning(replay_size=10) for _ in range(2)]
    buffer, again = models[0].buffer, models[1].buffer = filled(10, count, seed=1), ReplayBuffer(10, seed=2)
    if count:
        buffer.sample(1)
    models[1].on_load_checkpoint(state_of(models[0]))
    for i in range(count, count + 15):
        assert len(again) == len(buffer)
        buffer.append(experience(i))
        again.append(experience(i))
        assert same(*([array.tolist() for array in each.sample(len(each))] for each in (again, buffer)))


@pytest.mark.parametrize("n_step", [1, 4])
@pytest.mark.parametrize("steps", [4, 9, 60])
def test_agent_goes_on_from_its_saved_state_in_the_middle_of_an_episode(steps, n_step):
    """With n-step returns the steps that wait are no part of the state: the agent plays them again."""
    net = nn.Linear(4, 2)
    models = [ImprovedDQN(episode_length=25, replay_size=30, n_step=n_step) for _ in range(2)]
    agents, buffers = [model.agent for model in models], [model.buffer for model in models]
    for _ in range(steps):
        agents[0].play_step(net, epsilon=0.5)
    state = state_of(models[0])
    for _ in range(5):
        agents[1].play_step(net)  # it was somewhere else
    models[1].on_load_checkpoint(state)
    for _ in range(100):
        assert np.array_equal(agents[1].state, agents[0].state)
        assert agents[1].play_step(net, epsilon=0.5) == agents[0].play_step(net, epsilon=0.5)
        assert len(buffers[1]) == len(buffers[0])
        if len(buffers[0]):
            assert same(*([array.tolist() for array in buffer.sample(len(buffer))] for buffer in buffers))


# The loss, by hand


def by_hand(module: type[DQNLightning], q_values: list[float], target_q_values: list[float], **arguments):
    """A model whose networks give these Q-values for every state."""
    model = module(**arguments)
    model.net, model.target_net = FixedQ(*q_values), FixedQ(*target_q_values).requires_grad_(False)
    return model


def batch_of(rewards: list[float], dones: list[bool], actions: list[int]) -> Experience:
    states = torch.zeros(len(rewards), 4)
    return Experience(states, torch.tensor(actions), torch.tensor(rewards), torch.tensor(dones), states)


def test_target_is_the_reward_and_the_discounted_value_of_the_next_state():
    model = by_hand(DQNLightning, [1, 3], [10, 4], gamma=0.9)
    targets = model.td_targets(batch_of([1.0, -2.0, 1.0], [False, False, True], [0, 0, 0]))
    assert targets.tolist() == pytest.approx([1 + 0.9 * 10, -2 + 0.9 * 10, 1])


def test_the_discount_follows_from_the_buffer_not_from_the_flag():
    class OwnSteps(ImprovedDQN):
        def make_buffer(self, seed):
            return NStepBuffer(self.hparams.replay_size, 2, self.hparams.gamma, seed)

    model = by_hand(OwnSteps, [1, 3], [10, 4], gamma=0.9)
    assert model.td_targets(batch_of([1], [False], [0])).tolist() == pytest.approx([1 + 0.9**2 * 10])


def test_a_buffer_that_does_not_say_how_many_rewards_it_sums_is_an_error_at_once():
    class Plain(ImprovedDQN):
        def make_buffer(self, seed):
            return ReplayBuffer(self.hparams.replay_size, seed)

    with pytest.raises(AttributeError, match="n_step"):
        Plain()


def test_n_step_target_is_discounted_n_times():
    model = by_hand(ImprovedDQN, [1, 3], [10, 4], gamma=0.9, n_step=3)
    targets = model.td_targets(batch_of([1.0, 1.0], [False, True], [0, 0]))
    assert targets.tolist() == pytest.approx([1 + 0.9**3 * 10, 1])


def test_double_dqn_lets_the_online_network_choose_and_the_target_network_value():
    model = by_hand(ImprovedDQN, [1, 3], [10, 4], gamma=0.9, n_step=1, double_dqn=True)
    targets = model.td_targets(batch_of([1.0, 1.0], [False, True], [0, 0]))
    assert targets.tolist() == pytest.approx([1 + 0.9 * 4, 1])


def test_loss_is_the_mean_of_the_squared_errors_or_each_of_them():
    model = by_hand(DQNLightning, [1, 3], [10, 4], gamma=0.9)
    batch = batch_of([1.0, 1.0], [False, True], [0, 1])  # errors: 1 - 10 and 3 - 1
    assert model.dqn_mse_loss(batch).item() == pytest.approx(42.5)
    model.criterion.reduction = "none"
    assert model.dqn_mse_loss(batch).tolist() == pytest.approx([81, 4])


def test_errors_beyond_clip_error_count_linearly():
    model = by_hand(ImprovedDQN, [1, 3], [10, 4], gamma=0.9, n_step=1, clip_error=2.5)
    batch = batch_of([1.0, 1.0], [False, True], [0, 1])
    model.criterion.reduction = "none"
    assert model.dqn_mse_loss(batch).tolist() == pytest.approx([2.5 * (9 - 2.5 / 2), 4 / 2])


@pytest.mark.parametrize("hidden_layers", [1, 3])
def test_layer_norm_normalizes_what_enters_every_activation(hidden_layers):
    model, entering = ImprovedDQN(hidden_layers=hidden_layers), []
    for layer in model.net.net:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    model(torch.randn(5, 4))
    assert len(entering) == hidden_layers
    for units in entering:
        torch.testing.assert_close(units.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(units.var(1, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_with_everything_off_part_2_is_part_1_bit_for_bit():
    plain, improved = small(), small(ImprovedDQN, n_step=1, lr_schedule="constant", layer_norm=False)
    for model in (plain, improved):
        torch.manual_seed(0)
        fit(model, 3)
    assert same(dict(plain.state_dict()), dict(improved.state_dict()))


@pytest.mark.parametrize("double_dqn", [False, True])
def test_gradient_flows_through_the_chosen_q_value_only(double_dqn):
    model = by_hand(ImprovedDQN, [1, 3], [10, 4], n_step=1, double_dqn=double_dqn)
    model.dqn_mse_loss(batch_of([1.0, 1.0], [False, True], [0, 0])).backward()
    assert model.net.q_values.grad[0] != 0
    assert model.net.q_values.grad[1] == 0
    assert model.target_net.q_values.grad is None
    assert not any(p.requires_grad for p in DQNLightning().target_net.parameters())


@pytest.mark.parametrize(("module", "calls"), [(DQNLightning, (1, 1)), (ImprovedDQN, (1, 1))])
def test_each_network_runs_once_for_a_loss(module, calls):
    counts, model = Counter(), by_hand(module, [1, 3], [10, 4])
    for name in ("net", "target_net"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: counts.update([name]))
    model.dqn_mse_loss(batch_of([1.0], [False], [0]))
    assert (counts["net"], counts["target_net"]) == calls


# Training


def test_an_agent_needs_no_arguments():
    model = DQNLightning()
    assert model.env.spec.id == "CartPole-v0"
    assert model(torch.zeros(3, 4)).shape == (3, 2)
    assert same(*(dict(net.state_dict()) for net in (model.net, model.target_net)))
    assert (model.hparams.lr, model.hparams.gamma) == (5e-3, 0.99)


def test_training_begins_after_a_warm_start_and_takes_13_steps_an_epoch():
    model = DQNLightning()
    assert len(model.buffer) == 0
    assert fit(model, 2).global_step == 26
    assert len(model.buffer) == 1000 + 26


def test_populate_plays_at_random():
    model = small()
    model.populate(250)
    assert len(model.buffer) == 250
    assert 0.4 < model.buffer.sample(250).action.mean() < 0.6


def test_optimizer_is_adam_on_the_network_alone():
    model = small(lr=0.02)
    (optimizer,) = fit(model).optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.02
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.net.parameters()}
    assert model.automatic_optimization


def test_the_network_in_training_plays_and_not_its_target():
    model = small(eps_start=0.0, eps_end=0.0, lr=1e-9, sync_rate=1000)
    model.populate(200)
    for net, bias in ((model.net, [0.0, 100.0]), (model.target_net, [100.0, 0.0])):
        net.net[-1].bias.data = torch.tensor(bias)
    played = model.agent.replay_buffer = Recorder()
    fit(model)
    assert [e.action for e in played] == [1] * 10


def test_the_network_plays_in_train_mode_and_is_evaluated_in_eval_mode():
    class Mode(pl.Callback):
        """Notes the mode of the network for each size of a batch: 1 for a step, 20 for a validation."""

        def setup(self, trainer, module, stage):
            self.modes = {1: set(), 20: set()}
            module.net.register_forward_hook(lambda net, x, _: self.modes.get(len(x[0]), set()).add(net.training))

    mode = Mode()
    fit(small(eps_start=0.0), 1, mode, limit_val_batches=1)
    assert mode.modes == {1: {True}, 20: {False}}


def test_scores_are_those_of_the_episodes_that_were_played():
    model = small(eps_start=1.0, eps_end=1.0)
    model.populate(200)
    played = model.agent.replay_buffer = Recorder()
    assert model.avg_reward == 0
    fit(model, 10)
    falls = [step for step, e in enumerate(played, 1) if e.done]
    assert len(falls) > 2
    assert model.avg_reward == pytest.approx(falls[-1] / len(falls))  # each step has a reward of 1


class Watch(pl.Callback):
    """Notes what each step begins with, and the target network's weights it ends with."""

    def __init__(self) -> None:
        self.epsilon, self.lr, self.net, self.target = [], [], [], []

    def on_train_batch_start(self, trainer, module, *_):
        self.epsilon.append(module.epsilon)
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.net.append(parameters_to_vector(module.net.parameters()).detach().clone())

    def on_train_batch_end(self, trainer, module, *_):
        self.target.append(parameters_to_vector(module.target_net.parameters()).detach().clone())


def test_epsilon_falls_linearly_and_then_stays():
    watch = Watch()
    fit(small(eps_start=1.0, eps_end=0.2, eps_last_frame=16), 2, watch)
    assert watch.epsilon == pytest.approx([1 - 0.05 * step for step in range(16)] + [0.2] * 4)


def test_epsilon_falls_over_the_whole_run_unless_told_otherwise():
    watch = Watch()
    fit(small(eps_start=1.0, eps_end=0.2), 2, watch)
    assert watch.epsilon == pytest.approx([1 - 0.04 * step for step in range(20)])


def test_target_network_is_copied_every_sync_rate_steps():
    watch = Watch()
    fit(small(sync_rate=4), 2, watch)
    for step in range(20):
        assert torch.equal(watch.target[step], watch.net[step - step % 4])
    assert len({tuple(net.tolist()) for net in watch.net}) == 20  # every step learned something


def test_tau_below_one_blends_the_target_every_step():
    watch = Watch()
    fit(small(ImprovedDQN, tau=0.1, sync_rate=7), 2, watch)
    for step in range(1, 20):
        blend = 0.9 * watch.target[step - 1] + 0.1 * watch.net[step]
        torch.testing.assert_close(watch.target[step], blend)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_target_network_follows_what_a_batchnorm_tracks(tau):
    class Normal(ImprovedDQN):
        def make_net(self):
            return nn.Sequential(nn.BatchNorm1d(4), super().make_net())

    model = Normal(tau=tau)
    model.net(torch.randn(50, 4) + 3)
    model.sync_target()
    assert model.net[0].running_mean.abs().min() > 0.1
    torch.testing.assert_close(model.target_net[0].running_mean, tau * model.net[0].running_mean)  # 0 before


@pytest.mark.parametrize("length", [{"max_epochs": 10}, {"max_epochs": 20}, {"max_epochs": -1, "max_steps": 100}])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_falls_over_the_whole_run_as_scheduled(schedule, length):
    watch = Watch()
    steps = fit(small(ImprovedDQN, lr=0.01, lr_schedule=schedule), 1, watch, **length).global_step
    progress = np.arange(0, steps, 10) / steps  # it changes between epochs
    shape = {"constant": progress * 0 + 1, "linear": 1 - progress, "cosine": (1 + np.cos(np.pi * progress)) / 2}
    assert watch.lr[::10] == watch.lr[9::10]
    assert watch.lr[::10] == pytest.approx(0.01 * shape[schedule], abs=1e-9)


# Evaluation


def score_of(model: DQNLightning, seed: int) -> float:
    """The score of one episode, played by the plainest loop there is."""
    env = gym.make(model.hparams.env)
    state, _ = env.reset(seed=seed)
    score, over = 0.0, False
    while not over:
        action = model(torch.as_tensor(state).unsqueeze(0)).argmax().item()
        state, reward, terminated, truncated, _ = env.step(action)
        score, over = score + float(reward), terminated or truncated
    return score


@torch.no_grad()
def test_episodes_side_by_side_are_the_same_as_one_by_one():
    model = small(lr=1e-3)
    with torch.enable_grad():
        fit(model, 10)
    seeds = [5, 6, 7, 5, 1000, 1001]
    scores = model.play_episodes(torch.tensor(seeds)).tolist()
    assert scores == [score_of(model, seed) for seed in seeds]
    assert len(set(scores)) > 1


class Payday(Toy):
    """One step, which pays the seed of the episode."""

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return super().reset(seed=seed)

    def step(self, action):
        return self.observe(), float(self.seed), True, False, {}


gym.register("Payday-v0", Payday)


def test_validation_and_test_always_play_the_same_episodes_and_training_others():
    model, quiet = DQNLightning("Payday-v0"), {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(enable_checkpointing=False, **quiet)
    (validated,), (tested,) = trainer.validate(model, verbose=False), trainer.test(model, verbose=False)
    assert validated["val_reward"] == np.mean(range(20))
    assert tested["test_reward"] == np.mean(range(1000, 1100))
    assert tested["test_reward_std"] == pytest.approx(np.std(range(1000, 1100)), rel=1e-5)  # of all 100
    model.populate(1000)
    played = set(model.buffer.sample(1000).reward)
    assert len(played) > 990
    assert not played & {*range(20), *range(1000, 1100)}


class Long(Toy):
    length = 1500


class Endless(Toy):
    length = np.inf


class Plain(Toy):
    """Ends with the number 1, pays with arrays, and says something else with each step."""

    def step(self, action):
        self.taken += 1
        infos = {"a": 1}, {"a": None}, {"a": "text"}, {"a": {"b": np.arange(self.taken)}}, {}
        return self.observe(), np.float32(1), int(self.taken == 10), 0, infos[self.taken % 5]


gym.register("Long-v0", Long)
gym.register("Endless-v0", Endless)
gym.register("Plain-v0", Plain)


@pytest.mark.parametrize(("env", "score"), [("Long-v0", 1500), ("Plain-v0", 10)])
def test_evaluation_asks_of_an_environment_only_that_its_episodes_end(env, score):
    assert DQNLightning(env).play_episodes(torch.arange(3)).tolist() == [score] * 3


@pytest.mark.filterwarnings("ignore:.*np.bool")
def test_training_accepts_whole_numbers_for_terminated():
    model = small(env="Plain-v0")
    fit(model)
    assert model.buffer.sample(210).done.sum() == 200 / 10 + 1  # the first episode of training begins anew


def test_an_evaluation_that_does_not_end_is_cut(monkeypatch):
    monkeypatch.setattr(dqn_cartpole, "EVAL_STEPS", 40)
    assert DQNLightning("Endless-v0").play_episodes(torch.arange(2)).tolist() == [40, 40]


def test_evaluation_does_not_touch_the_agents_episode():
    model = small()
    state = state_of(model)
    model.play_episodes(torch.arange(5))
    assert same(state_of(model), state)
    assert len(model.buffer) == 0


def test_evaluation_ends_at_the_time_limit():
    assert DQNLightning(episode_length=5).play_episodes(torch.arange(3)).tolist() == [5, 5, 5]


class WithDropout(DQNLightning):
    def make_net(self):
        return nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))


def test_targets_are_made_in_eval_mode():
    model, states = WithDropout(), torch.randn(8, 4)
    batch = Experience(
        states, torch.zeros(8, dtype=torch.int64), torch.ones(8), torch.zeros(8, dtype=torch.bool), states
    )
    assert torch.equal(model.td_targets(batch), model.td_targets(batch))
    assert not torch.equal(model.net(states), model.net(states))  # the agent acts and learns in train mode


class OnlineTargets(DQNLightning):
    def td_targets(self, batch):
        return self.net(batch.new_state).amax(1)


def test_no_gradient_flows_into_targets_of_ones_own():
    model, states = OnlineTargets(), torch.randn(8, 4)
    batch = Experience(
        states, torch.zeros(8, dtype=torch.int64), torch.ones(8), torch.zeros(8, dtype=torch.bool), states
    )
    model.dqn_mse_loss(batch).backward()
    gradient = model.net.net[2].bias.grad.clone()
    targets = model.td_targets(batch).detach()
    model.zero_grad()
    nn.functional.mse_loss(model.net(states)[:, 0], targets).backward()
    torch.testing.assert_close(gradient, model.net.net[2].bias.grad)
