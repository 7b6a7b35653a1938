"""The transforms for dictionaries of images: each key goes through the array transform.

``modality=None`` asks each image's ``meta["modality"]``, so that one transform serves images of
different modality. The body of ``image`` stands under ``image_body``, its field of view under
``image_field_of_view``; what can be measured inside a mask is measured there, where present.
Spacings come from the image where it is a MetaTensor, else from ``spacing``.

Make masks after MONAI's `Spacingd`: version 1.6 takes every entry named ``<key>_…`` of a NIfTI
image for its dictionary of meta data, and fails on a mask there.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Orientation, ResampleToMatch
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils import TransformBackends, ensure_tuple, ensure_tuple_rep
from nibabel.orientations import aff2axcodes

from fusion_pipeline.transforms.arrays import (
    ImageLike,
    check_same_lattice,
    like,
    plain,
    plain_mask,
)
from fusion_pipeline.transforms.denoising import Denoise
from fusion_pipeline.transforms.intensity import (
    ClipHU,
    NormalizeModality,
    RobustZScore,
    ScaleEmission,
)
from fusion_pipeline.transforms.masks import BodyMask, FieldOfView

Data = dict[Hashable, Any]
Modalities = str | Sequence[str] | None


class _EachKey(MapTransform):
    """The loop that all share: the image of each key goes through its array transform.

    What comes out takes the image's place, or is put under ``<key>_<postfix>`` beside it.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool,
        transform: Callable[..., Any] | Sequence[Callable[..., Any]],
        postfix: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transforms = ensure_tuple_rep(transform, len(self.keys))
        self.postfix = postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Transform the image of each key.

        Args:
            data: images ``(C, *S)`` by key; other entries are passed on.

        Returns:
            A new dictionary; ``data`` is not changed.
        """
        out = dict(data)
        for key, transform in self.key_iterator(out, self.transforms):
            target = key if self.postfix is None else f"{key}_{self.postfix}"
            out[target] = transform(out[key], *self._arguments(out, key))
        return out

    def _arguments(self, data: Data, key: Hashable) -> tuple[Any, ...]:
        """What the array transform is given beside the image."""
        return ()


class _WithSpacing(_EachKey):
    """Transforms that need the voxel size."""

    spacing: Sequence[float] | None

    def _arguments(self, data: Data, key: Hashable) -> tuple[Any, ...]:
        return (self.spacing,)


class _InMask(_EachKey, InvertibleTransform):
    """Scalings that are measured inside the body within the field of view, and can be undone."""

    mask_postfix: str
    field_of_view_postfix: str

    def _arguments(self, data: Data, key: Hashable) -> tuple[Any, ...]:
        body = data.get(f"{key}_{self.mask_postfix}")
        field_of_view = data.get(f"{key}_{self.field_of_view_postfix}")
        return (_inside(body, field_of_view),)

    def inverse(self, data: Mapping[Hashable, Any]) -> Data:
        """Each key's values in their own units; the clipped ones come back at their limit.

        Args:
            data: MetaTensors ``(C, *S)`` by key that this transform made, or what became of them.

        Returns:
            A new dictionary.
        """
        out = dict(data)
        for key, transform in self.key_iterator(out, self.transforms):
            out[key] = transform.inverse(out[key])
        return out


def _inside(body: ImageLike | None, field_of_view: ImageLike | None) -> ImageLike | None:
    """The body within the field of view; all of the field of view if that is empty."""
    if body is None or field_of_view is None:
        return field_of_view if body is None else body
    check_same_lattice(field_of_view, body)
    field = plain(field_of_view)
    inside = plain_mask(body, field) & (field > 0.5)
    return like(inside, field_of_view) if bool(inside.any()) else field_of_view


class ClipHUd(_EachKey):
    """`ClipHU` for dictionaries. Not invertible: what was clipped is lost.

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
        super().__init__(keys, allow_missing_keys, ClipHU(lower, upper))


class RobustZScored(_InMask):
    """`RobustZScore` for dictionaries, inside the body within the field of view.

    Args:
        keys: images.
        lower: percentile.
        upper: percentile.
        mask_postfix: the body of ``ct`` is ``ct_<mask_postfix>``, where present.
        field_of_view_postfix: its field of view is ``ct_<field_of_view_postfix>``, where present.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 1.0,
        upper: float = 99.0,
        mask_postfix: str = "body",
        field_of_view_postfix: str = "field_of_view",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys, RobustZScore(lower, upper))
        self.mask_postfix = mask_postfix
        self.field_of_view_postfix = field_of_view_postfix


class ScaleEmissiond(_InMask):
    """`ScaleEmission` for dictionaries, inside the body within the field of view.

    Args:
        keys: images.
        upper: percentile.
        mask_postfix: the body of ``pet`` is ``pet_<mask_postfix>``, where present.
        field_of_view_postfix: its field of view is ``pet_<field_of_view_postfix>``, where present.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        upper: float = 99.9,
        mask_postfix: str = "body",
        field_of_view_postfix: str = "field_of_view",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys, ScaleEmission(upper))
        self.mask_postfix = mask_postfix
        self.field_of_view_postfix = field_of_view_postfix


class NormalizeModalityd(_InMask):
    """`NormalizeModality` for dictionaries, inside the body within the field of view.

    Where the body has no voxel in the field of view, all of the field of view counts.

    Args:
        keys: images.
        modality: one for all keys, or one for each; the image's ``meta["modality"]`` if None.
        mask_postfix: the body of ``ct`` is ``ct_<mask_postfix>``, where present.
        field_of_view_postfix: its field of view is ``ct_<field_of_view_postfix>``, where present.
        window_hu: see `NormalizeModality`.
        percentiles: see `NormalizeModality`.
        emission_percentile: see `NormalizeModality`.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: Modalities = None,
        mask_postfix: str = "body",
        field_of_view_postfix: str = "field_of_view",
        window_hu: Sequence[float] = (-300.0, 700.0),
        percentiles: Sequence[float] = (1.0, 99.0),
        emission_percentile: float = 99.9,
        allow_missing_keys: bool = False,
    ) -> None:
        scale = (window_hu, percentiles, emission_percentile)
        transforms = [NormalizeModality(m, *scale) for m in _per_key(modality, keys)]
        super().__init__(keys, allow_missing_keys, transforms)
        self.mask_postfix = mask_postfix
        self.field_of_view_postfix = field_of_view_postfix


class BodyMaskd(_WithSpacing):
    """`BodyMask` for dictionaries; the body of ``ct`` is put at ``ct_<mask_postfix>``.

    Args:
        keys: images.
        modality: one for all keys, or one for each; the image's ``meta["modality"]`` if None.
        mask_postfix: what is appended to a key.
        spacing: mm; the images' own where None, if they are MetaTensors.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: Modalities = None,
        mask_postfix: str = "body",
        spacing: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        transforms = [BodyMask(m) for m in _per_key(modality, keys)]
        super().__init__(keys, allow_missing_keys, transforms, mask_postfix)
        self.spacing = spacing


class FieldOfViewd(_EachKey):
    """`FieldOfView` for dictionaries; that of ``ct`` is put at ``ct_<postfix>``.

    What is certainly padding of ``ct`` stands at ``padding_of_ct``, where a reader found any: a
    MetaTensor ``(1, *S)`` on the file's grid, which is brought to the image's.

    Args:
        keys: images.
        postfix: what is appended to a key.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        postfix: str = "field_of_view",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys, FieldOfView(), postfix)

    def _arguments(self, data: Data, key: Hashable) -> tuple[Any, ...]:
        padding = data.get(padding_key(key))
        return (None if padding is None else _onto(padding, data[key]),)


def padding_key(key: Hashable) -> str:
    """Where a reader puts padding; not ``<key>_…``, which MONAI's `Spacingd` takes for meta.

    >>> padding_key("image")
    'padding_of_image'
    """
    return f"padding_of_{key}"


def _onto(mask: MetaTensor, image: ImageLike) -> ImageLike:
    """A mask on the grid that an image has by now."""
    if not isinstance(image, MetaTensor):
        return mask
    turned = Orientation("".join(aff2axcodes(image.affine.numpy())), labels=None)(mask.float())
    same = turned.shape[1:] == image.shape[1:] and torch.allclose(turned.affine, image.affine)
    if same:
        return turned
    return ResampleToMatch(mode="nearest", padding_mode="zeros")(turned, image)


class Denoised(_WithSpacing):
    """`Denoise` for dictionaries.

    Args:
        keys: images.
        modality: one for all keys, or one for each; the image's ``meta["modality"]`` if None.
        iterations: see `Denoise`.
        spacing: mm; the images' own where None, if they are MetaTensors.
        original_postfix: the image as it was is kept at ``<key>_<original_postfix>``; None: it is
            not kept.
        allow_missing_keys: skip keys that a dictionary does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: Modalities = None,
        iterations: int = 3,
        spacing: Sequence[float] | None = None,
        original_postfix: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        transforms = [Denoise(m, iterations) for m in _per_key(modality, keys)]
        super().__init__(keys, allow_missing_keys, transforms)
        self.spacing = spacing
        self.original_postfix = original_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Denoise the image of each key."""
        out = super().__call__(data)
        if self.original_postfix is not None:
            kept = {f"{key}_{self.original_postfix}": data[key] for key in self.key_iterator(out)}
            out.update(kept)
        return out


def _per_key(modality: Modalities, keys: KeysCollection) -> tuple[str | None, ...]:
    """One modality for each key."""
    return tuple(ensure_tuple_rep(modality, len(ensure_tuple(keys))))


# MONAI's other names of a dictionary transform
ClipHUD = ClipHUDict = ClipHUd
RobustZScoreD = RobustZScoreDict = RobustZScored
ScaleEmissionD = ScaleEmissionDict = ScaleEmissiond
NormalizeModalityD = NormalizeModalityDict = NormalizeModalityd
BodyMaskD = BodyMaskDict = BodyMaskd
FieldOfViewD = FieldOfViewDict = FieldOfViewd
DenoiseD = DenoiseDict = Denoised
