"""The README and the file of results say what is so."""

import importlib
import re
from pathlib import Path

import pytest

import dqn_cartpole

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()
# The settings of the article's family of scripts, and the command line with which the README makes them.
FAMILY = {"lr": 1e-2, "lr_schedule": "constant", "eps_start": 1.0, "eps_end": 0.01, "eps_last_frame": 1000}
FAMILY |= {"replay_size": 1000, "n_step": 1}


def settings(flags: str = "") -> dict[str, object]:
    return vars(dqn_cartpole.Parser().parse_args(flags.split()))


def test_every_flag_is_explained_with_its_default():
    rows = dict(re.findall(r"^\| `--(\w+)(?: \[?CKPT\]?)?` \| (\S+) \|", README, re.MULTILINE))
    assert rows == {name: "-" if default is None else str(default) for name, default in settings().items()}


def test_one_command_line_makes_the_articles_family():
    (flags,) = re.findall(r"^    python dqn_cartpole\.py (--lr 1e-2 .*)$", README, re.MULTILINE)
    assert settings(flags) == settings() | FAMILY


def test_the_quick_command_line_is_the_one_that_is_timed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    quick = importlib.import_module("speed").QUICK
    (flags,) = re.findall(r"^    python dqn_cartpole\.py (.* --val_check_interval 260)$", RESULTS, re.MULTILINE)
    assert settings(flags) == settings() | quick


@pytest.mark.parametrize("text", [README, RESULTS], ids=["README.md", "RESULTS.md"])
def test_every_command_line_is_read(text):
    lines = re.findall(r"^    (?:torchrun .*|srun .*python |python )dqn_cartpole\.py ?(.*)$", text, re.MULTILINE)
    assert lines
    for flags in lines:
        dqn_cartpole.Parser().parse_args(flags.split())


def test_every_file_it_names_is_there():
    for name in re.findall(r"tests/[\w/]+\.\w+", README + RESULTS):
        assert (ROOT / name).is_file(), name


def test_every_link_leads_somewhere():
    headings = {
        name: {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
        }
        for name, text in (("", README), ("tests/benchmarks/RESULTS.md", RESULTS))
    }
    for name, heading in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", README):
        assert heading in headings[name], (name, heading)


def test_the_test_command_stands_where_ci_reads_it():
    command = "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest tests"
    assert f"    {command}\n" in README
