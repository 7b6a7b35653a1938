"""What the classifiers of a study read: images as given, and what each method made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor

from fusion_pipeline.data import Case, CaseFiles, Image, InputError, read_image
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline.pipeline import FusionPipeline
from fusion_pipeline.pipeline.saved import SavedRegistration
from fusion_pipeline.pipeline.summary import read_report
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.transforms import NormalizeModality

UNREGISTERED = "unregistered stack"
TRUE = "true alignment"
# pixels, voxels along each axis
_SIDE = {2: 64, 3: 32}


@dataclass(frozen=True)
class CaseInputs:
    """The inputs of one case, all on one small grid.

    Attributes:
        images: per name of an input ``(C, *S)``.
        mask: ``(1, *S)`` 0/1 of the lesion on the same grid; zeros where there is none.
    """

    images: Mapping[str, Tensor]
    mask: Tensor


def case_inputs(
    files: CaseFiles,
    pipeline: FusionPipeline,
    folders: Mapping[str, Path],
    *,
    features_of: str,
    lesion_label: int,
) -> CaseInputs:
    """Gather all inputs of a case.

    Images as given lie where the headers put them, each z-scored in its body. Of each method come
    the harmonized images as channels, and the fused image. Where the case brings true fields, the
    images aligned by them come as well: what no registration can beat.

    Args:
        files: the case.
        pipeline: reads the images, and holds the network of the features.
        folders: per method the case's results.
        features_of: the method whose fused features are taken.
        lesion_label: of the reference's label map.

    Returns:
        Everything resized to 64 pixels or 32 voxels along each axis.
    """
    case = pipeline.load(files)
    dims = case.fixed.spatial_dims
    still = WorldMap.identity(dims)
    given = {key: _z_scored(_onto_reference(case, key, still)) for key in case.series}
    images = {f"{key} alone": image for key, image in given.items()}
    images[UNREGISTERED] = torch.cat(list(given.values()))
    truths = {key: one.displacement for key, one in case.series.items() if key in case.moving}
    if all(truth is not None for truth in truths.values()):
        true = {
            key: WorldMap(still.moving_from_fixed, truth, case.fixed.affine)
            for key, truth in truths.items()
            if truth is not None
        }
        images[TRUE] = torch.cat(
            [_z_scored(_onto_reference(case, key, true.get(key, still))) for key in case.series]
        )
    for method, folder in folders.items():
        channels = _harmonized(case, folder)
        images[f"{method}: channels"] = channels
        names = read_report(folder)["files"]
        images[f"{method}: fused"] = _read(folder, names["fused"], "mr")
        if "fused_colour" in names:
            images[f"{method}: fused colour"] = _read_colour(folder, names["fused_colour"])
        if method == features_of:
            images[f"{method}: features"] = _features(case, pipeline, channels, folder)
    side = [_SIDE[dims]] * dims
    small = {name: _resized(image, side) for name, image in images.items()}
    mask = _resized(_lesion(case, lesion_label), side)
    return CaseInputs(small, (mask >= 0.5).float())


def stacked(cases: Sequence[CaseInputs]) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs that all cases have, ``(N, C, *S)`` each, and their masks ``(N, 1, *S)``.

    Raises:
        InputError: cases with different images.
    """
    names = [name for name in cases[0].images if all(name in case.images for case in cases)]
    inputs = {}
    for name in names:
        shapes = {tuple(case.images[name].shape) for case in cases}
        if len(shapes) > 1:
            raise InputError(
                f"diagnosis: expected cases with the same images, got inputs ({name}) of the "
                f"shapes {sorted(shapes)}; list cases of one kind"
            )
        inputs[name] = torch.stack([case.images[name] for case in cases])
    return inputs, torch.stack([case.mask for case in cases])


def _onto_reference(case: Case, key: str, there: WorldMap) -> Image:
    """An image on the reference's grid."""
    image = case.series[key].image
    if key == case.reference:
        return image
    return Registration(there, Evidence("none")).warp(image, case.fixed)


def _z_scored(image: Image) -> Tensor:
    """As a network reads it: z-scored in what is brighter than nothing."""
    kind = {"modality": image.modality, "units": image.units}
    body = image.array > image.fill_value
    return NormalizeModality().scaled(image.array, body, **kind)[0]


def _harmonized(case: Case, folder: Path) -> Tensor:
    """The harmonized images of a method, ``(M, *S)``, the reference first."""
    names = read_report(folder)["files"]["harmonized"]
    return torch.cat([_read(folder, names[key], key) for key in case.series])


def _read(folder: Path, name: str, key: str) -> Tensor:
    """An image of a result in canonical axes, as the case is."""
    image = read_image(str(folder / name), key)[0].in_canonical_axes()
    # a PNG holds 0..255 of what a NIfTI holds as 0..1
    return image.array.float() / (255.0 if image.is_picture else 1.0)


def _read_colour(folder: Path, name: str) -> Tensor:
    """A colour image of a result in canonical axes, ``(3, *S)`` in 0..1."""
    image = read_image(str(folder / name), "mr")[0].in_canonical_axes()
    colour = image.array.expand(3, *image.shape) if image.colour is None else image.colour
    return colour.float() / 255.0


def _features(case: Case, pipeline: FusionPipeline, channels: Tensor, folder: Path) -> Tensor:
    """The encoder's fused features, ``(C, *S)``."""
    views = []
    for key, one in case.series.items():
        if one.prepared is None:
            raise InputError(f"case {case.id!r}, {key}: expected a prepared image, got none")
        view = one.prepared.field_of_view.float()
        if key != case.reference:
            mask = one.image.with_array(view, units="mask", colour=None)
            view = (
                Registration(SavedRegistration.load(folder, key).map, Evidence("none"))
                .warp(mask, case.fixed, nearest=True)
                .array
            )
        views.append(view)
    kinds = [kind_of(one.image.modality) for one in case.series.values()]
    with torch.no_grad():
        return pipeline.network.fusion.features(
            channels[None].clamp(0, 1), kinds, (torch.cat(views)[None] > 0.5).float()
        )[0]


def _lesion(case: Case, label: int) -> Tensor:
    """``(1, *S)`` of the reference's label map on its grid; zeros without a map."""
    labels = case.series[case.reference].labels
    if labels is None:
        return torch.zeros_like(case.fixed.array)
    still = Registration(WorldMap.identity(case.fixed.spatial_dims), Evidence("none"))
    return (still.warp(labels, case.fixed, nearest=True).array.round() == label).float()


def _resized(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Block means."""
    pool = Pool[Pool.ADAPTIVEAVG, len(shape)](tuple(shape))
    means: Tensor = pool(image[None].float())[0]
    return means


__all__ = ["TRUE", "UNREGISTERED", "CaseInputs", "case_inputs", "stacked"]
