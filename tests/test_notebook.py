"""Jupyter: `%run dqn_cartpole.py`, and `main` in a cell."""

import json
import re
import shutil

import pytest
from helpers import SCRIPT

RUN = "%run dqn_cartpole.py --max_epochs 20"
IMPORT = "from dqn_cartpole import main, parse_args; main(parse_args(['--max_epochs', '20']))"
NO_WIDGETS = """
import sys
for name in [name for name in sys.modules if name.split(".")[0] in ("tqdm", "ipywidgets")]:
    del sys.modules[name]
sys.modules["ipywidgets"] = None
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook that trains three times, the last time without ipywidgets; an error in a cell is an error here."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(SCRIPT, folder)
    cells = [nbformat.v4.new_code_cell(cell) for cell in (RUN, IMPORT, NO_WIDGETS, RUN)]
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(cells=cells), timeout=120, kernel_name="python3", resources=resources
    )
    return client.execute()


def printed(cell, name: str = "stdout") -> str:
    return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == name)


def runs(notebook) -> list:
    return [notebook.cells[number] for number in (0, 1, 3)]


def test_it_trains_again_and_again_with_the_same_result(notebook):
    results = [
        re.search(r"^test_reward: [\d.]+ \+/- [\d.]+ over 100 episodes$", printed(cell), re.M)
        for cell in runs(notebook)
    ]
    assert len({result.group() for result in results}) == 1
    for number, cell in enumerate(runs(notebook)):
        assert f"lightning_logs/version_{number}" in printed(cell).splitlines()[0]


def test_it_shows_no_warnings(notebook):
    for cell in runs(notebook)[:2]:
        assert "Warning" not in printed(cell, "stderr")


def test_it_shows_a_bar_that_reaches_the_end(notebook):
    *with_widgets, without = runs(notebook)
    for cell in with_widgets:
        assert [output for output in cell.outputs if "widget" in json.dumps(output) or "%|" in json.dumps(output)]
    assert json.dumps([notebook.metadata.get("widgets", {}), with_widgets]).count("260/260") >= 2
    assert "260/260" in printed(without) + printed(without, "stderr")


def test_run_is_told_a_command_that_exists(notebook):
    command = printed(notebook.cells[0]).splitlines()[-1].split()
    assert command[1].endswith(SCRIPT.name)
