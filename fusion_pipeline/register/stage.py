"""`Register`: pose, network, refinement; each kept only where it earns its place."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image, InputError, TransformKind
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import averaged, halved
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register.evidence import Registration
from fusion_pipeline.register.gates import (
    CLEAR_MM,
    ON_TRIAL,
    SOFTER,
    WORTH_A_TRIAL,
    Gate,
    stiff_gate,
)
from fusion_pipeline.register.judge import JUDGED, JUDGED_ON, headers_do_as_well
from fusion_pipeline.register.lattice import Lattice, blurred_for, on_lattice, working_lattice
from fusion_pipeline.register.pose import find_pose, polished
from fusion_pipeline.register.refinement import Smoothness, refine
from fusion_pipeline.register.result import body_mm3, result
from fusion_pipeline.register.trial import Pair, Side, Trial
from fusion_pipeline.register.views import emission, known_region

# The pose must raise its score by so many nats and by what its distance from the headers costs, or
# the headers are kept. A small move only has to gain a share of the score.
_POSE_GAIN_NATS = 0.03
_SMALL_GAIN = 0.02  # share of the score that is enough for a move under `_SMALL_MOVE_MM`
_SMALL_MOVE_MM = 2.0
_AFFINE_GAIN = 1.15  # on training patients smaller gains came with worse poses as often as not
# Smoothness of the refinement: at first, and from there where the pair allows it
_STIFF, _SOFT = Smoothness(diffusion=80.0), Smoothness(diffusion=5.0, bending=10.0)
# Last, and only between different people, whose tissues differ in shape and not in place alone
_SOFTEST = Smoothness(diffusion=2.0, bending=2.0, nodes=2)
# What a nat of mutual information is worth to a soft field beside a CT or emission image, whose
# edges lie otherwise than an MR's: self-similarity alone bends a skull off its place. Two MRs are
# better off without, and limbs of training patients are led further from their headers by it.
_INFORMATION = 3.0
_TAPER_MM = 20.0
# A pose whose score is so many times the headers', and so many nats higher, is not tried against
# them: on training patients they never won beyond 1.96 times and 0.55 nats.
_UNDISPUTED, _UNDISPUTED_NATS = 2.2, 0.6
# Nor is one after which the network sees so many times less error: of 18 such moves of training
# patients (of 54) the headers won one, in which both ended alike.
_SEEN_NEARER = 2.0
# Nor one that is clear and after which it sees so many times less: such are poses of heads, whose
# tissue does not move by itself (`docs/decisions/0021`).
_SEEN_CLEARER = 1.25
_POLISH_MOST_MM = 2.0  # a polish that goes further has left the place that was found


class Register:
    """Find the map of the reference's world to a moving image's world.

    Headers, then a rigid or affine pose, then the network's deformation, then its refinement. Each
    step is judged by similarity over the field of view that both images share and dropped where it
    is not clearly better: a good start is to be kept, and a rigid case to stay rigid. Last, a rigid
    result of clear images may be placed more exactly, by the score of its pose.

    Args:
        network: predicts the deformation.
        refine_steps: steps of instance optimization; 0 switches it off.
        working_spacing: mm of the working lattice; None chooses by the images.
        same_person: whether both images show one person. If not, an affine pose needs no more gain
            than a rigid one, the result from the headers is no rival to it, and the deformation
            is as soft as anatomies differ.
        device: where the network computes.
    """

    def __init__(
        self,
        network: RegistrationNet,
        *,
        refine_steps: int = 30,
        working_spacing: float | None = None,
        same_person: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if refine_steps < 0:
            raise InputError(f"expected refine_steps >= 0, got {refine_steps}")
        if working_spacing is not None and not working_spacing > 0:
            raise InputError(f"expected a working_spacing > 0 mm, got {working_spacing}")
        self.network = network.to(device).eval()
        self.refine_steps = refine_steps
        self.working_spacing = working_spacing
        self.same_person = same_person
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
        images = fixed, moving
        known = known_region(fixed, fixed_mask), known_region(moving, moving_mask)
        lattice = working_lattice(fixed, moving, self.working_spacing)
        place = self._placing(images, known, lattice)
        start = place(None)
        body_mm = body_mm3(moving, known[1])
        if transform == "none":
            unmoved = np.eye(fixed.spatial_dims + 1)
            still = start.undeformed
            return result(start, still, unmoved, "none", "", {}, seen=still, body_mm=body_mm)
        deforms = transform == "deformable"
        stretch_gain = _AFFINE_GAIN if self.same_person else 1.0
        affine = transform != "rigid"
        found = _pose(fixed, moving, known, affine=affine, stretch_gain=stretch_gain)
        pair = start if found.kept == "none" else place(found.matrix)
        if self._headers_win(start, pair, found, images, known, deforms=deforms):
            found, pair = found.refused(), start
        matrix, kept, details = found.matrix, found.kept, found.details
        reason = "" if kept != "none" else "the headers' pose was kept: no other was clearly better"
        end = pair.undeformed
        if deforms:
            end = self._deformed(pair, images)
            where = pair.undeformed.compared() * end.compared()
            details["mind_pose"] = pair.undeformed.distance(where)
            if end.ddf is not None:
                kept = "deformable"
                details["mind_deformed"] = end.distance(where)
            elif not reason:
                reason = "a deformation would not have been clearly better than the pose alone"
        # the estimate is not made anew after a polish: that moves by less than the network can tell
        seen = end
        if kept == "rigid" and _can_be_polished(end, images):
            matrix, end = _placed_exactly(place, end, matrix, images, known, details)
        return result(start, end, matrix, kept, reason, details, seen=seen, body_mm=body_mm)

    def _placing(
        self, images: tuple[Image, Image], known: tuple[Tensor, Tensor], lattice: Lattice
    ) -> Callable[[Matrix | None], Pair]:
        """What brings both images onto a lattice, the moving one by a pose (None: its headers)."""
        blurred = [blurred_for(*one, lattice) for one in zip(images, known, strict=True)]

        def side(number: int, pose: Matrix | None) -> Side:
            read = images[number], known[number], lattice, pose
            shown = on_lattice(*read, blurred=blurred[number])
            return Side(shown, self.network, self.device)

        reference = side(0, None)
        return lambda pose: Pair(reference, side(1, pose), lattice)

    def _predict(self, pair: Pair) -> tuple[Tensor, Trial]:
        """The network's velocity on half the lattice; zero where the images are then less alike.

        One pass: on training pairs a second one on the first one's result made it worse.
        """
        size = tuple((n + 1) // 2 for n in pair.lattice.shape)
        crop = (slice(None), slice(None), *[slice(n) for n in size])
        with torch.no_grad():
            velocity = self.network.match(pair.fixed.features, pair.moving.features)[0]
        velocity = velocity[crop].cpu() * _taper(pair)
        trial = pair.trial(velocity)
        where = trial.compared() * pair.undeformed.compared()
        if trial.distance(where) < pair.undeformed.distance(where):
            return velocity, trial
        return torch.zeros_like(velocity), pair.undeformed

    def _headers_win(
        self,
        start: Pair,
        pair: Pair,
        found: "_Found",
        images: tuple[Image, Image],
        known: tuple[Tensor, Tensor],
        *,
        deforms: bool,
    ) -> bool:
        """Whether the headers are to be kept, in place of the pose that was found if any was."""
        if found.kept == "none" or not self.same_person:
            return found.kept == "none"
        less_alike = _less_alike(start, pair)
        if emission(*images):  # they show too little structure to be deformed on trial
            return less_alike
        if not less_alike and (found.undisputed or _seen_nearer(start, pair)):
            return False
        lattice = working_lattice(*images, JUDGED_ON * pair.lattice.spacing)
        return headers_do_as_well(
            self._placing(images, known, lattice),
            found.matrix,
            moved_mm=_mean_move(images[0], found.matrix),
            deform=self._deformed_for_judgement if deforms else None,
        )

    def _deformed_for_judgement(self, pair: Pair) -> Trial:
        """A pair after a deformation that is kept whatever it shows."""
        return pair.trial(self._refined(pair, self._predict(pair)[0], JUDGED))

    def _softest(self, pair: Pair, stiff: Tensor, gate: Gate) -> Trial:
        """The softest field that shows its worth: anatomies of different people differ in shape."""
        soft = self._refined(pair, stiff, _SOFT, information=_INFORMATION)
        softest = self._refined(pair, soft, _SOFTEST, information=_INFORMATION, coarse=False)
        for velocity in (softest, soft, stiff):
            trial = pair.trial(velocity)
            if gate.lets(trial, pair.undeformed):
                return trial
        return pair.undeformed

    def _refined(
        self,
        pair: Pair,
        velocity: Tensor,
        smoothness: Smoothness,
        *,
        information: float = 0.0,
        coarse: bool = True,
    ) -> Tensor:
        """A velocity after its refinement."""
        return refine(
            pair.fixed.described,
            pair.moving.described,
            velocity,
            steps=self.refine_steps,
            smoothness=smoothness,
            information=information,
            coarse=coarse,
        )

    def _deformed(self, pair: Pair, images: tuple[Image, Image]) -> Trial:
        """The pair after the deformation that earns its place, or as the pose left it."""
        gate = stiff_gate(*images)
        with_ct = "ct" in [image.modality for image in images]
        worth = _INFORMATION if with_ct or emission(*images) else 0.0
        velocity, predicted = self._predict(pair)
        # a picture's pixels are far finer than what an emission image resolves: descriptors on them
        # are noise, and the network alone ends nearer (`docs/decisions/0023`)
        refines = self.refine_steps > 0 and not (pair.lattice.dims == 2 and emission(*images))
        if not refines:
            return predicted if gate.lets(predicted, pair.undeformed) else pair.undeformed
        refined = self._refined(pair, velocity, _STIFF)
        if not self.same_person:
            return self._softest(pair, refined, gate)
        stiff = pair.trial(refined)
        best = pair.undeformed
        for trial in (predicted, stiff):
            if trial.similarity["mind"] < best.similarity["mind"] and gate.lets(
                trial, pair.undeformed
            ):
                best = trial
        kept = best.ddf is not None
        if not kept and not WORTH_A_TRIAL.lets(stiff, pair.undeformed):
            return best
        if (with_ct or not kept) and not stiff.error_mm <= CLEAR_MM:
            return best
        soft = pair.trial(self._refined(pair, refined, _SOFT, information=worth, coarse=False))
        return soft if (SOFTER if kept else gate.and_also(ON_TRIAL)).lets(soft, best) else best


@dataclass(frozen=True)
class _Found:
    """The pose to go on from.

    Attributes:
        matrix: moving_from_fixed.
        kept: what kind of pose it is; ``none``: the headers'.
        details: scores, for the report.
        undisputed: whether it is far better than the headers.
    """

    matrix: Matrix
    kept: TransformKind
    details: dict[str, float]
    undisputed: bool = False

    def refused(self) -> "_Found":
        """The headers, with the same details."""
        return _Found(np.eye(len(self.matrix)), "none", dict(self.details))


def _pose(
    fixed: Image,
    moving: Image,
    known: tuple[Tensor, Tensor],
    *,
    affine: bool,
    stretch_gain: float,
) -> _Found:
    """The pose that is clearly better than the headers', or theirs.

    An affine one is taken where its score is so many times a rigid one's.
    """
    pose = find_pose(fixed, moving, known, affine=affine)
    details = {
        "pose_score_start": pose.start,
        "pose_score_rigid": pose.rigid_score,
        "pose_score": pose.score,
    }
    stretched = affine and pose.score > pose.rigid_score * stretch_gain
    matrix, score = (pose.matrix, pose.score) if stretched else (pose.rigid, pose.rigid_score)
    moved = _mean_move(fixed, matrix)
    needed = _POSE_GAIN_NATS + pose.far
    if moved < _SMALL_MOVE_MM:
        needed = min(needed, _SMALL_GAIN * pose.start)
    if score - pose.start < needed:
        return _Found(np.eye(len(matrix)), "none", details)
    undisputed = score >= max(_UNDISPUTED * pose.start, pose.start + _UNDISPUTED_NATS)
    return _Found(matrix, "affine" if stretched else "rigid", details, undisputed)


def _can_be_polished(trial: Trial, images: tuple[Image, Image]) -> bool:
    """Whether a rigid result can be placed more exactly: clear images, but no PET beside a CT."""
    modalities = [image.modality for image in images]
    beside_ct = emission(*images) and "ct" in modalities
    return images[0].spatial_dims == 3 and not beside_ct and trial.error_mm <= CLEAR_MM


def _placed_exactly(
    place: Callable[[Matrix | None], Pair],
    trial: Trial,
    matrix: Matrix,
    images: tuple[Image, Image],
    known: tuple[Tensor, Tensor],
    details: dict[str, float],
) -> tuple[Matrix, Trial]:
    """A rigid result placed more exactly, as far as that is near; how far is added to the details.

    Its score rises; self-similarity over the lattice is no judge of so small a move.
    """
    finer = polished(*images, known, matrix)
    moved = _mean_move(images[0], np.linalg.inv(matrix) @ finer)
    if moved > _POLISH_MOST_MM:
        return matrix, trial
    end = place(finer).undeformed
    details["polished_mm"] = moved
    if "mind_pose" in details:
        details["mind_pose"] = end.distance(end.compared())
    return finer, end


def _mean_move(fixed: Image, matrix: Matrix) -> float:
    """Mean distance in mm that the fixed image's own box is moved, over a lattice of its points."""
    axes = [np.linspace(0, n - 1, 5) for n in fixed.shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.spatial_dims)
    world = apply_affine(fixed.affine, voxels)
    return float(np.linalg.norm(apply_affine(matrix, world) - world, axis=1).mean())


def _taper(pair: Pair) -> Tensor:
    """1 where both images show something, fading to 0 over some 20 mm: nothing is known beyond."""
    where = pair.moving.shown.known * pair.fixed.shown.known
    return averaged(halved(where), max(1, round(_TAPER_MM / (2 * pair.lattice.spacing))))


def _seen_nearer(start: Pair, pair: Pair) -> bool:
    """Whether the network sees far less error after a pose than by the headers, on one region.

    Less is enough where it is clear after the pose.
    """
    before, after = start.undeformed, pair.undeformed
    where = before.compared(either=True) * after.compared(either=True)
    headers, pose = before.error_over(where), after.error_over(where)
    if pose <= CLEAR_MM:
        return headers > _SEEN_CLEARER * pose
    return headers > _SEEN_NEARER * pose


def _less_alike(start: Pair, pair: Pair) -> bool:
    """Whether a pose lowers one of both similarities."""
    before, after = start.undeformed.similarity, pair.undeformed.similarity
    return after["nmi"] < before["nmi"] or after["mind"] > before["mind"]
