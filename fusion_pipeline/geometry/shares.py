"""Weights of images whose fields of view end in different places."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over axis 1, times the mask before it is normalized.

    Args:
        scores: ``(B, M, *S)``.
        mask: ``(B, M, *S)``, from 0 to 1; broadcast to the scores.

    Returns:
        ``(B, M, *S)``, of sum 1; all zero where the mask is.
    """
    absent = mask <= 0
    top = torch.where(absent, -1e4, scores.detach()).amax(1, keepdim=True)
    raised = torch.exp(torch.where(absent, -100.0, scores - top)) * mask
    return raised / raised.sum(1, keepdim=True).clamp_min(1e-12)


def softmax_by_share(scores: Tensor, share: Tensor) -> Tensor:
    """``w_k = ∫₀¹ softmax_k {score_j : s_j > t} dt``, with ``s`` the shares over the largest.

    A weight falls with its image's share, however much higher than the others the image scores, to
    what these have among themselves where it ends. Shares as factors within one softmax would let
    a high score stand up to the border and end there, in a frame.

    Args:
        scores: ``(B, M, *S)``.
        share: ``(B, M, *S)`` of its weight that each image keeps, 0 to 1; 0 outside its field of
            view.

    Returns:
        ``(B, M, *S)``, of sum 1; all zero where every share is.
    """
    weights = torch.zeros_like(scores)
    for thickness, among in _layers(share):
        weights = weights + thickness * masked_softmax(scores, among.to(scores.dtype))
    return weights


def range_by_share(images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The darkest and the brightest image, ``∫₀¹ min, max {image_k : s_k > t} dt``.

    As the weights of `softmax_by_share`, both go over to those of the other images where one ends.

    Args:
        images: ``(B, M, *S)``.
        share: as in `softmax_by_share`.

    Returns:
        Two of ``(B, 1, *S)``; 0 where every share is.
    """
    low = high = torch.zeros_like(images[:, :1])
    for thickness, among in _layers(share):
        low = low + thickness * torch.where(among, images, torch.inf).amin(1, keepdim=True)
        high = high + thickness * torch.where(among, images, -torch.inf).amax(1, keepdim=True)
    return low, high


def _layers(share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Per distinct share, how much it lies above the next one, and the images that have as much.

    Where no image is in view the thickness is 0 and all belong, so that nothing is empty.
    """
    part = share / share.amax(1, keepdim=True).clamp_min(1e-6)
    falling = list(part.split(1, 1))
    # by exchanges: of so few, several times faster than a sort along this axis
    for last in range(len(falling) - 1, 0, -1):
        for k in range(last):
            pair = falling[k], falling[k + 1]
            falling[k], falling[k + 1] = torch.maximum(*pair), torch.minimum(*pair)
    for level, following in pairwise([*falling, torch.zeros_like(falling[0])]):
        yield level - following, part >= level


__all__ = ["masked_softmax", "range_by_share", "softmax_by_share"]
