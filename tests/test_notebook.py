"""Jupyter: `%run dqn_cartpole.py`, and `main` in a cell."""

import json
import shutil

import pytest
from helpers import SCRIPT

FLAGS = ["--max_epochs", "1", "--steps_per_epoch", "60"]
RUN = f"%run dqn_cartpole.py {' '.join(FLAGS)}"
IMPORT = f"from dqn_cartpole import main; main(argv={FLAGS})"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook that trains three times; an error in a cell is an error here."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(SCRIPT, folder)
    cells = [nbformat.v4.new_code_cell(cell) for cell in (RUN, IMPORT, RUN)]
    how = {"timeout": 120, "kernel_name": "python3", "resources": {"metadata": {"path": str(folder)}}}
    return nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), **how).execute()


def printed(cell, name: str = "stdout") -> str:
    return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == name)


def test_it_trains_again_and_again_and_prints_what_a_terminal_shows(notebook):
    results = []
    for number, cell in enumerate(notebook.cells):
        step, result, weights, curves, video = (line for line in printed(cell).splitlines() if line)
        assert step.startswith("step 60: val_reward ")
        assert weights == f"weights: lightning_logs/version_{number}/checkpoints/best.ckpt"
        assert (curves[:8], video) == ("curves: ", f"video: lightning_logs/version_{number}/agent.gif")
        results.append(result)
        assert ("%|" in json.dumps(cell.outputs), printed(cell, "stderr")) == (False, "")  # no bar and no warnings
    assert len(set(results)) == 1
    assert results[0].startswith("test_reward: ")


def test_main_returns_the_result(notebook):
    (value,) = (output for output in notebook.cells[1].outputs if output.output_type == "execute_result")
    assert "test_reward" in value["data"]["text/plain"]
