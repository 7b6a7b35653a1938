"""What a file says is not believed blindly: scales, padding, companions, units, odd packing."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from data_phantoms import SHAPE, oblique, ramp, save, save_nifti
from data_phantoms import dicom_slice as dicom

from fusion_pipeline.data import InputError, case_from_paths, load_case, read_image
from fusion_pipeline.data.checked_image import CheckImaged
from fusion_pipeline.data.headers import check_case_headers, read_grid
from fusion_pipeline.data.loading import reading
from fusion_pipeline.data.sources import Source
from fusion_pipeline.transforms import FieldOfViewd
from fusion_pipeline.transforms.modality import looks_like_hu


def ct(shape=(40, 36, 20), seed=0):
    """Air, a body of fat and flesh, two bones; HU."""
    rng = np.random.default_rng(seed)
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    label = np.zeros(shape, int)
    label[(x / 0.85) ** 2 + (y / 0.8) ** 2 < 1] = 1
    label[(x / 0.75) ** 2 + (y / 0.7) ** 2 < 1] = 2
    label[((x - 0.25) / 0.2) ** 2 + ((y - 0.1) / 0.2) ** 2 < 1] = 3
    values = np.array([-1000.0, -90.0, 55.0, 800.0])[label] + 8 * rng.normal(size=shape)
    return np.rint(values).astype(np.float32)


def one_below(values, value=-1.0):
    out = values.copy()
    out[0, 0, 0] = value
    return out


HU = {
    "as it is": ct(),
    "clipped at -1024": np.clip(ct(), -1000, 3071) - 24 * (ct() < -900),
    "padded with -2000": np.where(np.indices(ct().shape)[0] < 3, -2000, ct()),
    "cropped inside the body": ct()[4:18, 14:22, 2:18],
    "small in a large field": np.pad(ct(), ((80, 80), (80, 80), (0, 0)), constant_values=-1000),
}
NOT_HU = {
    "-1..1": ct().clip(-1000, 1000) / 1000,
    "z-scored": (ct() - ct().mean()) / ct().std(),
    "stored, one voxel of -1": one_below(ct() + 1024),
    "stored, padded with -2000": np.where(np.indices(ct().shape)[0] < 3, -2000, ct() + 1024),
    "stored, one voxel of -1000": one_below(ct() + 1024, -1000),
    "a window": ct().clip(-160, 240),
    "shifted twice": ct() - 1024,
    "0..255": (ct().clip(-160, 240) + 160) * 255 / 400,
    "-128..127": np.rint((ct().clip(-1000, 1000) + 1000) * 255 / 2000) - 128,
}


class TestHounsfield:
    @pytest.mark.parametrize("values", HU.values(), ids=HU.keys())
    def test_air_and_tissue_make_it_hu_without_a_word(self, tmp_path, values):
        image, warnings = read_image(save_nifti(tmp_path / "a.nii", values), "ct")
        assert (image.units, image.fill_value, warnings) == ("HU", -1000.0, [])

    @pytest.mark.parametrize("values", NOT_HU.values(), ids=NOT_HU.keys())
    def test_a_negative_value_does_not(self, tmp_path, values):
        image, (warning,) = read_image(save_nifti(tmp_path / "a.nii", values), "ct")
        assert image.units == "a.u."
        assert "do not look like HU" in warning
        data = values[values > -1100] if values.min() == -2000 else values
        assert data.min() <= image.fill_value <= np.percentile(data, 2)

    def test_what_is_written_again_is_padded_with_its_darkest(self, tmp_path):
        image, _ = read_image(save_nifti(tmp_path / "a.nii", NOT_HU["-1..1"]), "ct")
        assert image.fill_value == pytest.approx(-1, abs=0.03)
        assert image.with_array(image.array, units="a.u.").fill_value == 0  # harmonized: 0..1
        assert image.with_array(image.array + 1).fill_value == image.fill_value

    def test_an_mr_is_never_in_hu(self, tmp_path):
        image, warnings = read_image(save_nifti(tmp_path / "a.nii", ct()), "mr")
        assert (image.units, image.fill_value, warnings) == ("a.u.", 0.0, [])

    def test_no_value_is_no_hu(self):
        assert not looks_like_hu(np.full(5, np.nan))


def prepared(path, key="ct"):
    """Image, field of view and warnings after the first transforms."""
    steps = reading()
    data = FieldOfViewd("image")(steps({"image": str(path), "key": key}))
    view = data["image_field_of_view"].numpy()[0]
    return data["image"].numpy()[0], view > 0, data["image"].meta["warnings"]


def circle(shape=(40, 36, 20)):
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return x**2 + y**2 > 1


class TestPadding:
    @pytest.mark.parametrize("value", [-2000.0, -3024.0, -32768.0, 32767.0])
    def test_a_value_that_cannot_be_is_padding_in_any_shape(self, tmp_path, value):
        values = np.where(circle(), value, ct())
        values[20:22, 18:21, 8:11] = value  # also in the middle
        image, view, warnings = prepared(save_nifti(tmp_path / "a.nii", values))
        np.testing.assert_array_equal(view, values != value)
        np.testing.assert_array_equal(image, np.where(view, values, -1000))
        assert warnings == []

    def test_two_such_values_are_both(self, tmp_path):
        values = np.where(circle(), -2000, ct())
        values[:2] = -3024
        assert not prepared(save_nifti(tmp_path / "a.nii", values))[1][values < -1100].any()

    @pytest.mark.parametrize("scale", [1.0, 40.0])
    def test_bright_and_dark_values_that_belong_to_the_image_are_seen(self, tmp_path, scale):
        values = (ct() + 1010) * scale  # up to 73 000 Bq/ml
        assert prepared(save_nifti(tmp_path / "a.nii", values), "pet")[1].all()
        saturated = np.minimum(values, np.percentile(values, 98)) * 33000 / values.max()
        assert prepared(save_nifti(tmp_path / "b.nii", saturated), "mr")[1].all()
        metal = ct()
        metal[10, 10, :3] = -1400  # a streak
        assert prepared(save_nifti(tmp_path / "c.nii", metal))[1].all()

    def test_voxels_without_a_number_are_not_seen(self, tmp_path):
        values = np.where(circle(), np.nan, ct())
        image, view, warnings = prepared(save_nifti(tmp_path / "a.nii", values))
        np.testing.assert_array_equal(view, ~circle())
        assert (image[~view] == -1000).all()
        assert "NaN or infinite voxels were set to -1000" in warnings[0]

    @pytest.mark.parametrize("turn", ["ijk", "kij"])
    def test_padding_follows_the_image_to_other_axes(self, tmp_path, turn):
        from monai.transforms import Orientationd

        values = np.where(circle(), -2000, ct())
        path = save_nifti(tmp_path / "a.nii", values, np.diag([-2.0, -2.0, 3.0, 1.0]))
        data = reading()({"image": str(path), "key": "ct"})
        codes = {"ijk": "RAS", "kij": "SRA"}[turn]
        data = FieldOfViewd("image")(Orientationd("image", codes, labels=None)(data))
        view = data["image_field_of_view"].numpy()[0] > 0
        turned = circle() if turn == "ijk" else circle().transpose(2, 0, 1)
        np.testing.assert_array_equal(view, ~turned[::-1, ::-1] if turn == "ijk" else ~turned)

    def test_images_without_padding_have_no_such_entry(self, tmp_path):
        data = reading()({"image": str(save_nifti(tmp_path / "a.nii", ct())), "key": "ct"})
        assert "padding_of_image" not in data
        assert isinstance(reading().transforms[-1], CheckImaged)


class TestDicomPadding:
    def folder(self, tmp_path, pixels, **elements):
        for n, plane in enumerate(pixels):
            made = dicom(
                (5, -7, 3.0 * n), plane, RescaleIntercept=-1024, RescaleSlope=1, **elements
            )
            save(made, tmp_path / f"{n}.dcm")
        return tmp_path

    def pixels(self):
        return np.ascontiguousarray(ct((24, 22, 12)).T + 1024).astype(np.int16)

    def test_the_header_says_what_is_padding(self, tmp_path):
        pixels = self.pixels()
        pixels[:, :3] = 77
        pixels[:, 3:5] = 80
        folder = self.folder(tmp_path, pixels, PixelPaddingValue=77, PixelPaddingRangeLimit=80)
        image, view, warnings = prepared(folder)
        np.testing.assert_array_equal(view[:, :5], False)
        assert view[:, 5:].mean() > 0.99  # some noise has these values too
        assert (image[:, :5] == -1000).all()
        assert warnings == []

    def test_clipped_air_of_the_same_value_is_seen(self, tmp_path):
        pixels = self.pixels()
        air = pixels < 100
        pixels[air] = np.where(np.random.default_rng(0).random(air.sum()) < 0.4, 0, pixels[air])
        pixels[:, :5] = 0
        _, view, _ = prepared(self.folder(tmp_path, pixels, PixelPaddingValue=0))
        assert not view[:, :4].any()
        assert view[:, 8:].all()

    @pytest.mark.parametrize("value", [-2000, 63536])  # as SS, and the same bits as US
    def test_signed_and_unsigned_writers(self, tmp_path, value):
        from pydicom.dataelem import DataElement

        pixels = self.pixels()
        pixels[:, :3] = -2000
        for n, plane in enumerate(pixels):
            made = dicom((5, -7, 3.0 * n), plane)
            made.add(DataElement(0x00280120, "SS" if value < 0 else "US", value))
            save(made, tmp_path / f"{n}.dcm")
        np.testing.assert_array_equal(prepared(tmp_path)[1][:, :3], False)

    def test_without_the_element_all_is_seen(self, tmp_path):
        assert prepared(self.folder(tmp_path, self.pixels()))[1].all()


# --- companions


@pytest.fixture
def paths(tmp_path):
    images = {"ct": ct((20, 18, 12)), "mr": ramp((20, 18, 12))}
    return {k: save_nifti(tmp_path / f"{k}.nii", v, oblique()) for k, v in images.items()}


def mask(path, affine, shape=(20, 18, 12), at=(slice(5, 12), slice(5, 12), slice(3, 8))):
    values = np.zeros(shape, np.uint8)
    values[at] = 1
    return save_nifti(path, values, affine, qform_code=0)


def both(paths, **extra):
    """The same answer from the headers alone and from loading: warnings, or the refusal."""
    files = case_from_paths("p", paths, masks=extra.get("masks"))
    try:
        case = load_case(files)
    except InputError as error:
        text = str(error)
    else:
        check_case_headers(files)
        return list(case.warnings)
    with pytest.raises(InputError) as caught:
        check_case_headers(files)
    assert str(caught.value) == text
    return text


class TestCompanions:
    def test_a_map_on_its_image_is_silent_whatever_its_axes(self, tmp_path, paths):
        import nibabel as nib

        path = mask(tmp_path / "m.nii", oblique())
        assert both(paths, masks={"ct": path}) == []
        turned = nib.as_closest_canonical(nib.load(path)).as_reoriented([[1, -1], [0, 1], [2, -1]])
        nib.save(turned, tmp_path / "n.nii")
        assert both(paths, masks={"ct": tmp_path / "n.nii"}) == []

    def test_a_map_of_another_shape_that_overlaps_is_silent(self, tmp_path, paths):
        path = mask(tmp_path / "m.nii", oblique((2, 2, 4)), (14, 12, 9), (slice(2, 9),) * 3)
        assert both(paths, masks={"ct": path}) == []

    def test_the_images_shape_and_another_affine_is_said(self, tmp_path, paths):
        path = mask(tmp_path / "m.nii", oblique(origin=(-17.0, 31.0, 12.0)))
        (warning,) = both(paths, masks={"ct": path})
        assert "has the shape of ct and another affine (corners up to 3.0 mm apart)" in warning

    def test_a_lost_header_is_refused(self, tmp_path):
        images = {"ct": ct((20, 18, 12)), "mr": ramp((20, 18, 12))}
        at = oblique(origin=(-5.0, -4.0, -9.0))
        paths = {k: save_nifti(tmp_path / f"{k}.nii", v, at) for k, v in images.items()}
        text = both(paths, masks={"ct": mask(tmp_path / "m.nii", np.eye(4))})
        assert "case 'p', ct_mask" in text
        assert "as if its header were lost; save it with the header of ct" in text

    def test_lps_taken_for_ras_is_refused(self, tmp_path):
        images = {"ct": ct((20, 18, 12)), "mr": ramp((20, 18, 12))}
        at = oblique(origin=(-9.0, -4.0, -9.0))
        paths = {k: save_nifti(tmp_path / f"{k}.nii", v, at) for k, v in images.items()}
        text = both(paths, masks={"ct": mask(tmp_path / "m.nii", np.diag([-1.0, -1, 1, 1]) @ at)})
        assert "mirrored in x and y, as if LPS were RAS" in text

    def test_marks_outside_the_image_are_refused_or_said(self, tmp_path, paths):
        grid = oblique((2.0, 2.0, 4.0), origin=(-40.0, 20.0, 0.0))
        far = mask(tmp_path / "m.nii", grid, (30, 30, 20), (slice(0, 3),) * 3)
        files = case_from_paths("p", paths, masks={"ct": far})
        with pytest.raises(InputError, match="whose marked voxels all lie outside ct"):
            load_case(files)
        partly = mask(tmp_path / "n.nii", grid, (30, 30, 20), (slice(0, 30),) * 3)
        (warning,) = load_case(case_from_paths("p", paths, masks={"ct": partly})).warnings
        assert "% of what it marks lies in ct" in warning


def with_points(tmp_path, paths, points):
    import json

    for key in ("ct", "mr"):
        text = "".join(",".join(map(str, p)) + "\n" for p in points)
        (tmp_path / f"{key}.csv").write_text(text)
    entry = {"id": "p", **{k: str(v) for k, v in paths.items()}}
    entry |= {f"{k}_landmarks": f"{k}.csv" for k in ("ct", "mr")}
    (tmp_path / "l.json").write_text(json.dumps({"testing": [entry]}))
    from fusion_pipeline.data import read_datalist

    return load_case(read_datalist(tmp_path / "l.json")[0])


class TestLandmarks:
    INSIDE = np.array([[5.0, 6, 4, 1], [9, 8, 5, 1], [12, 4, 6, 1]]) @ oblique().T

    def test_points_in_the_image_are_silent(self, tmp_path, paths):
        assert with_points(tmp_path, paths, self.INSIDE[:, :3]).warnings == ()

    def test_some_outside_are_counted(self, tmp_path, paths):
        points = [*self.INSIDE[:, :3], (500.0, 0.0, 0.0)]
        warnings = with_points(tmp_path, paths, points).warnings
        assert [w.split("): ")[1] for w in warnings] == [
            "1 of 4 points lie outside ct.",
            "1 of 4 points lie outside mr.",
        ]

    @pytest.mark.parametrize(
        ("points", "advice"),
        [
            (INSIDE[:, :3] * [-1, -1, 1], "negate x and y: they seem to be LPS mm"),
            (np.array([[5.0, 6, 4], [9, 8, 5]]), "these seem to be voxel indices"),
            (np.array([[900.0, 6, 4]]), "give RAS mm"),
        ],
    )
    def test_all_outside_are_refused_with_what_they_seem_to_be(
        self, tmp_path, paths, points, advice
    ):
        with pytest.raises(InputError, match=f"points in ct, RAS mm, got all of them.*{advice}"):
            with_points(tmp_path, paths, points)


# --- ITK's formats


def nrrd(path, fields, values=None):
    values = np.rint(ramp()).astype("<i2") if values is None else values
    head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {' '.join(map(str, values.shape))}\n"
    text = f"{head}endian: little\nencoding: raw\n{fields}\n"
    path.write_bytes(text.encode() + values.tobytes(order="F"))
    return path


def meta_image(path, fields, values=None):
    values = np.rint(ramp()).astype("<i2") if values is None else values
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    text = f"{head}{fields}DimSize = {' '.join(map(str, values.shape))}\nElementType = MET_SHORT\n"
    path.write_bytes(f"{text}ElementDataFile = LOCAL\n".encode() + values.tobytes(order="F"))
    return path


PLACED = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 4 5 6\n"
SPACED = f"{PLACED}ElementSpacing = 1 2 3\n"
SPACE = "space: left-posterior-superior\nspace origin: (4,5,6)\n"


def directions(*sizes):
    x, y, z = sizes
    return f"space directions: ({x},0,0) (0,{y},0) (0,0,{z})\n"


class TestItkUnits:
    @pytest.mark.parametrize(
        ("unit", "factor"), [("um", 0.001), ("µm", 0.001), ("microns", 0.001), ("cm", 10.0)]
    )
    def test_nrrd_space_units_are_converted(self, tmp_path, unit, factor):
        sizes = np.array([1.0, 2.0, 3.0]) / factor
        units = f'space units: "{unit}" "{unit}" "{unit}"\n'
        origin = f"space: LPS\nspace origin: ({4 / factor},{5 / factor},{6 / factor})\n"
        path = nrrd(tmp_path / "a.nrrd", origin + directions(*sizes) + units)
        image, (warning,) = read_image(path, "mr")
        np.testing.assert_allclose(image.spacing, [1, 2, 3])
        np.testing.assert_allclose(image.affine[:3, 3], [-4, -5, 6])
        assert f"lengths given in {unit} were converted to mm" in warning
        np.testing.assert_allclose(read_grid(Source(str(path)), "a").affine, image.affine)

    def test_metaimage_distance_units_are_converted(self, tmp_path):
        fields = PLACED.replace("4 5 6", "4000 5000 6000") + "ElementSpacing = 1000 2000 3000\n"
        image, (warning,) = read_image(
            meta_image(tmp_path / "a.mha", f"{fields}DistanceUnits = um\n"), "mr"
        )
        np.testing.assert_allclose(image.spacing, [1, 2, 3])
        np.testing.assert_allclose(image.affine[:3, 3], [-4, -5, 6])
        assert "lengths given in um were converted to mm" in warning

    @pytest.mark.parametrize(
        "path_of",
        [
            lambda t: meta_image(t / "a.mha", f"{SPACED}DistanceUnits = mm\n"),
            lambda t: meta_image(t / "a.mha", f"{SPACED}DistanceUnits = ?\n"),
            lambda t: meta_image(t / "a.mha", SPACED),
            lambda t: nrrd(t / "a.nrrd", SPACE + directions(1, 2, 3)),
            lambda t: nrrd(
                t / "a.nrrd", SPACE + directions(1, 2, 3) + 'space units: "mm" "mm" "mm"\n'
            ),
        ],
    )
    def test_mm_are_taken_without_a_word(self, tmp_path, path_of):
        image, warnings = read_image(path_of(tmp_path), "mr")
        np.testing.assert_allclose(image.spacing, [1, 2, 3])
        assert warnings == []

    @pytest.mark.slow
    def test_what_itk_writes_is_silent(self, tmp_path):
        for dims, suffix in ((3, "nrrd"), (3, "mha"), (2, "nrrd"), (2, "mha")):
            image = sitk.GetImageFromArray(ramp((11, 14, 9)[:dims] if dims == 3 else (11, 14, 2)))
            image = image if dims == 3 else image[0]
            sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
            assert read_image(tmp_path / f"a.{suffix}", "mr")[1] == []

    def test_a_unit_that_is_none_of_length_is_refused(self, tmp_path):
        path = nrrd(tmp_path / "a.nrrd", SPACE + directions(1, 2, 3) + 'space units: "s" "s" "s"\n')
        with pytest.raises(InputError, match="expected lengths in mm, um, cm or m, got 's'"):
            read_image(path, "mr")

    def test_a_unit_that_cannot_be_is_not_believed(self, tmp_path):
        units = 'space units: "um" "um" "um"\n'
        image, (warning,) = read_image(
            nrrd(tmp_path / "a.nrrd", SPACE + directions(1, 2, 3) + units), "mr"
        )
        np.testing.assert_allclose(image.spacing, [1, 2, 3])
        assert "the lengths are taken as mm" in warning

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda t: nrrd(t / "a.nrrd", "spacings: 1 2 3\n"), "anatomical orientation and posi"),
            (
                lambda t: nrrd(
                    t / "a.nrrd",
                    SPACE.replace("left-posterior-superior", "scanner-xyz") + directions(1, 2, 3),
                ),
                "no anatomical orientation",
            ),
            (lambda t: meta_image(t / "a.mha", "ElementSpacing = 1 2 3\n"), "orientation and posi"),
            (lambda t: meta_image(t / "a.mha", PLACED), "no voxel sizes"),
            (
                lambda t: meta_image(t / "a.mha", f"{PLACED}ElementSpacing = -1 2 3\n"),
                "negative voxel sizes (-1 2 3)",
            ),
        ],
    )
    def test_what_a_header_lacks_is_said(self, tmp_path, make, words):
        _, (warning,) = read_image(make(tmp_path), "mr")
        assert words in warning


class TestMetaImageAxes:
    def test_axes_that_are_not_of_length_1_are_said(self, tmp_path):
        fields = SPACED.replace("1 0 0 0 1 0 0 0 1", "2 0 0 0 1 0 0 0 1")
        image, (warning,) = read_image(meta_image(tmp_path / "a.mha", fields), "mr")
        np.testing.assert_allclose(image.spacing, [2, 2, 3])
        assert "axes are 2 x 1 x 1 long beside its voxel sizes" in warning

    def test_a_turn_and_rounded_cosines_are_silent(self, tmp_path):
        for text in ("0 1 0 -1 0 0 0 0 1", "0.8 0.6 0 -0.6 0.8 0 0 0 0.99995"):
            fields = SPACED.replace("1 0 0 0 1 0 0 0 1", text)
            assert read_image(meta_image(tmp_path / "a.mha", fields), "mr")[1] == []


class TestMetaImageScale:
    def test_slope_and_offset_are_applied(self, tmp_path):
        scale = "ElementToIntensityFunctionSlope = 0.5\nElementToIntensityFunctionOffset = -1000\n"
        image, warnings = read_image(meta_image(tmp_path / "a.mha", SPACED + scale), "ct")
        np.testing.assert_allclose(image.array[0].numpy(), ramp() * 0.5 - 1000)
        assert (image.units, warnings) == ("HU", [])

    @pytest.mark.parametrize("text", ["0", "nan", "two"])
    def test_a_scale_that_is_none_is_refused(self, tmp_path, text):
        scale = f"ElementToIntensityFunctionSlope = {text}\n"
        with pytest.raises(InputError, match="expected a s"):
            read_image(meta_image(tmp_path / "a.mha", SPACED + scale), "ct")


class TestNifti:
    def test_a_sform_of_zeros_beside_a_good_qform(self, tmp_path):
        path = save_nifti(
            tmp_path / "a.nii",
            srow_x=np.zeros(4),
            srow_y=np.zeros(4),
            srow_z=np.zeros(4),
        )
        image, (warning,) = read_image(path, "mr")
        np.testing.assert_allclose(image.affine, oblique(), atol=1e-4)
        assert "sform maps to no volume; the qform is used" in warning

    def test_a_sform_against_the_voxel_sizes(self, tmp_path):
        path = save_nifti(tmp_path / "a.nii", qform_code=0, pixdim=[1, 3.5, 3.5, 4, 1, 1, 1, 1])
        image, (warning,) = read_image(path, "mr")
        np.testing.assert_allclose(image.affine, oblique(), atol=1e-5)
        assert "sform has voxels of 1 x 1.5 x 3 mm and its pixdim says 3.5 x 3.5 x 4" in warning
        assert read_image(save_nifti(tmp_path / "b.nii", qform_code=0), "mr")[1] == []

    def test_voxels_within_the_header_are_refused(self, tmp_path):
        raw = bytearray(save_nifti(tmp_path / "a.nii").read_bytes())
        raw[108:112] = np.zeros(1, "<f4").tobytes()
        (tmp_path / "b.nii").write_bytes(raw)
        with pytest.raises(InputError, match=r"voxels after the 348 bytes .* a vox_offset of 0"):
            read_image(tmp_path / "b.nii", "mr")

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_negative_voxel_sizes_are_said(self, tmp_path, name):
        raw = bytearray(save_nifti(tmp_path / "b.nii").read_bytes())
        raw[80:84] = np.array([-1.0], "<f4").tobytes()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
        _, (warning,) = read_image(tmp_path / name, "mr")
        assert "negative voxel sizes (-1 x 1.5 x 3 mm); their sign is ignored" in warning

    def test_gzip_or_not_by_the_first_bytes(self, tmp_path):
        plain = save_nifti(tmp_path / "a.nii").read_bytes()
        packed, bare = tmp_path / "p.nii", tmp_path / "b.nii.gz"
        packed.write_bytes(gzip.compress(plain))
        bare.write_bytes(plain)
        for path in (packed, bare):
            image, warnings = read_image(path, "mr")
            np.testing.assert_array_equal(image.array[0].numpy(), ramp())
            assert warnings == []
            assert read_grid(Source(str(path)), "a").shape == SHAPE

    @pytest.mark.parametrize("suffix", ["nii", "nrrd", "mha"])
    def test_one_slice_is_a_2d_image(self, tmp_path, suffix):
        plane = ramp()[..., :1]
        path = tmp_path / f"a.{suffix}"
        if suffix == "nii":
            save_nifti(path, plane, np.diag([2.0, 3.0, 4.0, 1.0]))
        else:
            sitk.WriteImage(sitk.GetImageFromArray(plane.T), str(path))
        image, warnings = read_image(path, "mr")
        assert (image.spatial_dims, image.shape, warnings) == (2, (11, 14), [])
        np.testing.assert_array_equal(image.array[0].numpy(), plane[..., 0])
        assert read_grid(Source(str(path)), "a").shape == (11, 14)

    def test_two_colons_in_a_folder(self, tmp_path):
        folder = tmp_path / "a::b"
        folder.mkdir()
        path = save_nifti(folder / "x.nii")
        assert read_image(str(path), "mr")[0].shape == SHAPE
        assert Source.parse(f"{folder}::1.2.3") == Source(str(folder), "1.2.3")
        assert Source.parse(str(Source.parse(path))) == Source(str(path))


def test_lack_of_memory_is_a_sentence(monkeypatch, tmp_path):
    import nibabel as nib

    def no_room(*_, **__):
        raise MemoryError

    monkeypatch.setattr(nib.Nifti1Image, "get_fdata", no_room)
    with pytest.raises(InputError, match="asks for more memory than is free"):
        read_image(save_nifti(tmp_path / "a.nii"), "mr")
