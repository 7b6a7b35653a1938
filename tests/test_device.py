"""The pipeline and a training step on a device that refuses operands of another one.

The search for the pose and the refinement work on the CPU, whatever the device: of the pipeline,
the networks are what must run on it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# installed first: the first backward pass fixes the devices that autograd knows. Mixed operands
# must be refused, or the tests would show nothing.
_START = """
import warnings
warnings.simplefilter("ignore")
import torch.distributed.optim  # compiles functions, which a stand-in for torch's cannot be
import pretend_device as there
there.install()
import torch
on_device, on_cpu = torch.ones(3, device=there.NAME), torch.ones(3)
try:
    on_device + on_cpu
except RuntimeError as error:
    assert "expected all tensors on one device" in str(error), error
else:
    raise AssertionError("mixed devices went through")
assert (on_device + 1).cpu().tolist() == [2.0, 2.0, 2.0]
"""

_PIPELINE = """
import pathlib, tempfile, torch
from pipeline_cases import small_pipeline, write_case
paths = write_case(pathlib.Path(tempfile.mkdtemp()), ("ct", "mr", "pet"))
close = torch.testing.assert_close
layers = []  # convolutions of the networks, one entry for each call
def run(device):
    pipeline = small_pipeline(refine_steps=2, working_spacing=3.0, device=device)
    for layer in pipeline.network.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(lambda *_: layers.append(device))
    return pipeline(paths)
expected = run("cpu")
with there.CountElsewhere():
    result = run(there.NAME)
for key, image in expected.registered.items():
    close(result.registered[key].as_tensor(), image.as_tensor(), rtol=1e-4, atol=1e-2)
for key, image in expected.harmonized.items():
    close(result.harmonized[key].as_tensor(), image.as_tensor(), rtol=0, atol=1e-4)
close(result.fused.as_tensor(), expected.fused.as_tensor(), rtol=0, atol=1e-4)
print(f"{there.ON_DEVICE.total()} operations on the device, {there.ELSEWHERE.total()} on the CPU")
calls = layers.count(there.NAME)
assert calls == layers.count("cpu") > 50, layers
assert there.ON_DEVICE["convolution"] == calls, there.ON_DEVICE["convolution"]
"""

_TRAINING = """
import torch
from pipeline_cases import small_network
from fusion_pipeline.training import MultimodalTraining
from fusion_pipeline.training.samples import Batch
def batch():
    draw = torch.Generator().manual_seed(1)
    shape = {shape}
    d = len(shape)
    return Batch(
        image=torch.randn(1, 3, *shape, generator=draw).clamp(-4, 4),
        kinds=("ct", "mr", "emission"),
        valid=torch.ones(1, 3, *shape),
        spacing=2.0,
        ddf=torch.randn(1, 2, d, *shape, generator=draw),
        labels=torch.randint(0, 4, (1, 3, *shape), generator=draw),
    )
def step(device):
    torch.manual_seed(0)
    module = MultimodalTraining(small_network({d})).to(device)
    optimizer = module.configure_optimizers()
    losses, out = module.losses(module.transfer_batch_to_device(batch(), torch.device(device), 0))
    losses.total.backward()
    optimizer.step()
    return losses.total.detach().cpu(), {{k: v.cpu() for k, v in module.state_dict().items()}}
loss, weights = step("cpu")
with there.CountElsewhere():
    loss_there, weights_there = step(there.NAME)
torch.testing.assert_close(loss_there, loss, rtol=1e-4, atol=1e-4)
for name, value in weights.items():
    torch.testing.assert_close(weights_there[name], value, rtol=0, atol=1e-4, msg=name)
assert there.ON_DEVICE["convolution_backward"] > 0
for name in ("convolution", "convolution_backward", "grid_sampler_2d", "grid_sampler_3d"):
    assert not there.ELSEWHERE[name], f"{{there.ELSEWHERE[name]}} times {{name}} on the CPU"
"""


def run_apart(code):
    """Run code in a process of its own: a device cannot be taken back."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", _START + code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_the_whole_pipeline_runs_on_the_device():
    assert "operations on the device" in run_apart(_PIPELINE)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(33, 33), (33, 33, 33)])
def test_a_training_step_runs_on_the_device(shape):
    run_apart(_TRAINING.format(shape=shape, d=len(shape)))
