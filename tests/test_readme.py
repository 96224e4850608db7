"""The README says what is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SCRIPT, run_script

import dqn_cartpole

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def program(word: str) -> str:
    """The only program in the README that has this word."""
    (text,) = (text for text in PYTHON if word in text and not text.startswith("    "))
    return text


def test_it_is_short_enough_to_be_finished():
    assert len(README.split()) <= 2000


def test_every_command_line_is_read(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    lines = re.findall(r"^    (?:.*&& )?python dqn_cartpole\.py ?(.*)$", README, re.MULTILINE)
    assert len(lines) >= 3
    for flags in lines:
        flags = flags.split()
        if not {"--resume", "--test"} & set(flags):
            dqn_cartpole.parse_args(flags)
            continue
        with pytest.raises(SystemExit):
            dqn_cartpole.parse_args(flags)
        assert "--resume needs a last.ckpt" in capsys.readouterr().err  # it is read, but the file is not there


def test_every_file_it_names_is_there():
    for name in re.findall(r"(?:tests|lightning_logs/reference)/[\w/]+\.\w+", README):
        assert (ROOT / name).is_file(), name


def test_every_link_leads_somewhere():
    for name, heading in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", README):
        titles = re.findall(r"^#+ (.*)$", (ROOT / (name or "README.md")).read_text(), re.M)
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], (
            name,
            heading,
        )


def test_every_excerpt_is_the_files_own():
    """Those that are indented; the others are programs of the reader's."""
    excerpts = [text for text in PYTHON if text.startswith("    ")]
    assert excerpts
    for text in excerpts:
        assert text in SCRIPT.read_text()


def test_the_target_computed_by_hand_is_the_one_of_the_loss():
    reward, gamma, best, target = re.search(r"(\d+) \+ ([\d.]+) \* (\d+) = (\d+\.\d+)", README).groups()
    model = dqn_cartpole.DQNLightning(gamma=float(gamma))
    for weight in model.target_net.parameters():
        torch.nn.init.constant_(weight, 0)
    model.target_net.net[-1].bias.data = torch.tensor([0.0, float(best)])
    state, rewards = torch.zeros(2, 4), torch.tensor([float(reward)] * 2)
    batch = dqn_cartpole.Experience(state, None, rewards, torch.tensor([False, True]), state)
    targets = model.td_targets(batch)
    assert targets.tolist() == pytest.approx([float(target), float(reward)])


def test_its_programs_compile():
    for text in PYTHON:
        if not text.startswith("    "):
            compile(text, "README.md", "exec")


def test_the_programs_that_use_the_agent_run(tmp_path):
    """The loop that plays with it, and the export."""
    done = run_script("--max_epochs", "41", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = program("episode_over =").replace('render_mode="human"', "") + program("torch.export.export")
    text += "net = torch.export.load('agent.pt2').module()\n"
    text += "states = torch.randn(7, 4)\ntorch.testing.assert_close(net(states), model.cpu()(states))\n"
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_agent_of_ones_own_trains(tmp_path):
    (tmp_path / "my_agent.py").write_text(program("class Corridor"))
    (flags,) = re.findall(r"^    python my_agent\.py (.*)$", README, re.MULTILINE)
    done = run_script(*flags.split(), "--max_epochs", "3", cwd=tmp_path, script=tmp_path / "my_agent.py")
    assert done.returncode == 0, done.stderr
    assert "test_reward: " in done.stdout


def test_the_algorithm_of_ones_own_trains(tmp_path):
    (tmp_path / "munchausen.py").write_text(program("class Munchausen"))
    done = run_script("--max_epochs", "41", cwd=tmp_path, script=tmp_path / "munchausen.py")
    assert done.returncode == 0, done.stderr
    assert "python munchausen.py --test" in done.stdout.replace(str(tmp_path) + "/", "")


def test_the_plain_trainer_trains_it(folder):
    exec(program("EarlyStopping"), {})


def test_it_names_every_example():
    named = set(re.findall(r"`(\w+)`", README.partition("| [example]")[2].partition("\n\n")[0]))
    assert named >= {path.stem for path in (ROOT / "tests" / "examples").glob("*.py")}


def test_the_test_command_stands_where_ci_reads_it():
    command = "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest tests"
    assert f"    {command}\n" in README
