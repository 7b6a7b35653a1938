"""Training on several processes and nodes, and after kills: the same weights in the end."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("training_run.py")
STEPS = 20
# at the first step, within epochs of six steps and at their ends, between the uses of a batch
KILLED_AT = (1, 5, 6, 11, 17)


def start(*arguments, launcher=(sys.executable,)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(SCRIPT), *[str(a) for a in arguments], "--steps", str(STEPS)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(*processes):
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def losses(folder):
    """Loss of each step, over all starts."""
    out = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open() as stream:
            for row in csv.DictReader(stream):
                if row.get("train/loss"):
                    out[int(row["step"])] = float(row["train/loss"])
    return [out[step] for step in sorted(out)]


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def largest_difference(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    finished(start(folder))
    assert len(losses(folder)) == STEPS
    return folder


def test_two_processes_do_what_one_does(alone, tmp_path):
    finished(start(tmp_path, "--batch-size", 2, "--devices", 2))
    # not the weights: Adam divides the gradient of a bias before a norm, mere rounding, by itself
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-4)


def test_two_nodes_do_what_one_process_does(alone, tmp_path):
    port = str(free_port())
    nodes = []
    for rank in range(2):
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2")
        torchrun += ("--nproc_per_node", "1", "--node_rank", str(rank))
        torchrun += ("--master_addr", "127.0.0.1", "--master_port", port)
        options = ("--batch-size", 2, "--devices", 1, "--nodes", 2)
        nodes.append(start(tmp_path, *options, launcher=torchrun))
    finished(*nodes)
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-4)


def test_a_training_that_was_killed_again_and_again_ends_with_the_same_weights(alone, tmp_path):
    for step in KILLED_AT:
        process = start(tmp_path, "--kill-at", step)
        process.communicate(timeout=400)
        assert process.returncode == -9
    finished(start(tmp_path))
    assert largest_difference(weights(tmp_path), weights(alone)) < 1e-6


def test_the_same_command_gives_the_same_losses_twice(alone, tmp_path):
    finished(start(tmp_path))
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-6)
