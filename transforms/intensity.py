"""Bring CT, MR and emission images to the scale that the networks read."""

from typing import Literal

import torch
from monai.transforms.transform import Transform
from torch import Tensor

from fusion_pipeline.transforms.arrays import ImageLike, plain, plain_mask

Modality = Literal["ct", "mr", "pet", "spect"]
_MODALITIES = ("ct", "mr", "pet", "spect")
# Order statistics of this many voxels are as good as those of all, and torch.quantile has a limit.
_QUANTILE_VOXELS = 1_000_000


def checked_modality(modality: str) -> Modality:
    """``modality`` itself, if it is one.

    Raises:
        ValueError: it is not.
    """
    for known in _MODALITIES:
        if modality == known:
            return known  # type: ignore[return-value]
    raise ValueError(f"expected a modality of {', '.join(_MODALITIES)}, got {modality!r}")


def percentiles(values: Tensor, *percents: float) -> list[float]:
    """Percentiles of a flat tensor, of an evenly spaced part of it where it is very long."""
    step = max(1, values.numel() // _QUANTILE_VOXELS)
    at = torch.tensor(percents, dtype=torch.float32) / 100
    return [float(v) for v in torch.quantile(values[::step].cpu(), at)]


class ClipHU(Transform):
    """Clip Hounsfield units to a window that keeps fat, soft tissue and bone apart.

    Args:
        lower: HU; all air becomes this.
        upper: HU; dense bone and metal become this.

    >>> ClipHU()(torch.tensor([[-1000.0, 40.0, 3000.0]])).tolist()
    [[-300.0, 40.0, 700.0]]
    """

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
            ``(C, *S)`` float32.
        """
        return plain(img).clamp(self.lower, self.upper)


class RobustZScore(Transform):
    """Clip to percentiles, then ``(x − mean) / std``, both measured inside a mask.

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
            ``(C, *S)`` float32; zeros where a channel is constant. Outside the mask the values are
            clipped as well, so that air lies at the low end.
        """
        image = plain(img)
        where = plain_mask(mask, image)
        return torch.stack([self._scaled(channel, where[0]) for channel in image])

    def _scaled(self, channel: Tensor, where: Tensor) -> Tensor:
        inside = channel[where]
        low, high = percentiles(inside, self.lower, self.upper)
        if not high > low:  # fewer than one percent of the voxels differ: keep them
            low, high = float(inside.min()), float(inside.max())
        clipped = inside.clamp(low, high)
        std = float(clipped.std(correction=0))
        if std <= 1e-6 * max(abs(low), abs(high)):  # values may be as small as an ADC in m²/s
            return torch.zeros_like(channel)
        return (channel.clamp(low, high) - float(clipped.mean())) / std


class ScaleEmission(Transform):
    """Compress PET or SPECT: ``asinh(x / s)``, with s the median uptake inside the mask.

    Linear below the median, logarithmic above it: a lesion of SUV 20 does not flatten the body, and
    the result does not depend on the unit (SUV, Bq/ml, counts).

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
            ``(C, *S)`` float32, ≥ 0.
        """
        image = plain(img).clamp_min(0)
        where = plain_mask(mask, image).expand_as(image)
        positive = image[where & (image > 0)]
        if positive.numel() == 0:
            return torch.zeros_like(image)
        median, cap = percentiles(positive, 50.0, self.upper)
        return torch.asinh(image.clamp_max(cap) / median)


class NormalizeModality(Transform):
    """What a network reads: scaled as its modality needs it, z-scored in the mask, clipped to ±4.

    CT is windowed (`ClipHU`); a CT without negative values is a picture, not HU, and scaled like
    MR, by `RobustZScore`; PET and SPECT are compressed by `ScaleEmission` first.

    Args:
        modality: ``ct``, ``mr``, ``pet`` or ``spect``.
    """

    def __init__(self, modality: str) -> None:
        self.modality = checked_modality(modality)
        self._window = ClipHU()
        self._compress = ScaleEmission()
        # the window has cut a CT's tails already, the compression an emission image's
        self._whole = RobustZScore(0.0, 100.0)
        self._robust = RobustZScore()

    def __call__(self, img: ImageLike, mask: ImageLike | None = None) -> Tensor:
        """Normalize.

        Args:
            img: ``(1, *S)``, HU for a CT volume, else any unit.
            mask: ``(1, *S)`` the body (see `BodyMask`) within the field of view.

        Returns:
            ``(1, *S)`` float32 within [-4, 4], mean 0 and deviation 1 in the mask.
        """
        image = plain(img)
        if self.modality in ("pet", "spect"):
            out = self._whole(self._compress(image, mask), mask)
        elif self.modality == "ct" and float(image.min()) < 0:
            out = self._whole(self._window(image), mask)
        else:
            out = self._robust(image, mask)
        return out.clamp(-4.0, 4.0)
