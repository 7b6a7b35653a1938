"""From an empty folder to own weights in an own bundle to inference, by the commands alone."""

import json
import subprocess
import sys

import pytest
import torch

from fusion_pipeline.pipeline import bundle_for

pytestmark = pytest.mark.slow
_PATIENTS = """
import json, pathlib
from fusion_pipeline.synthesis import synthetic_patient
cases = {}
for seed, part in enumerate(("training", "training", "validation", "testing")):
    made = synthetic_patient(seed, spatial_dims=2, size="small").save("patients")
    [case] = json.loads(made.read_text())["testing"]
    cases.setdefault(part, []).append(case)
pathlib.Path("patients/cases.json").write_text(json.dumps(cases))
"""


def command(*arguments, folder):
    """Run it; what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_three_commands_from_patients_to_a_fused_image(tmp_path):
    tiny = ["--override", "data#shape=[33,33]", "--override", "data#samples_per_epoch=2"]
    once = ["--override", "train#trainer#accumulate_grad_batches=1", "--max-steps", "2"]
    program = ["-m", "fusion_pipeline"]

    command("-c", _PATIENTS, folder=tmp_path)
    data = ["--datalist", "patients/cases.json"]
    command(*program, "train", *data, "--output", "run", *tiny, *once, folder=tmp_path)
    said = command(
        *(*program, "run", "--bundle", "run/bundle", *data, "--output", "results"),
        folder=tmp_path,
    )

    assert "[1/1] synthetic-head-3: ok" in said
    assert (tmp_path / "results" / "synthetic-head-3" / "fused.png").is_file()
    trained = torch.load(tmp_path / "run" / "bundle" / "models" / "model.pt", weights_only=True)
    shipped = torch.load(bundle_for(2) / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(trained[name], value) for name, value in shipped.items())

    # MONAI's own command leaves the same
    folder, config = "run/bundle", "run/bundle/configs/inference.json"
    where = ["--bundle_root", folder, "--config_file", config, "--output_dir", "by_monai"]
    command("-m", "monai.bundle", "run", *where, *data, folder=tmp_path)
    for name in ("fused.png", "mr_displacement.nii.gz"):
        ours = tmp_path / "results" / "synthetic-head-3" / name
        assert (tmp_path / "by_monai" / "synthetic-head-3" / name).read_bytes() == ours.read_bytes()
    report = json.loads((tmp_path / "results" / "synthetic-head-3" / "report.json").read_text())
    by_monai = tmp_path / "by_monai" / "synthetic-head-3" / "report.json"
    assert json.loads(by_monai.read_text())["input"] == report["input"]
