import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from registration_table import _succeeded


@pytest.mark.parametrize(
    ("error_mm", "voxel_mm", "succeeded"),
    [(2.9, 1.5, True), (3.1, 1.5, False), (3.1, 4.6, True), (4.7, 4.6, False)],
)
def test_success_is_under_3_mm_or_under_a_voxel(error_mm, voxel_mm, succeeded):
    row = {"after": {"mean": error_mm}, "voxel_mm": voxel_mm}
    assert _succeeded(row) == succeeded
    assert not _succeeded(row | {"raised": "ValueError: no"})
