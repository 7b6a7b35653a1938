"""Voxels as NRRD, MetaImage and NIfTI store them: every type and packing, and headers that lie."""

import bz2
import gzip
import json

import numpy as np
import pytest
import SimpleITK as sitk
from data_phantoms import oblique, ramp, save_nifti
from test_lying_files import VOXELS, assert_ramp, metaimage, nrrd, patched

from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.data.readers import read_raw
from fusion_pipeline.data.sources import Source

SIZE = (40, 36, 30)


def smooth(low, high):
    """A smooth image that fills a range, ``(x, y, z)``."""
    i, j, k = np.indices(SIZE)
    wave = np.sin(i / 6) * np.cos(j / 7) * np.cos(k / 9)
    return np.round(low + (high - low) * (wave + 1) / 2)


def stored(values, dtype):
    """Bytes of voxels."""
    return values.astype(dtype).ravel(order="F").tobytes()


class TestTypesAndPackings:
    @pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    @pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
    def test_each_type_plain_and_packed(self, tmp_path, kind, name):
        values = (ramp() % 120).astype(kind)
        image = sitk.GetImageFromArray(values.T)
        image.SetSpacing((1, 2, 3))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        read = []
        for packed in (False, True):
            path = tmp_path / f"{packed}{name}"
            sitk.WriteImage(image, str(path), useCompression=packed)
            read.append(read_raw(Source(str(path)), "x"))
        for one in read:
            np.testing.assert_array_equal(one.array, values.astype(np.float32))
            np.testing.assert_allclose(one.affine @ [0, 1, 0, 0], [-2, 0, 0, 0], atol=1e-12)
            assert one.warnings == []

    @pytest.mark.parametrize(
        ("encoding", "data"),
        [
            ("bzip2", bz2.compress(VOXELS)),
            ("GZip", gzip.compress(VOXELS)),
            ("gzip", gzip.compress(VOXELS[:900]) + gzip.compress(VOXELS[900:])),
        ],
    )
    def test_packings_of_nrrd(self, tmp_path, encoding, data):
        assert_ramp(nrrd(tmp_path, data, encoding=encoding))
        skipped = gzip.compress(b"12345" + VOXELS)
        assert_ramp(nrrd(tmp_path, skipped, encoding="gzip", byte_skip=5))
        assert_ramp(nrrd(tmp_path, b"one line\n" + VOXELS, line_skip=1))

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (gzip.compress(VOXELS * 2), "expected 2772 bytes of voxels, got"),
            (gzip.compress(VOXELS[:-9]), "got 2763 bytes of voxels where the header promises"),
            (gzip.compress(VOXELS)[:-30], "incomplete or truncated"),
            (gzip.compress(VOXELS)[:-8] + b"\0" * 8, "Incorrect checksum"),
        ],
    )
    def test_a_packed_nrrd_is_checked(self, tmp_path, data, words):
        with pytest.raises(InputError, match=words):
            read_image(nrrd(tmp_path, data, encoding="gzip"), "mr")

    def test_a_last_axis_of_one(self, tmp_path):
        four = {"NDims": "4", "DimSize": "11 14 9 1", "ElementSpacing": "1 1.5 3 1"}
        turn = {"TransformMatrix": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "Offset": "5 6 7 0"}
        image, notes = read_image(metaimage(tmp_path, VOXELS, **four, **turn), "mr")
        np.testing.assert_allclose(image.affine, [[-1, 0, 0, -5], [0, -1.5, 0, -6], *_Z])
        assert notes == []

    def test_bytes_before_the_voxels_are_told(self, tmp_path):
        (tmp_path / "a.raw").write_bytes(b"H" * 100 + VOXELS)
        path = metaimage(tmp_path, b"", "a.mhd", ElementDataFile="a.raw")
        assert "a.raw has 100 bytes more than the header counts" in read_image(path, "mr")[1][0]
        assert_ramp(metaimage(tmp_path, b"", "b.mhd", HeaderSize="100", ElementDataFile="a.raw"))


_Z = [[0, 0, 3, 7], [0, 0, 0, 1]]


class TestTypesThatLie:
    @pytest.mark.parametrize(
        ("values", "is_stored", "said", "words"),
        [
            ((0, 4000), "<i2", {"BinaryDataByteOrderMSB": "True"}, "another byte order"),
            ((-900, 900), "<i2", {"ElementType": "MET_USHORT"}, "a sign was lost"),
            ((-900, 900), "<f4", {"ElementType": "MET_INT"}, "only as floating-point"),
            ((1, 900), "<f8", {"ElementType": "MET_ULONG_LONG"}, "only as floating-point"),
        ],
    )
    def test_voxels_of_another_type(self, tmp_path, values, is_stored, said, words):
        lines = {"DimSize": "40 36 30", **said}
        with pytest.raises(InputError, match=words):
            read_image(metaimage(tmp_path, stored(smooth(*values), is_stored), **lines), "mr")

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (smooth(0, 4000), "i2"),
            (smooth(-128, 127), "i1"),
            (smooth(0, 255), "u1"),
            (smooth(0, 255) * 257, "u2"),
            (np.where(smooth(-1, 1) > 0, smooth(0, 900), -1), "i2"),  # a negative background
            (np.where(smooth(-1, 1) > 0, smooth(0, 90), -1), "i1"),
            (smooth(-1000, 3000), "i4"),
            (smooth(0, 2e9), "i4"),
            (255 * (smooth(-1, 1) > 0), "u1"),
            (np.random.default_rng(0).integers(0, 256, SIZE), "u1"),
            (np.random.default_rng(0).integers(-999, 999, SIZE), "i2"),
        ],
    )
    def test_images_and_noise_are_silent(self, tmp_path, values, dtype):
        path = save_nifti(tmp_path / "a.nii", values.astype(dtype))
        np.testing.assert_array_equal(read_raw(Source(str(path)), "x").array, np.float32(values))

    def test_nifti_that_says_another_type(self, tmp_path):
        path = save_nifti(tmp_path / "a.nii", smooth(0, 900).astype("f4"))
        with pytest.raises(InputError, match="floating-point numbers"):
            read_image(patched(path, 70, "<2h", 8, 32), "mr")


class TestTextsThatLie:
    def test_a_field_that_is_given_twice(self, tmp_path):
        path = metaimage(tmp_path, VOXELS)
        head = path.read_bytes()
        path.write_bytes(head.replace(b"ElementType", b"ElementSpacing = 9 9 9\nElementType"))
        with pytest.raises(InputError, match="elementspacing is given twice"):
            read_image(path, "mr")
        path.write_bytes(head.replace(b"ElementType", b"ElementSpacing = 1 1.5 3\nElementType"))
        assert_ramp(path)

    def test_voxel_sizes_that_are_no_numbers(self, tmp_path):
        told = nrrd(tmp_path, space_directions=None, spacings="nan nan nan")
        assert_ramp(_without(told, b"space directions"), messages=["no voxel sizes"])

    def test_nifti_without_voxel_sizes(self, tmp_path):
        path = save_nifti(tmp_path / "a.nii", ramp(), sform_code=0)
        assert_ramp(path)
        assert_ramp(patched(path, 80, "<3f", 0, 0, 0), messages=["voxel sizes are guesses"])

    def test_a_negative_size(self, tmp_path):
        path = patched(save_nifti(tmp_path / "a.nii", ramp()), 42, "<h", -11)
        with pytest.raises(InputError, match="sizes above 0 in the header, got the shape -11x14x9"):
            read_image(path, "mr")


def _without(path, name):
    """The file without a line of its header."""
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(name)))
    return path


class TestSideFile:
    def test_modality_and_units(self, tmp_path):
        path = save_nifti(tmp_path / "a.nii.gz", ramp(), oblique())
        side = tmp_path / "a.json"
        side.write_text(json.dumps({"Modality": "PT", "Units": "Bq/mL"}), encoding="utf-8")
        image, notes = read_image(path, "pet")
        assert (image.units, notes) == ("Bq/ml", [])
        assert "the file says modality PT, the key says mr." in read_image(path, "mr")[1][0]

    @pytest.mark.parametrize("text", ["[1]", "{", '{"Modality": 5}', '{"Modality": "MR"}'])
    def test_others_are_silent(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert_ramp(save_nifti(tmp_path / "a.nii", ramp()))
