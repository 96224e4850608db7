"""The committed run beside which a newcomer sees their own."""

import inspect
from pathlib import Path

import yaml
from helpers import scalars
from PIL import Image, ImageSequence

from dqn_cartpole import DQNLightning, ImprovedDQN

REFERENCE = Path(__file__).resolve().parents[1] / "lightning_logs" / "reference"


def test_it_has_every_curve_and_ends_solved():
    curves = scalars(REFERENCE)
    promised = "total_reward avg_reward reward train_loss epsilon lr q_mean val_reward test_reward"
    assert set(promised.split()) <= curves.keys()
    assert max(value for _, value in curves["total_reward"]) == 200
    assert all(curves[name][-1][1] >= 195 for name in ("val_reward", "test_reward"))


def test_it_is_a_run_of_the_defaults_small_and_without_checkpoints():
    arguments = inspect.signature(DQNLightning).parameters | inspect.signature(ImprovedDQN).parameters
    defaults = {name: argument.default for name, argument in arguments.items() if name != "kwargs"}
    assert yaml.safe_load((REFERENCE / "hparams.yaml").read_text()) == defaults
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".ckpt"]
    assert sum(path.stat().st_size for path in files) < 2**20


def test_its_video_is_of_a_whole_episode():
    with Image.open(REFERENCE / "agent.gif") as video:
        # Pillow shows frames that are alike as one, for longer.
        pauses = [frame.info["duration"] for frame in ImageSequence.Iterator(video)]
    assert sum(pauses) == 100 * 40  # milliseconds, for every other step of 200
