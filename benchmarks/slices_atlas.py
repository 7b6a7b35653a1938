r"""The 2D bundle on pictures that it has never seen: registration and fusion.

    python benchmarks/slices_atlas.py --judge ../shared/bench --out out/slices

Two kinds of pairs, each as it is and after a known move of the second image (``misalign.py``: up to
5°, 10 pixels and 8 pixels elastic), through the whole pipeline; those of the Atlas also without
registration (``none``), which shows what harmonization and fusion do alone:

- the 72 of ``fusion_pairs_open.json`` in ``--judge``, slices of the Harvard Whole Brain Atlas (for
  evaluation only), MR as reference; aligned to about 2 pixels only;
- three axial slices of each held-out sarcoma patient, CT (soft tissue window) as reference, 8 bits,
  pixels of about 1 mm; aligned by their headers.

End-point error in pixels over the tissue, against the known move. The fused images of the Atlas are
judged against the *aligned* originals by the neutral ``source_wise.py``, beside the scores of
published networks in ``peers_fusion_open.json``.

Run again into the same folder, it does only what is missing; ``--pairs`` names kinds of pairs.
"""

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusion import Judge, line, neutral_judge
from fusion_atlas import MEASURES, OTHER, grey_values
from PIL import Image as Picture
from sarcoma_grids import KEYS, patients
from scipy import ndimage
from scipy.stats import spearmanr
from slices import as_picture

from fusion_pipeline.data import Case
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.pipeline import FusionPipeline, bundle_for
from fusion_pipeline.register import Registration

Row = dict[str, Any]
_TISSUE = 15  # grey values, as the judge has it
_CT_WINDOW = (-160.0, 240.0)  # HU, of soft tissue


@dataclass(frozen=True)
class _Pair:
    """Two aligned pictures.

    Attributes:
        id: of the pair.
        group: row of the table.
        keys: of the reference, and of the image that is moved.
        fixed: the reference.
        moving: the other one.
        seed: of its move.
        judged: whether the fused image is judged.
    """

    id: str
    group: str
    keys: tuple[str, str]
    fixed: Path
    moving: Path
    seed: int
    judged: bool = False


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="another one than the packaged 2D one")
    parser.add_argument("--refine-steps", type=int, help="in place of the bundle's")
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    parser.add_argument("--every", type=int, default=1, help="every so many pairs only")
    parser.add_argument("--pairs", nargs="+", help="only these, e.g. CT-MRI 'sarcoma CT-PET'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = neutral_judge(arguments.judge)
    if judge is None:
        raise SystemExit(f"{arguments.judge} has no source_wise.py")
    sys.path.insert(0, str(arguments.judge))
    pipeline = FusionPipeline.from_bundle(
        arguments.bundle or bundle_for(2), refine_steps=arguments.refine_steps
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "slices_atlas.json"
    rows: list[Row] = json.loads(stored.read_text("utf-8")) if stored.exists() else []
    done = {(row["pair"], row["id"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        chosen = [*_atlas(arguments.judge, arguments.open_data)]
        chosen += limb_slices(arguments.open_data, arguments.cache, Path(folder))
        for pair in chosen[:: arguments.every]:
            asked = arguments.pairs is None or pair.group in arguments.pairs
            if not asked or (pair.group, pair.id) in done:
                continue
            rows += _measured(pipeline, pair, Path(folder), judge)
            stored.write_text(json.dumps(rows, indent=1) + "\n")
            before, after = (round(rows[-1][k], 2) for k in ("before", "after"))
            print(pair.id, pair.group, before, after, flush=True)
    peers = json.loads((arguments.judge / "peers_fusion_open.json").read_text(encoding="utf-8"))
    text = markdown(rows, peers)
    (arguments.out / "slices_atlas.md").write_text(text)
    print(text)


def _measured(pipeline: FusionPipeline, pair: _Pair, folder: Path, judge: Judge) -> list[Row]:
    """The rows of a pair: as it is, without registration where it is judged, and moved."""
    from misalign import field, warp  # of --judge

    picture = np.asarray(Picture.open(pair.moving))
    first, second = grey_values(pair.fixed), grey_values(pair.moving)
    tissue = (first > _TISSUE) | (second > _TISSUE)
    move = field(pair.seed, picture.shape[:2])
    moved = folder / "moved.png"
    Picture.fromarray(warp(picture, move)).save(moved)
    rows: list[Row] = []
    for what, path, transform in (
        ("aligned, left there", pair.moving, "none"),
        ("aligned", pair.moving, "deformable"),
        ("misaligned", moved, "deformable"),
    ):
        if transform == "none" and not pair.judged:
            continue
        begun = time.process_time()
        a, b = pair.keys
        files = {a: str(pair.fixed), b: str(path)}
        result = pipeline({"id": "a", "reference": a, f"{b}_transform": transform, **files})
        seconds = time.process_time() - begun
        found = result.registrations[b]
        u = move if what == "misaligned" else np.zeros_like(move)
        row: Row = {
            "id": pair.id,
            "pair": pair.group,
            "input": what,
            "before": float(np.hypot(*u)[tissue].mean()),
            "after": float(end_point_error(result.case, found, u)[tissue].mean()),
            "transform": found.transform,
            "ok": found.ok,
            "error_mm": found.evidence.error_mm,
            "folded": found.evidence.folded_fraction,
            "cpu_s": seconds,
            "stages_s": {name: spent["cpu_s"] for name, spent in result.timings.items()},
        }
        if pair.judged:
            fused = np.round(255 * result.fusion.fused.array[0].numpy().T)
            row |= judge(fused, first, second)
        rows.append(row)
    return rows


def _atlas(judge: Path, data: Path) -> Iterator[_Pair]:
    """The slices of the Atlas."""
    for case in json.loads((judge / "fusion_pairs_open.json").read_text(encoding="utf-8")):
        keys = "mr", OTHER[case["pair"]]
        paths = data / case["mri"], data / case["other"]
        yield _Pair(case["id"], case["pair"], keys, *paths, case["seed"], judged=True)


def limb_slices(
    data: Path, cache: Path, folder: Path, *, evaluation: bool = True
) -> Iterator[_Pair]:
    """Slices at a quarter, half and three quarters of what the MR shows, written as PNG."""
    for patient in patients(data, cache, evaluation=evaluation):
        shown = patient.body[1].any(0).any(0).nonzero()[:, 0]
        for share in (0.25, 0.5, 0.75):
            k = int(shown[int(share * (len(shown) - 1))])
            names = []
            for m, key in enumerate(KEYS):
                image, seen = patient.original[m : m + 1, ..., k], patient.valid[m : m + 1, ..., k]
                high = float(torch.quantile(image[seen.bool()], 0.99)) if key != "ct" else 0.0
                picture = as_picture(image, *(_CT_WINDOW if key == "ct" else (0.0, high))) * seen
                names.append(folder / f"{patient.id}_{k}_{key}.png")
                Picture.fromarray(picture[0].numpy().T.astype(np.uint8)).save(names[-1])
            for m, key in enumerate(KEYS[1:], start=1):
                name = f"{patient.id} {k}"
                group = f"sarcoma CT-{key.upper()}"
                seed = zlib.crc32(f"{name} {key}".encode())
                yield _Pair(name, group, ("ct", key), names[0], names[m], seed)


def end_point_error(case: Case, found: Registration, move: np.ndarray) -> np.ndarray:
    """How far each pixel ``(row, column)`` of the reference ends from itself, in pixels.

    ``moved(x) = original(x + u(x))``, so the map that is looked for takes x to y with y + u(y) = x.
    """
    fixed = case.fixed
    grid = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"), -1)
    voxels = grid.reshape(-1, 2).astype(float)
    # the case's images are in canonical axes; the move is known on the files' pixels, and those of
    # all pictures lie alike in the world
    affine = case.native_affine
    there = found.map.points(apply_affine(affine, voxels))
    y = apply_affine(np.linalg.inv(affine), there)
    u = np.stack([_read(component, y[:, ::-1]) for component in move], -1)
    error = np.linalg.norm(y[:, ::-1] + u - voxels[:, ::-1], axis=1)
    return np.asarray(error.reshape(fixed.shape).T)


def _read(component: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear, the border goes on; ``places`` are rows and columns."""
    return np.asarray(ndimage.map_coordinates(component, places.T, order=1, mode="nearest"))


def markdown(rows: list[Row], peers: dict[str, dict[str, dict[str, float]]]) -> str:
    """A table of registration, and one of fusion for each kind of pair."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    parts = [
        "| pair | input | n | before, px | after, px | median | worse (not flagged) | estimated | "
        "rank corr. | not ok | folded | CPU s (fusion) |",
        "|---" * 12 + "|",
    ]
    for pair in pairs:
        for what in ("misaligned", "aligned"):
            some = [r for r in rows if r["pair"] == pair and r["input"] == what]
            parts.append(f"| {pair} | {what} | {_registered(some, moved=what == 'misaligned')} |")
    for pair in [p for p in pairs if p in OTHER]:
        judged = [r for r in rows if r["pair"] == pair]
        count = sum(r["input"] == "aligned" for r in judged)
        parts += ["", f"**{pair}**, n = {count} slices", "", f"| | {' | '.join(MEASURES)} |"]
        parts.append("|---" * (len(MEASURES) + 1) + "|")
        for what in ("aligned, left there", "aligned", "misaligned"):
            some = [r for r in judged if r["input"] == what]
            parts.append(line(f"ours, {what} input", some, MEASURES))
        for name, found in peers.items():
            method, kind = name.split("/")
            if kind == pair:
                cells = [
                    f"{found['aligned'][m]:.3f} → {found['misaligned'][m]:.3f}" for m in MEASURES
                ]
                parts.append(f"| {method}, aligned → misaligned | {' | '.join(cells)} |")
    return "\n".join([*parts, ""])


def _registered(rows: list[Row], *, moved: bool) -> str:
    """The cells of a row on registration, from n on."""
    before, after, told = (np.array([r[k] for r in rows]) for k in ("before", "after", "error_mm"))
    doubted = np.array([not r["ok"] for r in rows])
    worse = after > before + 1e-6  # what stays differs by rounding
    fusion = np.mean([r["stages_s"]["fuse"] for r in rows])
    cells = [
        str(len(rows)),
        f"{before.mean():.2f}",
        f"{after.mean():.2f} ± {after.std():.2f}",
        f"{np.median(after):.2f}",
        f"{worse.sum()} ({(worse & ~doubted).sum()})" if moved else "–",
        f"{told.mean():.1f}",
        f"{float(spearmanr(told, after)[0]):.2f}",
        str(doubted.sum()),
        f"{max(r['folded'] for r in rows):.4f}",
        f"{np.mean([r['cpu_s'] for r in rows]):.1f} ({fusion:.1f})",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
