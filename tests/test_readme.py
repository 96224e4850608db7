"""The README says what is so."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers import RUN, SCRIPT, last_of, load, run_script, scalars

import dqn_cartpole

ROOT = SCRIPT.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = ["--max_epochs", "1", "--steps_per_epoch", "60", "--warm_start_steps", "100"]


def program(word: str) -> str:
    """The only program in the README that has this word."""
    (text,) = (text for text in PYTHON if word in text and not text.startswith("    "))
    return text


def run_program(text: str, folder: Path, *flags: str) -> str:
    (folder / "my_agent.py").write_text(text)
    done = run_script(*flags, cwd=folder, script=folder / "my_agent.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_short_enough_to_be_finished():
    assert len(README.split()) <= 1600


def test_every_command_line_is_taken(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    lines = re.findall(r"^ +(?:.*&& )?(?:python|torchrun.*?) dqn_cartpole\.py ?(.*)$", README, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        flags = shlex.split(line, comments=True)
        if {"--resume", "--start"} & set(flags):
            with pytest.raises(SystemExit):
                dqn_cartpole.set_up(dqn_cartpole.ImprovedDQN, flags)
            assert "no checkpoint in lightning_logs/version_0" in capsys.readouterr().err  # read, but there is none yet
        else:
            dqn_cartpole.set_up(dqn_cartpole.ImprovedDQN, flags)


def test_every_file_it_names_is_there():
    names = re.findall(r"(?:tests|lightning_logs/reference)/[\w/]+\.\w+", README)
    assert len(names) >= 3
    for name in names:
        assert (ROOT / name).is_file(), name


def test_every_link_leads_somewhere():
    for name, heading in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", README):
        titles = re.findall(r"^#+ (.*)$", (ROOT / (name or "README.md")).read_text(), re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], heading


def test_it_names_every_example():
    for path in (ROOT / "tests" / "examples").glob("*.py"):
        assert f"`{path.stem}`" in README


def test_the_target_computed_by_hand_is_the_one_of_the_loss():
    reward, gamma, best, target = re.search(r"(\d+) \+ ([\d.]+) \* (\d+) = (\d+\.\d+)", README).groups()
    model = dqn_cartpole.DQNLightning(gamma=float(gamma))
    for weight in model.target_net.parameters():
        torch.nn.init.constant_(weight, 0)
    model.target_net.net[-1].bias.data = torch.tensor([0.0, float(best)])
    state, rewards = torch.zeros(2, 4), torch.tensor([float(reward)] * 2)
    batch = dqn_cartpole.Experience(state, None, rewards, torch.tensor([False, True]), state)
    assert model.td_targets(batch).tolist() == pytest.approx([float(target), float(reward)])


def test_the_programs_that_use_the_agent_run(tmp_path):
    done = run_script(*SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = program("play_episodes").replace('"human"', '"rgb_array"') + program("torch.export.export")
    text += "net = torch.export.load('agent.pt2').module()\nassert action in (0, 1)\n"
    text += "states = torch.randn(7, 4)\ntorch.testing.assert_close(net(states), model.cpu()(states))\n"
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_plain_trainer_trains_and_its_run_can_be_resumed(folder):
    (line,) = re.findall(r"`(pl\.Trainer\(max_epochs=30.*?)`", README, re.DOTALL)
    exec(line.replace("30", "1"), {"pl": pl} | vars(dqn_cartpole))
    assert "buffer" in load(last_of(RUN))


def test_the_agent_of_ones_own_trains(tmp_path):
    flags, result = re.search(r"^    python my_agent\.py (--w.*)\n\nends with `(.*)`", README, re.MULTILINE).groups()
    assert result in run_program(program("class Corridor"), tmp_path, *flags.split())


def test_the_method_that_logs_a_value_per_episode_logs_one_point_an_episode(tmp_path):
    (method,) = (text for text in PYTHON if text.startswith("    "))
    text = program("class Corridor").replace("terminated, False, {}", 'terminated, False, {"is_success": terminated}')
    text = text.replace("\n\nif __name__", f"\n{method}\n\nif __name__")
    run_program(text, tmp_path, *SHORT)
    curves = scalars(tmp_path / RUN)
    assert [step for step, _ in curves["success"]] == [step for step, _ in curves["total_reward"]] != []
    assert {value for _, value in curves["success"]} <= {0, 1}
