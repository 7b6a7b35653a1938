"""What a deformation has to show before it is kept, and which images show enough to be believed."""

from dataclasses import dataclass

from fusion_pipeline.data import Image
from fusion_pipeline.register.trial import Trial
from fusion_pipeline.register.views import emission

# Where the network sees no more error than this, the images show so much that they are believed: no
# gain of a pose is too small then, a pair with a CT may bend softly, and a soft field is on trial
# where a stiff one did not show enough. Little but edges is alike between a CT and another image:
# softer fields of limbs of training patients end further from the headers. In painted training
# heads the network saw 0.9 to 1.3 mm, in those limbs 1.45 and more.
CLEAR_MM = 1.4


@dataclass(frozen=True)
class Gate:
    """What a deformation has to show.

    Attributes:
        structure: share of the self-similarity distance that it must remove.
        information: share by which NMI has to rise as well: self-similarity alone can fall while a
            good pose is bent away. No independent witness for a field that information has bent.
    """

    structure: float
    information: float

    def and_also(self, other: "Gate") -> "Gate":
        """What satisfies both."""
        return Gate(max(self.structure, other.structure), max(self.information, other.information))

    def lets(self, after: Trial, before: Trial) -> bool:
        """Whether a deformation has shown it, against what was before."""
        new, old = after.similarity, before.similarity
        alike = new["mind"] < old["mind"] * (1 - self.structure)
        return alike and new["nmi"] - 1 > (old["nmi"] - 1) * (1 + self.information)


# Emission images carry little structure, beside a CT least: on limbs of training patients, small
# gains there were noise.
_GATE, _GATE_OF_PET_CT, _GATE_OF_PET_MR = Gate(0.03, 0.02), Gate(0.10, 0.05), Gate(0.015, 0.05)
SOFTER = Gate(0.0, 0.02)  # of a soft field after a stiff one that was kept
ON_TRIAL = Gate(0.035, 0.08)  # of a soft field after a stiff one that was not
# What the stiff one has to show for that, whatever NMI does: in rigid moves of painted training
# heads it lowered the distance by 0.3 to 1.7 % (CT-T1: 0.7 at most), in mild ones by 1.9 and more.
WORTH_A_TRIAL = Gate(0.01, -1.0)


def stiff_gate(fixed: Image, moving: Image) -> Gate:
    """What a stiff deformation of this pair has to show."""
    if not emission(fixed, moving):
        return _GATE
    return _GATE_OF_PET_CT if "ct" in (fixed.modality, moving.modality) else _GATE_OF_PET_MR
