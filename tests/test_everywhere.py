"""Where people run it: a notebook, a thread, a plain Trainer, with other people's environments, without the script."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import SCRIPT, run_script, same_tensors
from PIL import Image

import dqn_cartpole
from dqn_cartpole import TEST_SEEDS, DQNLightning

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*is out of date", "ignore:.*has `__len__`"
)

FEW = ("--test_episodes", "5")


def main(*flags: str) -> None:
    dqn_cartpole.main(dqn_cartpole.parse_args([*flags, *FEW]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run that has learned something."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main("--max_epochs", "120")
    return folder


@pytest.fixture
def best(trained) -> Path:
    return trained / "lightning_logs" / "version_0" / "checkpoints" / "best.ckpt"


# A notebook

IMPORTS = """
import gymnasium, json, os, pytorch_lightning, signal, sys, tensorboard, threading, torch, warnings
gymnasium.make("CartPole-v1", render_mode="rgb_array").reset()  # so that what it imports is there
def surroundings():
    handlers = {int(number): str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    filters = [str(entry) for entry in warnings.filters]
    return {"threads": torch.get_num_threads(), "variables": dict(os.environ), "warnings": filters,
            "signals": handlers, "thread excepthook": str(threading.excepthook), "path": list(sys.path)}
torch.set_num_threads(2)
print(json.dumps(surroundings()))
"""
LOOK = "print(json.dumps(surroundings()))"
RUN = f"%run dqn_cartpole.py --max_epochs 20 {' '.join(FEW)}"
IMPORT_AND_RUN = f"from dqn_cartpole import main, parse_args; main(parse_args(['--max_epochs', '20', *{FEW}]))"
RUN_AGAIN = f"main(parse_args(['--max_epochs', '20', *{FEW}]))"
NO_WIDGETS = """
for name in [name for name in sys.modules if name.split(".")[0] in ("tqdm", "ipywidgets")]:
    del sys.modules[name]
sys.modules["ipywidgets"] = None
"""


def execute(cells: list[str], folder: Path):
    """Run the cells in a kernel of their own, as a person does in Jupyter; an error in a cell is an error here."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    shutil.copy(SCRIPT, folder)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()


def printed(cell, name: str = "stdout") -> str:
    return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == name)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook that trains three times, and looks around before and after; then once more without ipywidgets."""
    cells = [IMPORTS, RUN, LOOK, IMPORT_AND_RUN, LOOK, RUN_AGAIN, LOOK, NO_WIDGETS, RUN]
    return execute(cells, tmp_path_factory.mktemp("notebook"))


def test_trains_in_a_notebook_three_times(notebook):
    for number, cell in enumerate(notebook.cells[1:7:2]):
        assert f"20 epochs of 13 steps, logged in lightning_logs/version_{number}\n" in printed(cell)
        assert re.search(r"^test_reward: [\d.]+ \+/- [\d.]+ over \d+ episodes$", printed(cell), re.M)
        assert not [output for output in cell.outputs if output.output_type == "error"]


def test_a_notebook_shows_no_warnings(notebook):
    for cell in notebook.cells[1:7:2]:
        assert "Warning" not in printed(cell, "stderr")


def test_the_same_cell_in_a_notebook_gives_the_same_result(notebook):
    results = [re.search(r"^test_reward: .*", printed(cell), re.M).group() for cell in notebook.cells[1:7:2]]
    assert len(set(results)) == 1


def test_a_notebook_shows_a_progress_bar_that_reaches_the_end(notebook):
    widgets = notebook.metadata.get("widgets", {})
    for cell in notebook.cells[1:7:2]:
        shown = [output for output in cell.outputs if "widget" in json.dumps(output) or "%|" in json.dumps(output)]
        assert shown
    assert json.dumps([widgets, notebook.cells[:7]]).count("260/260") >= 3


def test_a_notebook_without_widgets_shows_a_bar_in_plain_text(notebook):
    cell = notebook.cells[-1]
    assert "260/260" in printed(cell) + printed(cell, "stderr")


@pytest.mark.parametrize(
    "what",
    [
        "threads",
        "variables",
        "warnings",
        "thread excepthook",  # of `%run` alone
        "signals",
        "path",
    ],
)
def test_a_notebook_is_afterwards_as_it_was(notebook, what):
    before, *after = (json.loads(printed(cell).splitlines()[-1])[what] for cell in notebook.cells[:7:2])
    for now in after:
        assert now == before


def test_a_notebook_is_told_a_command_that_exists(notebook):
    for cell in notebook.cells[1:7:2]:
        command = printed(cell).splitlines()[-1].split()
        assert Path(command[1]).name == SCRIPT.name


def test_the_stop_button_before_the_training_leaves_the_notebook_alive(tmp_path):
    kernels = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    shutil.copy(SCRIPT, tmp_path)
    manager, client = kernels.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        client.execute("%run dqn_cartpole.py --warm_start_steps 1000000")
        time.sleep(3)
        manager.interrupt_kernel()
        time.sleep(1)
        assert manager.is_alive()
        client.get_shell_msg(timeout=60)  # the cell has ended, long before its million steps
        client.execute("6 * 7")
        assert client.get_shell_msg(timeout=60)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# A program


def test_trains_in_a_thread_and_leaves_the_signals_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, failed = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def work() -> None:
        try:
            main("--max_epochs", "20")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    seen = set()
    while thread.is_alive():
        seen |= {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        thread.join(0.01)
    assert not failed, failed[0]
    assert (tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").exists()
    assert seen == set(before)


@pytest.mark.parametrize("what", ["threads", "variables"])
def test_a_program_that_calls_main_finds_everything_as_it_was(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads, variables = torch.get_num_threads(), dict(os.environ)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "SDL_VIDEODRIVER", "SDL_NO_SIGNAL_HANDLERS"):
        monkeypatch.delenv(name, raising=False)  # what tests before this one may have left
    try:
        torch.set_num_threads(2)
        clean = dict(os.environ)
        main("--max_epochs", "1")
        assert {"threads": torch.get_num_threads() == 2, "variables": dict(os.environ) == clean}[what]
    finally:
        torch.set_num_threads(threads)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]


# A plain Trainer


class Watch(pl.Callback):
    """Notes what Lightning's own bar counts to, and the learning rate before each step, by step."""

    def __init__(self) -> None:
        self.batches: set[float] = set()
        self.rates: dict[int, float] = {}

    def on_train_batch_start(self, trainer, module, *_):
        self.batches.add(trainer.num_training_batches)
        self.rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize(("length", "steps"), [({"max_epochs": 30}, 390), ({"max_steps": 100}, 100)])
@pytest.mark.parametrize("env", ["CartPole-v0", "CartPole-v1"])
def test_a_plain_trainer_trains_and_tests_it(env, length, steps, capsys):
    model, watch = DQNLightning(env), Watch()
    trainer = pl.Trainer(**length, logger=False, enable_checkpointing=False, accelerator="cpu", callbacks=[watch])
    trainer.fit(model)
    assert trainer.global_step == len(watch.rates) == steps
    assert watch.batches == {13}
    assert "13/13" in capsys.readouterr().out
    for step, rate in watch.rates.items():
        begun = step // 13 * 13  # the rate changes between epochs
        assert rate == pytest.approx(0.005 * (1 + math.cos(math.pi * begun / steps)) / 2, abs=1e-9)
    (result,) = trainer.test(model, verbose=False)
    assert 8 <= result["test_reward"] <= model.env.spec.max_episode_steps


def test_a_plain_trainer_resumes_exactly_with_the_callback(tmp_path):
    """With `max_steps`, too, where it has no `max_epochs`."""

    def train(folder: str, steps: int, last: Path | None) -> DQNLightning:
        pl.seed_everything(0, verbose=False)
        model = DQNLightning(lr_schedule="constant")
        callbacks, place = [dqn_cartpole.Checkpoints()], tmp_path / folder
        trainer = pl.Trainer(
            max_steps=steps, logger=False, accelerator="cpu", callbacks=callbacks, default_root_dir=place
        )
        trainer.fit(model, ckpt_path=last, weights_only=True)
        return model

    train("stopped", 130, None)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert same_tensors(train("stopped", 260, last).state_dict(), train("straight", 260, None).state_dict())


def test_a_checkpoint_is_loaded_as_lightning_documents_it(best):
    model = DQNLightning.load_from_checkpoint(best)
    saved = torch.load(best, weights_only=True)
    assert same_tensors(model.state_dict(), saved["state_dict"])
    assert {name: saved["hyper_parameters"][name] for name in model.hparams} == dict(model.hparams)


# The agent on its own

USE = """
import gymnasium as gym
import torch

from dqn_cartpole import DQNLightning

model = DQNLightning.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
env = gym.make(model.hparams.env)  # with render_mode="human" in a window
state, _ = env.reset(seed=0)
total, over = 0, False
while not over:
    action = model(torch.as_tensor(state).unsqueeze(0)).argmax().item()
    state, reward, terminated, truncated, _ = env.step(action)
    total, over = total + reward, terminated or truncated
print(total)
"""

EXPORT = """
import torch

from dqn_cartpole import DQNLightning

model = DQNLightning.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
batch = torch.export.Dim("batch")
program = torch.export.export(model.net, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
torch.export.save(program, "agent.pt2")
"""

PLAY_ALONE = """
import json, sys
import gymnasium as gym
import torch

net, played, seen = torch.export.load("agent.pt2").module(), {}, []
for seed in json.loads(sys.argv[1]):
    env, over, played[seed] = gym.make("CartPole-v0"), False, []
    state, _ = env.reset(seed=seed)
    while not over:
        action = net(torch.as_tensor(state).unsqueeze(0)).argmax().item()
        seen.append(torch.as_tensor(state))
        played[seed].append(action)
        state, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
together = net(torch.stack(seen)).argmax(1).tolist()
imported = sorted({"dqn_cartpole", "pytorch_lightning"} & set(sys.modules))
print(json.dumps([played, together, imported]))
"""


def test_ten_lines_play_an_episode_with_the_best_checkpoint(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    exec(USE, {})
    assert 20 < float(capsys.readouterr().out) <= 200


@torch.inference_mode()
def actions(model: DQNLightning, seed: int) -> list[int]:
    """What the model does in the episode of a seed."""
    env, over, played = gym.make("CartPole-v0"), False, []
    state, _ = env.reset(seed=seed)
    while not over:
        played.append(model(torch.as_tensor(state).unsqueeze(0)).argmax().item())
        state, _, terminated, truncated, _ = env.step(played[-1])
        over = terminated or truncated
    return played


def test_the_exported_network_plays_the_same_without_the_script_and_without_lightning(trained, best, monkeypatch):
    monkeypatch.chdir(trained)
    exec(EXPORT, {})
    seeds = list(TEST_SEEDS)
    command = [sys.executable, "-W", "ignore", "-c", PLAY_ALONE, json.dumps(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    played, together, imported = json.loads(done.stdout)
    model = DQNLightning.load_from_checkpoint(best)
    assert played == {str(seed): actions(model, seed) for seed in seeds}
    one_by_one = [action for seed in seeds for action in played[str(seed)]]
    assert len(together) == len(one_by_one) > 2000
    differ = sum(a != b for a, b in zip(together, one_by_one))
    assert differ <= 5  # in a batch the last bit of two nearly equal Q-values may come out otherwise
    assert imported == []


# Other people's environments

GRID = """
import gymnasium
from minigrid.wrappers import ImgObsWrapper

gymnasium.register("Grid-v0", lambda **kw: ImgObsWrapper(gymnasium.make("MiniGrid-Empty-5x5-v0", **kw)))
"""
MINATAR = """
import minatar.gym

minatar.gym.register_envs()
"""
ENVIRONMENTS = {
    "minigrid": (GRID, "myenvs:Grid-v0", ["--episode_length", "20", "--warm_start_steps", "500"]),
    "minatar": (MINATAR, "myenvs:MinAtar/Breakout-v1", []),
    "highway_env": ("", "highway_env:two-way-v0", ["--episode_length", "4", "--n_step", "1"]),
}


@pytest.fixture(scope="module", params=["minigrid", "minatar", pytest.param("highway_env", marks=pytest.mark.slow)])
def foreign(request, tmp_path_factory) -> tuple[Path, str]:
    """A short run in an environment of another package, by the command line: its folder and its output."""
    pytest.importorskip(request.param)
    folder, (module, env, flags) = tmp_path_factory.mktemp(request.param), ENVIRONMENTS[request.param]
    (folder / "myenvs.py").write_text(module)
    done = run_script("--env", env, "--max_epochs", "5", *flags, *FEW, cwd=folder, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_environment_of_another_package_trains(foreign):
    folder, output = foreign
    assert re.search(r"^test_reward: [\d.-]+ \+/-", output, re.M)
    assert "not finite" not in output
    assert (folder / "lightning_logs/version_0/checkpoints/last.ckpt").exists()


def test_the_command_that_is_printed_works_where_the_environment_is_in_a_module(foreign, monkeypatch, capsys):
    folder, output = foreign
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "myenvs", raising=False)
    main(*output.splitlines()[-1].split()[2:])
    assert re.search(r"^test_reward: .*", output, re.M).group() in capsys.readouterr().out


class Words(gym.Env):
    """Observations that gymnasium cannot turn into numbers, as those of MiniGrid."""

    class Mission(gym.spaces.Space):
        def sample(self, mask=None, probability=None):
            return "go to the goal"

    observation_space = gym.spaces.Dict({"mission": Mission()})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


def test_observations_that_do_not_become_an_array_are_refused_in_one_line():
    gym.register("Unreadable-v0", Words)
    try:
        with pytest.raises(dqn_cartpole.UsageError, match="--env Unreadable-v0: an observation"):
            DQNLightning("Unreadable-v0")
    finally:
        del gym.registry["Unreadable-v0"]


class Frames(gym.Env):
    """Ten steps, each brighter, drawn in one of the ways in which environments draw."""

    observation_space = gym.spaces.Box(0, 1, (2,))
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    looks = {  # noqa: RUF012
        "bytes": lambda picture: picture,
        "floats up to 1": lambda picture: picture / 255,
        "float32": lambda picture: (picture / 255).astype(np.float32),
        "gray": lambda picture: picture[:, :, 0],
        "gray with a channel": lambda picture: picture[:, :, :1],
        "gray floats": lambda picture: picture[:, :, 0] / 255,
        "integers": lambda picture: picture.astype(int),
    }

    def __init__(self, look: str, render_mode: str | None = None) -> None:
        self.look = self.looks[look]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return self.np_random.random(2, np.float32), 1.0, self.steps == 10, False, {}

    def render(self):
        return self.look(np.full((40, 60, 3), 20 * self.steps, np.uint8))


@pytest.mark.parametrize("look", Frames.looks)
def test_pictures_of_every_usual_kind_are_filmed(look, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gym.register("Frames-v0", Frames, kwargs={"look": look})
    try:
        main("--env", "Frames-v0", "--max_epochs", "1", "--video")
    finally:
        del gym.registry["Frames-v0"]
    with Image.open(io.BytesIO((tmp_path / "lightning_logs/version_0/agent.gif").read_bytes())) as film:
        film.seek(film.n_frames - 1)
        red, green, blue = film.convert("RGB").getpixel((150, 150))
    assert film.n_frames == 5
    assert red == green == blue == pytest.approx(160, abs=8)  # the picture before the ninth step
