"""Settings of every test."""

import tempfile
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

import dqn_cartpole


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)  # main sets it
    torch.set_num_threads(1)  # more would wait for each other: the networks are small
    pl.seed_everything(0, verbose=False)  # a test passes always or never


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current one; a run in it is validated and tested with few episodes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dqn_cartpole, "VAL_SEEDS", range(3))
    monkeypatch.setattr(dqn_cartpole, "TEST_SEEDS", range(1000, 1003))
    return tmp_path
