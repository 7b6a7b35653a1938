"""Memory that is kept: large images are made again without new pages."""

import resource
import subprocess
import sys

import pytest

_MANY = """
import resource
import sys
import torch
from fusion_pipeline.pipeline import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.ones(1, 12, 64, 64, 64).exp()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1, 12, 64, 64, 64).exp()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for it")
def test_large_images_need_no_new_pages():
    command = [sys.executable, "-c", _MANY]
    kept, given_back = (
        int(subprocess.run([*command, how], capture_output=True, check=True).stdout)
        for how in ("keep", "give back")
    )
    pages = 12 * 64**3 * 4 / resource.getpagesize()
    assert given_back > 20 * pages  # or this test says nothing
    assert kept < pages
