"""Where DICOM files lie and how they begin: no preamble, links, DICOMDIR, names with ``::``."""

import numpy as np
import pydicom
import pytest
from data_phantoms import save_series, series_pixels
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from fusion_pipeline.data import (
    InputError,
    Source,
    case_from_paths,
    check_case_headers,
    files_in,
    read_image,
)


def values(source):
    """The values of a CT that is read."""
    return read_image(str(source), "ct")[0].array[0].numpy()


@pytest.mark.parametrize("keep_meta", [True, False])
def test_a_series_without_preamble_is_read(tmp_path, keep_meta):
    folder = save_series(tmp_path / "ct")
    for path in folder.iterdir():
        content = path.read_bytes()[132:]
        if not keep_meta:  # nor the elements of group 2, whose length comes first
            content = content[12 + int.from_bytes(content[8:12], "little") :]
        path.write_bytes(content)
    np.testing.assert_array_equal(values(folder), series_pixels().T)
    check_case_headers(case_from_paths("p", {"ct": folder, "mr": folder}))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_other_transfer_syntaxes_are_read(tmp_path, syntax):
    folder = save_series(tmp_path / "ct")
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array
        ds.file_meta.TransferSyntaxUID = syntax
        big = syntax == ExplicitVRBigEndian
        ds.PixelData = pixels.astype(">i2" if big else "<i2").tobytes()
        ds["PixelData"].VR = "OW"
        pydicom.dcmwrite(path, ds, implicit_vr=syntax.is_implicit_VR, little_endian=not big)
    np.testing.assert_array_equal(values(folder), series_pixels().T)


def test_bare_data_in_implicit_coding_is_read(tmp_path):
    folder = save_series(tmp_path / "ct")
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.file_meta = FileMetaDataset()
        pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(values(folder), series_pixels().T)


@pytest.mark.parametrize("text", ["x,y,z\n1,2,3\n", "\x08\x00\x05\x00 no DICOM", "\x02", ""])
def test_what_only_begins_as_dicom_is_not_taken_for_a_slice(tmp_path, text):
    save_series(tmp_path)
    (tmp_path / "notes").write_text(text)
    np.testing.assert_array_equal(values(tmp_path), series_pixels().T)


def test_linked_subfolders_and_slices_are_read_and_loops_end(tmp_path):
    stored = save_series(tmp_path / "store")
    case = tmp_path / "case"
    (case / "more").mkdir(parents=True)
    (case / "slices").symlink_to(stored)
    (case / "again").symlink_to(stored)
    (case / "more" / "loop").symlink_to(case)
    image, warnings = read_image(str(case), "ct")
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)
    assert len(files_in(case)) == 9
    assert not any("copies" in text for text in warnings)


def test_a_dicomdir_stands_for_its_folder(tmp_path):
    save_series(tmp_path / "IMAGES", Modality="MR")
    index = pydicom.Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.FileSetID, index.DirectoryRecordSequence = "DISC", []
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    for given in (tmp_path, tmp_path / "DICOMDIR"):
        image, warnings = read_image(str(given), "mr")
        np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T)
        assert warnings == []
        check_case_headers(case_from_paths("p", {"ct": given, "mr": given}))
    assert len(files_in(tmp_path / "DICOMDIR")) == 10  # for --resume


def test_a_name_may_hold_the_separator(tmp_path):
    folder = save_series(tmp_path / "a::1.2.3" / "b::echo=1")
    for given in (str(folder), f"{folder}::1.2.3", f"{folder}::1.2.3::number=all"):
        np.testing.assert_array_equal(values(given), series_pixels().T)
    files = case_from_paths("p", {"ct": f"{folder}::1.2.3", "mr": folder})
    assert files.images["ct"] == Source(str(folder), "1.2.3")


def test_a_path_that_is_not_there_is_named_without_its_selectors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_image(f"{tmp_path / 'none'}::1.2.3::echo=90", "ct")
    source = Source.parse("none::1.2.3::echo=90")
    assert (source.path, source.series) == ("none", "1.2.3")
    assert str(source) == "none::1.2.3::echo=90"
