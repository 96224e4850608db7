"""The programs in tests/examples extend dqn_cartpole.py from files of their own: they train, resume and combine."""

import ast
import functools
import os
import pkgutil
import re
import runpy
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import FORKS, RUN, SCRIPT, FixedQ, Toy, finish, fit, last_of, load, main, same, scalars, start

import dqn_cartpole
from dqn_cartpole import Experience, ImprovedDQN, NStepExperience, RLDataset

EXAMPLES = {path.stem: path.read_text() for path in sorted(Path(SCRIPT.parent, "tests", "examples").glob("*.py"))}
RUNS = [name for name in EXAMPLES if name not in ("sweep", "atari")]
SHORT = "--max_epochs 3 --steps_per_epoch 30 --warm_start_steps 60 --replay_size 100 --episode_length 25"
FLAGS = {"minimal": "--max_epochs 2", "atari": f"{SHORT} --batch_size 4"}
SETTINGS = "--no-lr_decay --n_step 1", "--no-layer_norm --batch_size 32 --sync_rate 7 --eps_fraction 0.5 --seed 7"
ONES, STATES = torch.ones(2), torch.ones(2, 4)  # two experiences with a reward of 1, the second with a terminal state:
ENDS = NStepExperience(STATES, torch.tensor([0, 0]), ONES, torch.tensor([False, True]), STATES, ONES / 2)
FORKS.set_forkserver_preload(["test_examples", "torch.utils.tensorboard", "minatar.gym"])


def example(name: str) -> Any:
    """What file:name is in tests/examples."""
    return pkgutil.resolve_name(f"tests.examples.{name}")


Fast = example("fast:Fast")
Both = type("Both", (example("dueling:Dueling"), example("prioritized:Prioritized")), {})
Many = type("Many", (Fast, example("boltzmann:Boltzmann"), example("noisy:Noisy"), Both), {})


def begin(name: str, flags: str, folder: Path) -> BaseProcess:
    """`python -m tests.examples.NAME FLAGS` in a process of its own and in `folder`."""
    return start("", folder, functools.partial(program, name, flags))


def program(name: str, flags: str) -> None:
    sys.argv = [name, *flags.split()]
    if name in EXAMPLES:
        runpy.run_module(f"tests.examples.{name}", run_name="__main__", alter_sys=True)
    else:
        dqn_cartpole.main(globals()[name])
    sys.exit()


def different(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """The entries of two checkpoints or of two sets of curves that are not the same."""
    return {name for name in a.keys() | b.keys() if name not in a or name not in b or not same(a[name], b[name])}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_says_what_it_is_and_uses_only_public_names(name):
    assert len(EXAMPLES[name].splitlines()) <= {"minimal": 40, "fast": 45}.get(name, 60)
    assert f"\n    python -m tests.examples.{name}" in EXAMPLES[name].split('"""')[1]
    nodes = list(ast.walk(ast.parse(EXAMPLES[name])))
    imported = {alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    assert "dqn_cartpole" not in imported  # whose names it could then change
    used = imported | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    private = {name for name in used if re.fullmatch(r"_[a-z]\w*", name)}
    assert private <= {"_fields", "_make", "_replace", "_asdict"}  # the public methods of a namedtuple


@pytest.mark.parametrize("name", [*RUNS, "Both", "Many", pytest.param("atari", marks=pytest.mark.slow)])
def test_an_example_trains_and_a_killed_one_resumes_exactly(name, tmp_path):
    if name == "atari":
        pytest.importorskip("ale_py")
    whole, killed, flags = tmp_path / "whole", tmp_path / "killed", FLAGS.get(name, SHORT)
    exit_code, output, errors = finish(begin(name, flags, whole), whole)
    assert exit_code == 0, errors
    assert re.search(r"step [\d,]+: val_reward -?[\d.]+\n(.*\n)*.*test_reward\D+[\d.]+", output)
    curves = scalars(whole / RUN)
    assert curves.keys() >= {"avg_reward", "train_loss", "val_reward", "epsilon", "lr", "q_mean", "test_reward"}
    process, last = begin(name, flags, killed), last_of(killed / RUN)
    while not (last.exists() and killed.with_suffix(".stdout").read_text().count(": val_reward") >= 2):
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    exit_code, _, errors = finish(begin(name, f"{flags[:14]} --resume 0", killed), killed)  # with its --max_epochs
    assert exit_code == 0, errors
    ours, theirs = load(last), load(last_of(whole / RUN))
    for state in (*ours["callbacks"].values(), *theirs["callbacks"].values()):
        del state["current_score"]  # of the last validation that improved; nothing reads it
    assert different(ours, theirs) == set()
    assert different(scalars(killed / RUN), curves) == set()


@pytest.mark.parametrize(("flags", "clip"), list(zip(SETTINGS, (0.5, None))))
def test_fast_is_the_default_program_bit_for_bit(flags, clip, folder):
    results = [main(f"{SHORT} {flags}", each, gradient_clip_val=clip) for each in (ImprovedDQN, Fast)]
    assert results[0] == results[1]
    default, fast = Path("lightning_logs/version_0"), Path("lightning_logs/version_1")
    for file in ("checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        unlike = different(load(fast / file), load(default / file))
        assert unlike - {"callbacks"} == {"class", "loops"}  # callbacks: the name of the folder
    assert different(scalars(fast), scalars(default)) <= {"epoch", "test_reward"}


def test_only_legal_actions_are_played_and_valued():
    model = example("action_masks:ActionMasks")()
    model.populate(100)
    for _ in range(100):
        model.agent.play_step(model.net, 0.5)
    states, actions = model.buffer.arrays.state[:200], model.buffer.arrays.action[:200]
    assert states[range(200), actions - 6].all()
    assert states[range(200), model(torch.from_numpy(states)).argmax(1) - 6].all()  # as in an evaluation
    assert model.td_targets(next(iter(RLDataset(model.buffer, 50)))).isfinite().all()


def test_priorities_decide_what_is_sampled():
    buffer = example("prioritized:PrioritizedBuffer")(1, 0.9, 10, gym.spaces.Box(0, 9, (1,)), np.random.default_rng(0))
    for number in range(25):  # of which 15 to 24 are kept, 20 in the first place
        buffer.append(Experience(0, number, 0, False, 0))
    assert set(buffer.sample(500).action) == set(range(15, 25))
    buffer.arrays.priority[7] = 9  # as high as the other nine together
    sample = buffer.sample(1000)
    assert (sample.action == 17).mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(sample.place == 7, sample.action == 17)
    buffer.append(Experience(0, 25, 0, False, 0))
    assert buffer.arrays.priority[5] == 9  # the highest, for the newest


def test_errors_become_priorities_and_frequent_experiences_count_less():
    model = example("prioritized:Prioritized")()
    model.net, model.target_net = FixedQ(5, 0), FixedQ(0, 0)  # both errors are 4
    batch = example("prioritized:PrioritizedExperience")(*ENDS, torch.tensor([1, 3]), torch.tensor([1.0, 32.0]))
    assert model.dqn_mse_loss(batch).item() == pytest.approx((16 + 16 * 32**-0.4) / 2)  # beta is 0.4 at first
    assert model.buffer.arrays.priority[:4] == pytest.approx([0, 4**0.6, 0, 4**0.6])


def test_double_dqn_huber_and_soft_updates_are_what_their_formulas_say():
    double, huber = example("double_dqn:DoubleDQN")(), example("huber:Huber")(clip_error=2.0)
    double.net, double.target_net = FixedQ(1, 2), FixedQ(5, 3)
    assert double.td_targets(ENDS).tolist() == [1 + 0.5 * 3, 1]
    huber.net, huber.target_net = FixedQ(-9, 0), FixedQ(0, 0)  # both errors are 10
    assert huber.dqn_mse_loss(ENDS).item() == 2 * (10 - 2 / 2)
    soft = example("soft_updates:SoftUpdates")(tau=0.1)
    soft.net, soft.target_net = FixedQ(10, 0), FixedQ(0, 0).requires_grad_(False)
    soft.sync_target()
    assert soft.target_net.q_values.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["quantile:Quantile", "c51:C51"])
def test_a_distribution_has_the_mean_of_the_returns(name):
    model = example(name)(hidden_size=16)
    optimizer = torch.optim.Adam(model.net.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        model.dqn_mse_loss(ENDS._replace(reward=torch.tensor([10.0, 30.0]), discount=0 * ONES)).backward()
        optimizer.step()
    assert model(STATES)[:, 0].tolist() == pytest.approx([20, 20], abs=2)


def test_a_bonus_is_learned_from_but_not_shown():
    model = example("count_bonus:Counting")(env="CartPole-v1", n_step=1)
    ends = [step for step in range(1, 201) if model.agent.play_step(model.net, 1.0)[1]]
    assert list(model.agent.scores) == np.diff([0, *ends]).tolist()
    bonuses = model.buffer.arrays.reward[:200] - 1
    assert bonuses[0] == pytest.approx(0.1)
    assert 0 < bonuses.min() < 0.05  # for what was seen often


class Single(Toy):
    opened = 0  # at most one can be

    def __init__(self) -> None:
        assert Single.opened == 0
        Single.opened = 1

    def close(self) -> None:
        Single.opened = 0


def test_one_simulator_is_enough(folder):
    gym.register("Single-v0", Single)
    assert main(f"{SHORT} --env Single-v0", example("one_simulator:OneSimulator")) == {"test_reward": Toy.length}
    assert Single.opened == 0


def test_each_update_follows_several_steps(folder):
    main(SHORT, example("updates:Updates"))
    checkpoint = load(last_of(RUN))
    assert checkpoint["buffer"][0] == 60 + 4 * checkpoint["global_step"]
    assert [score for _, score in scalars(RUN)["total_reward"]] == checkpoint["episode"][-1]


def test_data_replace_the_random_steps_or_the_agent(folder):
    example("offline:record")("data.npz", steps=150)
    for offline, steps in ((True, 150), (False, 170)):
        model = example("offline:Offline")(data="data.npz", offline=offline, steps_per_epoch=20)
        fit(model)
        assert model.buffer.appended == steps
        assert np.array_equal(model.buffer.arrays.state[:150], np.load("data.npz")["state"])


def test_the_network_normalizes_its_observations():
    model, seen = example("normalize:Normalize")(env="MountainCar-v0"), []
    model.populate(200)
    model.net.net.register_forward_hook(lambda _, x, y: seen.extend([x[0].mean(0), x[0].std(0)]))
    model(torch.from_numpy(model.buffer.arrays.state[:200]))
    assert torch.cat(seen).tolist() == pytest.approx([0, 0, 1, 1], abs=1e-3)


def test_the_opponent_is_an_older_copy_and_games_are_legal():
    model = example("self_play:SelfPlay")(steps_per_epoch=30, warm_start_steps=50)
    fit(model, 2)
    states, actions = model.buffer.arrays.state[:110], model.buffer.arrays.action[:110]
    assert states[range(110), 18 + actions].all()
    assert set(states[:, :9].sum(1) - states[:, 9:18].sum(1)) == {-1, 0}
    assert not same(model.opponent.state_dict(), model.net.state_dict())


def test_a_sweep_ends_with_a_table(folder, monkeypatch):
    sweep = pkgutil.resolve_name("tests.examples.sweep")
    monkeypatch.setattr(sweep, "LEARNING_RATES", (1e-3, 1e-2))
    monkeypatch.setattr(sweep, "N_STEPS", (3,))
    table = sweep.sweep(*SHORT.split(), "--max_epochs", "1")
    assert re.fullmatch(r".*\n.*\n\| 0.001 \| \d+\.\d\d \|\n\| 0.01 \| \d+\.\d\d \|", table)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("action_masks", "mountain_car")])
def test_an_example_learns(name, tmp_path):
    bar = {"catch": 0.8, "convolution": 0.8, "recurrent": 100, "self_play": 0.6}.get(name, 150)
    _, output, errors = finish(begin(name, "", tmp_path / "run"), tmp_path / "run")
    assert max(map(float, re.findall(r": val_reward (-?[\d.]+)", output))) >= bar, errors
