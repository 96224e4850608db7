"""The committed run beside which a newcomer sees their own."""

from pathlib import Path

import yaml
from helpers import scalars
from PIL import Image, ImageSequence

import dqn_cartpole

REFERENCE = Path(__file__).resolve().parents[1] / "lightning_logs" / "reference"


def test_it_reaches_200():
    curves = scalars(REFERENCE)
    assert max(value for _, value in curves["total_reward"]) == 200
    assert curves["val_reward"][-1][1] == 200
    assert curves["test_reward"][-1][1] == 200


def test_it_is_a_run_of_the_defaults():
    defaults = dqn_cartpole.parse_args([])
    assert yaml.safe_load((REFERENCE / "hparams.yaml").read_text()) == defaults.dqn | defaults.settings


def test_it_is_small_and_holds_no_checkpoint():
    names = {path.name: path.stat().st_size for path in REFERENCE.rglob("*")}
    events = {name for name in names if name.startswith("events.out.tfevents.") and name.endswith(".reference")}
    assert set(names) - events == {"hparams.yaml", "agent.gif", "curve.png", "tensorboard.png"}
    assert sum(names.values()) < 2**20


def test_its_film_is_of_a_whole_episode():
    with Image.open(REFERENCE / "agent.gif") as film:
        # Pillow shows frames that are alike as one, for longer.
        pauses = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert sum(pauses) == 100 * 40  # milliseconds, for every other step of 200
