"""`Criterion`: how much more similar a deformation has to make two images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_pipeline.register.aligned_pair import AlignedPair


@dataclass(frozen=True)
class Criterion:
    """How much more similar a deformation has to make two images.

    Attributes:
        structure: share of the self-similarity distance that it must remove.
        information: share by which NMI − 1 has to rise as well: self-similarity alone can fall
            while a good pose is bent away. No independent witness for a field that information has
            bent.
    """

    structure: float
    information: float

    def and_also(self, other: "Criterion") -> "Criterion":
        """The criterion that is met where both are."""
        return Criterion(
            max(self.structure, other.structure), max(self.information, other.information)
        )

    def accepts(self, after: "AlignedPair", before: "AlignedPair") -> bool:
        """Whether the similarity after a deformation is enough above that before it."""
        new, old = after.similarity, before.similarity
        closer = new["mind"] < old["mind"] * (1 - self.structure)
        return closer and new["nmi"] - 1 > (old["nmi"] - 1) * (1 + self.information)
