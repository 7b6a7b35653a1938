"""An initial transform that was given: a registration that rests on it, and what became of it."""

from dataclasses import replace

import numpy as np

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.geometry import inverse_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.aligned_pair import ImagePair
from fusion_pipeline.register.chosen_pose import ChosenPose, mean_move
from fusion_pipeline.register.doubt import Shown, registration_of
from fusion_pipeline.register.evidence import GivenStart, Registration

_AS_GIVEN = "the initial transform that was given, as it is"
_RIGID = 1e-3  # share by which lengths may differ: rounding of what other programs write


def as_given(start: ImagePair, pair: ImagePair, initial: Matrix, *, shown: Shown) -> Registration:
    """The registration that is the transform that was given, and no more.

    Args:
        start: the images in their initial alignment, on the working lattice.
        pair: the images after the transform.
        initial: ``(d + 1, d + 1)`` moving_from_fixed, RAS mm.
        shown: what the doubts have to know of the images.
    """
    end = pair.undeformed
    return registration_of(
        start,
        end,
        ChosenPose(initial, _kind(initial), {}, searched=False),
        reason=_AS_GIVEN,
        estimated_on=end,
        shown=shown,
    )


def with_given_start(found: Registration, fixed: Image, initial: Matrix) -> Registration:
    """The same registration; its evidence says how far from the given transform it ended.

    Args:
        found: of the register stage.
        fixed: the reference.
        initial: ``(d + 1, d + 1)`` moving_from_fixed, RAS mm.
    """
    moved = inverse_affine(initial) @ found.map.moving_from_fixed
    given = GivenStart(initial, mean_move(fixed, initial), mean_move(fixed, moved))
    # where nothing but the given transform moves the image, that is how far it went
    own = found.evidence.transform
    transform = _kind(found.map.moving_from_fixed) if own == "none" else own
    return replace(found, evidence=replace(found.evidence, given_start=given, transform=transform))


def _kind(matrix: Matrix) -> TransformKind:
    """How far an affine goes."""
    if np.allclose(matrix, np.eye(len(matrix)), rtol=0, atol=1e-9):
        return "none"
    lengths = np.linalg.svd(matrix[:-1, :-1], compute_uv=False)
    return "rigid" if np.allclose(lengths, 1, rtol=0, atol=_RIGID) else "affine"


__all__ = ["as_given", "with_given_start"]
