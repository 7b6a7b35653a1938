r"""Fusing on a lattice of blocks against fusing on the grid, where voxels are fine.

    python benchmarks/fusion_fine.py --data ../shared/data/open --out out/fine
    python benchmarks/fusion_fine.py --faint 0 0.005 0.01 0.02 0.04 --out out/fine

Training patients, the box that the MR shows, resampled to voxels of a fine scan and judged as in
``fusion.py``: CT and MR, and all three images. "On the grid" joins no voxels; ``--faint`` tries
strengths of `fuse.lattice.in_detail` in its place. Nothing here reads a held-out patient. Writes
``fusion_fine.md``. About 5 CPU minutes a patient.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusion import harmonized, line, scene_of, tumours
from fusion_measures import Scene, measures
from sarcoma_grids import KEYS, Patient, patients
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fuse, displayed_images, lattice, stage
from fusion_pipeline.geometry import resample
from fusion_pipeline.geometry.sampling import Mode
from fusion_pipeline.pipeline import FusionPipeline

GROUPS = (("ct", "mr"), ("ct", "mr", "pet"))
_BLOCKS = lattice.voxels_in_block


def resampled(
    patient: Patient, tumour: np.ndarray, spacing: Sequence[float]
) -> tuple[Patient, np.ndarray]:
    """A patient and the tumour's contour on a grid of other voxels."""
    sizes = zip(patient.original.shape[1:], patient.spacing, spacing, strict=True)
    shape = [max(1, int(n * old / new)) for n, old, new in sizes]
    affine = patient.affine.copy()
    affine[:3, :3] *= np.asarray(spacing) / patient.spacing
    old_from_new = torch.from_numpy(np.linalg.inv(patient.affine) @ affine)

    def on_grid(volumes: Tensor, mode: Mode) -> Tensor:
        each = [resample(v[None, None].float(), old_from_new, shape, mode=mode) for v in volumes]
        return torch.cat(each)[:, 0]

    contour = on_grid(torch.from_numpy(tumour)[None], "nearest")[0].numpy() > 0.5
    values = on_grid(patient.original, "bilinear")
    fields = {name: on_grid(getattr(patient, name), "nearest") for name in ("valid", "body")}
    return replace(patient, original=values, normalized=values, affine=affine, **fields), contour


def sources_of(
    pipeline: FusionPipeline, patient: Patient, box: tuple[slice, ...]
) -> tuple[dict[str, Image], dict[str, Tensor], dict[str, Image]]:
    """Harmonized images, fields of view, and displayed images within a box."""
    inside = (slice(None), *box)
    fields = {key: patient.valid[m][None] for m, key in enumerate(KEYS)}
    whole = {
        key: Image(patient.original[m][None], patient.affine, key) for m, key in enumerate(KEYS)
    }
    images, shown = (
        {key: one.with_array(one.array[inside]) for key, one in given.items()}
        for given in (
            harmonized(pipeline.network.harmonization, patient),
            displayed_images(whole, fields),
        )
    )
    return images, {key: one[inside] for key, one in fields.items()}, shown


def judged(fuse: Fuse, given: tuple[Any, ...], scene: Scene) -> dict[str, float]:
    """The measures of one fused image, and its CPU seconds."""
    begun = time.process_time()
    fused = fuse(*given).fused.array[0].numpy()
    seconds = time.process_time() - begun
    return {**measures(fused, scene), "cpu_s": seconds}


def main() -> None:
    """Measure, and write Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--patients", nargs="+", default=["sts003", "sts005", "sts012", "sts014"])
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.8, 0.8, 1.09), help="mm")
    parser.add_argument("--faint", type=float, nargs="+", help="strengths, in place of the grid")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = FusionPipeline.from_bundle()
    fuse, contours = Fuse(pipeline.network.fusion), tumours(args.data)
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for patient in patients(args.data, args.out / "cache", evaluation=False, ids=args.patients):
        fine, contour = resampled(patient, contours[patient.id], args.spacing)
        places = torch.nonzero(fine.valid[KEYS.index("mr")] > 0)
        low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        given = sources_of(pipeline, fine, box)
        for group in GROUPS:
            some = tuple({key: one[key] for key in group} for one in given)
            scene = scene_of(fine, contour, box, group)
            for name in map(str, args.faint or ("on the grid", "on the lattice")):
                grid = name == "on the grid"
                stage.voxels_in_block = (lambda *_: (1, 1, 1)) if grid else _BLOCKS
                lattice._FAINT = float(name) if args.faint else lattice._FAINT
                row = judged(fuse, some, scene)
                rows.setdefault(("–".join(group), name), []).append(row)
                print(patient.id, group, name, f"{row['cpu_s']:.0f} s", flush=True)
    lines: list[str] = []
    for (group, name), found in rows.items():
        names = list(found[0])
        lines += [f"**{group}**, n = {len(found)} patients", ""]
        lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [line(name, found, names), ""]
    (args.out / "fusion_fine.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
