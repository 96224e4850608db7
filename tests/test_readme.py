"""The README and the file of results say what is so."""

import importlib
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
RESULTS = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()
# The settings of the article's family of scripts, and the command line with which the README makes them.
FAMILY = {"lr": 1e-2, "lr_schedule": "constant", "eps_start": 1.0, "eps_end": 0.01, "eps_last_frame": 1000}
FAMILY |= {"replay_size": 1000, "n_step": 1}
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def settings(flags: str = "") -> dict[str, object]:
    return vars(dqn_cartpole.Parser().parse_args(flags.split()))


def test_it_is_short_enough_to_be_finished():
    assert len(README.split()) <= 2500


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
    lines = re.findall(r"^    .*\bdqn_cartpole\.py ?(.*?)(?: & done; wait)?$", text, re.MULTILINE)
    assert len(lines) >= 8
    for flags in lines:
        flags = re.sub(r"--steps_per_update \d+", "", flags)  # a flag of tests/changes/updates.diff
        dqn_cartpole.Parser().parse_args(flags.replace("$seed", "3").split())


def test_every_file_it_names_is_there():
    for name in re.findall(r"(?:tests|lightning_logs/reference)/[\w/]+\.\w+", README + RESULTS):
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


def test_every_figure_that_it_quotes_stands_in_the_results():
    """The number of seeds, and how many of them did it."""
    quoted = re.findall(r"\b\d+ of \d+\b", README)
    assert len(quoted) >= 2
    for figure in quoted:
        assert figure in RESULTS, figure


def test_every_excerpt_is_the_files_own():
    """Those that are indented; the others are programs of the reader's."""
    excerpts = [text for text in PYTHON if text.startswith("    ")]
    assert len(excerpts) >= 2
    for text in excerpts:
        assert text in SCRIPT.read_text()
        assert text.count("\n") <= 15


def test_the_target_computed_by_hand_is_the_one_of_the_loss():
    reward, gamma, best, target = re.search(r"(\d+) \+ ([\d.]+) \* (\d+) = (\d+\.\d+)", README).groups()
    other = re.search(rf"Q-values (\d+) and {best}", README).group(1)
    model = dqn_cartpole.DQNLightning(gamma=float(gamma), n_step=1)
    for network, values in ((model.net, (0.0, 0.0)), (model.target_net, (float(other), float(best)))):
        for weight in network.parameters():
            torch.nn.init.zeros_(weight)
        network.net[-1].bias.data = torch.tensor(values)
    for done, expected in ((False, float(target)), (True, float(reward))):
        state, action = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
        loss = model.dqn_mse_loss((state, action, torch.tensor([float(reward)]), torch.tensor([done]), state))
        assert loss.sqrt().item() == pytest.approx(expected, abs=1e-4)


def test_the_programs_that_use_the_agent_run(tmp_path):
    """The loop that plays it, the export, and another program with the exported file alone."""
    done = run_script("--max_epochs", "60", "--test_episodes", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    play, export = (text for text in PYTHON if "load_from_checkpoint" in text or "torch.export" in text)
    play = play.replace(', render_mode="human"', "")
    script = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{play}{export}"
    script += "import numpy as np\nstates = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)\n"
    script += "print(model(torch.as_tensor(states)).argmax(1).tolist())\n"
    ours = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ours.returncode == 0, ours.stderr
    script = 'import sys\nimport numpy as np\nimport torch\nnet = torch.export.load("agent.pt2").module()\n'
    script += "states = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)\n"
    script += "print(net(torch.as_tensor(states)).argmax(1).tolist())\n"
    script += 'assert not {"dqn_cartpole", "pytorch_lightning"} & sys.modules.keys()\n'
    theirs = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout == ours.stdout.splitlines()[-1] + "\n"


def test_the_test_command_stands_where_ci_reads_it():
    command = "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest tests"
    assert f"    {command}\n" in README
