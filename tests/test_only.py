"""One stage alone: what it reads, writes and reports, from Python and from the command line."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from pipeline_cases import ShiftRegister, brief_report, small_pipeline, write_case  # noqa: F401
from report_cases import result_3d

import fusion_pipeline.pipeline.inferer as inferer_module
from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError, NoOverlapError
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.pipeline import SavedRegistration, write_bids
from fusion_pipeline.report.cohort import CohortCase, render_cohort
from fusion_pipeline.report.html import render_html
from fusion_pipeline.report.json_report import case_report
from fusion_pipeline.report.viewer import viewer_of


@pytest.fixture(autouse=True)
def shifted(monkeypatch):
    """Registration is 2 mm to the right."""
    monkeypatch.setattr(inferer_module, "Register", ShiftRegister)


@pytest.fixture
def paths(tmp_path):
    return write_case(tmp_path / "patient", ("ct", "mr", "pet"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("brief_report")
class TestFiles:
    def test_register_writes_images_and_maps_and_nothing_else(self, paths, tmp_path):
        result = small_pipeline(only="register")(dict(paths))
        folder = result.save(tmp_path / "out" / "case")
        kinds = ("displacement.nii.gz", "registered.nii.gz", "transform.h5", "transform_inverse.h5")
        maps = [f"{key}_{kind}" for key in ("mr", "pet") for kind in kinds]
        assert names(folder) == [*maps, "report.html", "report.json"]
        whole = small_pipeline()(dict(paths))
        for key, image in result.registered.items():
            np.testing.assert_array_equal(image, whole.registered[key])
        with pytest.raises(AttributeError, match="only register ran"):
            _ = result.fused

    def test_harmonize_leaves_each_image_on_its_own_voxels(self, paths, tmp_path):
        result = small_pipeline(only="harmonize")(dict(paths))
        folder = result.save(tmp_path / "out" / "case")
        kinds = ("harmonization.json", "harmonized.nii.gz")
        images = [f"{key}_{kind}" for key in ("ct", "mr", "pet") for kind in kinds]
        assert names(folder) == [*images, "report.html", "report.json"]
        for key, path in paths.items():
            given, made = nib.load(path), nib.load(folder / f"{key}_harmonized.nii.gz")
            np.testing.assert_allclose(made.affine, given.affine, atol=1e-5)
            values = made.get_fdata()
            assert values.shape == given.shape
            assert 0 <= values.min() < 0.1 < values.max() <= 1
            # the way from its own axes and back is right: bright stays bright
            body = given.get_fdata() > np.median(given.get_fdata()) + 200 * (key == "ct")
            assert np.corrcoef(given.get_fdata()[body], values[body])[0, 1] > 0.5

    def test_images_that_share_no_space_are_harmonized_and_no_more(self, paths, tmp_path):
        away = nib.load(paths["mr"])
        affine = away.affine.copy()
        affine[0, 3] += 5000
        nib.save(nib.Nifti1Image(away.get_fdata(), affine), tmp_path / "away.nii.gz")
        case = {"ct": paths["ct"], "mr": tmp_path / "away.nii.gz"}
        result = small_pipeline(only="harmonize")(case)
        assert "mr_harmonized.nii.gz" in names(result.save(tmp_path / "out" / "case"))
        with pytest.raises(NoOverlapError):
            small_pipeline(only="register")(case)

    def test_images_of_one_grid_are_compared(self, paths, tmp_path):
        first = small_pipeline(only="register")(dict(paths)).save(tmp_path / "first")
        aligned = {"ct": paths["ct"], "mr": first / "mr_registered.nii.gz"}
        scores = small_pipeline(only="harmonize")(aligned).harmonization.scores
        assert "agreement_after" in scores["mr"]
        assert "agreement_after" not in small_pipeline(only="harmonize")(
            {"ct": paths["ct"], "mr": paths["mr"]}
        ).harmonization.scores["mr"]  # fmt: skip

    def test_one_image_is_enough_to_be_harmonized_and_for_nothing_else(self, paths, tmp_path):
        result = small_pipeline(only="harmonize").run({"id": "a", "mr": paths["mr"]}, tmp_path)
        assert names(result) == [
            "mr_harmonization.json",
            "mr_harmonized.nii.gz",
            "report.html",
            "report.json",
        ]
        with pytest.raises(InputError, match="two or more images"):
            small_pipeline(only="register")({"mr": paths["mr"]})

    def test_register_then_fuse_is_the_whole(self, paths, tmp_path):
        whole = small_pipeline()(dict(paths))
        first = small_pipeline(only="register")(dict(paths)).save(tmp_path / "first")
        aligned = {key: first / f"{key}_registered.nii.gz" for key in ("mr", "pet")}
        result = small_pipeline(only="fuse")({"ct": paths["ct"], **aligned})
        folder = result.save(tmp_path / "case")
        assert names(folder) == [
            "fused.nii.gz",
            "fused_colour.nii.gz",
            "report.html",
            "report.json",
            "weights.nii.gz",
        ]
        np.testing.assert_allclose(result.fused.affine, whole.fused.affine)
        # the rim of a field of view is not the same after a file
        apart = np.abs(np.asarray(result.fused) - np.asarray(whole.fused))
        assert np.median(apart) < 1e-3

    def test_images_on_other_grids_are_fused_where_their_headers_place_them(self, paths):
        result = small_pipeline(only="fuse")(dict(paths))
        assert result.fused.shape[1:] == nib.load(paths["ct"]).shape
        assert result.registered == {}
        assert result.displacement == {}

    def test_another_stage_is_another_result_for_resume(self, paths):
        case = dict(paths)
        digests = set()
        for only in (None, "register", "fuse"):
            pipeline = small_pipeline(only=only)
            digests.add(pipeline.fingerprint(pipeline.load(case)))
        assert len(digests) == 3

    def test_a_folder_without_transforms_says_so(self, paths, tmp_path):
        small_pipeline(only="harmonize")(dict(paths)).save(tmp_path / "case")
        with pytest.raises(InputError, match=r"without a register stage \(--only\)"):
            SavedRegistration.load(tmp_path / "case", "mr")

    def test_bids_names_what_is_there(self, paths, tmp_path):
        small_pipeline(only="harmonize").run({"id": "a", **paths}, tmp_path)
        report = json.loads((tmp_path / "a" / "report.json").read_text())
        report |= {"reference": "ct", "only": "harmonize"}
        (tmp_path / "a" / "report.json").write_text(json.dumps(report))
        root = write_bids(tmp_path / "a", tmp_path / "bids")
        assert "sub-a_desc-harmonized_mr.nii.gz" in names(root / "anat")
        assert not (root / "fused").exists()


def test_another_word_is_refused():
    with pytest.raises(InputError, match="only: expected register, harmonize, fuse, got 'all'"):
        small_pipeline(only="all")


def only(stage):
    """The phantom's result as if one stage had run."""
    result = replace(result_3d(), only=stage)
    if stage != "register":
        result = replace(result, registrations={})
    if stage != "harmonize":
        result = replace(result, harmonization=Harmonization({}, {}))
    if stage != "fuse":
        result = replace(result, fusion=None)
    return replace(result, registered_images={}) if stage == "harmonize" else result


class TestReport:
    @pytest.mark.parametrize(
        ("stage", "there", "absent"),
        [
            ("register", ["<p>Registration</p>", "Alignment: MR T1"], ["harmonized", "Weight of"]),
            ("harmonize", ["nothing was registered", "MR T1, harmonized"], ["registered</th>"]),
            ("fuse", ["taken as aligned", "Weight of CT"], ["Alignment:", ", harmonized"]),
        ],
    )
    def test_the_page_shows_what_ran(self, stage, there, absent):
        result = only(stage)
        report = case_report(result, {})
        assert report["only"] == stage
        page = render_html(result, report)
        body = page[page.index("<body>") : page.index('<details class="glossary">')]
        body = body[: body.index('<section id="viewer">')] + body[body.index("At a glance") :]
        for text in there:
            assert text in body
        for text in absent:
            assert text not in body

    def test_the_viewer_has_no_moment_before_where_nothing_moved(self):
        roles = [v["role"] for v in viewer_of(only("fuse"), 300_000).facts["volumes"]]
        assert "before" not in roles
        assert roles.count("after") == 2
        titles = [v["title"] for v in viewer_of(only("harmonize"), 300_000).facts["volumes"]]
        assert "MR T1, harmonized" in titles

    def test_a_cohort_page_needs_no_registrations(self):
        cases = [CohortCase(name, "ok", "", {"modalities": "ct"}) for name in "ab"]
        assert "2 cases" in render_cohort(cases)


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--transform", "rigid"], "expected no --transform with --only fuse"),
            (["--initial-transform", "mr=a.tfm"], "expected no --initial-transform with --only"),
            (["--mask-mr", "m.nii.gz"], "expected no --mask with --only fuse"),
        ],
    )
    def test_options_of_a_stage_that_does_not_run_are_refused(self, options, message, capsys):
        arguments = ["--ct", "a.nii", "--mr", "b.nii", "--output", "o", "--only", "fuse"]
        assert main(["run", *arguments, *options]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["mr=a.tfm", "mr=b.tfm"], "--initial-transform mr is given twice"),
            (["a.tfm"], "expected KEY=PATH"),
            (["pet=a.tfm"], "expected a initial_transform of an image of the case"),
            (["mr=none.tfm"], "no such file"),
        ],
    )
    def test_initial_transforms_are_checked(self, options, message, capsys, paths, tmp_path):
        given = [word for one in options for word in ("--initial-transform", one)]
        images = ["--ct", str(paths["ct"]), "--mr", str(paths["mr"])]
        assert main(["run", "--quiet", *images, *given, "--output", str(tmp_path / "o")]) == 2
        assert message in capsys.readouterr().err
