import json
from pathlib import Path

import pytest

from fusion_pipeline.data import (
    InputError,
    SeriesFiles,
    Source,
    case_from_paths,
    default_reference,
    read_datalist,
)

GOOD = {"id": "case01", "ct": "a/ct.nii.gz", "mr": "a/mr_dicom/"}


def write(tmp_path, content):
    path = tmp_path / "cases.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read_one(tmp_path, entry):
    return read_datalist(write(tmp_path, {"testing": [entry]}))[0]


def test_a_case_is_resolved_against_the_datalists_folder(tmp_path):
    case = read_one(
        tmp_path,
        {
            "id": "case01",
            "reference": "mr_t1",
            "ct": "a/ct.nii.gz",
            "pet": "pet_dir::1.2.3",
            "mr_t1": "/abs/mr.nrrd",
            "pet_transform": "none",
            "pet_mask": "a/mask.nii.gz",
            "mr_t1_label": "labels.nii.gz",
            "ct_landmarks": "ct.csv",
            "ct_displacement": "field.nii.gz",
            "target": "benign",
        },
    )
    assert case.reference == "mr_t1"
    assert list(case.series.items()) == [
        (
            "mr_t1",
            SeriesFiles(Source("/abs/mr.nrrd"), label=Source(str(tmp_path / "labels.nii.gz"))),
        ),
        (
            "ct",
            SeriesFiles(
                Source(str(tmp_path / "a/ct.nii.gz")),
                landmarks=Source(str(tmp_path / "ct.csv")),
                displacement=Source(str(tmp_path / "field.nii.gz")),
            ),
        ),
        (
            "pet",
            SeriesFiles(
                Source(str(tmp_path / "pet_dir"), "1.2.3"),
                transform="none",
                mask=Source(str(tmp_path / "a/mask.nii.gz")),
            ),
        ),
    ]
    assert case.target == "benign"


@pytest.mark.parametrize(
    ("keys", "reference"),
    [
        (("pet", "mr_t2", "mr", "ct"), "ct"),
        (("pet", "mr_t2", "mr_t1"), "mr_t2"),
        (("spect", "pet"), "pet"),
        (("spect_a", "spect_b"), "spect_a"),
    ],
)
def test_default_reference(keys, reference):
    assert default_reference(keys) == reference
    case = case_from_paths("p", dict.fromkeys(keys, "x.nii.gz"))
    assert case.reference == reference
    assert next(iter(case.images)) == reference
    assert [k for k in keys if k != reference] == list(case.images)[1:]


def test_sections_and_order(tmp_path):
    path = write(
        tmp_path,
        {"description": "mine", "testing": [GOOD, {**GOOD, "id": "b"}], "training": [GOOD]},
    )
    assert [case.id for case in read_datalist(path)] == ["case01", "b"]
    assert len(read_datalist(path, "training")) == 1


def test_a_datalist_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"testing": [GOOD]}), encoding="utf-8-sig")
    assert read_datalist(str(tmp_path / "a.json"))[0].id == "case01"


def test_case_from_paths_keeps_paths_and_options():
    case = case_from_paths(
        "p7",
        {"ct": Path("ct.nii.gz"), "pet": "pet"},
        reference="pet",
        transforms={"ct": "rigid"},
        masks={"pet": "m.nii.gz"},
    )
    assert case.id == "p7"
    assert list(case.series.items()) == [
        ("pet", SeriesFiles(Source("pet"), mask=Source("m.nii.gz"))),
        ("ct", SeriesFiles(Source("ct.nii.gz"), transform="rigid")),
    ]


ENTRY = "datalist .*cases.json, case 'case01': expected "
REFUSED_ENTRIES = {
    "not an object": ("ct.nii.gz", "testing entry 1: expected an object, got str"),
    "no id": ({"ct": "a", "mr": "b"}, "testing entry 1: expected an id .*got none"),
    "number as id": ({**GOOD, "id": 7}, r"an id \(text\), got 7"),
    "empty id": ({**GOOD, "id": ""}, r"an id \(text\), got ''"),
    "one image": ({"id": "case01", "ct": "a"}, ENTRY + r"two or more images, got 1 \(ct\)"),
    "no image": ({"id": "case01"}, ENTRY + r"two or more images, got 0 \(none\)"),
    "unknown key": ({**GOOD, "xyz": "x"}, ENTRY + "keys of id, .*got 'xyz'"),
    "another kind": ({**GOOD, "us": "x"}, ENTRY + "images of CT, .*got 'us' .ultrasound.; no"),
    "misspelt extra": ({**GOOD, "ct_lable/": "x"}, ENTRY + "keys of id, .*got 'ct_lable/'"),
    "upper case": ({**GOOD, "PET": "x"}, ENTRY + "keys of id, .*got 'PET'"),
    "extra alone": ({**GOOD, "pet_label": "x"}, ENTRY + "a label of an image .*got pet_label with"),
    "extra of nothing": ({**GOOD, "_label": "x"}, ENTRY + "keys of id, .*got '_label'"),
    "keys differ by case": ({**GOOD, "mr_T1": "x", "mr_t1": "y"}, "mr_T1 and mr_t1; rename one"),
    "reference": ({**GOOD, "reference": "pet"}, ENTRY + "a reference of ct, mr, got 'pet'"),
    "reference type": ({**GOOD, "reference": ["ct"]}, ENTRY + "a reference of ct, mr"),
    "transform": ({**GOOD, "mr_transform": "bspline"}, "mr_transform of none, rigid, affine, def"),
    "transform type": ({**GOOD, "mr_transform": ["rigid"]}, "mr_transform of none, rigid"),
    "reference moves": ({**GOOD, "ct_transform": "none"}, "ct_transform, but ct is the reference"),
    "path type": ({**GOOD, "ct": 3}, ENTRY + "a path for ct, got 3"),
    "empty path": ({**GOOD, "ct": " "}, ENTRY + "a path for ct, got ' '"),
    "mask path": ({**GOOD, "ct_mask": None}, ENTRY + "a path for ct_mask, got None"),
    "target": ({**GOOD, "target": 0.5}, ENTRY + "a target that is a word or a whole number"),
    "bool target": ({**GOOD, "target": True}, ENTRY + "a target that is a word"),
    "png and volume": (
        {**GOOD, "ct": "a.PNG"},
        r"all images PNG \(2D\) or none, got .*a.PNG besid",
    ),
}


@pytest.mark.parametrize(("entry", "message"), REFUSED_ENTRIES.values(), ids=REFUSED_ENTRIES.keys())
def test_entries_refused(tmp_path, entry, message):
    with pytest.raises(InputError, match=message) as caught:
        read_one(tmp_path, entry)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", ".", "..", ".x", "-x", "~x", "a\n", "a ", "a.", "x" * 200, "C:x"],
)
def test_path_like_ids_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="expected an id that can name a folder"):
        read_one(tmp_path, {**GOOD, "id": name})
    with pytest.raises(InputError, match="expected an id that can name a folder"):
        case_from_paths(name, {"ct": "a", "mr": "b"})


@pytest.mark.parametrize("name", ["case 01", "Müller_3", "1.2.3", "a-b"])
def test_ordinary_ids_are_kept(tmp_path, name):
    assert read_one(tmp_path, {**GOOD, "id": name}).id == name


DATALISTS = {
    "empty file": ("", "expected valid JSON, got an empty file"),
    "bad JSON": ('{"testing": [}', r"expected valid JSON, got Expecting value: line 1 column 14"),
    "deep JSON": ("[" * 100000, "expected valid JSON"),
    "a list": ([], 'expected an object with "testing", got list; write'),
    "no testing": ({"tests": []}, 'expected a list "testing", got the keys tests; write'),
    "nothing": ({}, 'expected a list "testing", got nothing in it'),
    "empty testing": ({"testing": []}, 'a list of cases in "testing", got an empty list'),
    "no list": ({"testing": {"a": 1}}, 'a list of cases in "testing", got dict'),
    "same id": (
        {"testing": [GOOD, GOOD]},
        "a different id for each case, got 'case01' and 'case01'",
    ),
    "ids differ by case": (
        {"testing": [GOOD, {**GOOD, "id": "CASE01"}]},
        "got 'case01' and 'CASE01'",
    ),
    "2D and 3D cases": (
        {"testing": [GOOD, {"id": "b", "ct": "a.png", "mr": "b.png"}]},
        r"all images PNG \(2D\) or none",
    ),
    "key twice": (
        '{"testing": [{"id": "p3", "ct": "a", "mr": "b", "ct": "c"}]}',
        "case 'p3': expected each key once, got ct repeated",
    ),
    "section twice": ('{"testing": [], "testing": []}', "each key once, got testing repeated"),
}


@pytest.mark.parametrize(("content", "message"), DATALISTS.values(), ids=DATALISTS.keys())
def test_datalists_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_datalist(write(tmp_path, content))
    assert str(caught.value).startswith(f"datalist {tmp_path}/cases.json")


def test_datalists_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="expected a JSON file, got no such file; check the path"):
        read_datalist(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"expected a JSON file, got .*directory"):
        read_datalist(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InputError, match="expected a JSON file, got 'utf-8' codec"):
        read_datalist(tmp_path / "a.json")


def test_a_section_may_be_empty_where_that_is_allowed(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text('{"validation": []}')
    assert read_datalist(path, "validation", may_be_empty=True) == []
    with pytest.raises(InputError, match="got an empty list"):
        read_datalist(path, "validation")
    path.write_text('{"validaton": []}')
    with pytest.raises(InputError, match='a list "validation", got the keys validaton'):
        read_datalist(path, "validation", may_be_empty=True)


def test_the_home_of_nobody(tmp_path):
    path = tmp_path / "cases.json"
    entry = {"id": "a", "ct": "~nobody-at-all/ct.nii.gz", "mr": "mr.nii.gz"}
    path.write_text(json.dumps({"testing": [entry]}))
    with pytest.raises(InputError, match=r"case 'a'.* a path for ct, got '~nobody-at-all"):
        read_datalist(path)


@pytest.mark.parametrize("name", ["summary.csv", "Thumbnails", "study.html"])
def test_an_id_that_is_a_file_of_the_output_folder(name):
    with pytest.raises(InputError, match="no file of the output folder"):
        case_from_paths(name, {"ct": "a", "mr": "b"})
