"""The transforms for dictionaries of images: each key goes through the array transform.

Where a transform can use a mask, it reads ``<key>_<mask_postfix>`` if that is there. Spacings come
from the image where it is a MetaTensor, else from ``spacing``.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils import ensure_tuple_rep

from fusion_pipeline.transforms.denoise import Denoise
from fusion_pipeline.transforms.intensity import (
    ClipHU,
    NormalizeModality,
    RobustZScore,
    ScaleEmission,
)
from fusion_pipeline.transforms.masks import BodyMask, FieldOfView

Data = dict[Hashable, Any]


def _spacing(image: Any, spacing: Sequence[float] | None) -> Sequence[float]:  # noqa: ANN401
    """The spacing asked for, or the image's own."""
    if spacing is not None:
        return spacing
    if isinstance(image, MetaTensor):
        return [float(size) for size in image.pixdim]
    raise ValueError("expected a MetaTensor or a spacing, got an image that does not know its own")


class ClipHUd(MapTransform):
    """`ClipHU` for dictionaries.

    Args:
        keys: images.
        lower: HU.
        upper: HU.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = -300.0,
        upper: float = 700.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ClipHU(lower, upper)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Transform each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key])
        return out


class RobustZScored(MapTransform):
    """`RobustZScore` for dictionaries.

    Args:
        keys: images.
        lower: percentile.
        upper: percentile.
        mask_postfix: the mask of ``ct`` is ``ct_<mask_postfix>``, where present.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 1.0,
        upper: float = 99.0,
        mask_postfix: str = "mask",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RobustZScore(lower, upper)
        self.mask_postfix = mask_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Transform each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key], out.get(f"{key}_{self.mask_postfix}"))
        return out


class ScaleEmissiond(MapTransform):
    """`ScaleEmission` for dictionaries.

    Args:
        keys: images.
        upper: percentile.
        mask_postfix: the mask of ``pet`` is ``pet_<mask_postfix>``, where present.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        upper: float = 99.9,
        mask_postfix: str = "mask",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ScaleEmission(upper)
        self.mask_postfix = mask_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Transform each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key], out.get(f"{key}_{self.mask_postfix}"))
        return out


class NormalizeModalityd(MapTransform):
    """`NormalizeModality` for dictionaries.

    Args:
        keys: images.
        modality: one for all keys, or one for each.
        mask_postfix: the mask of ``ct`` is ``ct_<mask_postfix>``, where present.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str | Sequence[str],
        mask_postfix: str = "mask",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transforms = [NormalizeModality(m) for m in ensure_tuple_rep(modality, len(self.keys))]
        self.mask_postfix = mask_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Transform each key."""
        out = dict(data)
        for key, transform in self.key_iterator(out, self.transforms):
            out[key] = transform(out[key], out.get(f"{key}_{self.mask_postfix}"))
        return out


class BodyMaskd(MapTransform):
    """`BodyMask` for dictionaries; the mask of ``ct`` is put at ``ct_<mask_postfix>``.

    Args:
        keys: images.
        modality: one for all keys, or one for each.
        spacing: mm; the images' own where None.
        mask_postfix: what is appended to a key.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str | Sequence[str],
        spacing: Sequence[float] | None = None,
        mask_postfix: str = "mask",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transforms = [BodyMask(m) for m in ensure_tuple_rep(modality, len(self.keys))]
        self.spacing = spacing
        self.mask_postfix = mask_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Add a mask for each key."""
        out = dict(data)
        for key, transform in self.key_iterator(out, self.transforms):
            spacing = _spacing(out[key], self.spacing)
            out[f"{key}_{self.mask_postfix}"] = transform(out[key], spacing)
        return out


class FieldOfViewd(MapTransform):
    """`FieldOfView` for dictionaries; that of ``ct`` is put at ``ct_<valid_postfix>``.

    Args:
        keys: images.
        valid_postfix: what is appended to a key.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        valid_postfix: str = "valid",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = FieldOfView()
        self.valid_postfix = valid_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Add a field of view for each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[f"{key}_{self.valid_postfix}"] = self.transform(out[key])
        return out


class Denoised(MapTransform):
    """`Denoise` for dictionaries.

    Args:
        keys: images.
        modality: one for all keys, or one for each.
        iterations: see `Denoise`.
        spacing: mm; the images' own where None.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str | Sequence[str],
        iterations: int = 3,
        spacing: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        modalities = ensure_tuple_rep(modality, len(self.keys))
        self.transforms = [Denoise(m, iterations) for m in modalities]
        self.spacing = spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Transform each key."""
        out = dict(data)
        for key, transform in self.key_iterator(out, self.transforms):
            out[key] = transform(out[key], _spacing(out[key], self.spacing))
        return out
