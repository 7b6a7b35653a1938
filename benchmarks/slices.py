"""2D slices of training patients and painted training heads, as pictures show them.

Half of them are cut to 8 bits, a CT by the window of some reading room, so that the networks meet
both HU and PNG. Pixels are about 1 mm.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from painted_heads import painted_head
from registration_cases import HEAD
from sarcoma_grids import KEYS, patients
from torch import Tensor

from fusion_pipeline.synthesis.tissues import Contrast
from fusion_pipeline.transforms import BodyMask, NormalizeModality

# window centre and width in HU: brain, stroke, soft tissue, bone
WINDOWS = ((40, 80), (40, 150), (40, 400), (400, 1800))
_LEAST_PIXELS = 5000


def pool(
    open_data: Path, cache: Path, heads: Sequence[str], seed: int, left_out: Sequence[str] = ()
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """``normalized``, ``valid`` and ``body`` ``(3, i, j)`` of each slice: CT, MR, emission.

    Args:
        open_data: the folder of ``datalist.json``.
        cache: folder for what was resampled.
        heads: numbers of the label maps to paint.
        seed: of which slices become pictures, and of their windows.
        left_out: patients kept to choose by.
    """
    generator = torch.Generator().manual_seed(seed)
    out = []
    for images, valid in _slices(open_data, cache, heads, left_out):
        picture = float(torch.rand((), generator=generator)) < 0.5
        parts = []
        for m, key in enumerate(KEYS):
            image, seen = images[m : m + 1], valid[m : m + 1]
            image = image * seen + float(image[seen].min()) * ~seen if bool(seen.any()) else image
            if picture:
                image = as_picture(image, *shown_range(image, seen, key, generator))
            body = BodyMask(key)(image, [1.0, 1.0]) & seen
            body = body if bool(body.any()) else seen
            parts.append((NormalizeModality(key)(image, body), seen, body))
        normalized, seen, body = (torch.cat(p) for p in zip(*parts, strict=True))
        out.append((normalized.half(), seen, body))
    return out


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
    open_data: Path, cache: Path, heads: Sequence[str], left_out: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Originals and fields of view ``(3, i, j)`` of every so many slices that show enough."""
    for patient in patients(open_data, cache, evaluation=False):
        if patient.id in left_out:
            continue
        for k in range(0, patient.original.shape[3], 2):
            body, valid = patient.body[..., k], patient.valid[..., k].bool()
            if float((body[1] * body[0]).sum()) > _LEAST_PIXELS:
                yield patient.original[..., k], valid
    for number, head in enumerate(heads):
        contrasts: tuple[Contrast, ...] = ("ct", "mr_t2" if number % 2 else "mr", "pet")
        images = [
            painted_head(open_data / HEAD.format(head), key, contrast, halved=False)
            for key, contrast in zip(KEYS, contrasts, strict=True)
        ]
        whole = torch.cat([image.array for image in images])
        axis = 1 + int(np.abs(images[0].affine[2, :3]).argmax())  # axial
        for k in range(0, whole.shape[axis], 4):
            image = whole.select(axis, k)
            if float((image[1] > 0.2 * float(whole[1].max())).sum()) > _LEAST_PIXELS:
                yield image, torch.ones_like(image, dtype=torch.bool)
