"""Laws of the readers: however an image is stored, it is the same in the world, or refused."""

import numpy as np
import pydicom
import pytest
from data_phantoms import dicom_slice, save, series_pixels
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.geometry import apply_affine, rigid_matrix

pytest.importorskip("hypothesis", reason="in the extra dev")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLICES, ROWS, COLUMNS = 5, 14, 11
PIXELS = series_pixels(SLICES) % 251  # fits 8 bits
SPACING = np.array([1.0, 1.5, 3.0])  # columns, rows, slices, mm
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
)
DTYPES = ("u1", "u2", "i2", "u4", "i4")
# a folder is made anew for each example
EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def store(folder, *, order, dtype, syntax, turn, slope, flips):
    """Write the phantom in another way; give its voxels' places in LPS mm and its values.

    ``flips`` turns rows, columns or slices round in the file, and their direction in the header.
    """
    folder.mkdir(parents=True)
    axes = turn[:3, :3] * np.where(flips, -1, 1)
    corner = np.array([5.0, -7.0, 2.0])
    stored = PIXELS[tuple(slice(None, None, -1 if flip else 1) for flip in reversed(flips))]
    start = corner + turn[:3, :3] @ (
        np.where(flips, [COLUMNS - 1, ROWS - 1, SLICES - 1], 0) * SPACING
    )
    for number, k in enumerate(order):
        position = (start + axes[:, 2] * SPACING[2] * k).round(9)
        cosines = np.concatenate([axes[:, 0], axes[:, 1]]).round(12)
        ds = dicom_slice(position, stored[k], orientation=cosines, Modality="MR")
        ds.RescaleSlope, ds.RescaleIntercept = str(slope), "-3"
        encode(ds, stored[k], dtype, syntax)
        pydicom.dcmwrite(
            folder / f"{number}.dcm",
            ds,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            enforce_file_format=True,
        )
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = turn[:3, :3] * SPACING, corner
    return world, PIXELS.T * slope - 3


def encode(ds, pixels, dtype, syntax):
    """Put pixels of a type into a slice, in a transfer syntax."""
    ds.BitsAllocated = ds.BitsStored = 8 * np.dtype(dtype).itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(dtype.startswith("i"))
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    ds.PixelData = pixels.astype(order + dtype).tobytes()
    ds["PixelData"].VR = "OB" if dtype == "u1" else "OW"
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = syntax


@EXAMPLES
@given(
    order=st.permutations(range(SLICES)),
    dtype=st.sampled_from(DTYPES),
    syntax=st.sampled_from(SYNTAXES),
    angles=st.tuples(*[st.integers(-80, 80)] * 3),
    slope=st.sampled_from([0.5, 1, 2.25]),
    flips=st.tuples(*[st.booleans()] * 3),
)
def test_a_series_is_the_same_image_however_it_is_stored(
    tmp_path, order, dtype, syntax, angles, slope, flips
):
    turn = rigid_matrix(angles, (0, 0, 0), (0, 0, 0))
    folder = tmp_path / generate_uid()
    world, values = store(
        folder, order=order, dtype=dtype, syntax=syntax, turn=turn, slope=slope, flips=flips
    )
    image, _ = read_image(str(folder), "mr")
    voxels = np.stack(np.indices(values.shape), -1).reshape(-1, 3)
    ras = apply_affine(world, voxels) * [-1, -1, 1]
    places = apply_affine(np.linalg.inv(image.affine), ras)
    index = np.rint(places).astype(int)
    assert np.abs(places - index).max() < 1e-4
    np.testing.assert_array_equal(image.array[0].numpy()[tuple(index.T)], values.ravel())


@EXAMPLES
@given(lost=st.integers(1, 7), doubled=st.integers(0, 8), kind=st.sampled_from(["lost", "doubled"]))
def test_a_series_that_lacks_a_slice_or_has_one_twice_is_refused(tmp_path, lost, doubled, kind):
    folder = tmp_path / generate_uid()
    folder.mkdir()
    heights = [k for k in range(9) if kind == "doubled" or k != lost]
    heights += [doubled] if kind == "doubled" else []
    for n, k in enumerate(heights):
        save(dicom_slice((5, -7, 3.0 * k), series_pixels()[k]), folder / f"{n}.dcm")
    with pytest.raises(InputError, match=r"a slice every 3 mm|one slice at each position"):
        read_image(str(folder), "ct")
