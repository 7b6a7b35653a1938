"""The check of a whole datalist by headers alone."""

import csv
import gzip
import json
import logging
import multiprocessing

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_phantoms import dicom_slice, oblique, save_nifti, series_pixels
from PIL import Image as PillowImage
from torch import distributed

from fusion_pipeline.data import (
    InMemory,
    InputError,
    case_from_entry,
    case_from_paths,
    check_case_headers,
    load_case,
    read_datalist,
    write_displacement,
)
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training.checked_cases import SET_ASIDE, checked_cases, set_aside


@pytest.fixture
def two(tmp_path):
    """Two images on one grid."""
    return {key: save_nifti(tmp_path / f"{key}.nii.gz") for key in ("ct", "mr")}


def case(two, **entry):
    return case_from_entry({"id": "p1", **two, **entry})


def refusal_of(files, spatial_dims=None):
    with pytest.raises(InputError) as caught:
        check_case_headers(files, spatial_dims)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestCheckCaseHeaders:
    def test_a_whole_patient_passes(self, tmp_path):
        """With labels, landmarks and true fields."""
        for files in read_datalist(synthetic_patient(1).save(tmp_path)):
            check_case_headers(files)
            check_case_headers(files, 3)

    def test_no_pixel_is_read(self, two, monkeypatch):
        def forbidden(*_args, **_kwargs):
            raise AssertionError

        monkeypatch.setattr(nib.Nifti1Image, "get_fdata", forbidden)
        monkeypatch.setattr(gzip.GzipFile, "readall", forbidden, raising=False)
        check_case_headers(case(two))

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
    def test_itk_files_pass(self, tmp_path, two, suffix):
        image = sitk.GetImageFromArray(np.random.default_rng(0).random((9, 14, 11)))
        image.SetOrigin((20.0, -31.0, 12.0))
        sitk.WriteImage(image, str(tmp_path / f"pet{suffix}"))
        check_case_headers(case(two, pet=tmp_path / f"pet{suffix}"))

    def test_the_grid_of_an_itk_file_is_the_one_that_loading_gives(self, tmp_path):
        from fusion_pipeline.data import read_image
        from fusion_pipeline.data.headers import read_grid
        from fusion_pipeline.data.sources import Source

        image = sitk.GetImageFromArray(np.random.default_rng(0).random((9, 14, 11)))
        image.SetSpacing((1.0, 2.0, 3.0))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        loaded, _ = read_image(str(tmp_path / "a.nrrd"), "mr")
        grid = read_grid(Source(str(tmp_path / "a.nrrd")), "here")
        assert grid.shape == loaded.shape
        assert np.allclose(grid.affine, loaded.affine)

    def test_pictures_and_images_in_memory_pass(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
        for key in ("ct", "mr"):
            PillowImage.fromarray(pixels).save(tmp_path / f"{key}.png")
        check_case_headers(case({k: tmp_path / f"{k}.png" for k in ("ct", "mr")}), 2)
        memory = (np.random.default_rng(0).random((9, 9, 9)), np.eye(4))
        files = case({"ct": memory, "mr": memory})
        assert isinstance(files.images["ct"], InMemory)
        check_case_headers(files, 3)

    def test_a_dicom_folder_passes_by_one_header(self, tmp_path, two):
        folder = tmp_path / "series"
        folder.mkdir()
        for number, pixels in enumerate(series_pixels()):
            dicom_slice((0, 0, 3.0 * number), pixels).save_as(
                folder / f"{number}.dcm", enforce_file_format=True
            )
        check_case_headers(case(two, pet=folder))
        assert "the series 9.9" in refusal_of(case(two, pet=f"{folder}::9.9"))
        for file in folder.iterdir():
            file.write_bytes(b"nothing")
        assert "a DICOM image series, got none" in refusal_of(case(two, pet=folder))

    def test_a_missing_file(self, tmp_path, two):
        said = refusal_of(case(two, pet=tmp_path / "none.nii"))
        assert said.startswith("case 'p1', pet (")
        assert "no such file" in said

    @pytest.mark.parametrize(
        ("name", "words"), [("mr.nii.gz", "file ended before"), ("mr.nii", "a whole NIfTI file")]
    )
    def test_a_file_cut_short(self, tmp_path, two, name, words):
        path = save_nifti(tmp_path / name, np.random.default_rng(0).random((11, 14, 9)))
        whole = path.read_bytes()
        check_case_headers(case({**two, "mr": path}))
        path.write_bytes(whole[: len(whole) * 2 // 3])
        assert words in refusal_of(case({**two, "mr": path}))
        with pytest.raises(InputError):
            load_case(case({**two, "mr": path}))

    def test_a_gzip_file_of_several_parts_passes(self, tmp_path, two):
        """As bgzip writes: its end counts the last part only."""
        plain = save_nifti(tmp_path / "plain.nii").read_bytes()
        parts = [gzip.compress(plain[:1000]), gzip.compress(plain[1000:]), gzip.compress(b"")]
        (tmp_path / "mr.nii.gz").write_bytes(b"".join(parts))
        files = case({**two, "mr": tmp_path / "mr.nii.gz"})
        check_case_headers(files)
        load_case(files)

    def test_what_loading_would_refuse(self, tmp_path, two):
        far = save_nifti(tmp_path / "far.nii", affine=oblique(origin=(900.0, 0.0, 0.0)))
        assert "overlaps ct" in refusal_of(case({**two, "mr": far}))
        flat = np.zeros((11, 14), dtype=np.float32)
        picture = save_nifti(tmp_path / "flat.nii", flat, np.diag([1.0, 1, 1, 1]))
        assert "expected 3D, as the reference ct" in refusal_of(case({**two, "mr": picture}))
        assert "expected 2D, as the networks are, got 3D" in refusal_of(case(two), 2)
        thin = save_nifti(tmp_path / "thin.nii", np.zeros((11, 14, 1), dtype=np.float32))
        assert "a 2D image in the world's x-y plane" in refusal_of(case({**two, "mr": thin}))
        broken = save_nifti(tmp_path / "broken.nii", affine=np.diag([1.0, 0.0, 1.0, 1.0]))
        assert "affine" in refusal_of(case({**two, "mr": broken}))
        colour = tmp_path / "colour.mha"
        sitk.WriteImage(sitk.Image([5, 5, 5], sitk.sitkVectorUInt8, 3), str(colour))
        assert "3 components" in refusal_of(case(two, pet=colour))
        (tmp_path / "text.txt").write_text("hello")
        assert "a file named text.txt" in refusal_of(case(two, pet=tmp_path / "text.txt"))

    def test_what_belongs_to_an_image(self, tmp_path, two):
        far = save_nifti(tmp_path / "far.nii", affine=oblique(origin=(900.0, 0.0, 0.0)))
        assert "mr_label (" in refusal_of(case(two, mr_label=far))
        assert "mr_mask (" in refusal_of(case(two, mr_mask=tmp_path / "none.nii"))
        write_displacement(torch.zeros(3, 4, 5, 6), oblique(), tmp_path / "f.nii.gz")
        said = refusal_of(case(two, mr_displacement=tmp_path / "f.nii.gz"))
        assert "a field on the grid of ct" in said
        assert "displacement field" in refusal_of(case(two, mr_displacement=two["mr"]))
        for name, lines in (("a", "1,2,3\n4,5,6\n"), ("b", "1,2,3\n")):
            (tmp_path / f"{name}.csv").write_text(lines)
        points = {f"{k}_landmarks": tmp_path / f"{n}.csv" for k, n in (("ct", "a"), ("mr", "b"))}
        assert "2 points, as ct_landmarks, got 1" in refusal_of(case(two, **points))


@pytest.fixture
def cohort(two, tmp_path):
    """Six cases; the second misses a file, the fifth is cut short."""
    cases = [case_from_paths(f"p{n}", two) for n in range(6)]
    cases[1] = case_from_paths("p1", {**two, "mr": tmp_path / "none.nii"})
    short = tmp_path / "short.nii"
    short.write_bytes(save_nifti(tmp_path / "whole.nii").read_bytes()[:2000])
    cases[4] = case_from_paths("p4", {**two, "mr": short})
    return cases


class TestCheckedCases:
    def test_broken_cases_are_set_aside(self, cohort, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            usable = checked_cases(cohort, tmp_path / "out")
        assert [one.id for one in usable] == ["p0", "p2", "p3", "p5"]
        assert len([r for r in caplog.messages if r.startswith("set aside: case 'p1'")]) == 1
        assert "2 of 6 cases are set aside" in caplog.text
        with (tmp_path / "out" / SET_ASIDE).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == ["p1", "p4"]
        assert "no such file" in rows[0]["reason"]

    def test_an_older_list_goes(self, cohort, tmp_path):
        checked_cases(cohort, tmp_path)
        assert (tmp_path / SET_ASIDE).exists()
        checked_cases([cohort[0]], tmp_path)
        assert not (tmp_path / SET_ASIDE).exists()

    def test_nothing_left_is_refused(self, cohort):
        with pytest.raises(InputError, match="at least one usable case, got 2 that are not"):
            checked_cases([cohort[1], cohort[4]])

    def test_an_empty_list_is_no_error(self):
        assert checked_cases([]) == []

    def test_the_dimension_of_the_networks_counts(self, cohort):
        with pytest.raises(InputError, match="expected 2D, as the networks are"):
            checked_cases([cohort[0]], spatial_dims=2)

    def test_workers_say_the_same(self, cohort):
        alone, together = (set_aside(cohort * 20, workers=n, progress=False) for n in (0, 2))
        assert len(alone) == 40
        assert alone == together

    def test_an_error_that_nobody_expected_stops_nothing(self, cohort, monkeypatch):
        def fails(files, _dims):
            if files.id == "p3":
                raise ZeroDivisionError("by\nzero")

        monkeypatch.setattr("fusion_pipeline.training.checked_cases.check_case_headers", fails)
        (one,) = set_aside(cohort)
        assert one.reason == "case 'p3': ZeroDivisionError: by zero"

    def test_one_rank_checks_and_the_others_read_its_result(self, cohort, tmp_path):
        context = multiprocessing.get_context("fork")
        ranks = [context.Process(target=_rank, args=(r, cohort, tmp_path)) for r in (0, 1)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join(60)
            assert one.exitcode == 0
        ids = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
        assert ids == [["p0", "p2", "p3", "p5"]] * 2


def _rank(rank, cohort, folder):
    """One of two processes; the second cannot check anything itself."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    if rank == 1:
        cohort = [case_from_paths(one.id, {"ct": "none", "mr": "none"}) for one in cohort]
    usable = checked_cases(cohort, folder / "out" if rank == 0 else folder / "never")
    assert not (folder / "never").exists()
    (folder / f"rank{rank}.json").write_text(json.dumps([one.id for one in usable]))
    distributed.destroy_process_group()


def test_a_list_that_cannot_be_written_stops_all_ranks(cohort, tmp_path):
    (tmp_path / "out").touch()  # no folder
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_refused, args=(r, cohort, tmp_path)) for r in (0, 1)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
        assert one.exitcode == 0


def _refused(rank, cohort, folder):
    """One of two processes; the first cannot write."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    with pytest.raises(InputError, match="out"):
        checked_cases(cohort, folder / "out")
    distributed.destroy_process_group()
