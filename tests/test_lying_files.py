"""Headers that contradict their voxels or themselves: refused, or told; and what stays silent."""

import gzip
import struct
import zlib

import numpy as np
import pytest
from data_phantoms import oblique, ramp, save_nifti, save_series
from dicom_cases import put, slices
from PIL import Image as PillowImage
from pydicom import Dataset

from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.data.dicom_files import read_header
from fusion_pipeline.data.nuclides import HALF_LIFE
from fusion_pipeline.data.reading import read_landmarks
from fusion_pipeline.data.suv import emission_scale

VOXELS = ramp().astype("<i2").ravel(order="F").tobytes()
MR = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}


def patched(path, at, form, *values):
    """The file with other bytes in its header."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, at, *values)
    path.write_bytes(raw)
    return path


def metaimage(folder, data, name="a.mha", **fields):
    """A MetaImage of the ramp; a field of None is left out."""
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1.5 3",
        "DimSize": "11 14 9",
        "ElementType": "MET_SHORT",
        **fields,
    }
    lines["ElementDataFile"] = lines.pop("ElementDataFile", "LOCAL")
    head = "".join(f"{k} = {v}\n" for k, v in lines.items() if v is not None)
    (folder / name).write_bytes(head.encode() + data)
    return folder / name


def nrrd(folder, data=VOXELS, **fields):
    """An NRRD of the ramp."""
    lines = {
        "type": "short",
        "dimension": 3,
        "sizes": "11 14 9",
        "endian": "little",
        "encoding": "raw",
        "space": "left-posterior-superior",
        "space directions": "(1,0,0) (0,1.5,0) (0,0,3)",
        "space origin": "(0,0,0)",
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    head = "NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in lines.items()) + "\n"
    (folder / "a.nrrd").write_bytes(head.encode() + data)
    return folder / "a.nrrd"


def assert_ramp(path, *, messages=()):
    """Read as it was written, with these messages and no others."""
    image, came = read_image(path, "mr")
    np.testing.assert_array_equal(image.array[0].numpy(), ramp())
    assert len(came) == len(messages)
    for message, words in zip(came, messages, strict=True):
        assert words in message


class TestVoxelsAgainstHeader:
    @pytest.mark.parametrize(
        ("at", "form", "values"),
        [
            (40, "<h", (3,)),  # dim[0]: two volumes called one
            (46, "<h", (8,)),  # dim[3]: a slice less
            (70, "<2h", (4, 16)),  # datatype: floats called 16-bit integers
        ],
    )
    @pytest.mark.parametrize("packed", [False, True])
    def test_nifti_with_more_than_its_header_says(self, tmp_path, at, form, values, packed):
        array = np.stack([ramp()] * 2, -1) if at == 40 else ramp()
        path = patched(save_nifti(tmp_path / "a.nii", array), at, form, *values)
        if packed:
            path = path.rename(tmp_path / "b.nii")
            (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
            path = tmp_path / "a.nii.gz"
        with pytest.raises(InputError, match=r"bytes of voxels, got \d+; the header's sizes"):
            read_image(path, "mr")

    def test_some_bytes_of_padding_are_silent(self, tmp_path):
        path = save_nifti(tmp_path / "a.nii", ramp())
        path.write_bytes(path.read_bytes() + b"\0" * 64)
        assert_ramp(path)

    def test_a_gzip_file_is_checked_to_its_end(self, tmp_path):
        raw = save_nifti(tmp_path / "a.nii", ramp()).read_bytes()
        path = tmp_path / "b.nii.gz"
        path.write_bytes(gzip.compress(raw[:900]) + gzip.compress(raw[900:]))  # two members
        assert_ramp(path)
        damaged = bytearray(gzip.compress(raw, 0))
        damaged[2000] ^= 0x40  # one bit of one voxel, which unpacks without an error
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="CRC check failed"):
            read_image(path, "mr")

    def test_plain_voxels_of_itk_formats(self, tmp_path):
        assert_ramp(metaimage(tmp_path, VOXELS))
        assert_ramp(nrrd(tmp_path))
        for path in (metaimage(tmp_path, VOXELS * 2), nrrd(tmp_path, VOXELS * 2)):
            with pytest.raises(InputError, match="expected 2772 bytes of voxels, got 5544"):
                read_image(path, "mr")
        with pytest.raises(InputError, match="got 2372 bytes of voxels where the header promises"):
            read_image(metaimage(tmp_path, VOXELS[:-400]), "mr")
        with pytest.raises(InputError, match=r"its voxels in gone.raw, got no such file"):
            read_image(metaimage(tmp_path, b"", "a.mhd", ElementDataFile="gone.raw"), "mr")
        with pytest.raises(InputError, match="expected voxels in binary form"):
            read_image(metaimage(tmp_path, b"1 2 3", BinaryData="False"), "mr")

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("size", [True, False])
    def test_packed_metaimage(self, tmp_path, order, size):
        big = order == ">"
        packed = zlib.compress(ramp().astype(f"{order}i2").ravel(order="F").tobytes())
        fields = {"CompressedData": "True", "BinaryDataByteOrderMSB": str(big)}
        fields["CompressedDataSize"] = len(packed) if size else None
        assert_ramp(metaimage(tmp_path, packed, **fields))
        (tmp_path / "a.zraw").write_bytes(packed)
        assert_ramp(metaimage(tmp_path, b"", "b.mhd", ElementDataFile="a.zraw", **fields))

    def test_a_packed_metaimage_lies_where_the_plain_one_does(self, tmp_path):
        turned = {"TransformMatrix": "0 1 0 -1 0 0 0 0 1", "Offset": "5 -6 7"}
        plain = read_image(metaimage(tmp_path, VOXELS, **turned), "mr")[0]
        packed = metaimage(tmp_path, zlib.compress(VOXELS), CompressedData="True", **turned)
        np.testing.assert_array_equal(read_image(packed, "mr")[0].affine, plain.affine)

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (zlib.compress(VOXELS[:-600]), "got 2172 bytes of voxels where the header promises"),
            (zlib.compress(VOXELS)[:-90], "incomplete or truncated stream"),
            (zlib.compress(VOXELS * 2), "expected 2772 bytes of voxels, got 3080 or more"),
            (
                zlib.compress(VOXELS, 0)[:900] + b"?" + zlib.compress(VOXELS, 0)[901:],
                "Incorrect checksum",
            ),
        ],
    )
    def test_a_packed_metaimage_that_is_damaged(self, tmp_path, data, words):
        path = metaimage(tmp_path, data, CompressedData="True", CompressedDataSize=len(data))
        with pytest.raises(InputError, match=words):
            read_image(path, "mr")

    def test_a_list_of_files(self, tmp_path):
        names = [f"s{k}.raw" for k in range(9)]
        for k, name in enumerate(names):
            (tmp_path / name).write_bytes(VOXELS[k * 308 : (k + 1) * 308])
        listed = "\n".join(names).encode()
        assert_ramp(metaimage(tmp_path, listed + b"\n", "a.mhd", ElementDataFile="LIST"))
        with pytest.raises(InputError, match="whose last line has no end"):
            read_image(metaimage(tmp_path, listed, "a.mhd", ElementDataFile="LIST"), "mr")

    def test_plain_dicom_pixels(self, tmp_path):
        def twice(ds, k):
            ds.PixelData = ds.PixelData * (1 + (k == 3))

        def padded(ds, _):
            ds.PixelData = ds.PixelData + bytes(16)

        assert_ramp(slices(tmp_path / "padded", padded, **MR))
        with pytest.raises(InputError, match=r"308 bytes of pixels, got 616 in a03.dcm"):
            read_image(slices(tmp_path / "twice", twice, **MR), "mr")


class TestScale:
    @pytest.mark.parametrize("slope", [1e37, 1e-42])
    def test_a_slope_beyond_belief(self, tmp_path, slope):
        path = patched(save_nifti(tmp_path / "a.nii", ramp().astype("i2")), 112, "<f", slope)
        with pytest.raises(InputError, match="correct the scale of its values"):
            read_image(path, "mr")

    @pytest.mark.parametrize("scale", [1e-9, 1e9])  # ADC in m2/s, counts
    def test_small_and_large_units_are_silent(self, tmp_path, scale):
        path = save_nifti(tmp_path / "a.nii", (ramp() * scale).astype("f4"))
        assert read_image(path, "mr")[1] == []

    def test_a_negative_slope_is_told(self, tmp_path):
        path = patched(save_nifti(tmp_path / "a.nii", ramp().astype("i2")), 112, "<f", -1.0)
        series = slices(tmp_path / "s", put(RescaleSlope=-1, RescaleIntercept=0), **MR)
        meta = metaimage(tmp_path, VOXELS, ElementToIntensityFunctionSlope="-1")
        for given in (path, series, meta):
            image, messages = read_image(given, "mr")
            np.testing.assert_array_equal(image.array[0].numpy(), -ramp())
            assert len(messages) == 1
            assert "bright and dark change places" in messages[0]

    def test_a_slice_of_slope_zero_is_named(self, tmp_path):
        def lost(ds, k):
            ds.RescaleSlope, ds.RescaleIntercept = 0 if k == 4 else 1, 0

        with pytest.raises(InputError, match=r"RescaleSlope 0 and RescaleIntercept 0 in a04.dcm"):
            read_image(slices(tmp_path / "s", lost, **MR), "mr")

    def test_a_lost_sign(self, tmp_path):
        signed = ramp().astype("i2") - 1500
        wrapped = save_nifti(tmp_path / "a.nii", signed.astype("u2"))
        series = slices(tmp_path / "s", put(PixelRepresentation=0), plus=-1500, **MR)
        for given in (wrapped, series):
            with pytest.raises(InputError, match="as if a sign was lost"):
                read_image(given, "mr")
        assert read_image(save_nifti(tmp_path / "b.nii", signed), "mr")[1] == []
        full = (ramp() / ramp().max() * 65535).astype("u2")  # 16 bits in use
        assert read_image(save_nifti(tmp_path / "c.nii", full), "mr")[1] == []

    @pytest.mark.parametrize(
        ("elements", "told"),
        [
            ({"BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}, True),
            ({"BitsStored": 10, "HighBit": 9}, True),
            ({"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}, False),
            ({"BitsStored": 13, "HighBit": 12}, False),
        ],
    )
    def test_bits_that_the_header_does_not_count(self, tmp_path, elements, told):
        messages = read_image(slices(tmp_path / "s", put(**elements), **MR), "mr")[1]
        assert len(messages) == told
        assert not told or "bits above those that the header counts" in messages[0]


class TestMeaning:
    @pytest.mark.parametrize(
        ("code", "words"), [(1002, "are labels (label)"), (5, "are a statistic (z score)")]
    )
    def test_an_intent_that_is_no_image(self, tmp_path, code, words):
        assert_ramp(save_nifti(tmp_path / "a.nii", ramp(), intent_code=code), messages=[words])

    @pytest.mark.parametrize("code", [0, 1001, 2001])
    def test_other_intents_are_silent(self, tmp_path, code):
        assert_ramp(save_nifti(tmp_path / "a.nii", ramp(), intent_code=code))

    def test_a_modality_of_metaimage(self, tmp_path):
        assert_ramp(metaimage(tmp_path, VOXELS, Modality="MET_MOD_MR"))
        assert_ramp(metaimage(tmp_path, VOXELS, Modality="MET_MOD_UNKNOWN"))
        other = metaimage(tmp_path, VOXELS, Modality="MET_MOD_NM")
        assert_ramp(other, messages=["says modality NM, the key says mr"])
        with pytest.raises(InputError, match="US"):
            read_image(metaimage(tmp_path, VOXELS, Modality="MET_MOD_US"), "mr")

    def test_two_byte_orders(self, tmp_path):
        assert_ramp(metaimage(tmp_path, VOXELS, ElementByteOrderMSB="False"))
        with pytest.raises(InputError, match="expected one byte order"):
            read_image(metaimage(tmp_path, VOXELS, ElementByteOrderMSB="True"), "mr")

    @pytest.mark.parametrize("lost", ["none none none", "(1,0,0) (0,1.5,0) none"])
    def test_an_axis_without_direction(self, tmp_path, lost):
        words = "the header has no voxel sizes"
        assert_ramp(nrrd(tmp_path, space_directions=lost), messages=[words])

    def test_quantized_values_of_nrrd(self, tmp_path):
        path = nrrd(tmp_path, old_min=-1000, old_max=3000)
        assert_ramp(path, messages=["stand for -1000 to 3000"])

    def test_a_list_axis_of_one_is_refused_in_plain_words(self, tmp_path):
        path = nrrd(
            tmp_path,
            dimension=4,
            sizes="1 11 14 9",
            space_directions="none (1,0,0) (0,1.5,0) (0,0,3)",
            kinds="list domain domain domain",
        )
        with pytest.raises(InputError, match="one real value per voxel, got a vector of one short"):
            read_image(path, "mr")

    def test_lossy_compression_is_told(self, tmp_path):
        lossy = put(LossyImageCompression="01", LossyImageCompressionRatio=40.0)
        assert_ramp(slices(tmp_path / "a", lossy, **MR), messages=["with losses (40 : 1)"])
        assert_ramp(slices(tmp_path / "b", put(LossyImageCompression="00"), **MR))


class TestGeometry:
    @pytest.mark.parametrize(
        "cosines", [[2, 0, 0, 0, 1, 0], [1, 0, 0, 0.5, 0.866, 0], [1, 0, 0, 1, 0, 0], [0] * 6]
    )
    def test_cosines_that_are_no_axes(self, tmp_path, cosines):
        path = save_series(tmp_path / "s", orientation=cosines, **MR)
        with pytest.raises(InputError, match="directions of length 1 that are perpendicular"):
            read_image(path, "mr")

    def test_cosines_that_were_rounded_are_silent(self, tmp_path):
        path = save_series(tmp_path / "s", orientation=(0.999, 0.044, 0, -0.044, 0.999, 0), **MR)
        assert read_image(path, "mr")[1] == []

    @pytest.mark.parametrize("spacing", [[-1.5, 1.0], [0.0, 0.0]])
    def test_pixel_sizes_below_zero(self, tmp_path, spacing):
        with pytest.raises(InputError, match="expected pixel sizes above 0 mm"):
            read_image(slices(tmp_path / "s", put(PixelSpacing=spacing), **MR), "mr")


class TestOneSeries:
    @pytest.mark.parametrize(
        ("element", "values"),
        [
            ("PatientName", ("Rot^Ada", "Blau^Bo")),
            ("PatientBirthDate", ("19500101", "19800202")),
            ("PatientSex", ("F", "M")),
        ],
    )
    def test_two_people_are_refused_without_naming_them(self, tmp_path, element, values):
        def edit(ds, k):
            setattr(ds, element, values[k > 4])

        with pytest.raises(InputError, match=f"slices of one {element}, got 2 of them") as refused:
            read_image(slices(tmp_path / "s", edit, **MR), "mr")
        assert values[0] not in str(refused.value)

    def test_a_name_that_some_slices_lack_is_silent(self, tmp_path):
        def edit(ds, k):
            ds.PatientName = "Rot^Ada" if k > 4 else ""

        assert_ramp(slices(tmp_path / "s", edit, **MR))

    def test_two_contrasts_in_two_halves_of_a_stack(self, tmp_path):
        def halves(*words):
            return lambda ds, k: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", words[k > 4]])

        path = slices(tmp_path / "a", halves("WATER", "FAT"), **MR)
        with pytest.raises(InputError, match=r"contrast=FAT \(4 slices\), contrast=WATER"):
            read_image(path, "mr")
        assert len(read_image(f"{path}::contrast=WATER", "mr")[0].array[0, 0, 0]) == 5
        assert_ramp(slices(tmp_path / "b", halves("AXIAL", "OTHER"), **MR))

    @pytest.mark.parametrize("element", ["ImageComments", "SeriesDescription"])
    def test_phases_that_a_free_text_tells_apart_can_be_picked(self, tmp_path, element):
        path = slices(tmp_path / "s", put(**{element: "0%"}), **MR)
        slices(path, put(**{element: "50%"}), name="b", plus=50, **MR)
        with pytest.raises(InputError, match=r"=0% \(9 slices\), \w+=50% \(9 slices\)") as refused:
            read_image(path, "mr")
        name = "comment" if element == "ImageComments" else "description"
        assert f"folder::{name}=0%" in str(refused.value)
        assert_ramp(f"{path}::{name}=0%")


@pytest.mark.parametrize(
    ("nuclide", "meaning", "given"),
    [("F-18", "^18^Fluorine", True), ("Zr-89", "^89^Zirconium", False)],
)
def test_a_time_of_day_alone_does_for_short_lived_nuclides(tmp_path, nuclide, meaning, given):
    info, code = Dataset(), Dataset()
    code.CodeMeaning = meaning
    info.RadionuclideCodeSequence = [code]
    info.RadionuclideTotalDose, info.RadionuclideHalfLife = 7e7, HALF_LIFE[nuclide]
    info.RadiopharmaceuticalStartTime = "235500"  # before midnight
    elements = {
        "Modality": "PT",
        "Units": "BQML",
        "PatientWeight": 70.0,
        "CorrectedImage": ["ATTN", "DECY"],
        "DecayCorrection": "START",
        "SeriesDate": "20240102",
        "SeriesTime": "005500",
        "RadiopharmaceuticalInformationSequence": [info],
    }
    folder = slices(tmp_path / "s", put(**elements))
    headers = [read_header(path) for path in sorted(folder.iterdir())]
    scale = emission_scale(headers, "pet")
    assert (scale.units == "SUV") == given
    if given:
        decayed = 7e7 * 2 ** (-3600 / HALF_LIFE[nuclide])
        assert scale.factor == pytest.approx(70000 / decayed)
    else:
        assert "without its date, which a half-life of 78 h needs" in scale.warnings[0]


def test_a_png_of_several_pictures_or_turned_by_viewers(tmp_path):
    one, other = (
        PillowImage.fromarray(np.arange(k, k + 240, dtype="u1").reshape(12, 20)) for k in (0, 9)
    )
    one.save(tmp_path / "a.png", save_all=True, append_images=[other])
    with pytest.raises(InputError, match="2 pictures, an animation"):
        read_image(tmp_path / "a.png", "mr")
    turned = one.getexif()
    for orientation, told in ((1, 0), (6, 1)):
        turned[0x112] = orientation
        one.save(tmp_path / "b.png", exif=turned)
        image, messages = read_image(tmp_path / "b.png", "mr")
        assert image.shape == (20, 12)
        assert len(messages) == told


@pytest.mark.parametrize(
    ("comment", "signs"),
    [
        ("# CoordinateSystem = LPS", (-1, -1, 1)),
        ("# CoordinateSystem = 1", (-1, -1, 1)),
        ("# CoordinateSystem = RAS", (1, 1, 1)),
        ("# CoordinateSystem = 0", (1, 1, 1)),
        ("# by hand", (1, 1, 1)),
    ],
)
def test_points_by_another_convention(tmp_path, comment, signs):
    path = tmp_path / "a.csv"
    path.write_text(f"{comment}\n1,2,3\n4,5,6\n")
    np.testing.assert_array_equal(read_landmarks(path), np.array([[1, 2, 3], [4, 5, 6]]) * signs)


def test_points_in_voxels_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("# CoordinateSystem = IJK\n1,2,3\n")
    with pytest.raises(InputError, match="CoordinateSystem = IJK"):
        read_landmarks(path)


def test_a_qform_that_is_no_turn_says_so(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ramp(), oblique(), sform_code=0)
    with pytest.raises(InputError, match="a qform whose quaternion is no rotation"):
        read_image(patched(path, 256, "<3f", 0.9, 0.9, 0.1), "mr")
