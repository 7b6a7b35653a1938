"""2D pictures (PNG): 8 or 16 bit, grey or colour; column is x, row is y, one pixel is one mm."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from PIL import Image as PillowImage
from torch import Tensor

from fusion_pipeline.data.checks import Array, RawImage
from fusion_pipeline.data.refusals import READ_ERRORS, muted, one_line, quiet, refusal

PICTURE_SUFFIXES = (".png",)
PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0])

_EXIF_TURN = 0x112  # tag of the orientation
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_picture(path: Path, place: str) -> RawImage:
    """Read a PNG.

    Convention:
        - axis 0 of the array is the column (x), axis 1 the row (y), from the upper left corner
        - grey: the stored levels, 0..255 or 0..65535; colour: ``colour`` is 0..255 and ``array``
          its Rec. 601 luma
        - transparency is laid over black

    Raises:
        InputError: not a whole PNG.
    """
    with quiet():
        try:
            pixels, notes = _read_pixels(path)
        except (*READ_ERRORS, PillowImage.DecompressionBombError) as error:
            came = f"one that cannot be read ({one_line(error) or type(error).__name__})"
            raise refusal(
                place, "a whole PNG picture", came, "save it as a grey or RGB PNG"
            ) from error
    levels = np.float32(np.iinfo(pixels.dtype).max)
    channels = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32).transpose(2, 1, 0)
    if channels.shape[0] in (2, 4):
        channels = channels[:-1] * (channels[-1:] / levels)
    if channels.shape[0] == 1 or bool((channels == channels[:1]).all()):
        grey = np.ascontiguousarray(channels[0])
        return RawImage(grey, PICTURE_AFFINE, warnings=[f"{place}: {one}" for one in notes])
    colour = np.ascontiguousarray(channels * (np.float32(255.0) / levels))
    warnings = [f"{place}: {one}" for one in notes]
    return RawImage(_luma(colour), PICTURE_AFFINE, colour=colour, warnings=warnings)


def write_picture(pixels: Tensor, path: Path) -> None:
    """Write a PNG (to the very path given; the caller makes it atomic).

    Args:
        pixels: ``(1, x, y)`` grey or ``(3, x, y)`` colour levels; rounded and clipped to 0..255,
            or, grey only, to 0..65535 if the largest is above 255.
        path: the file.
    """
    values = pixels.detach().cpu().numpy().transpose(2, 1, 0)
    deep = values.shape[2] == 1 and float(values.max()) > 255.5
    rounded = np.clip(np.rint(values), 0, 65535 if deep else 255)
    levels = rounded.astype(np.uint16 if deep else np.uint8)
    PillowImage.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(path)


def recolour(luma: Tensor, colour: Tensor) -> Tensor:
    """Give a grey picture the hue of a colour picture: the luma replaced, the chroma kept.

    Args:
        luma: ``(1, x, y)`` 0..255.
        colour: ``(3, x, y)`` 0..255.

    Returns:
        ``(3, x, y)`` 0..255 (clipped).

    >>> grey = torch.full((3, 1, 1), 10.0)
    >>> recolour(torch.full((1, 1, 1), 50.0), grey).flatten().tolist()
    [50.0, 50.0, 50.0]
    """
    weights = torch.from_numpy(_LUMA).to(colour).view(3, 1, 1)
    chroma = colour - (colour * weights).sum(0, keepdim=True)
    return (luma.to(colour) + chroma).clamp(0, 255)


def luma(colour: Tensor) -> Tensor:
    """Rec. 601 luma of ``(3, x, y)``: ``(1, x, y)`` on the same scale."""
    return torch.from_numpy(_luma(colour.numpy()))[None]


def _luma(channels: Array) -> Array:
    """Rec. 601 luma of ``(3, x, y)``."""
    return np.ascontiguousarray(np.tensordot(_LUMA, channels, axes=1), dtype=np.float32)


def _read_pixels(path: Path) -> tuple[npt.NDArray[np.unsignedinteger], list[str]]:
    """Stored levels ``(rows, columns[, channels])``, uint8 or uint16; what is to be said of them.

    Raises:
        ValueError: several pictures, or none.
    """
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(_PNG_SIGNATURE):
        raise ValueError("not a PNG file")
    with PillowImage.open(path) as picture:
        picture.load()  # a damaged file ends here; libpng would also print
        if (count := getattr(picture, "n_frames", 1)) > 1:
            raise ValueError(f"{count} pictures, an animation")
        turn = picture.getexif().get(_EXIF_TURN, 1)
        notes = (
            []
            if turn == 1
            else [f"viewers turn this picture (EXIF orientation {turn}); it is taken as stored."]
        )
        if head[24] == 16:  # Pillow cuts colour of 16 bit to 8
            with muted():
                image = sitk.ReadImage(str(path), imageIO="PNGImageIO")
                return sitk.GetArrayFromImage(image), notes
        if "transparency" in picture.info:
            return np.asarray(picture.convert("RGBA")), notes
        if picture.mode in ("L", "LA", "RGB", "RGBA"):
            return np.asarray(picture), notes
        return np.asarray(picture.convert("RGB" if picture.mode == "P" else "L")), notes


__all__ = [
    "PICTURE_AFFINE",
    "PICTURE_SUFFIXES",
    "luma",
    "read_picture",
    "recolour",
    "write_picture",
]
