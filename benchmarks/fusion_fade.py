r"""Over how many mm an image hands its weight on where it ends, on training patients.

    python benchmarks/fusion_fade.py --data ../shared/data/open --out out/fade

Whole planes of the CT that the MR reaches, judged as in ``fusion.py``: a longer fade keeps less of
the MR, a shorter one ends it in a frame. Nothing here reads a held-out patient. Writes
``fusion_fade.md``. Some 20 CPU s for each patient, group and length.
"""

import argparse
from pathlib import Path

import torch
from fusion import line, scene_of, tumours
from fusion_fine import judged, sources_of
from sarcoma_grids import KEYS, patients

from fusion_pipeline.fuse import Fuse, shares
from fusion_pipeline.pipeline import FusionPipeline

TRAINING = ("sts003", "sts005", "sts012", "sts014", "sts017", "sts022")


def main() -> None:
    """Measure, and write Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--patients", nargs="+", default=TRAINING)
    parser.add_argument("--fade", type=float, nargs="+", default=(2.5, 4, 5, 6, 10), help="mm")
    parser.add_argument("--groups", nargs="+", default=("ct-mr", "ct-mr-pet"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = FusionPipeline.from_bundle()
    fuse, contours = Fuse(pipeline.network.fusion), tumours(args.data)
    rows: dict[tuple[str, float], list[dict[str, float]]] = {}
    for patient in patients(args.data, args.out / "cache", evaluation=False, ids=args.patients):
        reached = torch.nonzero((patient.valid[KEYS.index("mr")] > 0).any(0).any(0))
        planes = slice(int(reached.min()), int(reached.max()) + 1)
        region = (slice(None), slice(None), planes)
        given = sources_of(pipeline, patient, region)
        for group in args.groups:
            keys = group.split("-")
            some = tuple({key: one[key] for key in keys} for one in given)
            scene = scene_of(patient, contours[patient.id], region, keys)
            for fade in args.fade:
                shares.FADE_MM = fade
                rows.setdefault((group, fade), []).append(judged(fuse, some, scene))
    lines: list[str] = []
    for group in args.groups:
        names = list(rows[group, args.fade[0]][0])
        lines += [f"**{group}**, n = {len(rows[group, args.fade[0]])} patients", ""]
        lines += [f"| fade, mm | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [line(f"{fade:g}", rows[group, fade], names) for fade in args.fade]
        lines.append("")
    (args.out / "fusion_fade.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
