"""The cases of a datalist as a MONAI dataset: each is loaded and prepared when it is asked for."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from monai.data import Dataset
from monai.transforms import Compose

from fusion_pipeline.data import (
    Case,
    CaseFiles,
    InputError,
    load_case,
    one_line_refusals,
    read_datalist,
    spatial_dims_of,
)
from fusion_pipeline.pipeline.clock import Clock
from fusion_pipeline.pipeline.inferer import fewest_images
from fusion_pipeline.pipeline.pipeline import split
from fusion_pipeline.pipeline.synthetic import SyntheticCases


@dataclass(frozen=True)
class LoadedCase:
    """A case of the dataset, or why there is none.

    Attributes:
        files: what was asked for.
        case: prepared; None if it was skipped or cannot be used.
        error: what was raised.
        clock: the seconds that loading took.
        number: of the case in the dataset.
    """

    files: CaseFiles
    case: Case | None = None
    error: Exception | None = None
    clock: Clock = field(default_factory=Clock)
    number: int = 0


class CaseDataset(Dataset):
    """Cases that `preprocessing` has prepared; one that cannot be used does not stop the others.

    Args:
        data: the files of the cases, see `case_list`.
        transform: `preprocessing`; its last transform, the z-score, is left to the stages.

    Attributes:
        skip: cases for which it says True are not loaded (`--resume`).
        one_space: False: the images of a case need not overlap (`--only harmonize`).
    """

    def __init__(self, data: Sequence[CaseFiles], transform: Compose) -> None:
        super().__init__(data, transform)
        self.skip: Callable[[CaseFiles], bool] = _never
        self.one_space = True
        self._prepare, _ = split(transform)

    def __getitem__(self, index: int) -> LoadedCase:
        """Load one case."""
        files = self.data[index]
        clock = Clock(case=files.id)
        try:
            if self.skip(files):
                return LoadedCase(files, number=index)
            with clock.stage("load"):
                case = load_case(files, self._prepare, one_space=self.one_space)
            return LoadedCase(files, case, clock=clock, number=index)
        except Exception as error:  # a case must not stop the others
            return LoadedCase(files, error=error, number=index)


def _never(_: CaseFiles) -> bool:
    """No case is skipped."""
    return False


@one_line_refusals()
def case_list(
    datalist: Path | str | None,
    *,
    dataset_dir: Path | str = ".",
    output_dir: Path | str = "out",
    spatial_dims: int = 3,
    only: str | None = None,
) -> Sequence[CaseFiles]:
    """The cases of a datalist, or the synthetic patient where there is none.

    Args:
        datalist: JSON file; a relative path counts from ``dataset_dir``.
        dataset_dir: folder of the datalist.
        output_dir: where the synthetic patient is written.
        spatial_dims: of the synthetic patient, 2 or 3.
        only: the one stage that runs: an image alone is enough to be harmonized.

    Raises:
        InputError: the datalist is missing or malformed.
    """
    if datalist is None:
        return SyntheticCases(output_dir, spatial_dims=spatial_dims)
    return read_datalist(Path(dataset_dir) / datalist, fewest_images=fewest_images(only))


def spatial_dims_of_cases(cases: Sequence[CaseFiles], unread: int = 3) -> int:
    """2 or 3, by the headers of the references; a file that cannot be read counts for nothing yet.

    Args:
        cases: their files.
        unread: what is said where none can be read.

    Raises:
        InputError: some cases are 2D and others 3D.
    """
    dims: dict[int, str] = {}
    for case in cases:
        with suppress(InputError):
            dims.setdefault(spatial_dims_of(case.images[case.reference]), case.id)
    if len(dims) == 2:
        raise InputError(
            f"datalist: expected cases that are all 2D or all 3D, got {dims[2]!r} in 2D and "
            f"{dims[3]!r} in 3D; split the datalist"
        )
    return next(iter(dims), unread)
