"""What a training step gets: images of one anatomy on one lattice, and what is known about them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fusion_pipeline.data import InputError


@dataclass(frozen=True)
class Sample:
    """M images of one anatomy on one lattice, the reference first.

    Attributes:
        image: ``(M, *S)`` normalized (z-scored in the body, within −4..4).
        valid: ``(M, *S)`` 0/1, field of view of each image.
        kinds: kind of each image.
        spacing: voxel size of the lattice in mm, isotropic.
        original: ``(M, *S)`` the images in own units (HU, a.u., uptake), or None.
        body: ``(M, *S)`` 0/1, the body in each image, or None where nobody drew it.
        labels: ``(M, *S)`` int64, or None.
        ddf: ``(M - 1, d, *S)`` voxels, the true fields reference → moving, or None.
        protocol: ``(M, *S)`` as other protocols would give them, in own units, or None.
    """

    image: Tensor
    valid: Tensor
    kinds: tuple[str, ...]
    spacing: float
    original: Tensor | None = None
    body: Tensor | None = None
    labels: Tensor | None = None
    ddf: Tensor | None = None
    protocol: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of the same kinds, stacked along a first axis B; see `Sample`.

    Attributes:
        image: ``(B, M, *S)``.
        valid: ``(B, M, *S)``.
        kinds: kind of each of the M images.
        spacing: mm of each sample.
        original: ``(B, M, *S)`` or None.
        body: ``(B, M, *S)`` or None.
        labels: ``(B, M, *S)`` or None.
        ddf: ``(B, M - 1, d, *S)`` or None.
        protocol: ``(B, M, *S)`` or None.
    """

    image: Tensor
    valid: Tensor
    kinds: tuple[str, ...]
    spacing: tuple[float, ...]
    original: Tensor | None = None
    body: Tensor | None = None
    labels: Tensor | None = None
    ddf: Tensor | None = None
    protocol: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            k: x.to(device) if isinstance(x, Tensor) else x for k, x in values.items()
        }
        return Batch(**moved)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; what one of them lacks, the batch lacks.

    Raises:
        InputError: they differ in their kinds.
    """
    first = samples[0]
    if any(s.kinds != first.kinds for s in samples):
        raise InputError(
            f"samples of one batch need the same kinds, got {[s.kinds for s in samples]}; use a "
            "batch size of 1"
        )
    return Batch(
        image=torch.stack([s.image for s in samples]),
        valid=torch.stack([s.valid for s in samples]),
        kinds=first.kinds,
        spacing=tuple(s.spacing for s in samples),
        original=_stacked([s.original for s in samples]),
        body=_stacked([s.body for s in samples]),
        labels=_stacked([s.labels for s in samples]),
        ddf=_stacked([s.ddf for s in samples]),
        protocol=_stacked([s.protocol for s in samples]),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The stack, or None where any is missing."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None
