"""Folds by patient."""

import random
import subprocess
import sys
from collections import Counter

import pytest

from fusion_pipeline.data import InputError, case_from_entry, read_datalist
from fusion_pipeline.training.folds import fold


def case(name, **entry):
    return case_from_entry({"id": name, "ct": f"{name}/ct.nii", "mr": f"{name}/mr.nii", **entry})


def cohort(count=53):
    """A third ill; every fourth patient has two cases."""
    cases = []
    for n in range(count):
        about = {"patient": f"s{n}", "target": "ill" if n % 3 == 0 else "well"}
        cases += [case(f"s{n}-{visit}", **about) for visit in range(1 + (n % 4 == 0))]
    return cases


PINNED = ["c1", "c5"]  # fold 1 of 3 of the cases c0 to c6


def ids(cases):
    return [one.id for one in cases]


class TestFold:
    def test_each_case_validates_once(self):
        cases = cohort()
        parts = [fold(cases, 5, n) for n in range(5)]
        assert sorted(name for _, part in parts for name in ids(part)) == sorted(ids(cases))
        for training, validation in parts:
            assert sorted(ids(training) + ids(validation)) == sorted(ids(cases))

    def test_a_patient_stays_together(self):
        for number in range(5):
            training, validation = fold(cohort(), 5, number)
            patients = [{one.patient for one in part} for part in (training, validation)]
            assert not patients[0] & patients[1]

    def test_targets_are_spread(self):
        counts = [Counter(one.target for one in fold(cohort(), 5, n)[1]) for n in range(5)]
        for target in ("ill", "well"):
            numbers = [count[target] for count in counts]
            assert max(numbers) - min(numbers) <= 1
        totals = [sum(count.values()) for count in counts]
        assert max(totals) - min(totals) <= 2

    def test_the_order_of_the_list_does_not_count(self):
        cases = cohort()
        mixed = random.Random(0).sample(cases, len(cases))
        assert sorted(ids(fold(cases, 5, 2)[1])) == sorted(ids(fold(mixed, 5, 2)[1]))
        assert ids(fold(mixed, 5, 2)[1]) == [
            n for n in ids(mixed) if n in ids(fold(cases, 5, 2)[1])
        ]

    def test_the_seed_counts(self):
        cases = cohort()
        assert ids(fold(cases, 5, 0)[1]) != ids(fold(cases, 5, 0, seed=1)[1])

    @pytest.mark.slow
    def test_it_is_the_same_everywhere(self):
        """Pinned, and in a process whose hashes differ."""
        cases = [case(f"c{n}") for n in range(7)]
        assert ids(fold(cases, 3, 1)[1]) == PINNED
        code = (
            "from test_folds import case, fold, ids;"
            "print(','.join(ids(fold([case(f'c{n}') for n in range(7)], 3, 1)[1])))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip().split(",") == PINNED

    @pytest.mark.parametrize("folds", [2, 5, 7])
    def test_no_fold_is_empty(self, folds):
        cases = [case(f"c{n}", target=n % 5) for n in range(7)]
        assert all(fold(cases, folds, n)[1] for n in range(folds))

    def test_an_id_is_no_patient(self):
        """A case without patient stays apart from a patient of that name."""
        cases = [case("a"), case("b", patient="a")]
        assert len(fold(cases, 2, 0)[1]) == 1

    def test_what_is_refused(self):
        cases = [case("a", patient="x"), case("b", patient="x"), case("c")]
        with pytest.raises(InputError, match="at least 3 patients for 3 folds, got 2"):
            fold(cases, 3, 0)
        with pytest.raises(InputError, match="expected 2 or more, got 1"):
            fold(cases, 1, 0)
        with pytest.raises(InputError, match="a number from 0 to 1 of 2 folds, got 2"):
            fold(cases, 2, 2)


class TestPatientOfADatalist:
    def test_it_is_read(self, tmp_path):
        path = tmp_path / "list.json"
        path.write_text('{"testing": [{"id": "a", "ct": "c.nii", "mr": "m.nii", "patient": 7}]}')
        assert read_datalist(path)[0].patient == "7"

    @pytest.mark.parametrize("wrong", ["", " ", True, 1.5, ["a"]])
    def test_it_is_a_word(self, wrong):
        with pytest.raises(InputError, match="a patient that is a word or a whole number"):
            case("a", patient=wrong)
