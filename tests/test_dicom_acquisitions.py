"""Slices that are several volumes are refused with a list, and a selector picks one."""

import numpy as np
import pytest
from data_phantoms import save, series_pixels
from dicom_cases import enhanced, nuclear, put, slices
from pydicom import Dataset

from fusion_pipeline.data import InputError, read_image


def values(source, key="mr"):
    """The values and the warnings of an image that is read."""
    image, warnings = read_image(str(source), key)
    return image.array[0].numpy(), warnings


DOUBLED = [
    ("echo", {"EchoTime": "10"}, {"EchoTime": "90.0"}, "echo=10 (9 slices), echo=90 (9 slices)"),
    ("echo", {"EchoNumbers": 1}, {"EchoNumbers": 2}, "echo=1 (9 slices), echo=2 (9 slices)"),
    ("acquisition", {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, "acquisition=1 (9"),
    ("time", {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, "time=1 (9"),
    ("bvalue", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}, "bvalue=0 (9"),
    ("kernel", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, "kernel=B30f (9"),
    ("gate", {"TriggerTime": "0"}, {"TriggerTime": "400"}, "gate=0 (9"),
    (
        "type",
        {"ImageType": ["ORIGINAL", "PRIMARY", "M"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        "type=ORIGINAL/PRIMARY/M (9",
    ),
]


@pytest.mark.parametrize(("name", "one", "two", "listed"), DOUBLED)
def test_two_volumes_at_the_same_positions_are_listed_and_one_can_be_picked(
    tmp_path, name, one, two, listed
):
    slices(tmp_path, put(**one), Modality="MR")
    slices(tmp_path, put(**two), Modality="MR", name="b", plus=5000)
    with pytest.raises(InputError, match="slices of one acquisition") as caught:
        read_image(tmp_path, "mr")
    text = str(caught.value)
    assert listed in text
    first = text.partition("pick one with folder::")[2].partition(",")[0]
    array, warnings = values(f"{tmp_path}::{first}")
    np.testing.assert_array_equal(array, series_pixels().T)
    assert warnings == []
    other = str(next(iter(two.values()))).strip("[]").replace("', '", "/").strip("'")
    array, _ = values(f"{tmp_path}::1.2.3::{name}={other}")
    np.testing.assert_array_equal(array, series_pixels().T + 5000)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
        ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "A"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "B"]}),
        ({"EchoTime": "10"}, {"EchoTime": "90"}),
    ],
)
def test_two_volumes_half_a_slice_apart_are_refused(tmp_path, one, two):
    slices(tmp_path, put(**one))
    slices(tmp_path, put(**two), name="b", up=1.5, plus=5000)
    with pytest.raises(InputError, match=r"slices of one acquisition, got .* pick one with folder"):
        read_image(tmp_path, "ct")


def test_alternating_acquisitions_are_refused_and_can_be_taken_together(tmp_path):
    slices(tmp_path, lambda ds, k: setattr(ds, "AcquisitionNumber", k % 2 + 1))
    with pytest.raises(InputError, match=r"acquisition=1 \(5 slices\), acquisition=2 \(4 slices\)"):
        read_image(tmp_path, "ct")
    array, _ = values(f"{tmp_path}::acquisition=all", "ct")
    np.testing.assert_array_equal(array, series_pixels().T)
    array, _ = values(f"{tmp_path}::acquisition=1", "ct")
    np.testing.assert_array_equal(array, series_pixels().T[..., ::2])


def test_two_stacks_of_the_same_numbers_between_each_other_are_refused(tmp_path):
    slices(tmp_path)
    slices(tmp_path, name="b", up=1.5, plus=5000)
    with pytest.raises(InputError, match="InstanceNumber 1 to 9 runs twice through the 18 slices"):
        read_image(tmp_path, "ct")


def test_two_stacks_of_thick_slices_numbered_one_behind_the_other_are_refused(tmp_path):
    thick = {"SliceThickness": 3.0}
    slices(tmp_path, **thick)
    slices(tmp_path, lambda ds, k: setattr(ds, "InstanceNumber", k + 10), name="b", up=1.5, **thick)
    with pytest.raises(InputError, match="number=1-9"):
        read_image(tmp_path, "ct")
    array, _ = values(f"{tmp_path}::number=1-9", "ct")
    np.testing.assert_array_equal(array, series_pixels().T)


@pytest.mark.parametrize(
    "edit",
    [
        lambda ds, k: setattr(ds, "AcquisitionNumber", k + 1),  # step and shoot
        lambda ds, k: setattr(ds, "AcquisitionNumber", k // 3 + 1),  # three slices a turn
        lambda ds, k: setattr(ds, "AcquisitionNumber", 2 - k // 5),  # two stations, from below
        lambda ds, k: setattr(ds, "TriggerTime", 40 * (k % 3)),  # slices share a heart beat
        lambda ds, k: setattr(ds, "AcquisitionTime", f"1100{k % 2 * 30:02}"),  # two passes
        lambda ds, k: setattr(ds, "InstanceNumber", k % 5 + 1),  # stations numbered anew
        lambda ds, k: setattr(ds, "InstanceNumber", 1),
        lambda ds, k: delattr(ds, "InstanceNumber"),
        lambda ds, k: setattr(ds, "InstanceNumber", k // 2 + 1 + 5 * (k % 2)),  # in two passes
        lambda ds, k: setattr(ds, "EchoTime", ["2.50", "2.5"][k % 2]),
        lambda ds, k: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "AB"[k // 5]]),
        lambda ds, k: setattr(ds, "SliceThickness", 3.0),
    ],
)
def test_what_slices_of_one_volume_differ_in_is_silent(tmp_path, edit):
    array, warnings = values(slices(tmp_path / "mr", edit, Modality="MR"))
    np.testing.assert_array_equal(array, series_pixels().T)
    assert warnings == []


def test_thick_slices_that_overlap_are_one_volume(tmp_path):
    array, warnings = values(slices(tmp_path / "mr", Modality="MR", SliceThickness=5.0))
    np.testing.assert_array_equal(array, series_pixels().T)
    assert warnings == []


def test_a_doubled_position_is_named_with_its_files(tmp_path):
    slices(tmp_path)
    slices(tmp_path, n=1, up=12.0, name="extra", plus=1)
    with pytest.raises(InputError, match=r"1 more at the same .* such as a04.dcm and extra00.dcm"):
        read_image(tmp_path, "ct")


def test_several_dimensions_are_listed_and_picked_one_after_the_other(tmp_path):
    for n, (echo, time) in enumerate(((10, 1), (10, 2), (90, 1), (90, 2))):
        edit = put(EchoTime=str(echo), TemporalPositionIdentifier=time)
        slices(tmp_path, edit, name="abcd"[n], plus=3000 * n, Modality="MR")
    with pytest.raises(InputError, match=r"echo=10 \(18.*; time=1 .* folder::echo=10::time=1,"):
        read_image(tmp_path, "mr")
    with pytest.raises(InputError, match=r"got time=1 \(9 slices\), time=2 \(9 slices\); pick"):
        read_image(f"{tmp_path}::echo=90", "mr")
    array, _ = values(f"{tmp_path}::echo=90::time=1")
    np.testing.assert_array_equal(array, series_pixels().T + 6000)


def test_a_selector_that_fits_nothing_says_what_there_is(tmp_path):
    slices(tmp_path, put(EchoTime="10"))
    with pytest.raises(InputError, match=r"slices of echo=20, got echo=10 \(9 slices\)"):
        read_image(f"{tmp_path}::echo=20", "ct")
    with pytest.raises(InputError, match=r"a selector of echo, bvalue, .* got colour; the slices"):
        read_image(f"{tmp_path}::colour=red", "ct")


def test_a_localizer_can_be_left_out_by_its_type(tmp_path):
    slices(tmp_path, put(ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]))
    edit = put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    slices(tmp_path, edit, n=1, name="l", orientation=(0, 1, 0, 0, 0, -1))
    with pytest.raises(InputError, match="or pick by their type"):
        read_image(tmp_path, "ct")
    array, _ = values(f"{tmp_path}::type=ORIGINAL/PRIMARY/AXIAL", "ct")
    np.testing.assert_array_equal(array, series_pixels().T)


@pytest.mark.parametrize("element", ["PatientID", "FrameOfReferenceUID"])
def test_slices_of_two_patients_or_spaces_are_no_series(tmp_path, element):
    slices(tmp_path, lambda ds, k: setattr(ds, element, f"1.2.{k // 5}"))
    with pytest.raises(InputError, match=f"slices of one {element}, got 2 of them in one series"):
        read_image(tmp_path, "ct")


# --- frames of one file -----------------------------------------------------------------------


def test_gates_of_a_nuclear_file_are_listed_and_one_can_be_picked(tmp_path):
    ds = nuclear(
        gates=3,
        TimeSlotVector=[g for g in (1, 2, 3) for _ in range(9)],
        SliceVector=[*range(1, 10)] * 3,
        NumberOfTimeSlots=3,
        NumberOfSlices=9,
    )
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"gate=1 \(9 slices\), gate=2 \(9 slices\), gate=3"):
        read_image(path, "spect")
    image, warnings = read_image(f"{path}::gate=2", "spect")
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels().T + 1000)
    assert image.affine[2, 3] == 0
    assert warnings == []


@pytest.mark.parametrize(
    ("vector", "name"),
    [
        ("EnergyWindowVector", "window"),
        ("DetectorVector", "detector"),
        ("PhaseVector", "phase"),
        ("RRIntervalVector", "interval"),
        ("TimeSliceVector", "time"),
        ("RotationVector", "rotation"),
    ],
)
def test_whatever_a_nuclear_file_varies_besides_the_slice_is_refused(tmp_path, vector, name):
    ds = nuclear(gates=2, **{vector: [1] * 9 + [2] * 9})
    with pytest.raises(InputError, match=rf"{name}=1 \(9 slices\), {name}=2 \(9 slices\)"):
        read_image(save(ds, tmp_path / "a.dcm"), "spect")


def test_views_and_projections_are_no_slices(tmp_path):
    for kind in ("WHOLE BODY", "TOMO", "STATIC", "DYNAMIC", "GATED TOMO"):
        ds = nuclear(ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"])
        with pytest.raises(InputError, match=f"reconstructed slices, got 9 frames that are {kind}"):
            read_image(save(ds, tmp_path / "a.dcm"), "spect")
    ds = nuclear(AngularViewVector=[*range(1, 10)])
    with pytest.raises(InputError, match=r"view=1 \(1 slices\)"):
        read_image(save(ds, tmp_path / "a.dcm"), "spect")


def test_gates_without_their_vector_are_refused(tmp_path):
    ds = nuclear(gates=2, NumberOfTimeSlots=2, NumberOfSlices=9)
    with pytest.raises(InputError, match="18 frames of 9 slices and 2 gates, and no vector"):
        read_image(save(ds, tmp_path / "a.dcm"), "spect")


def test_a_nuclear_file_of_one_stack_is_silent(tmp_path):
    ds = nuclear(
        SliceVector=[*range(9, 0, -1)],
        TimeSlotVector=[1] * 9,
        NumberOfSlices=9,
        NumberOfTimeSlots=1,
        EnergyWindowVector=[1] * 9,
    )
    image, warnings = read_image(save(ds, tmp_path / "a.dcm"), "spect")
    np.testing.assert_array_equal(image.array[0].numpy(), series_pixels()[::-1].T)
    assert warnings == []


def test_a_dimension_of_an_enhanced_file_is_listed_and_one_value_can_be_picked(tmp_path):
    pixels = series_pixels()
    frames = [(3.0 * k, (t, k + 1), pixels[k] + 1000 * t) for t in (1, 2) for k in range(9)]
    ds = enhanced(frames, dimensions=("TemporalPositionIndex", "InStackPositionNumber"))
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"got time=1 \(9 slices\), time=2 \(9 slices\); pick"):
        read_image(path, "mr")
    array, warnings = values(f"{path}::time=2")
    np.testing.assert_array_equal(array, pixels.T + 2000)
    assert warnings == []


@pytest.mark.parametrize(
    ("keyword", "name"), [("EffectiveEchoTime", "echo"), ("PixelPaddingValue", "PixelPaddingValue")]
)
def test_a_dimension_that_changes_along_the_stack_is_refused(tmp_path, keyword, name):
    frames = [(3.0 * k, (1 + k // 5, k + 1), series_pixels()[k]) for k in range(9)]
    ds = enhanced(frames, dimensions=(keyword, "InStackPositionNumber"))
    with pytest.raises(InputError, match=rf"{name}=1 \(5 slices\), {name}=2 \(4 slices\)"):
        read_image(save(ds, tmp_path / "a.dcm"), "mr")


@pytest.mark.parametrize(
    ("dimensions", "indices"),
    [
        (("InStackPositionNumber",), lambda k: (k + 1,)),
        (("StackID", "InStackPositionNumber"), lambda k: (1, k + 1)),
        (("TemporalPositionIndex", "ImagePositionPatient"), lambda k: (1, k + 1)),
        (("FrameAcquisitionNumber", "InStackPositionNumber"), lambda k: (k + 1, k + 1)),
        ((), lambda k: ()),
    ],
)
def test_an_enhanced_file_of_one_stack_is_silent(tmp_path, dimensions, indices):
    frames = [(3.0 * k, indices(k), series_pixels()[k]) for k in (4, 2, 0, 1, 3, 8, 7, 6, 5)]
    ds = enhanced(frames, dimensions=dimensions)
    array, warnings = values(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(array, series_pixels().T)
    assert warnings == []


def test_a_mosaic_is_refused_by_its_name(tmp_path):
    slices(tmp_path, put(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), Modality="MR")
    with pytest.raises(InputError, match=r"a Siemens mosaic .*dcm2niix"):
        read_image(tmp_path, "mr")


def private(creator, group, element, vr, value):
    """An edit that adds a private element, of whatever block its creator has."""
    return lambda ds, k: ds.private_block(group, creator, create=True).add_new(
        element, vr, value(k) if callable(value) else value
    )


def test_a_mosaic_whose_type_was_lost_is_refused_by_its_number_of_tiles(tmp_path):
    slices(tmp_path, private("SIEMENS MR HEADER", 0x19, 0x0A, "US", 16), Modality="MR")
    with pytest.raises(InputError, match=r"a Siemens mosaic .*dcm2niix"):
        read_image(tmp_path, "mr")


def test_a_private_block_that_is_not_the_first_one_is_read(tmp_path):
    """As it is after others were taken out with their patient's name."""

    def second_block(ds, k):
        ds.add_new((0x19, 0x11), "LO", "SIEMENS MR HEADER")
        ds.add_new((0x19, 0x110A), "US", 16)

    slices(tmp_path, second_block, Modality="MR")
    with pytest.raises(InputError, match=r"a Siemens mosaic .*dcm2niix"):
        read_image(tmp_path, "mr")


def test_one_tile_and_another_makers_element_are_silent(tmp_path):
    slices(tmp_path / "a", private("SIEMENS MR HEADER", 0x19, 0x0A, "US", 1), Modality="MR")
    slices(tmp_path / "b", private("SOMEBODY", 0x19, 0x0A, "US", 16), Modality="MR")
    for name in "ab":
        array, warnings = values(tmp_path / name)
        np.testing.assert_array_equal(array, series_pixels().T)
        assert warnings == []


@pytest.mark.parametrize(
    ("name", "block", "one", "two"),
    [
        ("bvalue", ("SIEMENS MR HEADER", 0x19, 0x0C, "IS"), 0, 1000),
        ("bvalue", ("GEMS_PARM_01", 0x43, 0x39, "IS"), [0, 8, 0], [1000001000, 8, 0]),
        ("bvalue", ("Philips Imaging DD 001", 0x2001, 0x03, "FL"), 0.0, 1000.0),
        ("component", ("GEMS_PARM_01", 0x43, 0x2F, "SS"), 0, 1000),
    ],
)
def test_volumes_that_private_elements_tell_apart_can_be_picked(tmp_path, name, block, one, two):
    slices(tmp_path, private(*block, one), Modality="MR")
    slices(tmp_path, private(*block, two), Modality="MR", name="b", plus=5000)
    with pytest.raises(InputError, match=rf"{name}=0 \(9 slices\), {name}=1000 \(9 slices\)"):
        read_image(tmp_path, "mr")
    array, warnings = values(f"{tmp_path}::{name}=1000")
    np.testing.assert_array_equal(array, series_pixels().T + 5000)
    assert warnings == []


def test_magnitude_and_phase_in_turns_along_a_stack_are_refused(tmp_path):
    slices(tmp_path, private("GEMS_PARM_01", 0x43, 0x2F, "SS", lambda k: k % 2), Modality="MR")
    with pytest.raises(InputError, match=r"component=0 \(5 slices\), component=1 \(4 slices\)"):
        read_image(tmp_path, "mr")


@pytest.mark.parametrize(
    ("name", "groups", "values_of_two"),
    [
        ("time", ("TemporalPositionSequence", "TemporalPositionTimeOffset"), (0.0, 5.0)),
        (
            "gate",
            ("RespiratorySynchronizationSequence", "NominalRespiratoryTriggerDelayTime"),
            (0.0, 300.0),
        ),
        (
            "direction",
            (
                "MRDiffusionSequence",
                "DiffusionGradientDirectionSequence",
                "DiffusionGradientOrientation",
            ),
            ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        ),
        ("echo", ("MREchoSequence", "EffectiveEchoTime"), (10.0, 90.0)),
    ],
)
def test_frames_of_two_volumes_without_declared_dimensions(tmp_path, name, groups, values_of_two):
    pixels, second = series_pixels(), values_of_two[1]
    frames = [(3.0 * k, (), pixels[k] + 1000 * n) for k in range(9) for n in (0, 1)]
    ds = enhanced(frames, dimensions=())
    for n, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        item = frame
        for sequence in groups[:-1]:
            setattr(item, sequence, [Dataset()])
            item = getattr(item, sequence)[0]
        setattr(item, groups[-1], values_of_two[n % 2])
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(InputError, match=rf"got {name}=\S+ \(9 slices\), {name}=\S+ \(9 slices\)"):
        read_image(path, "mr")
    wanted = "/".join(f"{v:g}" for v in second) if isinstance(second, list) else f"{second:g}"
    array, warnings = values(f"{path}::{name}={wanted}")
    np.testing.assert_array_equal(array, pixels.T + 1000)
    assert warnings == []


MR = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}


def test_two_sequences_or_modalities_in_two_halves_of_a_stack(tmp_path):
    def halves(name, *said):
        return lambda ds, k: setattr(ds, name, said[k > 4])

    path = slices(tmp_path / "a", halves("ScanningSequence", "SE", "GR"), **MR)
    with pytest.raises(InputError, match=r"sequence=GR \(4 slices\), sequence=SE \(5 slices\)"):
        read_image(path, "mr")
    assert values(f"{path}::sequence=SE")[0].shape[2] == 5
    path = slices(tmp_path / "b", halves("Modality", "MR", "CT"))
    with pytest.raises(InputError, match="slices of one Modality, got 2 of them"):
        read_image(path, "mr")
    path = slices(tmp_path / "c", put(ScanningSequence=["SE", "IR"]), **MR)
    assert read_image(path, "mr")[1] == []


@pytest.mark.parametrize(
    ("word", "said"), [("P", True), ("IMAGINARY", True), ("M", False), ("ADC", False)]
)
def test_phases_are_told(tmp_path, word, said):
    path = slices(tmp_path / "a", put(ImageType=["ORIGINAL", "PRIMARY", word, "ND"]), **MR)
    notes = read_image(path, "mr")[1]
    assert [f"no magnitude (ImageType {word})" in note for note in notes] == [True] * said


def test_a_concatenation_needs_all_its_files(tmp_path):
    pixels = series_pixels()
    paths = []
    for number, part in enumerate((range(4), range(4, 9)), 1):
        ds = enhanced([(3.0 * k, (1, k + 1), pixels[k]) for k in part])
        ds.ConcatenationUID, ds.InConcatenationNumber = "1.2.3.9", number
        ds.InConcatenationTotalNumber = 2
        paths.append(save(ds, tmp_path / f"{number}.dcm"))
    array, notes = values(tmp_path)
    np.testing.assert_array_equal(array, pixels.T)
    assert notes == []
    paths[1].unlink()
    with pytest.raises(InputError, match="all 2 files of a concatenation, got 1 of them"):
        read_image(tmp_path, "mr")


def _numbered(of):
    """An edit that counts slices by a function of their place."""
    return lambda ds, k: setattr(ds, "InstanceNumber", of(k))


@pytest.mark.parametrize(
    ("of", "thickness", "count"),
    [(lambda k: 2 * k + 1, 1.5, 2), (lambda k: 40 - 2 * k, 1.5, 2), (lambda k: 3 * k + 7, 1.0, 3)],
)
def test_slices_that_were_left_out_evenly_are_told(tmp_path, of, thickness, count):
    folder = slices(tmp_path / "mr", _numbered(of), Modality="MR", SliceThickness=thickness)
    array, warnings = values(folder)
    np.testing.assert_array_equal(array, series_pixels().T)
    assert len(warnings) == 1
    assert f"{count - 1} of {count} slices were probably left out" in warnings[0]
    assert f"{thickness:g} mm thick, 3 mm apart" in warnings[0]


@pytest.mark.parametrize(
    ("of", "thickness"),
    [
        (lambda k: 2 * k + 1, 3.0),  # one of two echoes, its slices touch
        (lambda k: 2 * k + 1, 0.6),  # far apart, whatever the numbers say
        (lambda k: k + 1, 1.5),  # gaps as wide as the slices, as many MR are taken
        (lambda k: 2 * k + 1 + k // 4, 1.5),  # numbers of a whole study
    ],
)
def test_one_sign_of_left_out_slices_alone_is_silent(tmp_path, of, thickness):
    folder = slices(tmp_path / "mr", _numbered(of), Modality="MR", SliceThickness=thickness)
    assert values(folder)[1] == []
