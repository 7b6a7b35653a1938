r"""Registrations of known truth, with everything that might say whether they are right.

    python benchmarks/doubt_rows.py --data ../shared/data/open --output out/doubt_rows.jsonl

One result a seed, appended as a line of JSON; seeds that are in the file are not run again, so that
it goes on after a stop. Sarcoma training patients, painted training heads and generated patients;
random moves from none to far beyond what is searched, cut fields of view, noise.
``doubt_features.py`` compares what might say that they are wrong. ``--held-out`` makes those of the
patients that nothing is chosen by. About 15 CPU s a result.
"""

import argparse
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from doubt import HELD_OUT
from doubt_measures import Watching
from known_truth import RANGES, Ranges, known_map, moved_image
from numpy.random import Generator
from painted_heads import painted_head
from registration_cases import EVALUATION, HEAD, TRAINING, KnownCase, body_points, shows, within

from fusion_pipeline.data import Image, read_image
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.metrics import target_registration_error
from fusion_pipeline.pipeline import FusionPipeline
from fusion_pipeline.register import Registration, chosen_pose
from fusion_pipeline.register.pose import Pose
from fusion_pipeline.synthesis.patients import synthetic_patient
from fusion_pipeline.synthesis.tissues import Contrast

HEADS = ("01", "02", "03", "05", "06", "07", "08", "10", "11", "12", "13")
HELD_OUT_HEADS = ("15", "16", "17", "19", "20")
_TRUNKS, _HELD_OUT_TRUNKS = range(12), range(100, 112)  # seeds
# CT and MR of these agree to 4.5 mm by the datalist; of TRAINING to 4 mm
ALSO_CT_MR = ("sts003", "sts018", "sts031", "sts038")
# how often: none, near, usual, strong, beyond what is searched
_MOVES = {
    "still": (0.08, RANGES["still"]),
    "near": (0.30, Ranges((0, 4), (0, 5), 0.0, (0, 5), 12)),
    "usual": (0.32, Ranges((4, 15), (5, 20), 0.0, (0, 6), 15)),
    "strong": (0.22, Ranges((8, 20), (10, 25), 0.08, (4, 12), 18)),
    "far": (0.08, Ranges((15, 45), (20, 60), 0.0, (0, 4), 18)),
}
_PAIRS = {"ct-mr": ("ct", "mr"), "ct-pet": ("ct", "pet"), "mr-pet": ("mr", "pet")}
Row = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """What a seed stands for.

    Attributes:
        patient: whose images.
        keys: of the reference and of the moving image.
        move: name of the move.
        cut: shares of the reference and of the moving image that are kept along an axis.
        noise: standard deviation, share of the moving image's range.
    """

    patient: str
    keys: tuple[str, str]
    move: str
    cut: tuple[float, float]
    noise: float


def is_held_out(patient: str) -> bool:
    """Whether nothing may be fitted or chosen by a patient's results."""
    if patient.startswith("head"):
        return patient[4:] not in HEADS
    if patient.startswith("trunk"):
        return int(patient[5:]) not in _TRUNKS
    return patient in HELD_OUT


def drawn(seed: int, data: Path, *, held_out: bool = False) -> Drawn:
    """Choose patient, images, move, fields of view and noise."""
    rng = np.random.default_rng(seed)
    move = str(rng.choice([*_MOVES], p=[share for share, _ in _MOVES.values()]))
    kinds = ("ct-mr", "mr-pet", "ct-pet", "head", "trunk")
    kind = str(rng.choice(kinds, p=[0.26, 0.18, 0.26, 0.22, 0.08]))
    if kind in {"ct-mr", "mr-pet"}:
        names = [*(EVALUATION if held_out else (*TRAINING, *ALSO_CT_MR))]
        patient, keys = str(rng.choice(names)), _PAIRS[kind]
    elif kind == "ct-pet":
        entries = json.loads((data / "datalist.json").read_text(encoding="utf-8"))["ct_mr_pet_3d"]
        names = [one["id"] for one in entries if (one["id"] in HELD_OUT) == held_out]
        patient, keys = str(rng.choice(names)), ("ct", "pet")
    else:
        heads, trunks = (HELD_OUT_HEADS, _HELD_OUT_TRUNKS) if held_out else (HEADS, _TRUNKS)
        number = rng.choice(heads if kind == "head" else [*trunks])
        patient = f"{kind}{number}"
        keys = [*_PAIRS.values()][rng.integers(3)]
    # mostly a part of the reference: less to compute, and less to go by
    shares = ((0.25, 0.6, 0.75), (0.4, 1.0, 0.45))
    cut = [float(rng.uniform(a, b)) if rng.random() < p else 1.0 for a, b, p in shares]
    noise = float(rng.uniform(0.03, 0.15)) if rng.random() < 0.2 else 0.0
    return Drawn(patient, keys, move, (cut[0], cut[1]), noise)


@lru_cache(maxsize=6)
def image_of(data: Path, patient: str, key: str) -> Image:
    """One image of a patient, aligned with the others."""
    if patient.startswith("head"):
        return painted_head(data / HEAD.format(patient[4:]), key, cast(Contrast, key))
    if patient.startswith("trunk"):
        made = synthetic_patient(int(patient[5:]), body="trunk")
        return made.case.series["ct"].image if key == "ct" else made.aligned[key]
    entries = json.loads((data / "datalist.json").read_text(encoding="utf-8"))["ct_mr_pet_3d"]
    return read_image(data / next(e for e in entries if e["id"] == patient)[key], key)[0]


def cut_to(image: Image, share: float, rng: Generator) -> Image:
    """A part of an image, along one axis."""
    if share == 1.0:
        return image
    axis = int(rng.choice(3, p=[0.1, 0.1, 0.8]))
    whole = image.shape[axis]
    size = max(20, round(whole * share))
    low = int(rng.integers(max(1, whole - size + 1)))
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, axis] * low
    return image.with_array(
        image.array.narrow(1 + axis, low, min(size, whole - low)), affine=affine
    )


def case_of(one: Drawn, seed: int, data: Path) -> KnownCase:
    """Move, cut and spoil."""
    rng = np.random.default_rng(seed + 10**6)
    fixed, still = (image_of(data, one.patient, key) for key in one.keys)
    fixed = cut_to(fixed, one.cut[0], rng)
    truth = known_map(seed, _MOVES[one.move][1], fixed.affine, fixed.shape)
    values = moved_image(
        still.array[0].double().numpy(),
        still.affine,
        truth,
        (fixed.affine, fixed.shape),
        outside=still.fill_value,
        seed=seed,
    )
    low, high = np.percentile(values, [1, 99])
    values += rng.standard_normal(values.shape) * one.noise * (high - low)
    moving = Image(torch.from_numpy(values.astype(np.float32))[None], fixed.affine, still.key)
    moving = cut_to(moving, one.cut[1], rng)
    points = body_points(fixed)
    targets = truth(points)
    in_view = shows(still, points) & within(moving, targets)
    return KnownCase(fixed, moving, points, targets, in_view)


class Registering:
    """The packaged bundle's registration, with the poses that its search climbed."""

    def __init__(self) -> None:
        self.pipeline = FusionPipeline.from_bundle(None)
        self.stage = self.pipeline.inferer.register_stage(self.pipeline.network)
        self.pose: Pose | None = None
        self.watching = Watching()
        search = chosen_pose.find_pose

        def find_pose(*images: Any, **options: Any) -> Pose:  # noqa: ANN401 - handed on
            self.pose = search(*images, **options)
            return self.pose

        chosen_pose.find_pose = find_pose

    def __call__(self, case: KnownCase) -> Registration:
        """Register a case."""
        self.pose = None
        return self.stage(*(self.pipeline.prepare(one) for one in (case.fixed, case.moving)))


def measured(case: KnownCase, result: Registration, pose: Pose) -> Row:
    """The error, and what might say it."""
    evidence, points = result.evidence, case.points
    end = result.map.points(points)
    error = target_registration_error(case.truth, end)
    voxels = apply_affine(np.linalg.inv(result.map.working_affine), points).round().astype(int)
    size = np.asarray(evidence.error_map_mm.shape)
    inside = ((voxels >= 0) & (voxels < size)).all(1)
    local = evidence.error_map_mm.numpy()[tuple(voxels[inside].T)]
    posed = apply_affine(result.map.moving_from_fixed, points)
    rivals = [
        (
            round(float(np.linalg.norm(apply_affine(r.matrix, points) - posed, axis=1).mean()), 2),
            round(r.score, 4),
        )
        for r in pose.rivals
    ]
    return {
        "error_mm": float(error.mean()),
        "error_in_view_mm": float(error[case.in_view].mean()) if case.in_view.any() else None,
        "start_mm": float(target_registration_error(case.truth, points).mean()),
        "in_view": float(case.in_view.mean()),
        "transform": evidence.transform,
        "ok": evidence.ok,
        "reason": evidence.reason,
        "estimate_mm": evidence.error_mm,
        "over_5_mm": evidence.over_5_mm,
        "estimate_percentiles": np.percentile(local, [10, 50, 90]).round(3).tolist(),
        "before": dict(evidence.similarity_before),
        "after": dict(evidence.similarity_after),
        "details": dict(evidence.details),
        "move_mm": float(np.linalg.norm(end - points, axis=1).mean()),
        "pose_move_mm": float(np.linalg.norm(posed - points, axis=1).mean()),
        "bend_mm": float(np.linalg.norm(end - posed, axis=1).mean()),
        "distance_penalty": pose.distance_penalty,
        "rivals": rivals,
    }


def main() -> None:
    """Register seed after seed, until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--first", type=int, default=1, help="seed")
    parser.add_argument("--results", type=int, default=300)
    parser.add_argument("--held-out", action="store_true", help="patients to judge by")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.output.is_file():
        lines = args.output.read_text(encoding="utf-8").splitlines()
        done = {json.loads(line)["seed"] for line in lines}
    registered = Registering()
    for seed in range(args.first, args.first + args.results):
        if seed in done:
            continue
        one = drawn(seed, args.data, held_out=args.held_out)
        start = time.process_time()
        case = case_of(one, seed, args.data)
        made = time.process_time()
        result = registered(case)
        row = {"seed": seed, "patient": one.patient, "fixed": one.keys[0], "moving": one.keys[1]}
        row |= {"move": one.move, "cut": one.cut, "noise": one.noise}
        row |= measured(case, result, registered.pose)
        registered_s = time.process_time() - made
        row |= registered.watching.measured(result, case.points)
        row |= {"make_s": made - start, "cpu_s": registered_s}
        row["measures_s"] = time.process_time() - made - registered_s
        with args.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(seed, one, f"{row['start_mm']:.1f} > {row['error_mm']:.1f} mm", flush=True)


if __name__ == "__main__":
    main()
