"""A short training in a process of its own, which may be killed: what the tests start.

python tests/training_run.py FOLDER --batch-size 2 --devices 2 --nodes 1 --steps 20 [--kill-at 7]
"""

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

sys.path.insert(0, str(Path(__file__).parent))
from training_cases import data, module, trainer

from fusion_pipeline.training import fit


class KillAt(pl.Callback):
    """End this process as a power cut would, in the middle of an epoch or not."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phase", default="registration")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kill-at", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run = trainer(
        options.folder,
        max_epochs=-1,
        max_steps=options.steps,
        devices=options.devices,
        num_nodes=options.nodes,
    )
    if options.kill_at is not None:
        run.callbacks.append(KillAt(options.kill_at))
    trained = module(options.phase, learning_rate=1e-3, warmup_steps=5)
    feed = data(
        options.phase,
        samples_per_epoch=12,
        validation_samples=4,
        batch_size=options.batch_size,
        twice=True,
    )
    fit(run, trained, feed, weights="last")


if __name__ == "__main__":
    main()
