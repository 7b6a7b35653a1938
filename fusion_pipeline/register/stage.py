"""`Register`: pose, network, refinement; each kept only where it earns its place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.data import Image, InputError, TransformKind
from fusion_pipeline.geometry import (
    apply_affine,
    compose,
    ddf_mm_from_ddf,
    integrate,
    jacobian_determinant,
    resize_ddf,
    warp,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.losses import diffusion_energy
from fusion_pipeline.metrics import mind_distance, normalized_mutual_information
from fusion_pipeline.networks.registration import RegistrationNet
from fusion_pipeline.register.lattice import Lattice, OnLattice, on_lattice, working_lattice
from fusion_pipeline.register.pose import find_pose
from fusion_pipeline.register.refinement import Smoothness, refine
from fusion_pipeline.register.registration import Registration
from fusion_pipeline.register.views import emission, known_region

# The pose must raise its score by so many nats and by what its distance from the headers costs, or
# the headers are kept. A small move only has to gain a share of the score.
_POSE_GAIN_NATS = 0.03
_SMALL_GAIN = 0.02  # share of the score that is enough for a move under `_SMALL_MOVE_MM`
_SMALL_MOVE_MM = 2.0
_AFFINE_GAIN = 1.15  # on training patients smaller gains came with worse poses as often as not
# Smoothness of the refinement: at first, and once a deformation has earned its place. Pose and
# headers are judged on a coarser lattice, with nodes at 3 voxels of the usual one instead of 4.
_STIFF, _SOFT = Smoothness(diffusion=80.0), Smoothness(diffusion=5.0, bending=10.0)
_JUDGED = Smoothness(diffusion=80.0, nodes=2)
# Shares of the self-similarity distance that a deformation must remove, and by which NMI has to
# rise as well. Emission images carry little structure, beside a CT least: on limbs of training
# patients, small gains there were noise.
_DEFORMABLE_GAIN, _DEFORMABLE_GAIN_OF_PET_CT, _DEFORMABLE_GAIN_OF_PET_MR = 0.03, 0.10, 0.015
_SECOND_OPINION, _SECOND_OPINION_WITH_EMISSION = 0.02, 0.05
_TAPER_MM = 20.0
_LEAST_OVERLAP = 0.1
_DOUBTFUL_MM = 4.0  # of 59 training results 5 are beyond, 3 of them more than 5 mm off
_JUDGED_ON = 1.5  # times the working spacing: a third of the time
_STRAIN_COSTS = 8.0  # of the self-similarity distance, per mean squared strain
# By so much must a pose that is as far from the headers as they are often wrong be better than
# they are; one twice as far, at all; one three times as far may be so much worse, since no tissue
# deforms by that much. Set on 20 training patients, in the logarithm of what is left unexplained.
_NEAR_MUST_GAIN = 0.05
_ERROR_OF_HEADERS_MM = 15.0
# What the logarithm of the error that the network still sees is worth beside that
_DISAGREEMENT = 0.1
# Where the network sees no more error than this, the images show so much that they are believed: no
# gain is too small then, and a pair with a CT may bend softly. Little but edges is alike between a
# CT and another image: softer fields of limbs of training patients end further from the headers.
# In painted training heads the network saw 0.9 to 1.3 mm, in those limbs 1.45 and more.
_CLEAR_MM = 1.4


@dataclass(frozen=True)
class _Pair:
    """Both images on the lattice, after the pose, and where they are compared.

    Attributes:
        fixed: the reference.
        moving: the moving image after the pose.
        lattice: where both are sampled.
        least_gain: share of the self-similarity distance that a deformation must remove.
        second_opinion: share by which NMI has to rise as well.
        with_ct: whether one of both is a CT.
    """

    fixed: OnLattice
    moving: OnLattice
    lattice: Lattice
    least_gain: float
    second_opinion: float
    with_ct: bool

    def moved(self, ddf: Tensor | None = None) -> Tensor:
        """``(1, 1, *S)`` the moving image after a deformation in voxels of the lattice."""
        image = self.moving.image
        return image if ddf is None else warp(image, ddf, fill=None)

    def compared(self, ddf: Tensor | None = None, *, either: bool = False) -> Tensor:
        """``(1, 1, *S)`` 0/1: the fixed body, or either's, where both images are data."""
        known = self.moving.known if ddf is None else warp(self.moving.known, ddf)
        body = self.fixed.body > 0
        if either:
            moved = self.moving.body if ddf is None else warp(self.moving.body, ddf)
            body = body | (moved > 0.5)
        return (body & (self.fixed.known > 0.5) & (known > 0.5)).float()


class Register:
    """Find the map of the reference's world to a moving image's world.

    Headers, then a rigid or affine pose, then the network's deformation, then its refinement. Each
    step is judged by similarity over the field of view that both images share and dropped where it
    is not clearly better: a good start is to be kept, and a rigid case to stay rigid.

    Args:
        network: predicts the deformation.
        refine_steps: steps of instance optimization; 0 switches it off.
        working_spacing: mm of the working lattice; None chooses by the images.
        device: where the network computes.
    """

    def __init__(
        self,
        network: RegistrationNet,
        *,
        refine_steps: int = 30,
        working_spacing: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if refine_steps < 0:
            raise InputError(f"expected refine_steps >= 0, got {refine_steps}")
        if working_spacing is not None and not working_spacing > 0:
            raise InputError(f"expected a working_spacing > 0 mm, got {working_spacing}")
        self.network = network.to(device).eval()
        self.refine_steps = refine_steps
        self.working_spacing = working_spacing
        self.device = device

    def __call__(
        self,
        fixed: Image,
        moving: Image,
        *,
        transform: TransformKind = "deformable",
        fixed_mask: Image | None = None,
        moving_mask: Image | None = None,
    ) -> Registration:
        """Register one moving image.

        Args:
            fixed: the reference.
            moving: the image to bring onto it.
            transform: how far to go: ``none``, ``rigid``, ``affine`` or ``deformable``.
            fixed_mask: where to look in the reference.
            moving_mask: where to look in the moving image.

        Returns:
            The map, with what was kept and why.

        Raises:
            ValueError: the images differ in the number of dimensions.
        """
        if fixed.spatial_dims != moving.spatial_dims:
            raise ValueError(
                f"expected two images of {fixed.spatial_dims} dimensions, got {moving.spatial_dims}"
            )
        # the search must not depend on the axes in which a file happens to be stored
        fixed, moving = fixed.in_canonical_axes(), moving.in_canonical_axes()
        known = known_region(fixed, fixed_mask), known_region(moving, moving_mask)
        lattice = working_lattice(fixed, moving, self.working_spacing)
        start = _on(fixed, moving, known, lattice, np.eye(fixed.spatial_dims + 1))
        body_mm = _body_mm(moving, known[1], lattice.spacing)
        if transform == "none":
            unmoved = np.eye(fixed.spatial_dims + 1)
            seen = self._disagreement(start, None)
            return _result(start, start, unmoved, None, "none", "", seen, body_mm=body_mm)
        matrix, kept, details = _pose(fixed, moving, known, affine=transform != "rigid")
        pair = start if kept == "none" else _on(fixed, moving, known, lattice, matrix)
        deforms = transform == "deformable"
        images = fixed, moving
        if kept != "none" and (
            # emission images show too little structure to be deformed on trial
            _less_alike(start, pair)
            if emission(fixed, moving)
            else self._headers_do_as_well(pair, matrix, images, known, deforms=deforms)
        ):
            matrix, kept, pair = np.eye(fixed.spatial_dims + 1), "none", start
        reason = "" if kept != "none" else "the headers' pose was kept: no other was clearly better"
        ddf = None
        if deforms:
            ddf = self._deformation(pair)
            details["mind_pose"] = _distance(pair, None)
            if ddf is not None:
                details["mind_deformed"] = _distance(pair, ddf)
            if ddf is not None:
                kept = "deformable"
            elif not reason:
                reason = "a deformation would not have been clearly better than the pose alone"
        details |= self._disagreement(pair, ddf)
        return _result(start, pair, matrix, ddf, kept, reason, details, body_mm=body_mm)

    def _predict(self, pair: _Pair) -> Tensor:
        """The network's velocity on half the lattice; zero where the images are then less alike.

        One pass: on training pairs a second one on the first one's result made it worse.
        """
        size = tuple((n + 1) // 2 for n in pair.lattice.shape)
        crop = (slice(None), slice(None), *[slice(n) for n in size])
        fixed, moving = pair.fixed.image.to(self.device), pair.moving.image.to(self.device)
        with torch.no_grad():
            velocity = self.network.velocity(fixed, moving)[0][crop].cpu() * _taper(pair)
        return (
            velocity
            if _distance(pair, _ddf(velocity, pair)) < _distance(pair, None)
            else torch.zeros_like(velocity)
        )

    def _headers_do_as_well(
        self,
        pair: _Pair,
        matrix: Matrix,
        images: tuple[Image, Image],
        known: tuple[Tensor, Tensor],
        *,
        deforms: bool,
    ) -> bool:
        """Whether the headers, with what a deformation adds, explain the images like the pose.

        The search sees rigid moves only, and what a soft tissue has moved by itself costs it dear:
        it tilts bones until the skin fits. So both starts are deformed on a coarser lattice and
        compared where both results are seen, and once more around the bones. Strain costs; the
        error that the network still sees counts as well; and the nearer the pose is to the
        headers, the more it has to gain, since a small error is likelier than a large one.
        """
        fixed, moving = images
        lattice = working_lattice(fixed, moving, _JUDGED_ON * pair.lattice.spacing)
        ends: list[tuple[_Pair, Tensor | None]] = []
        for start in (np.eye(len(matrix)), matrix):
            rival = _on(fixed, moving, known, lattice, start)
            velocity = self._refined(rival, self._predict(rival), _JUDGED) if deforms else None
            ends.append((rival, None if velocity is None else _ddf(velocity, rival)))
        where = torch.ones_like(ends[0][0].fixed.known)
        for end, ddf in ends:  # a limb that lies on air speaks against a pose
            where = where * end.compared(either=True) * end.compared(ddf, either=True)
        if float(where.sum()) == 0:
            return False
        bone = torch.stack([x.bone for end, _ in ends for x in (end.fixed, end.moving)]).amax(0)
        headers, pose = (_unlikely(end, ddf, where, where * bone) for end, ddf in ends)
        if not deforms:
            return headers < pose
        near = float(np.clip(2 - _mean_move(fixed, matrix) / _ERROR_OF_HEADERS_MM, -1, 1))
        seen = [float(self._disagreement(end, ddf)["error_mm"]) for end, ddf in ends]
        gain = _log_ratio(headers, pose) + _DISAGREEMENT * _log_ratio(*seen)
        needed = _NEAR_MUST_GAIN * near
        return gain < (min(0.0, needed) if max(seen) <= _CLEAR_MM else needed)

    def _refined(
        self, pair: _Pair, velocity: Tensor, smoothness: Smoothness, *, coarse: bool = True
    ) -> Tensor:
        """A velocity after its refinement."""
        return refine(
            pair.fixed.image,
            pair.moving.image,
            velocity,
            pair.fixed.known,
            pair.moving.known,
            steps=self.refine_steps,
            smoothness=smoothness,
            coarse=coarse,
        )

    def _deformation(self, pair: _Pair) -> Tensor | None:
        """The refined deformation in voxels of the lattice; None where it earns no place."""
        velocity = self._predict(pair)
        refined = self._refined(pair, velocity, _STIFF)
        best, lowest = None, _distance(pair, None) * (1 - pair.least_gain)
        least = _similarity(pair)["nmi"] - 1
        for candidate in (velocity, refined):
            ddf = _ddf(candidate, pair)
            found = _similarity(pair, ddf)
            # a second opinion: self-similarity alone can fall while a good pose is bent away
            if found["mind"] < lowest and found["nmi"] - 1 > least * (1 + pair.second_opinion):
                best, lowest = ddf, found["mind"]
        if best is None or self.refine_steps == 0:
            return best
        if pair.with_ct and float(self._disagreement(pair, best)["error_mm"]) > _CLEAR_MM:
            return best
        softer = _ddf(self._refined(pair, refined, _SOFT, coarse=False), pair)
        before, after = _similarity(pair, best), _similarity(pair, softer)
        rises = after["nmi"] - 1 > (before["nmi"] - 1) * (1 + _SECOND_OPINION)
        return softer if after["mind"] < before["mind"] and rises else best

    def _disagreement(self, pair: _Pair, ddf: Tensor | None) -> dict[str, float | Tensor]:
        """How far the network would still move the result, forth and back: estimates the error."""
        fixed, moved = pair.fixed.image.to(self.device), pair.moved(ddf).to(self.device)
        with torch.no_grad():
            forth, back = self.network(fixed, moved), self.network(moved, fixed)
            apart = compose(forth, back)
            length = [x.square().sum(1).sqrt() for x in (forth, back, apart)]
        error = (torch.stack(length).mean(0) * pair.lattice.spacing).cpu()[0]
        inside = pair.compared(ddf)[0, 0] > 0
        mean = float(error[inside].mean()) if bool(inside.any()) else float("nan")
        return {"error_mm": mean, "error_map_mm": error}


def _on(
    fixed: Image, moving: Image, known: tuple[Tensor, Tensor], lattice: Lattice, pose: Matrix
) -> _Pair:
    """Both images on the lattice."""
    with_ct, emits = "ct" in (fixed.modality, moving.modality), emission(fixed, moving)
    of_emission = _DEFORMABLE_GAIN_OF_PET_CT if with_ct else _DEFORMABLE_GAIN_OF_PET_MR
    return _Pair(
        on_lattice(fixed, known[0], lattice),
        on_lattice(moving, known[1], lattice, pose),
        lattice,
        of_emission if emits else _DEFORMABLE_GAIN,
        _SECOND_OPINION_WITH_EMISSION if emits else _SECOND_OPINION,
        with_ct,
    )


def _pose(
    fixed: Image, moving: Image, known: tuple[Tensor, Tensor], *, affine: bool
) -> tuple[Matrix, TransformKind, dict[str, float | Tensor]]:
    """The pose that is clearly better than the headers', or the headers' own."""
    pose = find_pose(fixed, moving, known, affine=affine)
    details: dict[str, float | Tensor] = {
        "pose_score_start": pose.start,
        "pose_score_rigid": pose.rigid_score,
        "pose_score": pose.score,
    }
    stretched = affine and pose.score > pose.rigid_score * _AFFINE_GAIN
    matrix, score = (pose.matrix, pose.score) if stretched else (pose.rigid, pose.rigid_score)
    moved = _mean_move(fixed, matrix)
    needed = _POSE_GAIN_NATS + pose.far
    if moved < _SMALL_MOVE_MM:
        needed = min(needed, _SMALL_GAIN * pose.start)
    if score - pose.start < needed:
        return np.eye(len(matrix)), "none", details
    return matrix, "affine" if stretched else "rigid", details


def _mean_move(fixed: Image, matrix: Matrix) -> float:
    """Mean distance in mm that the fixed image's own box is moved, over a lattice of its points."""
    axes = [np.linspace(0, n - 1, 5) for n in fixed.shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.spatial_dims)
    world = apply_affine(fixed.affine, voxels)
    return float(np.linalg.norm(apply_affine(matrix, world) - world, axis=1).mean())


def _taper(pair: _Pair) -> Tensor:
    """1 where both images show something, fading to 0 over some 20 mm: nothing is known beyond."""
    where = pair.moving.known * pair.fixed.known
    d = where.ndim - 2
    pool = F.avg_pool3d if d == 3 else F.avg_pool2d
    half = pool(where, 3, stride=2, padding=1, count_include_pad=False)
    for _ in range(max(1, round(_TAPER_MM / (2 * pair.lattice.spacing)))):
        half = pool(F.pad(half, [1] * (2 * d), mode="replicate"), 3, stride=1)
    return half


def _less_alike(start: _Pair, pair: _Pair) -> bool:
    """Whether a pose lowers one of both similarities."""
    before, after = _similarity(start), _similarity(pair)
    return after["nmi"] < before["nmi"] or after["mind"] > before["mind"]


def _ddf(velocity: Tensor, pair: _Pair) -> Tensor:
    """The displacement in voxels of the lattice that a velocity on half of it leads to."""
    return resize_ddf(integrate(velocity), pair.lattice.shape)


def _unlikely(pair: _Pair, ddf: Tensor | None, *regions: Tensor) -> float:
    """What a pose and its deformation leave unexplained over each region that is not empty.

    The self-similarity distances after the pose alone and after the deformation, and what the
    strain costs. After the deformation alone, even exact rigid moves are no better than headers
    that are bent (generated phantoms).
    """
    fields = [None] if ddf is None else [None, ddf]
    left = sum(
        float(mind_distance(pair.fixed.image, pair.moved(field), where))
        for where in regions
        if bool(where.any())
        for field in fields
    )
    if ddf is None:
        return left
    strain = diffusion_energy(ddf, [1.0] * (ddf.ndim - 2)).sum()
    return left + _STRAIN_COSTS * float(strain)


def _log_ratio(a: float, b: float) -> float:
    """log(a / b); 0 where there is nothing to compare."""
    return math.log(a / b) if a > 0 and b > 0 else 0.0


def _distance(pair: _Pair, ddf: Tensor | None) -> float:
    """Self-similarity distance over what is seen both before and after the deformation."""
    where = pair.compared() * pair.compared(ddf)
    if float(where.sum()) == 0:
        return 1.0
    return float(mind_distance(pair.fixed.image, pair.moved(ddf), where))


def _similarity(pair: _Pair, ddf: Tensor | None = None) -> dict[str, float]:
    """NMI (higher is better), self-similarity distance (lower is) over the overlap; the overlap."""
    where = pair.compared(ddf)
    moved = pair.moved(ddf)
    share = float(where.sum() / pair.fixed.body.sum().clamp_min(1.0))
    if float(where.sum()) < 100:
        return {"nmi": 1.0, "mind": 1.0, "overlap": share}
    nmi = normalized_mutual_information(pair.fixed.image[0, 0], moved[0, 0], where[0, 0], 32)
    mind = float(mind_distance(pair.fixed.image, moved, where))
    return {"nmi": nmi, "mind": mind, "overlap": share}


def _result(
    start: _Pair,
    pair: _Pair,
    matrix: Matrix,
    ddf: Tensor | None,
    kept: TransformKind,
    reason: str,
    details: Mapping[str, float | Tensor],
    *,
    body_mm: float,
) -> Registration:
    """Put the parts together and doubt them where there is reason to."""
    lattice = pair.lattice
    d = len(lattice.shape)
    field = torch.zeros((1, d, *lattice.shape)) if ddf is None else ddf
    before, after = _similarity(start), _similarity(pair, ddf)
    numbers = dict(details)
    error, error_map = numbers.pop("error_mm", float("nan")), numbers.pop("error_map_mm", None)
    fixed_mm = float(pair.fixed.body.sum()) * lattice.spacing**d
    doubt = _doubt(before, after, float(error), after["overlap"] * max(1.0, fixed_mm / body_mm))
    return Registration(
        moving_from_fixed=matrix,
        ddf_mm=ddf_mm_from_ddf(field, torch.from_numpy(lattice.affine))[0],
        working_affine=lattice.affine,
        transform=kept,
        ok=not doubt,
        reason="; ".join(part for part in (doubt, reason) if part),
        similarity_before=before,
        similarity_after=after,
        folded_fraction=float((jacobian_determinant(field) <= 0).float().mean()),
        error_mm=float(error),
        error_map_mm=error_map if isinstance(error_map, Tensor) else None,
        details={
            **{k: float(v) for k, v in numbers.items()},
            "working_spacing_mm": lattice.spacing,
        },
    )


def _body_mm(image: Image, known: Tensor, spacing: float) -> float:
    """How much body an image shows, in mm³ (mm² in 2D), at least one voxel."""
    own = on_lattice(image, known, working_lattice(image, image, spacing))
    return max(1.0, float(own.body.sum())) * spacing**image.spatial_dims


def _doubt(
    before: Mapping[str, float], after: Mapping[str, float], error_mm: float, shared: float
) -> str:
    """Why the result is probably wrong, or nothing.

    Args:
        before: similarity of the headers' pose.
        after: similarity of the result.
        error_mm: the network's estimate.
        shared: how much of the smaller body both images show.
    """
    if shared < _LEAST_OVERLAP:
        return f"the images share only {shared:.0%} of the smaller body"
    if after["nmi"] < before["nmi"] and after["mind"] > before["mind"]:
        return "the images are less alike than before"
    if error_mm > _DOUBTFUL_MM:
        return f"the network would move the result by another {error_mm:.0f} mm: look at it"
    return ""
