"""Cases on their lattices, and their cache."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from pipeline_cases import preprocessing, write_case
from torch.utils.data import DataLoader

from fusion_pipeline.data import InputError, case_from_paths, read_datalist, read_image
from fusion_pipeline.geometry import apply_affine, warp
from fusion_pipeline.pipeline.pipeline import split
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training.prepared_cases import PreparedCases

SPACING = 4.0


@pytest.fixture(scope="module")
def steps():
    return preprocessing()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("patient"))


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """With labels and true fields."""
    folder = tmp_path_factory.mktemp("synthetic")
    return read_datalist(synthetic_patient(1).save(folder))


@pytest.fixture(scope="module")
def truth(patient, steps):
    return PreparedCases(patient, steps, spacing=SPACING)[0]


@pytest.fixture
def made(monkeypatch):
    """Counts how often a case is made from its files."""
    from fusion_pipeline.training import prepared_cases

    counted = []
    original = prepared_cases.load_case

    def load_case(files, *rest):
        counted.append(files.id)
        return original(files, *rest)

    monkeypatch.setattr(prepared_cases, "load_case", load_case)
    return counted


def one_case(folder, paths, name="p1"):
    """A copy of a patient that a test may change."""
    folder.mkdir(exist_ok=True)
    own = {key: shutil.copy2(path, folder / path.name) for key, path in paths.items()}
    return case_from_paths(name, own)


class TestLatticeCase:
    def test_it_covers_the_reference_isotropically(self, paths, steps):
        case = PreparedCases([case_from_paths("p1", paths)], steps, spacing=3.0)[0]
        fixed, _ = read_image(str(paths["ct"]), "ct")
        assert case.image.shape == case.valid.shape == case.body.shape == (2, *case.shape)
        assert case.image.dtype == torch.float16
        assert case.valid.dtype == case.body.dtype == torch.bool
        assert case.kinds == ("ct", "mr")
        assert case.spacing == pytest.approx(3.0)
        extent = np.sort(fixed.spacing * fixed.shape)
        assert np.all(np.sort(3.0 * np.array(case.shape)) >= extent - 1e-3)
        centres = [
            apply_affine(np.asarray(a), (np.array(shape) - 1) / 2)
            for a, shape in ((case.affine, case.shape), (fixed.affine, fixed.shape))
        ]
        assert np.allclose(*centres, atol=1e-6)

    def test_it_is_z_scored_on_its_own_lattice(self, paths, steps):
        """Decision 25: not before the resampling."""
        case = PreparedCases([case_from_paths("p1", paths)], steps, spacing=3.0)[0]
        for image, body in zip(case.image.float(), case.body, strict=True):
            assert image[body].mean() == pytest.approx(0, abs=0.02)
            assert image[body].std() == pytest.approx(1, abs=0.05)
        assert case.image.abs().max() <= 4

    def test_its_own_units_are_those_of_the_z_score(self, paths, steps):
        case = PreparedCases([case_from_paths("p1", paths)], steps, spacing=3.0)[0]
        assert case.original.dtype == torch.float32
        assert case.original[0].min() == pytest.approx(-1000, abs=30)  # a CT
        inside = case.body[1]
        both = torch.stack([case.image[1].float()[inside], case.original[1][inside]])
        assert torch.corrcoef(both)[0, 1] > 0.99

    def test_without_spacing_it_takes_the_references_own(self, paths, steps):
        case = PreparedCases([case_from_paths("p1", paths)], steps, spacing=None)[0]
        fixed, _ = read_image(str(paths["ct"]), "ct")
        assert case.spacing == pytest.approx(float(np.prod(fixed.spacing)) ** (1 / 3))

    def test_the_true_field_carries_the_labels(self, truth):
        labels = truth.labels[None].float()
        assert truth.ddf.shape == (len(truth.kinds) - 1, 3, *truth.shape)
        moving = labels[:, 1:2]
        moved = warp(moving, truth.ddf[:1].float(), mode="nearest", fill=0.0)
        there = labels[:, :1] > 0
        before = (moving == labels[:, :1])[there].float().mean()
        after = (moved == labels[:, :1])[there].float().mean()
        assert after > before + 0.05

    def test_nothing_known_is_none(self, paths, steps):
        case = PreparedCases([case_from_paths("p1", paths)], steps, spacing=SPACING)[0]
        assert case.labels is None
        assert case.ddf is None

    def test_a_broken_file_is_refused_in_one_line(self, tmp_path, paths, steps):
        files = one_case(tmp_path, paths)
        (tmp_path / "mr.nii.gz").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"case 'p1', mr \(.*expected a NIfTI file"):
            PreparedCases([files], steps, spacing=SPACING)[0]

    def test_the_z_score_must_come_last(self, steps):
        with pytest.raises(InputError, match="NormalizeModalityd"):
            PreparedCases([], split(steps)[0], spacing=SPACING)

    def test_it_ends(self, paths, steps):
        cases = PreparedCases([case_from_paths("p1", paths)], steps, spacing=8.0)
        assert len(list(cases)) == len(cases) == 1


class TestCacheOnDisk:
    def test_the_second_time_it_comes_from_the_file(self, tmp_path, paths, steps, made):
        files = [case_from_paths("p1", paths)]
        first, again = (
            PreparedCases(files, steps, spacing=SPACING, cache_dir=tmp_path / "cache")[0]
            for _ in range(2)
        )
        assert made == ["p1"]
        for name in ("image", "valid", "body", "affine"):
            assert torch.equal(getattr(first, name), getattr(again, name))
        assert (first.kinds, first.spacing, first.id) == (again.kinds, again.spacing, again.id)
        assert again.labels is None

    def test_a_changed_file_misses(self, tmp_path, paths, steps, made):
        files = one_case(tmp_path / "own", paths)
        cases = PreparedCases([files], steps, spacing=SPACING, cache_dir=tmp_path / "cache")
        before = cases[0]
        shutil.copy(paths["mr"], tmp_path / "own" / "mr.nii.gz")
        os.utime(tmp_path / "own" / "mr.nii.gz", ns=(1, 1))
        assert torch.equal(cases[0].image, before.image)
        assert made == ["p1", "p1"]

    @pytest.mark.parametrize("change", ["spacing", "window", "code"])
    def test_another_making_misses(self, tmp_path, paths, steps, made, monkeypatch, change):
        files = [case_from_paths("p1", paths)]
        PreparedCases(files, steps, spacing=SPACING, cache_dir=tmp_path)[0]
        if change == "code":
            monkeypatch.setattr(
                "fusion_pipeline.training.prepared_cases.code_digest", lambda *_: "other"
            )
        window = {"preprocessing#transforms#6#window_hu": [-100.0, 300.0]}
        other = preprocessing(**window) if change == "window" else steps
        spacing = 5.0 if change == "spacing" else SPACING
        PreparedCases(files, other, spacing=spacing, cache_dir=tmp_path)[0]
        assert made == ["p1", "p1"]
        assert len(list(tmp_path.glob("*.pt"))) == 2

    def test_a_half_written_entry_is_made_anew(self, tmp_path, paths, steps, made, caplog):
        cases = PreparedCases(
            [case_from_paths("p1", paths)], steps, spacing=SPACING, cache_dir=tmp_path
        )
        whole = cases[0]
        (entry,) = tmp_path.glob("*.pt")
        entry.write_bytes(entry.read_bytes()[:5000])
        assert torch.equal(cases[0].image, whole.image)
        assert "made anew" in caplog.text
        assert torch.equal(cases[0].image, whole.image)
        assert made == ["p1", "p1"]

    def test_the_least_recently_used_goes(self, tmp_path, paths, steps, made):
        files = [case_from_paths(name, paths) for name in ("p1", "p2", "p3")]
        cache = tmp_path / "cache"
        PreparedCases(files, steps, spacing=SPACING, cache_dir=cache)[0]
        (entry,) = cache.glob("*.pt")
        gib = 2.5 * entry.stat().st_size / 2**30
        cases = PreparedCases(files, steps, spacing=SPACING, cache_dir=cache, cache_gib=gib)
        for index in (1, 0, 2):  # p1 is asked for after p2
            time.sleep(0.02)  # a file system's clock may tick every 10 ms
            cases[index]
        assert len(list(cache.glob("*.pt"))) == 2
        made.clear()
        assert [cases[0].id, cases[2].id] == ["p1", "p3"]
        assert made == []
        assert cases[1].id == "p2"
        assert made == ["p2"]

    def test_what_a_killed_writer_left_goes(self, tmp_path, paths, steps):
        old, new = tmp_path / ".aa-1234.pt", tmp_path / ".bb-1234.pt"
        old.touch()
        new.touch()
        os.utime(old, (0, 0))
        PreparedCases([case_from_paths("p1", paths)], steps, spacing=8.0, cache_dir=tmp_path)[0]
        assert not old.exists()
        assert new.exists()

    def test_workers_share_the_folder(self, tmp_path, paths, steps, made):
        files = [case_from_paths(f"p{n}", paths) for n in range(3)]
        cases = PreparedCases(files, steps, spacing=8.0, cache_dir=tmp_path)
        loader = DataLoader(cases, batch_size=None, num_workers=2)
        for _ in range(2):
            assert [case.id for case in loader] == ["p0", "p1", "p2"]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            path.name for path in tmp_path.glob("[!.]*.pt")
        )
        assert [case.id for case in cases] == ["p0", "p1", "p2"]
        assert made == []  # this process found all of them made

    def test_a_disk_without_room_costs_the_cache_only(self, tmp_path, paths, steps, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fusion_pipeline.training.prepared_cases.torch.save", full)
        cases = PreparedCases(
            [case_from_paths("p1", paths)], steps, spacing=8.0, cache_dir=tmp_path
        )
        assert cases[0].id == "p1"
        assert list(tmp_path.iterdir()) == []

    def test_other_cases_leave_the_folder_alone(self, tmp_path, paths, steps, made):
        cases = PreparedCases(
            [case_from_paths("p1", paths)], steps, spacing=8.0, cache_dir=tmp_path
        )
        cases[0]
        cases.set_data([case_from_paths("p2", paths), case_from_paths("p1", paths)])
        assert cases[1].id == "p1"
        assert made == ["p1"]

    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path, steps):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"cache_dir .*choose another folder"):
            PreparedCases([], steps, spacing=SPACING, cache_dir=tmp_path / "file" / "cache")


class TestCacheInMemory:
    def test_it_is_bounded(self, paths, steps, made):
        files = [case_from_paths(name, paths) for name in ("p1", "p2", "p3")]
        one = PreparedCases(files, steps, spacing=SPACING)[0]
        size = sum(x.nbytes for x in (one.image, one.original, one.valid, one.body, one.affine))
        cases = PreparedCases(files, steps, spacing=SPACING, cache_gib=2.5 * size / 2**30)
        made.clear()
        for index in (1, 0, 2, 0, 2):
            cases[index]
        assert made == ["p2", "p1", "p3"]
        cases[1]
        assert made == ["p2", "p1", "p3", "p2"]

    def test_no_room_caches_nothing(self, paths, steps, made):
        cases = PreparedCases([case_from_paths("p1", paths)], steps, spacing=8.0, cache_gib=0.0)
        assert cases[0].id == cases[0].id == "p1"
        assert made == ["p1", "p1"]
