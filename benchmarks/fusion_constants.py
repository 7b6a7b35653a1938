r"""What a tuned number of the fusion of volumes does, on training patients.

    python benchmarks/fusion_constants.py --constant fade --data ../shared/data/open --out out/fade

``fade``: mm over which an image hands its weight on where it ends; longer keeps less of the MR,
shorter ends it in a frame. ``uptake``: what uptake counts beside both CT and MR. Whole planes of
the CT that the MR reaches, and inside the MR's box, judged as in ``fusion.py``. Nothing here reads
a held-out patient. Writes ``fusion_constants.md``. Some 20 CPU s for each patient, group and value.
"""

import argparse
from pathlib import Path
from types import ModuleType

import torch
from fusion import WHOLE_PLANES, box_of_mr, line, scene_of, tumours
from fusion_fine import judged, sources_of
from sarcoma_grids import patients

from fusion_pipeline.fuse import Fuse, shares
from fusion_pipeline.losses import fusion_loss
from fusion_pipeline.pipeline import FusionPipeline

TRAINING = ("sts003", "sts005", "sts012", "sts014", "sts017", "sts022")
CONSTANTS: dict[str, tuple[ModuleType, str, tuple[float, ...]]] = {
    "fade": (shares, "FADE_MM", (2.5, 4, 5, 6, 10)),
    "uptake": (fusion_loss, "UPTAKE_BESIDE_BOTH", (1, 1.5, 2)),
}


def main() -> None:
    """Measure, and write Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--constant", choices=CONSTANTS, required=True)
    parser.add_argument("--values", type=float, nargs="+")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--patients", nargs="+", default=TRAINING)
    parser.add_argument("--groups", nargs="+", default=("ct-mr", "ct-mr-pet"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    module, name, usual = CONSTANTS[args.constant]
    values = args.values or usual
    pipeline = FusionPipeline.from_bundle()
    fuse, contours = Fuse(pipeline.network.fusion), tumours(args.data)
    rows: dict[str, dict[float, list[dict[str, float]]]] = {}
    for patient in patients(args.data, args.out / "cache", evaluation=False, ids=args.patients):
        box = box_of_mr(patient)
        planes = (slice(None), slice(None), box[2])
        for where, region in ((WHOLE_PLANES, planes), ("", box)):
            given = sources_of(pipeline, patient, region)
            for group in args.groups:
                keys = group.split("-")
                some = tuple({key: one[key] for key in keys} for one in given)
                scene = scene_of(patient, contours[patient.id], region, keys)
                for value in values:
                    setattr(module, name, value)
                    of_value = rows.setdefault(group + where, {}).setdefault(value, [])
                    of_value.append(judged(fuse, some, scene))
    lines: list[str] = []
    for group, by_value in rows.items():
        names = list(by_value[values[0]][0])
        lines += [f"**{group}**, n = {len(by_value[values[0]])} patients", ""]
        lines += [f"| {name} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [line(f"{value:g}", of_value, names) for value, of_value in by_value.items()]
        lines.append("")
    (args.out / "fusion_constants.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
