"""A plain Lightning Trainer, several processes, a thread, an export: what people do with a LightningModule."""

import csv
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
import pytorch_lightning as pl
import torch
from helpers import FORKS, RUN, fit, last_of, load, main, run_script, same, scalars, state_of, write_to
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import dqn_cartpole
from dqn_cartpole import Checkpoints, DQNLightning, ImprovedDQN

MODULES = pytest.mark.parametrize("module", [DQNLightning, ImprovedDQN])
VALIDATED = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}


# A plain Trainer


@MODULES
def test_a_plain_trainer_trains_validates_and_tests(module, capsys, tmp_path):
    model = module()
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(model)
    assert trainer.global_step == 39
    assert "13/13" in capsys.readouterr().out
    (result,) = trainer.test(model, verbose=False)
    assert 8 <= result["test_reward"] <= 200


@MODULES
def test_max_steps_ends_it_too(module):
    assert fit(module(), -1, max_steps=100).global_step == 100


class Notes(pl.Callback):
    def on_validation_end(self, trainer, module):
        self.metrics = dict(trainer.callback_metrics)


@pytest.mark.parametrize("monitor", ["avg_reward", "val_reward"])
def test_early_stopping(monitor):
    stop, notes = EarlyStopping(monitor, mode="max", patience=9, stopping_threshold=1.0), Notes()
    trainer = fit(DQNLightning(), 20, stop, notes, **VALIDATED)
    assert notes.metrics[monitor] > 1
    assert trainer.current_epoch < 10


def test_a_model_checkpoint_of_the_best_validation_is_resumed(tmp_path):
    def train(epochs: int, folder: str, **more) -> tuple[DQNLightning, ModelCheckpoint]:
        pl.seed_everything(0, verbose=False)
        model = ImprovedDQN(lr_schedule="constant", eps_last_frame=100, warm_start_steps=300)
        best = ModelCheckpoint(tmp_path / folder, monitor="val_reward", mode="max", save_last=True)
        quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
        pl.Trainer(max_epochs=epochs, callbacks=[best], **quiet).fit(model, **more)
        return model, best

    straight, _ = train(6, "straight")
    _, best = train(3, "stopped")
    assert best.best_model_score > 5
    resumed, _ = train(6, "resumed", ckpt_path=tmp_path / "stopped" / "last.ckpt", weights_only=True)
    assert same(dict(resumed.state_dict()), dict(straight.state_dict()))
    assert same(state_of(resumed), state_of(straight))


def test_the_checkpoints_of_this_file_resume_in_a_plain_trainer(tmp_path):
    def train(folder: str, epochs: int, last: Path | None = None) -> DQNLightning:
        pl.seed_everything(0, verbose=False)
        model = DQNLightning(eps_last_frame=100)
        quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[Checkpoints()], default_root_dir=tmp_path / folder, **quiet)
        trainer.fit(model, ckpt_path=last, weights_only=True)
        return model

    train("stopped", 2)
    resumed = train("stopped", 4, last_of(tmp_path / "stopped"))
    assert same(dict(resumed.state_dict()), dict(train("straight", 4).state_dict()))


def test_a_model_that_has_trained_resumes_as_a_new_one_does(tmp_path):
    """In a notebook it is the same object."""
    model, quiet = DQNLightning(), {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    pl.Trainer(max_epochs=12, callbacks=[Checkpoints()], accelerator="cpu", **quiet).fit(model)
    score, avg_reward = model.score, model.avg_reward
    fit(model, 30)
    assert model.avg_reward != avg_reward
    checkpoint = load(tmp_path / "checkpoints" / "last.ckpt")
    model.on_load_checkpoint(checkpoint)
    assert (model.score, model.avg_reward) == (score, avg_reward)


@pytest.mark.parametrize("others", [[], [TensorBoardLogger]])
def test_every_logger_has_every_curve(tmp_path, others):
    loggers = [
        CSVLogger(tmp_path, "first"),
        *(other(tmp_path, "other") for other in others),
        CSVLogger(tmp_path, "last"),
    ]
    fit(DQNLightning(), 20, logger=loggers, **VALIDATED)
    promised = "total_reward avg_reward reward train_loss epsilon lr q_mean val_reward"
    for name in ("first", "last"):
        with (tmp_path / name / "version_0" / "metrics.csv").open() as file:
            assert set(promised.split()) <= set(csv.DictReader(file).fieldnames)
    for _ in others:
        assert set(promised.split()) <= scalars(tmp_path / "other" / "version_0").keys()


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 4}, {"precision": "bf16-mixed"}], ids=str)
@MODULES
def test_settings_of_the_trainer(module, settings):
    model = module()
    before = [weight.detach().clone() for weight in model.net.parameters()]
    steps = fit(model, 2, **settings).global_step
    assert steps == (8 if "accumulate_grad_batches" in settings else 26)
    assert not any(torch.equal(*weights) for weights in zip(before, model.net.parameters()))


def test_the_network_can_be_compiled():
    model = DQNLightning()
    model.net.compile(backend="eager")
    fit(model)


class Noisy(torch.nn.Linear):
    """Its noise is drawn while it acts and learned with afterwards."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.noise = torch.ones_like(self.weight)

    def forward(self, x):
        if len(x) == 1:
            self.noise = 1 + 0.1 * torch.randn_like(self.weight)
        return torch.nn.functional.linear(x, self.weight * self.noise, self.bias)


class NoisyDQN(DQNLightning):
    def make_net(self):
        return Noisy(4, 2)


def test_what_a_network_draws_while_it_acts_can_be_learned_with():
    assert fit(NoisyDQN()).global_step == 13


# A module on its own


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        patch.setattr("dqn_cartpole.TEST_SEEDS", range(1000, 1003))
        main("--max_epochs 60")
        return Path.cwd() / RUN


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_is_loaded_as_lightning_documents_it(trained, name):
    path = trained / "checkpoints" / name
    model = ImprovedDQN.load_from_checkpoint(path)
    assert same(dict(model.state_dict()), dict(load(path)["state_dict"]))
    assert dict(model.hparams) == load(path)["hyper_parameters"]


def actions(net, seed: int) -> list[int]:
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
            main("--max_epochs 3")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed, failed[0]
    assert last_of(RUN).exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Several processes


class Spy(ImprovedDQN):
    """Leaves a file of what its process did."""

    def on_train_start(self):
        self.held = self.buffer.sample(900).state.tolist()
        self.episodes, self.validated = [self.agent.episode_seed], []
        reset = self.agent.reset

        def spied(seed=None):
            reset(seed)
            self.episodes.append(self.agent.episode_seed)

        self.agent.reset = spied

    def play_episodes(self, seeds):
        scores = super().play_episodes(seeds)
        if self.trainer.validating or self.trainer.training:
            self.validated.append((seeds.tolist(), scores.tolist()))
        return scores

    def on_train_end(self):
        seen = {"held": self.held, "episodes": self.episodes, "validated": self.validated}
        torch.save(seen | {"weights": dict(self.state_dict())}, f"rank{self.global_rank}.pt")


def train_plainly() -> None:
    """With a plain Trainer, in two processes, each of which seeds alike."""
    pl.seed_everything(0)
    ddp = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(max_epochs=6, check_val_every_n_epoch=3, **ddp, **quiet)
    trainer.fit(Spy(sync_rate=1))
    if trainer.is_global_zero:
        torch.save(trainer.callback_metrics["val_reward"], "val_reward.pt")


def two_processes(folder: Path, work: Callable[[], object], nodes: int = 1) -> list[str]:
    """Let two processes work in a folder, with the variables that torchrun sets; gives what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    processes = []
    for rank in range(2):
        local = {"LOCAL_RANK": "0", "GROUP_RANK": str(rank), "LOCAL_WORLD_SIZE": "1"}
        if nodes == 1:
            local = {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        processes.append(FORKS.Process(target=as_rank, args=(rank, variables | local, folder, work)))
        processes[-1].start()
    for rank, process in enumerate(processes):
        process.join(200)
        assert process.exitcode == 0, (folder / f"{rank}.stderr").read_text()
    return [(folder / f"{rank}.stdout").read_text() for rank in range(2)]


def as_rank(rank: int, variables: dict[str, str], folder: Path, work: Callable[[], object]) -> None:
    os.environ.update(variables | {"RANK": str(rank)})
    pl.utilities.rank_zero_only.rank = rank  # Lightning reads it when it is imported
    os.chdir(folder)
    write_to(folder / str(rank))
    dqn_cartpole.TEST_SEEDS = range(1000, 1003)
    work()


def seen_in(folder: Path) -> list[dict]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """The folder of a run in two processes, by a plain Trainer."""
    folder = tmp_path_factory.mktemp("pair")
    two_processes(folder, train_plainly)
    return folder


def check_processes(folder: Path) -> None:
    first, second = seen_in(folder)
    assert any(name.startswith("target_net") for name in first["weights"])
    assert same(first["weights"], second["weights"])
    assert min(len(first["episodes"]), len(second["episodes"])) >= 2
    assert not set(first["episodes"]) & set(second["episodes"])
    assert not {tuple(state) for state in first["held"]} & {tuple(state) for state in second["held"]}  # warm starts


def test_two_processes_of_a_plain_trainer_play_different_episodes_and_agree_on_what_they_learn(pair):
    check_processes(pair)


def test_val_reward_is_the_mean_over_the_processes(pair):
    """A plain Trainer shares the episodes of a validation out."""
    first, second = (seen["validated"][-1] for seen in seen_in(pair))
    assert sorted(first[0] + second[0]) == list(range(20))
    mean = sum(first[1] + second[1]) / 20
    assert torch.load(pair / "val_reward.pt").item() == pytest.approx(mean, rel=1e-6)


MAIN = "--max_epochs 6 --val_check_interval 39"


def check_run(folder: Path, first: str, second: str) -> None:
    """The first process alone wrote and spoke."""
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["lightning_logs"]
    assert [path.name for path in (folder / "lightning_logs").iterdir()] == ["version_0"]
    assert same(load(last_of(folder / RUN))["state_dict"], seen_in(folder)[0]["weights"])
    assert first.count("test_reward: ") == first.count("step 39: val_reward") == 1
    assert second == ""


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_of_the_command_line_train_one_network_and_one_of_them_writes_and_speaks(tmp_path, nodes):
    outputs = two_processes(tmp_path, functools.partial(main, f"--num_nodes {nodes} {MAIN}", Spy), nodes)
    check_processes(tmp_path)
    check_run(tmp_path, *outputs)
    two_processes(tmp_path, functools.partial(main, f"--num_nodes {nodes} --resume --max_epochs 9", Spy), nodes)
    first, second = seen_in(tmp_path)
    assert same(first["weights"], second["weights"])
    assert not set(first["episodes"]) & set(second["episodes"])
    assert load(last_of(tmp_path / RUN))["global_step"] == 9 * 13
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert [step // 13 for step, _ in scalars(tmp_path / RUN)["val_reward"]] in ([3, 6, 9], [2, 5, 8])


@pytest.mark.slow
def test_two_nodes_under_torchrun_do_the_same(tmp_path):
    """Two "machines", which this one plays both, with a process each; their folder is a shared one."""
    program = tmp_path / "spy.py"
    program.write_text("import dqn_cartpole\nfrom test_lightning import Spy\nfrom helpers import main\n")
    with program.open("a") as file:
        file.write("import sys\nmain(' '.join(sys.argv[1:]), Spy)\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    how = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": dict(os.environ)}
    flags = [str(program), "--num_nodes", "2", *MAIN.split()]
    nodes = [subprocess.Popen([*command, f"--node_rank={rank}", *flags], **how) for rank in range(2)]
    outputs = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    check_processes(tmp_path)
    check_run(tmp_path, *(output for output, _ in outputs))


@pytest.mark.slow
def test_a_program_with_a_plain_trainer_starts_its_second_process(tmp_path):
    program = tmp_path / "plain.py"
    program.write_text("from test_lightning import train_plainly\ntrain_plainly()\n")
    done = run_script(cwd=tmp_path, script=program)
    assert done.returncode == 0, done.stderr
    check_processes(tmp_path)
