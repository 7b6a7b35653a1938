"""Classical rules of fusion, and the fuse stage by one of them."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.data import Image, InputError
from fusion_pipeline.fuse import Fusion, scores_of_fusion
from fusion_pipeline.geometry import resize

FusionRule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FuseBy:
    """The fuse stage with a rule in place of the network.

    Args:
        rule: `average`, `maximum`, `pca`, `wavelet` or `laplacian_pyramid`.
    """

    def __init__(self, rule: FusionRule) -> None:
        self._rule = rule

    def __call__(
        self,
        harmonized: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        displayed: Mapping[str, Image] | None = None,
    ) -> Fusion:
        """See `Fuse`; the harmonized images are fused, and judged by the displayed ones.

        So every method is judged by the same sources: the images as a reader displays them.
        """
        images = torch.cat([image.array for image in harmonized.values()])
        view = torch.cat([(fields_of_view[key] > 0.5).float() for key in harmonized])
        fused, weights = self._rule(images * view, view)
        fused = fused.clamp(0, 1)
        shown = harmonized if displayed is None else displayed
        sources = {
            key: shown[key].array[0] * one for key, one in zip(harmonized, view, strict=True)
        }
        reference = next(iter(harmonized.values()))
        return Fusion(
            Image(fused, reference.affine, key="fused"),
            weights,
            scores_of_fusion(fused, weights, sources),
        )


def average(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the sources that see a voxel.

    Args:
        images: ``(M, *S)`` in [0, 1], 0 outside the fields of view.
        view: ``(M, *S)`` 0/1.

    Returns:
        Fused ``(1, *S)`` and weights ``(M, *S)``.
    """
    return _weighted(images, view)


def maximum(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """The brightest source at each voxel; arguments and results as in `average`."""
    fused = images.amax(0, keepdim=True)
    return fused, _weighted(images, (images == fused) * view)[1]


def pca(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Weights from the first principal component of the voxels that all see.

    Arguments and results as in `average`.
    """
    inside = images[:, view.amin(0) > 0]
    share = torch.ones(images.shape[0])
    if inside.shape[1] > 1:
        _, vectors = torch.linalg.eigh(torch.cov(inside.double()).reshape([images.shape[0]] * 2))
        share = vectors[:, -1].abs().float()
    return _weighted(images, view * share.view(-1, *[1] * (images.ndim - 1)))


def laplacian_pyramid(images: Tensor, view: Tensor, levels: int = 4) -> tuple[Tensor, Tensor]:
    """The strongest detail at each voxel and level, the mean of the coarsest level.

    Arguments and results as in `average`; the weights tell which source gave the finest detail.

    References:
        Burt and Adelson, "The Laplacian pyramid as a compact image code", IEEE Trans Commun 1983.
    """
    rest, parts = images[:, None], []
    for _ in range(levels):
        if min(rest.shape[2:]) < 4:
            break
        coarse = _halved(rest)
        parts.append(rest - resize(coarse, rest.shape[2:]))
        rest = coarse
    fused = rest.mean(0, keepdim=True)
    for part in reversed(parts):
        best = part.abs().argmax(0, keepdim=True)
        fused = resize(fused, part.shape[2:]) + part.gather(0, best)
    finest = parts[0][:, 0] if parts else images
    strength = finest.abs().masked_fill(view <= 0, -1.0)
    chosen = (strength == strength.amax(0, keepdim=True)) * view
    return (fused[0] * view.amax(0)).clamp(0, 1), _weighted(images, chosen)[1]


def wavelet(images: Tensor, view: Tensor, levels: int = 4) -> tuple[Tensor, Tensor]:
    """The strongest wavelet coefficient at each position and level, the mean of the coarsest level.

    PyWavelets' Daubechies 2, fewer levels where the image is small. Arguments and results as in
    `average`; the weights tell which source gave the finest detail.

    Raises:
        InputError: PyWavelets is not installed.

    References:
        Li, Manjunath and Mitra, "Multisensor image fusion using the wavelet transform", Graphical
        Models and Image Processing 1995.
    """
    pywt = pywavelets()
    basis = pywt.Wavelet("db2")
    most = min(pywt.dwt_max_level(n, basis) for n in images.shape[1:])
    parts = [
        pywt.wavedecn(image, basis, "symmetric", max(1, min(levels, most)))
        for image in images.numpy()
    ]
    fused: list[Any] = [np.mean([part[0] for part in parts], axis=0)]
    fused += [
        {name: _strongest([d[name] for d in details]) for name in details[0]}
        for details in zip(*(part[1:] for part in parts), strict=True)
    ]
    whole = pywt.waverecn(fused, basis, "symmetric")[tuple(slice(n) for n in images.shape[1:])]
    out = torch.from_numpy(np.ascontiguousarray(whole)).to(images.dtype)
    energy = torch.stack([_fine_energy(part[-1], images.shape[1:]) for part in parts])
    strength = energy.to(images.dtype).masked_fill(view <= 0, -1.0)
    chosen = (strength == strength.amax(0, keepdim=True)) * view
    return (out * view.amax(0)).clamp(0, 1)[None], _weighted(images, chosen)[1]


def _strongest(parts: Sequence[np.ndarray]) -> np.ndarray:
    """At each position the value of the largest magnitude."""
    stack = np.stack(parts)
    best = np.abs(stack).argmax(0)[None]
    return np.take_along_axis(stack, best, 0)[0]


def _fine_energy(details: Mapping[str, np.ndarray], shape: Sequence[int]) -> Tensor:
    """Energy of the finest details at each voxel, ``(*S)``."""
    energy = np.sum([np.square(part) for part in details.values()], axis=0)
    return resize(torch.from_numpy(energy)[None, None], tuple(shape))[0, 0]


def pywavelets() -> ModuleType:
    """The library of `wavelet`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("pywt")
    except ModuleNotFoundError as error:
        raise InputError(
            "wavelet: expected PyWavelets to be installed, got none; "
            "pip install 'fusion-pipeline[peers]'"
        ) from error


def _halved(images: Tensor) -> Tensor:
    """Smoothed by the binomial kernel and resized to half the voxels along each axis."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    d = images.ndim - 2
    conv = F.conv3d if d == 3 else F.conv2d
    for axis in range(d):
        shape, pad = [1] * d, [0] * (2 * d)
        shape[axis] = 5
        pad[2 * (d - 1 - axis)] = pad[2 * (d - 1 - axis) + 1] = 2
        images = conv(F.pad(images, pad, mode="replicate"), kernel.view(1, 1, *shape))
    return resize(images, [(n + 1) // 2 for n in images.shape[2:]])


def _weighted(images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Shares to weights that sum to 1 where there are any, and the weighted mean."""
    weights = share / share.sum(0, keepdim=True).clamp_min(1e-12)
    return (weights * images).sum(0, keepdim=True), weights


RULES: Mapping[str, FusionRule] = {
    "average": average,
    "maximum": maximum,
    "pca": pca,
    "wavelet": wavelet,
    "laplacian": laplacian_pyramid,
}

__all__ = [
    "RULES",
    "FuseBy",
    "FusionRule",
    "average",
    "laplacian_pyramid",
    "maximum",
    "pca",
    "pywavelets",
    "wavelet",
]
