r"""Do images that are aligned stay, and what is found between them that is no move?

    python benchmarks/standing.py --open-data ../shared/data/open --judge ../shared/bench --out out

Slices of painted training heads through the 2D bundle, MR as reference. The other image is painted
on a plane that lies up to 2.5 mm and 3° from the MR's, as two scans of one slice do: nothing is to
be moved within the plane, though the outlines differ. PET and SPECT show the brain and little else;
half of them are coloured, and read as grey, as pictures are. Each pair as it is and after a known
move (``misalign.py`` in ``--judge``: up to 5°, 10 pixels and 8 pixels elastic).

With ``--limbs`` instead: CT and PET slices of the training patients, as scanned and after a known
move. They lie in one space; the longest right move and the shortest wrong one bound
`STANDING.slice_reach_emission`.

*Best move*: mean displacement of what the search and the deformation would do, taken or not. Its
95th percentile between aligned images is what `STANDING` in ``register/settings.py`` has to exceed.
"""

import argparse
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from painted_heads import label_map, tissues_of
from PIL import Image as Picture
from registration_cases import HEAD
from scipy import ndimage
from slices_atlas import end_point_error, limb_slices

from fusion_pipeline.pipeline import FusionPipeline, bundle_for
from fusion_pipeline.register import standing
from fusion_pipeline.synthesis.scanner import acquire, tissue_image
from fusion_pipeline.synthesis.tissues import Contrast

HEADS = ("02", "03", "05", "06", "08", "10", "11", "12")  # training
_SHARES = (0.4, 0.55, 0.7)  # of the head's height
_OFF_MM = 2.5  # half a slice of 5 mm
_TILT_DEG = 3.0
_THICK_MM = 5
_WINDOWS = ((0.0, 80.0), (-35.0, 115.0), (-160.0, 240.0))  # HU
_MAPS = ("gray", "gray", "gray", "gray", "hot", "jet", "inferno", "nipy_spectral")
_SPECT_MM = (3.0, 4.0)  # standard deviation of the blur that a SPECT has beside a PET's
_SIDE = 256  # pixels, of 1 mm
_TISSUE = 15  # grey values, as the judge has it


@dataclass(frozen=True)
class _Pair:
    """Two pictures of one slice, ``(row, column)`` 0..255."""

    id: str
    key: str
    fixed: np.ndarray
    moving: np.ndarray
    reference: str = "mr"


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--judge", type=Path, default=Path("../shared/bench"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="another one than the packaged 2D one")
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--keys", nargs="+", default=["ct", "pet", "spect"])
    parser.add_argument("--limbs", action="store_true", help="of patients, in place of heads")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    parser.add_argument("--slices", type=int, default=len(_SHARES), help="of each head")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(arguments.judge))
    from misalign import field, warp

    pipeline = FusionPipeline.from_bundle(arguments.bundle or bundle_for(2))
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    shares = _SHARES[: arguments.slices]
    pairs = (
        _limbs(arguments.open_data, arguments.cache)
        if arguments.limbs
        else _pairs(arguments.open_data, arguments.heads, shares, arguments.keys)
    )
    if arguments.limbs:  # what would be moved if nothing were too far
        standing.STANDING = replace(
            standing.STANDING, slice_reach_emission=inf, slice_nats_emission=-inf
        )
    for pair in pairs:
        move = field(zlib.crc32(pair.id.encode()), pair.moving.shape)
        rows.append(_row(pipeline, pair, pair.moving, np.zeros_like(move), "aligned"))
        rows.append(_row(pipeline, pair, warp(pair.moving, move), move, "moved"))
        (arguments.out / "standing.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(pair.id, *(f"{row['best']:.1f} {row['after']:.1f}" for row in rows[-2:]), flush=True)
    text = markdown(rows) + (reach(rows) if arguments.limbs else "")
    (arguments.out / "standing.md").write_text(text)
    print(text)


def _row(
    pipeline: FusionPipeline, pair: _Pair, moving: np.ndarray, move: np.ndarray, what: str
) -> dict[str, Any]:
    """What the register stage makes of a pair whose second image was moved."""
    with tempfile.TemporaryDirectory() as folder:
        files = {pair.reference: Path(folder) / "fixed.png", pair.key: Path(folder) / "moving.png"}
        for path, picture in zip(files.values(), (pair.fixed, moving), strict=True):
            Picture.fromarray(picture).save(path)
        case = pipeline.load({"id": "a", "reference": pair.reference, **files})
    found = pipeline.register(case)[pair.key]
    tissue = (pair.fixed > _TISSUE) | (pair.moving > _TISSUE)
    return {
        "id": pair.id,
        "pair": f"{pair.reference}-{pair.key}".upper(),
        "input": what,
        "before": float(np.hypot(*move)[tissue].mean()),
        "after": float(end_point_error(case, found, move)[tissue].mean()),
        "best": found.evidence.details["best_move_mm"],
        "rise": found.evidence.details["pose_score"] - found.evidence.details["pose_score_start"],
        "gain": found.evidence.details["nmi_gain"],
        "stays": found.transform == "none",
        "aligned_already": found.evidence.aligned_already,
        "ok": found.ok,
    }


def _pairs(
    data: Path, heads: list[str], shares: tuple[float, ...], keys: list[str]
) -> Iterator[_Pair]:
    """Slices of training heads, the second image from a plane near the first one's."""
    for head in heads:
        labels, affine = label_map(data / HEAD.format(head))
        axis = int(np.abs(affine[2, :3]).argmax())  # axial
        whole = labels.movedim(axis, 0).numpy()
        for share in shares:
            for key in keys:
                name = f"head{head} {share} {key}"
                rng = np.random.default_rng(zlib.crc32(name.encode()))
                contrast: Contrast = "mr_t2" if rng.random() < 0.5 else "mr"
                mr = _painted(_planes(whole, share * len(whole), 0.0, 0.0), contrast, rng)
                tilts = np.tan(np.deg2rad(rng.uniform(-_TILT_DEG, _TILT_DEG, 2)))
                off = rng.uniform(-_OFF_MM, _OFF_MM)
                planes = _planes(whole, share * len(whole) + off, *tilts)
                other = _painted(planes, "ct" if key == "ct" else "pet", rng)
                shown = _ct_picture(other, rng) if key == "ct" else _uptake(other, key, rng)
                yield _Pair(name, key, _picture(mr / np.quantile(mr, 0.995)), _picture(shown))


def _limbs(data: Path, cache: Path) -> Iterator[_Pair]:
    """CT and PET slices of the training patients."""
    with tempfile.TemporaryDirectory() as folder:
        for one in limb_slices(data, cache, Path(folder), evaluation=False):
            if one.keys[1] == "pet":
                fixed, moving = (np.asarray(Picture.open(p)) for p in (one.fixed, one.moving))
                yield _Pair(f"{one.id} pet", "pet", fixed, moving, "ct")


def _planes(whole: np.ndarray, height: float, a: float, b: float) -> np.ndarray:
    """Labels ``(thickness, row, column)`` of a slice across the first axis, tilted twice."""
    rows, columns = np.mgrid[: whole.shape[1], : whole.shape[2]]
    middle = height + a * (rows - whole.shape[1] / 2) + b * (columns - whole.shape[2] / 2)
    steps = np.arange(_THICK_MM) - (_THICK_MM - 1) / 2
    index = np.clip(np.round(middle + steps[:, None, None]).astype(int), 0, len(whole) - 1)
    return np.take_along_axis(whole, index, 0)


def _painted(planes: np.ndarray, contrast: Contrast, rng: np.random.Generator) -> np.ndarray:
    """The mean of the planes as a scanner would show it."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    tissues = tissues_of(torch.from_numpy(planes), generator)
    ideal = tissue_image(tissues, contrast, 1.0, generator).mean(0)
    return acquire(ideal, contrast, generator).numpy()


def _ct_picture(hounsfield: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A CT in one of the windows of a reading room, 0..1."""
    low, high = _WINDOWS[rng.integers(len(_WINDOWS))]
    return (hounsfield - low) / (high - low)


def _uptake(suv: np.ndarray, key: str, rng: np.random.Generator) -> np.ndarray:
    """Activity, blurred as a SPECT has it, as the grey values of a grey or coloured picture."""
    if key == "spect":
        suv = ndimage.gaussian_filter(suv, rng.uniform(*_SPECT_MM))
    share = np.clip(suv / np.quantile(suv, 0.999), 0, 1)
    name = _MAPS[rng.integers(len(_MAPS))]
    colours = mpl.colormaps[name](share)[..., :3] * np.clip(share / 0.08, 0, 1)[..., None]
    return np.asarray(colours @ np.array([0.299, 0.587, 0.114]))


def _picture(values: np.ndarray) -> np.ndarray:
    """Values 0..1 as a picture, the head's first axis to the right and the second one up."""
    levels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8).T[::-1]
    out = np.zeros((_SIDE, _SIDE), np.uint8)
    corner = [(_SIDE - n) // 2 for n in levels.shape]
    out[tuple(slice(c, c + n) for c, n in zip(corner, levels.shape, strict=True))] = levels
    return out


def reach(rows: list[dict[str, Any]]) -> str:
    """Which moves that were made were right, and which wrong."""
    made = [row for row in rows if not row["stays"]]
    moves: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for row in made:
        moves[row["after"] < row["before"]].append((row["best"], row["rise"] / row["best"]))
    right, wrong = (
        ", ".join(f"{px:.1f} ({nats:.3f})" for px, nats in sorted(moves[key]))
        for key in (True, False)
    )
    return f"Moves that were made, px (nats per px): nearer {right}; farther {wrong}.\n"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each kind of pair, as it is and after a known move."""
    lines = [
        "| pair | input | n | before, px | after, px | worse | stays | flagged | "
        "worse, not flagged | best move: mean, p95 | NMI − 1 rises: mean, p5, p95 |",
        "|---" * 11 + "|",
    ]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        for what in ("aligned", "moved"):
            some = [row for row in rows if row["pair"] == pair and row["input"] == what]
            before, after, best, gain = (
                np.array([row[k] for row in some]) for k in ("before", "after", "best", "gain")
            )
            flagged = np.array([not row["ok"] for row in some])
            worse = after > before + 1e-6
            lines.append(
                f"| {pair} | {what} | {len(some)} | {before.mean():.2f} | {after.mean():.2f} ± "
                f"{after.std():.2f} | {worse.sum()} | {sum(row['stays'] for row in some)} | "
                f"{flagged.sum()} | {(worse & ~flagged).sum()} | {best.mean():.2f}, "
                f"{np.percentile(best, 95):.2f} | {gain.mean():.0%}, {np.percentile(gain, 5):.0%}, "
                f"{np.percentile(gain, 95):.0%} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
