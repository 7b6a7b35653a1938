"""Whether a move is earned: two images that are aligned already stay where they are."""

import numpy as np

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import WorldMap, apply_affine
from fusion_pipeline.register.aligned_pair import ImagePair
from fusion_pipeline.register.chosen_pose import ChosenPose
from fusion_pipeline.register.doubt import world_map
from fusion_pipeline.register.settings import STANDING
from fusion_pipeline.register.views import has_emission

_ALIGNED = "left as it was: aligned already"
SESSION = f"{_ALIGNED} (one session made both images, and no move is clearly better)"
NOT_MOVED = "the initial alignment (headers) was kept: no pose was clearly better"


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


def least_move_mm(fixed: Image, moving: Image) -> float:
    """The mean displacement in mm (of pictures: pixels) from which a move counts as one.

    Smaller ones are found between images that are aligned as well, so they show nothing.
    """
    emission = has_emission(fixed, moving)
    if fixed.spatial_dims == 2:
        return STANDING.emission_2d_mm if emission else STANDING.slice_mm
    return STANDING.emission_3d_mm if emission else 0.0


def aligned_already(
    found: ChosenPose, moved: WorldMap, start: ImagePair, images: tuple[Image, Image]
) -> str:
    """Why a pair is aligned as it came; empty where it is not, or where nothing says so.

    Args:
        found: what came of the pose search.
        moved: the result, from the reference's world to the moving image's.
        start: the pair in its initial alignment.
        images: the reference and the moving image.
    """
    farthest = max(_best_move_mm(found, start), _mean_displacement(moved, start))
    if farthest >= least_move_mm(*images):
        return ""
    unit = "px" if images[0].is_picture else "mm"
    return f"{_ALIGNED} (the best move, {farthest:.1f} {unit}, is too small to be one)"


def unplaced(found: ChosenPose, start: ImagePair, images: tuple[Image, Image]) -> str:
    """Why an image that stayed may be anywhere; empty where nothing says so.

    One slice of a PET or SPECT shows little. Where the best pose lies far from the initial
    alignment and is not clearly better, neither is to be trusted.
    """
    if found.kind != "none" or images[0].spatial_dims != 2 or not has_emission(*images):
        return ""
    far = _best_move_mm(found, start)
    if far < least_move_mm(*images):
        return ""
    unit = "px" if images[0].is_picture else "mm"
    return (
        f"one slice does not tell where the {images[1].key} lies: {far:.0f} {unit} away it fits "
        "about as well; look at it"
    )


def _best_move_mm(found: ChosenPose, start: ImagePair) -> float:
    """How far the best pose that was not taken lies from the initial alignment; else 0."""
    if found.kind != "none" or found.best is None:
        return 0.0
    return _mean_displacement(world_map(found.best, start.undeformed, start.lattice), start)


def _mean_displacement(moved: WorldMap, start: ImagePair) -> float:
    """How far a map moves what both images show, on average, in mm; 0 where that is nothing."""
    where = start.undeformed.compared_region()[0, 0] > 0.5
    voxels = where.nonzero().cpu().double().numpy()
    if len(voxels) == 0:
        return 0.0
    points = apply_affine(start.lattice.affine, voxels)
    return float(np.linalg.norm(moved.points(points) - points, axis=1).mean())
