"""The README's section "Make it yours": its changes apply to the script and train."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SCRIPT

SECTION = (SCRIPT.with_name("README.md")).read_text().partition("\n## Make it yours\n")[2].partition("\n## ")[0]
# A command and the change before which it stands.
CHANGES = dict(zip(("environment", "network", "algorithm"), re.findall(r"```diff\n(.*?)```", SECTION, re.S)))
COMMANDS = re.findall(r"^    python dqn_cartpole.py(.*)$", SECTION, re.M)


def test_there_are_three_changes_each_with_its_command():
    assert len(CHANGES) == len(COMMANDS) == len(re.findall("```diff", SECTION)) == 3


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_has_at_most_30_lines(name):
    lines = [line for line in CHANGES[name].splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
    assert 1 <= len(lines) <= 30


@pytest.mark.parametrize(
    ("names", "command", "good"),
    [
        (["environment"], COMMANDS[0], 0.8),
        (["environment", "network"], COMMANDS[1], 0.8),
        (["algorithm"], COMMANDS[2], 100),
    ],
)
def test_the_changed_script_learns(names, command, good, tmp_path):
    script = tmp_path / "dqn_cartpole.py"
    script.write_text(SCRIPT.read_text())
    for name in names:
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
    assert max(map(float, re.findall(r"val_reward ([\d.]+)$", done.stderr, re.M))) >= good
    assert "Traceback" not in done.stderr
    assert Path(tmp_path, "lightning_logs", "version_0", "checkpoints", "best.ckpt").exists()
