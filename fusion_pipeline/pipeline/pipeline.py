"""`FusionPipeline`: one case through register, harmonize and fuse."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

from fusion_pipeline.data import (
    Case,
    CaseFiles,
    Image,
    InputError,
    case_from_entry,
    check_output_folder,
    load_case,
    one_line_refusals,
)
from fusion_pipeline.fuse import Fuse
from fusion_pipeline.harmonize import Harmonize
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline import bundle
from fusion_pipeline.pipeline.clock import Clock, peak_memory_mb
from fusion_pipeline.pipeline.fingerprint import fingerprint
from fusion_pipeline.pipeline.folder import deliver, write_files
from fusion_pipeline.register import Register, Registration
from fusion_pipeline.result import CaseResult
from fusion_pipeline.transforms import FieldOfView

_WORKING_MM = (0.1, 20.0)  # spacings of the lattice that are believed


class FusionPipeline:
    """Bring the images of one patient to the reference's grid, harmonize and fuse them.

    Convention:
        - results lie on the reference's native grid, after one interpolation
        - the same input gives the same output, bit for bit, on the same machine

    Args:
        network: the parts that the three stages hold.
        refine_steps: steps of instance optimization after the network; 0 switches it off.
        working_spacing: mm of the lattice on which the registration works, 0.1 to 20; None: by the
            images.
        same_person: False for images of different people, such as an atlas: softer fields.
        device: where the networks compute.
    """

    @one_line_refusals()
    def __init__(
        self,
        network: MultimodalNet,
        *,
        refine_steps: int = 30,
        working_spacing: float | None = None,
        same_person: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_device(device)
        _check_numbers(refine_steps, working_spacing)
        same_person = bundle.switch("same_person", same_person)
        self._device = torch.device(device)
        self.network = network.to(device).eval()
        self.settings: Mapping[str, float | str | None] = {
            "refine_steps": refine_steps,
            "working_spacing": working_spacing,
            "same_person": same_person,
            "device": str(device),
        }
        self._register = Register(
            self.network.registration,
            refine_steps=refine_steps,
            working_spacing=working_spacing,
            same_person=same_person,
            device=device,
        )
        self._harmonize = Harmonize(self.network.harmonization, device=device)
        self._fuse = Fuse(self.network.fusion, device=device)

    @classmethod
    def from_bundle(
        cls,
        path: Path | str | None = None,
        *,
        device: torch.device | str | None = None,
        refine_steps: int | None = None,
        working_spacing: float | None = None,
        same_person: bool | None = None,
    ) -> "FusionPipeline":
        """The pipeline that a bundle's ``configs/inference.json`` describes, with its weights.

        Args:
            path: folder of the bundle; None: the 3D bundle that comes with the package.
            device: instead of the bundle's.
            refine_steps: instead of the bundle's.
            working_spacing: instead of the bundle's.
            same_person: instead of the bundle's.

        Raises:
            InputError: there is no such bundle, or its weights do not fit its network.
        """
        overrides = {
            "device": device,
            "refine_steps": refine_steps,
            "working_spacing": working_spacing,
            "same_person": same_person,
        }
        given = {k: v for k, v in overrides.items() if v is not None}
        found = bundle.from_config(path, given)
        if not isinstance(found, cls):
            raise TypeError(f"the bundle's 'inferer' should be a {cls.__name__}, got {type(found)}")
        for name, value in given.items():
            if str(found.settings[name]) != str(value):
                raise InputError(
                    f"bundle {path}: expected inference.json to pass {name} on to its inferer, got "
                    f'{found.settings[name]!r}; add "{name}" as in the packaged bundle'
                )
        return found

    def __call__(self, case: Case | CaseFiles | Mapping[str, object]) -> CaseResult:
        """Run one case; nothing is written.

        Args:
            case: a loaded case, its files, or an entry of a datalist (paths are then relative to
                the working directory).

        Raises:
            InputError: the input cannot be used; the message says what to do.
        """
        clock = Clock()
        with clock.stage("load"):
            loaded = _loaded(case)
        self._check_dims(loaded)
        with _repeatable(self._device):
            return self._result(loaded, clock)

    def run(self, case: Case | CaseFiles | Mapping[str, object], output: Path | str) -> Path:
        """Run one case and write its folder ``<output>/<id>/``, whole or not at all.

        Returns:
            The folder.
        """
        files = case_from_entry(case) if isinstance(case, Mapping) else case
        for folder in (Path(output), Path(output) / files.id):
            check_output_folder(folder)
        result = self(files)
        folder = Path(output) / result.case.id
        with deliver(folder) as aside:
            write_files(result, aside, input_digest=self.fingerprint(files))
        return folder

    def fingerprint(self, case: Case | CaseFiles) -> str:
        """A digest of the input, the settings and the weights: what decides the output."""
        return fingerprint(case, self.settings, self.network)

    def _check_dims(self, case: Case) -> None:
        """Refuse pictures where the networks are made for volumes, and the other way round."""
        wanted, given = self.network.registration.spatial_dims, case.fixed.spatial_dims
        if given != wanted:
            raise InputError(
                f"case {case.id!r}: expected {wanted}D images for this bundle, got {given}D; "
                f"use a bundle for {given}D input"
            )

    def _result(self, case: Case, clock: Clock) -> CaseResult:
        """The three stages."""
        with clock.stage("register"):
            registrations = {
                key: self._register(
                    case.fixed,
                    moving,
                    transform=case.transforms.get(key, "deformable"),
                    fixed_mask=case.masks.get(case.reference),
                    moving_mask=case.masks.get(key),
                )
                for key, moving in case.moving.items()
            }
        with clock.stage("resample"):
            registered = {
                key: registrations[key].warp(moving, case.fixed)
                for key, moving in case.moving.items()
            }
            valid = _fields_of_view(case, registrations)
        with clock.stage("harmonize"):
            together = {key: registered.get(key, image) for key, image in case.images.items()}
            harmonization = self._harmonize(together, valid)
        with clock.stage("fuse"):
            fusion = self._fuse(harmonization.images, valid)
        return CaseResult(
            case=case,
            registered=registered,
            registrations=registrations,
            harmonization=harmonization,
            fusion=fusion,
            warnings=(*case.warnings, *_doubts(registrations)),
            timings=clock.timings,
            peak_memory_mb=peak_memory_mb(),
        )


def _check_device(device: torch.device | str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {device}: expected a device that torch can use here, got an error ({reason}); "
            "use cpu"
        ) from error


def _check_numbers(refine_steps: object, working_spacing: object) -> None:
    """Refuse what is no such number: MONAI's command line hands on whatever was typed."""
    if (
        isinstance(refine_steps, bool)
        or not isinstance(refine_steps, Integral)
        or int(refine_steps) < 0
    ):
        raise InputError(
            f"expected refine_steps a whole number of 0 or more, got {refine_steps!r}; 0 switches "
            "the refinement off"
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


def _loaded(case: Case | CaseFiles | Mapping[str, object]) -> Case:
    """The case with its pixels."""
    if isinstance(case, Case):
        return case
    return load_case(case_from_entry(case) if isinstance(case, Mapping) else case)


def _fields_of_view(case: Case, registrations: Mapping[str, Registration]) -> dict[str, Tensor]:
    """Per key ``(1, *S)`` bool on the reference's grid: where the image has seen something."""
    valid = {case.reference: _seen(case.fixed).array > 0.5}
    for key, moving in case.moving.items():
        valid[key] = registrations[key].warp(_seen(moving), case.fixed, nearest=True).array > 0.5
    return valid


def _seen(image: Image) -> Image:
    """1 inside the field of view, 0 in padding."""
    return image.with_array(FieldOfView()(image.array).float(), colour=None)


def _doubts(registrations: Mapping[str, Registration]) -> list[str]:
    """A sentence for each registration that is probably wrong."""
    return [
        f"{key}: the registration is doubtful: {found.reason}"
        for key, found in registrations.items()
        if not found.ok
    ]


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers whatever was drawn before, and leave the caller's untouched."""
    # by default all GPUs would be forked, and so be woken, even for a run on the CPU
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
