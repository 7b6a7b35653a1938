"""What a synthetic patient costs on two devices, stage by stage, and how far their results differ.

    python benchmarks/devices.py --devices cpu cuda

Runs the demo's 3D patient and its 2D slice with the packaged bundles; needs no files. Prints for
each: seconds per stage (wall), the largest difference of the displacement fields in mm and of the
fused images, whether two runs on the second device give the same bits, and the peak of its memory.
The first run on a GPU also loads its libraries, so the last of several is timed. ``--enlarge 3``
repeats each voxel of the CT thrice along each axis: a scanner's grid.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from fusion_pipeline.data import Case
from fusion_pipeline.pipeline import FusionPipeline, PipelineResult, bundle_for
from fusion_pipeline.pipeline.synthetic import SyntheticCases

_STAGES = ("register", "resample", "harmonize", "fuse")


def patient(dims: int, size: Literal["small", "full"], enlarge: int) -> dict[str, object]:
    """The demo's images in memory, the CT on a finer grid if asked for."""
    with tempfile.TemporaryDirectory() as folder:
        files = SyntheticCases(folder, spatial_dims=dims, size=size)[0]
        loaded = FusionPipeline.from_bundle(bundle_for(dims)).load(files)
    entry: dict[str, object] = {}
    for key, image in loaded.images.items():
        array, affine = image.array[0].numpy(), image.affine
        if enlarge > 1 and key == loaded.reference:
            array = np.kron(array, np.ones((enlarge,) * dims, np.float32))
            finer = np.diag([1 / enlarge] * dims + [1.0])
            finer[:dims, dims] = (1 / enlarge - 1) / 2  # the corner of the first voxel stays
            affine = affine @ finer
        entry[key] = (array, affine)
    return entry


def runs(
    case: dict[str, object], dims: int, device: str, repeats: int
) -> tuple[list[PipelineResult], float]:
    """The same case again and again on a device, and the peak of its memory in MiB."""
    pipeline = FusionPipeline.from_bundle(bundle_for(dims), device=device)
    loaded: Case = pipeline.load(case)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    results = [pipeline.infer(loaded) for _ in range(repeats)]
    return results, torch.cuda.max_memory_allocated() / 1024**2 if on_gpu else float("nan")


def difference(first: PipelineResult, second: PipelineResult) -> tuple[dict[str, float], float]:
    """Largest distance of the fields per key in mm, and largest difference of the fused images."""
    fields = {
        key: float((a - second.displacement[key]).as_tensor().norm(dim=0).max())
        for key, a in first.displacement.items()
    }
    return fields, float((first.fused - second.fused).abs().max())


def same_bits(first: PipelineResult, second: PipelineResult) -> bool:
    """Whether two runs gave the same fields and the same fused image."""
    fields = all(torch.equal(a, second.displacement[key]) for key, a in first.displacement.items())
    return fields and torch.equal(first.fused, second.fused)


def report(case: dict[str, object], dims: int, devices: Sequence[str], repeats: int) -> None:
    """Run the case on both devices and print what came out."""
    done = [runs(case, dims, devices[0], 1), runs(case, dims, devices[1], repeats)]
    first, second = (found[-1] for found, _ in done)
    shapes = {key: first.case.images[key].shape for key in first.case.images}
    print(f"\n{dims}D, {shapes}")
    print(f"| stage | {devices[0]} s | {devices[1]} s |\n|---|---|---|")
    for name in _STAGES:
        seconds = [one.timings[name]["wall_s"] for one in (first, second)]
        print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} |")
    totals = [sum(one.timings[n]["wall_s"] for n in _STAGES) for one in (first, second)]
    print(f"| all | {totals[0]:.2f} | {totals[1]:.2f} |")
    fields, fused = difference(first, second)
    for key, mm in fields.items():
        kinds = [one.registrations[key].transform for one in (first, second)]
        errors = [one.registrations[key].evidence.error_mm for one in (first, second)]
        print(
            f"{key}: fields differ by at most {mm:.4f} mm; {kinds[0]} and {kinds[1]}, estimated "
            f"errors {errors[0]:.3f} and {errors[1]:.3f} mm"
        )
    print(f"fused images differ by at most {fused:.5f}")
    if repeats > 1:
        equal = "the same" if same_bits(*done[1][0][-2:]) else "NOT the same"
        print(f"two runs on {devices[1]} are {equal}, bit for bit")
    print(f"peak memory on {devices[1]}: {done[1][1]:.0f} MiB")


def main() -> None:
    """Run both patients on both devices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", nargs=2, default=["cpu", "cuda"], metavar="DEVICE")
    parser.add_argument("--spatial-dims", type=int, nargs="+", choices=(2, 3), default=[2, 3])
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--enlarge", type=int, default=1, help="of the CT's voxels")
    parser.add_argument("--repeats", type=int, default=2, help="on the second device")
    options = parser.parse_args()
    names = [torch.cuda.get_device_name() if d.startswith("cuda") else d for d in options.devices]
    print(f"{names[0]} ({torch.get_num_threads()} threads) against {names[1]}, {torch.__version__}")
    for dims in options.spatial_dims:
        case = patient(dims, options.size, options.enlarge)
        report(case, dims, options.devices, options.repeats)


if __name__ == "__main__":
    main()
