"""A few steps of instance optimization of L_fusion, from the network's fused image."""

from collections.abc import Sequence
from math import cos, pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from fusion_pipeline.fuse.shares import within_sources
from fusion_pipeline.geometry.filters import box_around, dilated
from fusion_pipeline.geometry.parts import in_parts
from fusion_pipeline.losses.fusion_loss import FusionLoss
from fusion_pipeline.networks.fusion_net import canonical_order
from fusion_pipeline.networks.kinds import kind_indices

_LINEAR = {2: "bilinear", 3: "trilinear"}
_AVERAGE = {2: F.avg_pool2d, 3: F.avg_pool3d}
_SHOWN = 0.06  # what is no brighter is air
_LEVELS = 5  # maps, each half as fine as the one before
_RATE = 0.02  # of Adam, in grey values of 0..1; falls to a tenth along a cosine
_BETAS = (0.8, 0.95)
_BEYOND = 10.0  # weight of values beyond 0..1
_AROUND = 8  # voxels around what several images show that are optimized as well
# Of a large image: at full resolution, in one piece and window by window. The others run before, on
# half of it or less.
_WHOLE_STEPS, _WINDOW_STEPS = 8, 4
_OVERLAP = 12  # voxels of windows that meet; their changes are blended there
_SMALL = 100_000  # voxels, up to which all steps run at full resolution


class _Sources(NamedTuple):
    """What is fused.

    Attributes:
        images: M of ``(*S)``, as displayed.
        kinds: of each.
        shares: M of ``(*S)``, what each keeps of its weight.
        overlap: of each, the share of what it shows that lies where others are in view.
    """

    images: Sequence[Tensor]
    kinds: Sequence[str]
    shares: Sequence[Tensor]
    overlap: Sequence[float]


def refined(
    fused: Tensor,
    images: Tensor,
    kinds: Sequence[str],
    shares: Tensor,
    *,
    steps: int,
    largest: int,
) -> Tensor:
    """Lower L_fusion where two or more images are in view and show something.

    The fused image is the network's plus a sum of free maps at five scales, each half as fine as
    the one before: coarse maps let a dozen steps of Adam do what some fifty on voxels do. Above
    100,000 voxels all but the last eight steps run at half resolution; above ``largest`` all but
    the last four on a lattice of at most so many, and those in windows of so many.

    Args:
        fused: ``(1, *S)`` in [0, 1], the network's.
        images: ``(M, *S)`` in [0, 1], as a reader displays them.
        kinds: kind of each.
        shares: ``(M, *S)``: 0 outside each image's field of view, inside the share of its weight
            that it keeps, up to 1.
        steps: of Adam; 0 leaves the image as it is.
        largest: voxels of the largest lattice or window that steps are made on.

    Returns:
        ``(1, *S)`` in [0, 1].
    """
    shown = in_parts(_shown_by_several, 1, images, shares)
    if steps == 0 or not bool(shown.any()):
        return fused
    box = box_around(shown[None].float(), _AROUND)[1:]
    # sums run in an order of the images' own, so that theirs changes nothing to the last bit
    order = canonical_order(images[None], kind_indices(kinds, len(kinds)))
    kinds = [kinds[m] for m in order]
    start = fused[box]
    sources = _Sources(
        images=[images[m][box[1:]] for m in order],
        kinds=kinds,
        shares=[shares[m][box[1:]] for m in order],
        overlap=[_overlap_of(images[m], shares[m], shares) for m in order],
    )
    # how far a second image is in view: the change ends where that ends, and no frame is left
    free = in_parts(_second_share, 1, shares[box])
    free *= dilated(in_parts(_any_shown, 1, images[box])[None], _AROUND)[0]
    factor, coarse, whole = _schedule(start.shape[1:], steps, largest)
    change = torch.zeros_like(start)
    with torch.enable_grad():
        if coarse:
            change = _on_coarser(start, sources, free, factor, coarse)
        if whole:
            change = _in_windows(start, change, sources, free, whole, largest)
    result = fused.clone()
    result[box] = in_parts(_changed, 1, start, change, free, images[box], shares[box])
    return result


def _shown_by_several(images: Tensor, shares: Tensor) -> Tensor:
    """``(1, *S)``: 1 where two or more images are in view, and one shows something."""
    several = (shares > 0).sum(0, keepdim=True) > 1
    return ((images > _SHOWN).any(0, keepdim=True) & several).to(images.dtype)


def _overlap_of(image: Tensor, own: Tensor, shares: Tensor) -> float:
    """The share of what an image shows that lies where another is in view.

    Args:
        image: ``(*S)``, as displayed.
        own: ``(*S)``, its share.
        shares: ``(M, *S)``, the shares of all.
    """
    counts = torch.zeros(2, dtype=torch.int64, device=image.device)
    # row by row: a mask of the whole of a large image would be held beside it
    for shows, mine, views in zip(image, own, shares.unbind(1), strict=True):
        shown = (shows > _SHOWN) & (mine > 0)
        several = (views > 0).sum(0) > 1
        counts += torch.stack([(shown & several).sum(), shown.sum()])
    both, every = counts.tolist()
    return both / max(every, 1)


def _any_shown(images: Tensor) -> Tensor:
    """``(1, *S)``: 1 where an image shows something."""
    return (images > _SHOWN).any(0, keepdim=True).to(images.dtype)


def _second_share(shares: Tensor) -> Tensor:
    """``(1, *S)``: the second largest share over the largest."""
    first, second = shares.topk(2, 0).values.split(1, 0)
    return second / first.clamp_min(1e-6)


def _changed(start: Tensor, change: Tensor, free: Tensor, images: Tensor, shares: Tensor) -> Tensor:
    """``(1, *S)``: changed as far as it is free, within the sources' range."""
    return within_sources(start + change * free, images, shares)


def _schedule(shape: Sequence[int], steps: int, largest: int) -> tuple[int, int, int]:
    """The coarser lattice's factor, steps on it, and steps at full resolution."""
    size, factor = torch.Size(shape).numel(), 2
    if size <= min(_SMALL, largest):
        return 1, 0, steps
    while size / factor ** len(shape) > largest:
        factor *= 2
    whole = min(steps, _WHOLE_STEPS if size <= largest else _WINDOW_STEPS)
    return factor, steps - whole, whole


def _in_windows(
    start: Tensor,
    change: Tensor,
    sources: _Sources,
    free: Tensor,
    steps: int,
    largest: int,
) -> Tensor:
    """The change after some steps at full resolution, in windows of at most so many voxels."""
    size = _window(start.shape[1:], largest)

    def lowered(mask: Tensor, windows: Sequence[Sequence[slice]]) -> Tensor:
        if not bool(mask.any()):
            return torch.zeros_like(mask)
        (window,) = windows
        at = (slice(None), *window[2:])
        images, shares = (
            torch.stack([x[at[1:]] for x in xs])[None] for xs in (sources.images, sources.shares)
        )
        begun = start[at] + change[at] * mask[0]
        return _lowered(begun[None], images, shares, sources, mask, steps)

    if size == list(start.shape[1:]):
        return change + lowered(free[None], [[slice(None)] * free[None].ndim])[0]
    # the windows are those of the mask: all else is looked up where they lie
    overlap = [min(_OVERLAP / n, 0.5) for n in size]
    more = sliding_window_inference(
        free[None], size, 1, lowered, overlap=overlap, mode="gaussian", with_coord=True
    )
    return change + torch.as_tensor(more)[0]


def _window(shape: Sequence[int], largest: int) -> list[int]:
    """The shape of windows that overlap and cover an image, of at most so many voxels each."""
    size, parts = list(shape), [1] * len(shape)
    while torch.Size(size).numel() > largest and max(size) > 2 * _OVERLAP:
        axis = size.index(max(size))
        parts[axis] += 1
        size[axis] = -(-(shape[axis] + (parts[axis] - 1) * _OVERLAP) // parts[axis])
    return size


def _on_coarser(
    start: Tensor,
    sources: _Sources,
    free: Tensor,
    factor: int,
    steps: int,
) -> Tensor:
    """The change of the fused image after some steps on a lattice that is coarser by a factor."""
    whole = start.shape[1:]
    begun, mask = (_coarser(x[None], factor) for x in (start, free))
    images, shares, in_view = (
        torch.cat([_coarser(of(x)[None, None], factor) for x in xs], 1)
        for xs, of in (
            (sources.images, torch.Tensor.float),
            (sources.shares, torch.Tensor.float),
            (sources.shares, lambda x: (x > 0).float()),
        )
    )
    more = _lowered(begun, images, shares * (in_view > 0.999), sources, mask, steps)
    reach = [n * factor for n in begun.shape[2:]]
    more = F.interpolate(more, size=reach, mode=_LINEAR[len(whole)], align_corners=False)
    missing = [p for a, n in zip(reach[::-1], whole[::-1], strict=True) for p in (0, n - a)]
    return (F.pad(more, missing, mode="replicate") if any(missing) else more)[0]


def _lowered(
    begun: Tensor,
    images: Tensor,
    shares: Tensor,
    sources: _Sources,
    free: Tensor,
    steps: int,
) -> Tensor:
    """The change of the fused image after some steps on one lattice.

    Args:
        begun: ``(1, 1, *T)``, the image.
        images: ``(1, M, *T)``, the sources there.
        shares: ``(1, M, *T)``.
        sources: their kinds, and what they share.
        free: ``(1, 1, *T)``, how far the image is free to change.
        steps: of Adam.
    """
    loss = FusionLoss(images, sources.kinds, shares, overlap=sources.overlap)
    size = begun.shape[2:]
    levels = [level for level in range(_LEVELS) if min(size) >> level > 0]
    maps = [
        torch.zeros(1, 1, *[-(-n // 2**level) for n in size], device=begun.device).requires_grad_()
        for level in levels
    ]
    optimizer = torch.optim.Adam(maps, lr=_RATE, betas=_BETAS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (0.1 + 0.45 * (1 + cos(pi * step / steps)))
        optimizer.zero_grad()
        now = begun + free * _summed(maps)
        beyond = ((now - 1).clamp_min(0) + (-now).clamp_min(0)).mean()
        (loss(now).sum() + _BEYOND * beyond).backward()
        optimizer.step()
    return _summed(maps).detach()


def _coarser(values: Tensor, factor: int) -> Tensor:
    """Means over blocks; what does not fill a block at the far end is left out."""
    return values if factor == 1 else _AVERAGE[values.ndim - 2](values, factor)


def _summed(maps: Sequence[Tensor]) -> Tensor:
    """The maps of all scales on the finest lattice, added up."""
    total = maps[-1]
    for finer in maps[-2::-1]:
        mode = _LINEAR[finer.ndim - 2]
        total = finer + F.interpolate(total, size=finer.shape[2:], mode=mode, align_corners=False)
    return total


__all__ = ["refined"]
