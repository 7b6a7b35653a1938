"""Datalists of the Decathlon become cases, or are refused with what to do."""

import json

import pytest

from fusion_pipeline.data import InputError, read_datalist


def written(folder, entry, modality):
    content = {"name": "x", "tensorImageSize": "3D", "modality": modality, "testing": [entry]}
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def test_files_of_a_list_get_the_keys_of_their_modalities(tmp_path):
    entry = {"image": ["./a/p01.nii.gz", "./b/p01.nii.gz"], "label": "./l/p01.nii.gz"}
    (case,) = read_datalist(written(tmp_path, entry, {"0": "CT", "1": "T1w (gd)"}))
    assert (case.id, case.reference, list(case.images)) == ("p01", "ct", ["ct", "mr_t1"])
    assert str(case.series["ct"].label) == str(tmp_path / "l/p01.nii.gz")
    assert case.series["mr_t1"].label is None
    assert str(case.images["mr_t1"]) == str(tmp_path / "b/p01.nii.gz")


def test_keys_of_ours_stand_beside_them(tmp_path):
    more = {"id": "x", "patient": "p", "pet_transform": "none", "reference": "pet"}
    entry = {"image": ["a.nii", "b.nii"], **more}
    with pytest.raises(InputError, match="a transform of a moving image"):
        read_datalist(written(tmp_path, entry, {"0": "MRI", "1": "PET"}))
    entry["reference"] = "mr"
    (case,) = read_datalist(written(tmp_path, entry, {"0": "MRI", "1": "PET"}))
    assert (case.id, case.patient, case.series["pet"].transform) == ("x", "p", "none")


@pytest.mark.parametrize(
    ("image", "modality", "message"),
    [
        (
            "a.nii.gz",
            {"0": "FLAIR"},
            "list of two or more files in \"image\", got 'a.nii.gz'; split",
        ),
        (["a.nii", "b.nii"], {"0": "CT"}, "different modalities of ct, .*got {'0': 'CT'}; write"),
        (["a.nii", "b.nii"], {"0": "CT", "1": "CT"}, "different modalities"),
        (["a.nii", "b.nii"], None, "different modalities .* got None"),
    ],
)
def test_what_says_no_modality_is_refused(tmp_path, image, modality, message):
    with pytest.raises(InputError, match=message):
        read_datalist(written(tmp_path, {"image": image}, modality))
