"""The traditional chain as an inferer, whole or one stage at a time, to be compared with."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from torch import Tensor

from fusion_pipeline.baselines import ENGINES, RULES, FuseBy, RegisterBy, pywavelets
from fusion_pipeline.data import (
    Case,
    CaseFiles,
    Image,
    InputError,
    TransformKind,
    one_line_refusals,
)
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.geometry import inverse_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline.inferer import FusionInferer
from fusion_pipeline.register import Registration
from fusion_pipeline.register.given_start import with_given_start
from fusion_pipeline.standards import (
    HarmonizeBy,
    HistogramStandard,
    NyulStandard,
    Standard,
    z_score_in_body,
)
from fusion_pipeline.transforms import NormalizeModality

OURS = "ours"
_FITTED = {"histogram": HistogramStandard, "nyul": NyulStandard}
STAGES: Mapping[str, tuple[str, ...]] = {
    "register": tuple(ENGINES),
    "harmonize": ("z-score", *_FITTED),
    "fuse": tuple(RULES),
}
_EXAMPLES = 20  # cases that a standard is fitted to
_EXAMPLE_SIDE = 64  # voxels of an example along each axis: some 10⁵ values tell its percentiles


@dataclass(frozen=True)
class Chain:
    """Which method does each stage: a name of `STAGES`, or ``ours``.

    Attributes:
        register: engine of the registration.
        harmonize: standard of the intensities.
        fuse: rule of the fusion.
    """

    register: str = "mutual-information"
    harmonize: str = "z-score"
    fuse: str = "average"

    def __post_init__(self) -> None:
        """Refuse names that no stage has."""
        for stage, name in zip(STAGES, astuple(self), strict=True):
            if name not in (OURS, *STAGES[stage]):
                raise InputError(
                    f"{stage}: expected {OURS}, {', '.join(STAGES[stage])}, got {name!r}; "
                    "correct the name"
                )

    def __str__(self) -> str:
        """As it is named in tables and on the command line."""
        return "+".join(astuple(self))

    def check_usable(self, spatial_dims: int) -> None:
        """Refuse what needs a package that is not there, or images of other dimensions.

        Args:
            spatial_dims: of the images.

        Raises:
            InputError: it cannot run.
        """
        if self.register != OURS:
            if spatial_dims not in ENGINES[self.register].dimensions:
                raise InputError(
                    f"--against {self}: expected volumes for {self.register}, got {spatial_dims}D "
                    "images; take another engine"
                )
            _ = ENGINES[self.register].version
        if self.fuse == "wavelet":
            pywavelets()

    @property
    def needs_examples(self) -> bool:
        """Whether its standard is fitted to images first, see `fitted_standard`."""
        return self.harmonize in _FITTED

    @property
    def uses_networks(self) -> bool:
        """Whether a stage of ours is left."""
        return OURS in astuple(self)


class TraditionalInferer(FusionInferer):
    """`FusionInferer` with some stages replaced by what a clinic has without learning.

    Args:
        register: an engine: ``mutual-information`` (SimpleITK), ``greedy``, ``ants``, ``elastix``
            or ``convexadam``; or ``ours``.
        harmonize: ``z-score``, ``histogram`` or ``nyul``; or ``ours``.
        fuse: ``average``, ``maximum``, ``pca``, ``wavelet`` or ``laplacian``; or ``ours``.
        standard: of ``histogram`` and ``nyul``, from `fitted_standard`.
        settings: of `FusionInferer`, for the stages that stay.

    Raises:
        InputError: a name that no stage has, an engine that is not installed, or no standard.
    """

    @one_line_refusals()
    def __init__(
        self,
        *,
        register: str = "mutual-information",
        harmonize: str = "z-score",
        fuse: str = "average",
        standard: Standard | None = None,
        **settings: Any,  # noqa: ANN401 - FusionInferer's own
    ) -> None:
        super().__init__(**settings)
        self.chain = Chain(register, harmonize, fuse)
        if self.chain.needs_examples and standard is None:
            raise InputError(
                f"harmonize {harmonize}: expected a standard, got none; fit it to images by "
                "fitted_standard"
            )
        self._standard = standard or z_score_in_body
        self._engine = None if register == OURS else ENGINES[register].load()

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """Those of the stages that stay, and what replaces the others."""
        engine = "" if self._engine is None else ENGINES[self.chain.register].version
        own = {"traditional": str(self.chain), "engine": engine}
        if isinstance(self._standard, HistogramStandard | NyulStandard):
            numbers = repr(sorted(self._standard.learned.items()))
            own["standard"] = hashlib.sha256(numbers.encode()).hexdigest()[:16]
        return {**super().settings, **own}

    def register(
        self, case: Case, network: MultimodalNet, normalize: NormalizeModality
    ) -> dict[str, Registration]:
        """See `FusionInferer`; masks are not looked at."""
        if self._engine is None:
            return super().register(case, network, normalize)
        registrations = {}
        for key, moving in case.moving.items():
            series = case.series[key]
            registrations[key] = _registered(
                self._engine, case.fixed, moving, series.transform, series.initial_transform
            )
        return registrations

    def harmonize(
        self,
        images: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        network: MultimodalNet,
        normalize: NormalizeModality,
    ) -> Harmonization:
        """See `FusionInferer`."""
        if self.chain.harmonize == OURS:
            return super().harmonize(images, fields_of_view, network, normalize)
        return HarmonizeBy(self._standard)(images, fields_of_view)

    def fuse(
        self,
        images: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        network: MultimodalNet,
        displayed: Mapping[str, Image] | None = None,
    ) -> Fusion:
        """See `FusionInferer`; a rule fuses the harmonized images."""
        if self.chain.fuse == OURS:
            return super().fuse(images, fields_of_view, network, displayed)
        return FuseBy(RULES[self.chain.fuse])(images, fields_of_view, displayed)


def _registered(
    engine: RegisterBy,
    fixed: Image,
    moving: Image,
    transform: TransformKind,
    initial: Matrix | None,
) -> Registration:
    """By an engine, which starts where the initial transform places the moving image."""
    if initial is None:
        return engine(fixed, moving, transform=transform)
    placed = moving.with_array(moving.array, affine=inverse_affine(initial) @ moving.affine)
    found = engine(fixed, placed, transform=transform)
    whole = replace(found.map, moving_from_fixed=initial @ found.map.moving_from_fixed)
    return with_given_start(replace(found, map=whole), fixed, initial)


def fitted_standard(
    name: str, cases: Sequence[CaseFiles], load: Callable[[CaseFiles], Case]
) -> Standard:
    """The standard of ``histogram`` or ``nyul``, one scale for each modality.

    Args:
        name: of the standard.
        cases: examples; the first 20 that can be read are looked at.
        load: reads and prepares a case.

    Raises:
        InputError: none of the cases can be read.
    """
    examples: list[tuple[Image, Tensor]] = []
    read, refused = 0, ""
    for files in cases:
        if read == _EXAMPLES:
            break
        try:
            case = load(files)
        except InputError as error:  # the run itself reports it
            refused = str(error)
            continue
        read += 1
        examples += [
            _thinned(one.image, one.prepared.body)
            for one in case.series.values()
            if one.prepared is not None
        ]
    if not examples:
        raise InputError(
            f"{name}: expected images to fit it to, got none; {refused or 'add cases'}"
        )
    return _FITTED[name]().fit(examples)


def _thinned(image: Image, body: Tensor) -> tuple[Image, Tensor]:
    """Every n-th voxel; an empty body is the whole image."""
    steps = (slice(None), *(slice(None, None, -(-n // _EXAMPLE_SIDE)) for n in image.shape))
    few, inside = image.array[steps].clone(), body[steps] > 0.5
    whole = inside if bool(inside.any()) else inside.new_ones(inside.shape)
    return image.with_array(few, colour=None), whole


__all__ = ["OURS", "STAGES", "Chain", "TraditionalInferer", "fitted_standard"]
