"""The initial alignment against a pose: which explains the images, both deformed on trial?"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.losses import diffusion_energy
from fusion_pipeline.metrics import mind_distance
from fusion_pipeline.register.aligned_pair import AlignedPair, ImagePair
from fusion_pipeline.register.settings import DECISION


def initial_alignment_suffices(
    align: Callable[[Matrix | None], ImagePair],
    pose: Matrix,
    *,
    moved_mm: float,
    deform: Callable[[ImagePair], AlignedPair] | None,
) -> bool:
    """Whether the initial alignment, with what a deformation adds, explains the images like a pose.

    The search finds rigid moves only, and what a soft tissue has moved by itself misleads it: it
    tilts bones until the skin fits. So both starts are deformed and compared where both results
    overlap, and once more around the bones. Strain has a penalty; the error that the network still
    estimates counts as well; and the nearer the pose is to the initial alignment, the more it has
    to gain, since a small error is likelier than a large one.

    Args:
        align: both images on a lattice, the moving one by a pose (None: by its headers).
        pose: ``(d + 1, d + 1)`` moving_from_fixed, world to world.
        moved_mm: how far the pose is from the initial alignment, on average over the fixed image's
            box.
        deform: a pair after its deformation; None: it is not to be deformed.
    """
    rivals = [align(matrix) for matrix in (None, pose)]
    starts = [rival.undeformed for rival in rivals]
    ends = [deform(rival) for rival in rivals] if deform is not None else []
    where = torch.ones_like(starts[0].fixed.arrays.field_of_view)
    for aligned in (*starts, *ends):  # a limb that lies on air speaks against a pose
        where = where * aligned.compared_region(either=True)
    if float(where.sum()) == 0:
        return False
    images = [image for start in starts for image in (start.fixed, start.warped)]
    bone = torch.stack([image.arrays.bone for image in images]).amax(0)
    initial, posed = (
        unexplained(stages, where, where * bone)
        for stages in (zip(starts, ends, strict=True) if ends else [(x,) for x in starts])
    )
    if not ends:
        return initial < posed
    return _pose_gains_too_little(initial, posed, [end.error_mm for end in ends], moved_mm)


def _pose_gains_too_little(
    initial: float, posed: float, errors_mm: Sequence[float], moved_mm: float
) -> bool:
    """Whether a pose leaves too little less unexplained than the initial alignment.

    Args:
        initial: what the initial alignment leaves unexplained.
        posed: what the pose leaves.
        errors_mm: what the network still estimates after each, in this order.
        moved_mm: see `initial_alignment_suffices`.
    """
    nearness = float(np.clip(2 - moved_mm / DECISION.initial_error_mm, -1, 1))
    gain = _log_ratio(initial, posed) + DECISION.disagreement * _log_ratio(*errors_mm)
    needed = DECISION.near_gain * nearness
    return gain < (min(0.0, needed) if max(errors_mm) <= DECISION.clear_mm else needed)


def unexplained(stages: Sequence[AlignedPair], *regions: Tensor) -> float:
    """What a pose and its deformation leave unexplained over each region that is not empty.

    The self-similarity distances after the pose alone and after the deformation, and a penalty of
    the strain. After the deformation alone, even exact rigid moves are no better than initial
    alignments that are bent (generated phantoms).

    Args:
        stages: the pair after the pose, and after the deformation if there is one.
        regions: ``(1, 1, *S)`` 0/1.
    """
    left = sum(
        float(mind_distance(aligned.fixed.arrays.image, aligned.warped.arrays.image, region))
        for region in regions
        if bool(region.any())
        for aligned in stages
    )
    ddf = stages[-1].ddf
    if ddf is None:
        return left
    strain = diffusion_energy(ddf, [1.0] * (ddf.ndim - 2)).sum()
    return left + DECISION.strain_weight * float(strain)


def _log_ratio(a: float, b: float) -> float:
    """log(a / b); 0 where there is nothing to compare."""
    return math.log(a / b) if a > 0 and b > 0 else 0.0
