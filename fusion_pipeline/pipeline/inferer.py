"""`FusionInferer`: register, harmonize and fuse one prepared case, as a MONAI inferer."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from fusion_pipeline.data import (
    FEWEST_IMAGES,
    Case,
    Image,
    InputError,
    Prepared,
    check_colour_map,
    check_one_patient,
    one_line_refusals,
)
from fusion_pipeline.fuse import Fuse, Fusion, displayed_images
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import continued
from fusion_pipeline.harmonize import Harmonization, Harmonize
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline import bundle
from fusion_pipeline.pipeline.clock import Clock, announce, announce_end, peak_memory_mb
from fusion_pipeline.pipeline.measures import measured
from fusion_pipeline.pipeline.result import PipelineResult
from fusion_pipeline.register import Evidence, Register, Registration
from fusion_pipeline.result import STAGES, Stage
from fusion_pipeline.transforms import NormalizeModality

_WORKING_MM = (0.1, 20.0)  # spacings of the lattice that are believed


class FusionInferer(Inferer):
    """Bring the images of one patient to the reference's grid, harmonize and fuse them.

    Convention:
        - the stages work in canonical axes; results lie on the reference's native grid, after one
          interpolation of the original values
        - the same input gives the same output, bit for bit, on the same machine and device
        - the stages compute on ``device`` and hand their results back to the CPU; a device holds
          the images of one stage at a time

    Args:
        refine_steps: of the registration, steps of instance optimization after the network; 0
            switches it off.
        fuse_steps: the same of the fusion.
        colour_map: of the fused image in colour, one of `data.COLOUR_MAPS`.
        working_spacing: mm of the lattice on which the registration works, 0.1 to 20; None: by the
            images.
        same_person: False for images of different people, such as an atlas: softer fields.
        only: one stage alone: ``register``; ``harmonize``, images of one grid together and others
            each on its own grid; ``fuse``, of images that are aligned as given. None: all three.
        measure: add the scores of `measures.measured`, which cost as much as the harmonization.
        device: where images are registered, resampled, harmonized and fused; in a process of
            ``torchrun`` plain ``cuda`` is the GPU of its own number, ``LOCAL_RANK``.
    """

    @one_line_refusals()
    def __init__(
        self,
        *,
        refine_steps: int = 30,
        fuse_steps: int = 18,
        colour_map: str = "hot",
        working_spacing: float | None = None,
        same_person: bool = True,
        only: Stage | None = None,
        measure: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        _check_device(device)
        if only is not None and only not in STAGES:
            raise InputError(
                f"only: expected {', '.join(STAGES)}, got {only!r}; leave it out for all"
            )
        _check_numbers({"refine_steps": refine_steps, "fuse_steps": fuse_steps}, working_spacing)
        self.refine_steps = refine_steps
        self.fuse_steps = fuse_steps
        self.colour_map = check_colour_map(colour_map)
        self.working_spacing = working_spacing
        self.same_person = bundle.switch("same_person", same_person)
        self.only = only
        self.measure = bundle.switch("measure", measure)
        self.device = torch.device(device)

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """What decides the output beside the input and the weights."""
        return {
            "refine_steps": self.refine_steps,
            "fuse_steps": self.fuse_steps,
            "colour_map": self.colour_map,
            "working_spacing": self.working_spacing,
            "same_person": self.same_person,
            "device": str(self.device),
            **({} if self.only is None else {"only": self.only}),
            **({"measure": "yes"} if self.measure else {}),  # a report of a plain run stays valid
        }

    def __call__(
        self,
        inputs: Case,
        network: MultimodalNet,
        *args: Any,  # noqa: ANN401 - MONAI's signature
        normalize: NormalizeModality | None = None,
        clock: Clock | None = None,
        **kwargs: Any,  # noqa: ANN401 - MONAI's signature
    ) -> PipelineResult:
        """Run the three stages on a case.

        Args:
            inputs: a prepared case (see `data.load_case`).
            network: the parts that the stages hold.
            args: not used.
            normalize: brings what a network reads to its scale; None: `NormalizeModality()`.
            clock: collects the seconds of the stages.
            kwargs: not used.

        Raises:
            InputError: images of another dimension than the network's; images of different people
                or, not to be moved, in another frame of reference.
        """
        clock = clock or Clock()
        self._check_case(inputs, network)
        doubts = check_one_patient(inputs, same_person=self.same_person)
        inputs = replace(inputs, warnings=(*inputs.warnings, *doubts))
        with _repeatable(self.device):
            return self._result(inputs, network, normalize or NormalizeModality(), clock)

    def register_stage(
        self, network: MultimodalNet, normalize: NormalizeModality | None = None
    ) -> Register:
        """The stage that registers one pair, with these settings."""
        return Register(
            network.registration,
            refine_steps=self.refine_steps,
            working_spacing=self.working_spacing,
            same_person=self.same_person,
            device=self.device,
            normalize=normalize,
        )

    def register(
        self, case: Case, network: MultimodalNet, normalize: NormalizeModality
    ) -> dict[str, Registration]:
        """The register stage, per moving key."""
        stage = self.register_stage(network, normalize)
        fixed = case.series[case.reference]
        reference = _prepared(case, case.reference).to(self.device)
        registrations = {}
        for key in case.moving:
            announce(f"register {key}", case.id)
            registrations[key] = stage(
                reference,
                _prepared(case, key),
                transform=case.series[key].transform,
                fixed_mask=fixed.mask,
                moving_mask=case.series[key].mask,
                initial_transform=case.series[key].initial_transform,
            )
        announce_end()
        return registrations

    def harmonize(
        self,
        images: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        network: MultimodalNet,
        normalize: NormalizeModality,
    ) -> Harmonization:
        """The harmonize stage on images of one grid, the reference first."""
        stage = Harmonize(network.harmonization, device=self.device, normalize=normalize)
        return stage(images, fields_of_view)

    def fuse(
        self,
        images: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        network: MultimodalNet,
        displayed: Mapping[str, Image] | None = None,
    ) -> Fusion:
        """The fuse stage on harmonized images of one grid, the reference first.

        Args:
            images: harmonized.
            fields_of_view: per key, ``(1, *S)``.
            network: the parts that the stages hold.
            displayed: what the fused image is made of (`fuse.displayed_images`); ``images`` if
                None.
        """
        stage = Fuse(
            network.fusion, device=self.device, steps=self.fuse_steps, colour_map=self.colour_map
        )
        return stage(images, fields_of_view, displayed)

    def _check_case(self, case: Case, network: MultimodalNet) -> None:
        """Refuse pictures where the networks are made for volumes, and the other way round.

        One image is enough to be harmonized, and for nothing else.
        """
        wanted, given = network.registration.spatial_dims, case.fixed.spatial_dims
        if given != wanted:
            raise InputError(
                f"case {case.id!r}: expected {wanted}D images for this bundle, got {given}D; "
                f"use a bundle for {given}D input"
            )
        if len(case.series) < fewest_images(self.only):
            raise InputError(
                f"case {case.id!r}: expected two or more images, got 1 ({case.reference}); one is "
                "enough for only harmonize"
            )

    def _result(
        self, case: Case, network: MultimodalNet, normalize: NormalizeModality, clock: Clock
    ) -> PipelineResult:
        """The stages, and everything back on the reference's own axes."""
        network = network.to(self.device).eval()
        if self.only == "harmonize":
            return self._harmonized_alone(case, network, normalize, clock)
        if self.only == "fuse":
            registrations = unmoved(case)
        else:
            with clock.stage("register", has_steps=True):
                registrations = self.register(case, network, normalize)
        with clock.stage("resample"):
            fields_of_view = _fields_of_view(case, registrations, self.device)
            registered = {
                key: _registered(case, key, found, fields_of_view[key], self.device)
                for key, found in registrations.items()
            }
        harmonization, fusion = Harmonization({}, {}), None
        if self.only != "register":
            together = {key: registered.get(key, image) for key, image in case.images.items()}
            with clock.stage("harmonize"):
                harmonization = self.harmonize(together, fields_of_view, network, normalize)
            with clock.stage("fuse"):
                shown = displayed_images(together, fields_of_view)
                fusion = self.fuse(harmonization.images, fields_of_view, network, shown)
                del shown
        native = case.fixed.affine if case.native_affine is None else case.native_affine
        alone = self.only == "fuse"
        # one after the other, so that what was turned is gone before the next is
        harmonization = Harmonization({}, {}) if alone else harmonization.along_axes_of(native)
        fusion = None if fusion is None else fusion.along_axes_of(native)
        result = PipelineResult(
            case=case,
            registered_images=_along(native, registered),
            registrations={} if alone else registrations,
            harmonization=harmonization,
            fusion=fusion,
            warnings=(*case.warnings, *_doubts(registrations)),
            timings=clock.timings,
            peak_memory_mb=peak_memory_mb(),
            only=self.only,
        )
        if not self.measure or self.only is not None:
            return result
        again = partial(self.harmonize, network=network, normalize=normalize)
        return measured(result, together, fields_of_view, again)

    def _harmonized_alone(
        self, case: Case, network: MultimodalNet, normalize: NormalizeModality, clock: Clock
    ) -> PipelineResult:
        """The harmonize stage alone; images of one grid together, for they can be compared."""
        fields = {key: _prepared(case, key).field_of_view for key in case.series}
        groups = [list(case.images)] if on_one_grid(case) else [[key] for key in case.images]
        parts = []
        with clock.stage("harmonize"):
            for keys in groups:
                images = {key: case.images[key] for key in keys}
                part = self.harmonize(
                    images, {key: fields[key] for key in keys}, network, normalize
                )
                native = case.series[keys[0]].native_affine
                parts.append(part if native is None else part.along_axes_of(native))
        together = Harmonization(
            {key: image for part in parts for key, image in part.images.items()},
            {key: scores for part in parts for key, scores in part.scores.items()},
            {key: mapping for part in parts for key, mapping in part.mappings.items()},
        )
        return PipelineResult(
            case=case,
            registered_images={},
            registrations={},
            harmonization=together,
            fusion=None,
            warnings=case.warnings,
            timings=clock.timings,
            peak_memory_mb=peak_memory_mb(),
            only=self.only,
        )


def fewest_images(only: str | None) -> int:
    """How many images a case needs for a stage: one to be harmonized, else two."""
    return 1 if only == "harmonize" else FEWEST_IMAGES


def on_one_grid(case: Case) -> bool:
    """Whether all images of a case have the reference's voxels, to a thousandth of one."""
    return all(off_grid(image, case.fixed) is None for image in case.images.values())


def off_grid(image: Image, fixed: Image) -> str | None:
    """How an image's grid differs from the reference's; None where it does not."""
    tolerance = 1e-3 * float(fixed.spacing.min())
    if image.shape != fixed.shape:
        return f"shape {image.shape}"
    if abs(image.affine - fixed.affine).max() > tolerance:
        return "another affine"
    return None


def unmoved(case: Case) -> dict[str, Registration]:
    """Per moving key the map that leaves it where its header places it."""
    stay = Registration(WorldMap.identity(case.fixed.spatial_dims), Evidence("none"))
    return dict.fromkeys(case.moving, stay)


def _prepared(case: Case, key: str) -> Prepared:
    """The prepared image of a case."""
    prepared = case.series[key].prepared
    if prepared is None:
        raise InputError(
            f"case {case.id!r}, {key}: expected a prepared image, got one that was only read; run "
            "it through preprocessing with FieldOfViewd and BodyMaskd (data.prepare_case)"
        )
    return prepared


def _along(affine: Matrix, images: Mapping[str, Image]) -> dict[str, Image]:
    """Images in the axes of a grid."""
    return {key: image.in_axes_of(affine) for key, image in images.items()}


def _choose_gpu(device: torch.device) -> None:
    """Let ``cuda`` be this process's own GPU.

    The name stays ``cuda``: `--resume` compares it, and another process may have run the case.
    """
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number == 0 or str(device) != "cuda":
        return
    if number >= there:
        raise InputError(
            f"device {device}: expected a GPU for each process of this machine, got {there} for "
            f"process {number + 1}; start fewer"
        )
    torch.cuda.set_device(number)


def _check_device(device: torch.device | str) -> None:
    """Refuse a device that is not there."""
    try:
        _choose_gpu(torch.device(device))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {device}: expected a device that torch can use here, got an error ({reason}); "
            "use cpu"
        ) from error


def _check_numbers(steps: Mapping[str, object], working_spacing: object) -> None:
    """Refuse what is no such number: MONAI's command line hands on whatever was typed."""
    for name, count in steps.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < 0:
            raise InputError(
                f"expected {name} a whole number of 0 or more, got {count!r}; 0 switches the "
                "refinement off"
            )
    if working_spacing is None:
        return
    low, high = _WORKING_MM
    if (
        isinstance(working_spacing, bool)
        or not isinstance(working_spacing, Real)
        or not low <= float(working_spacing) <= high
    ):
        raise InputError(
            f"expected a working_spacing of {low:g} to {high:g} mm, got {working_spacing!r}; leave "
            "it out to let the images decide"
        )


def _fields_of_view(
    case: Case, registrations: Mapping[str, Registration], device: torch.device
) -> dict[str, Tensor]:
    """Per key ``(1, *S)`` bool on the reference's grid: where each image has data."""
    fields = {case.reference: _prepared(case, case.reference).field_of_view}
    for key, moving in case.moving.items():
        own = _prepared(case, key).field_of_view.to(device).float()
        mask = moving.with_array(own, units="mask", colour=None)
        warped = registrations[key].warp(mask, case.fixed, nearest=True)
        fields[key] = (warped.array > 0.5).cpu()
    return fields


def _registered(
    case: Case, key: str, registration: Registration, field: Tensor, device: torch.device
) -> Image:
    """A moving image on the reference's grid; padding in it is not interpolated with.

    Args:
        case: prepared.
        key: of the moving image.
        registration: its map.
        field: ``(1, *S)`` bool on the reference's grid, see `_fields_of_view`.
        device: where it is computed.
    """
    image, own = case.series[key].image.to(device), _prepared(case, key).field_of_view.to(device)
    if bool(own.all()):
        return registration.warp(image, case.fixed).to("cpu")
    colour = image.colour
    data = image.with_array(
        continued(image.array[None].float(), own[None])[0],
        colour=None if colour is None else continued(colour[None].float(), own[None])[0],
    )
    warped = registration.warp(data, case.fixed).to("cpu")
    return warped.with_array(
        torch.where(field, warped.array, image.fill_value),
        colour=None if warped.colour is None else torch.where(field, warped.colour, 0.0),
    )


def _doubts(registrations: Mapping[str, Registration]) -> list[str]:
    """A sentence for each registration that is probably wrong."""
    return [
        f"{key}: the registration is doubtful: {found.reason}"
        for key, found in registrations.items()
        if not found.ok
    ]


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers whatever was drawn before, and leave the caller's untouched.

    On a GPU the same kernels run each time, in full float32: by default convolutions round their
    operands to 10 bits there.
    """
    on_gpu = device.type == "cuda"
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    # by default all GPUs would be forked, and so be woken, even for a run on the CPU
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.manual_seed(0)
        with exact if on_gpu else nullcontext():
            yield
