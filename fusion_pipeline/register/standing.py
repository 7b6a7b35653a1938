"""Whether a move is earned: two images that are aligned already stay where they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import WorldMap, apply_affine
from fusion_pipeline.register.aligned_pair import AlignedPair, ImagePair
from fusion_pipeline.register.chosen_pose import ChosenPose
from fusion_pipeline.register.doubt import Shown, registration_of, world_map
from fusion_pipeline.register.evidence import Registration
from fusion_pipeline.register.settings import STANDING
from fusion_pipeline.register.views import has_emission

_POINTS = 20_000  # at most, that a mean displacement is taken over
_ALIGNED = "left as it was: aligned already"
NOT_MOVED = "the initial alignment (headers) was kept: no pose was clearly better"


@dataclass(frozen=True)
class Verdict:
    """Whether a pair stays as it is.

    Attributes:
        stays: nothing is moved.
        aligned: why it is aligned as it came; empty where nothing says so.
        doubt: why it may be anywhere; empty where nothing says so.
    """

    stays: bool = False
    aligned: str = ""
    doubt: str = ""


SESSION = Verdict(
    stays=True,
    aligned=f"{_ALIGNED} (one session made both images, and no move is clearly better)",
)


def of_one_session(fixed: Image, moving: Image) -> bool:
    """Whether the headers say that one session made both images, so that they lie in one space.

    They do where both name one frame of reference, or where a PET or SPECT and another image name
    one study: the scanner took both in one go.
    """
    first, second = fixed.identity, moving.identity
    if first is None or second is None:
        return False
    one_frame = bool(first.frame_of_reference) and (
        first.frame_of_reference == second.frame_of_reference
    )
    one_study = bool(first.study_uid) and first.study_uid == second.study_uid
    return one_frame or (one_study and has_emission(fixed, moving))


def judged(
    found: ChosenPose, end: AlignedPair, start: ImagePair, images: tuple[Image, Image]
) -> Verdict:
    """Whether a move is earned against "they are aligned already".

    Two slices are moved only where that makes them clearly more alike, or where the pose's score is
    far above that of the initial alignment; a PET or SPECT only by a clear distance, and a slice of
    one neither far nor where its score rises by little for the way. Other volumes are compared with
    their headers before (decision 0010). Images that stay are aligned if the best pose that was
    searched is near. If it lies far off, a slice does not say where it belongs.

    Args:
        found: what came of the pose search; its details gain ``best_move_mm`` and ``nmi_gain``.
        end: the pair after pose and deformation.
        start: the pair in its initial alignment.
        images: the reference and the moving image.
    """
    slices, emission = images[0].spatial_dims == 2, has_emission(*images)
    if not slices and not emission:
        return Verdict()
    made = best = _mean_displacement(world_map(found.matrix, end, start.lattice), start)
    if found.kind == "none" and found.best is not None:
        pose = world_map(found.best, start.undeformed, start.lattice)
        best = max(made, _mean_displacement(pose, start))
    where = start.undeformed.compared_region() * end.compared_region()
    before, after = (one.nmi(where) - 1 for one in (start.undeformed, end))
    gain = after / before - 1 if before > 0 else 0.0
    found.details.update(best_move_mm=best, nmi_gain=gain)
    needed = STANDING.slice_gain_emission if emission else STANDING.slice_gain
    too_near = emission and made < STANDING.resolved_mm
    too_far = slices and emission and _is_too_far(found, made)
    no_gain = slices and gain < needed and not found.undisputed
    if not (too_near or too_far or no_gain):
        return Verdict()
    unit = "px" if images[0].is_picture else "mm"
    if best < STANDING.resolved_mm:
        why = f"{_ALIGNED} (the best move, {best:.1f} {unit}, is no clear gain)"
        return Verdict(stays=True, aligned=why)
    fits = "it fits about as well" if no_gain else "is too far to be sure of what fits better"
    doubt = (
        f"one slice does not tell where the {images[1].key} lies: {best:.0f} {unit} away {fits}; "
        "look at it"
    )
    return Verdict(stays=True, doubt=doubt if slices else "")


def _is_too_far(found: ChosenPose, made: float) -> bool:
    """Whether a slice's PET or SPECT would be moved far, or far for what the pose's score gains."""
    if found.kind == "none":
        return False
    rise = found.details["pose_score"] - found.details["pose_score_start"]
    return made > STANDING.slice_reach_emission or rise < STANDING.slice_nats_emission * made


def left_as_it_was(
    start: ImagePair,
    verdict: Verdict,
    *,
    shown: Shown,
    details: Mapping[str, float] | None = None,
) -> Registration:
    """The registration that moves nothing.

    Args:
        start: the images in their initial alignment, on the working lattice.
        verdict: why; says nothing where the user wants no registration.
        shown: what the doubts have to know of the images.
        details: numbers for the report.
    """
    still = start.undeformed
    return registration_of(
        start,
        still,
        ChosenPose(
            np.eye(start.lattice.dims + 1),
            "none",
            dict(details or {}),
            searched=verdict.stays,
        ),
        reason=verdict.aligned or (NOT_MOVED if verdict.stays else ""),
        doubt=verdict.doubt,
        estimated_on=still,
        shown=shown,
        aligned_already=bool(verdict.aligned),
    )


def _mean_displacement(move: WorldMap, start: ImagePair) -> float:
    """How far a map moves what both images show, on average, in mm; 0 where that is nothing."""
    where = start.undeformed.compared_region()[0, 0] > 0.5
    voxels = where.nonzero().cpu().double().numpy()
    if len(voxels) == 0:
        return 0.0
    points = apply_affine(start.lattice.affine, voxels[:: -(-len(voxels) // _POINTS)])
    return float(np.linalg.norm(move.points(points) - points, axis=1).mean())
