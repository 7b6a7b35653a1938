"""Bring CT, MR and emission images to the scale that the networks read."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import Transform
from monai.utils import TraceKeys, TransformBackends
from torch import Tensor

from fusion_pipeline.transforms.arrays import (
    NO_UNIT,
    ImageLike,
    check_same_lattice,
    like,
    plain,
)
from fusion_pipeline.transforms.modality import checked_modality, modality_of, units_of
from fusion_pipeline.transforms.scaling import (
    Scaling,
    clip_hu,
    compressed,
    normalized,
    z_scored,
)


class ClipHU(Transform):
    """Clip Hounsfield units to a window that keeps fat, soft tissue and bone apart.

    Not invertible: what was clipped is lost.

    Args:
        lower: HU; all air becomes this.
        upper: HU; dense bone and metal become this.

    >>> ClipHU()(torch.tensor([[-1000.0, 40.0, 3000.0]])).tolist()
    [[-300.0, 40.0, 700.0]]
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(self, lower: float = -300.0, upper: float = 700.0) -> None:
        if not lower < upper:
            raise ValueError(f"expected lower < upper, got lower={lower} and upper={upper}")
        self.lower = lower
        self.upper = upper

    def __call__(self, img: ImageLike) -> Tensor:
        """Clip.

        Args:
            img: ``(C, *S)`` HU.

        Returns:
            ``(C, *S)`` float32, a MetaTensor if ``img`` is one.
        """
        return like(clip_hu(plain(img), self.lower, self.upper), img)


class _InvertibleScaling(InvertibleTransform):
    """What the scalings share: how each channel was scaled stands in ``applied_operations``."""

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def _traced(self, out: Tensor, img: ImageLike, scalings: Sequence[Scaling]) -> Tensor:
        """``out`` like ``img``, with what the inverse needs."""
        # names and lists of floats only, so that MONAI can collate and decollate them
        extra: dict[str, Any] = {
            field.name: [getattr(scaling, field.name) for scaling in scalings]
            for field in fields(Scaling)
        }
        units = units_of(img)
        if units is not None:
            extra["units"] = units
        return self.push_transform(like(out, img, NO_UNIT), extra_info=extra)

    def inverse(self, data: Tensor) -> Tensor:
        """The values in their own units; those that were clipped come back at the limit.

        Args:
            data: the MetaTensor ``(C, *S)`` that this transform made, or what became of it.

        Returns:
            ``(C, *S)`` float32 MetaTensor, ``applied_operations`` shorter by this transform.
        """
        extra = dict(self.pop_transform(data)[TraceKeys.EXTRA_INFO])
        units = extra.pop("units", None)
        columns = [extra[field.name] for field in fields(Scaling)]
        scalings = [Scaling(*row) for row in zip(*columns, strict=True)]
        pairs = zip(plain(data), scalings, strict=True)
        return like(torch.stack([s.restored(channel) for channel, s in pairs]), data, units)


class RobustZScore(_InvertibleScaling):
    """Clip to percentiles, then ``(x − mean) / std``, both measured inside a mask.

    Invertible: `inverse` gives the values back, the clipped ones at their percentile.

    Args:
        lower: percentile of the values inside the mask where clipping begins.
        upper: percentile where it ends.
    """

    def __init__(self, lower: float = 1.0, upper: float = 99.0) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(
                f"expected percentiles 0 <= lower < upper <= 100, got {lower} and {upper}"
            )
        self.lower = lower
        self.upper = upper

    def __call__(self, img: ImageLike, mask: ImageLike | None = None) -> Tensor:
        """Scale each channel by itself.

        Args:
            img: ``(C, *S)``, any unit.
            mask: ``(1, *S)``; without it, or where it is empty, the whole image counts.

        Returns:
            ``(C, *S)`` float32, a MetaTensor if ``img`` is one; zeros where a channel is constant.
            Outside the mask the values are clipped as well, so that air lies at the low end.
        """
        check_same_lattice(img, mask)
        out, scalings = z_scored(plain(img), mask, self.lower, self.upper)
        return self._traced(out, img, scalings)


class ScaleEmission(_InvertibleScaling):
    """Compress PET or SPECT: ``asinh(x / s)``, with s the median uptake inside the mask.

    Linear below the median, logarithmic above it: a lesion of SUV 20 does not flatten the body, and
    the result does not depend on the unit (SUV, Bq/ml, counts). Invertible: `inverse` gives the
    uptake back, capped values at the cap and negative ones at 0.

    Args:
        upper: percentile of the values inside the mask where they are capped.
    """

    def __init__(self, upper: float = 99.9) -> None:
        if not 50 < upper <= 100:
            raise ValueError(f"expected a percentile 50 < upper <= 100, got {upper}")
        self.upper = upper

    def __call__(self, img: ImageLike, mask: ImageLike | None = None) -> Tensor:
        """Compress.

        Args:
            img: ``(C, *S)`` activity in any unit; negative values count as 0.
            mask: ``(1, *S)``; without it, or where it is empty, the whole image counts.

        Returns:
            ``(C, *S)`` float32, ≥ 0, a MetaTensor if ``img`` is one.
        """
        check_same_lattice(img, mask)
        out, scaling = compressed(plain(img), mask, self.upper)
        return self._traced(out, img, [scaling] * len(out))


class NormalizeModality(_InvertibleScaling):
    """What a network reads: scaled as its modality needs it, z-scored in the mask, clipped to ±4.

    CT in HU is windowed (`ClipHU`); a CT that is not in HU is a picture, and scaled like MR, by
    `RobustZScore`; PET and SPECT are compressed by `ScaleEmission` first. Invertible: `inverse`
    gives the values in their own units, the clipped ones at their limit.

    Args:
        modality: ``ct``, ``mr``, ``pet`` or ``spect``; the image's ``meta["modality"]`` if None.
        window_hu: lowest and highest HU of a CT.
        percentiles: where an MR (and a CT that is not in HU) is clipped.
        emission_percentile: where uptake is capped.
    """

    def __init__(
        self,
        modality: str | None = None,
        window_hu: Sequence[float] = (-300.0, 700.0),
        percentiles: Sequence[float] = (1.0, 99.0),
        emission_percentile: float = 99.9,
    ) -> None:
        self.modality = None if modality is None else checked_modality(modality)
        ClipHU(*window_hu), RobustZScore(*percentiles), ScaleEmission(emission_percentile)  # check
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))
        self.emission_percentile = float(emission_percentile)

    def scaled(
        self, image: Tensor, mask: Tensor | None = None, *, modality: str, units: str | None = None
    ) -> tuple[Tensor, list[Scaling]]:
        """The same for plain tensors, and how each channel was scaled.

        Args:
            image: ``(1, *S)`` float32.
            mask: ``(1, *S)``; everything without it.
            modality: of the image.
            units: of the image; without them its values decide.
        """
        return normalized(
            image,
            modality,
            mask,
            units=units,
            window_hu=self.window_hu,
            percentiles=self.percentiles,
            emission_percentile=self.emission_percentile,
        )

    def __call__(self, img: ImageLike, mask: ImageLike | None = None) -> Tensor:
        """Normalize.

        Args:
            img: ``(1, *S)``, HU for a CT volume, else any unit. ``meta["units"]`` says whether a
                CT is in HU; without it, its values do.
            mask: ``(1, *S)`` the body (see `BodyMask`) within the field of view.

        Returns:
            ``(1, *S)`` float32 within [-4, 4], mean 0 and deviation 1 in the mask; a MetaTensor if
            ``img`` is one.
        """
        check_same_lattice(img, mask)
        modality = modality_of(img, self.modality)
        inside = None if mask is None else plain(mask)
        out, scalings = self.scaled(plain(img), inside, modality=modality, units=units_of(img))
        return self._traced(out, img, scalings)
