"""The fuse stage: harmonized images in, one image and the weight of each modality out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from monai.data.utils import iter_patch_slices
from torch import Tensor

from fusion_pipeline.data import Image, check_colour_map
from fusion_pipeline.data.image import along_axes_of, check_one_grid, in_canonical_axes
from fusion_pipeline.fuse.colour import fused_colour
from fusion_pipeline.fuse.lattice import block_means, in_detail, voxels_in_block
from fusion_pipeline.fuse.refinement import refined
from fusion_pipeline.fuse.shares import extended_by_black, faded
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import box_around
from fusion_pipeline.geometry.parts import in_parts
from fusion_pipeline.geometry.shares import softmax_by_share
from fusion_pipeline.metrics.fusion import fusion_scores
from fusion_pipeline.networks.fusion_net import STRIDE, FusionNet
from fusion_pipeline.networks.kinds import kind_of

_SHOWN = 0.06
_JUDGED_SLICES = 5
_AROUND = 16  # voxels around what is shown that are fused as well
_REACH = 16  # voxels around a window that the network sees, beyond which it hardly looks
_STEPS = 18
_LARGEST = 1_000_000  # voxels of a lattice that is optimized: 0.5 s a step for three images


@dataclass(frozen=True)
class Fusion:
    """What the fuse stage hands on.

    Attributes:
        fused: in [0, 1], on the reference's grid.
        weights: ``(M, *S)`` in the order of the input; they sum to 1 over the modalities that see a
            voxel, fall towards the edge of a modality's field of view, and are 0 outside.
        scores: ``weight_<key>`` (mean weight where the images show something) and the measures of
            `metrics.fusion_scores`; of a volume their means over five slices along the last axis,
            which lie at equal steps of what is shown.
        colour: the fused anatomy with the uptake in colour (`fused_colour`); None without PET or
            SPECT.
    """

    fused: Image
    weights: Tensor
    scores: Mapping[str, float]
    colour: Image | None = None

    def along_axes_of(self, affine: Matrix) -> "Fusion":
        """The same in the axes of another grid."""
        weights = along_axes_of(affine, self.weights, self.fused.affine)
        colour = None if self.colour is None else self.colour.in_axes_of(affine)
        return replace(self, fused=self.fused.in_axes_of(affine), weights=weights, colour=colour)


class Fuse:
    """Fuse harmonized images: the network window by window, then steps of optimization.

    The network's result is that on the whole, but for what it sees beyond a window's rim (up to
    0.01 of a weight and 0.002 of the fused image in the tests' small windows) and for air: each
    window's is kept without its rim, and the channels are gated by a summary of all windows, for
    which the encoders run first.

    Volumes of voxels of at most 0.8 mm are fused on a lattice of blocks of them, and what is
    decided there goes back to each voxel (`in_detail`). The memory of the whole grows with the
    lattice: about six float32 volumes per modality are held beside the input, on the device; of a
    finer grid the weights and the fused image as well, on the CPU. The steps work on a lattice of
    bounded size (`refined`).

    Args:
        network: weighs the images.
        device: where all of it is computed.
        steps: of instance optimization of L_fusion after the network; 0: the network alone.
        colour_map: of the picture in colour, one of `data.COLOUR_MAPS`.
        window: longest side of a window in voxels (2D: four times as long), its rim of 16 included.
    """

    def __init__(
        self,
        network: FusionNet,
        *,
        device: torch.device | str = "cpu",
        steps: int = _STEPS,
        colour_map: str = "hot",
        window: int = 128,
    ) -> None:
        if window < 2 * _REACH + STRIDE:
            raise ValueError(
                f"expected a window of at least {2 * _REACH + STRIDE} voxels, got {window}"
            )
        self._network = network.to(device).eval()
        self._device = torch.device(device)
        self._steps = steps
        self._colour_map = check_colour_map(colour_map)
        self._window = window

    @torch.no_grad()
    def __call__(
        self,
        harmonized: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        displayed: Mapping[str, Image] | None = None,
    ) -> Fusion:
        """Fuse.

        Args:
            harmonized: the reference first; all on one grid, in [0, 1]. The weights follow them.
            fields_of_view: per key, ``(1, *S)``: where the image has data.
            displayed: the same images in the grey values of which the fused one is made
                (`displayed_images`); by default the harmonized ones.

        Returns:
            Image and weights on the CPU.

        Raises:
            ValueError: images of different shapes, or no field of view for one of them.
        """
        check_one_grid(harmonized, fields_of_view)
        given = next(iter(harmonized.values())).affine
        return self._fused(self._scene(harmonized, fields_of_view, displayed)).along_axes_of(given)

    def _scene(
        self,
        harmonized: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        displayed: Mapping[str, Image] | None,
    ) -> "_Scene":
        """In canonical axes: the network is not quite the same along each axis.

        What is turned for it is a copy. Of a fine grid the displayed images are kept for the end.
        """
        keys = list(harmonized)
        turned, fields = in_canonical_axes(harmonized, fields_of_view)
        reference = turned[keys[0]]
        block = voxels_in_block(reference.shape, reference.spacing.tolist())
        views = torch.stack([fields[key][0].to(self._device) > 0.5 for key in keys])
        images, on_lattice = self._on_lattice(turned, keys, views, block)
        shown = images
        if displayed is not None:
            turned, _ = in_canonical_axes(displayed, fields_of_view)
            shown, _ = self._on_lattice(turned, keys, views, block)
        return _Scene(
            keys=keys,
            kinds=[kind_of(harmonized[k].modality) for k in keys],
            images=images,
            shown=shown,
            fields_of_view=on_lattice,
            spacing=[s * b for s, b in zip(reference.spacing.tolist(), block, strict=True)],
            affine=reference.affine,
            sources=[] if max(block) == 1 else _in_view(turned, keys, views),
            views=views,
            block=block,
        )

    def _fused(self, scene: "_Scene") -> Fusion:
        """Fuse what lies in canonical axes."""
        keys, kinds, images, shown = scene.keys, scene.kinds, scene.images, scene.shown
        ends = scene.fields_of_view
        if len(scene.spacing) == 2 and not bool(ends.all()):
            ends = extended_by_black(ends, shown, _SHOWN)
        kept = torch.empty_like(shown)
        for view, one in zip(ends, kept, strict=True):
            one.copy_(faded(view.float(), scene.spacing))
        fused, weights = self._windows(images, shown, kept, kinds)
        fused = refined(fused, shown, kinds, kept, steps=self._steps, largest=_LARGEST)
        if ends is not scene.fields_of_view:
            weights = weights * scene.fields_of_view
            weights = weights / weights.sum(0, keepdim=True).clamp_min(1e-6)
        sources: Sequence[Tensor] = [*shown]
        if scene.is_coarser:
            sources = scene.sources
            fused, weights = in_detail(
                fused, weights, shown, kept, sources, scene.views, scene.block
            )
        colour = fused_colour(sources, weights, fused, kinds, self._colour_map)
        image = Image(fused.cpu(), scene.affine, key="fused", units="a.u.")
        return Fusion(
            fused=image,
            weights=weights.cpu(),
            scores=scores_of_fusion(fused, weights, dict(zip(keys, sources, strict=True))),
            colour=None if colour is None else replace(image, colour=colour.cpu()),
        )

    def _on_lattice(
        self,
        images: Mapping[str, Image],
        keys: Sequence[str],
        views: Tensor,
        block: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """``(M, *T)`` on the device, 0 outside the fields of view, and bool where they are."""
        size = [-(-n // b) for n, b in zip(views.shape[1:], block, strict=True)]
        stacked = torch.empty(len(views), *size, device=self._device)
        fields = torch.empty(stacked.shape, dtype=torch.bool, device=self._device)
        for m, key in enumerate(keys):
            values = images[key].array[0].to(self._device)
            stacked[m], fields[m] = block_means(values, views[m], block)
        return stacked, fields

    def _windows(
        self, images: Tensor, shown: Tensor, kept: Tensor, kinds: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """The network's fused image and weights where images show something, and around it.

        Air, where none does, is most of a scanner's field of view and nothing to weigh: a window
        that holds air only is not computed.
        """
        fused, weights = _by_shares(shown, kept)
        longest = self._window * (4 if images.ndim == 3 else 1)
        windows = _laid_around(torch.maximum(images, shown) > _SHOWN, longest)

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
            part = (slice(None), *window.outer)
            out = self._network(*within(window), summary, shown[part][None])
            for whole, one in ((fused, out.fused), (weights, out.weights)):
                whole[(slice(None), *window.core)] = one[0][(slice(None), *window.inner)]
        return fused, weights


class _Scene(NamedTuple):
    """What is fused, in canonical axes.

    Attributes:
        keys: of the images, the reference first.
        kinds: of each.
        images: ``(M, *T)`` harmonized, on the device, 0 outside the fields of view; on the lattice,
            which is the grid itself unless that is finer.
        shown: the same as displayed.
        fields_of_view: ``(M, *T)`` bool.
        spacing: mm of the lattice along each axis.
        affine: of the grid.
        sources: of a finer grid M of ``(*S)`` on the CPU, as displayed, 0 outside the fields of
            view.
        views: ``(M, *S)`` bool, the fields of view.
        block: voxels of the grid in one of the lattice, along each axis.
    """

    keys: Sequence[str]
    kinds: Sequence[str]
    images: Tensor
    shown: Tensor
    fields_of_view: Tensor
    spacing: list[float]
    affine: Matrix
    sources: Sequence[Tensor]
    views: Tensor
    block: tuple[int, ...]

    @property
    def is_coarser(self) -> bool:
        """Whether the lattice is not the grid."""
        return max(self.block) > 1


def _in_view(images: Mapping[str, Image], keys: Sequence[str], views: Tensor) -> list[Tensor]:
    """The images on the CPU, 0 outside their fields of view; copies only where they were not."""
    out = []
    for key, view in zip(keys, views.cpu(), strict=True):
        values = images[key].array[0].cpu()
        beyond = bool((values.ne(0) & ~view).any())
        out.append(values * view if beyond else values)
    return out


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
    """The average by shares: ``(M, *S)`` both to ``(1, *S)`` and the weights."""
    weights = in_parts(_equal_by_share, len(kept), kept)
    fused = torch.zeros_like(images[:1])
    for image, weight in zip(images, weights, strict=True):
        fused[0].addcmul_(image, weight)
    return fused, weights


def _equal_by_share(kept: Tensor) -> Tensor:
    return softmax_by_share(torch.zeros_like(kept)[None], kept[None])[0]


def scores_of_fusion(
    fused: Tensor, weights: Tensor, sources: Mapping[str, Tensor]
) -> dict[str, float]:
    """Mean weights, and the measures of fusion: of a volume the means over a few slices.

    Args:
        fused: ``(1, *S)`` in 0..1.
        weights: ``(M, *S)``.
        sources: per key ``(*S)`` in 0..1, what was fused; in the order of the weights.

    Returns:
        See `Fusion.scores`.
    """
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
