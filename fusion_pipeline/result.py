"""What one run of the pipeline knows about a case: the stages' results side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusion_pipeline.data import Case, Image
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.register import Registration


@dataclass(frozen=True)
class CaseResult:
    """Everything that the files and the report of a case are made from.

    Attributes:
        case: the input, as loaded.
        registered_images: per moving key, original intensities on the reference's native grid.
        registrations: per moving key, what the register stage found.
        harmonization: harmonized images of all keys, 0..1, on the reference's native grid.
        fusion: the fused image and the weights.
        warnings: sentences, those of the case first.
        timings: seconds per stage, wall and CPU: ``{"register": {"wall_s": 3.1, "cpu_s": 5.9}}``.
        peak_memory_mb: largest resident memory of the process so far.
        evaluation: per moving key, what the known truth says (see `evaluation.evaluate`); empty
            without a truth.
        input_digest: digest of the input, the settings and the weights; empty when not computed.
    """

    case: Case
    registered_images: Mapping[str, Image]
    registrations: Mapping[str, Registration]
    harmonization: Harmonization
    fusion: Fusion
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    evaluation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    input_digest: str = ""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Image keys, the reference first, then as listed: the channel order of the weights."""
        return tuple(self.case.images)
