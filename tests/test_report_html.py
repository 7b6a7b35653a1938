"""``report.html`` needs nothing but itself, and shows what it says."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from data_phantoms import case_of
from report_cases import HOT_MM, finished, lattice, moved_by, paint, result_2d, result_3d

from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.report import write_report
from fusion_pipeline.report.facts import known_truth_changes, numbers_tables
from fusion_pipeline.report.field import field_on, smooth_field_on
from fusion_pipeline.report.figures import alignment_figures, glance_table
from fusion_pipeline.report.frames import arrows
from fusion_pipeline.report.looks import colour_at, covered_by, look_after, look_at, planes_for
from fusion_pipeline.report.planes import planes_through

VOID = {"meta", "img", "br", "path", "input"}
RAW = re.compile(
    r"<!doctype html>|<style>.*?</style>|(?<=<script)[^>]*>.*?(?=</script>)", re.DOTALL
)


class Balance(HTMLParser):
    """Counts the tags that were opened and not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "case01"
    write_report(result_3d(), folder, {})
    return (folder / "report.html").read_text("utf-8")


def test_the_page_is_whole_and_loads_nothing(page):
    parser = Balance()
    parser.feed(RAW.sub(">", page))
    assert [tag for tag in parser.open if tag not in ("p", "li", "option")] == []
    assert all(a.startswith(("data:image/", "#")) for a in parser.addresses)
    scripts = re.findall(r"<script( type=\"[a-z/-]+\" id=\"viewer-[a-z0-9-]+\")?>", page)
    assert len(scripts) == page.count("<script")
    assert "http:" not in page
    assert "https:" not in page
    assert "{{" not in page
    assert "{%" not in page
    assert len(page) < 10e6


def test_verdicts_reasons_and_warnings_are_up_front(page):
    top = page[: page.index("At a glance")]
    assert top.count(">OK<") == 1
    assert top.count(">CHECK<") == 1
    assert "Less similar &lt;after&gt;." in top
    assert "PET units were not named; SUV was assumed." in top
    assert "1.6 mm" in top
    assert top.count("Probability of an error over 5 mm</dfn></dt><dd>3 %") == 1
    assert "not estimated" in top
    assert "initial alignment, from the image headers" in top
    # NMI rose, MIND (a distance) rose as well
    assert re.search(r"1\.1 → 1\.2 <span class=\"up\">better", top)
    assert re.search(r"0\.3 → 0\.4 <span class=\"down\">worse", top)


def test_every_picture_that_was_promised_is_there(page):
    pictures = page.count('class="frame"')
    glance, alignment, fields, fusion = 4, 2 * 3 * 4, 3 * 3, 3 * 3 + 3 * 5
    assert pictures == glance + alignment + fields + fusion
    for letter, side in (("R", "left"), ("L", "right"), ("A", "top"), ("P", "bottom")):
        assert f'<b class="{side}">{letter}</b>' in page
    assert "Mean share within the body" in page
    assert "not a medical device" in page


EVIL = "\"'><script>alert(1)</script><b>x</b>&amp;"


def test_no_text_of_a_case_becomes_html(tmp_path):
    """Ids, keys, units, warnings, reasons, file names, names and values of numbers."""
    result = result_2d()
    key = f"mr_{EVIL}"
    images = {
        "ct": replace(result.case.fixed, units=EVIL),
        key: replace(result.case.images["mr"], key=key, path=EVIL),
    }
    evidence = Evidence(
        EVIL,
        ok=False,
        reason=EVIL,
        similarity_before={EVIL: 1.0},
        similarity_after={EVIL: 2.0},
        details={EVIL: EVIL},
    )
    found = replace(result.registrations["mr"], evidence=evidence)
    harmonized = result.harmonization.images
    evil = replace(
        result,
        case=case_of(EVIL, "ct", images, {key: "rigid"}),
        registered_images={key: replace(result.registered_images["mr"], key=key)},
        registrations={key: found},
        harmonization=Harmonization(
            {"ct": harmonized["ct"], key: harmonized["mr"]}, {key: {EVIL: 1.0}}
        ),
        fusion=replace(result.fusion, scores={EVIL: 1.0}),
        warnings=(EVIL,),
        timings={EVIL: {"wall_s": 1.0, "cpu_s": 1.0}},
        evaluation={key: {f"{EVIL}_before": 1.0}},
    )
    write_report(evil, tmp_path, {"registered": {key: EVIL}})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.lower().count("<script>") == 1
    facts = re.search(r'id="viewer-facts">(.*?)</script>', page)[1]
    assert "<" not in facts
    assert EVIL in json.loads(facts)["volumes"][0]["units"]
    assert "<b>x" not in page.lower()
    assert page.count("alert(1)") > 12
    parser = Balance()
    parser.feed(RAW.sub(">", page))
    assert [tag for tag in parser.open if tag not in ("p", "li", "option")] == []
    assert all(a.startswith(("data:image/", "#")) for a in parser.addresses)


def test_a_picture_case_has_one_plane_no_letters_and_pixels(tmp_path):
    write_report(result_2d(), tmp_path, {})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count('class="frame"') == 3 + 4 + 2 + 2 + 4
    assert '<b class="left">' not in page
    assert "0.4 px" in page
    assert "90 × 80 pixels" in page


def test_a_colour_picture_is_shown_in_its_colours():
    result = result_2d()
    red = torch.zeros(3, 90, 80)
    red[0] = 255
    fused = replace(result.fusion.fused, key="fused", colour=red)
    (plane,) = planes_for(result, 60)
    picture = colour_at(fused, plane)
    assert picture.reshape(-1, 3).max(0) == pytest.approx([1, 0, 0])
    assert colour_at(result.case.fixed, plane) is None
    coloured = replace(result, fusion=replace(result.fusion, colour=fused))
    ((_, frames),) = glance_table(coloured, pixels=60).rows
    assert frames[0].picture.reshape(-1, 3).max(0) == pytest.approx([1, 0, 0])
    ((_, frames),) = glance_table(result, pixels=60).rows
    assert np.ptp(frames[-1].picture[30, 30]) == 0


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    result = result_2d()
    write_report(result, tmp_path, {})
    write_report(result, tmp_path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    broken = replace(result, fusion=replace(result.fusion, weights=torch.zeros(0, 90, 80)))
    other = tmp_path / "other"
    with pytest.raises(ValueError, match="at least one array"):
        write_report(broken, other, {})
    assert not other.exists()


def test_after_agrees_with_the_reference_and_before_does_not():
    result = result_3d()
    fixed, moving = result.case.fixed, result.case.images["mr_t1"]
    for plane in planes_for(result, 120):
        reference = look_at(fixed, fixed, plane)
        before = look_at(moving, moving, plane)
        after = look_after(result, "mr_t1", plane)
        both = before.present & after.present & reference.present
        body = reference.unit[both] > 0.3
        assert both.mean() > 0.3
        off_before = (body != (before.unit[both] > 0.2)).mean()
        off_after = (body != (after.unit[both] > 0.2)).mean()
        assert off_after < off_before


def test_a_point_is_covered_where_the_mapping_leads():
    result = result_3d()
    shift = np.eye(4)
    shift[0, 3] = 60.0
    found = moved_by(result.registrations["pet"], shift)
    moved = replace(result, registrations={"pet": found})
    # the PET's lattice ends at 44 mm from the origin
    points = np.array([[0.0, 0.0, 0.0], [-60.0, 0.0, 0.0], [-100.0, 0.0, 0.0]])
    assert covered_by(moved, "pet", points).tolist() == [False, True, True]
    assert covered_by(result, "pet", points).tolist() == [True, False, False]


def test_pet_is_looked_at_where_it_is_hot():
    axial, coronal, sagittal = planes_for(result_3d(), 100)
    found = sagittal.points[0, 0, 0], coronal.points[0, 0, 1], axial.points[0, 0, 2]
    assert found == pytest.approx(HOT_MM, abs=3.5)


def test_emission_is_shown_black_on_white_and_nowhere_is_neither():
    result = result_3d()
    axial = planes_for(result, 100)[0]
    look = look_after(result, "pet", axial)
    assert look.present.any()
    assert look.picture[look.present].max() > 0.95
    hot = np.unravel_index(np.argmax(look.unit), look.unit.shape)
    assert look.picture[hot].max() < 0.3


def test_the_field_on_a_plane_is_that_of_the_mapping():
    grown = np.diag([1.1, 0.9, 1.2, 1.0])
    ddf = torch.zeros(3, 8, 9, 10)
    found = WorldMap(grown, ddf, lattice((8, 9, 10), (4.0, 5.0, 6.0), np.eye(4)))
    for plane in planes_through((1.0, 2.0, 3.0), np.full(3, -9.0), np.full(3, 9.0), pixels=12):
        field = field_on(found, plane)
        assert field.determinant == pytest.approx(1.1 * 0.9 * 1.2, rel=1e-5)
        expected = plane.points * np.array([0.1, -0.1, 0.2])
        assert field.displacement == pytest.approx(expected, abs=1e-6)


def test_a_field_is_the_same_between_the_pixels_that_are_computed():
    result = result_3d()
    mapping = result.registrations["mr_t1"].map
    for plane in planes_for(result, 160):
        exact, quick = field_on(mapping, plane), smooth_field_on(mapping, plane)
        inner = (slice(4, -4), slice(4, -4))
        far = np.abs(exact.displacement - quick.displacement)[inner]
        assert far.max() < 0.05
        assert np.abs(exact.determinant - quick.determinant)[inner].max() < 0.02


def test_a_fold_has_no_positive_determinant():
    ddf = torch.zeros(3, 12, 12, 12)
    ddf[0] = -2.0 * torch.arange(12.0)[:, None, None] * 4
    affine = lattice((12, 12, 12), (4.0, 4.0, 4.0), np.eye(4)) @ np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = -22
    plane = planes_through(np.zeros(3), np.full(3, -9.0), np.full(3, 9.0), pixels=12)[0]
    assert field_on(WorldMap(np.eye(4), ddf, affine), plane).determinant.max() < 0


def test_arrows_point_the_way_of_the_picture():
    axial = planes_through(np.zeros(3), np.full(3, -20.0), np.full(3, 20.0), pixels=41)[0]
    to_left_and_front = np.broadcast_to([-5.0, 8.0, 0.0], (41, 41, 3))
    present = np.zeros((41, 41), bool)
    present[10, 10] = True
    path = arrows(to_left_and_front, present, axial, along=2)
    # patient's left is on the picture's right, anterior on top
    assert path.startswith("M10 10L15.0 2.0")
    assert path.count("M10 10") == 1
    assert "M30" not in path


def test_two_emission_images_or_an_emission_reference_are_drawn_too():
    eye = np.eye(4)
    shape = (20, 24, 22)
    affine = lattice(shape, (5.0, 5.0, 5.0), eye)
    images = {
        "pet": paint("pet", affine, shape, "SUV", eye),
        "spect": paint("spect", affine, shape, "SUV", eye),
        "ct": paint("ct", affine, shape, "HU", eye),
    }
    still = Registration(
        WorldMap(eye, torch.zeros(3, 5, 5, 5), np.diag([20.0, 20, 20, 1])), Evidence("none")
    )
    case = case_of("emission", "pet", images, {"spect": "none", "ct": "none"})
    result = finished(case, {"spect": still, "ct": still}, ())
    assert alignment_figures(result, "ct", pixels=60).compared.columns[0].name == "Overlay, before"
    figures = alignment_figures(result, "spect", pixels=60)
    assert figures.compared.columns[0].name == "Checkerboard, before"
    assert figures.field is None


def test_an_empty_table_is_left_out():
    report = {"harmonization": {"ct": {}}, "fusion": {}, "registration": {}, "timings": {}}
    assert numbers_tables(report) == []
    titles = [table.title for table in numbers_tables({**report, "fusion": {"ssim": 1.0}})]
    assert titles == ["Fusion"]


def test_the_known_truth_is_shown_where_there_is_one(page, tmp_path):
    assert "Error against the" not in page
    scores = {"mr": {"tre_mm_before": 8.25, "tre_mm_after": 1.5, "tre_mm_after_max": 3.75}}
    write_report(replace(result_2d(), evaluation=scores), tmp_path, {})
    shown = (tmp_path / "report.html").read_text("utf-8")
    section = shown[shown.index("Error against the") : shown.index("At a glance")]
    assert "Target registration error</dfn>, px" in section
    assert re.findall(r"<td>([\d.]+)</td>", section) == ["8.25", "1.5", "3.75"]
    assert 'class="up">better' in section
    alone = {"mr": {"sd_log_jacobian": 0.1}}  # of the field, whatever the truth
    (tmp_path / "alone").mkdir()
    write_report(replace(result_2d(), evaluation=alone), tmp_path / "alone", {})
    assert "Error against the" not in (tmp_path / "alone" / "report.html").read_text("utf-8")


def test_more_overlap_is_better_and_more_error_is_worse():
    scores = {"dice_before": 0.5, "dice_after": 0.9, "hd95_mm_before": 2.0, "hd95_mm_after": 3.0}
    dice, hd95 = known_truth_changes({"dice_label_3_after": 0.5, **scores, "new_after": 1.0}, "mm")[
        :2
    ]
    assert (dice.unit, dice.verdict, dice.before, dice.after) == ("", "better", 0.5, 0.9)
    assert (hd95.unit, hd95.verdict, hd95.largest) == ("mm", "worse", None)


@pytest.mark.slow
def test_a_real_patient_is_quick_and_small(shared_data, tmp_path):
    nib = pytest.importorskip("nibabel")
    patient = shared_data / "3d_sarcoma_ct_mr_pet" / "sts015"
    result = result_3d()
    loaded = nib.load(patient / "sts015_ct.nii.gz")
    array = torch.from_numpy(loaded.get_fdata(dtype=np.float32).copy())[None]
    ct = replace(result.case.fixed, array=array, affine=np.asarray(loaded.affine, float))
    pet = nib.load(patient / "sts015_pet-suv_space-ct.nii.gz")
    values = torch.from_numpy(pet.get_fdata(dtype=np.float32).copy())[None]
    pet = replace(result.case.images["pet"], array=values, affine=np.asarray(pet.affine, float))
    case = case_of("sts015", "ct", {"ct": ct, "pet": pet}, {"pet": "none"})
    still = Registration(WorldMap(np.eye(4), torch.zeros(3, 2, 2, 2), ct.affine), Evidence("none"))
    result = finished(case, {"pet": still}, ())
    start = time.process_time()
    write_report(result, tmp_path, {})
    assert time.process_time() - start < 10
    assert (tmp_path / "report.html").stat().st_size < 10e6
