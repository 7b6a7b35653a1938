"""Pixels: from values on a plane to colour pictures that fit in a page.

Values come as ``(H, W)`` float32 with NaN outside the image; pictures are ``(H, W, 3)`` in 0..1.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from scipy import ndimage
from skimage.feature import canny

from fusion_pipeline.data import Image
from fusion_pipeline.report.planes import Pixels

Picture = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

EDGE_COLOUR = (1.0, 0.82, 0.1)
EDGE_COLOUR_ON_WHITE = (0.86, 0.1, 0.25)
MODALITY_COLOURS = (
    (0.30, 0.55, 0.95),
    (0.98, 0.62, 0.15),
    (0.90, 0.22, 0.45),
    (0.30, 0.75, 0.45),
    (0.62, 0.45, 0.85),
    (0.55, 0.75, 0.15),
)
_TINT = (1.0, 0.89, 0.74)
_OUTSIDE = (0.09, 0.10, 0.12)
_SUV_WHITE = 10.0
UPTAKE_START = 0.15  # the darkest colours of the map are left out: they would hide the anatomy
_EDGE_SCALE_MM = 2.2
_EDGE_LENGTH_MM = 22.0
_EDGE_LOW = 0.10  # step height in units of the window
_EDGE_HIGH = 0.25


@dataclass(frozen=True)
class Window:
    """The intensities that black and white stand for.

    Attributes:
        low: black.
        high: white.
        units: of both, for the caption.
    """

    low: float
    high: float
    units: str = "a.u."

    def __str__(self) -> str:
        """As the caption says it."""
        digits = 1 if self.high - self.low < 50 else 0
        text = f"{self.low:.{digits}f} to {self.high:.{digits}f} {self.units}"
        return text.replace("-", "−").rstrip()

    def unit(self, values: Pixels) -> Pixels:
        """0 at ``low`` and below or outside the image, 1 at ``high`` and above."""
        scaled = (values - self.low) / max(self.high - self.low, 1e-6)
        return np.nan_to_num(np.clip(scaled, 0, 1)).astype(np.float32)


def is_emission(image: Image) -> bool:
    """Whether an image is shown as colour on another: PET and SPECT."""
    return image.modality in ("pet", "spect")


def window_of(image: Image) -> Window:
    """How an image is shown: soft tissue for CT, from zero for PET, percentiles for the rest."""
    if image.units == "HU":
        return Window(-160.0, 240.0, "HU")
    values = thinned(image)
    if is_emission(image):
        high = max(float(np.percentile(values, 99.8)), 1e-3)
        # a full bladder must not turn a lesion of SUV 4 into a shadow
        return Window(0.0, min(high, _SUV_WHITE) if image.units == "SUV" else high, image.units)
    present = values[values > values.min()]
    low, high = np.percentile(present, [1, 99.5]) if present.size else (0.0, 1.0)
    return Window(float(low), float(max(high, low + 1e-3)), image.units)


def thinned(image: Image) -> Pixels:
    """Every so many-th voxel, about 96 to 191 along an axis: enough for percentiles."""
    steps = tuple(slice(None, None, max(1, n // 96)) for n in image.shape)
    return np.asarray(image.array[0][steps].float().numpy())


def grey(unit: Pixels, present: Mask) -> Picture:
    """A plain picture; where there is no image, a tone of its own."""
    return on_page(unit[..., None].repeat(3, -1), present)


def on_page(picture: Picture, present: Mask) -> Picture:
    """A picture where it is, the tone of the page elsewhere."""
    return np.where(present[..., None], picture, _OUTSIDE).astype(np.float32)


def checkerboard(fixed: Picture, moving: Picture, present: Mask, tile: int) -> Picture:
    """Tiles of the reference (grey) and of the moving image (a warm tint) in turn.

    Args:
        fixed: grey picture.
        moving: grey picture.
        present: where the moving image is; elsewhere the reference is dimmed.
        tile: pixels along a tile's side.
    """
    rows, columns = np.indices(fixed.shape[:2]) // tile
    odd = ((rows + columns) % 2 == 1) & present
    base = np.where(present[..., None], fixed, 0.45 * fixed)
    tinted = moving * np.asarray(_TINT)
    return np.where(odd[..., None], tinted, base).astype(np.float32)


def edges_of(unit: Pixels, present: Mask, mm_per_pixel: float) -> Mask:
    """The outlines a reader would draw: edges at a scale of 2 mm, short and faint ones left out."""
    sigma = max(_EDGE_SCALE_MM / mm_per_pixel, 1.5)
    # canny's thresholds are Sobel slopes: four times that of a blurred step, h / (sigma sqrt(2 pi))
    slope = 4.0 / (sigma * np.sqrt(2 * np.pi))
    edges = canny(
        unit,
        sigma=sigma,
        low_threshold=_EDGE_LOW * slope,
        high_threshold=_EDGE_HIGH * slope,
        mask=ndimage.binary_erosion(present, iterations=4),
    )
    labels, count = ndimage.label(edges, structure=np.ones((3, 3)))
    if count == 0:
        return np.asarray(edges, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(sizes[labels] >= max(_EDGE_LENGTH_MM / mm_per_pixel, 6))


def contours(
    picture: Picture, edges: Mask, colour: tuple[float, float, float] = EDGE_COLOUR
) -> Picture:
    """Draw edges, thin and slightly soft, over a picture."""
    strength = np.clip(ndimage.gaussian_filter(edges.astype(np.float32), 0.6) * 2.2, 0, 0.95)
    return blend(picture, np.broadcast_to(np.asarray(colour), picture.shape), strength)


def blend(under: Picture, over: npt.ArrayLike, share: npt.ArrayLike) -> Picture:
    """``over`` on ``under``, with ``share`` ``(H, W)`` of it."""
    opacity = np.asarray(share, dtype=np.float32)[..., None]
    return np.asarray(under * (1 - opacity) + np.asarray(over) * opacity, dtype=np.float32)


def coloured(unit: Pixels, colormap: str) -> Picture:
    """Values 0..1 through one of matplotlib's colour maps."""
    return np.asarray(mpl.colormaps[colormap](np.nan_to_num(unit))[..., :3], dtype=np.float32)


def emission_overlay(anatomy: Picture, uptake: Pixels, present: Mask) -> Picture:
    """Uptake in colour over a grey picture; the anatomy stays visible where uptake is low."""
    opacity = np.clip(uptake * 2.0, 0, 0.75) * present
    return blend(
        0.85 * anatomy, coloured(UPTAKE_START + (1 - UPTAKE_START) * uptake, "inferno"), opacity
    )


def jacobian_picture(determinant: Pixels, present: Mask) -> Picture:
    """Blue where the moving anatomy takes less room than the reference's, red where more.

    White at 1; half and double are the ends of the scale; folds (determinant ≤ 0) are marked in
    yellow and black.
    """
    log = np.log2(np.clip(np.nan_to_num(determinant, nan=1.0), 1e-3, None))
    picture = coloured(((log + 1) / 2).astype(np.float32), "bwr")
    folded = np.nan_to_num(determinant, nan=1.0) <= 0
    ring = ndimage.binary_dilation(folded, iterations=2)
    picture[ring] = (1.0, 0.85, 0.0)
    picture[folded] = 0.0
    return on_page(picture, present)


def mixture(
    brightness: Pixels, shares: npt.NDArray[np.float32], colours: Sequence[tuple[float, ...]]
) -> Picture:
    """Each modality's colour by its share ``(M, H, W)``, as bright as the fused image."""
    hue = np.tensordot(np.nan_to_num(shares), np.asarray(colours), axes=(0, 0))
    return np.asarray(np.clip(hue * (0.15 + 1.1 * brightness[..., None]), 0, 1), dtype=np.float32)


def jpeg_uri(picture: Picture, quality: int = 84) -> str:
    """A picture as a ``data:`` address."""
    return _uri(picture, "jpeg", quality=quality, subsampling=0)


def bar_uri(colormap: str, start: float = 0.0) -> str:
    """A colour bar, low to high from left to right, as a ``data:`` address.

    Args:
        colormap: matplotlib's name.
        start: share of the map that is left out at its low end.
    """
    ramp = np.linspace(start, 1, 256, dtype=np.float32)[None].repeat(2, 0)
    return _uri(coloured(ramp, colormap), "png", optimize=True)


def _uri(picture: Picture, kind: str, **options: int | bool) -> str:
    """Encode without touching the disk."""
    stream = io.BytesIO()
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    PilImage.fromarray(pixels).save(stream, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
