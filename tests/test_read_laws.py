"""However an image is stored, its reader gives the same values at the same points, or refuses."""

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion_pipeline.data import Image, InputError, read_image
from fusion_pipeline.geometry import apply_affine, inverse_affine, rigid_matrix

SHAPE = (7, 6, 5)
TYPES = {"u1": sitk.sitkUInt8, "i2": sitk.sitkInt16, "u2": sitk.sitkUInt16, "f4": sitk.sitkFloat32}
LIMIT = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

angle = st.floats(-180, 180, allow_nan=False)
size = st.floats(0.05, 40, allow_nan=False)
shift = st.floats(-500, 500, allow_nan=False)
affines = st.builds(
    lambda turn, sizes, origin: rigid_matrix(turn, origin, (0, 0, 0)) @ np.diag([*sizes, 1.0]),
    st.tuples(angle, angle, angle),
    st.tuples(size, size, size),
    st.tuples(shift, shift, shift),
)
orders = st.permutations(range(3))
flips = st.tuples(st.booleans(), st.booleans(), st.booleans())


def values(kind: str) -> np.ndarray:
    """Whole numbers, other along each axis, that each type holds."""
    i, j, k = np.indices(SHAPE)
    return (1 + i + 7 * j + 42 * k).astype(kind)


def stored(array, affine, order, flip):
    """The same image with its axes swapped and flipped."""
    turn = np.array([[axis, -1 if f else 1] for axis, f in zip(order, flip, strict=True)])
    there = nib.orientations.apply_orientation(array, turn)
    return there, affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


def assert_same_world_image(image: Image, array: np.ndarray, affine: np.ndarray) -> None:
    """Each voxel's value stands where the affine says, to a thousandth of a voxel."""
    there = np.argwhere(np.ones(array.shape, bool)).astype(float)
    back = apply_affine(inverse_affine(image.affine) @ affine, there)
    np.testing.assert_allclose(back, np.rint(back), atol=5e-3)
    index = tuple(np.rint(back).astype(int).T)
    found = image.array[0].numpy()[index]
    np.testing.assert_allclose(found, array[tuple(there.astype(int).T)], rtol=1e-5, atol=1e-3)
    assert image.array.numel() == array.size


def read(write, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return read_image(path, "mr")[0]


@LIMIT
@given(affines, orders, flips, st.sampled_from(sorted(TYPES)), st.sampled_from("<>"))
def test_nifti(affine, order, flip, kind, endian):
    array = values(kind)
    there, moved = stored(array, affine, order, flip)

    def write(path):
        image = nib.Nifti1Image(there, moved, nib.Nifti1Header(endianness=endian))
        image.header.set_data_dtype(np.dtype(kind))
        nib.save(image, path)

    assert_same_world_image(read(write, "a.nii.gz"), array, affine)


@LIMIT
@given(affines, st.floats(0.01, 50), st.floats(-2000, 2000), st.sampled_from(["i2", "u1"]))
def test_nifti_slope_and_intercept(affine, slope, inter, kind):
    array = values(kind)

    def write(path):
        image = nib.Nifti1Image(array, affine)
        image.header.set_slope_inter(slope, inter)
        image.to_filename(path)
        raw = bytearray(path.read_bytes())
        raw[112:120] = np.array([slope, inter], "<f4").tobytes()
        raw[352:] = array.tobytes(order="F")
        path.write_bytes(raw)

    scaled = array * np.float32(slope).astype(float) + np.float32(inter).astype(float)
    found = read(write, "a.nii")
    np.testing.assert_allclose(found.array[0].numpy(), scaled, rtol=1e-5, atol=1e-2)


@LIMIT
@given(
    affines,
    orders,
    flips,
    st.sampled_from(sorted(TYPES)),
    st.sampled_from(["nrrd", "mha", "nhdr", "mhd"]),
    st.booleans(),
)
def test_nrrd_and_metaimage(affine, order, flip, kind, suffix, packed):
    array = values(kind)
    there, moved = stored(array, affine, order, flip)
    lps = np.diag([-1.0, -1, 1, 1]) @ moved
    sizes = np.linalg.norm(lps[:3, :3], axis=0)

    def write(path):
        image = sitk.GetImageFromArray(np.ascontiguousarray(there.T))
        image = sitk.Cast(image, TYPES[kind])
        image.SetSpacing(sizes.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        sitk.WriteImage(image, str(path), packed)

    assert_same_world_image(read(write, f"a.{suffix}"), array, affine)


UNITS = {"um": 1e-3, "mm": 1.0, "cm": 10.0}


@LIMIT
@given(
    st.tuples(size, size, size),
    st.tuples(shift, shift, shift),
    st.sampled_from(sorted(UNITS)),
    st.integers(-50, 50).filter(bool),
    st.integers(-1024, 1024),
)
def test_metaimage_units_and_scale(sizes, origin, unit, slope, offset):
    array, factor = values("i2"), UNITS[unit]

    def numbers(mm):
        return " ".join(repr(float(x) / factor) for x in mm)

    def write(path):
        path.write_bytes(
            (
                "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
                f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = {numbers(origin)}\n"
                f"ElementSpacing = {numbers(sizes)}\nDistanceUnits = {unit}\n"
                f"ElementToIntensityFunctionSlope = {slope / 8}\n"
                f"ElementToIntensityFunctionOffset = {offset}\n"
                f"DimSize = {' '.join(map(str, SHAPE))}\nElementType = MET_SHORT\n"
                "ElementDataFile = LOCAL\n"
            ).encode()
            + array.tobytes(order="F")
        )

    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([*sizes, 1.0])
    affine[:3, 3] = np.array(origin) * [-1, -1, 1]
    assert_same_world_image(read(write, "a.mha"), array * (slope / 8) + offset, affine)


@LIMIT
@given(
    st.tuples(size, size, size),
    st.sampled_from(["LPS", "RAS", "LAS"]),
    st.sampled_from([*sorted(UNITS), "s", "Hz", "pixel"]),
)
def test_nrrd_spaces_and_units(sizes, space, unit):
    """A unit of length is converted, any other refused: never a wrong size."""
    array, factor = values("i2"), UNITS.get(unit, 1.0)
    x, y, z = (repr(float(s) / factor) for s in sizes)

    def write(path):
        text = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {' '.join(map(str, SHAPE))}\n"
            f"endian: little\nencoding: raw\nspace: {space}\nspace origin: (0,0,0)\n"
            f"space directions: ({x},0,0) (0,{y},0) (0,0,{z})\n"
            f'space units: "{unit}" "{unit}" "{unit}"\n\n'
        )
        path.write_bytes(text.encode() + array.tobytes(order="F"))

    signs = [-1 if letter in "LP" else 1 for letter in space]
    try:
        image = read(write, "a.nrrd")
    except InputError:
        assert unit not in UNITS
        return
    assert unit in UNITS
    assert_same_world_image(image, array, np.diag([*np.multiply(signs, sizes), 1.0]))
