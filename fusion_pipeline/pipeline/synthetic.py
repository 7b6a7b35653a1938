"""The synthetic patient that runs where there is no data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from fusion_pipeline.data import CaseFiles, check_output_folder, read_datalist
from fusion_pipeline.pipeline.clock import announce
from fusion_pipeline.synthesis import synthetic_patient

_FOLDER = "synthetic_patient"
_SEED = 7  # any other patient does as well


class SyntheticCases(Sequence[CaseFiles]):
    """One case: the demo's CT, MR and PET with their truth, written when it is asked for.

    Args:
        output: the files go to ``<output>/synthetic_patient/``.
        spatial_dims: 2 or 3.
        size: ``full`` (voxels of about 2 mm) or ``small`` (4 mm).
    """

    def __init__(
        self, output: Path | str, *, spatial_dims: int = 3, size: Literal["small", "full"] = "full"
    ) -> None:
        self.output = Path(output)
        self.spatial_dims = spatial_dims
        self.size: Literal["small", "full"] = size
        self._cases: list[CaseFiles] | None = None

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, index: int) -> CaseFiles: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[CaseFiles]: ...

    def __getitem__(self, index: int | slice) -> CaseFiles | Sequence[CaseFiles]:
        if self._cases is None:
            self._cases = self._written()
        return self._cases[index]

    def _written(self) -> list[CaseFiles]:
        """Make the patient and read its datalist."""
        folder = check_output_folder(self.output) / _FOLDER
        announce("make a synthetic patient")
        patient = synthetic_patient(_SEED, spatial_dims=self.spatial_dims, size=self.size)
        return read_datalist(patient.save(folder))
