"""Names of images: what is read, and what is refused with what to do."""

import json

import pytest
from data_phantoms import save_series

from fusion_pipeline.data import InputError, case_from_entry, read_image
from fusion_pipeline.modalities import KEY_WORDS, MODALITIES, OTHER_KINDS, modality_of, other_kind


@pytest.mark.parametrize(
    ("key", "modality"), [("cbct", "ct"), ("cbct_day3", "ct"), ("mr_t1", "mr"), ("spect", "spect")]
)
def test_the_first_word_names_the_modality(key, modality):
    assert modality_of(key) == modality


@pytest.mark.parametrize("key", ["us", "ctx", "t1_mr", ""])
def test_another_word_is_no_modality(key):
    with pytest.raises(ValueError, match="expected a key of ct, cbct, mr, pet, spect"):
        modality_of(key)


def test_no_word_is_both_read_and_refused():
    assert set(KEY_WORDS.values()) == set(MODALITIES)
    assert not set(KEY_WORDS) & set(OTHER_KINDS)
    assert all(other_kind(key) is None for key in KEY_WORDS)


@pytest.mark.parametrize("key", ["us", "us_b", "xa", "rtdose", "us_mask"])
def test_an_entry_of_another_kind_is_refused_with_what_to_do(key):
    what, advice = OTHER_KINDS[key.partition("_")[0]]
    with pytest.raises(InputError) as refused:
        case_from_entry({"ct": "a.nii", "mr": "b.nii", key: "c.nii"})
    message = str(refused.value)
    assert f"({what}); {advice}" in message
    assert json.dumps(key).replace('"', "'") in message


def test_a_dicom_series_of_another_kind_is_refused_under_any_key(tmp_path):
    save_series(tmp_path, Modality="US")
    with pytest.raises(InputError, match=r"of modality CT, got US \(ultrasound\); no network"):
        read_image(str(tmp_path), "ct")
