"""What is blurred of an image is made once: the reference's serves all the images moved onto it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.register.lattice import Lattice, blurred_for
from fusion_pipeline.register.views import View, make_view


@dataclass
class _Made:
    """Of one image: what was made, by what it was asked for."""

    image: Image
    field_of_view: Tensor
    views: dict[tuple[float, float], View] = field(default_factory=dict)
    blurred: dict[float, Tensor] = field(default_factory=dict)

    def is_of(self, image: Image, field_of_view: Tensor) -> bool:
        """Whether it was made of this image with this field of view."""
        own = self.image
        return (
            own.array is image.array
            and np.array_equal(own.affine, image.affine)
            and (own.modality, own.units) == (image.modality, image.units)
            and torch.equal(self.field_of_view, field_of_view)
        )


class MadeViews:
    """Views and blurred images of the pair at hand."""

    def __init__(self) -> None:
        self._made: list[_Made] = []

    def hold(self, images: Sequence[Image], fields_of_view: Sequence[Tensor]) -> None:
        """Keep what is made of these images from now on, and drop all of others.

        Args:
            images: in their original units.
            fields_of_view: ``(1, *S)`` of each.
        """
        self._made = [
            self._of(*one) or _Made(*one) for one in zip(images, fields_of_view, strict=True)
        ]

    def view(self, image: Image, field_of_view: Tensor, *, spacing: float, blur_mm: float) -> View:
        """`make_view` of an image."""
        made = self._of(image, field_of_view)
        if made is None:
            return make_view(image, field_of_view, spacing=spacing, blur_mm=blur_mm)
        level = spacing, blur_mm
        if level not in made.views:
            made.views[level] = make_view(image, field_of_view, spacing=spacing, blur_mm=blur_mm)
        return made.views[level]

    def blurred(self, image: Image, field_of_view: Tensor, lattice: Lattice) -> Tensor:
        """`blurred_for` an image; only the first lattice's stays, for it is a whole volume."""
        made = self._of(image, field_of_view)
        if made is not None and lattice.spacing in made.blurred:
            return made.blurred[lattice.spacing]
        blurred = blurred_for(image, field_of_view, lattice)
        if made is not None and not made.blurred:
            made.blurred[lattice.spacing] = blurred
        return blurred

    def _of(self, image: Image, field_of_view: Tensor) -> _Made | None:
        return next((made for made in self._made if made.is_of(image, field_of_view)), None)


__all__ = ["MadeViews"]
