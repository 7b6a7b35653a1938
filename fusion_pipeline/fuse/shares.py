"""How far each image keeps its weight where its field of view ends."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from scipy import ndimage
from torch import Tensor

from fusion_pipeline.geometry.filters import box_mean, dilated
from fusion_pipeline.geometry.shares import range_by_share

_Floats = npt.NDArray[np.float32]

# mm over which a weight fades: `benchmarks/fusion_constants.py`; less keeps more and leaves a frame
FADE_MM = 5.0
_FADE_SHARE = 0.5  # of a field of view's depth, at most
_LEAST_SHARE = 0.01  # of a weight, at an edge
_DEPTH_ON_MM = 2.5  # lattice on which the depth is measured
_NOISE_WINDOW = 5  # pixels over which noise in air is averaged
_BRIGHTER, _DARKER = 1.15, 0.7  # of the sources' range
_LEAST_BLACK = 5  # pixels from the middle to the border of the smallest black part


def faded(view: Tensor, spacing: Sequence[float]) -> Tensor:
    """What an image keeps of its weight: all deep in its field of view, nearly none at its edge.

    Where a modality ends, its weight goes to the others over 5 mm, so that the fused image has no
    step there; over half of its depth where its field of view is thin, in each of its parts. Where
    the lattice itself ends there is no edge.

    Args:
        view: ``(*S)`` 0/1.
        spacing: mm along each axis.

    Returns:
        ``(*S)`` 0 outside, 0.01 to 1 inside: a smooth step of the depth of a voxel's centre over
        that of the fade.
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
    # what lies beyond the first blocks outside decides on nothing
    around = tuple(slice(max(int(at.min()) - 1, 0), int(at.max()) + 2) for at in np.nonzero(blocks))
    over = np.zeros(blocks.shape, np.float32)
    over[around] = _depth_over_fade(blocks[around], sizes)
    share = torch.from_numpy(over)[None, None].to(view.device)
    mode = "trilinear" if d == 3 else "bilinear"
    share = F.interpolate(share, size=whole.shape[2:], mode=mode, align_corners=False)[0, 0]
    share = share[tuple(map(slice, shape))].clamp(0.0, 1.0)
    share = share.square() * (3 - 2 * share)
    return share.clamp_min(_LEAST_SHARE) * (view > 0)


def _depth_over_fade(blocks: npt.NDArray[np.bool_], sizes: Sequence[float]) -> _Floats:
    """How deep each block's centre lies over the depth at which an image keeps all; 0 outside.

    Args:
        blocks: ``(*T)``, whether each is in view.
        sizes: of a block in mm, along each axis.
    """
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
    reach = np.minimum(FADE_MM, np.maximum(_FADE_SHARE * deepest, _LEAST_SHARE))[parts]
    over: _Floats = (depth / reach).astype(np.float32)
    return over


def extended_by_black(views: Tensor, images: Tensor, level: float) -> Tensor:
    """The fields of view of pictures, which go on where no other picture shows anything.

    A head that touches the border of its MR ends in black. If the others are black there as well,
    nothing takes its weight over, so nothing has to fade. Parts thinner than eleven pixels stay
    outside: within tissue they are dark organs.

    Args:
        views: ``(M, *S)`` bool.
        images: ``(M, *S)`` in [0, 1], as displayed; 0 outside their fields of view.
        level: what is no brighter is black.

    Returns:
        ``(M, *S)`` bool, True at least where ``views`` is.
    """
    smooth = box_mean(images[:, None], _NOISE_WINDOW)[:, 0]
    extended = []
    for m, view in enumerate(views):
        others = torch.cat([smooth[:m], smooth[m + 1 :]]) > level
        lit = (view | others.any(0))[None, None].float()
        middle = 1 - dilated(lit, _LEAST_BLACK)
        extended.append(view | (dilated(middle, _LEAST_BLACK)[0, 0] > 0.5))
    return torch.stack(extended)


def within_sources(fused: Tensor, images: Tensor, kept: Tensor) -> Tensor:
    """At most 1.15 of the brightest source, at least 0.7 of the darkest.

    What is black in all sources stays black.

    Args:
        fused: ``(1, *S)``.
        images: ``(M, *S)`` in [0, 1].
        kept: ``(M, *S)`` what each keeps of its weight.

    Returns:
        ``(1, *S)`` in [0, 1].
    """
    low, high = (x[0] for x in range_by_share(images[None], kept[None]))
    return torch.minimum(torch.maximum(fused, _DARKER * low), _BRIGHTER * high).clamp(0, 1)
