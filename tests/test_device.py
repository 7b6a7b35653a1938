"""The pipeline and a training step on a device that refuses operands of another one.

Every stage of the pipeline must run there: its share of the elements that operations read and write
is counted. Parameters of poses and nodes of velocities, which are few, are optimized on the CPU.
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

_BLUR = """
import torch
from fusion_pipeline.register.blur import gaussian_blur
draw = torch.Generator().manual_seed(0)
for shape, sigma in (((20, 9, 31), (3.1, 4.0, 0.7)), ((40, 33), (0.0, 2.0))):
    image = torch.randn(shape, generator=draw)
    for border in ("nearest", "reflect"):
        expected = gaussian_blur(image, sigma, border=border)
        found = gaussian_blur(image.to(there.NAME), sigma, border=border)
        assert found.device.type == there.NAME
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)
        assert float((expected - image).abs().max()) > 0.5
"""

_REFINE = """
import torch
from test_register_refinement import STIFF, pair, waves
from fusion_pipeline.register.refinement import describe, refine
for d, least in ((2, 0.55), (3, 0.65)):
    fixed, moving, _, body = pair(d)
    described = describe(fixed, body), describe(moving, torch.ones_like(body))
    start = torch.zeros_like(waves(fixed.shape[2:]))
    options = dict(steps=3, smoothness=STIFF, information=3.0)
    expected = refine(*described, start, **options)
    count = there.CountWork()
    with count, count.stage("refine"):
        found = refine(*(x.to(there.NAME) for x in described), start, **options)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert float(expected.abs().max()) > 0.05, float(expected.abs().max())
    print(d, count.table())
    # the nodes of the velocity stay on the CPU: one for four or eight compared voxels
    assert count.share("refine") > least, count.table()
    steps = 3 + 1  # of both levels
    assert count.waits["refine"]["copy"] <= 3 * steps + 20, count.table()
"""

_PIPELINE = """
import pathlib, tempfile, torch
from contextlib import contextmanager
import fusion_pipeline.register.chosen_pose as chosen_pose
import fusion_pipeline.register.stage as register_stage
from fusion_pipeline.pipeline.clock import Clock
from pipeline_cases import small_pipeline, write_case
paths = write_case(pathlib.Path(tempfile.mkdtemp()), ("ct", "mr", "pet"))
close = torch.testing.assert_close
layers = []  # convolutions of the networks, one entry for each call
def run(device):
    pipeline = small_pipeline(refine_steps=2, working_spacing=3.0, device=device)
    for layer in pipeline.network.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(lambda *_: layers.append(device))
    case = pipeline.load(paths)
    with count:
        return pipeline.infer(case, CountingClock())
class CountingClock(Clock):
    @contextmanager
    def stage(self, name, **options):
        with super().stage(name, **options), count.stage(name):
            yield
def counted(module, name, stage):
    function = getattr(module, name)
    def inside(*args, **options):
        with count.stage(stage):
            return function(*args, **options)
    setattr(module, name, inside)
counted(chosen_pose, "find_pose", "pose search")
counted(register_stage, "read_on_lattice", "working lattice")
count = there.CountWork()
expected = run("cpu")
count = there.CountWork()
result = run(there.NAME)
for key, image in expected.registered.items():
    close(result.registered[key].as_tensor(), image.as_tensor(), rtol=1e-4, atol=1e-2)
for key, image in expected.harmonized.items():
    close(result.harmonized[key].as_tensor(), image.as_tensor(), rtol=0, atol=1e-4)
close(result.fused.as_tensor(), expected.fused.as_tensor(), rtol=0, atol=1e-4)
everything = (result.fused, result.weights)
everything += (*result.registered.values(), *result.harmonized.values())
everything += tuple(x.evidence.error_map_mm for x in result.registrations.values())
assert {x.device.type for x in everything} == {"cpu"}
calls = layers.count(there.NAME)
assert calls == layers.count("cpu") > 50, layers
on_device = count.calls[there.NAME]
# one more kernel blurs the joint histogram of the pose search
assert on_device["convolution"] > calls and not count.calls["cpu"]["convolution"], on_device
print(count.table())
for stage in ("register", "pose search", "working lattice", "resample", "harmonize", "fuse"):
    assert count.share(stage) >= 0.95, count.table()
# two waits a step of the pose search, of which there are some 350 in each of the two pairs
assert count.waits["pose search"].total() < 2 * 2 * 450, count.table()
assert sum(count.waits[s].total() for s in ("resample", "harmonize", "fuse")) < 150, count.table()
"""

_TRAINING = """
import torch
from training_cases import OBJECTIVES, painted
from pipeline_cases import small_network
from fusion_pipeline.training import MultimodalTraining
batch = painted("{phase}", {shape}, modalities=3)
def step(device):
    torch.manual_seed(0)
    module = MultimodalTraining(small_network({d}), OBJECTIVES["{phase}"]()).to(device)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    there = module.transfer_batch_to_device(batch, torch.device(device), 0)
    parts, outputs = module.objective.losses(module.network, there, 3)
    total = torch.stack(list(parts.values())).sum()
    total.backward()
    optimizer.step()
    module.objective.update(module.scores, there, outputs)
    scores = {{name: float(metric.compute()) for name, metric in module.scores.items()}}
    weights = {{k: v.cpu() for k, v in module.network.state_dict().items()}}
    return total.detach().cpu(), weights, scores
loss, weights, scores = step("cpu")
count = there.CountWork()
with count:
    loss_there, weights_there, scores_there = step(there.NAME)
torch.testing.assert_close(loss_there, loss, rtol=1e-4, atol=1e-4)
for name, value in weights.items():
    torch.testing.assert_close(weights_there[name], value, rtol=0, atol=1e-4, msg=name)
for name, value in scores.items():
    # of a kind that the batch does not have there is no score
    assert value != value or abs(scores_there[name] - value) < 1e-3, name
assert count.calls[there.NAME]["convolution_backward"] > 0
for name in ("convolution", "convolution_backward", "grid_sampler_2d", "grid_sampler_3d"):
    assert not count.calls["cpu"][name], f"{{count.calls['cpu'][name]}} times {{name}} on the CPU"
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
def test_a_blur_on_the_device_is_that_of_the_cpu():
    run_apart(_BLUR)


@pytest.mark.slow
def test_the_refinement_compares_on_the_device():
    run_apart(_REFINE)


@pytest.mark.slow
def test_the_whole_pipeline_runs_on_the_device():
    assert "pose search: " in run_apart(_PIPELINE)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["registration", "harmonization", "fusion", "all"])
@pytest.mark.parametrize("shape", [(33, 33), (33, 33, 33)])
def test_a_training_step_runs_on_the_device(phase, shape):
    run_apart(_TRAINING.format(phase=phase, shape=shape, d=len(shape)))
