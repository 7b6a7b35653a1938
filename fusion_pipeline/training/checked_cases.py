"""Check the headers of a whole datalist before the first step; what is broken is set aside."""

import csv
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import distributed
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fusion_pipeline.data import CaseFiles, InputError, check_case_headers, written_whole
from fusion_pipeline.data.refusals import one_line, quiet

logger = logging.getLogger(__name__)

SET_ASIDE = "set_aside.csv"
_BATCH = 32  # cases that a worker checks before it reports
_MOST_WORKERS = 8
_FEW = 200  # cases: checked sooner than workers start


@dataclass(frozen=True)
class SetAside:
    """A case that is not used.

    Attributes:
        number: which one of the cases, from 0; several may have one name.
        id: its name.
        reason: one line.
    """

    number: int
    id: str
    reason: str


def checked_cases(
    cases: Sequence[CaseFiles],
    output_dir: Path | str | None = None,
    *,
    spatial_dims: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    refuse: Callable[[CaseFiles], str] | None = None,
) -> list[CaseFiles]:
    """The cases whose headers can be used; the others are logged and listed in a file.

    Where `torch.distributed` is at work, all processes call this: the first one checks, and the
    others get its result.

    Args:
        cases: of a datalist.
        output_dir: gets ``set_aside.csv`` (``id,reason``) if there is anything to list; an older
            one is removed. None: no file.
        spatial_dims: 2 or 3, of the images that the networks are made for; None: either.
        workers: processes that check; None: one per core up to 8, none for a short list.
        progress: show a bar, on a terminal only.
        refuse: why a sound case is of no use here, in one line; an empty text where it is.

    Returns:
        The usable cases, in their order.

    Raises:
        InputError: none can be used, or the file cannot be written.
    """
    together = distributed.is_available() and distributed.is_initialized()
    outcome: list[list[SetAside] | str] = [[]]
    error: Exception | None = None
    if not together or distributed.get_rank() == 0:
        try:
            broken = set_aside(
                cases, spatial_dims, workers=workers, progress=progress, refuse=refuse
            )
            _report(broken, len(cases), output_dir)
            outcome = [broken]
        except Exception as caught:  # the others wait for a result
            error, outcome = caught, [one_line(caught, 400)]
    if together:
        distributed.broadcast_object_list(outcome, src=0)
    result = outcome[0]
    if isinstance(result, str):
        raise error or InputError(result)
    if cases and len(result) == len(cases):
        raise InputError(
            f"datalist: expected at least one usable case, got {len(cases)} that are not; the "
            f"first: {result[0].reason}"
        )
    unusable = {one.number for one in result}
    return [case for number, case in enumerate(cases) if number not in unusable]


def set_aside(
    cases: Sequence[CaseFiles],
    spatial_dims: int | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    refuse: Callable[[CaseFiles], str] | None = None,
) -> list[SetAside]:
    """Check the headers of all cases; see `checked_cases`.

    Returns:
        The cases that cannot be used, in their order.
    """
    if workers is None:
        workers = 0 if len(cases) < _FEW else min(_MOST_WORKERS, _cores())
    loader = DataLoader(
        _Reasons(cases, spatial_dims), batch_size=_BATCH, num_workers=workers, collate_fn=list
    )
    reasons: list[str] = []
    # disable=None: tqdm shows nothing where nobody watches a terminal
    hidden = None if progress else True
    with tqdm(total=len(cases), desc="headers", unit="case", disable=hidden) as bar:
        for batch in loader:
            reasons += batch
            bar.update(len(batch))
    if refuse is not None:
        reasons = [why or refuse(case) for case, why in zip(cases, reasons, strict=True)]
    listed = enumerate(zip(cases, reasons, strict=True))
    return [SetAside(number, case.id, why) for number, (case, why) in listed if why]


def _cores() -> int:
    """Cores that this process may use; a container or SLURM may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Reasons(Dataset[str]):
    """Why each case cannot be used; an empty text where it can."""

    def __init__(self, cases: Sequence[CaseFiles], spatial_dims: int | None) -> None:
        self.cases = cases
        self.spatial_dims = spatial_dims

    def __len__(self) -> int:
        return len(self.cases)

    def __getitems__(self, indices: Sequence[int]) -> list[str]:
        """A batch, as the `DataLoader` asks for it: the libraries are silenced once."""
        with quiet():
            return [self[index] for index in indices]

    def __getitem__(self, index: int) -> str:
        try:
            check_case_headers(self.cases[index], self.spatial_dims)
        except InputError as error:
            return str(error)
        except Exception as error:  # a case must not stop the others
            return f"case {self.cases[index].id!r}: {type(error).__name__}: {one_line(error)}"
        return ""


def _report(broken: Sequence[SetAside], count: int, output_dir: Path | str | None) -> None:
    """Log what is set aside, and list it in the output folder."""
    for one in broken:
        logger.warning("set aside: %s", one.reason)
    if broken:
        logger.warning("%d of %d cases are set aside", len(broken), count)
    if output_dir is None:
        return
    path = Path(output_dir) / SET_ASIDE
    if not broken:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "reason"])
        rows.writerows([one.id, one.reason] for one in broken)


__all__ = ["SET_ASIDE", "SetAside", "checked_cases", "set_aside"]
