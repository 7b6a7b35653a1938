"""One object from files to a folder; many cases in a row."""

import csv
import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch
from pipeline_cases import ShiftRegister, small_network, write_case

import fusion_pipeline.pipeline.demo as demo_module
import fusion_pipeline.pipeline.folder as folder_module
import fusion_pipeline.pipeline.pipeline as pipeline_module
from fusion_pipeline.data import (
    CaseFiles,
    InputError,
    case_from_entry,
    case_from_paths,
    load_case,
    read_datalist,
    read_displacement,
    write_displacement,
)
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.pipeline import (
    Cohort,
    FusionPipeline,
    Outcome,
    SyntheticCases,
    case_dataset,
    run_demo,
    spatial_dims_of_cases,
)
from fusion_pipeline.pipeline.cohort import as_table
from fusion_pipeline.pipeline.folder import deliver
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.synthesis import synthetic_patient

FILES = {
    "mr_registered.nii.gz",
    "mr_displacement.nii.gz",
    "ct_harmonized.nii.gz",
    "mr_harmonized.nii.gz",
    "fused.nii.gz",
    "weights.nii.gz",
    "report.json",
    "report.html",
}


@pytest.fixture(autouse=True)
def still_register(monkeypatch):
    monkeypatch.setattr(pipeline_module, "Register", ShiftRegister)


@pytest.fixture
def brief_report(monkeypatch):
    """A report without pictures: they take a second."""

    def write(result, folder):
        report = {
            "id": result.case.id,
            "modalities": list(result.modalities),
            "registration": {
                key: {
                    "ok": found.ok,
                    "transform": found.transform,
                    "error_mm": None,
                    "folded_fraction": 0.0,
                    "similarity_before": dict(found.evidence.similarity_before),
                    "similarity_after": dict(found.evidence.similarity_after),
                }
                for key, found in result.registrations.items()
            },
            "warnings": list(result.warnings),
            "timings": result.timings,
            "peak_memory_mb": result.peak_memory_mb,
        }
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "report.html").write_text("<html></html>")

    monkeypatch.setattr(folder_module, "write_report", write)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("patient"), ("ct", "mr", "pet"))


@pytest.fixture
def files(paths):
    return case_from_paths("p1", {key: paths[key] for key in ("ct", "mr")})


@pytest.fixture
def pipeline():
    return FusionPipeline(small_network(), refine_steps=0)


class TestCall:
    def test_all_results_lie_on_the_reference_grid(self, pipeline, files):
        result = pipeline(files)
        fixed = result.case.fixed
        images = [*result.registered.values(), *result.harmonization.images.values()]
        for image in (*images, result.fusion.fused):
            assert image.shape == fixed.shape
            np.testing.assert_array_equal(image.affine, fixed.affine)
        assert result.fusion.weights.shape == (2, *fixed.shape)

    def test_the_reference_comes_first_then_as_listed(self, pipeline, paths):
        named = {"pet": paths["pet"], "mr": paths["mr"], "ct": paths["ct"]}
        result = pipeline(case_from_paths("p", named, reference="mr"))
        assert result.modalities == ("mr", "pet", "ct")
        assert list(result.registrations) == ["pet", "ct"]

    def test_the_wish_for_each_image_reaches_the_stage(self, paths, tmp_path):
        pipeline = FusionPipeline(small_network())
        mask = tmp_path / "mask.nii.gz"
        mr = nib.load(paths["mr"])
        nib.save(nib.Nifti1Image(np.ones(mr.shape, np.uint8), mr.affine), mask)
        pipeline(case_from_paths("p", paths, None, {"pet": "none"}, {"mr": mask}))
        calls = {key: rest for key, *rest in pipeline._register.calls}
        assert calls["mr"][0] == "deformable"
        assert calls["pet"][0] == "none"
        assert calls["mr"][2].array.all()
        assert calls["pet"][1] is None

    def test_what_the_moving_image_has_not_seen_gets_no_weight(self, pipeline, files):
        result = pipeline(files)
        seen = result.registered["mr"].array[0] != 0
        assert not seen.all()
        assert not result.fusion.weights[1][~seen].any()

    def test_a_doubtful_registration_is_a_warning(self, pipeline, paths):
        files = case_from_paths("p", {k: paths[k] for k in ("ct", "mr")}, None, {"mr": "affine"})
        assert "mr: the registration is doubtful: an affine is not trusted here" in (
            pipeline(files).warnings
        )

    def test_costs_are_known_for_each_stage(self, pipeline, files):
        result = pipeline(files)
        assert list(result.timings) == ["load", "register", "resample", "harmonize", "fuse"]
        assert all(cost["wall_s"] >= 0 for cost in result.timings.values())
        assert result.peak_memory_mb > 50

    def test_a_case_its_files_and_its_entry_are_the_same(self, pipeline, files, paths):
        entry = {"id": "p1", "ct": paths["ct"], "mr": paths["mr"], "target": 1}
        results = [pipeline(case) for case in (files, load_case(files), entry)]
        for other in results[1:]:
            assert torch.equal(results[0].fusion.fused.array, other.fusion.fused.array)
            assert other.modalities == results[0].modalities

    def test_the_callers_random_numbers_stay_untouched(self, pipeline, files):
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        pipeline(files)
        assert torch.equal(torch.rand(2), expected)

    def test_volumes_are_refused_by_networks_for_pictures(self, files):
        with pytest.raises(InputError, match="case 'p1': expected 2D images for this bundle"):
            FusionPipeline(small_network(2))(files)

    def test_an_impossible_device_is_refused(self):
        with pytest.raises(InputError, match="expected a device that torch can use here"):
            FusionPipeline(small_network(), device="cuda:77")


class TestRun:
    def test_the_folder_holds_the_files_of_the_design(self, pipeline, files, tmp_path):
        folder = pipeline.run(files, tmp_path / "out")
        assert folder == tmp_path / "out" / "p1"
        assert {file.name for file in folder.iterdir()} == FILES
        assert [f.name for f in folder.parent.iterdir()] == ["p1"]
        report = json.loads((folder / "report.json").read_text())
        assert report["modalities"] == ["ct", "mr"]
        assert "write" in report["timings"]
        assert "evaluation" not in report
        fixed = nib.load(files.images["ct"])
        for name in FILES:
            if name.endswith(".nii.gz"):
                image = nib.load(folder / name)
                assert image.shape[:3] == fixed.shape
                np.testing.assert_array_equal(image.affine, fixed.affine.astype(np.float32))

    @pytest.mark.usefixtures("brief_report")
    def test_the_field_in_the_file_is_rounded_finely(self, pipeline, files, tmp_path):
        """A bent field: less than 1/1024 of a voxel off, and smaller than it would be."""
        wave = torch.sin(torch.linspace(0, 5, 1000)).view(1, 10, 10, 10).repeat(3, 1, 1, 1)
        result = pipeline(files)
        fixed = result.case.fixed
        lattice = fixed.affine @ np.diag([*[n / 9 for n in fixed.shape], 1.0])
        found = Registration(WorldMap(np.eye(4), wave, lattice), Evidence("deformable"))
        folder_module.write_files(
            dataclasses.replace(result, registrations={"mr": found}), tmp_path, input_digest=""
        )
        written = read_displacement(tmp_path / "mr_displacement.nii.gz")
        exact = found.displacement_mm(fixed)
        shortest = float(fixed.spacing.min())
        assert 0 < float((written - exact).abs().max()) < shortest / 1024
        whole = tmp_path / "whole.nii.gz"
        write_displacement(exact, fixed.affine, whole)
        size = (tmp_path / "mr_displacement.nii.gz").stat().st_size
        assert size < 0.7 * whole.stat().st_size

    @pytest.mark.usefixtures("brief_report")
    def test_the_same_input_gives_the_same_bytes(self, files, tmp_path):
        folders = [
            FusionPipeline(small_network(), refine_steps=0).run(files, tmp_path / name)
            for name in ("a", "b")
        ]
        for name in FILES - {"report.json", "report.html"}:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name

    def test_nothing_is_left_when_it_fails(self, pipeline, files, tmp_path, monkeypatch):
        def fail(result, folder):
            raise OSError("disk full")

        monkeypatch.setattr(folder_module, "write_report", fail)
        with pytest.raises(OSError, match="disk full"):
            pipeline.run(files, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.usefixtures("brief_report")
    def test_a_new_run_replaces_the_old_files_and_nothing_else(self, pipeline, paths, tmp_path):
        folder = pipeline.run(case_from_paths("p", paths), tmp_path)
        (folder / "notes.txt").write_text("mine")
        again = pipeline.run(case_from_paths("p", {k: paths[k] for k in ("ct", "mr")}), tmp_path)
        assert again == folder
        assert {file.name for file in folder.iterdir()} == FILES | {"notes.txt"}

    def test_a_file_in_the_place_of_the_output_is_refused_first(self, files, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(InputError, match="output folder"):
            FusionPipeline(small_network()).run(files, tmp_path / "out")


def test_what_a_killed_run_left_is_removed(tmp_path):
    told = "import os; print(os.getpid())"
    gone = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    dead = tmp_path / f".p1.{gone.stdout.strip()}.partial"
    alive, other = tmp_path / f".p1.{os.getppid()}.partial", tmp_path / ".p2.1.partial"
    for folder in (dead, alive, other):
        folder.mkdir()
    with deliver(tmp_path / "p1") as aside:
        (aside / "report.json").write_text("{}")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_a_failed_delivery_leaves_the_earlier_files(tmp_path):
    target = tmp_path / "case"
    target.mkdir()
    (target / "fused.nii.gz").write_text("old")

    def attempt():
        with deliver(target) as aside:
            (aside / "fused.nii.gz").write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        attempt()
    assert (target / "fused.nii.gz").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


class TestFingerprint:
    def test_a_moved_file_is_the_same_input(self, pipeline, files, tmp_path):
        copies = {}
        for key, path in files.images.items():
            copies[key] = tmp_path / f"{key}_copy"
            copies[key].write_bytes(Path(path).read_bytes())
        moved = case_from_paths("p1", copies)
        assert pipeline.fingerprint(files) == pipeline.fingerprint(moved)

    def test_content_wishes_settings_and_weights_count(self, pipeline, files, paths):
        others = [
            pipeline.fingerprint(case_from_paths("p2", files.images)),
            pipeline.fingerprint(case_from_paths("p1", paths)),
            pipeline.fingerprint(case_from_paths("p1", files.images, None, {"mr": "rigid"})),
            pipeline.fingerprint(case_from_paths("p1", files.images, masks={"mr": paths["mr"]})),
            FusionPipeline(small_network(), refine_steps=1).fingerprint(files),
            FusionPipeline(small_network(seed=1), refine_steps=0).fingerprint(files),
        ]
        assert len({pipeline.fingerprint(files), *others}) == len(others) + 1

    def test_roles_count(self, pipeline, files, paths):
        entries = [
            CaseFiles("p", "ct", files.images, {}, **{role: {"mr": str(paths["mr"])}})
            for role in ("masks", "labels")
        ]
        assert len({pipeline.fingerprint(entry) for entry in entries}) == 2

    @pytest.mark.parametrize(
        ("header", "text"),
        [
            ("a[1].mhd", "NDims = 3\nElementDataFile = voxels-07.raw\n"),
            ("a.mhd", "ElementDataFile = LIST\nvoxels-06.raw\nvoxels-07.raw\n"),
            ("a.nhdr", "NRRD0004\ndata file: LIST 2\nvoxels-06.raw\nvoxels-07.raw\n"),
            ("voxels-07.mhd", "ElementDataFile = voxels-07.raw\n"),
            ("a.mhd", "ElementDataFile = voxels-%02d.raw 1 9 1\n"),
            ("a.nhdr", "NRRD0004\ndata file: ./voxels-07.raw\n"),
            ("a.nhdr", "NRRD0004\ndatafile: {folder}/voxels-07.raw\n"),
            ("voxels-07.hdr", ""),
            ("a.mhd", "ElementDataFile = lists-of-one.raw\n"),
            ("a.mhd", "ElementDataFile = Größe 1.raw\n"),
        ],
    )
    def test_voxels_beside_a_header_count(self, pipeline, tmp_path, header, text):
        tmp_path = tmp_path / "Köln [1]"
        tmp_path.mkdir()
        (tmp_path / header).write_text(text.format(folder=tmp_path), encoding="utf-8")
        name = next((n for n in ("lists-of-one", "Größe 1") if n in text), "voxels-07")
        voxels, other = tmp_path / f"{name}.raw", tmp_path / "else.raw"
        voxels.write_bytes(b"1")
        case = CaseFiles("p", "ct", {"ct": str(tmp_path / header)}, {})
        before = pipeline.fingerprint(case)
        other.write_bytes(b"1")
        assert pipeline.fingerprint(case) == before
        voxels.write_bytes(b"2")
        assert pipeline.fingerprint(case) != before

    def test_the_code_counts(self, pipeline, files, monkeypatch):
        before = pipeline.fingerprint(files)
        monkeypatch.setattr("fusion_pipeline.pipeline.fingerprint._of_code", lambda: "other")
        assert pipeline.fingerprint(files) != before

    def test_folders_count_by_their_files(self, pipeline, tmp_path):
        series = tmp_path / "series"
        series.mkdir()
        (series / "1.dcm").write_text("a")
        case = CaseFiles("p", "ct", {"ct": f"{series}::1.2.3"}, {})
        before = pipeline.fingerprint(case)
        (series / "2.dcm").write_text("b")
        assert pipeline.fingerprint(case) != before

    def test_a_case_in_memory_has_one(self, pipeline, files):
        case = load_case(files)
        assert pipeline.fingerprint(case) == pipeline.fingerprint(load_case(files))
        changed = case.images | {"mr": case.images["mr"].with_array(case.images["mr"].array + 1)}
        case.__dict__["images"] = changed
        assert pipeline.fingerprint(case) != pipeline.fingerprint(load_case(files))


@pytest.mark.usefixtures("brief_report")
def test_pictures_give_pictures(tmp_path):
    (case,) = read_datalist(synthetic_patient(3, spatial_dims=2).save(tmp_path / "data"))
    folder = FusionPipeline(small_network(2)).run(case, tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("mr_registered.png", "mr_displacement.nii.gz", "mr_harmonized.png"),
        *("pet_registered.png", "pet_displacement.nii.gz", "pet_harmonized.png"),
        *("ct_harmonized.png", "fused.png", "weights.nii.gz", "report.json", "report.html"),
    }
    with PIL.Image.open(folder / "fused.png") as fused:
        assert fused.getextrema()[1] > 50  # 0..255
    assert json.loads((folder / "report.json").read_text())["evaluation"].keys() == {"mr", "pet"}


@pytest.mark.usefixtures("brief_report")
class TestCohort:
    def cohort(self, pipeline, files, output, **options):
        bad = CaseFiles("bad", "ct", {"ct": "nowhere.nii.gz", "mr": files.images["mr"]}, {})
        return Cohort(pipeline, [bad, files], output, **options)

    def test_it_goes_on_past_a_bad_case(self, pipeline, files, tmp_path, caplog):
        with caplog.at_level(logging.INFO, "fusion_pipeline"):
            outcomes = self.cohort(pipeline, files, tmp_path / "out").run()
        assert [o.status for o in outcomes] == ["failed", "ok"]
        assert outcomes[0].bad_input
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "nowhere.nii.gz" in errors[0].getMessage()
        assert {p.name for p in (tmp_path / "out").iterdir()} == {"p1", "summary.csv"}

    def test_the_summary_has_a_row_per_case(self, pipeline, files, tmp_path):
        self.cohort(pipeline, files, tmp_path).run()
        with (tmp_path / "summary.csv").open() as stream:
            bad, good = csv.DictReader(stream)
        assert (bad["id"], bad["status"]) == ("bad", "failed")
        assert "nowhere.nii.gz" in bad["message"]
        assert good["mr_nmi_after"] == "1.2"
        assert float(good["wall_s"]) > 0

    def test_resume_skips_what_is_done_from_the_same_input(self, pipeline, files, paths, tmp_path):
        cohort = self.cohort(pipeline, files, tmp_path, resume=True)
        assert [o.status for o in cohort.run()] == ["failed", "ok"]
        assert [o.status for o in cohort.run()] == ["failed", "skipped"]
        other = case_from_paths("p1", {"ct": paths["ct"], "mr": paths["pet"]})
        assert [o.status for o in Cohort(pipeline, [other], tmp_path, resume=True).run()] == ["ok"]
        gone = CaseFiles("p1", "ct", {"ct": "gone.nii", "mr": files.images["mr"]}, {})
        assert [o.bad_input for o in Cohort(pipeline, [gone], tmp_path, resume=True).run()] == [
            True
        ]
        again = Cohort(FusionPipeline(small_network(seed=1)), [files], tmp_path, resume=True)
        assert [o.status for o in again.run()] == ["ok"]

    def test_what_is_no_refusal_is_called_unexpected(self, pipeline, files, tmp_path, monkeypatch):
        def fail(case, output):
            raise KeyError("x")

        monkeypatch.setattr(pipeline, "run", fail)
        cohort = Cohort(pipeline, [files], tmp_path / "out")
        (outcome,) = cohort.run()
        assert outcome.message.startswith("p1: unexpected KeyError")
        assert not outcome.bad_input
        assert not (tmp_path / "out").exists()
        cohort.leave()  # a program that uses the bundle goes on
        monkeypatch.setattr("fusion_pipeline.pipeline.cohort.monai_is_the_program", lambda: True)
        with pytest.raises(SystemExit) as left:
            cohort.leave()
        assert left.value.code == 1

    def test_success_raises_nothing(self, pipeline, files, tmp_path):
        cohort = Cohort(pipeline, [files], tmp_path)
        cohort.run()
        cohort.leave()
        assert not (tmp_path / "summary.csv").exists()

    def test_the_means_are_written(self, pipeline, files, tmp_path, monkeypatch):
        scores = {"mr": {"tre_mm_before": 4.0, "tre_mm_after": 1.0}}
        monkeypatch.setattr(folder_module, "evaluate", lambda result: scores)
        assert self.cohort(pipeline, files, tmp_path).evaluate() == scores
        written = json.loads((tmp_path / "evaluation.json").read_text())
        counts = {"mr": dict.fromkeys(scores["mr"], 1)}
        assert written == {"cases": 1, "mean": scores, "n": counts}
        with (tmp_path / "summary.csv").open() as stream:
            assert list(csv.DictReader(stream))[1]["mr_tre_mm_after"] == "1.0"

    def test_cases_without_a_truth_do_not_count(self, pipeline, files, tmp_path, monkeypatch):
        scores = {"mr": {"tre_mm_after": 1.0}}
        monkeypatch.setattr(
            folder_module, "evaluate", lambda result: scores if result.case.id == files.id else {}
        )
        other = dataclasses.replace(files, id="without")
        assert Cohort(pipeline, [other, files], tmp_path).evaluate() == scores
        written = json.loads((tmp_path / "evaluation.json").read_text())
        assert (written["cases"], written["n"]) == (1, {"mr": {"tre_mm_after": 1}})

    def test_an_output_folder_that_cannot_be_is_one_line_under_monai(
        self, pipeline, files, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "out").touch()
        monkeypatch.setattr("fusion_pipeline.data.refusals.monai_is_the_program", lambda: True)
        with pytest.raises(SystemExit) as left:
            Cohort(pipeline, [files], tmp_path / "out").run()
        assert left.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_shows_every_moving_image():
    cells = {"mr_ok": False, "mr_transform": "rigid", "mr_error_mm": 1.26, "mr_nmi_after": 1.2}
    good = Outcome("a", "ok", numbers={**cells, "seconds": 3.0})
    table = as_table([good, Outcome("b", "failed")])
    lines = [line.split() for line in table.splitlines()]
    assert lines[1] == ["a", "ok", "mr", "rigid", "(doubtful)", "1.200", "1.3", "3.0"]
    assert lines[2] == ["b", "failed"]


def test_dimensions_come_from_the_headers(paths, tmp_path):
    volume = case_from_paths("v", {k: paths[k] for k in ("ct", "mr")})
    picture = CaseFiles("p", "ct", {"ct": "a.png", "mr": "b.png"}, {})
    lost = CaseFiles("l", "ct", {"ct": "lost.nii", "mr": "lost.nii"}, {})
    assert spatial_dims_of_cases([lost, volume]) == 3
    assert spatial_dims_of_cases([picture]) == 2
    assert spatial_dims_of_cases([lost]) == 3
    with pytest.raises(InputError, match="'p' in 2D and 'v' in 3D"):
        spatial_dims_of_cases([volume, picture])


def test_a_datalist_counts_from_its_folder(tmp_path):
    (tmp_path / "list.json").write_text('{"testing": [{"id": "a", "ct": "c.nii", "mr": "m.nii"}]}')
    (case,) = case_dataset("list.json", dataset_dir=tmp_path)
    assert case.images["ct"] == str(tmp_path / "c.nii")


def test_without_a_datalist_there_is_one_synthetic_patient_made_when_asked_for(tmp_path):
    cases = case_dataset(None, output_dir=tmp_path / "out")
    assert isinstance(cases, SyntheticCases)
    assert len(cases) == 1
    assert not (tmp_path / "out").exists()
    cases.size = "small"
    assert [case.reference for case in cases] == ["ct"]
    assert set(cases[0].displacements) == {"mr", "pet"}
    assert cases[0] is cases[:1][0]
    assert (tmp_path / "out" / "synthetic_patient" / "cases.json").is_file()


@pytest.mark.usefixtures("brief_report")
def test_the_demo_tells_the_error_before_and_after(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module.SyntheticCases, "_written", small_patient)
    scores, folder = run_demo(pipeline, tmp_path)
    assert set(scores) == {"mr", "pet"}
    assert scores["mr"]["tre_mm_before"] > 1
    assert (folder / "report.html").is_file()


def small_patient(self):
    return read_datalist(synthetic_patient(3).save(self.output / "patient"))


def test_an_entry_in_python_is_checked_like_one_in_a_file():
    images = {"ct": Path("a.nii"), "mr": "b.nii"}
    assert case_from_entry({**images, "target": 3}).target == 3
    for wrong in ({"target": 3.5}, {"id": None}, {"id": 7}):
        with pytest.raises(InputError):
            case_from_entry({**images, **wrong})


def test_a_file_where_a_cases_folder_should_be(pipeline, files, tmp_path):
    (tmp_path / files.id).touch()
    with pytest.raises(InputError, match=f"got the file .*{files.id}"):
        pipeline.run(files, tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        {"refine_steps": "abc"},
        {"refine_steps": 1.5},
        {"refine_steps": -1},
        {"working_spacing": "x"},
        {"working_spacing": 500},
        {"working_spacing": 0},
        {"refine_steps": True},
        {"working_spacing": True},
    ],
)
def test_settings_that_are_no_such_number(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        FusionPipeline(small_network(), **setting)


def test_settings_may_be_numbers_of_numpy():
    made = FusionPipeline(
        small_network(), refine_steps=np.int64(3), working_spacing=np.float32(2.0)
    )
    assert made.settings["refine_steps"] == 3


def test_an_entry_without_an_id_is_called_case():
    files = case_from_entry({"ct": "a.nii", "mr_t1": "b.nii", "mr_t1_transform": "rigid"})
    assert (files.id, files.reference, files.transforms) == ("case", "ct", {"mr_t1": "rigid"})
    with pytest.raises(InputError, match="two or more images"):
        case_from_entry({"ct": "a.nii"})
