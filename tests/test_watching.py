"""What a person looks at: TensorBoard, the film of the agent, gym's window."""

import io
import json
import os
import urllib.request
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import gymnasium as gym
import pytest
from helpers import run_script
from PIL import Image, ImageChops
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dqn_cartpole

SHORT = ("--max_epochs", "41")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run with a video."""
    folder = tmp_path_factory.mktemp("watched")
    done = run_script(*SHORT, "--video", cwd=folder)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert "the agent playing: lightning_logs/version_0/agent.gif" in done.stdout
    return folder


@pytest.fixture(scope="module")
def tensorboard(run):
    return tensorboard_of(run)


def tensorboard_of(folder: Path):
    """Ask a TensorBoard that shows the runs in `folder`, as its page in the browser does."""
    board = program.TensorBoard()
    board.configure(argv=["tensorboard", "--logdir", str(folder / "lightning_logs"), "--port", "0"])
    url = board.launch()

    def get(route: str, body: dict | None = None, **query: str) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{url}data/plugin/{route}?{urlencode(query)}", data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    return get


def frames(gif: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(gif)) as film:
        assert film.format == "GIF"
        return [(film.seek(n), film.convert("RGB"))[1] for n in range(film.n_frames)]


def assert_shows_a_cart_that_moves(gif: bytes) -> None:
    shown = frames(gif)
    assert len(shown) >= 4
    assert shown[0].width == 300
    caption, picture = (0, 0, 300, 20), (0, 20, 300, shown[0].height)
    for part in (caption, picture):  # the step and the Q-values change, and so does the scene
        assert ImageChops.difference(shown[0].crop(part), shown[-1].crop(part)).getbbox()


def test_tensorboard_lists_every_curve(tensorboard):
    (curves,) = json.loads(tensorboard("scalars/tags")).values()
    promised = "total_reward avg_reward reward train_loss epsilon lr q_mean val_reward test_reward"
    assert set(promised.split()) <= set(curves)


def test_tensorboard_shows_the_agent_playing(tensorboard):
    assert list(json.loads(tensorboard("images/tags"))["version_0"]) == ["agent"]
    (image,) = json.loads(tensorboard("images/images", run="version_0", tag="agent", sample="0"))
    assert_shows_a_cart_that_moves(tensorboard("images/individualImage", **dict(parse_qsl(image["query"]))))


def test_tensorboard_shows_the_command_and_the_versions(tensorboard):
    (tags,) = json.loads(tensorboard("text/tags")).values()
    assert tags == ["run/text_summary"]
    text = json.loads(tensorboard("text/text", run="version_0", tag=tags[0]))[0]["text"]
    assert "dqn_cartpole.py --max_epochs 41 --video" in text
    assert "seed 0, 1 x cpu" in text
    assert f"gymnasium {gym.__version__}" in text
    assert "torch" in text


def test_tensorboard_compares_settings_by_test_reward(tensorboard):
    experiment = json.loads(tensorboard("hparams/experiment", {"experimentName": ""}))
    assert {info["name"] for info in experiment["hparamInfos"]} == {"env", "seed", "max_epochs"}  # not the defaults
    assert "test_reward" in {info["name"]["tag"] for info in experiment["metricInfos"]}


def test_tensorboard_has_a_column_for_what_differs_in_any_run(tmp_path):
    for flags in (["--lr", "1e-2"], ["--double_dqn"]):
        run_script("--max_epochs", "1", "--test_episodes", "1", *flags, cwd=tmp_path)
    ask = tensorboard_of(tmp_path)
    experiment = json.loads(ask("hparams/experiment", {"experimentName": ""}))
    assert {info["name"] for info in experiment["hparamInfos"]} == {"env", "seed", "max_epochs", "lr", "double_dqn"}
    table = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 9}
    groups = json.loads(ask("hparams/session_groups", table))["sessionGroups"]
    rows = {group["sessions"][0]["name"]: group for group in groups}
    assert [rows[f"version_{n}"]["hparams"].get("lr") for n in (0, 1)] == [0.01, None]
    assert [rows[f"version_{n}"]["hparams"].get("double_dqn") for n in (0, 1)] == [None, 1]
    for row in rows.values():
        assert "test_reward" in [metric["name"]["tag"] for metric in row["metricValues"]]


def test_video_is_the_film_of_an_episode(run):
    assert_shows_a_cart_that_moves((run / "lightning_logs" / "version_0" / "agent.gif").read_bytes())


def test_video_of_a_checkpoint_alone_is_the_same_film(run):
    film = run / "lightning_logs" / "version_0" / "agent.gif"
    before = film.read_bytes()
    film.unlink()
    others = {path: path.stat().st_mtime_ns for path in film.parent.rglob("*") if path.is_file()}
    done = run_script("--test", "lightning_logs/version_0/checkpoints/best.ckpt", "--video", cwd=run)
    assert (done.returncode, done.stderr) == (0, "")
    assert film.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in others} == others


class Recorder(gym.Wrapper):
    """Counts the frames drawn in the window."""

    frames = 0

    def step(self, action):
        Recorder.frames += self.unwrapped.render_mode == "human"
        return super().step(action)


def test_render_plays_an_episode_in_the_window(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # a window that nobody sees
    made = gym.make
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: Recorder(made(*args, **kwargs)))
    best = str(run / "lightning_logs" / "version_0" / "checkpoints" / "best.ckpt")
    dqn_cartpole.main(dqn_cartpole.parse_args(["--test", best, "--render"]))
    assert Recorder.frames >= 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "driver"), [(["--render", "--video"], None), (["--video"], "dummy")])
def test_a_film_needs_no_display_but_leaves_the_window_its_own(flags, driver, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "")  # so that it is as it was afterwards
    monkeypatch.delenv("SDL_VIDEODRIVER")
    made, seen = gym.make, {}

    def make(*args, render_mode=None, **kwargs):
        seen[render_mode] = os.environ.get("SDL_VIDEODRIVER")
        return made(*args, render_mode="rgb_array" if render_mode else None, **kwargs)  # no window in a test

    monkeypatch.setattr(gym, "make", make)
    best = str(run / "lightning_logs" / "version_0" / "checkpoints" / "best.ckpt")
    dqn_cartpole.main(dqn_cartpole.parse_args(["--test", best, *flags]))
    assert seen["human" if "--render" in flags else "rgb_array"] == driver


class Invisible(gym.Env):
    """An environment that nobody taught to draw itself."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        pass

    def reset(self, **_):
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        return self.observation_space.sample() * 0, 1.0, False, False, {}


class Undrawable(Invisible):
    """One whose drawing fails."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, error: BaseException, render_mode=None):
        self.error = error

    def render(self):
        raise self.error


gym.register("Invisible-v0", Invisible, max_episode_steps=10)


def test_an_environment_without_pictures_is_trained_all_the_same(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    dqn_cartpole.main(dqn_cartpole.parse_args(["--env", "Invisible-v0", "--max_epochs", "2"]))
    out, err = capfd.readouterr()
    assert "not filmed: " in out
    assert "test_reward: 10.00" in out
    assert "warn" not in err.lower()
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    assert events.Tags()["images"] == []


@pytest.mark.parametrize("error", [OSError("no display"), OSError(), SystemExit(0)], ids=repr)
def test_a_drawing_that_fails_does_not_take_the_result_along(error, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    gym.register("Undrawable-v0", Undrawable, max_episode_steps=10, kwargs={"error": error})
    dqn_cartpole.main(dqn_cartpole.parse_args(["--env", "Undrawable-v0", "--max_epochs", "1"]))
    del gym.registry["Undrawable-v0"]
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("not filmed: ") and len(line) > len("not filmed: ")]
    assert lines[-3].startswith("test_reward: 10.00")


@pytest.mark.parametrize(("flag", "mode"), [("--video", "rgb_array"), ("--render", "human")])
def test_asking_to_see_it_fails_before_anything_is_written(flag, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"^{flag}: leave it out; Invisible-v0 has no render mode {mode}$"
    with pytest.raises(dqn_cartpole.UsageError, match=expected):
        dqn_cartpole.main(dqn_cartpole.parse_args(["--env", "Invisible-v0", flag]))
    assert list(tmp_path.iterdir()) == []
