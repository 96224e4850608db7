"""Make lightning_logs/reference/ anew: one default run, with the video of its agent and its learning curve.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/reference.py

TensorBoard shows the run beside your own, and the README shows the pictures. The screenshot of TensorBoard is kept: it
is made by hand.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "lightning_logs" / "reference"
LOOKS = {
    "total_reward": {"color": "0.75", "linewidth": 0.8, "label": "total_reward: episodes with random actions"},
    "avg_reward": {"color": "tab:blue", "label": "avg_reward: mean of the last 100 of them"},
    "val_reward": {"color": "tab:orange", "marker": ".", "label": "val_reward: 20 episodes without"},
}

with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, ROOT / "dqn_cartpole.py"], cwd=folder, check=True)
    run = Path(folder, "lightning_logs", "version_0")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    figure, axes = plt.subplots(figsize=(6, 3.2), dpi=100, layout="constrained")
    for name, look in LOOKS.items():
        points = events.Scalars(name)
        axes.plot([point.step for point in points], [point.value for point in points], **look)
    axes.axhline(195, color="black", linestyle=":", linewidth=1, label="solved")
    axes.set(xlabel="training step", ylabel="score", ylim=(0, 205), xlim=(0, None))
    figure.legend(fontsize="x-small", loc="outside lower center", ncols=2)
    figure.savefig(run / "curve.png", metadata={"Software": None})
    shutil.rmtree(run / "checkpoints")
    for n, file in enumerate(sorted(run.glob("events.out.tfevents.*"))):
        file.rename(run / f"events.out.tfevents.{n}.reference")  # its own name holds the machine's
    shutil.copy(REFERENCE / "tensorboard.png", run)
    shutil.rmtree(REFERENCE)
    shutil.copytree(run, REFERENCE)
