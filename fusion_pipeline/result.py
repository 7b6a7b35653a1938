"""What one run of the pipeline knows about a case: the stages' results side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fusion_pipeline.data import Case, Image
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.register import Registration

Stage = Literal["register", "harmonize", "fuse"]
STAGES: tuple[Stage, ...] = ("register", "harmonize", "fuse")


@dataclass(frozen=True)
class CaseResult:
    """Everything that the files and the report of a case are made from.

    Attributes:
        case: the input, as loaded.
        registered_images: per moving key, original intensities on the reference's native grid; of
            images that were fused as given, as their headers place them. Empty where images were
            harmonized alone.
        registrations: per moving key, what the register stage found; empty where it did not run.
        harmonization: harmonized images of all keys, 0..1, on the reference's native grid; on its
            own grid each where they were harmonized alone; empty where that stage did not run.
        fusion: the fused image and the weights; None where that stage did not run.
        warnings: sentences, those of the case first.
        timings: seconds per stage, wall and CPU: ``{"register": {"wall_s": 3.1, "cpu_s": 5.9}}``.
        peak_memory_mb: largest resident memory of the process so far.
        evaluation: per moving key, what the known truth says (see `evaluation.evaluate`); empty
            without a truth.
        input_digest: digest of the input, the settings and the weights; empty when not computed.
        only: the one stage that ran; None: all.
    """

    case: Case
    registered_images: Mapping[str, Image]
    registrations: Mapping[str, Registration]
    harmonization: Harmonization
    fusion: Fusion | None
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    evaluation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    input_digest: str = ""
    only: Stage | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Image keys, the reference first, then as listed: the channel order of the weights."""
        return tuple(self.case.images)

    @property
    def grid(self) -> Image:
        """The reference along the axes of its file: the grid of what is written."""
        native = self.case.native_affine
        fixed = self.case.fixed
        return fixed if native is None else fixed.in_axes_of(native)

    def map_of(self, key: str) -> WorldMap:
        """From the reference's world to a moving image's; identity where it was not registered."""
        found = self.registrations.get(key)
        return WorldMap.identity(self.case.fixed.spatial_dims) if found is None else found.map

    def aligned(self, key: str) -> Image:
        """A moving image as it lies in the reference's world after the stages that ran."""
        return self.registered_images.get(key, self.case.images[key])


__all__ = ["STAGES", "CaseResult", "Stage"]
