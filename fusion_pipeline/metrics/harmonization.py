"""How far harmonized images of one anatomy are apart."""

import torch
from torch import Tensor


def protocol_residual(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Root mean square difference of two harmonized images, in standard deviations of the first.

    Args:
        first: ``(B, 1, *S)`` one anatomy harmonized from one protocol.
        second: ``(B, 1, *S)`` the same from another.
        mask: ``(B, 1, *S)`` 0/1: the body.

    Returns:
        ``(B,)``; NaN where the mask is empty or the first image is flat in it.

    >>> image = torch.rand(1, 1, 8, 8)
    >>> protocol_residual(image, image, torch.ones_like(image)).item()
    0.0
    """
    count = mask.flatten(1).sum(1)
    squares = ((first - second) ** 2 * mask).flatten(1).sum(1) / count
    spread = _variance(first, mask, count)
    return torch.where(spread > 1e-12, (squares / spread).sqrt(), torch.nan)


def _variance(image: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """``(B,)`` within the mask."""
    flat, inside = image.flatten(1), mask.flatten(1)
    mean = (flat * inside).sum(1) / count
    return ((flat - mean[:, None]) ** 2 * inside).sum(1) / count
