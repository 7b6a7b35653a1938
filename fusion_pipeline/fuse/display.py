"""Images as a reader displays them: the grey values that a fused image is made of."""

from collections.abc import Mapping

from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.transforms import body_mask
from fusion_pipeline.transforms.scaling import percentiles

WINDOW_HU = (-160.0, 240.0)  # of soft tissue
MR_PERCENTILES = (1.0, 99.0)  # of the body
EMISSION_PERCENTILE = 99.5  # of the body
# What lies above the window shares the rest of the range, so that cortical bone and marrow differ.
_TOP_OF_WINDOW = 0.92
_HALFWAY_HU = 500.0  # above the window


def displayed(image: Image, field_of_view: Tensor) -> Tensor:
    """Grey values of one image.

    CT: the window −160 to 240 HU goes to 0..0.92, denser bone to 0.92..1. MR: percentiles 1 to 99
    of its body go to 0..1. PET and SPECT: 0 to percentile 99.5 of the body. A picture, and a CT
    that is not in HU, is displayed as it is.

    Args:
        image: in its own units; 8-bit pictures in 0..255.
        field_of_view: ``(1, *S)``: where the image has data.

    Returns:
        ``(1, *S)`` in [0, 1]; 0 outside the field of view.
    """
    values = image.array.float()
    inside = field_of_view.to(values.device) > 0.5
    if image.units == "HU":
        shown = of_hu(values)
    elif _is_grey_levels(image):
        shown = values / 255
    else:
        low, high = _range(image, inside)
        shown = (values - low) / max(high - low, 1e-20)
    return shown.clamp(0, 1) * inside


def displayed_images(
    images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
) -> dict[str, Image]:
    """All images of one grid as a reader displays them; see `displayed`."""
    return {
        key: image.with_array(displayed(image, fields_of_view[key]), units="a.u.")
        for key, image in images.items()
    }


def of_hu(values: Tensor) -> Tensor:
    """Grey values in [0, 1] of HU; see `displayed`."""
    low, high = WINDOW_HU
    above = (values - high).clamp_min(0)
    bone = (1 - _TOP_OF_WINDOW) * above / (above + _HALFWAY_HU)
    return _TOP_OF_WINDOW * ((values - low) / (high - low)).clamp(0, 1) + bone


def _is_grey_levels(image: Image) -> bool:
    """Whether the values are grey levels of a picture, 0 to 255 already."""
    picture = image.is_picture or image.colour is not None or image.spatial_dims == 2
    return picture and float(image.array.min()) >= 0 and 1 < float(image.array.max()) <= 255


def _range(image: Image, inside: Tensor) -> tuple[float, float]:
    """What becomes black and white."""
    body = body_mask(image.array, image.spacing.tolist(), image.modality, units=image.units)
    body = body & inside
    values = image.array[body if bool(body.any()) else inside]
    if not values.numel():
        return 0.0, 1.0
    if image.modality in ("pet", "spect"):
        return 0.0, percentiles(values.float(), EMISSION_PERCENTILE)[0]
    low, high = percentiles(values.float(), *MR_PERCENTILES)
    return low, high


__all__ = [
    "EMISSION_PERCENTILE",
    "MR_PERCENTILES",
    "WINDOW_HU",
    "displayed",
    "displayed_images",
    "of_hu",
]
