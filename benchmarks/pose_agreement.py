"""What the pose search finds on training patients moved by known maps: by the headers, by itself.

    python benchmarks/pose_agreement.py --data ../shared/data/open --output out/pose.json

CT and MR of most training patients are 3 to 12 mm apart by their headers, so an error against the
headers says little. Brought back through the known move, all poses of one patient should be one
rigid map, whatever the move: how far each lies from what they agree on is what the search adds;
what they agree on is the error of the headers, or a bias of the score that no move changes. For
tuning: of a patient whose poses agree on a wrong place it says nothing, so look at the pictures.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from known_truth import Severity, known_map
from registration_cases import SEVERITIES, Pair, Spec, make
from scipy.spatial.transform import Rotation

from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.register.pose import find_pose
from fusion_pipeline.register.views import masked_field_of_view

_HELD_OUT = {"sts008", "sts015", "sts026", "sts032", "sts035", "sts043", "sts047"}
_FAILED_MM = 10.0


def main(arguments: list[str] | None = None) -> None:
    """Run the cases, print a line for each and the summary, write both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--moving", choices=("mr", "pet"), default="mr")
    parser.add_argument("--severities", nargs="+", choices=SEVERITIES, default=["mild", "rigid"])
    parser.add_argument("--seeds", type=int, default=2, help="draws of each severity")
    parser.add_argument("--patients", nargs="*", help="these only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    entries = json.loads((options.data / "datalist.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for entry in entries["ct_mr_pet_3d"]:
        name = entry["id"]
        if name in _HELD_OUT or (options.patients and name not in options.patients):
            continue
        files = [(key, options.data / entry[key]) for key in ("ct", options.moving)]
        pair = Pair("training", name, files[0], files[1])
        rows += _patient(pair, options.severities, options.seeds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    summary = _summary(rows)
    options.output.write_text(json.dumps({"cases": rows, "summary": summary}, indent=1))
    for severity, numbers in summary.items():
        print(severity, ", ".join(f"{k} {v:.2f}" for k, v in numbers.items()))


def _patient(pair: Pair, severities: list[Severity], seeds: int) -> list[dict[str, Any]]:
    """All moves of one patient: a row each."""
    rows, back = [], []
    for severity in severities:
        for draw in range(1, seeds + 1):
            spec = Spec(pair, severity, draw)
            case = make(spec)
            start = time.process_time()
            known = masked_field_of_view(case.fixed), masked_field_of_view(case.moving)
            pose = find_pose(case.fixed, case.moving, known, affine=False)
            seconds = time.process_time() - start
            found = apply_affine(pose.rigid, case.points)
            move = known_map(spec.seed, severity, case.fixed.affine, case.fixed.shape)
            back.append(move.inverse(found))
            rows.append(
                {
                    "patient": pair.patient,
                    "severity": severity,
                    "draw": draw,
                    "start_mm": _mean(case.points, case.truth),
                    "headers_mm": _mean(found, case.truth),
                    "gain": pose.rigid_score - pose.start,
                    "far": pose.far,
                    "seconds": seconds,
                }
            )
    points = case.points
    agreed = _agreed(points, np.stack(back))
    for row, one in zip(rows, back, strict=True):
        row["agreed_mm"] = _mean(one, agreed)
        row["headers_off_mm"] = _mean(points, agreed)
        print(
            f"{row['patient']} {row['severity']} {row['draw']}: {row['start_mm']:.1f} > "
            f"{row['headers_mm']:.1f} mm by the headers, {row['agreed_mm']:.1f} from what they "
            f"agree on ({row['headers_off_mm']:.1f} from the headers), gain {row['gain']:.3f}, "
            f"far {row['far']:.3f}, {row['seconds']:.1f} CPU s",
            flush=True,
        )
    return rows


def _agreed(points: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Where the rigid map that most of the poses ``(n, points, 3)`` agree on takes the points."""
    middle = np.median(back, axis=0)
    near = np.linalg.norm(back - middle, axis=2).mean(1) < _FAILED_MM
    target = back[near].mean(0) if near.any() else middle
    centres = points.mean(0), target.mean(0)
    turn, _ = Rotation.align_vectors(target - centres[1], points - centres[0])
    matrix = np.eye(4)
    matrix[:3, :3] = turn.as_matrix()
    matrix[:3, 3] = centres[1] - matrix[:3, :3] @ centres[0]
    return apply_affine(matrix, points)


def _mean(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=1).mean())


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means and medians per severity."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["severity"]].append(row)
    out = {}
    for severity, group in groups.items():
        agreed = np.array([row["agreed_mm"] for row in group])
        out[severity] = {
            "n": float(len(group)),
            "start": float(np.mean([row["start_mm"] for row in group])),
            "by the headers": float(np.mean([row["headers_mm"] for row in group])),
            "from the agreed": float(agreed.mean()),
            "median": float(np.median(agreed)),
            f"over {_FAILED_MM:.0f} mm": float((agreed > _FAILED_MM).sum()),
            "CPU s": float(np.mean([row["seconds"] for row in group])),
        }
    return out


if __name__ == "__main__":
    main()
