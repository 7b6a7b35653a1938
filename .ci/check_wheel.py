"""The wheel holds code, bundles and weights, and works far from the checkout.

usage: python .ci/check_wheel.py dist/fusion_pipeline-….whl
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

_BUNDLES = ("multimodal_fusion", "multimodal_fusion_2d")
_OF_A_BUNDLE = (
    "LICENSE",
    "configs/inference.json",
    "configs/metadata.json",
    "docs/README.md",
    "models/model.pt",
)
_NEEDED = (
    "fusion_pipeline/__init__.py",
    "fusion_pipeline/__main__.py",
    "fusion_pipeline/py.typed",
    "fusion_pipeline/networks/__init__.py",
    "fusion_pipeline/transforms/__init__.py",
    "fusion_pipeline/pipeline/model_card.md.j2",
    "fusion_pipeline/report/frames.html.j2",
    "fusion_pipeline/report/page.css",
    "fusion_pipeline/report/page.html.j2",
    "fusion_pipeline/report/viewer.js",
    "fusion_pipeline/report/niivue/LICENSE.txt",
    "fusion_pipeline/report/niivue/niivue.umd.js.gz",
    *(f"fusion_pipeline/bundles/{name}/{file}" for name in _BUNDLES for file in _OF_A_BUNDLE),
)
_IMPORT = """
import pathlib, fusion_pipeline.cli, fusion_pipeline.networks, fusion_pipeline.transforms
from fusion_pipeline.pipeline import FusionPipeline, bundle_for
where = pathlib.Path(fusion_pipeline.networks.__file__).parents[2]
assert where == pathlib.Path.cwd(), f"imported from {where}"
FusionPipeline.from_bundle()
FusionPipeline.from_bundle(bundle_for(2))
"""


def main(wheel: str) -> int:
    """Check one wheel; say what is wrong."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = set(archive.namelist())
        missing = [name for name in _NEEDED if name not in names]
        doubled = [n for n in names if n.startswith(("networks/", "transforms/", "bundles/"))]
        cached = [n for n in names if "__pycache__" in n]
        if missing or doubled or cached:
            sys.stderr.write(f"missing {missing}, at the top level {doubled}, cached {cached}\n")
            return 1
        archive.extractall(folder)
        # PYTHONPATH instead of the venv's site: the editable install's finder must not help
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        others = [x for x in given if x and not Path(x, "fusion_pipeline").exists()]
        path = os.pathsep.join([folder, sysconfig.get_path("purelib"), *others])
        found = subprocess.run(
            [sys.executable, "-S", "-W", "ignore", "-c", _IMPORT],
            cwd=Path(folder).resolve(),
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
    sys.stdout.write(f"{wheel}: {len(names)} files, {'fine' if not found.returncode else 'bad'}\n")
    return found.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
