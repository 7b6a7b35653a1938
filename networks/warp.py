"""The Warp layer (METHOD 3.2)."""

from torch import Tensor, nn

from fusion_pipeline.geometry import identity_points, warp


class Warp(nn.Module):
    """Read an image through a displacement field, ``warped(x) = moving(x + ddf(x))`` (METHOD 3.2).

    The lattice's own coordinates are kept between calls of one shape and device; a change of either
    makes them anew. MONAI's ``Warp`` means to do this and compares the wrong axes.

    Convention:
        - direction: pull-back; ``ddf`` lives on the fixed grid and points into ``moving``
        - unit: voxels of ``moving``; channel ``c`` displaces along tensor axis ``2 + c``
        - sampling: ``align_corners=True``, linear, float32 coordinates

    Args:
        fill: value outside the moving image; None continues its border.
    """

    def __init__(self, fill: float | None = 0.0) -> None:
        super().__init__()
        self.fill = fill
        self._points: Tensor | None = None

    def forward(self, moving: Tensor, ddf: Tensor) -> Tensor:
        """Warp ``moving`` ``(B, C, *S)`` by ``ddf`` ``(B, d, *T)`` into ``(B, C, *T)``."""
        shape = tuple(ddf.shape[2:])
        points = self._points
        if points is None or tuple(points.shape[:-1]) != shape or points.device != ddf.device:
            points = self._points = identity_points(shape, device=ddf.device)
        return warp(moving, ddf, fill=self.fill, points=points)

    def __getstate__(self) -> dict[str, object]:
        """Leave the kept coordinates behind when the layer is copied or sent to a worker."""
        return {**self.__dict__, "_points": None}
