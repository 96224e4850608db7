"""Parts 1 and 2 of dqn_cartpole.py, piece by piece: network, buffers, dataset, agent, algorithm, evaluation."""

import inspect
from collections import defaultdict

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import FixedQ, Toy, fit, same
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


def buffer_of(capacity: int, count: int) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, SPACE, np.random.default_rng(0))
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
        self.epsilon, self.lr, self.net, self.target = [], [], [], []

    def on_train_batch_start(self, trainer, module, *_):
        self.epsilon.append(module.epsilon)
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.net.append(parameters_to_vector(module.net.parameters()).detach().clone())

    def on_train_batch_end(self, trainer, module, *_):
        self.target.append(parameters_to_vector(module.target_net.parameters()).detach().clone())


def test_network_is_the_articles_and_can_be_deeper_and_normalized():
    assert [type(layer) for layer in DQN(4, 2).net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in DQN(4, 2).parameters()] == [(128, 4), (128,), (2, 128), (2,)]
    deep = ImprovedDQN(hidden_size=8, hidden_layers=3).net  # it normalizes what enters every activation
    assert [type(layer) for layer in deep.net] == [nn.Linear, nn.LayerNorm, nn.ReLU] * 3 + [nn.Linear]
    assert [tuple(p.shape) for p in deep.parameters() if p.ndim == 2] == [(8, 4), (8, 8), (8, 8), (2, 8)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_network_takes_any_dtype_and_shape(dtype):
    q_values = DQN(4, 3)(torch.ones(5, 2, 2, dtype=getattr(torch, dtype)))
    assert (q_values.shape, q_values.dtype) == ((5, 3), torch.float32)


# The replay buffer and its dataset


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_the_oldest_experience_goes_first(capacity):
    for count in range(1, 30):
        buffer = buffer_of(capacity, count)
        assert len(buffer) == min(capacity, count)
        assert sum(array.nbytes for array in buffer.arrays) == capacity * (2 * 4 * 4 + 13)  # as its docstring says
        assert list(held(buffer)) == list(range(count))[-capacity:]


def test_sample_is_uniform_and_with_replacement():
    buffer = buffer_of(10, 17)
    samples = np.stack([buffer.sample(3).reward for _ in range(5000)])
    rewards, counts = np.unique(samples, return_counts=True)
    assert rewards.tolist() == list(range(7, 17))
    assert counts == pytest.approx(np.full(10, 1500), abs=165)  # 4.5 standard deviations
    assert np.mean([len(set(sample)) < 3 for sample in samples.tolist()]) == pytest.approx(1 - 0.9 * 0.8, abs=0.03)
    assert buffer.sample(31).reward.shape == (31,)  # more than it holds


def test_an_epoch_is_as_many_minibatches_as_the_dataset_says_each_of_rows_that_belong_together():
    dataset = RLDataset(buffer_of(300, 400), batch_size=7, steps=9)
    batches = list(DataLoader(dataset, batch_size=None))
    assert len(dataset) == len(batches) == 9
    for batch in batches:
        assert batch._fields == ("state", "action", "reward", "done", "new_state")
        assert (batch.action.dtype, batch.reward.dtype, batch.done.dtype) == (torch.int64, torch.float32, torch.bool)
        rows = [[field.tolist() for field in row] for row in zip(*batch)]
        assert rows == [[np.asarray(field).tolist() for field in number(int(row[2]))] for row in rows]
    assert len({tuple(batch.reward.tolist()) for batch in batches}) == 9  # each is drawn anew


# The agent


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_agent_explores_with_probability_epsilon_and_is_greedy_otherwise(epsilon):
    agent = agent_of("Acrobot-v1")
    actions = [agent.get_action(FixedQ(0.0, 0.0, 1.0), epsilon, "cpu") for _ in range(3000)]
    assert {type(action) for action in actions} == {int}
    for action, probability in enumerate([epsilon / 3, epsilon / 3, 1 - epsilon * 2 / 3]):
        assert actions.count(action) / 3000 == pytest.approx(probability, abs=0.04 * (epsilon > 0))


def test_agent_stores_every_step_it_plays_and_a_termination_is_not_bootstrapped():
    agent = agent_of()
    states = [agent.state]
    while not agent.play_step(RIGHT)[1]:  # always to the right: falls after about ten steps
        states.append(agent.state)
    played = agent.replay_buffer
    assert [(e.action, e.reward, e.done) for e in played] == [(1, 1.0, False)] * (len(states) - 1) + [(1, 1.0, True)]
    assert np.array_equal([e.state for e in played], states)
    assert np.array_equal([e.new_state for e in played[:-1]], states[1:])
    assert abs(played[-1].new_state[2]) > 0.2  # the pole's angle, and not that of the next episode
    assert (abs(agent.state) < 0.05).all()  # begun anew


def test_time_limit_still_bootstraps():
    agent = agent_of(gym.make("MountainCar-v0", max_episode_steps=30))  # too few to get up the hill
    over = [agent.play_step(FixedQ(0.0, 0.0, 1.0))[1] for _ in range(60)]
    assert over == ([False] * 29 + [True]) * 2  # over for the agent
    assert not any(e.done for e in agent.replay_buffer)  # not for the value
    assert agent.replay_buffer[29].new_state[1] != 0  # the last state of the cut episode, in which the car moves
    assert agent.state[1] == agent.replay_buffer[30].state[1] == 0  # begun anew: the car stands


def test_episodes_and_exploration_follow_from_the_generator_unless_reset_is_given_a_seed():
    def play(seed: int) -> list[tuple]:
        agent = agent_of(seed=seed)
        for _ in range(60):  # a few episodes
            agent.play_step(RIGHT, epsilon=0.8)
        return [(e.action, *e.state) for e in agent.replay_buffer]

    assert play(1) == play(1)
    assert not set(play(1)) & set(play(2))
    agent = agent_of()
    agent.reset(7)
    assert np.array_equal(agent.state, gym.make("CartPole-v0").reset(seed=7)[0])


class Odd(Toy):
    """Returns always the same array, changed in place, and pays and tells the number of the step."""

    array = np.zeros(3, np.float32)
    length = 4

    def observe(self):
        self.array[:] = self.taken
        return self.array

    def step(self, action):
        observation, _, *over, _ = super().step(action)
        return observation, self.taken, *over, {"taken": self.taken}


def test_observations_are_copied_and_the_last_steps_info_and_the_scores_are_kept():
    agent = agent_of(Odd())
    infos = [[agent.play_step(RIGHT), agent.info][1] for _ in range(6)]
    assert infos == [{"taken": taken} for taken in (1, 2, 3, 4, 1, 2)]
    assert (list(agent.scores), agent.score) == ([10], 3)
    assert [(e.state[0], e.new_state[0]) for e in agent.replay_buffer] == [(n, n + 1) for n in (0, 1, 2, 3, 0, 1)]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("number", [np.nan, -np.inf, 1e39])  # float32 holds up to 3.4e38
@pytest.mark.parametrize("where", ["first observation", "observation", "reward"])
def test_a_number_that_is_not_finite_is_named(where, number):
    class Broken(Toy):
        def observe(self):
            now = "observation" if self.taken else "first observation"
            return super().observe() * (number if where == now else 1)

        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, number if where == "reward" else reward, *rest

    with pytest.raises(FloatingPointError, match=rf"{where.removeprefix('first ')} is not finite: .*(nan|inf)"):
        agent_of(Broken()).play_step(RIGHT)


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
    model = by_hand([1, 3], [0, 0])  # no gradient flows into targets of one's own either
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
                assert abs(float(reward_) - reward) <= max(1e-6 * magnitude, 1e-43)  # where float32 underflows
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
    assert dict(model.hparams) == {name: p.default for name, p in inspect.signature(DQNLightning).parameters.items()}
    more = {"n_step": 5, "layer_norm": True, "lr_decay": True, "lr": 1e-3}
    assert dict(ImprovedDQN(lr=1e-3).hparams) == model.hparams | more


def test_training_is_adams_after_a_warm_start_at_random_and_plays_a_step_for_each_minibatch():
    model = small()
    model.populate(250)
    assert len(model.buffer) == 250
    assert 0.4 < model.buffer.sample(1000).action.mean() < 0.6
    assert (np.abs(model.agent.state) < 0.05).all()
    assert (model.avg_reward, model.agent.play_step(model.net)[0], model.avg_reward) == (0, 1, 1)  # those of training
    model = small(warm_start_steps=150, steps_per_epoch=7, lr=0.02)
    trainer = fit(model, 3)
    assert (trainer.global_step, len(model.buffer)) == (21, 150 + 21)
    (group,) = trainer.optimizers[0].param_groups
    assert (type(trainer.optimizers[0]), group["lr"]) == (torch.optim.Adam, 0.02)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.net.parameters()}


def test_a_training_step_acts_learns_copies_logs_and_updates_in_this_order():
    model, events = small(), []
    model.populate(100)
    step = ["sample", "play_step", "dqn_mse_loss", "sync_target", "log_step", "on_before_zero_grad"]
    for owner, name in zip([model.buffer, model.agent] + [model] * 4, step):
        method = getattr(owner, name)
        setattr(owner, name, lambda *args, name=name, method=method: [events.append(name), method(*args)][1])
    fit(model)
    assert events == step * 10


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
    watch = Watch()  # here and below the Trainer goes on for an epoch more
    fit(small(max_epochs=2, eps_start=1.0, eps_end=0.2, eps_fraction=fraction), 3, watch)
    done = np.minimum(np.arange(30), 20)
    assert watch.epsilon == pytest.approx(np.maximum(0.2, 1 - 0.8 * done / steps))


def test_the_learning_rate_falls_to_0_epoch_by_epoch_in_part_2_alone():
    for module, more, falls in (ImprovedDQN, {}, 1), (ImprovedDQN, {"lr_decay": False}, 0), (DQNLightning, {}, 0):
        watch = Watch()
        fit(small(module, lr=0.01, max_epochs=4, **more), 5, watch)
        assert watch.lr == pytest.approx(0.01 - 0.0025 * falls * (np.arange(50) // 10))


def test_every_episode_is_one_point_and_the_other_curves_have_one_every_50_steps():
    model = by_hand([2, 3], [0, 0], steps_per_epoch=120, sync_rate=1000, lr=0.1)
    model.populate(100)
    played = model.agent.replay_buffer = Recorder()
    curves, logger = defaultdict(list), DummyLogger()
    logger.log_metrics = lambda metrics, step: [curves[name].append((step, metrics[name])) for name in metrics]
    fit(model, logger=logger)
    ends = [step for step, e in enumerate(played) if e.done]
    scores = np.diff([-1, *ends])  # each step has a reward of 1
    assert curves["total_reward"] == list(zip(ends, scores))
    assert curves["avg_reward"] == [(end, pytest.approx(scores[:i].mean())) for i, end in enumerate(ends, 1)]
    assert {step for name in ("train_loss", "epsilon") for step, _ in curves[name]} == {0, 50, 100}
    assert curves["q_mean"] == [(0, 3), (50, 3), (100, 3)]  # of the best action, by the target network:
    assert model.net.q_values.min() > 3.5  # this one was copied in the first step alone


# Evaluation


class Payday(Toy):
    """One step, or two if the seed of the episode is odd, each of which pays the seed."""

    def step(self, action):
        self.length = 1 + self.np_random_seed % 2
        observation, _, *rest = super().step(action)
        return observation, float(self.np_random_seed), *rest


gym.register("Payday-v0", Payday)


def test_validation_and_test_always_play_the_same_episodes_and_training_others():
    model = small(env="Payday-v0", replay_size=1000)
    trainer = pl.Trainer(enable_checkpointing=False, logger=False, enable_progress_bar=False, accelerator="cpu")
    validated, tested = (np.mean([seed * (1 + seed % 2) for seed in seeds]) for seeds in (range(20), range(1000, 1100)))
    for _ in range(2):
        assert trainer.validate(model, verbose=False)[0]["val_reward"] == validated
        assert trainer.test(model, verbose=False)[0]["test_reward"] == tested
    model.populate(1000)
    played = set(model.buffer.sample(3000).reward)
    assert len(played) > 500
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
