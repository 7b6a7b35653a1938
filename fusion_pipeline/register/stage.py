"""`Register`: pose, network, refinement; each is kept only where it improves the result."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image, InputError, Prepared, TransformKind
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import averaged, halved
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register.aligned_pair import AlignedPair, ImagePair, LatticeImage
from fusion_pipeline.register.chosen_pose import ChosenPose, choose_pose, mean_move
from fusion_pipeline.register.criteria import Criterion
from fusion_pipeline.register.doubt import Shown, body_mm3, registration_of
from fusion_pipeline.register.evidence import Registration
from fusion_pipeline.register.given_start import as_given, with_given_start
from fusion_pipeline.register.initial_alignment import initial_alignment_suffices
from fusion_pipeline.register.lattice import Lattice, read_on_lattice, working_lattice
from fusion_pipeline.register.made_views import MadeViews
from fusion_pipeline.register.pose import polished
from fusion_pipeline.register.refinement import refine
from fusion_pipeline.register.settings import DECISION, DEFORMATION, POLISH
from fusion_pipeline.register.sharpness import falls_around
from fusion_pipeline.register.smoothness import Smoothness
from fusion_pipeline.register.standing import (
    NOT_MOVED,
    SESSION,
    Verdict,
    judged,
    left_as_it_was,
    of_one_session,
)
from fusion_pipeline.register.views import has_emission, masked_field_of_view, prepared
from fusion_pipeline.transforms import NormalizeModality


class Register:
    """Find the map of the reference's world to a moving image's world.

    The initial alignment by the image headers, then a rigid or affine pose, then the network's
    deformation, then its refinement. Each step is judged by similarity over the field of view that
    both images share and dropped where it is not clearly better: a good start is to be kept, and a
    rigid case to stay rigid. Last, a rigid result of clear images may be placed more exactly, by
    the score of its pose.

    Args:
        network: predicts the deformation.
        refine_steps: steps of instance optimization; 0 switches it off.
        working_spacing: mm of the working lattice; None chooses by the images.
        same_person: whether both images show one person. If not, an affine pose needs no more gain
            than a rigid one, it is not compared with the initial alignment, and the deformation is
            as soft as anatomies differ.
        device: where images are read, compared and warped, and the network computes. Poses and
            velocities have few numbers and are optimized on the CPU.
        normalize: brings images on the lattice to the scale that the network reads.
    """

    def __init__(
        self,
        network: RegistrationNet,
        *,
        refine_steps: int = 30,
        working_spacing: float | None = None,
        same_person: bool = True,
        device: torch.device | str = "cpu",
        normalize: NormalizeModality | None = None,
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
        self.normalize = normalize or NormalizeModality()
        self._made = MadeViews()

    def __call__(
        self,
        fixed: Image | Prepared,
        moving: Image | Prepared,
        *,
        transform: TransformKind = "deformable",
        fixed_mask: Image | None = None,
        moving_mask: Image | None = None,
        initial_transform: Matrix | None = None,
    ) -> Registration:
        """Register one moving image.

        Args:
            fixed: the reference.
            moving: the image to bring onto it.
            transform: how far to go: ``none``, ``rigid``, ``affine`` or ``deformable``.
            fixed_mask: where to look in the reference.
            moving_mask: where to look in the moving image.
            initial_transform: ``(d + 1, d + 1)`` moving_from_fixed, RAS mm. Tried beside the
                headers, and held by the same measure; with ``none`` it is the result.

        Returns:
            The map, with what was kept and why; on the CPU.

        Raises:
            ValueError: the images differ in the number of dimensions.
        """
        given = tuple(prepared(image.to(self.device)) for image in (fixed, moving))
        images = fixed, moving = given[0].working, given[1].working
        if fixed.spatial_dims != moving.spatial_dims:
            raise ValueError(f"expected {fixed.spatial_dims}D images, got {moving.spatial_dims}D")
        fields_of_view = (
            masked_field_of_view(given[0], fixed_mask),
            masked_field_of_view(given[1], moving_mask),
        )
        self._made.hold(images, fields_of_view)
        falls = None
        if fixed.spatial_dims == 3:
            falls = partial(falls_around, images, fields_of_view, made=self._made)
        shown = Shown(body_mm3(given[1], fields_of_view[1]), falls)
        masked = fixed_mask is not None or moving_mask is not None
        if initial_transform is None:
            return self._registered(images, fields_of_view, transform, shown, masked=masked)
        found = self._registered(
            images, fields_of_view, transform, shown, masked=masked, initial=initial_transform
        )
        return with_given_start(found, fixed, initial_transform)

    def _registered(
        self,
        images: tuple[Image, Image],
        fields_of_view: tuple[Tensor, Tensor],
        transform: TransformKind,
        shown: Shown,
        *,
        masked: bool,
        initial: Matrix | None = None,
    ) -> Registration:
        """The registration, from the headers and an initial transform where there is one."""
        align = self._aligner(images, fields_of_view)
        start = align(None)
        if transform == "none":
            if initial is not None:
                return as_given(start, align(initial), initial, shown=shown)
            return left_as_it_was(start, Verdict(), shown=shown)
        found, pair = self._posed(start, align, images, fields_of_view, transform, initial)
        session = initial is None and of_one_session(*images)
        if self.same_person and session and not found.undisputed:
            return left_as_it_was(start, SESSION, shown=shown, details=found.details)
        deforms = transform == "deformable"
        end, reason = self._end(found, pair, images) if deforms else (pair.undeformed, "")
        # masks cut the outlines off, which a gain in information mostly comes from
        asked = self.same_person and not masked
        verdict = judged(found, end, start, images) if asked else Verdict()
        if initial is not None and not verdict.stays:
            verdict = Verdict()  # how far it lies from a given start is said in the report
        if verdict.stays:
            return left_as_it_was(start, verdict, shown=shown, details=found.details)
        matrix = found.matrix
        estimated_on = end  # not made anew after a polish, which moves by less than it can tell
        if found.kind == "rigid" and end.ddf is None and _can_be_polished(end, images):
            finer = polished(*images, fields_of_view, matrix, self._made)
            matrix, end = _placed_exactly(align, end, matrix, finer, images[0], found.details)
        return registration_of(
            start,
            end,
            ChosenPose(matrix, found.kind if end.ddf is None else "deformable", found.details),
            reason=NOT_MOVED if found.kind == "none" and end.ddf is None else reason,
            doubt=verdict.doubt,
            estimated_on=estimated_on,
            shown=shown,
        )

    def _end(
        self, found: ChosenPose, pair: ImagePair, images: tuple[Image, Image]
    ) -> tuple[AlignedPair, str]:
        """The pair after its deformation, and why there is none; with details of both."""
        end = self._deformed(pair, images)
        where = pair.undeformed.compared_region() * end.compared_region()
        found.details["mind_pose"] = pair.undeformed.distance(where)
        if end.ddf is None:
            return end, "a deformation would not have been clearly better than the pose alone"
        found.details["mind_deformed"] = end.distance(where)
        return end, ""

    def _posed(
        self,
        start: ImagePair,
        align: Callable[[Matrix | None], ImagePair],
        images: tuple[Image, Image],
        fields_of_view: tuple[Tensor, Tensor],
        transform: TransformKind,
        initial: Matrix | None,
    ) -> tuple[ChosenPose, ImagePair]:
        """The pose to go on from, the initial alignment included, and the pair after it."""
        stretch_gain = DECISION.affine_gain if self.same_person else 1.0
        # information alone stretches a slice's PET or SPECT until it fills the head
        affine = transform != "rigid" and not (
            images[0].spatial_dims == 2 and has_emission(*images)
        )
        found = choose_pose(
            *images,
            fields_of_view,
            affine=affine,
            stretch_gain=stretch_gain,
            given=initial,
            made=self._made,
        )
        pair = start if found.kind == "none" else align(found.matrix)
        deforms = transform == "deformable"
        if self._initial_alignment_wins(
            start, pair, found, images, fields_of_view, deforms=deforms
        ):
            return found.refused(), start
        return found, pair

    def _aligner(
        self,
        images: tuple[Image, Image],
        fields_of_view: tuple[Tensor, Tensor],
        lattice: Lattice | None = None,
    ) -> Callable[[Matrix | None], ImagePair]:
        """Reads both images on a lattice, the moving one after a pose (None: its headers')."""
        lattice = lattice or working_lattice(*images, self.working_spacing)
        pairs = zip(images, fields_of_view, strict=True)
        blurred = [self._made.blurred(*one, lattice) for one in pairs]

        def image(number: int, pose: Matrix | None) -> LatticeImage:
            read = images[number], fields_of_view[number], lattice, pose
            arrays = read_on_lattice(*read, blurred=blurred[number], normalize=self.normalize)
            return LatticeImage(arrays, self.network)

        reference = image(0, None)
        return lambda pose: ImagePair(reference, image(1, pose), lattice)

    def _predict(self, pair: ImagePair) -> tuple[Tensor, AlignedPair]:
        """The network's velocity on half the lattice; zero where the images are then less similar.

        One pass: on training pairs a second one on the first one's result made it worse.
        """
        size = tuple((n + 1) // 2 for n in pair.lattice.shape)
        crop = (slice(None), slice(None), *[slice(n) for n in size])
        with torch.no_grad():
            velocity = self.network.match(pair.fixed.features, pair.moving.features)[0]
        velocity = (velocity[crop] * _taper(pair)).cpu()
        aligned = pair.deformed(velocity)
        where = aligned.compared_region() * pair.undeformed.compared_region()
        if aligned.distance(where) < pair.undeformed.distance(where):
            return velocity, aligned
        return torch.zeros_like(velocity), pair.undeformed

    def _initial_alignment_wins(
        self,
        start: ImagePair,
        pair: ImagePair,
        found: ChosenPose,
        images: tuple[Image, Image],
        fields_of_view: tuple[Tensor, Tensor],
        *,
        deforms: bool,
    ) -> bool:
        """Whether the initial alignment is to be kept, in place of the pose that was found."""
        if found.kind == "none" or not self.same_person:
            return found.kind == "none"
        less_similar = _less_similar(start, pair)
        if has_emission(*images):  # too little structure for a deformation on trial
            return less_similar
        if not less_similar and (found.undisputed or _estimate_falls(start, pair)):
            return False
        lattice = working_lattice(*images, DECISION.trial_spacing * pair.lattice.spacing)
        return initial_alignment_suffices(
            self._aligner(images, fields_of_view, lattice),
            found.matrix,
            moved_mm=mean_move(images[0], found.matrix),
            deform=self._deformed_on_trial if deforms else None,
        )

    def _deformed_on_trial(self, pair: ImagePair) -> AlignedPair:
        """A pair after a deformation that is kept whatever it shows."""
        return pair.deformed(self._refined(pair, self._predict(pair)[0], DECISION.trial_smoothness))

    def _softest(self, pair: ImagePair, stiff: Tensor, criterion: Criterion) -> AlignedPair:
        """The softest field that is accepted: anatomies of different people differ in shape."""
        soft = self._refined(pair, stiff, DEFORMATION.soft, information=DEFORMATION.information)
        softest = self._refined(
            pair, soft, DEFORMATION.softest, information=DEFORMATION.information, coarse=False
        )
        for velocity in (softest, soft, stiff):
            aligned = pair.deformed(velocity)
            if criterion.accepts(aligned, pair.undeformed):
                return aligned
        return pair.undeformed

    def _refined(
        self,
        pair: ImagePair,
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

    def _deformed(self, pair: ImagePair, images: tuple[Image, Image]) -> AlignedPair:
        """The pair after the deformation that is accepted, or as the pose left it."""
        criterion = _stiff_criterion(images)
        with_ct = "ct" in [image.modality for image in images]
        information = DEFORMATION.information if with_ct or has_emission(*images) else 0.0
        velocity, predicted = self._predict(pair)
        # a picture's pixels are far finer than what an emission image resolves: descriptors on them
        # are noise, and the network alone ends nearer (`docs/decisions/0023`)
        refines = self.refine_steps > 0 and not (pair.lattice.dims == 2 and has_emission(*images))
        if not refines:
            return predicted if criterion.accepts(predicted, pair.undeformed) else pair.undeformed
        refined = self._refined(pair, velocity, DEFORMATION.stiff)
        if not self.same_person:
            return self._softest(pair, refined, criterion)
        stiff = pair.deformed(refined)
        best = pair.undeformed
        for aligned in (predicted, stiff):
            if aligned.similarity["mind"] < best.similarity["mind"] and criterion.accepts(
                aligned, pair.undeformed
            ):
                best = aligned
        kept = best.ddf is not None
        if not kept and not DEFORMATION.trial.accepts(stiff, pair.undeformed):
            return best
        if (with_ct or not kept) and not stiff.error_mm <= DECISION.clear_mm:
            return best
        softened = self._refined(
            pair, refined, DEFORMATION.soft, information=information, coarse=False
        )
        soft = pair.deformed(softened)
        needed = DEFORMATION.softer if kept else criterion.and_also(DEFORMATION.on_trial)
        return soft if needed.accepts(soft, best) else best


def _stiff_criterion(images: tuple[Image, Image]) -> Criterion:
    """What a stiff deformation of a pair has to show."""
    if not has_emission(*images):
        return DEFORMATION.general
    with_ct = "ct" in [image.modality for image in images]
    return DEFORMATION.pet_ct if with_ct else DEFORMATION.pet_mr


def _can_be_polished(aligned: AlignedPair, images: tuple[Image, Image]) -> bool:
    """Whether a rigid result can be placed more exactly: clear images, but no PET beside a CT."""
    modalities = [image.modality for image in images]
    beside_ct = has_emission(*images) and "ct" in modalities
    return images[0].spatial_dims == 3 and not beside_ct and aligned.error_mm <= DECISION.clear_mm


def _placed_exactly(
    align: Callable[[Matrix | None], ImagePair],
    aligned: AlignedPair,
    matrix: Matrix,
    finer: Matrix,
    fixed: Image,
    details: dict[str, float],
) -> tuple[Matrix, AlignedPair]:
    """A rigid result placed more exactly, unless that moves it far; the details say how far.

    Its score rises; self-similarity over the lattice cannot judge so small a move.
    """
    moved = mean_move(fixed, np.linalg.inv(matrix) @ finer)
    if moved > POLISH.farthest_mm:
        return matrix, aligned
    end = align(finer).undeformed
    details["polished_mm"] = moved
    if "mind_pose" in details:
        details["mind_pose"] = end.distance(end.compared_region())
    return finer, end


def _taper(pair: ImagePair) -> Tensor:
    """1 where both images are data, fading to 0 over some 20 mm: there is nothing beyond."""
    where = pair.moving.arrays.field_of_view * pair.fixed.arrays.field_of_view
    return averaged(halved(where), max(1, round(DEFORMATION.taper_mm / (2 * pair.lattice.spacing))))


def _estimate_falls(start: ImagePair, pair: ImagePair) -> bool:
    """Whether a pose lowers the estimated error far below the initial alignment's, on one region.

    A smaller fall is enough where the images are clear after the pose.
    """
    before, after = start.undeformed, pair.undeformed
    where = before.compared_region(either=True) * after.compared_region(either=True)
    initial, pose = before.error_over(where), after.error_over(where)
    if pose <= DECISION.clear_mm:
        return initial > DECISION.estimate_falls_clear * pose
    return initial > DECISION.estimate_falls * pose


def _less_similar(start: ImagePair, pair: ImagePair) -> bool:
    """Whether a pose lowers one of the two similarities."""
    before, after = start.undeformed.similarity, pair.undeformed.similarity
    return after["nmi"] < before["nmi"] or after["mind"] > before["mind"]
