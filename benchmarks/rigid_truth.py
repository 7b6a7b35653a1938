"""How good the headers of the brain pairs are as a truth for rigid moves.

    python benchmarks/rigid_truth.py --data ../shared/data/open --output out/rigid_truth.md

Brought back through its known move, the pose that is found in each draw should be the identity.
What all draws agree on is not an error that a move brings: it is the error of the headers, or a
bias of the method. So a second, independent method is asked as well: SimpleITK's mutual information
(Mattes, linear, all voxels), started half a mm from the truth: it only has to find its optimum.
"""

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from known_truth import KnownMap, known_map
from registration import ours, timed
from registration_cases import KnownCase, Spec, make, pairs

from fusion_pipeline.baselines import to_itk
from fusion_pipeline.geometry.affines import Matrix

_START_MM = np.array([0.3, -0.3, 0.3])
_LPS = np.array([-1.0, -1.0, 1.0])


def main() -> None:
    """Run the draws and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True, help="Markdown")
    parser.add_argument("--seeds", type=int, default=4, help="draws of a rigid move")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stage = ours(None, None, "rigid")
    lines = [
        "| pair | method | draws | off the headers, mm | agreed: right, front, up | off that |",
        "|---|---|---|---|---|---|",
    ]
    for pair in pairs(arguments.data, training=False):
        if pair.source == "label map" or "sarcoma" in pair.group:
            continue
        back: dict[str, list[Matrix]] = {"ours": [], "SimpleITK from near the truth": []}
        for draw in range(1, arguments.seeds + 1):
            spec = Spec(pair, "rigid", draw)
            case = make(spec)
            move = known_map(spec.seed, "rigid", case.fixed.affine, case.fixed.shape)
            found, _ = timed(stage, case.fixed, case.moving)
            assert found is not None
            ends = (found.map.points(case.points), _by_simpleitk(case, move))
            for method, there in zip(back, ends, strict=True):
                back[method].append(move.inverse(there) - case.points)
        lines += [_line(pair.group, method, np.stack(off)) for method, off in back.items()]
        print("\n".join(lines[-2:]), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(group: str, method: str, off: Matrix) -> str:
    """A row of the table; ``off`` ``(draws, points, 3)`` mm."""
    agreed = off.mean(0)
    each, apart = (np.linalg.norm(x, axis=-1).mean(-1) for x in (off, off - agreed))
    where = ", ".join(f"{x:+.2f}" for x in agreed.mean(0))
    draws = ", ".join(f"{x:.2f}" for x in each)
    return f"| {group} | {method} | {len(off)} | {draws} | {where} | {apart.mean():.2f} |"


def _by_simpleitk(case: KnownCase, move: KnownMap) -> Matrix:
    """Where the points end by a rigid optimum of mutual information beside the truth, RAS mm."""
    fixed, moving = to_itk(case.fixed), to_itk(case.moving)
    flip = np.diag([*_LPS, 1.0])
    truth = flip @ move.matrix @ flip
    middle = [(n - 1) / 2 for n in fixed.GetSize()]
    centre = np.array(fixed.TransformContinuousIndexToPhysicalPoint(middle))
    start = sitk.VersorRigid3DTransform()
    start.SetCenter(centre.tolist())
    start.SetMatrix(truth[:3, :3].ravel().tolist(), 1e-6)
    shift = truth[:3, :3] @ centre + truth[:3, 3] - centre
    start.SetTranslation((shift + _START_MM).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    there = [start.TransformPoint(point.tolist()) for point in case.points * _LPS]
    return np.asarray(there) * _LPS


if __name__ == "__main__":
    main()
