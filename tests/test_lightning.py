"""A plain Lightning Trainer, several processes, a thread, an export: what people do with a LightningModule."""

import copy
import csv
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import pytorch_lightning as pl
import torch
from helpers import FORKS, RUN, fit, last_of, load, main, same, scalars, write_to
from pytorch_lightning.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.tuner import Tuner

import dqn_cartpole
from dqn_cartpole import Agent, BestCheckpoint, DQNLightning, ExactResume, ImprovedDQN

MODULES = pytest.mark.parametrize("module", [DQNLightning, ImprovedDQN])
SMALL: dict[str, Any] = {"steps_per_epoch": 30, "warm_start_steps": 100, "replay_size": 150}
FLAGS = " ".join(f"--{name} {value}" for name, value in SMALL.items())
VALIDATED = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}


@MODULES
def test_a_plain_trainer_trains_validates_and_tests(module, capsys, folder):
    model = module(**SMALL)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False)
    trainer.fit(model)
    assert trainer.global_step == 60
    output = capsys.readouterr().out
    assert "30/30" in output
    assert "step 60: val_reward" in output
    assert 8 <= trainer.test(model, verbose=False)[0]["test_reward"] <= 200


def test_the_module_needs_no_arguments_and_its_network_can_be_compiled():
    model = DQNLightning()
    model.net.compile(backend="eager")
    assert fit(model, 1).global_step == 500


@pytest.mark.parametrize("monitor", ["avg_reward", "val_reward"])
def test_early_stopping(folder, monitor):
    stop = EarlyStopping(monitor, mode="max", patience=9, stopping_threshold=1.0)
    trainer = fit(DQNLightning(**SMALL), 9, stop, **VALIDATED)
    assert trainer.callback_metrics[monitor] > 1
    assert trainer.current_epoch < 9


def train(epochs: int, folder: Path, last: Path | None = None, model: DQNLightning | None = None) -> DQNLightning:
    """With the checkpoints of the file and one of Lightning's own in a plain Trainer."""
    pl.seed_everything(0, verbose=False)
    model = model or ImprovedDQN(lr_decay=False, eps_start=0.1, eps_end=0.1, max_epochs=4, **SMALL)
    own = ModelCheckpoint(folder / "own", "{epoch}", monitor="val_reward", mode="max", save_last=True)
    how = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "default_root_dir": folder}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[BestCheckpoint(), ExactResume(), own], **how)
    trainer.fit(model, ckpt_path=last, weights_only=True)
    assert own.best_model_score >= trainer.callback_metrics["val_reward"] >= 8
    return model


@pytest.mark.parametrize("last", ["own/last.ckpt", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("same_object", [True, False])
def test_a_plain_trainer_resumes_exactly_with_our_callback(folder, last, same_object):
    """Whichever checkpoint, and also into an object that has trained on, as in a notebook."""
    straight = train(4, folder / "straight")
    model = train(2, folder / "stopped")
    if same_object:
        fit(model, 3)
    resumed = train(4, folder / "stopped", folder / "stopped" / last, model if same_object else None)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (load(folder / run / "checkpoints" / name) for run in ("stopped", "straight"))
        for entry in {"state_dict", "buffer", "episode", "rng", "optimizer_states"} & theirs.keys():
            assert same(ours[entry], theirs[entry]), entry
    assert list(resumed.agent.scores) == list(straight.agent.scores)


def test_an_error_in_a_plain_trainer_without_a_logger_remains_visible(folder):
    gone = LambdaCallback(on_train_epoch_start=lambda trainer, _: trainer.current_epoch and os.listdir("gone"))
    with pytest.raises(FileNotFoundError, match="gone"):
        fit(DQNLightning(**SMALL), 2, ExactResume(), gone, enable_checkpointing=True)
    assert (folder / "checkpoints" / "last.ckpt").exists()


def test_every_logger_has_every_curve(folder):
    loggers = [CSVLogger(folder, "first"), TensorBoardLogger(folder, "other"), CSVLogger(folder, "last")]
    fit(DQNLightning(**SMALL), 3, logger=loggers, **VALIDATED)
    promised = "total_reward avg_reward reward train_loss epsilon lr q_mean val_reward"
    for name in ("first", "last"):
        with (folder / name / "version_0" / "metrics.csv").open() as file:
            assert set(promised.split()) <= set(csv.DictReader(file).fieldnames)
    assert set(promised.split()) <= scalars(folder / "other" / "version_0").keys()


AVERAGING = StochasticWeightAveraging(1e-3, swa_epoch_start=1)
SETTINGS: list[dict[str, Any]] = [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.5}, {"callbacks": [AVERAGING]}]
SETTINGS += [{"accumulate_grad_batches": 3}, {"max_epochs": -1, "max_steps": 90}]


@pytest.mark.parametrize("settings", SETTINGS, ids=min)
@MODULES
def test_settings_of_the_trainer(module, settings):
    model = module(**SMALL)
    before = [weight.detach().clone() for weight in model.net.parameters()]
    trainer = fit(model, 3, **copy.deepcopy(settings))
    assert trainer.global_step == (30 if "accumulate_grad_batches" in settings else 90)
    assert not any(torch.equal(*weights) for weights in zip(before, model.net.parameters()))


def test_the_tuner_finds_a_learning_rate(folder):
    model = ImprovedDQN(**SMALL)
    Tuner(pl.Trainer(accelerator="cpu", logger=False)).lr_find(model, num_training=50)
    assert model.hparams.lr != 5e-3
    assert len(model.buffer) == 150


# A module on its own


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        patch.setattr("tempfile.tempdir", None)
        patch.setattr("dqn_cartpole.TEST_SEEDS", range(1000, 1003))
        main("--max_epochs 1 --steps_per_epoch 200")
        return Path.cwd() / RUN


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_is_loaded_as_lightning_documents_it(trained, name):
    path = trained / "checkpoints" / name
    model = ImprovedDQN.load_from_checkpoint(path)
    assert same(dict(model.state_dict()), dict(load(path)["state_dict"]))
    assert dict(model.hparams) == load(path)["hyper_parameters"]
    assert ImprovedDQN.load_from_checkpoint(path, lr=0.5, weights_only=True).hparams.lr == 0.5


def actions(net: Callable[[torch.Tensor], torch.Tensor], seed: int) -> list[int]:
    """What a network does in an episode, in a plain loop."""
    env, over, played = gym.make("CartPole-v0"), False, []
    state, _ = env.reset(seed=seed)
    while not over:
        played.append(net(torch.as_tensor(state).unsqueeze(0)).argmax().item())
        state, _, terminated, truncated, _ = env.step(played[-1])
        over = terminated or truncated
    return played


def test_the_exported_network_plays_the_same_without_this_file(trained, tmp_path):
    model = ImprovedDQN.load_from_checkpoint(trained / "checkpoints" / "best.ckpt", weights_only=True).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model.net, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "agent.pt2")
    states = torch.randn(100, 4)
    net = torch.export.load(tmp_path / "agent.pt2").module()
    torch.testing.assert_close(net(states), model(states))
    assert [actions(net, seed) for seed in range(3)] == [actions(model, seed) for seed in range(3)]


def test_it_trains_in_a_thread_and_leaves_the_signals_alone(folder):
    before, failed = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def work() -> None:
        try:
            main(f"--max_epochs 1 {FLAGS}")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed, failed[0]
    assert last_of(RUN).exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Several processes


class SpyAgent(Agent):
    """Notes the seed of every episode."""

    def reset(self, seed=None):
        super().reset(seed)
        if hasattr(self.env, "seed"):  # the wrapper of ExactResume
            Spy.episodes.append(self.env.seed)


class Spy(ImprovedDQN):
    """Leaves a file of what its process did."""

    episodes: list[int] = []  # noqa: RUF012

    def make_agent(self, rng):
        return SpyAgent(self.env, self.buffer, rng)

    def play_episodes(self, seeds, frames=None, **options):
        if options.get("render_mode") == "human":
            print("a window")
            return None
        return super().play_episodes(seeds, frames, **options)

    def on_train_end(self):
        seen = {"episodes": Spy.episodes, "weights": dict(self.state_dict()), "steps": self.buffer.appended}
        torch.save(seen, f"rank{self.global_rank}.pt")


def two_processes(folder: Path, work: Callable[[], object]) -> list[tuple[str, str]]:
    """Let two processes work in a folder, with the variables that torchrun sets; gives what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    variables |= {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    processes = [FORKS.Process(target=as_rank, args=(rank, variables, folder, work)) for rank in range(2)]
    for process in processes:
        process.start()
    for rank, process in enumerate(processes):
        process.join(200)
        assert process.exitcode == 0, (folder / f"{rank}.stderr").read_text()
    return [((folder / f"{rank}.stdout").read_text(), (folder / f"{rank}.stderr").read_text()) for rank in range(2)]


def as_rank(rank: int, variables: dict[str, str], folder: Path, work: Callable[[], object]) -> None:
    os.environ.update(variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    pl.utilities.rank_zero_only.rank = rank  # Lightning reads it when it is imported
    os.chdir(folder)
    write_to(folder / str(rank))
    dqn_cartpole.VAL_SEEDS, dqn_cartpole.TEST_SEEDS = range(3), range(1000, 1003)
    work()


def test_two_processes_train_one_network_on_different_episodes_and_one_writes_and_speaks(tmp_path):
    epochs = 2
    for flags in (f"--max_epochs {epochs} --render {FLAGS}", "--resume 0 --max_epochs 4 --render"):
        (said, warned), (nothing, neither) = two_processes(tmp_path, functools.partial(main, flags, Spy))
        first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
        assert same(first["weights"], second["weights"])
        assert min(len(first["episodes"]), len(second["episodes"])) >= 3
        assert not set(first["episodes"]) & set(second["episodes"])
        assert second["steps"] == 100 + 60
        assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
        last = load(last_of(tmp_path / RUN))
        assert (last["global_step"], same(last["state_dict"], first["weights"])) == (epochs * 30, True)
        assert [step + 1 for step, _ in scalars(tmp_path / RUN)["val_reward"]] == [30 * n for n in range(1, epochs + 1)]
        assert (said.count("test_reward: "), said.count("val_reward"), said.count("a window")) == (1, 2, 1)
        assert (nothing, "warn" in (warned + neither).lower()) == ("", False)
        epochs = 4


class Gone(ImprovedDQN):
    def on_train_epoch_start(self):
        assert self.current_epoch == 0 or self.global_rank == 1, "the simulator is gone"


def test_an_error_in_the_first_of_two_processes_is_told_at_once_and_ends_both(tmp_path):
    with pytest.raises(AssertionError, match="AssertionError: the simulator is gone"):
        two_processes(tmp_path, functools.partial(main, FLAGS, Gone))
