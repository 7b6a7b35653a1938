import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from data_phantoms import dicom_slice, put_pixels, save, save_series, series_pixels
from pydicom.uid import JPEGLosslessSV1, RLELossless, generate_uid

from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.geometry import apply_affine, rigid_matrix

EXPECTED_AFFINE = np.array([[-1.0, 0, 0, -5], [0, -1.5, 0, 7], [0, 0, 3, 0], [0, 0, 0, 1]])


def test_series_has_position_order_and_axes(tmp_path):
    image, warnings = read_image(save_series(tmp_path / "ct"), "ct")
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)
    np.testing.assert_allclose(image.affine, EXPECTED_AFFINE, atol=1e-12)
    assert image.units == "a.u."  # the phantom has no air
    assert "do not look like HU" in warnings[0]
    assert len(warnings) == 1


def test_oblique_series_agrees_with_simpleitk(tmp_path):
    turn = rigid_matrix((10, 20, -30), (0, 0, 0), (0, 0, 0))[:3, :3]
    orientation, normal = np.concatenate([turn[:, 0], turn[:, 1]]), turn[:, 2]
    folder = tmp_path / "mr"
    folder.mkdir()
    for n, pixels in enumerate(series_pixels()):
        position = np.array([3.0, 4, 5]) + 3.0 * n * normal
        position, cosines = position.round(7), orientation.round(8)
        ds = dicom_slice(position, pixels, orientation=cosines, Modality="MR")
        save(ds, folder / f"{9 - n}.dcm")
    image, _ = read_image(folder, "mr")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    witness = reader.Execute()
    index = (3, 5, 7)
    world = np.array(witness.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
    np.testing.assert_allclose(apply_affine(image.affine, index), world, atol=1e-4)
    assert image.array[(0, *index)] == witness.GetPixel(index)


def test_slope_and_intercept_count_slice_by_slice(tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    for n, pixels in enumerate(series_pixels()):
        save(
            dicom_slice((5, -7, 3.0 * n), pixels, RescaleSlope=n + 0.5, RescaleIntercept=-1024 + n),
            folder / f"{n}.dcm",
        )
    image, _ = read_image(folder, "ct")
    k = np.arange(9)
    np.testing.assert_allclose(
        image.array[0].numpy(), series_pixels().T * (k + 0.5) - 1024 + k, rtol=1e-6
    )


def test_two_series_are_listed_and_one_can_be_picked(tmp_path):
    save_series(tmp_path, series="1.2.3")
    save_series(
        tmp_path / "sub", [0, 2, 4, 6, 8, 10, 12, 14], series="1.2.4", SeriesDescription="bone"
    )
    with pytest.raises(
        InputError,
        match=r"expected one series, got 2 series: 1.2.3 \(CT, 'thorax', 9 slices\); "
        r"1.2.4 \(CT, 'bone', 8 slices\); pick one with folder::SeriesInstanceUID",
    ) as caught:
        read_image(tmp_path, "ct", case_id="p1")
    assert str(caught.value).startswith(f"case 'p1', ct ({tmp_path})")
    image, _ = read_image(f"{tmp_path}::1.2.4", "ct")
    assert image.shape == (11, 14, 8)
    with pytest.raises(InputError, match=r"expected the series 9.9, got 2 series"):
        read_image(f"{tmp_path}::9.9", "ct")


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        (
            [0, 3, 6, 12, 15, 18, 21, 24],
            r"a slice every 3 mm, got 1 missing \(a gap of 6 mm after slice 3",
        ),
        ([0, 3, 12, 15], "got 2 missing"),
        ([0, 3, 6, 9, 13, 17, 21, 25], "evenly spaced slices, got steps from 3 to 4 mm"),
        ([0, 3, 6, 6, 9, 12, 15, 18], "one slice at each position, got 1 more at the same"),
        ([0], "a stack of slices, got a single slice"),
    ],
)
def test_stacks_refused(tmp_path, heights, message):
    with pytest.raises(InputError, match=message):
        read_image(save_series(tmp_path / "ct", heights), "ct")


def test_rounded_positions_are_even(tmp_path):
    heights = [round(0.625 * n, 1) for n in range(20)]
    image, _ = read_image(save_series(tmp_path / "ct", heights), "ct")
    assert image.spacing[2] == pytest.approx(heights[-1] / 19)


def test_gantry_tilt_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"got a tilt of 9.5 degrees \(gantry tilt\)"):
        read_image(save_series(tmp_path / "ct", shift=0.5), "ct")


def test_mixed_slices_are_refused(tmp_path):
    save_series(tmp_path)
    localizer = dicom_slice((0, 0, 99), series_pixels()[0], orientation=(0, 1, 0, 0, 0, -1))
    save(localizer, tmp_path / "localizer.dcm")
    with pytest.raises(InputError, match="slices of one size, spacing and orientation"):
        read_image(tmp_path, "ct")


def test_folders_without_an_image(tmp_path):
    with pytest.raises(InputError, match="a DICOM image series, got no DICOM file"):
        read_image(tmp_path, "ct")
    structures = dicom_slice((0, 0, 0), series_pixels()[0], Modality="RTSTRUCT", Rows=None)
    save(structures, tmp_path / "rt.dcm")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(InputError, match=r"got only RTSTRUCT \(1 files\)"):
        read_image(tmp_path, "ct")
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none", "ct")


def test_copies_are_read_once_and_other_files_ignored(tmp_path):
    save_series(tmp_path)
    first = next(iter(sorted(tmp_path.iterdir())))
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    (tmp_path / "DICOMDIR.txt").write_text("x")
    image, warnings = read_image(tmp_path, "ct")
    assert image.shape == (11, 14, 9)
    assert "1 files are copies of others" in warnings[0]


def test_another_modality_than_the_key_is_told(tmp_path):
    _, warnings = read_image(save_series(tmp_path / "a"), "mr")
    assert "the file says modality CT, the key says mr." in warnings[0]


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "expected grey slices .* got MONOCHROME1"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "got RGB"),
        ({"PixelSpacing": None}, "slices with position, orientation and pixel spacing"),
        ({"ImagePositionPatient": None}, "slices with position, orientation and pixel spacing"),
        ({"ImageOrientationPatient": [1.0, 0, 0]}, "slices with position, orientation"),
    ],
)
def test_slices_refused(tmp_path, elements, message):
    with pytest.raises(InputError, match=message):
        read_image(save_series(tmp_path / "ct", **elements), "ct")


def test_a_damaged_slice_is_named(tmp_path):
    save_series(tmp_path)
    victim = sorted(tmp_path.iterdir())[4]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"whole DICOM slices, got {victim.name}, which cannot be"):
        read_image(tmp_path, "ct")


@pytest.mark.parametrize("name", ["0008.dcm", "CT.1.2.840.77.8", "IM0008"])
@pytest.mark.parametrize(
    ("left", "told"),
    [(0, "empty"), (100, "cut short"), (140, "cut short"), (200, "cut short"), (500, "cut short")],
)
def test_what_an_interrupted_copy_leaves_is_refused(tmp_path, name, left, told):
    save_series(tmp_path)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / name.replace("8", str(number)))
    victim = max(tmp_path.iterdir())  # at the end of the stack no gap tells
    victim.write_bytes(victim.read_bytes()[:left])
    with pytest.raises(InputError, match=f"whole DICOM slices, got {victim.name}, which is {told}"):
        read_image(tmp_path, "ct")


def test_space_that_was_kept_for_a_slice_is_refused(tmp_path):
    save_series(tmp_path)
    victim = max(tmp_path.iterdir())
    victim.write_bytes(bytes(victim.stat().st_size))
    with pytest.raises(InputError, match=f"got {victim.name}, which is cut short"):
        read_image(tmp_path, "ct")


def test_what_is_no_slice_may_be_empty_or_without_rows(tmp_path):
    save_series(tmp_path)
    (tmp_path / "done.txt").touch()
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock.dcm").touch()
    structures = dicom_slice(
        (0, 0, 0),
        series_pixels()[0],
        Modality="RTSTRUCT",
        Rows=None,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
    )
    save(structures, tmp_path / "rt.dcm")
    other = dicom_slice((0, 0, 0), series_pixels()[0], Rows=None, series="4.5.6")
    save(other, tmp_path / "report.dcm")
    assert read_image(tmp_path, "ct")[0].shape == (11, 14, 9)


def test_a_header_that_makes_no_sense_is_refused(tmp_path):
    save_series(tmp_path, Columns=[14, 14])
    with pytest.raises(InputError, match="got a header that cannot be understood"):
        read_image(tmp_path, "ct")


def test_compressed_slices(tmp_path):
    save_series(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless)
        save(ds, path)
    image, _ = read_image(tmp_path / "ct", "ct")
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)


def test_a_compression_nobody_can_decode_is_refused(tmp_path, capfd):
    save_series(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8no jpeg at all\xff\xd9"])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        save(ds, path)
    capfd.readouterr()
    with pytest.raises(InputError, match="which cannot be decoded"):
        read_image(tmp_path / "ct", "ct")
    assert capfd.readouterr() == ("", "")


def test_lossless_jpeg_is_decoded_by_simpleitk(tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    pixels = series_pixels()
    for n in range(9):
        image = sitk.GetImageFromArray(pixels[n : n + 1])
        image.SetSpacing((1.0, 1.5, 3.0))
        image.SetOrigin((5.0, -7.0, 3.0 * n))
        image.SetMetaData("0020|000e", "1.2.3")
        image.SetMetaData("0008|0060", "CT")
        image.SetMetaData("0028|1052", "-1024")
        image.SetMetaData("0028|1053", "1")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{n}.dcm"))
        image.SetMetaData("0008|0018", generate_uid())
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.Execute(image)
    syntax = pydicom.dcmread(folder / "0.dcm").file_meta.TransferSyntaxUID
    assert syntax == JPEGLosslessSV1
    read, _ = read_image(folder, "ct")
    np.testing.assert_allclose(read.array[0].numpy(), pixels.T, atol=1e-3)


def enhanced(pixels, *, shared=True):
    """An enhanced multi-frame CT of the phantom series, its frames out of order."""
    ds = dicom_slice(
        (0, 0, 0),
        pixels[0],
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
    )
    order = np.random.default_rng(0).permutation(len(pixels))
    put_pixels(ds, pixels[order])
    ds.NumberOfFrames = len(pixels)
    orientation, measures = pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [1.5, 1.0]
    group = pydicom.Dataset()
    group.PlaneOrientationSequence = [orientation]
    group.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [group] if shared else []
    frames = []
    for n in order:
        position, scale, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [5, -7, 3.0 * n]
        scale.RescaleSlope, scale.RescaleIntercept = float(n + 1), -1000.0
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [scale]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    return ds


def test_enhanced_multiframe_takes_each_frames_own_place_and_slope(tmp_path):
    path = save(enhanced(series_pixels()), tmp_path / "a.dcm")
    for given in (path, tmp_path):
        image, _ = read_image(given, "ct")
        np.testing.assert_allclose(image.affine, EXPECTED_AFFINE, atol=1e-12)
        np.testing.assert_array_equal(
            image.array[0].numpy(), series_pixels().T * np.arange(1.0, 10) - 1000
        )


def test_enhanced_multiframe_without_geometry_is_refused(tmp_path):
    path = save(enhanced(series_pixels(), shared=False), tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"none of it in Enhanced CT Image Storage"):
        read_image(path, "ct")


def test_what_a_slice_lacks_is_named(tmp_path):
    folder = save_series(tmp_path / "a", PixelSpacing=None)
    with pytest.raises(InputError, match="no usable PixelSpacing in CT Image Storage"):
        read_image(folder, "ct")


@pytest.mark.parametrize("step", [3.0, -3.0])
def test_nuclear_medicine_slices_stack_by_the_signed_step(tmp_path, step):
    ds = dicom_slice(
        (0, 0, 0),
        series_pixels(),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.20",
        Modality="NM",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        NumberOfFrames=9,
        SpacingBetweenSlices=step,
    )
    detector = pydicom.Dataset()
    detector.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    detector.ImagePositionPatient = [5, -7, 100]
    ds.DetectorInformationSequence = [detector]
    image, warnings = read_image(save(ds, tmp_path / "a.dcm"), "spect")
    pixels = series_pixels() if step > 0 else series_pixels()[::-1]
    np.testing.assert_array_equal(image.array[0].numpy(), pixels.T)
    assert image.affine[2, 3] == (100 if step > 0 else 76)
    assert warnings == []


# --- PET --------------------------------------------------------------------------------------


def pet(folder, **elements):
    """A PET series; ``info`` are elements of the radiopharmaceutical item."""
    info = pydicom.Dataset()
    given = {
        "RadiopharmaceuticalStartTime": "100000.00",
        "RadionuclideTotalDose": 3.7e8,
        "RadionuclideHalfLife": 6588.0,
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
    } | elements
    return save_series(folder, **header)


HOUR = 2.0 ** (-3600 / 6588)


@pytest.mark.parametrize(
    ("elements", "factor"),
    [
        ({}, 70e3 / (3.7e8 * HOUR)),
        ({"DecayCorrection": "ADMIN"}, 70e3 / 3.7e8),
        ({"Units": "GML"}, 1.0),
        ({"Units": "GML", "SUVType": "BW"}, 1.0),
        ({"SeriesTime": "150000"}, 70e3 / (3.7e8 * 2.0 ** (-3603.5 / 6588))),
        ({"SeriesDate": None, "AcquisitionTime": "110000"}, 70e3 / (3.7e8 * HOUR)),
        ({"AcquisitionDateTime": "20240105103000+0100"}, 70e3 / (3.7e8 * 2.0 ** (-1800 / 6588))),
        (
            {"info": {"RadiopharmaceuticalStartDateTime": "20240105100000.000000"}},
            70e3 / (3.7e8 * HOUR),
        ),
        ({"info": {"RadiopharmaceuticalStartTime": "1000"}}, 70e3 / (3.7e8 * HOUR)),
        ({"info": {"RadiopharmaceuticalStartTime": "10"}}, 70e3 / (3.7e8 * HOUR)),
        (  # injected before midnight, scanned after it
            {
                "SeriesTime": "003000",
                "AcquisitionTime": "003000",
                "info": {"RadiopharmaceuticalStartTime": "233000"},
            },
            70e3 / (3.7e8 * HOUR),
        ),
    ],
)
def test_suv(tmp_path, elements, factor):
    image, warnings = read_image(pet(tmp_path / "pet", **elements), "pet")
    np.testing.assert_allclose(image.array[0].numpy(), series_pixels().T * factor, rtol=1e-6)
    assert (image.units, warnings) == ("SUV", [])


@pytest.mark.parametrize(
    ("elements", "units", "told"),
    [
        ({"PatientWeight": None}, "Bq/ml", "no SUV, because PatientWeight is missing"),
        ({"PatientWeight": ""}, "Bq/ml", "no SUV, because PatientWeight is missing"),
        ({"PatientWeight": ["70", "71"]}, "Bq/ml", "no SUV, because PatientWeight is missing"),
        ({"PatientWeight": "0"}, "Bq/ml", "no SUV, because PatientWeight is missing"),
        ({"DecayCorrection": "NONE"}, "Bq/ml", "decay correction is NONE, not START or ADMIN"),
        ({"DecayCorrection": None}, "Bq/ml", "decay correction is missing"),
        ({"info": {"RadionuclideTotalDose": None}}, "Bq/ml", "RadionuclideTotalDose is missing"),
        ({"info": {"RadionuclideTotalDose": 370.0}}, "Bq/ml", "0.00037 MBq is not believable"),
        ({"info": {"RadionuclideHalfLife": None}}, "Bq/ml", "RadionuclideHalfLife is missing"),
        ({"info": {"RadiopharmaceuticalStartTime": None}}, "Bq/ml", "has no injection time"),
        (
            {"info": {"RadiopharmaceuticalStartDateTime": "20200105100000"}},
            "Bq/ml",
            "s after the injection",
        ),
        ({"SeriesTime": None, "AcquisitionTime": ""}, "Bq/ml", "no series or acquisition time"),
        ({"SeriesTime": "9", "AcquisitionTime": "99"}, "Bq/ml", "no series or acquisition time"),
        ({"SeriesTime": "xxyyzz", "AcquisitionTime": None}, "Bq/ml", "no series or acquisition"),
        ({"RadiopharmaceuticalInformationSequence": []}, "Bq/ml", "no radiopharmaceutical"),
        ({"Units": None}, "a.u.", "PET units are missing in the header"),
        ({"Units": "CNTS"}, "counts", "PET units are counts and no factor to SUV"),
        ({"Units": "PROPCPS"}, "a.u.", "PET units are PROPCPS"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUV", "the SUV type is LBM, not body weight"),
        ({"NumberOfSlices": 12}, "SUV", "9 slices of the 12 that the header counts"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_pet_units_that_need_a_word(tmp_path, elements, units, told):
    image, warnings = read_image(pet(tmp_path / "pet", **elements), "pet")
    assert image.units == units
    assert len(warnings) == 1
    assert told in warnings[0]
    if units != "SUV":
        np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)


@pytest.mark.parametrize(
    ("tag", "value", "factor", "units"),
    [
        (0x1000, "0.25", 0.25, "SUV"),
        (0x1009, "2.5", 2.5 * 70e3 / (3.7e8 * HOUR), "SUV"),
        (0x1000, "0.0", 1.0, "counts"),
        (0x1000, "", 1.0, "counts"),
    ],
)
def test_philips_counts(tmp_path, tag, value, factor, units):
    folder = pet(tmp_path / "pet", Units="CNTS")
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
        ds.add_new((0x7053, tag), "DS", value)
        save(ds, path)
    image, warnings = read_image(folder, "pet")
    np.testing.assert_allclose(image.array[0].numpy(), series_pixels().T * factor, rtol=1e-6)
    assert image.units == units
    assert bool(warnings) == (units == "counts")


def test_a_spect_key_on_a_pet_series_is_not_scaled(tmp_path):
    image, _ = read_image(pet(tmp_path / "pet"), "spect")
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)
