"""Split a datalist into folds by patient, the same on every machine."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from fusion_pipeline.data import CaseFiles, InputError


def fold(
    cases: Sequence[CaseFiles], folds: int, number: int, *, seed: int = 0
) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Split cases into those to train on and those of one fold, to validate with.

    All cases of a patient (`CaseFiles.patient`, else its id) lie in one fold. Each ``target`` is
    spread evenly over the folds; a patient with several counts by the most frequent one. The split
    depends on the patients' names, their targets and ``seed`` alone: not on the order of the list.

    Args:
        cases: of a datalist.
        folds: number of folds.
        number: of the fold to validate with, from 0 to ``folds - 1``.
        seed: another number splits otherwise.

    Returns:
        Training and validation cases, each in the given order; over all folds each case is in the
        validation once.

    Raises:
        InputError: fewer than two folds, no such fold, or fewer patients than folds.
    """
    if folds < 2:
        raise InputError(f"folds: expected 2 or more, got {folds}; raise --folds")
    if not 0 <= number < folds:
        raise InputError(
            f"fold: expected a number from 0 to {folds - 1} of {folds} folds, got {number}; "
            "count from 0"
        )
    by_patient: dict[str, list[CaseFiles]] = {}
    for case in cases:
        by_patient.setdefault(patient_of(case), []).append(case)
    if len(by_patient) < folds:
        raise InputError(
            f"datalist: expected at least {folds} patients for {folds} folds, got "
            f"{len(by_patient)}; lower --folds or add patients"
        )
    assigned = _assigned(by_patient, folds, seed)
    training = [case for case in cases if assigned[patient_of(case)] != number]
    validation = [case for case in cases if assigned[patient_of(case)] == number]
    return training, validation


def fold_numbers(cases: Sequence[CaseFiles], folds: int) -> dict[str, int]:
    """Per id of a case the fold that holds it out; see `fold`."""
    held_out: dict[str, int] = {}
    for number in range(folds):
        held_out |= {case.id: number for case in fold(cases, folds, number)[1]}
    return held_out


def patient_of(case: CaseFiles) -> str:
    """Whose case it is; a case without a patient never shares that of another by its id."""
    return f"patient {case.patient}" if case.patient else f"case {case.id}"


def _assigned(by_patient: dict[str, list[CaseFiles]], folds: int, seed: int) -> dict[str, int]:
    """Fold of each patient.

    Patients with many cases first, each to the fold that has the fewest cases of its target, then
    the fewest at all: no fold stays empty.
    """
    targets = {patient: _target(members) for patient, members in by_patient.items()}
    order = sorted(
        by_patient,
        key=lambda patient: (targets[patient], -len(by_patient[patient]), _draw(patient, seed)),
    )
    of_target: Counter[tuple[str, int]] = Counter()
    of_all: Counter[int] = Counter()
    assigned = {}
    for patient in order:
        target, size = targets[patient], len(by_patient[patient])
        best = min(range(folds), key=lambda n: (of_target[target, n], of_all[n], n))
        assigned[patient] = best
        of_target[target, best] += size
        of_all[best] += size
    return assigned


def _target(cases: Sequence[CaseFiles]) -> str:
    """The most frequent target of a patient's cases, the first by name among equals."""
    counts = Counter("" if case.target is None else repr(case.target) for case in cases)
    return min(counts, key=lambda target: (-counts[target], target))


def _draw(patient: str, seed: int) -> bytes:
    """A random-looking place in the order, the same in every process."""
    return hashlib.sha256(f"{seed} {patient}".encode()).digest()


__all__ = ["fold", "fold_numbers", "patient_of"]
