"""What DICOM pixels mean: rescale, bits, modality tables, copies; the right values beside it."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from data_phantoms import put_pixels, save, series_pixels
from dicom_cases import put, slices
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, generate_uid

from fusion_pipeline.data import InputError, read_image


def values(source, key="ct"):
    """The values and the warnings of an image that is read."""
    image, warnings = read_image(str(source), key)
    return image.array[0].numpy(), warnings


# --- rescale ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (("RescaleSlope", "RescaleIntercept"), "RescaleSlope and RescaleIntercept"),
        (("RescaleIntercept",), "RescaleIntercept"),
    ],
)
def test_a_slice_without_the_rescale_of_the_others_is_named(tmp_path, lost, named):
    def edit(ds, k):
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        for name in lost if k == 4 else ():
            delattr(ds, name)

    with pytest.raises(InputError, match=f"got a04.dcm without {named}, which other slices have"):
        read_image(slices(tmp_path / "ct", edit), "ct")


def test_a_slice_without_a_slope_that_would_be_1_is_silent(tmp_path):
    def edit(ds, k):
        if k != 4:
            ds.RescaleSlope, ds.RescaleIntercept = 1, 0

    array, warnings = values(slices(tmp_path / "mr", edit, Modality="MR"), "mr")
    np.testing.assert_array_equal(array, series_pixels().T)
    assert warnings == []


@pytest.mark.parametrize("kind", ["MGML", "ED", "PCT", "OD"])
def test_a_ct_of_another_rescale_type_is_not_called_hu(tmp_path, kind):
    edit = put(RescaleSlope=1, RescaleIntercept=-1000, RescaleType=kind)
    image, warnings = read_image(slices(tmp_path / "ct", edit), "ct")
    assert image.units == "a.u."
    # the darkest of its values, not -1000 because of a name
    assert image.array.min() <= image.fill_value <= image.array.quantile(0.05)
    assert f"the CT's values are {kind} (RescaleType) and not HU" in warnings[0]
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T - 1000)


def air_and_water(ds, k):
    """Pixels of a body in air, stored from 0."""
    pixels = np.full((14, 11), 24)
    pixels[3:11, 2:9] = 1024 + k
    put_pixels(ds, pixels)
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024


@pytest.mark.parametrize("kind", ["HU", None, "US"])
def test_a_ct_in_hu_is_called_so(tmp_path, kind):
    def edit(ds, k):
        air_and_water(ds, k)
        if kind:
            ds.RescaleType = kind

    image, warnings = read_image(slices(tmp_path / "ct", edit), "ct")
    assert (image.units, float(image.array.min())) == ("HU", -1000)
    assert [("RescaleType US" in text) for text in warnings] == ([True] if kind == "US" else [])


def table(entries, *, first=0, **elements):
    """A modality table in place of slope and intercept."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, 16])
    item.ModalityLUTType = elements.pop("kind", "US")
    item.add_new(0x00283006, "OW", np.asarray(entries, "<u2").tobytes())

    def edit(ds, _):
        ds.ModalityLUTSequence, ds.PixelRepresentation = [item], 0

    return edit


def test_a_modality_table_is_applied(tmp_path):
    edit = table((np.arange(5000) ** 1.2).astype(int))
    array, _ = values(slices(tmp_path / "mr", edit, Modality="MR"), "mr")
    np.testing.assert_array_equal(array, (series_pixels().T ** 1.2).astype(int))


def test_a_table_that_some_slices_lack_is_refused(tmp_path):
    whole = table(np.arange(5000))
    with pytest.raises(InputError, match=r"got a03.dcm without ModalityLUTSequence"):
        read_image(slices(tmp_path / "mr", lambda ds, k: k == 3 or whole(ds, k)), "mr")


# --- bits -------------------------------------------------------------------------------------


def jpeg2000(ds, path, pixels):
    """Put pixels of 16 bits into a slice, compressed."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG2000")
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(pixels[None]))
    ds.PixelData = pydicom.dcmread(path).PixelData
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    path.unlink()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_stored_are_no_part_of_the_image(tmp_path, compressed, signed):
    def edit(ds, k):
        stored = series_pixels()[k] - (2000 if signed else 0)
        pixels = stored.astype(np.int16).view(np.uint16) & 0x0FFF | 0x5000  # overlays
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, int(signed)
        ds.PixelData = pixels.astype("<u2").tobytes()
        ds.add_new((0x6000, 0x0010), "US", ds.Rows)
        if compressed:
            given = pixels.view(np.int16) if signed else pixels
            jpeg2000(ds, tmp_path / "spare.dcm", given)

    array, warnings = values(slices(tmp_path / "mr", edit, Modality="MR"), "mr")
    expected = series_pixels().T - 2000 if signed else series_pixels().T
    np.testing.assert_array_equal(array, expected)
    assert warnings == []


def test_pixels_that_do_not_begin_at_the_lowest_bit_are_refused(tmp_path):
    edit = put(BitsStored=12, HighBit=15)
    with pytest.raises(InputError, match=r"HighBit 15 with 12 bits stored in a00.dcm"):
        read_image(slices(tmp_path / "ct", edit), "ct")


# --- copies -----------------------------------------------------------------------------------


def test_slices_that_share_a_uid_are_all_read(tmp_path):
    def edit(ds, k):
        ds.SOPInstanceUID = f"1.2.3.{min(k, 5)}"

    array, warnings = values(slices(tmp_path / "mr", edit, Modality="MR"), "mr")
    np.testing.assert_array_equal(array, series_pixels().T)
    assert "3 slices have the SOPInstanceUID of another slice" in warnings[0]
    assert len(warnings) == 1


def test_a_copy_in_another_compression_is_a_copy(tmp_path):
    slices(tmp_path, Modality="MR")
    ds = pydicom.dcmread(tmp_path / "a04.dcm")
    jpeg2000(ds, tmp_path / "spare.dcm", series_pixels()[4])
    save(ds, tmp_path / "copy.dcm")
    array, warnings = values(tmp_path, "mr")
    np.testing.assert_array_equal(array, series_pixels().T)
    assert "1 files are copies of others" in warnings[0]


def test_a_slice_of_the_same_uid_and_position_but_other_pixels_is_no_copy(tmp_path):
    slices(tmp_path)
    ds = pydicom.dcmread(tmp_path / "a04.dcm")
    ds.PixelData = bytes(len(ds.PixelData))
    save(ds, tmp_path / "other.dcm")
    with pytest.raises(InputError, match=r"such as a04.dcm and other.dcm"):
        read_image(tmp_path, "ct")


def test_a_series_without_uids_is_read(tmp_path):
    edit = put(SOPInstanceUID=generate_uid())
    array, _ = values(slices(tmp_path / "mr", edit, Modality="MR"), "mr")
    np.testing.assert_array_equal(array, series_pixels().T)
