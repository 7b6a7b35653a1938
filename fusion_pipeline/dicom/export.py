"""A result as DICOM objects: registered series, fused image, registrations, maps."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from pydicom import Dataset
from torch import Tensor

from fusion_pipeline.data import Case, Image
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.dicom.fused import fused_object
from fusion_pipeline.dicom.maps import Quantity, parametric_map
from fusion_pipeline.dicom.options import DicomExport
from fusion_pipeline.dicom.planes import Planes
from fusion_pipeline.dicom.registration import registration_object
from fusion_pipeline.dicom.series import dicom_modality, series_of_slices
from fusion_pipeline.dicom.study import SeriesOf, Study, save
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.geometry import WorldMap, inverse_affine
from fusion_pipeline.geometry.sampling import sample
from fusion_pipeline.result import CaseResult

_FIRST_NUMBER = 9001  # SeriesNumber; scanners count from 1 and by hundreds
_UCUM = {
    "HU": ("[hnsf'U]", "Hounsfield unit"),
    "SUV": ("g/ml{SUVbw}", "Standardized Uptake Value body weight"),
    "Bq/ml": ("Bq/ml", "Becquerels/milliliter"),
    "counts": ("{counts}", "Counts"),
}


def check_dicom_export(case: Case, options: DicomExport) -> None:
    """Refuse, before anything is computed, a case that cannot be written as DICOM.

    Args:
        case: as loaded.
        options: whose the objects are.

    Raises:
        InputError: pictures, a reference whose axes or acquisition DICOM cannot say, or options
            that contradict a header.
    """
    _planes(case, case.fixed)
    study = Study(case, options, "")
    written = not study.has_sources(case.reference)
    if written and not dicom_modality(case.fixed, study.headers[case.reference], study):
        raise refusal(
            f"case {case.id!r}, {case.reference}",
            "a CT or MR as the reference of DICOM output, or a PET with its DICOM series",
            "an emission image whose acquisition no header tells",
            "choose another reference",
        )


def write_dicom(result: CaseResult, folder: Path, options: DicomExport) -> None:
    """Write all objects of a result.

    Files: ``<key>_registered/0001.dcm`` and so on for each moving image, or
    ``<key>_registered.dcm`` (Parametric Map) for a PET or SPECT whose acquisition no header tells;
    ``<key>_registration.dcm``; ``<key>_error.dcm`` where an error was estimated;
    ``fused.dcm``; ``weights_<key>.dcm``; and ``<reference>/0001.dcm`` where the reference has no
    DICOM series that could be named.

    Convention:
        - all lie on the reference's grid and in its frame of reference
        - values are stored in 16 bits, each within half a stored step

    Args:
        result: of volumes.
        folder: gets the files.
        options: whose the objects are.

    Raises:
        InputError: see `check_dicom_export`.
    """
    _Export(result, folder, options).write()


class _Export:
    """One result on its way out."""

    def __init__(self, result: CaseResult, folder: Path, options: DicomExport) -> None:
        self._result, self._folder = result, folder
        self._study = Study(result.case, options, result.input_digest)
        self._grid = result.grid
        self._planes = _planes(result.case, self._grid)
        self._number = _FIRST_NUMBER
        self._references: list[Dataset] = []

    def write(self) -> None:
        """All objects."""
        self._references = self._reference()
        reference = self._result.case.reference
        for key, found in self._result.registrations.items():
            image = self._result.registered_images[key]
            how = f"{key} registered to {reference} ({found.transform})"
            self._write_image(image, key, f"{key}_registered", how, found.map)
            series = self._series(f"{key}_registration", "REG", how)
            ds = registration_object(found.map, key, self._study, series, how)
            self._save([ds], f"{key}_registration")
            if found.evidence.error_map_mm is not None:
                self._write_error(found.map, found.evidence.error_map_mm, key)
        if self._result.fusion is not None:
            self._write_fused(self._result.fusion)
            self._write_weights(self._result.fusion)

    def _reference(self) -> list[Dataset]:
        """The reference's slices; written where no series of the input can be named."""
        key = self._result.case.reference
        if self._study.has_sources(key):
            return self._study.headers[key]
        return self._write_image(self._grid, key, key, f"{key}, the reference", None)

    def _write_image(
        self, image: Image, key: str, name: str, how: str, world_map: WorldMap | None
    ) -> list[Dataset]:
        """An image on the reference's grid; its headers without pixels."""
        modality = dicom_modality(image, self._study.headers[key], self._study)
        if modality:
            series = self._series(name, modality, how)
            slices = series_of_slices(image, key, self._planes, self._study, series, world_map)
            return self._save(slices, name, in_folder=True)
        quantity = Quantity(key, how, _UCUM.get(image.units, ("1", "no units")))
        return self._write_map(image.array[0], quantity, name, how)

    def _write_map(self, values: Tensor, quantity: Quantity, name: str, how: str) -> list[Dataset]:
        """A Parametric Map."""
        series = self._series(name, "OT", how)
        ds = parametric_map(values, quantity, self._planes, self._study, series, self._references)
        return self._save([ds], name)

    def _write_error(self, world_map: WorldMap, error_mm: Tensor, key: str) -> None:
        """The estimated error, from the working lattice to the reference's grid."""
        quantity = Quantity("ERROR_MM", "estimated registration error", ("mm", "millimeter"))
        values = _on_grid(error_mm, world_map, self._grid)
        self._write_map(values, quantity, f"{key}_error", f"estimated error of {key} in mm")

    def _write_weights(self, fusion: Fusion) -> None:
        """The fusion's weights, one map for each image."""
        for key, weights in zip(self._result.modalities, fusion.weights, strict=True):
            quantity = Quantity("WEIGHT", f"weight of {key} in the fused image")
            self._write_map(weights, quantity, f"weights_{key}", f"fusion weight of {key}")

    def _write_fused(self, fusion: Fusion) -> None:
        """The fused image."""
        how = "fused " + ", ".join(self._result.modalities)
        series = self._series("fused", "OT", how)
        ds = fused_object(fusion.fused, fusion.colour, self._planes, self._study, series)
        self._save([ds], "fused")

    def _series(self, role: str, modality: str, description: str) -> SeriesOf:
        """The next series."""
        series = SeriesOf(role, self._number, modality, description)
        self._number += 1
        return series

    def _save(
        self, objects: Iterable[Dataset], name: str, *, in_folder: bool = False
    ) -> list[Dataset]:
        """Write objects; what is left of them without their pixels."""
        headers = []
        for number, ds in enumerate(objects):
            path = f"{name}/{number + 1:04d}.dcm" if in_folder else f"{name}.dcm"
            save(ds, self._folder / path)
            ds.pop("PixelData", None)
            headers.append(ds)
        return headers


def _planes(case: Case, grid: Image) -> Planes:
    """The slices of the reference's grid."""
    place = f"case {case.id!r}, {case.reference}"
    return Planes.of(grid.affine, grid.shape, place)


def _on_grid(values: Tensor, world_map: WorldMap, grid: Image) -> Tensor:
    """Values of the working lattice on a grid ``(*S)``, linear, the border's value beyond."""
    voxels = inverse_affine(world_map.working_affine) @ grid.affine
    out = torch.empty(grid.shape)
    rows = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape[1:]], indexing="ij"), -1)
    for i in range(grid.shape[0]):
        nodes = rows @ voxels[:3, 1:3].T + voxels[:3, 0] * i + voxels[:3, 3]
        points = torch.from_numpy(nodes).float()[None]
        out[i] = sample(values[None, None].float().cpu(), points)[0, 0]
    return out


__all__ = ["check_dicom_export", "write_dicom"]
