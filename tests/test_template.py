"""The changes in tests/changes, which the README's section "Make it yours" names, apply, train and resume exactly."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_resume
from helpers import SCRIPT
from test_resume import assert_same_run, hurry, kill, run

CHANGES = {path.stem: path.read_text() for path in (SCRIPT.parent / "tests" / "changes").glob("*.diff")}
README = SCRIPT.with_name("README.md").read_text()
SECTION = README.partition("\n## Make it yours\n")[2].partition("\n## ")[0]
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
    told = re.search(rf"^\| `(?:\w+, )?{name}` \| (\d+) \|", SECTION, re.M)
    assert int(told.group(1)) == len(lines)


ATARI = [row for row in ROWS if "atari" in row[0]]
OTHERS = [row for row in ROWS if row not in ATARI]
SHORT = "--max_epochs 60 --val_check_interval 260 --episode_length 50 --replay_size 1200"
# An Atari run of a few pictures: each step takes four, and up to 30 go by before an episode.
SHORT_ATARI = (
    "--max_epochs 60 --val_check_interval 80 --episode_length 160 --replay_size 200 --warm_start_steps 100"
    " --sample_size 16 --batch_size 8 --hidden_size 16"
)


def change(names: str, folder: Path, few_episodes: bool) -> None:
    """Write the changed script into a new folder; `few_episodes` of validation and test make it quicker."""
    folder.mkdir()
    text = SCRIPT.read_text()
    seeds = "VAL_SEEDS, TEST_SEEDS, TRAIN_SEEDS = range(20), range(1000, 1100)"
    assert seeds in text
    if few_episodes:
        text = text.replace(seeds, seeds.replace("range(20)", "range(2)").replace("1100", "1002"))
    Path(folder, SCRIPT.name).write_text(text)
    for name in names.split(", "):
        command = ["git", "apply", "-p0"]
        apply = subprocess.run(command, cwd=folder, input=CHANGES[name], text=True, capture_output=True)
        assert apply.returncode == 0, apply.stderr


def changed() -> None:
    """In the process of a run: let the script be that of its folder, and import what lies beside it."""
    test_resume.SCRIPT = Path(SCRIPT.name).resolve()
    sys.path.insert(0, os.getcwd())


def changed_in_a_hurry() -> None:
    changed()
    hurry()


def assert_resumes_exactly(names: str, flags: str, tmp_path: Path, env: str = "", module: str = "") -> None:
    """`env` is repeated where the run is resumed; `module` is the text of the my_envs.py that it needs."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        change(names, folder, few_episodes=True)
        Path(folder, "my_envs.py").write_text(module)
    code, _, errors = run(f"{env} {flags}", straight, changed_in_a_hurry)
    assert code == 0, errors
    assert kill(f"{env} {flags}", killed, 2, 0, changed_in_a_hurry)
    code, _, errors = run(f"--resume {env}", killed, changed_in_a_hurry)
    assert code == 0, errors
    assert_same_run(killed, straight)


# The long form trains every change until it plays well; the short one the two that the README shows.
LEARNS = [
    row if row[0] in ("catch, convolution", "dueling") else pytest.param(*row, marks=pytest.mark.slow) for row in OTHERS
]


@pytest.mark.parametrize(("names", "flags"), LEARNS)
def test_the_changed_script_learns(names, flags, tmp_path):
    change(names, tmp_path / "run", few_episodes=False)
    code, _, errors = run(f"{flags} --max_epochs 250", tmp_path / "run", changed)
    assert code == 0, errors
    assert "Traceback" not in errors
    good = 0.8 if "Catch" in flags else 100
    assert max(map(float, re.findall(r"val_reward ([\d.]+)", errors))) >= good
    assert Path(tmp_path, "run", "lightning_logs", "version_0", "checkpoints", "best.ckpt").exists()


@pytest.mark.parametrize(("names", "flags"), OTHERS)
def test_the_changed_script_resumes_exactly(names, flags, tmp_path):
    assert_resumes_exactly(names, f"{flags} {SHORT}", tmp_path)


def test_the_convolution_trains_on_minatar_and_resumes_exactly(tmp_path):
    pytest.importorskip("minatar")
    module, command = re.search(
        r"^```python\n(import minatar.*?)```\n.*?dqn_cartpole.py (--env \S+)", README, re.M | re.S
    ).groups()
    assert_resumes_exactly("convolution", SHORT, tmp_path, command, module)


@pytest.mark.slow
@pytest.mark.parametrize(("names", "flags"), ATARI)
def test_the_changed_script_trains_on_atari_and_resumes_exactly(names, flags, tmp_path):
    for package in ("ale_py", "cv2"):
        pytest.importorskip(package)
    assert_resumes_exactly(names, f"{flags} {SHORT_ATARI}", tmp_path)
