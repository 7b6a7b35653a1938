"""Dice between heads of different people, painted in two contrasts from their label maps.

    python benchmarks/inter_subject.py --data ../shared/data/open --output out/inter_subject.json \
        --peers convexadam greedy

Each of the label maps that no network has seen is registered to the next one, the fixed head
painted in one contrast, the moving one in another. Both lie with the middle of their brains on one
point: their files' origins mean nothing to each other. Ours runs with `same_person=False`. The
labels of the moving head are read through the map found, and compared with those of the fixed one:
mean Dice over the brain's labels, left and right apart. Next to the JSON comes a Markdown table.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from painted_heads import label_map, painted_head
from registration import PEERS, Method, ours, peer, timed
from registration_cases import TRAINING_HEADS

from fusion_pipeline.data import Image, written_whole
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.metrics import dice_per_label
from fusion_pipeline.synthesis.tissues import Contrast

HEADS = ("15", "16", "17", "19", "20")
CONTRASTS: tuple[tuple[Contrast, Contrast], ...] = (("ct", "mr"), ("mr", "mr_t2"))
_LABELS = "3d_brain_labelmaps/synthseg_brain_labels_subj{}.nii.gz"
_LEAST_VOXELS = 500  # of 1 mm³; smaller structures are a lottery
Row = dict[str, Any]


def brain_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label map of the brain alone, without extracerebral classes and CSF around it; its affine."""
    labels, affine = label_map(path)
    found = labels.numpy()
    return np.where((found >= 500) | (found == 24), 0, found), affine


def centred(affine: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The affine after a shift that brings the middle of the brain to the world's origin."""
    middle = apply_affine(affine, np.argwhere(labels > 0).mean(0))
    out = affine.copy()
    out[:3, 3] -= middle
    return out


def dice(fixed: np.ndarray, moved: np.ndarray) -> float:
    """Mean over the labels of the fixed map that are large enough; both at the same points."""
    numbers, counts = np.unique(fixed[fixed > 0], return_counts=True)
    large = numbers[counts >= _LEAST_VOXELS].tolist()
    return float(np.mean(list(dice_per_label(fixed, moved, large).values())))


def run_pair(
    methods: Sequence[Method],
    data: Path,
    heads: tuple[str, str],
    contrasts: tuple[Contrast, Contrast],
) -> list[Row]:
    """Register the second head to the first one by every method."""
    paths = [data / _LABELS.format(head) for head in heads]
    maps = [brain_labels(path) for path in paths]
    shifts = [centred(affine, labels)[:3, 3] - affine[:3, 3] for labels, affine in maps]
    images = [
        _shifted(painted_head(path, contrast, contrast), shift)
        for path, contrast, shift in zip(paths, contrasts, shifts, strict=True)
    ]
    labels, affine = maps[0][0], centred(maps[0][1], maps[0][0])
    index = np.indices(labels.shape).reshape(3, -1).T
    index = index[labels.ravel() > 0]
    # the moving brain may reach beyond the fixed one's: those voxels count against a score too
    around = np.argwhere(_grown(labels > 0) & (labels == 0))
    index = np.concatenate([index, around])
    here = labels[tuple(index.T)]
    points = apply_affine(affine, index)
    rows = []
    for method in methods:
        found, cost = timed(method, *images)
        moved = points if found is None else found.map.points(points)
        there = _labels_at(moved, maps[1][0], centred(maps[1][1], maps[1][0]))
        start = _labels_at(points, maps[1][0], centred(maps[1][1], maps[1][0]))
        rows.append(
            {
                "fixed": f"head{heads[0]} {contrasts[0]}",
                "moving": f"head{heads[1]} {contrasts[1]}",
                "contrasts": "-".join(contrasts),
                "method": method.name,
                "version": method.version,
                "before": dice(here, start),
                "after": dice(here, there),
                "transform": "none" if found is None else found.transform,
                "folded_fraction": 0.0 if found is None else found.evidence.folded_fraction,
                **cost,
            }
        )
        print(
            "{fixed} < {moving}, {method}: Dice {before:.3f} > {after:.3f}, {transform}, "
            "folded {folded_fraction:.5f}, {cpu_s:.1f} CPU s".format(**rows[-1]),
            flush=True,
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A row per pair of contrasts and method."""
    lines = [
        "| contrasts | method | n | Dice before | after ± SD | worst | folded, worst | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contrasts, method in sorted({(r["contrasts"], r["method"]) for r in rows}):
        mine = [r for r in rows if (r["contrasts"], r["method"]) == (contrasts, method)]
        before, after = (np.array([r[when] for r in mine]) for when in ("before", "after"))
        spread = f" ± {after.std(ddof=1):.3f}" if len(after) > 1 else ""
        folded, cpu = max(r["folded_fraction"] for r in mine), np.mean([r["cpu_s"] for r in mine])
        lines.append(
            f"| {contrasts} | {method} | {len(mine)} | {before.mean():.3f} "
            f"| {after.mean():.3f}{spread} | {after.min():.3f} | {folded:.4%} | {cpu:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _shifted(image: Image, shift: np.ndarray) -> Image:
    affine = image.affine.copy()
    affine[:3, 3] += shift
    return image.with_array(image.array, affine=affine)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The box around a mask, two voxels larger: where a badly placed brain would lie."""
    out = np.zeros_like(mask)
    where = np.argwhere(mask)
    low, high = where.min(0) - 2, where.max(0) + 3
    out[tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))] = True
    return out


def _labels_at(points: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Nearest label; 0 beyond the map."""
    voxels = np.rint(apply_affine(np.linalg.inv(affine), points)).astype(int)
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(1)
    out = np.zeros(len(points), labels.dtype)
    out[inside] = labels[tuple(voxels[inside].T)]
    return out


def main() -> None:
    """Run all pairs and write JSON and Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True, help="JSON; the table goes beside it")
    parser.add_argument("--patients", choices=("evaluation", "train"), default="evaluation")
    parser.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=())
    parser.add_argument("--limit", type=int, help="the first N pairs of heads only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--same-person", action="store_true", help="ours by the rules of one person, to compare"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    methods = [
        ours(None, None, "deformable", same_person=args.same_person),
        *(peer(name, args.threads) for name in args.peers),
    ]
    heads = HEADS if args.patients == "evaluation" else TRAINING_HEADS
    pairs = list(zip(heads, heads[1:] + heads[:1], strict=True))[: args.limit]
    rows: list[Row] = []
    for contrasts in CONTRASTS:
        for pair in pairs:
            rows += run_pair(methods, args.data, pair, contrasts)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(args.output) as aside:
                aside.write_text(json.dumps({"cases": rows}, indent=1) + "\n", encoding="utf-8")
    text = markdown(rows)
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
