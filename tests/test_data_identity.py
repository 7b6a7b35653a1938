"""Whom an image shows is read, carried along, compared, and told to nobody."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_phantoms import case_of, save_nifti, save_series

from fusion_pipeline import FusionPipeline
from fusion_pipeline.data import (
    Identity,
    Image,
    InputError,
    case_from_entry,
    check_one_patient,
    load_case,
    prepare_image,
    read_image,
    reading,
)
from fusion_pipeline.data.sources import InMemory
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.register import Evidence, Registration

WHO = {
    "PatientID": "P7",
    "PatientName": "Doe^Jane",
    "PatientSex": "F",
    "PatientBirthDate": "19660101",
    "StudyInstanceUID": "1.2.40",
    "FrameOfReferenceUID": "1.2.50",
}
IDENTITY = Identity("P7", "Doe^Jane", "F", "19660101", "1.2.40", "1.2.50")


def test_a_dicom_series_says_whom_it_shows_and_in_which_space(tmp_path):
    image, _ = read_image(save_series(tmp_path / "ct", **WHO), "ct")
    assert image.identity == IDENTITY
    assert image.frame_of_reference == "1.2.50"


def test_formats_that_name_nobody_have_no_identity(tmp_path):
    image, _ = read_image(save_nifti(tmp_path / "mr.nii"), "mr")
    assert image.identity is None
    assert image.frame_of_reference == ""


def test_simpleitk_metadata_say_it_too():
    given = sitk.GetImageFromArray(np.arange(504.0).reshape(7, 8, 9))
    for tag, text in (("0010|0020", "P7 "), ("0020|0052", "1.2.50")):
        given.SetMetaData(tag, text)
    image, _ = read_image(InMemory(given), "mr")
    assert image.identity == Identity(patient_id="P7", frame_of_reference="1.2.50")


def test_preparing_an_image_keeps_whom_it_shows(oblique_affine):
    values = torch.arange(504.0).reshape(1, 7, 8, 9)
    image = Image(values, oblique_affine, "mr", identity=IDENTITY)
    assert prepare_image(image, "mr", reading()).image.identity == IDENTITY


@pytest.mark.parametrize("text", ["P7", "Doe", "19660101", "1.2.40"])
def test_nothing_of_the_patient_is_shown(tmp_path, text):
    image, _ = read_image(save_series(tmp_path / "ct", **WHO), "ct")
    meta = image.as_meta_tensor().meta
    assert meta["frame_of_reference"] == "1.2.50"
    assert text not in repr(image.identity)
    assert text not in json.dumps({k: str(v) for k, v in meta.items()})


# --- one patient in a case --------------------------------------------------------------------


def case_with(first, second, *, transform="rigid"):
    """A CT and an MR whose headers say these things."""
    affine, values = np.diag([1.0, 2.0, 3.0, 1.0]), torch.arange(504.0).reshape(1, 7, 8, 9)
    images = {
        key: Image(values, affine, key, path=f"{key}/", identity=identity)
        for key, identity in (("ct", first), ("mr", second))
    }
    return case_of("p", "ct", images, {"mr": transform})


def changed(**facts):
    """The same patient but for some facts."""
    return replace(IDENTITY, **facts)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (Identity("P1"), Identity("P2"), "PatientID"),
        (Identity("P1", "Doe^Jane"), Identity("P2", "Doe^Jane"), "PatientID"),
        (Identity("P1", "Doe^Jane"), Identity("P2", "Roe^Jane"), "PatientID and name"),
        (Identity("", "Doe^Jane"), Identity("", "Doe^John"), "name"),
        (IDENTITY, changed(patient_birth_date="19700102"), "birth date"),
        (IDENTITY, changed(patient_sex="M"), "sex"),
        (IDENTITY, Identity("Q", "Doe^Jane", "M", "19660101"), "PatientID and sex"),
        (Identity("P1", study_uid="1.2"), Identity("P2", study_uid="1.2"), "PatientID"),
    ],
)
def test_different_people_are_refused_without_naming_them(first, second, named):
    case = case_with(first, second)
    with pytest.raises(InputError) as caught:
        check_one_patient(case)
    text = str(caught.value)
    assert text == (
        "case 'p', mr (mr/): expected an image of the patient of ct, got another "
        f"{named} in the DICOM header; check the files; images of different people need "
        "--different-people (same_person=False)"
    )
    assert not any(word in text for word in ("P1", "P2", "Doe", "Jane", "1966"))
    assert check_one_patient(case, same_person=False) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (IDENTITY, IDENTITY),
        (IDENTITY, changed(study_uid="9.9", frame_of_reference="9.8")),  # another day's MR
        (IDENTITY, None),
        (IDENTITY, Identity(frame_of_reference="9.8")),
        (IDENTITY, Identity("p7 ", "DOE^JANE^^DR", "F", "1966.01.01")),
        (IDENTITY, Identity("ANONYMOUS", "Anonymized", "O", "19000101")),
        (Identity("ANON", "none"), Identity("0000", "Doe^Jane")),
        (Identity("P7", "Müller^Eva"), Identity("P7", "MULLER^EVA MARIA")),
    ],
)
def test_one_patient_is_silent(first, second):
    assert check_one_patient(case_with(first, second)) == []


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (changed(patient_name="Roe^Jane"), "another name, but the same PatientID"),  # married
        (changed(patient_id="Q9"), "another PatientID, but the same name and birth date"),
    ],
)
def test_what_one_patient_explains_is_told(second, said):
    (note,) = check_one_patient(case_with(IDENTITY, second))
    assert said in note
    assert "Doe" not in note


def test_another_frame_of_reference_needs_a_registration():
    other = changed(frame_of_reference="9.8")
    message = "the frame of reference of ct for --transform none, got another one"
    with pytest.raises(InputError, match=message):
        check_one_patient(case_with(IDENTITY, other, transform="none"))
    assert check_one_patient(case_with(IDENTITY, other, transform="rigid")) == []
    assert check_one_patient(case_with(IDENTITY, IDENTITY, transform="none")) == []
    assert check_one_patient(case_with(IDENTITY, None, transform="none")) == []


def test_the_pipeline_asks(tmp_path):
    save_series(tmp_path / "ct", **WHO)
    save_series(tmp_path / "mr", **(WHO | {"PatientID": "P8", "PatientName": "Roe"}))
    case = {"id": "p", "ct": str(tmp_path / "ct"), "mr": str(tmp_path / "mr")}
    pipeline = FusionPipeline.from_bundle(refine_steps=0)
    with pytest.raises(InputError, match="expected an image of the patient of ct"):
        pipeline.load(case)
    loaded = load_case(case_from_entry(case))
    with pytest.raises(InputError, match="expected an image of the patient of ct"):
        pipeline.infer(loaded)
    different = FusionPipeline.from_bundle(refine_steps=0, same_person=False)
    assert different.load(case).images["mr"].identity.patient_name == "Roe"


def test_a_registered_image_lies_in_the_frame_of_the_reference():
    case = case_with(IDENTITY, changed(patient_sex="", frame_of_reference="9.8"))
    still = Registration(WorldMap.identity(3), Evidence("none"))
    moved = still.warp(case.images["mr"], case.fixed)
    assert moved.identity == changed(patient_sex="")
