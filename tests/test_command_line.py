"""What `python dqn_cartpole.py` reads, prints and writes."""

import contextlib
import fcntl
import inspect
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import RUN, SCRIPT, Toy, finish, last_of, load, main, run, run_script, same, scalars, start
from PIL import Image, ImageChops
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.writer import FileWriter

import dqn_cartpole
from dqn_cartpole import DQNLightning, ImprovedDQN, parse_args

EPOCHS, STEPS = 60, 60 * 13  # of the runs that several tests look at; no multiple of the validation interval
SHORT = "--max_epochs 3 --warm_start_steps 300 --replay_size 400 --eps_last_frame 30"
ARGUMENTS = inspect.signature(DQNLightning).parameters | inspect.signature(ImprovedDQN).parameters
DEFAULTS = {name: argument.default for name, argument in ARGUMENTS.items() if name != "kwargs"}
Run = namedtuple("Run", ["folder", "run", "stdout", "stderr"])


@pytest.fixture(scope="session")
def first(tmp_path_factory) -> Run:
    """The default command, shortened, with its output going to files."""
    folder = tmp_path_factory.mktemp("first")
    done = run_script("--max_epochs", str(EPOCHS), cwd=folder)
    assert done.returncode == 0, done.stderr
    return Run(folder, folder / RUN, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def on_terminal(tmp_path_factory) -> Run:
    """The same command once more, on a terminal of the usual 80 columns."""
    folder, output = tmp_path_factory.mktemp("terminal"), b""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, SCRIPT, "--max_epochs", str(EPOCHS)]
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        while chunk := read(ours):
            output += chunk
    os.close(ours)
    assert process.returncode == 0, output.decode()
    return Run(folder, folder / RUN, output.decode().replace("\r\n", "\n"), "")


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""


# What a run writes


def test_a_run_writes_one_folder(first):
    assert [path.name for path in first.folder.iterdir()] == ["lightning_logs"]
    assert [path.name for path in (first.folder / "lightning_logs").iterdir()] == ["version_0"]
    names = {re.sub(r"(?<=tfevents).*", "", path.name) for path in first.run.iterdir()}
    assert names == {"events.out.tfevents", "hparams.yaml", "agent.gif", "checkpoints"}
    assert {path.name for path in (first.run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_every_curve_is_there(first):
    curves = scalars(first.run)
    for name in ("reward", "train_loss", "epsilon", "lr", "q_mean"):
        assert [step for step, _ in curves[name]] == list(range(0, STEPS, 50))
        assert np.isfinite([value for _, value in curves[name]]).all()
    assert len(curves["avg_reward"]) == len(curves["total_reward"]) > 5
    for n, (step, _) in enumerate(curves["total_reward"], 1):  # a point at the end of every episode
        assert step + 1 == sum(score for _, score in curves["total_reward"][:n])
    assert len(curves["val_reward"]) == len(set(curves["test_reward"])) == 1


def test_curves_say_what_cartpole_pays_and_what_was_asked_for(first):
    curves = scalars(first.run)
    assert {value for _, value in curves["reward"]} == {1.0}
    assert curves["lr"][0] == (0, pytest.approx(DEFAULTS["lr"]))
    for step, epsilon in curves["epsilon"]:
        assert epsilon == pytest.approx(0.7 - (0.7 - 0.02) * step / (EPOCHS * 13), abs=1e-5)


def test_every_finished_episode_is_one_point(first):
    """CartPole pays 1 a step, so the score of an episode is the number of steps since the last one ended."""
    points = scalars(first.run)["total_reward"]
    assert [b[0] - a[0] for a, b in pairwise(points)] == [value for _, value in points[1:]]
    assert points[0][0] in (points[0][1], points[0][1] - 1)  # whether steps are counted from 0 or 1
    assert 0 <= STEPS - sum(value for _, value in points) < 200  # the rest is the episode still running


def test_avg_reward_is_the_mean_of_the_last_100_episodes(folder):
    main("--max_epochs 110 --episode_length 12")  # short episodes: more than 100 of them
    curves = scalars(RUN)
    scores = [value for _, value in curves["total_reward"]]
    assert len(scores) > 110
    assert len(set(scores)) > 1
    means = [np.mean(scores[max(0, i - 99) : i + 1]) for i in range(len(scores))]
    assert [value for _, value in curves["avg_reward"]] == pytest.approx(means, rel=1e-4)


def test_every_hyperparameter_and_the_seed_are_written(first):
    written = yaml.safe_load((first.run / "hparams.yaml").read_text())
    assert written == DEFAULTS | {"seed": 0, "max_epochs": EPOCHS, "val_check_interval": 520, "grad_clip": None}


def summaries(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"images": 0}).Reload()


def test_tensorboard_compares_hyperparameters_by_test_reward(first):
    plugins = summaries(first.run).summary_metadata.values()
    assert "hparams" in {data.plugin_data.plugin_name for data in plugins}
    experiment = summaries(first.run).summary_metadata["_hparams_/experiment"].plugin_data.content
    assert b"test_reward" in experiment


def frames(gif: Path) -> list[Image.Image]:
    with Image.open(gif) as film:
        return [(film.seek(n), film.convert("RGB"))[1] for n in range(film.n_frames)]


def test_the_film_shows_the_agent(first):
    shown = frames(first.run / "agent.gif")
    assert len(shown) >= 4
    assert ImageChops.difference(shown[0], shown[-1]).getbbox()


def test_tensorboard_shows_the_film(first):
    (image,) = summaries(first.run).Images("video")
    assert image.encoded_image_string == (first.run / "agent.gif").read_bytes()


def test_all_is_on_the_disk_when_main_returns(folder, monkeypatch):
    """A notebook goes on after the run, perhaps in another folder."""
    calls = []
    for name in ("add_summary", "flush", "close"):
        method = getattr(FileWriter, name)
        monkeypatch.setattr(
            FileWriter, name, lambda *args, name=name, method=method: (calls.append(name), method(*args))
        )
    main(SHORT)
    assert calls[-1] in ("flush", "close")


def test_validations_come_every_interval_rounded_up_to_epochs(folder):
    main("--max_epochs 9 --val_check_interval 30")
    points = scalars(RUN)["val_reward"]
    assert [round(step / 13) for step, _ in points] == [3, 6, 9]
    assert load(last_of(RUN))["global_step"] == 9 * 13


def test_last_checkpoint_is_from_the_end_of_the_run(first):
    assert load(last_of(first.run))["global_step"] == STEPS


def test_best_checkpoint_is_the_one_that_is_tested(first):
    model = ImprovedDQN.load_from_checkpoint(last_of(first.run).with_name("best.ckpt"), weights_only=True)
    tested = scalars(first.run)["test_reward"][-1][1]
    assert model.play_episodes(torch.arange(1000, 1100)).mean().item() == pytest.approx(tested, rel=1e-5)


def test_runs_are_numbered(folder):
    for _ in range(2):
        main(SHORT)
    assert {path.name for path in Path("lightning_logs").iterdir()} == {"version_0", "version_1"}


def test_runs_started_together_have_a_folder_each_and_are_as_if_alone(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = [start(f"{SHORT} --seed {seed}", together) for seed in range(4)]
    for process, folder in [*((each, together) for each in processes), (start(f"{SHORT} --seed 2", alone), alone)]:
        code, _, errors = finish(process, folder)
        assert code == 0, errors
    ends = [load(last_of(run)) for run in (together / "lightning_logs").iterdir()]
    seeds = [end["callbacks"]["Checkpoints"]["settings"]["seed"] for end in ends]
    assert sorted(seeds) == [0, 1, 2, 3]
    assert same(ends[seeds.index(2)], load(last_of(alone / RUN)))


# Randomness


def test_the_same_command_twice_is_the_same_bit_for_bit(first, on_terminal):
    assert same(load(last_of(first.run)), load(last_of(on_terminal.run)))
    assert scalars(first.run) == scalars(on_terminal.run)


def test_validation_leaves_training_as_it_was(folder):
    for interval in (13, 156):
        main(f"--max_epochs 12 --val_check_interval {interval}")
    often, seldom = (Path("lightning_logs", f"version_{n}") for n in range(2))
    assert len(scalars(often)["val_reward"]) == 12
    assert same(load(last_of(often))["state_dict"], load(last_of(seldom))["state_dict"])
    assert scalars(often)["total_reward"] == scalars(seldom)["total_reward"]


# The console


def test_output_ends_with_the_test_reward_and_two_commands(first):
    reward, tensorboard, command = first.stdout.splitlines()[-3:]
    mean = re.fullmatch(r"test_reward: (\d+\.\d+) \+/- \d+\.\d+ over 100 episodes", reward).group(1)
    assert float(mean) == pytest.approx(scalars(first.run)["test_reward"][-1][1], abs=0.0051)
    assert tensorboard == "tensorboard --logdir lightning_logs"
    assert command == f"python {SCRIPT} --test {RUN}/checkpoints/best.ckpt"


def test_the_command_it_prints_works_and_writes_nothing(first, monkeypatch, capfd):
    monkeypatch.chdir(first.folder)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    python, script, *flags = shlex.split(first.stdout.splitlines()[-1])
    assert (python, script) == ("python", str(SCRIPT))
    main(shlex.join(flags))
    output = capfd.readouterr()
    assert (output.out.splitlines()[0], output.err) == (first.stdout.splitlines()[-3], "")  # the result, once more
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_a_run_warns_of_nothing_and_has_a_line_for_every_validation(first):
    assert first.stderr == ""
    (line,) = (line for line in first.stdout.splitlines() if line.startswith("step "))
    ((_, value),) = scalars(first.run)["val_reward"]
    assert line == f"step 520: val_reward {value:.2f}" + (" (solved)" if value >= 195 else "")


def test_it_says_what_runs_where(first):
    begun = first.stdout.splitlines()[0]
    assert all(word in begun for word in ("CartPole-v0", "cpu", "lightning_logs/version_0"))


def test_one_bar_for_the_whole_run_on_a_terminal(on_terminal):
    drawn = [text for text in re.split(r"[\r\n]", on_terminal.stdout) if "step/s" in text]
    counts = [int(re.search(rf"(\d+)/{STEPS} ", text).group(1)) for text in drawn]
    assert counts == sorted(counts)
    assert counts[-1] == STEPS
    assert len(drawn) >= 2
    assert max(map(len, drawn)) <= 80
    assert re.search(r"avg_reward \d.*epsilon \d", drawn[-1])
    assert "warn" not in on_terminal.stdout.lower()


def test_a_validation_at_the_threshold_is_called_solved(folder, capfd):
    gym.register("LowBar-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=200, reward_threshold=5)
    main("--env LowBar-v0 --max_epochs 10 --val_check_interval 130")
    assert re.search(r"^step 130: val_reward [\d.]+ \(solved\)$", capfd.readouterr().out, re.M)


class Drawn(Toy):
    """Something to see, unless `broken` is the mode that is asked for."""

    metadata = {"render_modes": ["rgb_array", "human"]}  # noqa: RUF012
    shown = 0

    def __init__(self, broken: str = "", render_mode: str | None = None) -> None:
        self.broken, self.render_mode = broken, render_mode

    def reset(self, *, seed=None, options=None):
        Drawn.shown = 0
        if self.render_mode and self.render_mode == self.broken:
            raise OSError("no display")
        return super().reset(seed=seed)

    def step(self, action):
        Drawn.shown += self.render_mode == "human"
        return super().step(action)

    def render(self):
        return np.full((40, 60, 3), 20 * self.taken, np.uint8)


class Undrawn(Toy):
    """An environment that nobody taught to draw itself."""

    metadata: dict = {}  # noqa: RUF012


gym.register("Drawn-v0", Drawn)
gym.register("NoFilm-v0", Drawn, kwargs={"broken": "rgb_array"})
gym.register("NoWindow-v0", Drawn, kwargs={"broken": "human"})
gym.register("Undrawn-v0", Undrawn)


@pytest.mark.parametrize("env", ["NoFilm-v0", "Undrawn-v0"])
def test_a_film_that_fails_costs_one_line_after_the_result(folder, capfd, env):
    main(f"{SHORT} --env {env}")
    *_, result, _, _, failed = capfd.readouterr().out.splitlines()
    assert result == "test_reward: 10.00 +/- 0.00 over 3 episodes"
    assert "Error" in failed


def test_a_window_that_fails_costs_neither_the_result_nor_the_film(folder, capfd):
    with contextlib.suppress(OSError):
        main(f"{SHORT} --env NoWindow-v0 --render")
    assert "test_reward: 10.00" in capfd.readouterr().out
    assert len(frames(RUN / "agent.gif")) == 5


def test_the_film_is_every_other_frame_of_the_first_test_episode(folder):
    main(f"{SHORT} --env Drawn-v0")
    shown = [picture.getpixel((150, 150))[0] for picture in frames(RUN / "agent.gif")]
    assert shown == pytest.approx([0, 40, 80, 120, 160], abs=8)


def test_render_plays_an_episode_in_a_window(first, folder):
    main(f"{SHORT} --env Drawn-v0 --render")
    best = RUN / "checkpoints" / "best.ckpt"
    main(f"--test {best} --render")
    assert Drawn.shown == 10


# Flags


def test_help_shows_every_flag_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        parse_args(["-h"])
    assert ended.value.code == 0
    one_line_each = re.sub(r"\n {8,}", " ", capsys.readouterr().out)
    shown = dict(re.findall(r"^ +--(\w+)[ ,].*\(default: (.*)\)$", one_line_each, re.M))
    expected = DEFAULTS | {"gpus": 0, "num_nodes": 1, "seed": 0, "max_epochs": 1200, "val_check_interval": 520}
    expected |= {"grad_clip": None, "render": False}
    assert {name: shown.get(name) for name in expected} == {name: str(value) for name, value in expected.items()}
    assert {"resume", "test"} < shown.keys()


EFFECTIVE = [
    "--env=FrozenLake-v1",
    "--episode_length=15",
    "--batch_size=20",
    "--lr=0.003",
    "--gamma=0.9",
    "--sync_rate=3",
    "--tau=0.5",
    "--replay_size=310",
    "--warm_start_steps=320",
    "--sample_size=150",
    "--eps_start=0.5",
    "--eps_end=0.2",
    "--eps_last_frame=10",
    "--hidden_size=64",
    "--hidden_layers=2",
    "--lr_schedule=linear",
    "--lr_schedule=constant",
    "--no-layer_norm",
    "--n_step=2",
    "--double_dqn",
    "--clip_error=0.5",
    "--grad_clip=0.01",
    "--seed=1",
    "--max_epochs=4",
]


def weights_of(flags: str) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dqn_cartpole, "film", lambda *_: b"")
        main(flags)
    return load(last_of(max(Path("lightning_logs").iterdir())))["state_dict"]


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What a short run ends with, to which those with one more flag are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        return weights_of(SHORT)


def test_without_another_flag_a_short_run_is_the_same(folder, plain_weights):
    assert same(weights_of(SHORT), plain_weights)


@pytest.mark.parametrize("flag", EFFECTIVE)
def test_every_flag_changes_the_run(folder, plain_weights, flag):
    assert not same(weights_of(f"{SHORT} {flag}"), plain_weights)


def test_every_hyperparameter_is_a_flag_that_changes_the_run():
    assert DEFAULTS.keys() <= {re.sub("^--(no-)?|=.*", "", flag) for flag in EFFECTIVE}


# Bad input

BAD_INPUT = """
--gamma lots
--batch_size 1.5
--batch_size 0
--batch_size 201
--sample_size 0
--sample_size 500 --replay_size 400
--warm_start_steps 200
--warm_start_steps 0
--replay_size 0
--lr_schedule step
--double_dqn 1
--episode_length 4
--episode_length 0
--sync_rate 0
--hidden_layers 0
--hidden_size 0
--n_step 0
--eps_last_frame 0
--n_step -1
--max_epochs 0
--max_epochs -1
--val_check_interval 0
--epochs 5
--gpus 999
--gpus -2
--gpus all
--env CartPoll-v0
--env CartPole-v9
--env nonsense
--env ALE/NoSuchGame-v5
--env no_such_module:CartPole-v0
--env Pendulum-v1
--test gone.ckpt
--resume gone.ckpt
--resume gone.ckpt --test gone.ckpt
--resume --test gone.ckpt
""".strip().splitlines()


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(folder, capsys, monkeypatch, flags):
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit) as ended:
        main(flags)
    output = capsys.readouterr()
    assert ended.value.code == 2
    usage, line = output.err.splitlines()
    assert usage.startswith("usage: ")
    assert flags.split()[0] in line or "--sample_size" in line or "unrecognized arguments: 1" in line
    assert output.out == ""
    assert not list(folder.iterdir())


def test_bad_input_ends_the_process_with_2(tmp_path):
    code, output, errors = run("--gpus 999", tmp_path / "run")
    assert (code, output) == (2, "")
    assert "--gpus 999: the number of visible GPUs is" in errors.splitlines()[-1]
    assert not list((tmp_path / "run").iterdir())


def test_a_warm_start_that_leaves_too_few_to_sample_says_what_to_do(folder):
    """Here 33 episodes of 9 steps, of which the time limit takes the last four."""
    with pytest.raises(ValueError, match="cannot sample 200 of 165 experiences: raise --warm_start_steps"):
        main("--env Endless9-v0 --warm_start_steps 300 --episode_length 9")
    main(f"{SHORT} --env Endless9-v0 --episode_length 9 --n_step 1")
    main(f"{SHORT} --env Endless9-v0 --episode_length 9 --warm_start_steps 400")


class Endless9(Toy):
    length = np.inf


gym.register("Endless9-v0", Endless9)


def test_an_environment_that_is_unknown_says_how_to_name_its_module(capsys):
    with pytest.raises(SystemExit):
        main("--env MyOwn-v0")
    assert "--env module:Name-v0" in capsys.readouterr().err


@pytest.mark.parametrize("gpus", [1, 2])
def test_gpus_that_are_there_are_accepted(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert parse_args(["--gpus", str(gpus)]).gpus == gpus
    assert parse_args(["--gpus", "-1"]).gpus == -1
    with pytest.raises(SystemExit):
        parse_args(["--gpus", "3"])
