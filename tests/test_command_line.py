"""What `python dqn_cartpole.py` reads, prints and writes."""

import contextlib
import inspect
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import termios
from collections import namedtuple
from pathlib import Path
from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import RUN, SCRIPT, Toy, contents, finish, last_of, load, main, refusal, run_script, same, scalars, start
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dqn_cartpole
from dqn_cartpole import DQNLightning, ImprovedDQN

EPOCHS, EPOCH = 2, 160  # of the runs that several tests look at
FLAGS = ["--max_epochs", str(EPOCHS), "--steps_per_epoch", str(EPOCH)]
SHORT = "--max_epochs 2 --steps_per_epoch 30 --warm_start_steps 60 --replay_size 80"
ARGUMENTS = inspect.signature(DQNLightning).parameters | inspect.signature(ImprovedDQN).parameters
DEFAULTS = {name: argument.default for name, argument in ARGUMENTS.items() if name != "kwargs"}
Run = namedtuple("Run", ["folder", "run", "stdout", "stderr"])


@pytest.fixture(scope="session")
def first(tmp_path_factory) -> Run:
    """The default command, shortened, with its output going to files."""
    folder = tmp_path_factory.mktemp("first")
    done = run_script(*FLAGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Run(folder, folder / RUN, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def on_terminal(tmp_path_factory) -> Run:
    """The same command once more, on a terminal of the usual 80 columns."""
    folder, output = tmp_path_factory.mktemp("terminal"), b""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, SCRIPT, *FLAGS]
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how Linux says that nobody holds the other end any more
            while chunk := os.read(ours, 65536):
                output += chunk
    os.close(ours)
    assert process.returncode == 0, output.decode()
    return Run(folder, folder / RUN, output.decode().replace("\r\n", "\n"), "")


def test_a_run_writes_one_folder(first):
    assert [path.name for path in first.folder.iterdir()] == ["lightning_logs"]
    assert [path.name for path in (first.folder / "lightning_logs").iterdir()] == ["version_0"]
    names = {re.sub(r"(?<=tfevents).*", "", path.name) for path in first.run.iterdir()}
    assert names == {"events.out.tfevents", "hparams.yaml", "agent.gif", "checkpoints"}
    assert {path.name for path in (first.run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert load(last_of(first.run))["global_step"] == EPOCHS * EPOCH


def test_every_curve_is_there_and_says_what_cartpole_pays_and_what_was_asked_for(first):
    curves = scalars(first.run)
    for name in ("reward", "train_loss", "epsilon", "lr", "q_mean"):
        assert [step for step, _ in curves[name]] == list(range(0, EPOCHS * EPOCH, 50))
        assert np.isfinite([value for _, value in curves[name]]).all()
    assert [step + 1 for step, _ in curves["val_reward"]] == [EPOCH, EPOCHS * EPOCH]
    assert len(set(curves["test_reward"])) == 1
    assert {value for _, value in curves["reward"]} == {1.0}
    for step, epsilon in curves["epsilon"]:
        assert epsilon == pytest.approx(0.7 - (0.7 - 0.02) * step / (EPOCHS * EPOCH), abs=1e-5)
    for step, lr in curves["lr"]:
        assert lr == pytest.approx(DEFAULTS["lr"] * (1 - step // EPOCH / EPOCHS))


def test_every_finished_episode_is_one_point_and_avg_reward_is_the_mean_of_the_last_100(first, folder):
    """CartPole pays 1 a step, so the score of an episode is the number of steps since the last one ended."""
    main("--max_epochs 1 --steps_per_epoch 1100 --episode_length 9")
    for run in (first.run, RUN):
        curves = scalars(run)
        points, averages = curves["total_reward"], dict(curves["avg_reward"])
        scores = [score for _, score in points]
        assert len(scores) > (5 if run == first.run else 110)
        for n, (step, _) in enumerate(points, 1):
            assert step + 1 == sum(scores[:n])
            assert averages[step] == pytest.approx(np.mean(scores[max(0, n - 100) : n]), rel=1e-5)


def test_tensorboard_compares_all_hyperparameters_and_the_seed_by_test_reward(first):
    settings = DEFAULTS | {"max_epochs": EPOCHS, "steps_per_epoch": EPOCH}
    assert yaml.safe_load((first.run / "hparams.yaml").read_text()) == settings
    metadata = EventAccumulator(str(first.run)).Reload().summary_metadata
    assert b"test_reward" in metadata["_hparams_/experiment"].plugin_data.content
    for name in (*settings, "seed"):
        assert name.encode() in metadata["_hparams_/session_start_info"].plugin_data.content


def test_runs_started_together_have_a_folder_each_and_are_as_if_alone(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = [start(f"{SHORT} --lr 0.00{n}", together) for n in range(1, 5)]
    for process, folder in [*((each, together) for each in processes), (start(f"{SHORT} --lr 0.003", alone), alone)]:
        code, _, errors = finish(process, folder)
        assert code == 0, errors
    runs = {load(last_of(run))["hyper_parameters"]["lr"]: run for run in (together / "lightning_logs").iterdir()}
    assert sorted(runs) == [0.001, 0.002, 0.003, 0.004]
    assert same(load(last_of(runs[0.003]))["state_dict"], load(last_of(alone / RUN))["state_dict"])
    assert scalars(runs[0.003])["total_reward"] == scalars(alone / RUN)["total_reward"]


def test_redirected_it_prints_a_line_for_each_validation_and_the_result_and_warns_of_nothing(first):
    assert first.stderr == ""
    curves = scalars(first.run)
    lines = [f"step {step + 1:,}: val_reward {value:.2f}" for step, value in curves["val_reward"]]
    lines.append(f"test_reward: {curves['test_reward'][-1][1]:.2f} over 100 episodes")
    lines += [f"weights: {RUN}/checkpoints/best.ckpt", "curves: tensorboard --logdir lightning_logs"]
    assert first.stdout.splitlines() == [*lines, f"video: {RUN}/agent.gif"]


def test_on_a_terminal_lightnings_bar_is_drawn_and_the_same_command_gives_the_same_run_bit_for_bit(first, on_terminal):
    shown = [re.sub(r"\x1b\[A", "", text).rstrip() for text in re.split(r"[\r\n]", on_terminal.stdout)]
    bars = [text for text in shown if "|" in text]
    assert [text for text in shown if text and text not in bars] == first.stdout.splitlines()
    for epoch in range(EPOCHS):
        assert any(text.startswith(f"Epoch {epoch}: 100%") and f"{EPOCH}/{EPOCH}" in text for text in bars)
    for name in ("last.ckpt", "best.ckpt"):
        assert same(load(first.run / "checkpoints" / name), load(on_terminal.run / "checkpoints" / name))
    assert scalars(first.run) == scalars(on_terminal.run)


class Drawn(Toy):
    """Something to see; each step is another shade."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 30}  # noqa: RUF012
    windows = shown = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        Drawn.windows += render_mode == "human" and "SDL_VIDEODRIVER" not in os.environ  # dummy shows nothing

    def step(self, action):
        Drawn.shown += self.render_mode == "human"
        return super().step(action)

    def render(self):
        return np.full((40, 60, 3), 20 * self.taken, np.uint8)


gym.register("Drawn-v0", Drawn)
gym.register("Toy-v0", Toy)


def test_the_video_is_of_a_test_episode_if_it_can_be_drawn_and_render_shows_one_in_a_window(folder, monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    for n, flags in enumerate([f"{SHORT} --env Drawn-v0", f"--test {RUN}/checkpoints/best.ckpt"], 1):
        main(f"{flags} --render")
        assert (Drawn.windows, Drawn.shown) == (n, n * 10)
    with Image.open(RUN / "agent.gif") as video:
        assert (video.n_frames, video.size) == (5, (30, 20))  # every other one at half size
        video.seek(4)
        assert video.convert("RGB").getpixel((9, 9))[0] == pytest.approx(160, abs=8)
    main(f"{SHORT} --env Toy-v0")
    assert not Path("lightning_logs/version_1/agent.gif").exists()


# Flags


def test_help_shows_every_flag_with_its_text_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main("-h")
    assert ended.value.code == 0
    help_text = re.sub(r"\n {8,}", " ", capsys.readouterr().out)
    for name, default in DEFAULTS.items():
        _, text = get_args(ARGUMENTS[name].annotation)
        no = f", --no-{name}" if type(default) is bool else ".*"
        assert re.search(rf"^ +--{name}{no} +{re.escape(f'{text} (default: {default})')}$", help_text, re.M)
    assert DEFAULTS.keys() == {re.sub("^--(no-)?|=.*", "", flag) for flag in EFFECTIVE} - {"seed"}  # tested below
    for name in ("gpus", "seed", "render", "resume N", "start CKPT", "test CKPT"):
        assert re.search(rf"^ +--{name} .*\w$", help_text, re.M)


EFFECTIVE = shlex.split("""
--env=FrozenLake-v1 --episode_length=15 --batch_size=20 --lr=0.003 --gamma=0.9 --sync_rate=3 --replay_size=75
--warm_start_steps=50 --eps_start=0.5 --eps_end=0.2 --eps_fraction=0.3 --hidden_size=64 --hidden_layers=2 --no-lr_decay
--no-layer_norm --n_step=2 --seed=1 --max_epochs=3 --steps_per_epoch=31
""")


def test_every_flag_changes_the_run(folder, monkeypatch):
    monkeypatch.setattr(dqn_cartpole, "save_gif", lambda *_: None)
    ended = []
    for n, flag in enumerate(["", "", *EFFECTIVE]):
        main(f"{SHORT} {flag}")
        ended.append(load(last_of(Path(f"lightning_logs/version_{n}")))["state_dict"])
        assert same(ended[n], ended[0]) == (flag == ""), flag


BAD_INPUT = """
--gamma lots | --batch_size 1.5 | --batch_size 0 | --warm_start_steps 0 | --replay_size 0 | --replay_size -1
--sync_rate 0 | --hidden_layers 0 | --hidden_size 0 | --n_step 0 | --max_epochs 0 | --max_epochs -1
--steps_per_epoch 0 | --epochs 5 | --gpus 999 | --gpus -1 | --gpus all | --env CartPoll-v0 | --env CartPole-v9
--env nonsense | --env ALE/NoSuchGame-v5 | --env no_such_module:CartPole-v0 | --env Pendulum-v1
--test gone.ckpt | --start gone.ckpt | --resume 0 | --resume gone.ckpt
--resume 0 --test gone.ckpt | --resume 0 --start gone.ckpt | --start gone.ckpt --test gone.ckpt
"""


@pytest.mark.parametrize("flags", re.split(r" \| |\n", BAD_INPUT.strip()))
def test_a_usual_mistake_is_refused_in_one_line_before_anything_is_written(folder, capsys, flags):
    line = refusal(flags, capsys)
    flag, value = flags.split()[:2]
    assert flag in line or value in line or "no GPU found" in line or f"version_{value}/" in line
    assert list(folder.iterdir()) == []


def test_test_shows_the_same_result_takes_other_flags_and_writes_nothing(first, monkeypatch, capfd):
    monkeypatch.chdir(first.folder)
    before, best = contents(first.folder), f"{RUN}/checkpoints/best.ckpt"
    for flags in ("", "--env CartPole-v1 --episode_length 200 --lr 1", f"--seed 5 --n_step 1 --test {best}"):
        main(f"--test {best} {flags}")
        output = capfd.readouterr()
        assert (output.out.splitlines(), output.err) == ([first.stdout.splitlines()[EPOCHS]], "")
    main(f"--test {best} --episode_length 3")
    assert capfd.readouterr().out == "test_reward: 3.00 over 100 episodes\n"
    assert contents(first.folder) == before


def test_start_begins_a_new_run_with_the_weights_and_settings_and_other_flags(folder):
    main(f"{SHORT} --hidden_size 32 --n_step 2 --seed 3")
    before, origin = contents(RUN), load(RUN / "checkpoints" / "best.ckpt")
    main(f"--start {RUN}/checkpoints/best.ckpt --env CartPole-v1 --lr 0 --max_epochs 1")
    assert contents(RUN) == before
    ended = load(last_of(Path("lightning_logs/version_1")))
    assert ended["hyper_parameters"] == origin["hyper_parameters"] | {"env": "CartPole-v1", "lr": 0.0, "max_epochs": 1}
    assert ended["global_step"] == 30
    for name in ("net.net.0.weight", "net.net.3.bias"):  # unchanged: the learning rate is 0
        assert torch.equal(ended["state_dict"][name], origin["state_dict"][name])


def test_main_returns_the_result_can_be_called_in_a_loop_and_leaves_temporary_files_possible(folder, monkeypatch):
    results = [main(f"{SHORT} --lr {lr}") for lr in ("1e-2", "1e-3", "1e-2")]
    assert results[0] == results[2] != results[1]
    for n, result in enumerate(results):
        assert result["test_reward"] == scalars(Path("lightning_logs", f"version_{n}"))["test_reward"][0][1]
    monkeypatch.chdir("/")
    tempfile.TemporaryFile().close()


def test_main_passes_callbacks_and_arguments_on_to_the_trainer(folder):
    class Notes(pl.Callback):
        seen: list[tuple[float, int]] = []  # noqa: RUF012

        def on_validation_end(self, trainer, model):
            self.seen.append((trainer.callback_metrics["val_reward"].item(), trainer.global_step))

    options = {"gradient_clip_val": 0.1, "check_val_every_n_epoch": 2, "accumulate_grad_batches": 2}
    main(f"{SHORT} --max_epochs 4", callbacks=[Notes()], **options)
    assert [step for _, step in Notes.seen] == [30, 60]
    assert scalars(RUN)["val_reward"] == [(step - 1, value) for value, step in Notes.seen]
