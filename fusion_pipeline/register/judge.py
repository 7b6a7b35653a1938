"""A pose against the headers: which of both, with what a deformation adds, explains the images."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.losses import diffusion_energy
from fusion_pipeline.metrics import mind_distance
from fusion_pipeline.register.gates import CLEAR_MM
from fusion_pipeline.register.refinement import Smoothness
from fusion_pipeline.register.trial import Pair, Trial

# Judged on a coarser lattice, with nodes at 3 voxels of the usual one instead of 4
JUDGED = Smoothness(diffusion=80.0, nodes=2)
JUDGED_ON = 1.5  # times the working spacing: a third of the time
_STRAIN_COSTS = 8.0  # of the self-similarity distance, per mean squared strain
# By so much must a pose that is as far from the headers as they are often wrong be better than
# they are; one twice as far, at all; one three times as far may be so much worse, since no tissue
# deforms by that much. Set on 20 training patients, in the logarithm of what is left unexplained.
_NEAR_MUST_GAIN = 0.05
_ERROR_OF_HEADERS_MM = 15.0
# What the logarithm of the error that the network still sees is worth beside that
_DISAGREEMENT = 0.1


def headers_do_as_well(
    place: Callable[[Matrix | None], Pair],
    pose: Matrix,
    *,
    moved_mm: float,
    deform: Callable[[Pair], Trial] | None,
) -> bool:
    """Whether the headers, with what a deformation adds, explain the images like a pose.

    The search sees rigid moves only, and what a soft tissue has moved by itself costs it dear: it
    tilts bones until the skin fits. So both starts are deformed and compared where both results are
    seen, and once more around the bones. Strain costs; the error that the network still sees counts
    as well; and the nearer the pose is to the headers, the more it has to gain, since a small error
    is likelier than a large one.

    Args:
        place: both images on a lattice, the moving one by a pose (None: its headers).
        pose: ``(d + 1, d + 1)`` moving_from_fixed, world to world.
        moved_mm: how far the pose is from the headers, on average over the fixed image's box.
        deform: a pair after its deformation; None: it is not to be deformed.
    """
    rivals = [place(matrix) for matrix in (None, pose)]
    starts = [rival.undeformed for rival in rivals]
    ends = [deform(rival) for rival in rivals] if deform is not None else []
    where = torch.ones_like(starts[0].fixed.shown.known)
    for trial in (*starts, *ends):  # a limb that lies on air speaks against a pose
        where = where * trial.compared(either=True)
    if float(where.sum()) == 0:
        return False
    sides = [side for start in starts for side in (start.fixed, start.moved)]
    bone = torch.stack([side.shown.bone for side in sides]).amax(0)
    headers, pose_left = (
        left_unexplained(trials, where, where * bone)
        for trials in (zip(starts, ends, strict=True) if ends else [(x,) for x in starts])
    )
    if not ends:
        return headers < pose_left
    near = float(np.clip(2 - moved_mm / _ERROR_OF_HEADERS_MM, -1, 1))
    seen = [end.error_mm for end in ends]
    gain = _log_ratio(headers, pose_left) + _DISAGREEMENT * _log_ratio(*seen)
    needed = _NEAR_MUST_GAIN * near
    return gain < (min(0.0, needed) if max(seen) <= CLEAR_MM else needed)


def left_unexplained(trials: Sequence[Trial], *regions: Tensor) -> float:
    """What a pose and its deformation leave unexplained over each region that is not empty.

    The self-similarity distances after the pose alone and after the deformation, and what the
    strain costs. After the deformation alone, even exact rigid moves are no better than headers
    that are bent (generated phantoms).
    """
    left = sum(
        float(mind_distance(trial.fixed.shown.image, trial.moved.shown.image, where))
        for where in regions
        if bool(where.any())
        for trial in trials
    )
    ddf = trials[-1].ddf
    if ddf is None:
        return left
    strain = diffusion_energy(ddf, [1.0] * (ddf.ndim - 2)).sum()
    return left + _STRAIN_COSTS * float(strain)


def _log_ratio(a: float, b: float) -> float:
    """log(a / b); 0 where there is nothing to compare."""
    return math.log(a / b) if a > 0 and b > 0 else 0.0
