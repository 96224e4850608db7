"""The README says what is so."""

import importlib
import re
from pathlib import Path

import dqn_cartpole

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_flag_is_explained_with_its_default():
    rows = dict(re.findall(r"^\| `--(\w+)` \| (\S+) \|", README, re.MULTILINE))
    flags = dqn_cartpole.RUN_SETTINGS | dqn_cartpole.hyperparameters()
    assert rows == {name: "-" if default is None else str(default) for name, (_, default, *_) in flags.items()}


def test_the_quick_command_line_is_the_one_that_is_timed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    quick = importlib.import_module("speed").QUICK
    (flags,) = re.findall(r"^    python dqn_cartpole\.py (.* --val_check_interval 260)$", README, re.MULTILINE)
    assert vars(dqn_cartpole.parse_args(flags.split())) == quick | {"resume": None, "test": None}


def test_every_file_it_names_is_there():
    for name in re.findall(r"tests/[\w/]+\.(?:py|txt)", README):
        assert (ROOT / name).is_file(), name


def test_the_test_command_stands_where_ci_reads_it():
    command = "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest tests"
    assert f"    {command}\n" in README
