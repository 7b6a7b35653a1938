"""What a patient costs at a scanner's full size, stage by stage, from files to report.

    OMP_NUM_THREADS=1 python benchmarks/full_size.py --data ../shared/data/open --output out/full

The open sarcoma images are crops. Here one patient's (by default sts015, held out) are resampled to
the grids of whole scans around the same places, with air beyond: CT of 512 × 512 × 250 voxels of
0.8 × 0.8 × 1 mm, MR of 384 × 384 × 60 and PET of 200 × 200 × 60. Writes them, the case's folder,
``full_size.json`` and ``full_size.md``. Needs 7 GB of memory.
"""

import argparse
import json
from pathlib import Path

import SimpleITK as sitk
import torch

from fusion_pipeline.pipeline import FusionPipeline

# voxels, mm, and what lies outside
_GRIDS = {
    "ct": ((512, 512, 250), (0.8, 0.8, 1.0), -1000.0),
    "mr": ((384, 384, 60), (0.6, 0.6, 3.27), 0.0),
    "pet": ((200, 200, 60), (4.07, 4.07, 3.27), 0.0),
}


def whole_scan(source: Path, key: str, target: Path) -> None:
    """Resample a crop to a scanner's grid around its middle."""
    image = sitk.ReadImage(str(source), sitk.sitkFloat32)
    size, spacing, outside = _GRIDS[key]
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    middle, own = (
        i.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in i.GetSize()])
        for i in (image, grid)
    )
    grid.SetOrigin([a - b for a, b in zip(middle, own, strict=True)])
    resampled = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, outside)
    sitk.WriteImage(resampled, str(target))


def markdown(report: dict[str, dict[str, float]]) -> str:
    """A line for each stage."""
    lines = ["| stage | CPU s | wall s |", "|---|---|---|"]
    lines += [
        f"| {name} | {cost['cpu_s']:.0f} | {cost['wall_s']:.0f} |"
        for name, cost in report["timings"].items()
    ]
    sizes = ", ".join(f"{k} {' × '.join(map(str, g[0]))}" for k, g in _GRIDS.items())
    peak = f"Peak memory {report['peak_memory_mb']:.0f} MiB; {sizes}."
    return "\n".join([*lines, "", peak]) + "\n"


def main() -> None:
    """Make the patient where it is missing, and run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--patient", default="sts015")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries = json.loads((options.data / "datalist.json").read_text())["ct_mr_pet_3d"]
    (entry,) = [e for e in entries if e["id"] == options.patient]
    options.output.mkdir(parents=True, exist_ok=True)
    files = {key: options.output / f"{options.patient}_{key}.nii.gz" for key in _GRIDS}
    for key, file in files.items():
        if not file.exists():
            whole_scan(options.data / entry[key], key, file)
    folder = FusionPipeline.from_bundle().run({"id": options.patient, **files}, options.output)
    report = json.loads((folder / "report.json").read_text())
    kept = {name: report[name] for name in ("timings", "peak_memory_mb")}
    (options.output / "full_size.json").write_text(json.dumps(kept, indent=1) + "\n")
    (options.output / "full_size.md").write_text(markdown(kept))
    print(markdown(kept))


if __name__ == "__main__":
    main()
