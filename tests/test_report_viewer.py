"""The viewer of the page: the volumes that it is given, and what it shows in a browser."""

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from report_cases import result_2d, result_3d

from fusion_pipeline.report import write_report
from fusion_pipeline.report.field import ERROR_TOP, displacement_top, field_table
from fusion_pipeline.report.glossary import GLOSSARY, explained
from fusion_pipeline.report.looks import planes_for, shared_point
from fusion_pipeline.report.planes import content_box, read
from fusion_pipeline.report.viewer import viewer_of
from fusion_pipeline.report.volumes import COLOURS, colour_nodes, viewer_volumes

LIMIT = 2_000_000


def opened(volume):
    """Values, NaN where there are none, and the affine."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volume.data)))
    raw = np.asarray(image.dataobj.get_unscaled())
    return np.where(raw == -32768, np.nan, image.get_fdata()), image.affine


def points_of(values, affine):
    """World points ``(*S, 3)`` of the voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.fixture(scope="module")
def result():
    """The phantom, with a truth for the MR that lies 3 mm beside what was found."""
    found = result_3d()
    truth = found.registrations["mr_t1"].displacement_mm(found.case.fixed)
    truth = truth + torch.tensor([3.0, 0.0, 0.0])[:, None, None, None]
    series = dict(found.case.series)
    series["mr_t1"] = replace(series["mr_t1"], displacement=truth)
    return replace(found, case=replace(found.case, series=series))


@pytest.fixture(scope="module")
def volumes(result):
    return {one.title: one for one in viewer_volumes(result, LIMIT)}


def test_there_is_a_volume_for_each_thing_to_look_at(volumes):
    assert list(volumes) == [
        "CT",
        "MR T1",
        "MR T1, before registration",
        "PET",
        "PET, before registration",
        "Fused",
        "Weight of CT",
        "Weight of MR T1",
        "Weight of PET",
        "Estimated error of MR T1",
        "True error of MR T1",
        "Displacement of MR T1",
        "Displacement of PET",
    ]
    assert (volumes["CT"].low, volumes["CT"].high, volumes["CT"].units) == (-160, 240, "HU")
    assert volumes["PET"].colours == volumes["PET, before registration"].colours == "uptake"


def test_landmarks_lie_where_the_registration_brings_them(result):
    points = np.array([[9.0, -14.0, 12.0], [-10.0, 8.0, -6.0], [400.0, 0.0, 0.0]])
    found = result.registrations["mr_t1"].map
    series = dict(result.case.series)
    series["ct"] = replace(series["ct"], landmarks=points)
    series["mr_t1"] = replace(
        series["mr_t1"], landmarks=found.points(points) + np.array([9.0, 0, 0])
    )
    marked = replace(result, case=replace(result.case, series=series))
    viewer = viewer_of(marked, LIMIT)
    assert [one["title"] for one in viewer.facts["marks"]] == ["CT", "MR T1"]
    volumes = {one.role: opened(one) for one in viewer_volumes(marked, LIMIT)}

    def value(role, point):
        values, affine = volumes[role]
        voxel = np.rint((point - affine[:3, 3]) / affine.diagonal()[:3]).astype(int)
        return values[tuple(voxel)]

    for n in (0, 1):
        assert value("marks", points[n]) == value("marks-before", points[n]) == 1
        moved = found.inverse_points(series["mr_t1"].landmarks[n : n + 1])[0]
        assert value("marks", moved) == 2
        assert value("marks-before", series["mr_t1"].landmarks[n]) == 2
        assert np.linalg.norm(moved - points[n]) < 12
    assert np.isnan(value("marks", np.array([0.0, 25.0, 0.0])))
    plain = [one["role"] for one in viewer_of(result, LIMIT).facts["volumes"]]
    assert not {"marks", "marks-before", "colour"} & set(plain)


def test_the_fused_image_in_colour_keeps_its_colours(result):
    grey = result.fusion.fused.array
    colour = torch.cat([255 * grey, 120 + 0 * grey, 255 - 255 * grey])
    fusion = replace(result.fusion, colour=replace(result.fusion.fused, colour=colour))
    volumes = viewer_volumes(replace(result, fusion=fusion), LIMIT)
    volume = next(one for one in volumes if one.role == "colour")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volume.data)))
    shown = np.asarray(image.dataobj)
    middle = tuple(n // 2 for n in shown.shape)
    red, green, blue = (int(shown[middle][name]) for name in "RGB")
    point = image.affine @ [*middle, 1]
    expected = read(colour[:1], fusion.fused.affine, point[None, None, :3])
    assert red == pytest.approx(float(expected.squeeze()), abs=9)
    assert green == 120
    assert red + blue == pytest.approx(255, abs=9)


def test_values_are_those_of_the_images_at_their_points_of_the_world(result, volumes):
    for title, image, step in (
        ("MR T1", result.registered_images["mr_t1"], 3.0),
        ("MR T1, before registration", result.case.images["mr_t1"], 3.0),
    ):
        values, affine = opened(volumes[title])
        expected = read(image.array, image.affine, points_of(values, affine))
        assert np.isfinite(values).sum() > 10_000
        np.testing.assert_allclose(values, expected, rtol=0, atol=step)  # NaN at the same voxels
    after, before = (opened(volumes[t])[0] for t in ("MR T1", "MR T1, before registration"))
    assert np.nanmean(np.abs(after - before)) > 20


def test_the_lattice_is_the_box_of_the_pictures_along_the_axes_of_the_world(result, volumes):
    low, high = content_box(result.case.fixed)
    for volume in volumes.values():
        values, affine = opened(volume)
        assert np.count_nonzero(affine[:3, :3]) == 3
        assert affine[:3, 3] == pytest.approx(low, abs=1e-4)
        top = points_of(values, affine)[-1, -1, -1]
        assert (top <= high + 1e-3).all()
        assert (top > high - 2 * affine.diagonal()[:3]).all()


def test_errors_are_on_one_scale_and_inside_the_overlap(volumes):
    true, estimated = volumes["True error of MR T1"], volumes["Estimated error of MR T1"]
    assert (true.high, estimated.high, true.units) == (ERROR_TOP, 10.0, "mm")
    values, _ = opened(true)
    inside = np.isfinite(values)
    assert 0.2 < inside.mean() < 0.98
    assert np.percentile(values[inside], [5, 95]) == pytest.approx(3.0, abs=0.3)
    assert (np.isfinite(opened(estimated)[0]) == inside).mean() > 0.99


def test_weights_sum_to_one(volumes):
    weights = [opened(v)[0] for title, v in volumes.items() if title.startswith("Weight")]
    total = np.sum(weights, axis=0)
    assert total[np.isfinite(total)] == pytest.approx(1, abs=0.02)


def test_voxels_grow_until_all_fit(result):
    small = viewer_volumes(result, 150_000)
    assert sum(len(one.data) for one in small) < 150_000
    assert opened(small[0])[0].size > 2_000
    # so small a limit cannot be kept: what is left is still a volume
    assert opened(viewer_volumes(result, 10)[0])[0].size >= 1


def test_a_coarser_lattice_takes_the_mean_of_what_lies_between(result):
    noise = result.case.fixed.array + 100 * (torch.arange(60) % 2 * 2 - 1)[None, None, :, None]
    fixed = result.case.fixed.with_array(noise)
    series = dict(result.case.series)
    series["ct"] = replace(series["ct"], image=fixed)
    noisy = replace(result, case=replace(result.case, series=series))
    (values, affine), (clean, _) = (
        opened(viewer_volumes(one, 60_000)[0]) for one in (noisy, result)
    )
    assert affine[1, 1] > 3.2
    # without a mean the noise of 100 would be left at half, between two voxels
    assert np.nanmean(np.abs(values - clean)) < 25


def test_a_picture_is_a_volume_of_one_slice():
    result = result_2d()
    first, *_ = viewer_volumes(result, LIMIT)
    values, affine = opened(first)
    assert values.shape[2] == 1
    points = points_of(values, affine)[..., 0, :2]
    assert values[..., 0] == pytest.approx(
        read(result.case.fixed.array, result.case.fixed.affine, points), abs=3, nan_ok=True
    )
    facts = viewer_of(result).facts
    assert facts["unit"] == "px"
    assert facts["presets"] == {}
    column, row, _ = np.asarray(facts["voxel_from_world"]) @ [*facts["point"], 1]
    assert 0 < column < 90
    assert 0 < row < 80


def test_colours_run_from_low_to_high_and_maps_are_transparent_below():
    for name in COLOURS:
        nodes = colour_nodes(name)
        assert nodes["I"][0] == 0
        assert nodes["I"][-1] == 255
        assert (np.diff(nodes["I"]) > 0).all()
        assert (nodes["A"][0] == 0) == (name in ("uptake", "map", "weight"))
        assert set(nodes["A"][1:]) == {255}
    assert colour_nodes("grey")["R"][-1] == 255
    assert colour_nodes("inverted")["R"][-1] == 0


def test_all_sections_show_the_same_planes(result):
    (x, y, z), planes = shared_point(result), planes_for(result, 60)
    axial, coronal, sagittal = planes
    assert axial.points[0, 0, 2] == z
    assert coronal.points[0, 0, 1] == y
    assert sagittal.points[0, 0, 0] == x
    table = field_table(result, "mr_t1", planes)
    assert [heading.name for heading, _ in table.rows] == [
        "Displacement",
        "Volume change",
        "Estimated error",
        "True error",
    ]
    assert table.bars[-1].ticks == ("0", "10 mm")


def test_an_error_of_10_mm_has_the_last_colour_and_no_overlap_no_colour(result):
    far = replace(
        result.registrations["mr_t1"].evidence,
        error_map_mm=torch.full_like(
            result.registrations["mr_t1"].evidence.error_map_mm, ERROR_TOP
        ),
    )
    found = replace(result.registrations["mr_t1"], evidence=far)
    case = replace(result, registrations={**result.registrations, "mr_t1": found})
    planes = planes_for(case, 80)
    frame = field_table(case, "mr_t1", planes).rows[2][1][0].picture
    coloured = np.ptp(frame, axis=-1) > 0.05
    assert 0.1 < coloured.mean() < 0.95
    # the last colour of magma: a pale yellow
    assert (frame[coloured][:, 0] > frame[coloured][:, 2]).all()


def test_a_scale_of_displacements_ends_on_a_round_number():
    assert displacement_top(np.array([], np.float32)) == 0.5
    assert displacement_top(np.full(9, 3.3, np.float32)) == 4


def test_a_word_is_explained_once_and_text_stays_text():
    assert explained("<b>") == "&lt;b&gt;"
    shown = explained("PET weight & weight")
    assert shown.count("<dfn") == 1
    assert GLOSSARY["weight"] in html.unescape(shown)
    assert explained("MR T1, unweighted") == "MR T1, unweighted"


def in_browser(page, tmp_path):
    """The page after its scripts, and a screenshot, by headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    common = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--use-angle=swiftshader",  # WebGL without a GPU
        "--enable-unsafe-swiftshader",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # offline
        "--virtual-time-budget=30000",
        "--window-size=1100,1400",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'page.png'}",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(common, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


# What a reader does: looks, goes back to before, then asks for another overlay.
READER = """<script>
const part = (name) => document.querySelector(`[data-part="${name}"]`);
const said = [];
const choose = (name, title) => {
  const select = part(name);
  select.value = [...select.options].find((o) => o.textContent === title).value;
  select.dispatchEvent(new Event("change"));
};
const say = () => said.push([part("caption").textContent, part("ticks").textContent]);
const waiting = setInterval(() => {
  if (document.getElementById("viewer").dataset.state !== "ready") return;
  clearInterval(waiting);
  say();
  part("before").click();
  say();
  choose("overlay", "Weight of CT");
  say();
  choose("base", "MR T1");
  choose("overlay", "CT");
  say();
  document.body.dataset.said = JSON.stringify(said);
}, 100);
</script></body>"""


def shown_values(dom):
    """The values at the crosshair by name."""
    pairs = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", dom[dom.index('data-part="values"') :])
    return dict(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("make", [result_3d, result_2d])
def test_the_viewer_runs_in_a_browser_without_network(make, tmp_path):
    result = make()
    write_report(result, tmp_path, {})
    page = tmp_path / "report.html"
    # no static picture may stand in for the viewer on the screenshot
    page.write_text(page.read_text("utf-8").replace("</style>", "img { display: none }</style>"))
    dom = in_browser(page, tmp_path)
    assert 'data-state="ready"' in dom, re.findall(r'data-part="failure">([^<]*)', dom)
    flat = result.case.fixed.spatial_dims == 2
    caption = "MR on CT" if flat else "PET on CT"
    assert re.search(f'data-part="caption">{caption}<', dom)
    position = re.search(r'data-part="position">([^<]*)<', dom)[1]
    point = shared_point(result)
    if flat:
        assert re.fullmatch(r"column \d+, row \d+", position)
    else:
        numbers = [float(n) for n in re.findall(r"[\d.]+", position)]
        assert numbers == pytest.approx(np.abs(point), abs=2.0)
    fixed = result.case.fixed
    expected = float(read(fixed.array, fixed.affine, point[None, None])[0, 0])
    shown = float(shown_values(dom)["CT"].split()[0].replace("−", "-"))
    assert shown == pytest.approx(expected, abs=12)
    assert shown_values(dom)["Weight of CT"] != "–"
    pixels = np.asarray(PilImage.open(tmp_path / "page.png").convert("RGB")).astype(int)
    canvas = pixels[pixels.sum(-1).min(1) < 120]
    body = (canvas.mean(-1) > 60) & (canvas.mean(-1) < 240)
    assert body.mean() > 0.1
    hot = (canvas[..., 0] > 180) & (canvas[..., 0] - canvas[..., 2] > 60)
    assert (hot.sum() > 100) == (not flat)


@pytest.mark.slow
def test_a_reader_goes_back_to_before_and_asks_for_other_overlays(tmp_path):
    write_report(result_3d(), tmp_path, {})
    page = tmp_path / "report.html"
    page.write_text(page.read_text("utf-8").replace("</body>", READER))
    said = re.search(r'data-said="([^"]*)"', in_browser(page, tmp_path))
    captions, ticks = zip(*json.loads(html.unescape(said[1])), strict=True)
    assert captions == (
        "PET on CT",
        "PET, before registration on CT",
        "Weight of CT on CT",
        "CT on MR T1",
    )
    assert ticks[0] == ticks[1]
    assert ticks[2] == "0.000.501.00"
    assert ticks[3] == "−16040240"
