"""Classical intensity standards as callables of one shape: to be compared with, not to be used.

    standards = classical_standards(training_images)       # each image with its body
    harmonized = standards["Nyúl"](image, view, body)      # (1, *S) in 0..1
    stage = HarmonizeBy(standards["Nyúl"])                  # in place of `Harmonize`

``intensity-normalization`` has the same methods for MR files of one shape and brain masks; here
they hold for CT, MR, PET and SPECT, 2D and 3D, and any mask. N4 is SimpleITK's.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from fusion_pipeline.data import Image, InputError
from fusion_pipeline.harmonize import Harmonization, scores_of_harmonization
from fusion_pipeline.transforms import NormalizeModality, body_mask

_LEVELS = 1024
_SHOWN = (0.1, 99.9)  # percentiles of a template that become black and white
_STRIPE = 0.05  # half of a white stripe, as a share of the voxels (Shinohara et al.)
_STRIPE_BINS = 256
_LEAST_PEAK = 0.1  # of the highest: lower ones are noise of the histogram
_STRIPE_UNIT = 0.25  # of the common scale: what white matter's mean above black becomes
_N4_SIDE = 48  # voxels of the copy on which N4 works, along each axis
_N4_ITERATIONS = (20, 20, 20)

Examples = Sequence[tuple[Image, Tensor]]


class Standard(Protocol):
    """Brings one image to a scale that others share."""

    def __call__(self, image: Image, view: Tensor, body: Tensor, /) -> Tensor:
        """Map.

        Args:
            image: in own units.
            view: ``(1, *S)`` bool, field of view.
            body: ``(1, *S)`` bool, within it.

        Returns:
            ``(1, *S)`` in [0, 1], 0 outside the field of view.
        """
        ...


def classical_standards(training: Examples) -> dict[str, Standard]:
    """All of them by name, those that learn from images fitted.

    Args:
        training: images of each modality, each with its body ``(1, *S)`` bool.
    """
    return {
        "z-score": z_score_in_body,
        "z-score, whole": z_score_in_view,
        "Nyúl": NyulStandard().fit(training),
        "white stripe": white_stripe,
        "histogram": HistogramStandard().fit(training),
        "N4 + Nyúl": NyulStandard(bias_corrected=True).fit(training),
    }


class HarmonizeBy:
    """The harmonize stage with a classical standard in place of the network.

    Args:
        standard: how an image is mapped; the z-score of the body by default.
    """

    def __init__(self, standard: Standard | None = None) -> None:
        self._standard = standard or z_score_in_body

    def __call__(
        self, images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Harmonization:
        """See `Harmonize`; no mappings."""
        out = {}
        for key, image in images.items():
            view = fields_of_view[key] > 0.5
            kind = {"modality": image.modality, "units": image.units}
            body = body_mask(image.array, image.spacing.tolist(), **kind) & view
            mapped = self._standard(image, view, body if body.any() else view)
            out[key] = image.with_array(mapped, units="a.u.")
        arrays = {key: image.array for key, image in out.items()}
        return Harmonization(out, scores_of_harmonization(images, arrays, fields_of_view))


def z_score_in_body(image: Image, view: Tensor, body: Tensor) -> Tensor:
    """`NormalizeModality`, the z-score of each modality's usual scale, from [−4, 4] to [0, 1]."""
    normalized, _ = NormalizeModality().scaled(
        image.array, body, modality=image.modality, units=image.units
    )
    return ((normalized + 4) / 8) * view


def z_score_in_view(image: Image, view: Tensor, body: Tensor) -> Tensor:
    """Plain z-score of all that is in view."""
    return z_score(image.array, view) * view


def z_score(image: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 inside a mask, then [−4, 4] to [0, 1] by a straight line.

    Args:
        image: any shape.
        mask: of that shape, bool.

    >>> z_score(torch.tensor([0.0, 2.0]), torch.tensor([True, True])).tolist()
    [0.375, 0.625]
    """
    inside = image[mask]
    scored = (image - inside.mean()) / inside.std(correction=0).clamp_min(1e-6)
    return ((scored + 4) / 8).clamp(0, 1)


def white_stripe(image: Image, view: Tensor, body: Tensor) -> Tensor:
    """Z-score by a narrow band around the brightest peak of the body's histogram.

    Meant for T1-weighted brains, where the peak is white matter; elsewhere it is what is common and
    bright. The band's mean comes to 0.5, its distance from black (the darkest hundredth in view)
    scales the image.

    References:
        Shinohara et al., "Statistical normalization techniques for magnetic resonance imaging",
        NeuroImage: Clinical 2014.
    """
    values = image.array[body].double().numpy()
    black = float(np.percentile(image.array[view].numpy(), 1))
    # room above the brightest, so that a peak there has two sides
    bright = black + 1.1 * max(float(np.percentile(values, 99.9)) - black, 1e-9)
    counts, edges = np.histogram(values, _STRIPE_BINS, (black, bright))
    smooth = gaussian_filter1d(counts.astype(float), _STRIPE_BINS / 40)
    peaks = np.flatnonzero((smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:])) + 1
    high = peaks[smooth[peaks] > _LEAST_PEAK * smooth.max()]
    peak = edges[high[-1]] if len(high) else np.median(values)
    rank = float((values < peak).mean())
    low, top = np.quantile(values, np.clip([rank - _STRIPE, rank + _STRIPE], 0, 1))
    stripe = values[(values >= low) & (values <= top)]
    mean = float(stripe.mean()) if len(stripe) else float(peak)
    width = max(mean - black, 1e-9)
    scaled = 0.5 + _STRIPE_UNIT * (image.array - mean) / width
    return scaled.clamp(0, 1) * view


class Nyul:
    """Piecewise linear intensity standardization by percentiles (landmarks).

    Args:
        percentiles: of the landmarks, rising.

    References:
        Nyúl, Udupa and Zhang, "New variants of a method of MRI scale standardization", IEEE TMI
        2000.
    """

    def __init__(
        self, percentiles: Sequence[float] = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
    ) -> None:
        self.percentiles = tuple(percentiles)
        self.standard: np.ndarray | None = None

    def fit(self, images: Sequence[tuple[Tensor, Tensor]]) -> "Nyul":
        """Learn the standard scale: the mean place of each landmark, the outer ones at 0 and 1.

        Args:
            images: pairs of an image and its mask (bool), of one modality.
        """
        marks = [self._landmarks(image, mask) for image, mask in images]
        self.standard = np.mean([(m - m[0]) / max(m[-1] - m[0], 1e-6) for m in marks], axis=0)
        return self

    def __call__(self, image: Tensor, mask: Tensor) -> Tensor:
        """Bring an image to the standard scale; beyond the outer landmarks the end pieces go on.

        Args:
            image: any shape.
            mask: of that shape, bool.

        Raises:
            ValueError: `fit` has not been called.
        """
        if self.standard is None:
            raise ValueError("expected a standard scale: call fit(images) first")
        marks, standard = self._landmarks(image, mask), self.standard
        values = image.numpy().astype(np.float64)
        piece = np.clip(np.searchsorted(marks, values) - 1, 0, len(marks) - 2)
        width = np.maximum(np.diff(marks), 1e-6)
        slope = np.diff(standard) / width
        mapped = standard[piece] + slope[piece] * (values - marks[piece])
        return torch.from_numpy(mapped).to(image.dtype)

    def _landmarks(self, image: Tensor, mask: Tensor) -> np.ndarray:
        return np.percentile(image[mask].numpy(), self.percentiles)


class NyulStandard:
    """`Nyul`, one scale for each modality.

    Args:
        bias_corrected: divide the bias field of an MR out first (N4).
    """

    def __init__(self, *, bias_corrected: bool = False) -> None:
        self._bias_corrected = bias_corrected
        self._scales: dict[str, Nyul] = {}

    def fit(self, training: Examples) -> "NyulStandard":
        """Learn the scale of each modality that is there."""
        for modality, images in _by_modality(training).items():
            pairs = [(self._even(image, body), body) for image, body in images]
            self._scales[modality] = Nyul().fit(pairs)
        return self

    @property
    def learned(self) -> dict[str, tuple[float, ...]]:
        """Per modality the standard scale."""
        return {
            modality: tuple(map(float, () if scale.standard is None else scale.standard))
            for modality, scale in self._scales.items()
        }

    def __call__(self, image: Image, view: Tensor, body: Tensor) -> Tensor:
        """See `Standard`.

        Raises:
            InputError: no image of this modality was there to learn from.
        """
        _check_modality(image, self._scales)
        scale = self._scales[image.modality]
        return scale(self._even(image, body), body).clamp(0, 1) * view

    def _even(self, image: Image, body: Tensor) -> Tensor:
        """The image, without its bias field where that is asked for."""
        if self._bias_corrected and image.modality == "mr":
            return without_bias(image.array, body)
        return image.array


class HistogramStandard:
    """Each image gets the histogram of a template: the first training image of its modality."""

    def __init__(self) -> None:
        self._templates: dict[str, tuple[Tensor, Tensor]] = {}

    def fit(self, training: Examples) -> "HistogramStandard":
        """Choose the templates."""
        for modality, images in _by_modality(training).items():
            image, body = images[0]
            self._templates[modality] = image.array, body
        return self

    @property
    def learned(self) -> dict[str, tuple[float, ...]]:
        """Per modality the percentiles of the template."""
        return {
            modality: tuple(np.percentile(image[where].numpy(), range(101)).tolist())
            for modality, (image, where) in self._templates.items()
        }

    def __call__(self, image: Image, view: Tensor, body: Tensor) -> Tensor:
        """See `Standard`.

        Raises:
            InputError: there is no template of this modality.
        """
        _check_modality(image, self._templates)
        template, where = self._templates[image.modality]
        low, high = np.percentile(template[where].numpy(), _SHOWN)
        matched = match_histogram(image.array, template, body, where)
        return ((matched - low) / max(high - low, 1e-9)).clamp(0, 1) * view


def match_histogram(image: Tensor, template: Tensor, mask: Tensor, template_mask: Tensor) -> Tensor:
    """Map each quantile of an image to the same quantile of a template.

    Args:
        image: any shape.
        template: any shape.
        mask: of the image's shape, bool: what its histogram is made of.
        template_mask: of the template's shape, bool.

    Returns:
        The image's shape; what lies beyond the mask's values goes on with the ends' values.
    """
    ranks = np.linspace(0, 1, _LEVELS)
    source = np.quantile(image[mask].numpy(), ranks)
    target = np.quantile(template[template_mask].numpy(), ranks)
    # equal quantiles (a flat background) are one level, whose target is their mean
    levels, first = np.unique(source, return_inverse=True)
    heights = np.bincount(first, target) / np.bincount(first)
    mapped = np.interp(image.numpy().ravel(), levels, heights).reshape(image.shape)
    return torch.from_numpy(mapped).to(image.dtype)


def without_bias(image: Tensor, body: Tensor) -> Tensor:
    """An MR without its bias field: SimpleITK's N4 on a small copy, its field at full size.

    Args:
        image: ``(1, *S)``.
        body: ``(1, *S)`` bool.

    Returns:
        ``(1, *S)``.

    References:
        Tustison et al., "N4ITK: improved N3 bias correction", IEEE TMI 2010.
    """
    array = image[0].numpy()
    lowest = float(array.min())
    # N4 takes logarithms: the darkest value becomes a thousandth of the width
    lifted = array - lowest + 1e-3 * max(float(np.ptp(array)), 1e-9)
    whole = sitk.GetImageFromArray(np.ascontiguousarray(lifted.T))
    mask = sitk.GetImageFromArray(np.ascontiguousarray(body[0].numpy().astype(np.uint8).T))
    factors = [max(1, round(n / _N4_SIDE)) for n in array.shape]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_N4_ITERATIONS)
    n4.SetGlobalDefaultNumberOfThreads(1)
    n4.Execute(sitk.Shrink(whole, factors), sitk.Shrink(mask, factors))
    field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).T)
    even = lifted / np.clip(field, 0.2, 5.0) + lowest
    return torch.from_numpy(even[None]).to(image.dtype)


def _check_modality(image: Image, learned: Mapping[str, object]) -> None:
    """Refuse an image of a kind that no example was of."""
    if image.modality not in learned:
        raise InputError(
            f"{image.key}: expected examples of the modality {image.modality} for the intensity "
            f"standard, got {', '.join(sorted(learned)) or 'none'}; add some"
        )


def _by_modality(training: Examples) -> dict[str, list[tuple[Image, Tensor]]]:
    """The images of each modality."""
    out: dict[str, list[tuple[Image, Tensor]]] = {}
    for image, body in training:
        out.setdefault(image.modality, []).append((image, body))
    return out
