"""``summary.html``: what to look at comes first, and each case is one click away."""

import re

import pytest

from fusion_pipeline.report import CohortCase, render_cohort
from fusion_pipeline.report.cohort import outlying


def case(name, *, status="ok", ok=True, error=1.5, message="", **numbers):
    cells = (
        {}
        if status == "failed"
        else {
            "mr_ok": ok,
            "mr_transform": "rigid",
            "mr_error_mm": error,
            "mr_folded_fraction": 0.001,
            "mr_nmi_after": 1.2,
            "warnings": 2,
            "wall_s": 12.5,
        }
    )
    return CohortCase(name, status, message, cells | numbers)


def order(page):
    """The cases of the table, from above."""
    table = page[page.index("those to look at first") :]
    return re.findall(r"<tr[^>]*><td>(?:<a [^>]*>)?([^<]+)", table)


def test_failed_then_doubtful_then_outlying_cases_come_first():
    usual = [case(f"usual{n}", error=1 + 0.1 * n) for n in range(9)]
    page = render_cohort(
        [
            *usual,
            case("far", error=30.0),
            case("doubtful", ok=False),
            case("broken", status="failed", message="ct: expected a file, got none"),
        ]
    )
    assert order(page)[:4] == ["broken", "doubtful", "far", "usual0"]
    assert "ct: expected a file, got none" in page
    assert "MR: Estimated error 30 mm" in page
    assert page.count('class="far"') == 1
    facts = re.findall(r"<b>(\d+)</b>", page)
    assert facts == ["11", "1", "1", "1"]


def test_the_probability_of_a_large_error_has_a_strip_and_is_explained():
    page = render_cohort([case("a", mr_over_5_mm=0.1), case("b", mr_over_5_mm=0.425)])
    assert "Probability of an error over 5 mm</dfn>, %" in page
    assert "10 to 42.5" in page
    assert "over 5 mm" not in render_cohort([case("a", mr_over_5_mm=None), case("b")])


def test_each_case_is_linked_from_the_table_and_from_each_strip():
    page = render_cohort([case("a b#1"), case("c", status="skipped", error=2.0)])
    # a strip for the error; the other numbers as well: they are there for each case
    strips = page.count("<svg")
    assert strips == 3
    assert page.count('href="a%20b%231/report.html"') == strips + 1
    assert page.count('href="c/report.html"') == strips + 1
    assert "done before" in page
    assert "<script" not in page


def test_the_box_stands_where_the_quartiles_are():
    page = render_cohort([case(f"p{n}", error=float(n)) for n in range(5)])
    assert "2 (1 to 3)" in page
    # 0 to 4 mm over 540 of 560 units
    assert '<rect x="145.0" y="2" width="270.0"' in page
    assert '<line x1="280.0"' in page


def test_a_picture_has_pixels_and_text_stays_text():
    page = render_cohort([case("<b>x"), case("y", error=2.0)], "px")
    assert "Estimated error</dfn>, px" in page
    assert "1.5 px" in page
    assert "<b>x" not in page


def test_a_case_without_numbers_leaves_no_strip():
    page = render_cohort([case("x", status="failed"), case("y", error=None, mr_nmi_after=None)])
    assert "<svg" not in page


@pytest.mark.parametrize(
    ("values", "higher", "expected"),
    [
        ([1, 2, 1, 2, 1, 2, 1, 30], False, [7]),
        ([1, 2, 1, 2, 1, 2, 1, 30], True, []),
        ([1, 2, 1, 2, 1, 2, 1, -30], True, [7]),
        ([1, 2, 1, 2, 30], False, []),  # too few to say
        ([1, 1, 1, 1, 1, 1, 1, 2], False, []),  # no spread to measure by
    ],
)
def test_outliers_lie_on_the_worse_side(values, higher, expected):
    far = outlying(values, higher_is_better=higher)
    assert [n for n, is_far in enumerate(far) if is_far] == expected
