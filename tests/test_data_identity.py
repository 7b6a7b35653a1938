"""Whom an image shows is read, carried along, compared, and told to nobody."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_phantoms import save_nifti, save_series

from fusion_pipeline.data import Identity, Image, prepare_image, read_image, reading
from fusion_pipeline.data.sources import InMemory

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
