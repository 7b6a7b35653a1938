"""A small cross-validation in a process of its own, which may be killed: what a test starts.

python tests/cross_validation_run.py FOLDER [--kill-in-part 1 --at-step 3]
"""

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path

import torch

from fusion_pipeline.cli import main
from fusion_pipeline.training import MultimodalTraining

STEPS = 20  # two epochs and a part of a third one


def watch(part: int | None, step: int) -> None:
    """Note each step of each part; in one of them end this process as a power cut would."""

    def after_a_step(self, *_):
        number = Path(self.trainer.default_root_dir).name
        with Path("steps.txt").open("a") as file:
            file.write(f"{number} {self.trainer.global_step}\n")
        if number == str(part) and self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    MultimodalTraining.on_train_batch_end = after_a_step


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-in-part", type=int)
    parser.add_argument("--at-step", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    watch(options.kill_in_part, options.at_step)
    arguments = ["--datalist", "patients/cases.json", "--output", "study", "--folds", "2"]
    arguments += ["--max-steps", str(STEPS), "--refine-steps", "0", "--fuse-steps", "0", "--resume"]
    for one in ("shape=[33,33]", "samples_per_epoch=2", "twice=false", "validation_samples=1"):
        arguments += ["--override", f"data#{one}"]
    arguments += ["--override", "train#trainer#accumulate_grad_batches=1"]
    os.chdir(options.folder)
    sys.exit(main(["evaluate", *arguments]))
