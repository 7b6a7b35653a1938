"""The fuse stage: harmonized images in, one image and the weight of each modality out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import iter_patch_slices
from monai.networks.layers.factories import Pool
from scipy import ndimage
from torch import Tensor

from fusion_pipeline.data import Image, recolour
from fusion_pipeline.data.image import along_axes_of, check_one_grid, in_canonical_axes
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import box_around
from fusion_pipeline.metrics.fusion import fusion_scores
from fusion_pipeline.networks.fusion_net import STRIDE, FusionNet
from fusion_pipeline.networks.kinds import kind_of

_SHOWN = 0.06
_FADE_MM = 10.0
_FADE_SHARE = 0.5  # of a field of view's depth, at most
_LEAST_KEPT = 0.01  # of a weight, at an edge
_DEPTH_ON_MM = 2.5  # lattice on which the depth is measured
_JUDGED_SLICES = 5
_AROUND = 16  # voxels around what is shown that are fused as well
_REACH = 16  # voxels around a window that the network sees, beyond which it hardly looks


@dataclass(frozen=True)
class Fusion:
    """What the fuse stage hands on.

    Attributes:
        fused: in [0, 1], on the reference's grid; in colour where a source was in colour.
        weights: ``(M, *S)`` in the order of the input; they sum to 1 over the modalities that see a
            voxel, fall towards the edge of a modality's field of view, and are 0 outside.
        scores: ``weight_<key>`` (mean weight where the images show something) and the measures of
            `metrics.fusion_scores`; of a volume their means over five slices along the last axis,
            which lie at equal steps of what is shown.
    """

    fused: Image
    weights: Tensor
    scores: Mapping[str, float]

    def along_axes_of(self, affine: Matrix) -> "Fusion":
        """The same in the axes of another grid."""
        weights = along_axes_of(affine, self.weights, self.fused.affine)
        return replace(self, fused=self.fused.in_axes_of(affine), weights=weights)


class Fuse:
    """Fuse harmonized images window by window, so that the network's working memory stays bounded.

    The result is that of the network on the whole, but for what it sees beyond a window's rim (up
    to 0.01 of a weight and 0.002 of the fused image in the tests' small windows) and for air: each
    window's is kept without its rim, and the channels are gated by a summary of all windows, for
    which the encoders run first.

    The memory of the whole grows with the grid: about four float32 volumes per modality are held
    beside the input, on the device.

    Args:
        network: weighs and decodes.
        device: where all of it is computed.
        window: longest side of a window in voxels (2D: four times as long), its rim of 16 included.
    """

    def __init__(
        self,
        network: FusionNet,
        *,
        device: torch.device | str = "cpu",
        window: int = 128,
    ) -> None:
        if window < 2 * _REACH + STRIDE:
            raise ValueError(
                f"expected a window of at least {2 * _REACH + STRIDE} voxels, got {window}"
            )
        self._network = network.to(device).eval()
        self._device = torch.device(device)
        self._window = window

    @torch.no_grad()
    def __call__(
        self, harmonized: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Fusion:
        """Fuse.

        Args:
            harmonized: the reference first; all on one grid, in [0, 1].
            fields_of_view: per key, ``(1, *S)``: where the image has data.

        Returns:
            Image and weights on the CPU.

        Raises:
            ValueError: images of different shapes, or no field of view for one of them.
        """
        check_one_grid(harmonized, fields_of_view)
        given = next(iter(harmonized.values())).affine
        turned, fields = in_canonical_axes(harmonized, fields_of_view)
        return self._fused(turned, fields).along_axes_of(given)

    def _fused(
        self, harmonized: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Fusion:
        """The same in canonical axes: the network is not quite the same along each axis."""
        keys = list(harmonized)
        reference = harmonized[keys[0]]
        spacing = reference.spacing.tolist()
        kept = torch.empty((len(keys), *reference.shape), device=self._device)
        for key, one in zip(keys, kept, strict=True):
            view = fields_of_view[key][0].to(self._device) > 0.5
            one.copy_(faded(view.float(), spacing))
        images = torch.empty_like(kept)
        for key, one in zip(keys, images, strict=True):
            one.copy_(harmonized[key].array[0])
        images.mul_(kept > 0)
        kinds = [kind_of(harmonized[k].modality) for k in keys]
        fused, weights = self._windows(images, kept, kinds)
        return Fusion(
            fused=_finished(fused.cpu(), [harmonized[k] for k in keys], reference),
            weights=weights.cpu(),
            scores=_scores(fused, weights, dict(zip(keys, images, strict=True))),
        )

    def _windows(self, images: Tensor, kept: Tensor, kinds: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The network's fused image and weights where images show something, and around it.

        Air, where none does, is most of a scanner's field of view and nothing to weigh: a window
        that holds air only is not computed.
        """
        fused, weights = _by_shares(images, kept)
        windows = _laid_around(images > _SHOWN, self._window * (4 if images.ndim == 3 else 1))

        def within(window: _Window) -> tuple[Tensor, Sequence[str], Tensor]:
            part = (slice(None), *window.outer)
            return images[part][None], kinds, kept[part][None]

        summary = None
        if len(windows) > 1:
            summaries = [
                self._network.summarize(*within(window), window.mask().to(self._device))
                for window in windows
            ]
            summary = torch.stack(summaries).sum(0)
        for window in windows:
            out = self._network(*within(window), summary)
            for whole, part in ((fused, out.fused), (weights, out.weights)):
                whole[(slice(None), *window.core)] = part[0][(slice(None), *window.inner)]
        return fused, weights


class _Window(NamedTuple):
    """A part of an image: what the network sees, and what of its result is kept.

    Attributes:
        outer: slices of the image.
        core: those without the rim; cores do not overlap.
        inner: the core within the outer.
    """

    outer: tuple[slice, ...]
    core: tuple[slice, ...]
    inner: tuple[slice, ...]

    def mask(self) -> Tensor:
        """``(1, 1, *outer)``, 1 in the core."""
        mask = torch.zeros(1, 1, *[s.stop - s.start for s in self.outer])
        mask[0, 0][self.inner] = 1.0
        return mask


def _laid_around(shown: Tensor, longest: int) -> list[_Window]:
    """Windows over what any image shows and `_AROUND` it; those that hold air only are left out.

    They begin at multiples of the network's stride, so that its levels lie as in the whole.

    Args:
        shown: ``(M, *S)`` boolean.
        longest: side of a window in voxels, at most.
    """
    if not bool(shown.any()):
        return []
    box = box_around(shown.any(0)[None, None], _AROUND)[2:]
    bounds = [(s.start // STRIDE * STRIDE, s.stop) for s in box]
    sizes = [high - low for low, high in bounds]
    cores = [n if n <= longest else longest // STRIDE * STRIDE - 2 * _REACH for n in sizes]
    windows = []
    for corner in iter_patch_slices(sizes, cores):
        outer: list[slice] = []
        core: list[slice] = []
        inner: list[slice] = []
        for patch, (low, high) in zip(corner, bounds, strict=True):
            begin, end = low + patch.start, min(low + patch.stop, high)
            first, last = max(begin - _REACH, low), min(end + _REACH, high)
            outer.append(slice(first, last))
            core.append(slice(begin, end))
            inner.append(slice(begin - first, end - first))
        window = _Window(tuple(outer), tuple(core), tuple(inner))
        if bool(shown[(slice(None), *window.outer)].any()):
            windows.append(window)
    return windows


def _by_shares(images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Weighed by what each image keeps: ``(M, *S)`` both to ``(1, *S)`` and the weights."""
    weights = kept / kept.sum(0, keepdim=True).clamp_min(_LEAST_KEPT)
    fused = torch.zeros_like(images[:1])
    for image, weight in zip(images, weights, strict=True):
        fused[0].addcmul_(image, weight)
    return fused, weights


def faded(view: Tensor, spacing: Sequence[float]) -> Tensor:
    """What an image keeps of its weight: all deep in its field of view, nearly none at its edge.

    Where a modality ends, its weight goes to the others over 10 mm, so that the fused image has no
    step there; over half of its depth where its field of view is thin, in each of its parts. Where
    the lattice itself ends there is no edge.

    Args:
        view: ``(*S)`` 0/1.
        spacing: mm along each axis.

    Returns:
        ``(*S)`` 0 outside, 0.01 to 1 inside: the square of the depth of a voxel's centre over that
        of the fade. Then a weight of about a half, which others share, falls evenly.
    """
    shape, d = view.shape, view.ndim
    if bool((view > 0).all()) or not bool(view.any()):
        return view
    # depth is smooth, so a coarse lattice will do; blocks of voxels that reach beyond the image
    factors = [max(1, min(int(_DEPTH_ON_MM / s), n)) for n, s in zip(shape, spacing, strict=True)]
    beyond = [p for n, f in zip(shape[::-1], factors[::-1], strict=True) for p in (0, -n % f)]
    whole = F.pad(view[None, None].float(), beyond, mode="replicate")
    blocks = (Pool[Pool.AVG, d](factors)(whole)[0, 0] >= 0.5).cpu().numpy()
    if blocks.all():
        return view
    sizes = [f * s for f, s in zip(factors, spacing, strict=True)]
    nearest = ndimage.distance_transform_edt(
        blocks, sampling=sizes, return_distances=False, return_indices=True
    )
    # to the border of the nearest block outside, not to its centre
    here = np.ogrid[tuple(map(slice, blocks.shape))]
    apart = [
        np.maximum(np.abs(to - at) - 0.5, 0) * size
        for to, at, size in zip(nearest, here, sizes, strict=True)
    ]
    depth = np.sqrt(sum(np.square(x, dtype=np.float32) for x in apart))
    parts, count = ndimage.label(blocks)
    deepest = np.concatenate([[1.0], ndimage.maximum(depth, parts, range(1, count + 1))])
    reach = np.minimum(_FADE_MM, np.maximum(_FADE_SHARE * deepest, _LEAST_KEPT))[parts]
    kept = torch.from_numpy((depth / reach).astype(np.float32))[None, None].to(view.device)
    mode = "trilinear" if d == 3 else "bilinear"
    kept = F.interpolate(kept, size=whole.shape[2:], mode=mode, align_corners=False)[0, 0]
    kept = kept[tuple(map(slice, shape))].clamp(0.0, 1.0).square()
    return kept.clamp_min(_LEAST_KEPT) * (view > 0)


def _finished(fused: Tensor, sources: list[Image], reference: Image) -> Image:
    """The fused image, with the hue of the first source in colour."""
    colours = [source.colour for source in sources if source.colour is not None]
    colour = recolour(255 * fused, colours[0]) if colours else None
    return Image(fused.clamp(0, 1), reference.affine, key="fused", colour=colour)


def _scores(fused: Tensor, weights: Tensor, sources: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean weights, and the measures of fusion: of a volume the means over a few slices."""
    shown = torch.zeros_like(fused[0], dtype=torch.bool)
    for source in sources.values():
        shown |= source > _SHOWN
    area = shown.sum().clamp_min(1)
    means = {
        f"weight_{key}": float((weight * shown).sum() / area)
        for key, weight in zip(sources, weights, strict=True)
    }
    if fused.ndim == 3:
        arrays = {key: source.cpu() for key, source in sources.items()}
        return {**means, **fusion_scores(fused[0].cpu(), arrays)}
    slices = [
        fusion_scores(
            fused[0, ..., at].cpu(), {key: source[..., at].cpu() for key, source in sources.items()}
        )
        for at in _judged_slices(shown)
    ]
    return means | {name: float(np.mean([one[name] for one in slices])) for name in slices[0]}


def _judged_slices(shown: Tensor) -> list[int]:
    """Slices of the last axis at 10, 30 … 90 % of what a volume shows; at least one."""
    area = shown.sum((0, 1)).cpu().double()
    up_to_middle = area.cumsum(0) - area / 2
    shares = (torch.arange(_JUDGED_SLICES) + 0.5).double() / _JUDGED_SLICES
    found = torch.searchsorted(up_to_middle, shares * area.sum()).clamp_max(len(area) - 1)
    return sorted(set(found.tolist()))
