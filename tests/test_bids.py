"""Results laid out as a BIDS derivative: names, contents, what is refused."""

import json
import re

import pytest

from fusion_pipeline.data import InputError
from fusion_pipeline.pipeline import bids_label, check_bids_labels, write_bids

# entities in BIDS' order, then a suffix: https://bids-specification.readthedocs.io, appendix
NAME = re.compile(
    r"sub-[A-Za-z0-9]+(_acq-[A-Za-z0-9]+)?(_space-[A-Za-z0-9]+)?"
    r"(_from-[A-Za-z0-9]+_to-[A-Za-z0-9]+_mode-image)?(_desc-[A-Za-z0-9]+)?"
    r"(_[A-Za-z0-9]+)?\.(nii\.gz|json|h5|html)"
)


@pytest.fixture
def folder(tmp_path):
    """What a run leaves, each file with its name in it; a tutorial lays out a real one."""
    keys, moving = ("ct", "mr_t1", "pet_late"), ("mr_t1", "pet_late")
    files = {
        "registered": {key: f"{key}_registered.nii.gz" for key in moving},
        "displacement": {key: f"{key}_displacement.nii.gz" for key in moving},
        "transform": {key: f"{key}_transform.h5" for key in moving},
        "transform_inverse": {key: f"{key}_transform_inverse.h5" for key in moving},
        "harmonized": {key: f"{key}_harmonized.nii.gz" for key in keys},
        "harmonization": {key: f"{key}_harmonization.json" for key in keys},
        "fused": "fused.nii.gz",
        "fused_colour": "fused_colour.nii.gz",
        "weights": "weights.nii.gz",
        "report": "report.html",
    }
    report = {"id": "case_01", "reference": "ct", "modalities": keys, "files": files}
    folder = tmp_path / "out" / "case_01"
    folder.mkdir(parents=True)
    for role in files.values():
        for name in [role] if isinstance(role, str) else role.values():
            (folder / name).write_text(name)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_every_result_has_a_name_of_bids(folder, tmp_path):
    root = tmp_path / "bids"
    assert write_bids(folder, root) == root / "sub-case01"
    files = sorted(p for p in root.rglob("*") if p.is_file())
    names = {path.relative_to(root).as_posix() for path in files}
    assert {
        "dataset_description.json",
        "sub-case01.html",
        "sub-case01/anat/sub-case01_space-ct_desc-registered_T1w.nii.gz",
        "sub-case01/pet/sub-case01_acq-late_space-ct_desc-registered_pet.nii.gz",
        "sub-case01/ct/sub-case01_space-ct_desc-harmonized_ct.nii.gz",
        "sub-case01/xfm/sub-case01_from-mrT1_to-ct_mode-image_xfm.h5",
        "sub-case01/xfm/sub-case01_from-ct_to-petLate_mode-image_xfm.h5",
        "sub-case01/fused/sub-case01_space-ct_fused.nii.gz",
        "sub-case01/fused/sub-case01_space-ct_desc-weights_probseg.nii.gz",
    } <= names
    for path in files:
        assert path.name == "dataset_description.json" or NAME.fullmatch(path.name), path
    about = json.loads((root / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    weights = root / "sub-case01/fused/sub-case01_space-ct_desc-weights_probseg.json"
    assert json.loads(weights.read_text())["LabelMap"] == ["ct", "mr_t1", "pet_late"]


def test_contents_are_those_of_the_case(folder, tmp_path):
    root = write_bids(folder, tmp_path / "bids")
    written = {path.read_bytes() for path in (tmp_path / "bids").rglob("*") if path.is_file()}
    assert {path.read_bytes() for path in folder.iterdir()} <= written
    # ITK's transform that resamples the MR onto the CT is BIDS' from-mr_to-ct_mode-image
    there = root / "xfm" / "sub-case01_from-mrT1_to-ct_mode-image_xfm.h5"
    assert there.read_text() == "mr_t1_transform.h5"
    back = root / "xfm" / "sub-case01_from-ct_to-mrT1_mode-image_xfm.h5"
    assert back.read_text() == "mr_t1_transform_inverse.h5"


def test_a_cone_beam_ct_is_an_acquisition_of_a_ct(folder, tmp_path):
    report = json.loads((folder / "report.json").read_text())
    report["files"]["registered"]["cbct_day3"] = "fused.nii.gz"
    (folder / "report.json").write_text(json.dumps(report))
    root = write_bids(folder, tmp_path / "bids")
    assert (root / "ct/sub-case01_acq-cbctDay3_space-ct_desc-registered_ct.nii.gz").is_file()


def test_a_second_time_replaces_and_leaves_others_alone(folder, tmp_path):
    root = tmp_path / "bids"
    write_bids(folder, root)
    (root / "sub-case01" / "anat" / "old.nii.gz").write_text("")
    (root / "sub-other").mkdir()
    write_bids(folder, root)
    assert not (root / "sub-case01" / "anat" / "old.nii.gz").exists()
    assert (root / "sub-other").is_dir()


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a_1", "a-1"], "'a_1' and 'a-1': expected different names"), (["_"], "letters or digits")],
)
def test_ids_that_bids_cannot_tell_apart_are_refused(ids, message):
    with pytest.raises(InputError, match=message):
        check_bids_labels(ids)


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a case with report"):
        write_bids(tmp_path, tmp_path / "bids")


def test_labels_have_letters_and_digits():
    assert [bids_label(text) for text in ("mr_t1", "a-B.c", "x9")] == ["mrT1", "aBC", "x9"]
