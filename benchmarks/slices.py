"""2D slices of training patients and painted training heads, as pictures show them.

Half of them are cut to 8 bits, a CT by the window of some reading room, so that the networks meet
both HU and PNG. Pixels are about 1 mm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from painted_heads import painted_head
from registration_cases import HEAD
from sarcoma_grids import KEYS, patients
from torch import Tensor

from fusion_pipeline.synthesis.tissues import Contrast

# window centre and width in HU: brain, stroke, soft tissue, bone
WINDOWS = ((40, 80), (40, 150), (40, 400), (400, 1800))
_LEAST_PIXELS = 5000


@dataclass(frozen=True)
class Slice:
    """One slice of three images, CT, MR and PET.

    Attributes:
        patient: whose.
        number: which.
        images: ``(3, i, j)`` HU, a.u., SUV; whole numbers 0..255 each in a picture.
        picture: whether it is one.
        painted: whether it is of a painted head.
    """

    patient: str
    number: int
    images: Tensor
    picture: bool
    painted: bool

    @property
    def id(self) -> str:
        """A name for the case."""
        return f"{self.patient}-{self.number:03d}"


def training_slices(
    open_data: Path, cache: Path, heads: Sequence[str], seed: int, every: int = 2
) -> Iterator[Slice]:
    """Slices that show enough, every other one a picture of 8 bits as likely as not.

    Args:
        open_data: the folder of ``datalist.json``.
        cache: folder for what was resampled.
        heads: numbers of the label maps to paint.
        seed: of which slices become pictures, and of their windows.
        every: slices from one to the next of a patient; of a painted head twice as many.
    """
    generator = torch.Generator().manual_seed(seed)
    for patient, number, images, valid, painted in _slices(open_data, cache, heads, every):
        picture = float(torch.rand((), generator=generator)) < 0.5
        parts = []
        for m, key in enumerate(KEYS):
            image, inside = images[m : m + 1], valid[m : m + 1]
            if bool(inside.any()):
                image = torch.where(inside, image, image[inside].min())
            if picture:
                image = as_picture(image, *shown_range(image, inside, key, generator))
            parts.append(image)
        if all(float(part.max()) > float(part.min()) for part in parts):
            yield Slice(patient, number, torch.cat(parts), picture, painted)


def contrasts_of_head(number: int) -> tuple[Contrast, Contrast, Contrast]:
    """How a painted training head is shown as CT, MR and PET: T1 and T2 in turn."""
    return ("ct", "mr_t2" if number % 2 else "mr", "pet")


def as_picture(image: Tensor, low: float, high: float) -> Tensor:
    """An image in whole numbers 0..255, as a PNG holds it: ``low`` becomes 0, ``high`` 255."""
    return ((image - low) / max(high - low, 1e-6)).clamp(0, 1).mul(255).round()


def shown_range(
    image: Tensor, seen: Tensor, key: str, generator: torch.Generator
) -> tuple[float, float]:
    """What a picture of an image shows: some window of a CT, up to a high value of the others.

    Args:
        image: ``(1, *S)`` HU, SUV or any other unit.
        seen: ``(1, *S)`` boolean, its field of view.
        key: ``ct``, ``mr`` or ``pet``.
        generator: of the choice.
    """
    if key == "ct":
        centre, width = WINDOWS[int(torch.randint(len(WINDOWS), (), generator=generator))]
        return centre - width / 2, centre + width / 2
    share = 0.95 + 0.05 * float(torch.rand((), generator=generator))
    return 0.0, float(torch.quantile(image[seen], share)) if bool(seen.any()) else 1.0


def _slices(
    open_data: Path, cache: Path, heads: Sequence[str], every: int
) -> Iterator[tuple[str, int, Tensor, Tensor, bool]]:
    """Originals and fields of view ``(3, i, j)`` of every so many slices that show enough."""
    for patient in patients(open_data, cache, evaluation=False):
        for k in range(0, patient.original.shape[3], every):
            body, valid = patient.body[..., k], patient.valid[..., k].bool()
            if float((body[1] * body[0]).sum()) > _LEAST_PIXELS:
                yield patient.id, k, patient.original[..., k], valid, False
    for number, head in enumerate(heads):
        images = [
            painted_head(open_data / HEAD.format(head), key, contrast, halved=False)
            for key, contrast in zip(KEYS, contrasts_of_head(number), strict=True)
        ]
        whole = torch.cat([image.array for image in images])
        axis = 1 + int(np.abs(images[0].affine[2, :3]).argmax())  # axial
        for k in range(0, whole.shape[axis], 2 * every):
            image = whole.select(axis, k)
            if float((image[1] > 0.2 * float(whole[1].max())).sum()) > _LEAST_PIXELS:
                yield f"head{head}", k, image, torch.ones_like(image, dtype=torch.bool), True
