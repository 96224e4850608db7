"""Several processes train one network: each plays for itself, they agree on what they learn, and they end together.

Two processes on the CPU, as `--num_processes 2` starts them; a test that needs to look into them runs `SPY`.
"""

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import SCRIPT, run_script, same_tensors, scalars
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from test_resume import assert_same_run, last_of, load, mtime, version_of

import dqn_cartpole
from dqn_cartpole import TEST_SEEDS, TRAIN_SEEDS, VAL_SEEDS, DQNLightning, parse_args

# dqn_cartpole.py, except that each process leaves a file of what it did: its weights, the seeds of its training and
# evaluation episodes, the step and return of each that ended. The process with rank FAULTY breaks at its 300th step.
SPY = f"""
import os, runpy, sys
import torch
sys.path.insert(0, {str(SCRIPT.parent)!r})
import dqn_cartpole
from dqn_cartpole import Agent, DQNLightning

seen = {{"episodes": [], "returns": [], "evaluated": []}}
reset, log_step, play_episodes = Agent.reset, DQNLightning.log_step, DQNLightning.play_episodes

def spied_reset(self, seed=None):
    reset(self, seed)
    seen["episodes"].append(self.episode_seed)

def spied_log_step(self, reward, done, *args):
    if self.global_step == 300 and os.environ.get("FAULTY") == str(self.global_rank):
        self.agent.env.step = None
    if done:
        seen["returns"].append((self.global_step, self.episode_reward + reward))
    log_step(self, reward, done, *args)

def spied_play_episodes(self, seeds, *args):
    returns = play_episodes(self, seeds, *args)
    seen["evaluated"].append((seeds.tolist(), returns.tolist()))
    return returns

def on_train_start(self):  # what came before was the warm start of rank 0, whose buffer is not used
    seen["first"] = seen["episodes"].index(self.agent.episode_seed)
    seen["held"] = torch.tensor(self.buffer.arrays.state[: len(self.buffer)])

def on_train_end(self):
    weights = {{name: weight.clone() for name, weight in self.state_dict().items()}}
    torch.save(seen | {{"weights": weights}}, f"rank{{self.global_rank}}.pt")

Agent.reset, DQNLightning.log_step = spied_reset, spied_log_step
DQNLightning.on_train_start, DQNLightning.on_train_end = on_train_start, on_train_end
DQNLightning.play_episodes = spied_play_episodes
dqn_cartpole.main(dqn_cartpole.parse_args())
"""
FLAGS = ["--num_processes", "2", "--max_epochs", "40", "--val_check_interval", "260", "--seed", "3"]


def start(folder: Path, *flags: str, script: str | None = None, **env: str) -> subprocess.Popen[str]:
    """`python dqn_cartpole.py FLAGS`, or another script's text, as the leader of a process group of its own."""
    folder.mkdir(exist_ok=True)
    file = SCRIPT
    if script is not None:
        file = folder / "spy.py"
        file.write_text(script)
    with (folder / "output.txt").open("w") as output, (folder / "errors.txt").open("w") as errors:
        command = [sys.executable, str(file), *flags]
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | env, stdout=output, stderr=errors, start_new_session=True, text=True
        )


def finish(process: subprocess.Popen[str], folder: Path, within: float = 120) -> tuple[int, str, str]:
    """Exit code, output and errors, once all processes of the run are gone."""
    code, end = process.wait(within), time.monotonic() + within
    while members(process.pid):
        assert time.monotonic() < end, f"still running: {members(process.pid)}"
        time.sleep(0.05)
    return code, (folder / "output.txt").read_text(), (folder / "errors.txt").read_text()


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True)
    processes = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, state in processes if int(pgid) == group and not state.startswith("Z")]


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    while not mtime(last_of(folder)) and process.poll() is None:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Folder of a run in two processes, and what each did."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    code, _, errors = finish(start(folder, *FLAGS, script=SPY), folder)
    assert code == 0, errors
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_processes_end_with_the_same_weights(pair):
    folder, (first, second) = pair
    assert any(name.startswith("target_net") for name in first["weights"])
    assert same_tensors(first["weights"], second["weights"])
    assert same_tensors(first["weights"], load(last_of(folder))["state_dict"])


def test_processes_never_play_the_same_episode(pair):
    _, seen = pair
    first, second = (set(rank["episodes"][rank["first"] :]) for rank in seen)
    assert min(len(first), len(second)) > 5
    assert not first & second
    assert {seed % 2 for seed in first} != {seed % 2 for seed in second}  # nor ever will
    assert all(seed in TRAIN_SEEDS for seed in first | second)


def test_each_process_has_a_warm_start_of_its_own(pair):
    _, (first, second) = pair
    assert min(len(first["held"]), len(second["held"])) > 1000 - 5  # the last may still wait for n-step returns
    rows = {tuple(state) for state in first["held"].tolist()} & {tuple(state) for state in second["held"].tolist()}
    assert not rows


def test_total_and_average_reward_are_the_first_process_s(pair):
    folder, (first, second) = pair
    assert first["returns"]
    assert second["returns"]
    curves = scalars(version_of(folder))
    assert curves["total_reward"] == first["returns"]
    returns = [value for _, value in first["returns"]]
    averages = [statistics.fmean(returns[max(0, n - 100) : n]) for n in range(1, len(returns) + 1)]
    assert [value for _, value in curves["avg_reward"]] == pytest.approx(averages)


def test_every_process_plays_all_validation_episodes(pair):
    folder, (first, second) = pair
    assert first["evaluated"] == second["evaluated"]
    points = scalars(version_of(folder))["val_reward"]
    rounds = [returns for seeds, returns in first["evaluated"] if seeds == list(VAL_SEEDS)]
    assert [value for _, value in points] == pytest.approx([statistics.fmean(returns) for returns in rounds])


def test_test_reward_does_not_depend_on_the_number_of_processes(pair, tmp_path):
    path = last_of(pair[0])
    model = DQNLightning()
    model.load_state_dict(load(path)["state_dict"])
    returns = model.play_episodes(torch.tensor(TEST_SEEDS))
    result = run_script("--test", str(path), "--num_processes", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    expected = f"test_reward: {returns.mean():.2f} +/- {returns.std(correction=0):.2f} over 100 episodes"
    assert result.stdout.splitlines()[0] == expected


def test_one_process_writes_and_speaks(pair):
    folder, _ = pair
    assert sorted(os.listdir(folder / "lightning_logs")) == [".lock", "version_0"]
    output, errors = ((folder / name).read_text() for name in ("output.txt", "errors.txt"))
    assert output.count(", on 2 x cpu: ") == output.count("test_reward: ") == 1
    assert len(re.findall("^step 260: val_reward", errors, re.MULTILINE)) == 1
    assert "arning" not in errors
    assert output.endswith("--test lightning_logs/version_0/checkpoints/best.ckpt\n")


# Nothing is lost


def test_group_killed_and_resumed_equals_the_run_never_killed(pair, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *FLAGS)
    wait_for_checkpoint(process, folder)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    code, _, errors = finish(process, folder)
    assert code == -signal.SIGKILL, errors
    assert load(last_of(folder))["epoch"] + 1 < 40
    code, _, errors = finish(start(folder, "--resume", "--num_processes", "2"), folder)
    assert code == 0, errors
    assert len(load(last_of(folder))["dqn"]) == 2
    assert_same_run(folder, pair[0])


def test_run_of_two_processes_is_not_resumed_in_another_number(pair):
    folder, _ = pair
    before = mtime(last_of(folder))
    result = run_script("--resume", "--max_epochs", "70", cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    counts = "it has to go on in 2 processes, as before"
    assert re.fullmatch(rf"dqn_cartpole\.py: error: --resume \S+last.ckpt: does not fit: {counts}\n", result.stderr)
    assert mtime(last_of(folder)) == before


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_process_that_is_killed_ends_the_run_for_all(tmp_path, rank):
    folder = tmp_path / "run"
    process = start(folder, *FLAGS, "--max_epochs", "9999")
    wait_for_checkpoint(process, folder)
    leader, other = sorted(members(process.pid), key=lambda pid: pid != process.pid)
    os.kill((leader, other)[rank], signal.SIGKILL)
    code, _, _ = finish(process, folder, within=20)
    assert code == (1 if rank else -signal.SIGKILL)
    assert len(load(last_of(folder))["dqn"]) == 2


@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_environment_that_fails_in_one_process_ends_the_run_for_all(tmp_path, rank):
    folder = tmp_path / "run"
    code, _, errors = finish(start(folder, *FLAGS, script=SPY, FAULTY=rank), folder, within=60)
    assert code != 0
    assert re.search(r"The agent was in step \d+ of the training episode with seed \d+\.", errors)


@pytest.mark.parametrize("reached", ["all", "the first", "the second"])
def test_stopped_by_a_signal_all_processes_save_and_end(tmp_path, reached):
    """Ctrl-C reaches all of them; SIGTERM may reach one."""
    folder = tmp_path / "run"
    process = start(folder, *FLAGS, "--max_epochs", "9999")
    wait_for_checkpoint(process, folder)
    first, second = sorted(members(process.pid), key=lambda pid: pid != process.pid)
    if reached == "all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(first if reached == "the first" else second, signal.SIGTERM)
    code, output, errors = finish(process, folder, within=60)
    assert code == (130 if reached == "all" else 143), errors
    assert "Traceback" not in errors
    step = load(last_of(folder))["global_step"]
    assert output.count(f"stopped at step {step:,}; to go on:\n") == 1
    assert re.search(r"--num_processes 2 .*--resume lightning_logs/version_0/checkpoints/last.ckpt\n$", output)


# How it is started


def test_a_signal_to_one_process_during_the_last_save_ends_all(tmp_path):
    """Their last joint decision was to go on; the next thing they would do together is the test."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import dqn_cartpole
save = dqn_cartpole.Checkpoints.save

def save_and_be_stopped(self, trainer, name):
    save(self, trainer, name)
    if trainer.global_rank == 1 and name == "last.ckpt" and trainer.current_epoch + 1 == trainer.max_epochs:
        os.kill(os.getpid(), signal.SIGTERM)

dqn_cartpole.Checkpoints.save = save_and_be_stopped
code = 0
try:
    dqn_cartpole.main(dqn_cartpole.parse_args())
except SystemExit as end:
    code = end.code
sys.stdout.flush()
os._exit(code)
"""
    folder = tmp_path / "run"
    code, output, errors = finish(start(folder, *FLAGS, "--max_epochs", "20", script=script), folder)
    assert code == 143, errors
    assert "stopped at step 260; to go on:" in output
    assert "test_reward" not in output


@pytest.mark.slow
def test_torchrun_starts_it_too(pair, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(SCRIPT), *FLAGS]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path, pair[0])


def test_machines_have_to_be_told_of_each_other(tmp_path):
    result = run_script("--num_nodes", "2", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("error: --num_nodes 2: start it on every machine, with torchrun or srun\n")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_two_nodes_of_one_process_equal_one_of_two(pair, tmp_path):
    """Two "machines", which this one plays both; their folder is a shared one."""
    folder = tmp_path / "run"
    nodes = []
    for rank in "10":  # whichever comes first waits for the other
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29417", "NODE_RANK": rank}
        nodes.append(start(folder, "--num_nodes", "2", *FLAGS[2:], **env))
    for node in nodes:
        code, _, errors = finish(node, folder)
        assert code == 0, errors
    assert sorted(os.listdir(folder / "lightning_logs")) == [".lock", "version_0"]
    assert_same_run(folder, pair[0])


def test_gpus_and_cpu_processes_contradict_each_other(monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", lambda: 2)
    with pytest.raises(dqn_cartpole.UsageError, match="--num_processes 2: is for the CPU; leave it or --gpus out"):
        parse_args(["--gpus", "2", "--num_processes", "2"])
    assert parse_args(["--gpus", "-1"]).gpus == 2


def test_a_mac_has_one_gpu(monkeypatch):
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    assert parse_args(["--gpus", "1"]).gpus == parse_args(["--gpus", "-1"]).gpus == 1
    with pytest.raises(dqn_cartpole.UsageError, match="--gpus 2: the number of visible GPUs is 1"):
        parse_args(["--gpus", "2"])


def test_second_process_ends_with_the_first_where_they_cannot_meet(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        process = start(tmp_path / "run", *FLAGS, **env)
        code, _, errors = finish(process, tmp_path / "run", within=30)
    assert code == 1
    assert "EADDRINUSE" in errors
