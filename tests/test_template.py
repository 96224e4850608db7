"""The changes in tests/changes, which the README's section "Make it yours" names, apply to the script and train."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SCRIPT

CHANGES = {path.stem: path.read_text() for path in (SCRIPT.parent / "tests" / "changes").glob("*.diff")}
SECTION = SCRIPT.with_name("README.md").read_text().partition("\n## Make it yours\n")[2].partition("\n## ")[0]
# A row of its table: which changes, one on top of the other, and the command.
ROWS = re.findall(r"^\| `([\w, ]+)` \|.*\| `python dqn_cartpole\.py ?(.*)` \|$", SECTION, re.M)


def test_the_readme_names_every_change():
    assert {name for names, _ in ROWS for name in names.split(", ")} == CHANGES.keys()


def test_what_the_readme_shows_is_in_the_changes():
    shown = re.findall(r"```diff\n(.*?)```", SECTION, re.S)
    assert len(shown) == 2
    for text in shown:
        assert any(all(part in change for part in text.split(" ...\n")) for change in CHANGES.values()), text


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_has_at_most_30_lines(name):
    lines = [line for line in CHANGES[name].splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
    assert 1 <= len(lines) <= 30


@pytest.mark.parametrize(("names", "command"), ROWS)
def test_the_changed_script_learns(names, command, tmp_path):
    script = tmp_path / "dqn_cartpole.py"
    script.write_text(SCRIPT.read_text())
    for name in names.split(", "):
        apply = subprocess.run(
            ["git", "apply", "-p0"], cwd=tmp_path, input=CHANGES[name], text=True, capture_output=True
        )
        assert apply.returncode == 0, apply.stderr
    done = subprocess.run(
        [sys.executable, script.name, *command.split(), "--max_epochs", "250"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    good = 0.8 if "Catch" in command else 100
    assert max(map(float, re.findall(r"val_reward ([\d.]+)", done.stderr))) >= good
    assert "Traceback" not in done.stderr
    assert Path(tmp_path, "lightning_logs", "version_0", "checkpoints", "best.ckpt").exists()
