"""What `python dqn_cartpole.py` reads, prints and writes."""

import fcntl
import inspect
import os
import pty
import re
import runpy
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from helpers import SCRIPT, last_checkpoint, run_script, same_tensors, scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dqn_cartpole

EPOCHS, STEPS = 60, 60 * 13  # of the runs that several tests look at; no multiple of the validation interval
DEFAULTS = {name: keyword.default for name, keyword in inspect.signature(dqn_cartpole.DQNLightning).parameters.items()}
Run = namedtuple("Run", ["folder", "version", "stdout", "stderr", "seconds"])


def finished(folder: Path, stdout: str, stderr: str, start: float) -> Run:
    return Run(folder, folder / "lightning_logs" / "version_0", stdout, stderr, time.monotonic() - start)


@pytest.fixture(scope="session")
def first(tmp_path_factory) -> Run:
    """The default command, shortened, with its output going to files."""
    folder, start = tmp_path_factory.mktemp("first"), time.monotonic()
    done = run_script("--max_epochs", str(EPOCHS), cwd=folder)
    assert done.returncode == 0, done.stderr
    return finished(folder, done.stdout, done.stderr, start)


@pytest.fixture(scope="session")
def on_terminal(tmp_path_factory) -> Run:
    """The same command once more, on a terminal of the usual 80 columns."""
    folder, start = tmp_path_factory.mktemp("terminal"), time.monotonic()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, SCRIPT, "--max_epochs", str(EPOCHS)]
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        output = b""
        while chunk := read(ours):
            output += chunk
    os.close(ours)
    assert process.returncode == 0, output.decode()
    return finished(folder, output.decode().replace("\r\n", "\n"), "", start)


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""


@pytest.fixture(autouse=True, scope="session")
def low_bar():
    """CartPole that counts as solved almost at once."""
    gym.register("LowBar-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=200, reward_threshold=5)


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Run the command line in this process and in an empty folder; gives the folder of the run's log."""
    monkeypatch.chdir(tmp_path)
    return run_here


def run_here(flags: str) -> Path:
    dqn_cartpole.main(dqn_cartpole.parse_args(flags.split()))
    return max(
        Path("lightning_logs").glob("version_*"), key=lambda path: int(path.name.removeprefix("version_"))
    ).resolve()


# What a run writes


def test_a_run_writes_one_version_folder(first):
    assert [path.name for path in first.folder.iterdir()] == ["lightning_logs"]
    assert {path.name for path in (first.folder / "lightning_logs").iterdir()} == {".lock", "version_0"}
    names = {re.sub(r"(?<=tfevents).*", "", path.name) for path in first.version.iterdir()}
    assert names == {"events.out.tfevents", "hparams.yaml", "checkpoints", ".lock"}
    assert {path.name for path in (first.version / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_tensorboard_has_every_curve(first):
    curves = scalars(first.version)
    for name in ("total_reward", "avg_reward", "reward", "train_loss", "epsilon", "lr", "q_mean"):
        assert np.isfinite([value for _, value in curves[name]]).all()
    assert len(curves["val_reward"]) == len(set(curves["test_reward"])) == 1


def test_every_finished_episode_is_one_point(first):
    """CartPole pays 1 a step, so an episode's return is the number of steps since the last one ended."""
    points = scalars(first.version)["total_reward"]
    assert len(points) > 10
    assert [b[0] - a[0] for a, b in pairwise(points)] == [value for _, value in points[1:]]
    assert points[0][0] in (points[0][1], points[0][1] - 1)  # whether steps are counted from 0 or 1
    assert 0 <= STEPS - sum(value for _, value in points) < 200  # the rest is the episode still running


def test_avg_reward_is_the_mean_of_the_last_100_episodes(main):
    curves = scalars(main("--max_epochs 110 --episode_length 12"))  # short episodes: more than 100 of them
    returns = [value for _, value in curves["total_reward"]]
    assert len(returns) > 110
    assert len(set(returns)) > 1
    means = [np.mean(returns[max(0, i - 99) : i + 1]) for i in range(len(returns))]
    assert [value for _, value in curves["avg_reward"]] == pytest.approx(means, rel=1e-4)


def test_epsilon_falls_linearly_and_then_stays(main):
    points = scalars(main("--max_epochs 20 --eps_start 0.8 --eps_end 0.2 --eps_last_frame 120"))["epsilon"]
    assert len(points) > 3
    for step, epsilon in points:
        assert epsilon == pytest.approx(max(0.2, 0.8 - 0.6 * step / 120), abs=0.006)  # a step more or less


def test_curves_know_what_cartpole_pays_and_what_was_asked_for(first):
    curves = scalars(first.version)
    assert {value for _, value in curves["reward"]} == {1.0}
    assert curves["lr"][0][1] == pytest.approx(DEFAULTS["lr"])
    assert curves["epsilon"][0] == (0, pytest.approx(DEFAULTS["eps_start"]))


def test_hyperparameters_are_written(first):
    written = yaml.safe_load((first.version / "hparams.yaml").read_text())
    assert DEFAULTS.items() <= written.items()


def test_tensorboard_has_the_hyperparameters(first):
    files = sorted(first.version.glob("events*"))
    plugins = [EventAccumulator(str(file)).Reload().summary_metadata for file in files]
    assert any(data.plugin_data.plugin_name == "hparams" for metadata in plugins for data in metadata.values())


def test_validations_come_every_interval_rounded_to_epochs(main):
    points = scalars(main("--max_epochs 9 --val_check_interval 30"))["val_reward"]
    assert [round(step / 13) for step, _ in points][:3] == [3, 6, 9]


def test_last_checkpoint_is_from_the_last_step(main):
    short, long = main("--max_epochs 7 --val_check_interval 39"), main("--max_epochs 8 --val_check_interval 39")
    assert not same_tensors(last_checkpoint(short), last_checkpoint(long))


def test_best_checkpoint_is_the_one_that_is_tested(first):
    best, tested = first.version / "checkpoints" / "best.ckpt", scalars(first.version)["test_reward"][-1][1]
    model = dqn_cartpole.DQNLightning.load_from_checkpoint(best, weights_only=True, map_location="cpu")
    seeds = next(iter(model.test_dataloader()))
    assert model.play_episodes(seeds).mean().item() == pytest.approx(tested, rel=1e-5)


def test_runs_are_numbered(main):
    assert [main("--max_epochs 1").name, main("--max_epochs 1").name] == ["version_0", "version_1"]


def test_a_run_gives_ctrl_c_back_to_the_program_that_called_it(main):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    main("--max_epochs 1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Randomness


def test_the_same_command_twice_is_the_same_bit_for_bit(first, on_terminal):
    assert same_tensors(last_checkpoint(first.version), last_checkpoint(on_terminal.version))
    a, b = scalars(first.version), scalars(on_terminal.version)
    for curve in ("total_reward", "train_loss", "val_reward", "test_reward"):
        assert a[curve] == b[curve]


def test_another_seed_is_another_run(main):
    a, b = main("--max_epochs 5 --seed 1"), main("--max_epochs 5 --seed 2")
    assert not same_tensors(last_checkpoint(a), last_checkpoint(b))
    assert scalars(a)["total_reward"] != scalars(b)["total_reward"]


def test_validation_leaves_training_as_it_was(main):
    often, seldom = (
        main("--max_epochs 12 --val_check_interval 13"),
        main("--max_epochs 12 --val_check_interval 156"),
    )
    assert len(scalars(often)["val_reward"]) > len(scalars(seldom)["val_reward"])
    assert same_tensors(last_checkpoint(often), last_checkpoint(seldom))
    assert scalars(often)["total_reward"] == scalars(seldom)["total_reward"]


# The console


def test_output_ends_with_the_test_reward_and_two_commands(first):
    reward, tensorboard, command = first.stdout.splitlines()[-3:]
    number = r"\d+\.\d+"
    assert re.fullmatch(rf"test_reward: ({number}) \+/- {number} over 100 episodes", reward)
    assert tensorboard == "tensorboard --logdir lightning_logs"
    logged = scalars(first.version)["test_reward"][-1][1]
    assert float(reward.split()[1]) == pytest.approx(logged, abs=0.051)
    assert "best.ckpt" in command


def test_the_command_it_prints_works_and_writes_nothing(first):
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    command = shlex.split(first.stdout.splitlines()[-1])
    assert command[0] == "python"
    assert "--test" in command
    done = subprocess.run([sys.executable, *command[1:]], cwd=first.folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert first.stdout.splitlines()[-3] in done.stdout.splitlines()  # the test reward, once more
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_progress_in_a_file_is_plain_lines_and_no_warning(first):
    assert "\r" not in first.stderr
    assert "\x1b" not in first.stderr
    reached = dict(re.findall(r"^step ([\d,]+): val_reward ([\d.]+)", first.stderr, re.M))
    assert len(reached) == len(first.stderr.strip().splitlines()) == STEPS // 520
    assert float(reached["520"]) == pytest.approx(scalars(first.version)["val_reward"][0][1], abs=0.0051)


def test_one_bar_for_the_whole_run_on_a_terminal(on_terminal):
    drawn = [text for text in re.split(r"[\r\n]", on_terminal.stdout) if "step/s" in text]
    counts = [int(re.search(r"(\d+)/780 ", text).group(1)) for text in drawn]
    assert counts == sorted(counts)
    assert counts[-1] == 780
    assert 2 <= len(drawn) <= 5 * on_terminal.seconds  # a few times a second at most
    assert max(map(len, drawn)) <= 80
    for shown in (r"avg \d", r"epsilon \d", r"\d ?step/s", r"<\d\d:\d\d,"):
        assert re.search(shown, drawn[-1])


def test_the_console_says_what_runs_where(first):
    begun = first.stdout.splitlines()[0]
    assert begun == "CartPole-v0, seed 0, on 1 x cpu: 60 epochs of 13 steps, logged in lightning_logs/version_0"


def test_a_validation_at_the_threshold_counts_as_solved(main, capfd):
    first = scalars(main("--env LowBar-v0 --max_epochs 30 --val_check_interval 130"))["val_reward"][0]
    assert first[1] >= 5
    assert re.search(r"^step 130: val_reward [\d.]+ \(solved\)$", capfd.readouterr().err, re.M)


@pytest.mark.parametrize(("platform", "quoted"), [("linux", "'my runs/best.ckpt'"), ("win32", '"my runs/best.ckpt"')])
def test_commands_are_quoted_for_the_systems_own_shell(platform, quoted, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name])
    assert dqn_cartpole.shell("--test", Path("my runs/best.ckpt")) == f"python dqn_cartpole.py --test {quoted}"


class Wide(gym.Env):
    """Observations that are larger than what a multilayer perceptron is for."""

    observation_space = gym.spaces.Box(0, 255, (105, 100), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((105, 100), np.uint8), {}

    def step(self, action):
        return np.zeros((105, 100), np.uint8), 1.0, bool(self.np_random.random() < 0.1), False, {}


@pytest.mark.parametrize("replay_size", [500, 50_000])
def test_large_observations_and_buffers_are_spoken_of_at_the_start(main, capsys, replay_size):
    """The buffer is not filled, so its memory is asked for but hardly used."""
    gym.register("Wide-v0", Wide, max_episode_steps=20)
    try:
        main(f"--env Wide-v0 --replay_size {replay_size} --max_epochs 1 --hidden_size 4 --test_episodes 1")
    finally:
        del gym.registry["Wide-v0"]
    output = capsys.readouterr().out
    assert "10,500 numbers in an observation: the README has a better network for pixels\n" in output
    assert ("the replay buffer takes 1.1 GB of memory and of last.ckpt" in output) == (replay_size == 50_000)


def test_a_network_for_pixels_gets_no_advice(main, capsys, monkeypatch):
    class Pooled(torch.nn.Module):
        def __init__(self, obs_size, n_actions, *_):
            super().__init__()
            self.net = torch.nn.Linear(1, n_actions)

        def forward(self, x):
            return self.net(x.flatten(1).float().mean(1, keepdim=True))

    monkeypatch.setattr("dqn_cartpole.DQN", Pooled)
    gym.register("Wide-v0", Wide, max_episode_steps=20)
    try:
        main("--env Wide-v0 --replay_size 500 --sample_size 200 --max_epochs 1 --test_episodes 1")
    finally:
        del gym.registry["Wide-v0"]
    output = capsys.readouterr().out
    assert "test_reward" in output
    assert "numbers in an observation" not in output


def test_training_goes_on_where_nobody_reads_the_output(tmp_path):
    command = f"{sys.executable} {SCRIPT} --max_epochs 5 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[1:] == ["0"]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").exists()


def test_standard_error_may_be_closed_and_a_terminal_may_know_ascii_only(tmp_path):
    folder = tmp_path / "\u00e9"
    folder.mkdir()
    script = Path(shutil.copy(SCRIPT, folder))
    command = f"{sys.executable} {script} --max_epochs 5 2>&-"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=100, env=env)
    assert done.returncode == 0
    assert "test_reward: " in done.stdout


def test_ctrl_c_during_the_imports_leaves_no_traceback(tmp_path):
    with subprocess.Popen([sys.executable, SCRIPT], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert errors == ""


def test_no_warning_on_a_terminal(on_terminal):
    assert "warn" not in on_terminal.stdout.lower()


def test_help_shows_every_flag_with_its_default(tmp_path):
    done = run_script("-h", cwd=tmp_path, COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    one_line_each = re.sub(r"\n {8,}", " ", done.stdout)
    shown = dict(re.findall(r"^ +--(\w+)[ ,].*\(default: (.*)\)$", one_line_each, re.M))
    expected = DEFAULTS | {"gpus": 0, "num_nodes": 1, "num_processes": 1, "seed": 0}
    assert {name: shown.get(name) for name in expected} == {name: str(value) for name, value in expected.items()}
    assert {"max_epochs", "val_check_interval"} <= set(shown)
    assert "--test CKPT" in done.stdout
    assert done.stdout.startswith("usage: python dqn_cartpole.py ")


def test_every_promised_flag_is_a_keyword_of_the_module():
    promised = """
        env episode_length batch_size lr gamma sync_rate tau replay_size warm_start_steps sample_size eps_start
        eps_end eps_last_frame hidden_size hidden_layers lr_schedule n_step double_dqn clip_error grad_clip
    """
    assert set(promised.split()) == set(DEFAULTS)


def test_import_has_no_side_effects(tmp_path, monkeypatch, capfd):
    """`from dqn_cartpole import DQNLightning` is how a template is used."""
    watch = """
import gc, json, logging, os, random, sys, warnings
import gymnasium, numpy, pytorch_lightning, tensorboard, torch, torch.utils.tensorboard, tqdm
def world():
    loggers = [logging.getLogger(name).level for name in ("", "pytorch_lightning", "lightning.pytorch")]
    numbers = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    switches = torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    garbage = gc.isenabled(), gc.get_freeze_count()
    return list(warnings.filters), loggers, numbers, switches, garbage, dict(os.environ), os.listdir(), sys.argv
before = world()
from dqn_cartpole import DQNLightning
assert world() == before
"""
    path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", watch],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Every flag does something

SHORT = "--max_epochs 3 --warm_start_steps 300 --replay_size 400 --eps_last_frame 30"


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory):
    """What a short run ends with, to which those with one more flag are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        return last_checkpoint(run_here(SHORT))


def test_short_run_can_be_repeated(main, plain_weights):
    assert same_tensors(last_checkpoint(main(SHORT)), plain_weights)


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
    "--n_step=2",
    "--double_dqn",
    "--clip_error=0.5",
    "--grad_clip=0.01",
    "--seed=1",
    "--max_epochs=4",
]


@pytest.mark.parametrize("flag", EFFECTIVE)
def test_every_flag_changes_the_run(main, plain_weights, flag):
    assert not same_tensors(last_checkpoint(main(f"{SHORT} {flag}")), plain_weights)


def test_every_hyperparameter_is_among_the_flags_that_change_the_run():
    assert set(DEFAULTS) <= {flag.removeprefix("--").partition("=")[0] for flag in EFFECTIVE}


def test_replay_size_limits_what_is_remembered(main):
    checkpoint = torch.load(main(f"{SHORT} --replay_size 310") / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["dqn"][0]["buffer"]["arrays"][0]) == 310


# Bad input

BAD_INPUT = """
--gamma 1.5
--gamma -0.1
--gamma nan
--gamma lots
--batch_size 0
--batch_size -16
--batch_size 1.5
--batch_size 201 --sample_size 200
--lr 0
--lr -0.01
--lr inf
--lr nan
--lr fast
--sync_rate 0
--tau 0
--tau 1.1
--tau nan
--replay_size 0
--sample_size 500 --replay_size 400
--sample_size 500 --warm_start_steps 400
--warm_start_steps 0
--warm_start_steps -1
--sample_size 0
--eps_start 1.1
--eps_start -0.1
--eps_end 1.1
--eps_end nan
--eps_last_frame 0
--hidden_size 0
--hidden_layers 0
--hidden_layers 101
--lr_schedule step
--n_step 0
--n_step 2.5
--clip_error 0
--clip_error nan
--grad_clip 0
--grad_clip -1
--grad_clip nan
--episode_length 0
--episode_length -5
--max_epochs 0
--max_epochs -1
--seed -1
--seed 4294967296
--seed 0.5
--val_check_interval 0
--num_processes 0
--num_nodes 0
--gpus -2
--gpus 999
--gpus all
--double_dqn 1
--epochs 5
--env CartPoll-v0
--env CartPole-v9
--env nonsense
--env ALE/NoSuchGame-v5
--env no_such_module:CartPole-v0
--env too:many:colons
--env Pendulum-v1
--env MountainCarContinuous-v0
""".strip().splitlines()


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(flags, tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *flags.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    flag, value = flags.split()[:2]
    assert value in output.err
    assert flag in output.err or flag == "--double_dqn"  # of which argparse sees the value alone
    assert output.out == ""
    assert not list(tmp_path.iterdir())
    assert not [str(warning.message) for warning in recwarn]


def refusal(flags: str) -> str:
    """The line with which a command line is refused, by `parse_args` or by `main`."""
    with pytest.raises(dqn_cartpole.UsageError) as refused:
        dqn_cartpole.main(dqn_cartpole.parse_args(flags.split()))
    return str(refused.value)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ("--gamma 1.5", r"\b0\b.*\b1\b"),
        ("--batch_size 0", r"\b1\b"),
        ("--lr_schedule step", r"constant.*linear.*cosine"),
        ("--sample_size 500 --replay_size 400", r"replay_size.*\b400\b"),
        ("--sample_size 500 --warm_start_steps 400", r"warm_start_steps.*\b400\b"),
        ("--sample_size 200 --batch_size 201", r"batch_size.*\b201\b"),
        ("--warm_start_steps 300 --episode_length 9", "--n_step 5.*--sample_size"),
        ("--env CartPoll-v0", "CartPole"),
        ("--env CartPole-v9", "v1"),
        ("--env Pendulum-v1", "Discrete"),
        ("--gpus 999", "--gpus 0.*CPU"),
        ("--epochs 5", "did you mean --max_epochs"),
        ("--max-epochs 5", "did you mean --max_epochs"),
        ("--nonsense 5", "--help"),
        ("--env Nowhere/NoSuchGame-v5", "--env package:"),
    ],
)
def test_refusal_says_what_would_be_right(flags, remedy):
    message = refusal(flags)
    assert re.search(remedy, message.split(flags.split()[1], 1)[1])


def test_environment_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # as if it were not installed
    with pytest.raises(dqn_cartpole.UsageError, match=r"--env Ant-v5: .*pip install.*gymnasium\[mujoco\]"):
        dqn_cartpole.main(dqn_cartpole.parse_args(["--env", "Ant-v5"]))


def test_bad_input_ends_the_process_with_2(tmp_path):
    done = run_script("--gpus", "1", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--gpus 1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_cluster_end_the_process_with_2(tmp_path):
    done = run_script(cwd=tmp_path, RANK="1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "RANK=1" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "leftover"),
    [
        ("", "RANK=1"),
        ("", "LOCAL_RANK=1"),
        ("", "WORLD_SIZE=2"),
        ("", "NODE_RANK=x"),
        ("", "SLURM_NTASKS=4"),
        ("", "SLURM_PROCID=1"),
        ("--num_processes 2", "WORLD_SIZE=4"),
        ("--num_processes 2", "LOCAL_RANK=0"),  # it would wait for a second process that nobody starts
        ("--num_processes 2", "NODE_RANK=1"),  # and so it would here
        ("--num_processes 2", "SLURM_NTASKS=2"),  # which Lightning takes only with SLURM_NTASKS_PER_NODE
    ],
)
def test_leftovers_of_a_cluster_are_named(flags, leftover, monkeypatch):
    monkeypatch.setenv(*leftover.split("="))
    with pytest.raises(dqn_cartpole.UsageError, match=f"{leftover}:.*unset it"):
        dqn_cartpole.parse_args(flags.split())


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ("", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1"),
        ("", "SLURM_NTASKS=1 SLURM_PROCID=0"),
        ("--num_processes 2", "MASTER_ADDR=here NODE_RANK=0 LOCAL_RANK=1 WORLD_SIZE=2"),  # Lightning's own
        ("--num_processes 2 --num_nodes 2", "MASTER_ADDR=there RANK=3 LOCAL_RANK=1 WORLD_SIZE=4"),  # torchrun's
        ("--num_processes 2", "SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_PROCID=1"),  # srun's
    ],
)
def test_what_a_launcher_says_is_accepted(flags, variables, monkeypatch):
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    assert dqn_cartpole.parse_args(flags.split())
