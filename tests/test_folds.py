"""Folds by patient, and the shares of processes."""

import random
import subprocess
import sys
from collections import Counter
from itertools import chain, islice

import pytest
from fusion_pipeline.training.rank_shares import EndlessBatches, rank_share, shuffled
from torch.utils.data import DataLoader

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


class TestRankShares:
    @pytest.mark.parametrize(("length", "world"), [(0, 2), (1, 3), (7, 2), (12, 4), (13, 4)])
    def test_none_twice_and_none_lost(self, length, world):
        shares = [list(rank_share(length, world, rank)) for rank in range(world)]
        assert sorted(chain(*shares)) == list(range(length))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_a_loader_takes_it_as_a_sampler(self):
        assert [int(x) for x in DataLoader(range(7), sampler=rank_share(7, 2, 1))] == [1, 3, 5]

    def test_no_such_process(self):
        with pytest.raises(ValueError, match="a rank from 0 to 1, got 2"):
            rank_share(5, 2, 2)


class TestEndlessBatches:
    @pytest.mark.parametrize(("world", "size"), [(1, 4), (2, 2), (4, 1)])
    def test_any_number_of_processes_reads_the_same_in_each_step(self, world, size):
        streams = [islice(EndlessBatches(size, world=world, rank=r), 5) for r in range(world)]
        for step, batches in enumerate(zip(*streams, strict=True)):
            assert list(chain(*batches)) == list(range(4 * step, 4 * step + 4))

    def test_it_goes_on_where_it_stopped(self):
        whole = list(islice(EndlessBatches(3, world=2, rank=1), 6))
        assert list(islice(EndlessBatches(3, world=2, rank=1, start=4), 2)) == whole[4:]

    def test_it_starts_anew_for_each_loop(self):
        batches = EndlessBatches(2)
        assert next(iter(batches)) == next(iter(batches)) == [0, 1]

    def test_wrong_sizes(self):
        with pytest.raises(ValueError, match="batch size of 1 or more"):
            EndlessBatches(0)
        with pytest.raises(ValueError, match="a rank from 0 to 0"):
            EndlessBatches(1, rank=1)


class TestShuffled:
    def test_each_pass_has_each_item_once(self):
        drawn = [shuffled(n, 11, seed=3) for n in range(33)]
        passes = [drawn[k : k + 11] for k in (0, 11, 22)]
        assert all(sorted(one) == list(range(11)) for one in passes)
        assert passes[0] != passes[1]

    def test_it_depends_on_the_number_and_the_seed_alone(self):
        backwards = [shuffled(n, 11, seed=3) for n in reversed(range(99))][::-1]
        assert backwards == [shuffled(n, 11, seed=3) for n in range(99)]
        assert backwards != [shuffled(n, 11, seed=4) for n in range(99)]

    def test_no_items(self):
        with pytest.raises(ValueError, match="items to draw from"):
            shuffled(0, 0)
