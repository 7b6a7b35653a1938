"""All 27 sarcoma patients through the product: the datalist for it, and what came out.

    python benchmarks/sarcoma_cohort.py --data ../shared/data/open --write out/cases.json
    fusion-pipeline run --datalist out/cases.json --output out/sarcoma
    python benchmarks/sarcoma_cohort.py --data ../shared/data/open --summarise out/sarcoma

The summary (cohort.json, cohort.md) and the checkerboards (cohort_mr_1.png, …) are written into
the output folder. There is no truth here: similarity says whether the images look more alike, the
checkerboards show whether they are.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw

from fusion_pipeline.data import Image, read_displacement, read_image, written_whole
from fusion_pipeline.report.looks import Look, look_at
from fusion_pipeline.report.pictures import (
    Picture,
    Window,
    checkerboard,
    grey,
    is_emission,
    window_of,
)
from fusion_pipeline.report.planes import (
    Plane,
    busiest_point,
    coarse_content,
    content_box,
    planes_through,
    read,
)

Row = dict[str, Any]
MOVING = ("mr", "pet")
# Labelled "good" by the data: CT and MR agree by their headers (sts026 is doubtful: see
# header_truth.py); PET and CT, of one session, in every patient
GOOD_HEADERS = ("sts015", "sts026", "sts032", "sts035", "sts043", "sts047")
EVALUATION = ("sts008", *GOOD_HEADERS)  # held out of training
_TILE_PX = 250
_SQUARES = 10  # of the board along a picture's longer side
_TITLE_PX = 20
_PER_PAGE = 9
_SAME = 1e-9
_FOLDED_LIMIT = 1e-4


def entries(data: Path) -> list[dict[str, str]]:
    """The patients as a product's datalist lists them, with absolute paths."""
    listed = json.loads((data / "datalist.json").read_text(encoding="utf-8"))["ct_mr_pet_3d"]
    return [
        {"id": e["id"], "reference": "ct"}
        | {key: str((data / e[key]).resolve()) for key in ("ct", *MOVING)}
        for e in listed
    ]


def row_of(report: Row, key: str) -> Row:
    """What ``report.json`` says of one moving image."""
    found = report["registration"][key]
    before, after = found["similarity_before"], found["similarity_after"]
    return {
        "id": report["id"],
        "held_out": report["id"] in EVALUATION,
        "image": key,
        "nmi_before": before["nmi"],
        "nmi_after": after["nmi"],
        "mind_before": before["mind"],
        "mind_after": after["mind"],
        "overlap_before": before["overlap"],
        "overlap_after": after["overlap"],
        "not_worse": after["nmi"] >= before["nmi"] - _SAME
        and after["mind"] <= before["mind"] + _SAME,
        "transform": found["transform"],
        "moved_mm": found["displacement_mm"]["mean"],
        "rotation_deg": found["rotation_deg"],
        "folded_fraction": found["folded_fraction"],
        "error_mm": found["error_mm"],
        "ok": found["ok"],
        "reason": found["reason"],
    }


def cost_of(report: Row) -> Row:
    """Seconds and memory of a case, all its images together."""
    spent = report["timings"]
    return {
        "id": report["id"],
        "register_cpu_s": spent["register"]["cpu_s"],
        "cpu_s": sum(stage["cpu_s"] for stage in spent.values()),
        "wall_s": sum(stage["wall_s"] for stage in spent.values()),
        "peak_memory_mb": report["peak_memory_mb"],
    }


def summary(rows: Sequence[Row], costs: Sequence[Row], missing: Sequence[str]) -> Row:
    """Counts over the cohort."""
    worse = {r["id"] for r in rows if not r["not_worse"]}
    per_image = {}
    for key in MOVING:
        mine = [r for r in rows if r["image"] == key]
        kinds = [r["transform"] for r in mine]
        per_image[key] = {
            "n": len(mine),
            "not_worse": sum(r["not_worse"] for r in mine),
            "nmi_gain": _mean(r["nmi_after"] - r["nmi_before"] for r in mine),
            "mind_gain": _mean(r["mind_before"] - r["mind_after"] for r in mine),
            "moved_mm": _mean(r["moved_mm"] for r in mine),
            "moved_mm_good_headers": _mean(r["moved_mm"] for r in mine if _well_aligned(r)),
            "not_ok": sum(not r["ok"] for r in mine),
            "transforms": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        }
    return {
        "patients": len(costs),
        "missing": list(missing),
        "not_worse_on_both": len(costs) - len(worse),
        "worse": sorted(worse),
        "folded_worst": max((r["folded_fraction"] for r in rows), default=None),
        "cpu_s_mean": _mean(c["cpu_s"] for c in costs),
        "register_cpu_s_mean": _mean(c["register_cpu_s"] for c in costs),
        "peak_memory_mb": max((c["peak_memory_mb"] for c in costs), default=None),
        "images": per_image,
    }


def _well_aligned(row: Row) -> bool:
    """Whether the headers are the truth, or near it: a large move is then an error."""
    return row["image"] == "pet" or row["id"] in GOOD_HEADERS


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} mm"


def _mean(values: Iterator[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def markdown(total: Row, rows: Sequence[Row], costs: Sequence[Row]) -> str:
    """The counts and a line per moving image."""
    lines = [
        f"{total['not_worse_on_both']} of {total['patients']} patients: neither MR nor PET is "
        "worse in NMI or in MIND than by its header"
        + (f" (worse: {', '.join(total['worse'])})" if total["worse"] else "")
        + ". More alike is not yet aligned: look at the checkerboards.",
        f"Missing: {', '.join(total['missing']) or 'none'}. Worst folded fraction "
        f"{total['folded_worst']:.4%} (limit {_FOLDED_LIMIT:.2%}). Mean CPU seconds per patient "
        f"{total['cpu_s_mean']:.0f}, of which registration {total['register_cpu_s_mean']:.0f}; "
        f"peak memory {total['peak_memory_mb']:.0f} MiB.",
    ]
    lines += [_line_of(key, found) for key, found in total["images"].items() if found["n"]]
    head = (
        "patient", "image", "NMI before → after", "MIND before → after", "overlap", "not worse",
        "moved by", "mean mm", "deg", "estimate mm", "folded", "ok", "register CPU s", "reason",
    )  # fmt: skip
    seconds = {c["id"]: c["register_cpu_s"] for c in costs}
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    table += [f"| {' | '.join(_cells(row, seconds[row['id']]))} |" for row in rows]
    notes = "Bold: held out of training. NMI: higher is better. MIND: lower is better."
    return "\n\n".join([*lines, "\n".join(table), notes]) + "\n"


def _line_of(key: str, found: Row) -> str:
    kinds = ", ".join(f"{kind} {n}" for kind, n in found["transforms"].items())
    return (
        f"{key.upper()}: not worse in {found['not_worse']} of {found['n']}, mean gain NMI "
        f"{found['nmi_gain']:+.4f}, MIND {found['mind_gain']:+.4f}; mean move "
        f"{found['moved_mm']:.1f} mm, {_short(found['moved_mm_good_headers'])} where the headers "
        f"agree by themselves; "
        f"{found['not_ok']} not ok; {kinds}."
    )


def _cells(r: Row, seconds: float) -> list[str]:
    return [
        f"**{r['id']}**" if r["held_out"] else r["id"],
        r["image"],
        f"{r['nmi_before']:.4f} → {r['nmi_after']:.4f}",
        f"{r['mind_before']:.4f} → {r['mind_after']:.4f}",
        f"{r['overlap_before']:.0%} → {r['overlap_after']:.0%}",
        "yes" if r["not_worse"] else "**NO**",
        r["transform"],
        f"{r['moved_mm']:.1f}",
        f"{r['rotation_deg']:.1f}",
        "" if r["error_mm"] is None else f"{r['error_mm']:.1f}",
        f"{r['folded_fraction']:.4%}",
        "yes" if r["ok"] else "**NO**",
        f"{seconds:.0f}",
        r["reason"],
    ]


def boards(entry: dict[str, str], key: str, folder: Path) -> Picture:
    """Checkerboards of one patient: axial over coronal, by the headers on the left, then ours.

    Both are read from the original moving image: the right one through the displacement field.
    """
    fixed, moving = (read_image(entry[k], k)[0] for k in ("ct", key))
    field = read_displacement(folder / entry["id"] / f"{key}_displacement.nii.gz").numpy()
    rows = []
    for plane in _planes(fixed, moving, field):
        shift = np.stack([_component(c, fixed, plane) for c in field], axis=-1)
        known = np.isfinite(shift).all(-1)
        moved = Plane(
            plane.name,
            plane.points + np.nan_to_num(shift),
            plane.column_axis,
            plane.row_axis,
            plane.mm_per_pixel,
            plane.letters,
        )
        looks = _look(fixed, moving, plane), _look(fixed, moving, moved, known)
        rows.append([_board(fixed, look, plane) for look in looks])
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _look(fixed: Image, moving: Image, plane: Plane, known: np.ndarray | None = None) -> Look:
    """The moving image on a plane; of a PET the background uptake, for the body's outline."""
    look = look_at(moving, moving, plane, known)
    if not is_emission(moving):
        return look
    # a tumour or bladder would leave all else black
    body = read(moving.array, moving.affine, coarse_content(fixed).points[None])
    high = max(3 * float(np.nanmedian(body)), 1e-3)
    values = read(moving.array, moving.affine, plane.points)
    unit = Window(0.0, high).unit(values) * look.present
    return Look(unit, look.present, grey(unit, look.present))


def _component(values: np.ndarray, fixed: Image, plane: Plane) -> np.ndarray:
    """One component of the field on a plane; NaN outside the reference."""
    array = fixed.array.new_tensor(values)[None]
    return read(array, fixed.affine, plane.points)


def _planes(fixed: Image, moving: Image, field: np.ndarray) -> tuple[Plane, ...]:
    """Axial and coronal planes through the most of the body that the moving image shows after."""
    body = coarse_content(fixed).points
    shift = [read(fixed.array.new_tensor(c)[None], fixed.affine, body[None])[0] for c in field]
    seen = np.isfinite(read(moving.array, moving.affine, (body + np.stack(shift, -1))[None])[0])
    through = busiest_point(body[seen] if seen.any() else body)
    return planes_through(through, *content_box(fixed), pixels=_TILE_PX)[:2]


def _board(fixed: Image, moving: Look, plane: Plane) -> Picture:
    """One checkerboard in the middle of a square tile."""
    values = read(fixed.array, fixed.affine, plane.points)
    there = np.isfinite(values)
    reference = grey(window_of(fixed).unit(values), there)
    board = checkerboard(
        reference, moving.picture, moving.present & there, max(4, _TILE_PX // _SQUARES)
    )
    tile = np.zeros((_TILE_PX + 4, _TILE_PX + 4, 3), np.float32)
    top, left = ((n - m) // 2 for n, m in zip(tile.shape[:2], board.shape[:2], strict=True))
    tile[top : top + board.shape[0], left : left + board.shape[1]] = board
    return tile


def montages(done: Sequence[dict[str, str]], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Pages of nine patients for each moving image."""
    notes = {(r["id"], r["image"]): r for r in rows}
    written = []
    for key in MOVING:
        for start in range(0, len(done), _PER_PAGE):
            path = folder / f"cohort_{key}_{start // _PER_PAGE + 1}.png"
            cells = [
                _titled(boards(entry, key, folder), notes[entry["id"], key])
                for entry in done[start : start + _PER_PAGE]
            ]
            PilImage.fromarray(_page(cells)).save(path, optimize=True)
            written.append(path)
    return written


def _titled(picture: Picture, row: Row) -> np.ndarray:
    """The picture under a line of text, 8 bit."""
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    canvas = PilImage.new("RGB", (pixels.shape[1], pixels.shape[0] + _TITLE_PX), "black")
    canvas.paste(PilImage.fromarray(pixels), (0, _TITLE_PX))
    text = (
        f"{row['id']}{'*' if row['held_out'] else ''} {row['image']}: header | {row['transform']} "
        f"{row['moved_mm']:.1f} mm   NMI {row['nmi_before']:.3f} > {row['nmi_after']:.3f}   "
        f"MIND {row['mind_before']:.3f} > {row['mind_after']:.3f}"
    )
    good = row["ok"] and row["not_worse"]
    ImageDraw.Draw(canvas).text((4, 4), text, fill="white" if good else (255, 110, 90))
    return np.asarray(canvas)


def _page(cells: Sequence[np.ndarray]) -> np.ndarray:
    """Cells in rows of three."""
    blank, columns = np.zeros_like(cells[0]), min(3, len(cells))
    padded = [*cells, *[blank] * (-len(cells) % columns)]
    rows = [np.concatenate(padded[n : n + columns], axis=1) for n in range(0, len(padded), columns)]
    return np.concatenate(rows, axis=0)


def write_datalist(data: Path, path: Path) -> None:
    """Write the datalist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"testing": entries(data)}, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: {len(entries(data))} patients")


def summarise(data: Path, folder: Path, *, pictures: bool) -> None:
    """Gather the reports of a run; patients without one are listed as missing."""
    listed = entries(data)
    done = [entry for entry in listed if (folder / entry["id"] / "report.json").is_file()]
    missing = [entry["id"] for entry in listed if entry not in done]
    if not done:
        raise SystemExit(f"{folder}: expected <patient>/report.json of a run, got none")
    reports = [json.loads((folder / e["id"] / "report.json").read_text("utf-8")) for e in done]
    rows = [row_of(report, key) for key in MOVING for report in reports]
    costs = [cost_of(report) for report in reports]
    total = summary(rows, costs, missing)
    content = {"summary": total, "images": rows, "costs": costs}
    with written_whole(folder / "cohort.json") as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = markdown(total, rows, costs)
    (folder / "cohort.md").write_text(text, encoding="utf-8")
    print(text)
    if pictures:
        print("\n".join(str(path) for path in montages(done, rows, folder)))


def main() -> None:
    """Write the datalist, or gather what a run left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="CASES.json", help="write the datalist")
    what.add_argument("--summarise", type=Path, metavar="OUT", help="output folder of the run")
    parser.add_argument("--no-pictures", action="store_true", help="numbers only")
    args = parser.parse_args()
    if args.write:
        write_datalist(args.data, args.write)
    else:
        summarise(args.data, args.summarise, pictures=not args.no_pictures)


if __name__ == "__main__":
    main()
