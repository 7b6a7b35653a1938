"""SUV from headers that can be true, and a sentence in its place from those that cannot."""

import numpy as np
import pydicom
import pytest
from data_phantoms import save, save_series, series_pixels

from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.data.nuclides import HALF_LIFE, nuclide_of

HOUR = 2.0 ** (-3600 / 6586.2)


def pet(folder, **elements):
    """18F-FDG, 350 MBq one hour before the scan, 70 kg; ``info`` changes the injection."""
    info, code = pydicom.Dataset(), pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "C-111A1", "SRT"
    given = {
        "Radiopharmaceutical": "FDG",
        "RadionuclideCodeSequence": [code],
        "RadiopharmaceuticalStartTime": "100000.00",
        "RadionuclideTotalDose": 3.5e8,
        "RadionuclideHalfLife": 6586.2,
    } | elements.pop("info", {})
    for name, value in given.items():
        if value is not None:
            setattr(info, name, value)
    header = {
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["NORM", "DTIM", "ATTN", "SCAT", "DECY"],
        "PatientWeight": "70",
        "SeriesDate": "20240105",
        "SeriesTime": "110000.00",
        "AcquisitionDate": "20240105",
        "AcquisitionTime": "110003.5",
        "RadiopharmaceuticalInformationSequence": [info],
    }
    return save_series(folder, **(header | elements))


def nuclide(meaning, half_life, **info):
    """An injection of another nuclide, named in words."""
    code = pydicom.Dataset()
    code.CodeMeaning = meaning
    named = {"RadionuclideCodeSequence": [code], "Radiopharmaceutical": ""}
    return {"info": {**named, "RadionuclideHalfLife": half_life, **info}}


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"PatientWeight": "70000"}, "the weight of 70000 kg is not believable (0.4 to 318 kg)"),
        ({"PatientWeight": "0.07"}, "the weight of 0.07 kg"),
        ({"PatientWeight": "198", "PatientSize": "1.72"}, "198 kg at a size of 1.72 m"),
        ({"PatientWeight": "198", "PatientSize": "172"}, "198 kg at a size of 1.72 m"),
        ({"info": {"RadionuclideTotalDose": 350000.0}}, "dose of 0.35 MBq is not believable"),
        ({"info": {"RadionuclideTotalDose": 350.0}}, "dose of 0.00035 MBq"),
        ({"info": {"RadionuclideTotalDose": 3.5e11}}, "dose of 350000 MBq"),
        (
            nuclide("^82^Rubidium", 75.0, RadionuclideTotalDose=1.5e6),
            "dose of 1.5 MBq is not believable (50 to 6000 MBq)",
        ),
        ({"info": {"RadionuclideHalfLife": 109.77}}, "109.77 s is not that of F-18 (6586.2 s)"),
        ({"info": {"RadionuclideHalfLife": 1.83}}, "1.83 s is not that of F-18"),
        ({"info": {"RadionuclideHalfLife": 1223.0}}, "1223 s is not that of F-18"),
        (
            {"info": {"RadionuclideHalfLife": 1223.0, "RadionuclideCodeSequence": None}},
            "1223 s is not that of F-18",  # FDG
        ),
        (nuclide("", 109.77), "109.77 s is that of no nuclide in PET"),
        ({"SeriesTime": "230000", "AcquisitionTime": "230000"}, "46800 s after the injection"),
        ({"info": {"RadiopharmaceuticalStartTime": "110500"}}, "s after the injection"),
        ({"info": {"RadiopharmaceuticalStartDateTime": "20210105100000"}}, "s after the injection"),
        ({"info": {"RadiopharmaceuticalStartDateTime": "20240104100000"}}, "s after the injection"),
        (
            {"info": {"RadiopharmaceuticalStartDateTime": "20240105100000+0000"}, "zone": "+0200"},
            "-3600 s after the injection",
        ),
        ({"SeriesDate": "20230105"}, "series starts 2023-01-05 11:00 and its first slice 2024"),
        ({"CorrectedImage": ["NORM", "DECY"]}, "no correction for attenuation (ATTN)"),
        ({"CorrectedImage": ["NORM", "ATTN"]}, "no correction for decay (DECY)"),
        ({"CorrectedImage": "SCAT"}, "attenuation (ATTN) and decay (DECY)"),
        ({"CorrectedImage": None}, "CorrectedImage is missing"),
        ({"DecayCorrection": "ADMIN", "PatientWeight": "70000"}, "weight of 70000 kg"),
        ({"DecayCorrection": "ADMIN", "CorrectedImage": ["DECY"]}, "attenuation (ATTN)"),
        ({"RadiopharmaceuticalInformationSequence": [pydicom.Dataset()] * 2}, "2 injections"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_an_impossible_header_gives_no_suv_but_a_sentence(tmp_path, elements, told):
    if "zone" in elements:
        elements = {**elements, "TimezoneOffsetFromUTC": elements["zone"]}
        del elements["zone"]
    image, warnings = read_image(pet(tmp_path / "pet", **elements), "pet")
    assert image.units == "Bq/ml"
    assert len(warnings) == 1
    assert "no SUV, because" in warnings[0]
    assert told in warnings[0]
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)


@pytest.mark.parametrize(
    ("elements", "factor"),
    [
        ({}, 70e3 / (3.5e8 * HOUR)),
        ({"PatientWeight": "3.1", "info": {"RadionuclideTotalDose": 1e7}}, 3100 / (1e7 * HOUR)),
        ({"PatientWeight": "130", "PatientSize": "1.70"}, 130e3 / (3.5e8 * HOUR)),  # BMI 45
        ({"PatientWeight": "9", "PatientSize": "0.72"}, 9e3 / (3.5e8 * HOUR)),
        ({"PatientSize": "0"}, 70e3 / (3.5e8 * HOUR)),
        ({"info": {"RadionuclideHalfLife": 6588.0}}, 70e3 / (3.5e8 * 2 ** (-3600 / 6588))),
        (
            nuclide("^82^Rubidium", 75.0, RadionuclideTotalDose=1.5e9)
            | {"SeriesTime": "100130", "AcquisitionTime": "100130"},
            70e3 / (1.5e9 * 2 ** (-90 / 75)),
        ),
        (
            nuclide("Gallium-68", 4057.7, RadionuclideTotalDose=1.5e8),
            70e3 / (1.5e8 * 2 ** (-3600 / 4057.7)),
        ),
        (
            nuclide(
                "89Zr",
                282240.0,
                RadionuclideTotalDose=3.7e7,
                RadiopharmaceuticalStartDateTime="20240101110000",
            ),
            70e3 / (3.7e7 * 2 ** (-4 * 86400 / 282240)),
        ),
        (nuclide("", 6586.2), 70e3 / (3.5e8 * HOUR)),
        ({"info": {"RadionuclideCodeSequence": None}}, 70e3 / (3.5e8 * HOUR)),
        (
            {
                "info": {"RadiopharmaceuticalStartDateTime": "20240105080000+0000"},
                "TimezoneOffsetFromUTC": "+0200",
            },
            70e3 / (3.5e8 * HOUR),
        ),
        (
            {
                "info": {"RadiopharmaceuticalStartDateTime": "20240105233000-0500"},
                "AcquisitionDateTime": "20240106053000+0000",
                "SeriesDate": None,
            },
            70e3 / (3.5e8 * HOUR),
        ),
        ({"SeriesDate": "20240301"}, 70e3 / (3.5e8 * 2 ** (-3603.5 / 6586.2))),  # made later
        ({"SeriesTime": "11:00:00", "AcquisitionTime": None}, 70e3 / (3.5e8 * HOUR)),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_a_header_that_can_be_true_gives_suv_in_silence(tmp_path, elements, factor):
    image, warnings = read_image(pet(tmp_path / "pet", **elements), "pet")
    assert (image.units, warnings) == ("SUV", [])
    np.testing.assert_allclose(image.array[0].numpy(), series_pixels().T * factor, rtol=1e-6)


def test_a_weight_that_few_have_gives_suv_and_a_sentence(tmp_path):
    folder = pet(tmp_path / "pet", PatientWeight="154", PatientSize="1.75")
    image, warnings = read_image(folder, "pet")
    assert image.units == "SUV"
    assert len(warnings) == 1
    assert "154 kg at a size of 1.75 m is rare; if it is in pounds, the SUV are 2.2" in warnings[0]


@pytest.mark.parametrize(
    ("creator", "suv", "units", "told"),
    [
        ("Philips PET Private Group", "0.0006", "SUV", ""),
        ("", "0.0006", "SUV", ""),  # lost by an anonymizer
        ("Philips PET Private Group", "50", "counts", "is 50 and its dose, weight and times give"),
        ("SOMEBODY", "0.0006", "counts", "no factor to SUV is in the header"),
    ],
)
def test_philips_factors_are_believed_where_they_fit_the_dose(tmp_path, creator, suv, units, told):
    folder = pet(tmp_path / "pet", Units="CNTS")
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        if creator:
            ds.add_new((0x7053, 0x0010), "LO", creator)
        ds.add_new((0x7053, 0x1000), "DS", suv)
        ds.add_new((0x7053, 0x1009), "DS", "2.0")  # to Bq/ml: 0.00058 to SUV
        save(ds, path)
    image, warnings = read_image(folder, "pet")
    assert image.units == units
    assert told in "".join(warnings)
    assert bool(warnings) == bool(told)
    factor = float(suv) if units == "SUV" else 1.0
    np.testing.assert_allclose(image.array[0].numpy(), series_pixels().T * factor, rtol=1e-6)


def test_values_that_are_called_suv_need_attenuation_correction(tmp_path):
    folder = pet(tmp_path / "a", Units="GML", CorrectedImage=["DECY"])
    image, warnings = read_image(folder, "pet")
    assert image.units == "a.u."
    assert "attenuation (ATTN); the values are kept" in warnings[0]
    for given in (["DECY", "ATTN"], None):
        folder = pet(tmp_path / f"b{given}", Units="GML", CorrectedImage=given)
        image, warnings = read_image(folder, "pet")
        assert (image.units, warnings) == ("SUV", [])


@pytest.mark.parametrize(
    ("code", "meaning", "named"),
    [
        ("C-111A1", "", "F-18"),
        ("77004003", "anything", "F-18"),
        ("C-B1038", "", "O-15"),
        ("", "^68^Gallium", "Ga-68"),
        ("", "68Ga", "Ga-68"),
        ("", "Copper-64", "Cu-64"),
        ("", "[11C]methionine", "C-11"),
        ("", "94mTc", "Tc-94m"),
        ("", "tracer 18", ""),
    ],
)
def test_nuclides_are_known_by_code_and_by_word(code, meaning, named):
    item, info = pydicom.Dataset(), pydicom.Dataset()
    item.CodeValue, item.CodeMeaning = code, meaning
    info.RadionuclideCodeSequence = [item]
    assert nuclide_of(info) == named
    assert not named or HALF_LIFE[named] > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"PatientWeight": "90"}, "PatientWeight"),
        ({"DecayCorrection": "ADMIN"}, "DecayCorrection"),
        ({"CorrectedImage": ["ATTN", "DECY"]}, "CorrectedImage"),
        ({"RadionuclideTotalDose": 3.5e7}, "RadionuclideTotalDose"),
    ],
)
def test_slices_that_say_different_things_give_no_suv(tmp_path, change, named):
    folder = pet(tmp_path / "pet")
    path = sorted(folder.iterdir())[4]
    ds = pydicom.dcmread(path)
    for name, value in change.items():
        dose = name.startswith("Radionuclide")
        setattr(ds.RadiopharmaceuticalInformationSequence[0] if dose else ds, name, value)
    save(ds, path)
    image, warnings = read_image(folder, "pet")
    assert image.units == "Bq/ml"
    assert f"no SUV, because the slices give 2 values of {named}" in warnings[0]


def _with_one_other_slice(folder, name, value):
    pet(folder)
    path = sorted(folder.iterdir())[4]
    ds = pydicom.dcmread(path)
    setattr(ds, name, value)
    save(ds, path)
    return folder


def test_weights_that_are_written_differently_are_one(tmp_path):
    folder = _with_one_other_slice(tmp_path / "pet", "PatientWeight", "70.0")
    assert read_image(folder, "pet")[1] == []


def test_slices_of_two_units_are_refused(tmp_path):
    folder = _with_one_other_slice(tmp_path / "pet", "Units", "CNTS")
    with pytest.raises(InputError, match=r"values of one unit, got slices of several \(Units\)"):
        read_image(folder, "pet")


@pytest.mark.parametrize(
    ("units", "slope", "stored"), [("BQML", 0.01, "stay in Bq/ml"), ("GML", 1e-5, "are kept")]
)
def test_values_that_cannot_be_suv(tmp_path, units, slope, stored):
    folder = pet(tmp_path / "a", Units=units, RescaleSlope=str(slope), RescaleIntercept="0")
    image, warnings = read_image(folder, "pet")
    np.testing.assert_allclose(image.array[0].numpy(), series_pixels().T * slope, rtol=1e-6)
    assert image.units != "SUV"
    assert "no SUV, because no value exceeds" in warnings[0]
    assert f"the values {stored}" in warnings[0]
