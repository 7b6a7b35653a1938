"""One object from files to a folder; many cases in a row."""

import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing
from pipeline_cases import (
    ShiftRegister,
    body,
    brief_report,  # noqa: F401 - a fixture
    preprocessing,
    small_pipeline,
    write_case,
)

import fusion_pipeline.pipeline.folder as folder_module
import fusion_pipeline.pipeline.inferer as inferer_module
from fusion_pipeline.data import (
    CaseFiles,
    InMemory,
    InputError,
    SeriesFiles,
    Source,
    as_meta_tensor,
    case_from_entry,
    case_from_paths,
    load_case,
    read_datalist,
    read_displacement,
    read_image,
    write_displacement,
)
from fusion_pipeline.geometry import WorldMap, rigid_matrix
from fusion_pipeline.pipeline import FusionInferer
from fusion_pipeline.pipeline.fingerprint import code_digest, transform_settings
from fusion_pipeline.pipeline.folder import deliver
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.synthesis import synthetic_patient

FILES = {
    "mr_registered.nii.gz",
    "mr_displacement.nii.gz",
    "mr_transform.h5",
    "mr_transform_inverse.h5",
    "ct_harmonized.nii.gz",
    "mr_harmonized.nii.gz",
    "ct_harmonization.json",
    "mr_harmonization.json",
    "fused.nii.gz",
    "weights.nii.gz",
    "report.json",
    "report.html",
}


@pytest.fixture(autouse=True)
def still_register(monkeypatch):
    monkeypatch.setattr(inferer_module, "Register", ShiftRegister)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("patient"), ("ct", "mr", "pet"))


@pytest.fixture
def files(paths):
    return case_from_paths("p1", {key: paths[key] for key in ("ct", "mr")})


@pytest.fixture
def pipeline():
    return small_pipeline()


class TestCall:
    def test_all_results_lie_on_the_reference_grid(self, pipeline, files):
        result = pipeline(files)
        fixed = nib.load(files.images["ct"].path)
        images = [*result.registered.values(), *result.harmonized.values()]
        for image in (*images, result.fused):
            assert isinstance(image, MetaTensor)
            assert image.shape == (1, *fixed.shape)
            np.testing.assert_array_equal(image.affine, fixed.affine)
        assert result.weights.shape == (2, *fixed.shape)
        assert result.displacement["mr"].shape == (3, *fixed.shape)

    def test_the_reference_comes_first_then_as_listed(self, pipeline, paths):
        named = {"pet": paths["pet"], "mr": paths["mr"], "ct": paths["ct"]}
        result = pipeline(case_from_paths("p", named, reference="mr"))
        assert result.modalities == ("mr", "pet", "ct")
        assert list(result.registrations) == ["pet", "ct"]

    def test_the_wish_for_each_image_reaches_the_stage(self, paths, tmp_path):
        pipeline = small_pipeline()
        ShiftRegister.calls.clear()
        mask = tmp_path / "mask.nii.gz"
        mr = nib.load(paths["mr"])
        nib.save(nib.Nifti1Image(np.ones(mr.shape, np.uint8), mr.affine), mask)
        pipeline(case_from_paths("p", paths, None, {"pet": "none"}, {"mr": mask}))
        calls = {key: rest for key, *rest in ShiftRegister.calls}
        assert calls["mr"][0] == "deformable"
        assert calls["pet"][0] == "none"
        assert calls["mr"][2].array.all()
        assert calls["pet"][1] is None

    def test_what_the_moving_image_has_not_seen_gets_no_weight(self, pipeline, files):
        result = pipeline(files)
        seen = result.registered["mr"].as_tensor()[0] != 0
        assert not seen.all()
        assert not result.weights.as_tensor()[1][~seen].any()

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
        results = [
            pipeline(case) for case in (files, load_case(files), pipeline.load(files), entry)
        ]
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
        with pytest.raises(
            InputError, match=r"case 'p1', ct \(.*\): expected 2D images for this bundle"
        ):
            small_pipeline(2)(files)

    def test_an_impossible_device_is_refused(self):
        with pytest.raises(InputError, match="expected a device that torch can use here"):
            FusionInferer(device="cuda:77")


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
        fixed = nib.load(files.images["ct"].path)
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
        fixed = result.fusion.fused
        lattice = fixed.affine @ np.diag([*[n / 9 for n in fixed.shape], 1.0])
        found = Registration(WorldMap(np.eye(4), wave, lattice), Evidence("deformable"))
        folder_module.write_files(
            dataclasses.replace(result, registrations={"mr": found}), tmp_path
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
        folders = [small_pipeline().run(files, tmp_path / name) for name in ("a", "b")]
        for name in FILES - {"report.json", "report.html"}:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name

    def test_nothing_is_left_when_it_fails(self, pipeline, files, tmp_path, monkeypatch):
        def fail(result, folder, files):
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
            small_pipeline().run(files, tmp_path / "out")


def test_what_a_killed_run_left_is_removed(tmp_path):
    told = "import os; print(os.getpid())"
    gone = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())
    dead = tmp_path / f".p1.{host}.{gone.stdout.strip()}.0f.partial"
    alive, other = tmp_path / f".p1.{host}.{os.getppid()}.0f.partial", tmp_path / ".p2.1.partial"
    elsewhere = tmp_path / f".p1.not-{host}.{gone.stdout.strip()}.0f.partial"
    for folder in (dead, alive, other, elsewhere):
        folder.mkdir()
    with deliver(tmp_path / "p1") as aside:
        (aside / "report.json").write_text("{}")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()
    assert elsewhere.exists()  # its process may run on that machine


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
            copies[key].write_bytes(Path(path.path).read_bytes())
        moved = case_from_paths("p1", copies)
        assert pipeline.fingerprint(files) == pipeline.fingerprint(moved)

    def test_content_wishes_settings_and_weights_count(self, pipeline, files, paths):
        two = {key: paths[key] for key in ("ct", "mr")}
        others = [
            pipeline.fingerprint(case_from_paths("p2", two)),
            pipeline.fingerprint(case_from_paths("p1", paths)),
            pipeline.fingerprint(case_from_paths("p1", two, None, {"mr": "rigid"})),
            pipeline.fingerprint(case_from_paths("p1", two, masks={"mr": paths["mr"]})),
            small_pipeline(refine_steps=1).fingerprint(files),
            small_pipeline(seed=1).fingerprint(files),
            small_pipeline(window_hu=(-100.0, 300.0)).fingerprint(files),
        ]
        assert len({pipeline.fingerprint(files), *others}) == len(others) + 1

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (lambda x: x, lambda x: x * 2),
            ({"a": 1}, {"a": 2}),
            (np.zeros(2), np.ones(2)),
            (Spacing(pixdim=2.0), Spacing(pixdim=4.0)),
        ],
        ids=["function", "mapping", "array", "transform"],
    )
    def test_any_setting_of_preprocessing_counts(self, one, other):
        assert transform_settings(one) == transform_settings(one)
        assert transform_settings(one) != transform_settings(other)

    def test_roles_count(self, pipeline, files, paths):
        entries = [
            CaseFiles(
                "p", "ct", {**files.series, "mr": dataclasses.replace(mr, **{role: mr.image})}
            )
            for mr in [files.series["mr"]]
            for role in ("mask", "label")
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
        case = CaseFiles("p", "ct", {"ct": SeriesFiles(Source(str(tmp_path / header)))})
        before = pipeline.fingerprint(case)
        other.write_bytes(b"1")
        assert pipeline.fingerprint(case) == before
        voxels.write_bytes(b"2")
        assert pipeline.fingerprint(case) != before

    def test_the_code_counts(self, pipeline, files, monkeypatch):
        before = pipeline.fingerprint(files)
        monkeypatch.setattr("fusion_pipeline.pipeline.fingerprint.code_digest", lambda: "other")
        assert pipeline.fingerprint(files) != before

    def test_parts_of_the_code_count_by_themselves(self):
        parts = [code_digest(name) for name in ("data/", "geometry/", "training/data.py")]
        both = code_digest("data/", "geometry/")
        assert len({*parts, both, code_digest(), code_digest("no such part")}) == 6

    def test_folders_count_by_their_files(self, pipeline, tmp_path):
        series = tmp_path / "series"
        series.mkdir()
        (series / "1.dcm").write_text("a")
        case = CaseFiles("p", "ct", {"ct": SeriesFiles(Source(str(series), "1.2.3"))})
        before = pipeline.fingerprint(case)
        (series / "2.dcm").write_text("b")
        assert pipeline.fingerprint(case) != before

    def test_a_case_in_memory_has_one(self, pipeline, files):
        case = load_case(files)
        assert pipeline.fingerprint(case) == pipeline.fingerprint(load_case(files))
        mr = case.series["mr"]
        brighter = dataclasses.replace(mr, image=mr.image.with_array(mr.image.array + 1))
        changed = dataclasses.replace(case, series={**case.series, "mr": brighter})
        assert pipeline.fingerprint(changed) != pipeline.fingerprint(case)


@pytest.mark.usefixtures("brief_report")
def test_pictures_give_pictures(tmp_path):
    (case,) = read_datalist(synthetic_patient(3, spatial_dims=2).save(tmp_path / "data"))
    folder = small_pipeline(2).run(case, tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("mr_registered.png", "mr_displacement.nii.gz", "mr_harmonized.png"),
        *("pet_registered.png", "pet_displacement.nii.gz", "pet_harmonized.png"),
        *(f"{key}_harmonization.json" for key in ("ct", "mr", "pet")),
        *("ct_harmonized.png", "fused.png", "weights.nii.gz", "report.json", "report.html"),
        *(f"{key}_transform{way}.h5" for key in ("mr", "pet") for way in ("", "_inverse")),
    }
    with PIL.Image.open(folder / "fused.png") as fused:
        assert fused.getextrema()[1] > 50  # 0..255
    assert json.loads((folder / "report.json").read_text())["evaluation"].keys() == {"mr", "pet"}


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
        FusionInferer(**setting)


def test_settings_may_be_numbers_of_numpy():
    made = FusionInferer(refine_steps=np.int64(3), working_spacing=np.float32(2.0))
    assert made.settings["refine_steps"] == 3


def test_an_entry_without_an_id_is_called_case():
    files = case_from_entry({"ct": "a.nii", "mr_t1": "b.nii", "mr_t1_transform": "rigid"})
    assert (files.id, files.reference) == ("case", "ct")
    assert files.series["mr_t1"].transform == "rigid"
    with pytest.raises(InputError, match="two or more images"):
        case_from_entry({"ct": "a.nii"})


def itk_image(array, affine):
    """The same image in SimpleITK, LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.fixture
def images():
    """Axes that a NIfTI, ITK and a matrix hold exactly; stored along other axes than RAS."""
    rng = np.random.default_rng(8)
    made = {}
    for key, spacing, order in (
        ("ct", (1.5, 2.0, 3.0), (1, 0, 2)),
        ("mr", (2, 2, 2.5), (2, 0, 1)),
    ):
        affine = np.zeros((4, 4))
        for column, row in enumerate(order):
            affine[row, column] = spacing[column] * (-1 if column == 1 else 1)
        affine[:, 3] = (0, 0, 0, 1)
        shape = (26, 28, 18) if key == "ct" else (22, 20, 26)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        world = index @ affine[:3, :3].T + affine[:3, 3]
        ball = np.linalg.norm(world / [16, 14, 18], axis=-1) < 1
        noise = 0.03 * rng.standard_normal(shape)
        array = (ball + noise) * 1000 - (1000 if key == "ct" else 0)
        made[key] = (array.astype(np.float32), affine)
    return made


class TestSources:
    """Whatever an image comes as, the same comes out, bit for bit."""

    def sources(self, images, kind, folder):
        made = {}
        for key, (array, affine) in images.items():
            image = nib.Nifti1Image(array, affine)
            if kind == "path":
                made[key] = folder / f"{key}.nii.gz"
                nib.save(image, made[key])
            elif kind == "nibabel":
                made[key] = image
            elif kind == "SimpleITK":
                made[key] = itk_image(array, affine)
            elif kind == "MetaTensor":
                made[key] = MetaTensor(torch.from_numpy(array)[None], affine=affine)
            else:
                made[key] = (array, affine)
        return made

    def test_path_array_nibabel_simpleitk_and_metatensor_agree(self, images, pipeline, tmp_path):
        kinds = ("path", "array", "nibabel", "SimpleITK", "MetaTensor")
        first, *others = (pipeline(self.sources(images, kind, tmp_path)) for kind in kinds)
        for name, other in zip(kinds[1:], others, strict=True):
            assert torch.equal(first.fused.as_tensor(), other.fused.as_tensor()), name
            assert torch.equal(first.weights.as_tensor(), other.weights.as_tensor()), name
            np.testing.assert_array_equal(first.fused.affine, other.fused.affine)
            registered = (one.registered["mr"].as_tensor() for one in (first, other))
            assert torch.equal(*registered), name

    def test_an_oblique_image_comes_out_where_simpleitk_puts_it(self, pipeline):
        """The stand-in moves by 2 mm along x; SimpleITK resamples by the same translation."""
        turn = rigid_matrix((20.0, -12.0, 33.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        grids = {
            "ct": ((26, 30, 18), turn @ np.diag([-1.5, 1.4, 2.5, 1.0])),
            "mr": ((24, 20, 26), np.diag([2.0, -2.0, 2.5, 1.0])),
        }
        given, itk = {}, {}
        for key, (shape, affine) in grids.items():
            affine[:3, 3] = [0, 2, -2] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
            array = body(shape, affine, np.random.default_rng(2)) * 1000 - 1000 * (key == "ct")
            array = array.astype(np.float32)
            given[key] = MetaTensor(torch.from_numpy(array)[None], affine=affine)
            itk[key] = itk_image(array, affine)
        found = pipeline(given).registered["mr"]
        shift = sitk.TranslationTransform(3, [-2.0, 0.0, 0.0])  # LPS
        expected = sitk.Resample(itk["mr"], itk["ct"], shift, sitk.sitkLinear, 0.0)
        inside = sitk.Resample(itk["mr"] * 0 + 1, itk["ct"], shift, sitk.sitkLinear, 0.0)
        inside, expected = (sitk.GetArrayFromImage(image).T for image in (inside, expected))
        difference = np.abs(found[0].numpy() - expected)[inside > 0.999]
        assert difference.size > 5000
        assert difference.max() < 1e-3 * np.abs(expected).max()
        np.testing.assert_array_equal(found.affine, grids["ct"][1])

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (np.zeros((3, 4, 5)), r"ndarray without an affine; give \(array, affine\)"),
            ((np.zeros((3, 4, 5)), np.eye(3)), r"got shapes \(3, 4, 5\) and \(3, 3\)"),
            (5, "a path for mr, got 5"),
            (
                (np.zeros((3, 4, 5)), "A"),
                "of numbers, got ndarray and str",
            ),
            ([Path("a"), Path("b")], "a path for mr, got"),
            (
                MetaTensor(torch.zeros(2, 4, 5, 6)),
                "one channel on 3 spatial axes",
            ),
            (MetaTensor(torch.zeros(3, 4, 5, 6)), r"expected one channel on 3 spatial axes"),
        ],
    )
    def test_what_is_no_image_is_refused(self, pipeline, images, wrong, message):
        with pytest.raises(InputError, match=message):
            pipeline({"ct": images["ct"], "mr": wrong})

    def test_a_case_that_is_none_is_refused(self, pipeline):
        with pytest.raises(InputError, match=r"expected a case, .* got str; name two or more"):
            pipeline("ct.nii.gz")

    def test_lps_is_turned_into_ras(self, images):
        array, affine = images["ct"]
        flipped = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        given = MetaTensor(torch.from_numpy(array)[None], affine=flipped, meta={"space": "LPS"})
        np.testing.assert_array_equal(as_meta_tensor(given).affine, affine)

    def test_nibabel_is_read_by_the_rules_of_files(self, tmp_path):
        """Units that we noted, lengths in metres, a trailing axis of one."""
        rng = np.random.default_rng(0)
        image = nib.Nifti1Image(
            rng.random((9, 10, 8, 1), np.float32), np.diag([1e-3, 2e-3, 2e-3, 1])
        )
        image.header.set_xyzt_units("meter")
        image.header["descrip"] = b"units=SUV"
        nib.save(image, tmp_path / "pet.nii.gz")
        by_path, told = read_image(str(tmp_path / "pet.nii.gz"), "pet")
        in_memory, said = read_image(InMemory(image), "pet")
        assert torch.equal(by_path.array, in_memory.array)
        np.testing.assert_array_equal(by_path.affine, in_memory.affine)
        assert by_path.units == in_memory.units == "SUV"
        assert len(told) == len(said) == 1

    @pytest.mark.parametrize("kind", ["meta", "triple", "itk", "dicom tag"])
    @pytest.mark.parametrize("units", ["SUV", "Bq/ml"])
    def test_units_of_an_image_in_memory(self, kind, units):
        array = np.random.default_rng(0).random((9, 10, 8), np.float32)
        affine = np.diag([4.0, 4.0, 5.0, 1.0])
        itk = itk_image(array, affine)
        if kind == "itk":
            itk.SetMetaData("units", units)
        if kind == "dicom tag":
            itk.SetMetaData("0054|1001", {"SUV": "GML ", "Bq/ml": "BQML"}[units])
        given = {
            "meta": MetaTensor(torch.from_numpy(array)[None], affine=affine, meta={"units": units}),
            "triple": (array, affine, {"units": units}),
        }.get(kind, itk)
        image, warnings = read_image(InMemory(given), "pet")
        assert (image.units, warnings) == (units, [])
        np.testing.assert_allclose(image.array[0], array)

    def test_missing_and_wrong_facts_of_an_image_in_memory_are_said(self):
        array = np.random.default_rng(0).random((9, 10, 8), np.float32)
        affine = np.diag([4.0, 4.0, 5.0, 1.0])
        for given in ((array, affine), itk_image(array, affine)):
            image, (warning,) = read_image(InMemory(given), "pet")
            assert image.units == "a.u."
            assert "(image in memory): PET units are missing (meta 'units')" in warning
        image, (warning,) = read_image(InMemory((array, affine, {"units": "kBq"})), "pet")
        assert image.units == "a.u."
        assert "expected units of HU, SUV, Bq/ml, counts, a.u., got kBq" in warning
        _, (warning,) = read_image(InMemory((array, affine, {"modality": "ct"})), "mr")
        assert "the meta says modality ct, the key says mr" in warning

    def test_units_in_memory_reach_the_case(self, images):
        array, affine = images["mr"]
        files = case_from_entry({"ct": images["ct"], "pet": (array, affine, {"units": "SUV"})})
        case = load_case(files)
        assert case.images["pet"].units == "SUV"
        assert not any("units" in text for text in case.warnings)

    def test_monais_2d_images_keep_their_plane(self):
        """MONAI gives them a 4 x 4 affine."""
        affine = np.diag([2.0, 3.0, 1.0, 1.0])
        for shape in ((1, 5, 6), (3, 5, 6)):
            found = as_meta_tensor(MetaTensor(torch.zeros(shape), affine=affine))
            assert found.shape == shape
            np.testing.assert_array_equal(found.affine, np.diag([2.0, 3.0, 1.0]))


class TestStages:
    """The stages alone give what the whole gives."""

    def test_register(self, pipeline, files):
        found = pipeline.register(files)
        assert list(found) == ["mr"]
        np.testing.assert_array_equal(found["mr"].map.points(np.zeros((1, 3))), [[2.0, 0.0, 0.0]])

    def test_harmonize_and_fuse(self, pipeline, files):
        whole = pipeline(files)
        ct = files.images["ct"].path
        harmonized = pipeline.harmonize({"ct": ct, "mr": whole.registered["mr"]})
        expected = whole.harmonized["ct"].as_tensor()
        assert torch.equal(harmonized["ct"].as_tensor(), expected)
        fused = pipeline.fuse({k: whole.harmonized[k] for k in ("ct", "mr")})
        assert fused.image.shape == whole.fused.shape
        assert fused.weights.shape == whole.weights.shape
        np.testing.assert_array_equal(fused.image.affine, whole.fused.affine)

    def test_what_is_not_harmonized_is_not_fused(self, pipeline, images):
        array, affine = images["ct"]
        with pytest.raises(InputError, match=r"ct: expected harmonized values in 0\.\.1, got -1"):
            pipeline.fuse({"ct": (array, affine), "mr": (array + 1000, affine)})

    def test_they_are_the_graph_that_is_trained(self, pipeline, images, monkeypatch):
        """On one grid, not moved: what training calls gives what inference gives."""
        array, affine = images["ct"]
        other = np.sqrt(np.abs(array + 1000)).astype(np.float32) + 3
        case = {"ct": (array, affine), "mr": (other, affine), "mr_transform": "none"}
        loaded = pipeline.load(case)
        result = pipeline.infer(loaded)
        normalize = pipeline.preprocessing.transforms[-1].transforms[0]
        scaled = [
            normalize.scaled(
                one.image.array,
                one.prepared.body,
                modality=one.image.modality,
                units=one.image.units,
            )[0]
            for one in loaded.series.values()
        ]
        network = pipeline.network
        monkeypatch.setattr(
            network.registration,
            "forward",
            lambda fixed, _: fixed.new_zeros(1, 3, *fixed.shape[2:]),
        )
        with torch.no_grad():
            trained = network.fuse_all(
                *(torch.cat(scaled)[None], ["ct", "mr"]),
                original=torch.cat([one.image.array for one in loaded.series.values()])[None],
                body=torch.cat([one.prepared.body for one in loaded.series.values()])[None].float(),
            )
        for key, expected in zip(("ct", "mr"), trained.harmonized[0], strict=True):
            found = result.harmonization.images[key].in_canonical_axes().array[0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        fused = result.fusion.fused.in_canonical_axes().array
        torch.testing.assert_close(fused, trained.fused[0], atol=1e-4, rtol=0)

    def test_another_grid_is_refused(self, pipeline, files):
        with pytest.raises(InputError, match=r"expected an image on the grid of ct .*register it"):
            pipeline.harmonize(files)


def test_a_result_is_saved_by_itself(pipeline, files, tmp_path):
    folder = pipeline(files).save(tmp_path / "mine")
    assert {file.name for file in folder.iterdir()} == FILES


def test_the_last_step_of_preprocessing_is_the_z_score():
    from monai.transforms import Compose

    from fusion_pipeline.pipeline.pipeline import split

    steps = preprocessing().transforms
    prepare, normalize = split(Compose(steps))
    assert len(prepare.transforms) == len(steps) - 1
    assert normalize.window_hu == (-300.0, 700.0)
    with pytest.raises(
        InputError, match=r"NormalizeModalityd .* as the last transform, got BodyMaskd"
    ):
        split(Compose(steps[:-1]))
