"""What a run gives: the stages' results, as MetaTensors, and saved as a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from monai.data import MetaTensor

from fusion_pipeline.data.image import meta_tensor
from fusion_pipeline.dicom import DicomExport
from fusion_pipeline.evaluation import evaluate
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.pipeline.folder import check_case_folder, deliver, write_files
from fusion_pipeline.result import CaseResult


@dataclass(frozen=True)
class PipelineResult(CaseResult):
    """A result that can be looked at as MetaTensors and saved; all on the reference's native grid.

    Convention:
        - values are shared with the images of the stages, not copied
        - ``affine`` is world_from_voxel in RAS+ mm, exactly the reference's
    """

    @property
    def registered(self) -> Mapping[str, MetaTensor]:
        """Per moving key ``(1, *S)``: original intensities and units."""
        images = self.registered_images
        return {key: images[key].as_meta_tensor() for key in self.registrations}

    @property
    def harmonized(self) -> Mapping[str, MetaTensor]:
        """Per key ``(1, *S)`` in 0..1."""
        images = self.harmonization.images
        return {key: image.as_meta_tensor() for key, image in images.items()}

    @property
    def fused(self) -> MetaTensor:
        """``(1, *S)`` in 0..1; ``(3, *S)`` 0..255 where a source was in colour."""
        return self._fusion().fused.as_meta_tensor()

    @property
    def weights(self) -> MetaTensor:
        """``(M, *S)`` in the order of `modalities`; they sum to 1 where an image has data."""
        fusion = self._fusion()
        return meta_tensor(fusion.weights, fusion.fused.affine)

    def _fusion(self) -> Fusion:
        """What the fuse stage gave.

        Raises:
            AttributeError: it did not run.
        """
        if self.fusion is None:
            raise AttributeError(f"nothing was fused: only {self.only} ran")
        return self.fusion

    @property
    def displacement(self) -> Mapping[str, MetaTensor]:
        """Per moving key ``(d, *S)`` in RAS mm: the whole map, ``φ(x) − x``."""
        grid = self.grid
        return {
            key: meta_tensor(found.displacement_mm(grid), grid.affine)
            for key, found in self.registrations.items()
        }

    def save(self, folder: Path | str, *, dicom: DicomExport | None = None) -> Path:
        """Write the folder of the case, whole or not at all.

        Args:
            folder: made if needed; files of an earlier run in it are replaced.
            dicom: write DICOM objects as well, into its folder ``dicom``; None: none.

        Returns:
            The folder.

        Raises:
            InputError: it cannot be written.
        """
        folder = check_case_folder(Path(folder), self.modalities, self.only)
        result = self if self.evaluation else replace(self, evaluation=_scores(self))
        with deliver(folder) as aside:
            write_files(result, aside, dicom)
        return folder


def _scores(result: CaseResult) -> dict[str, dict[str, float]]:
    """What the truth says, where the case brings one."""
    return {key: found for key, found in evaluate(result).items() if found}
