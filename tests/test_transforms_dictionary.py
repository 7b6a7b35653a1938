"""Dictionary versions do what the array versions do, key by key."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from fusion_pipeline import transforms as T

SHAPE, SPACING = (24, 28, 20), (3.0, 2.5, 4.0)


def image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    body = torch.zeros((1, *SHAPE))
    body[:, 6:18, 5:22, 4:17] = 400
    return (body + 20 * torch.randn(body.shape, generator=generator)).abs()


def with_affine(tensor):
    return MetaTensor(tensor, affine=torch.diag(torch.tensor([*SPACING, 1.0])))


@pytest.mark.parametrize(
    ("dictionary", "array"),
    [
        (T.ClipHUd("mr", 0.0, 300.0), T.ClipHU(0.0, 300.0)),
        (T.RobustZScored("mr", 2.0, 98.0), T.RobustZScore(2.0, 98.0)),
        (T.ScaleEmissiond("mr", 99.0), T.ScaleEmission(99.0)),
        (T.NormalizeModalityd("mr", "mr"), T.NormalizeModality("mr")),
    ],
)
def test_values_agree_and_the_input_stays(dictionary, array):
    data = {"mr": image(), "id": "case01"}
    out = dictionary(data)
    assert torch.equal(out["mr"], array(image()))
    assert torch.equal(data["mr"], image())
    assert out["id"] == "case01"


@pytest.mark.parametrize(
    ("dictionary", "array"),
    [
        (T.RobustZScored("mr"), T.RobustZScore()),
        (T.ScaleEmissiond("mr"), T.ScaleEmission()),
        (T.NormalizeModalityd("mr", "pet"), T.NormalizeModality("pet")),
    ],
)
def test_masks_are_used_where_present(dictionary, array):
    mask = image() > 200
    out = dictionary({"mr": image(), "mr_mask": mask})
    assert torch.equal(out["mr"], array(image(), mask))
    assert not torch.equal(out["mr"], array(image()))


def test_spacing_comes_from_the_image_or_the_option():
    expected = T.BodyMask("mr")(image(), SPACING)
    assert torch.equal(T.BodyMaskd("mr", "mr")({"mr": with_affine(image())})["mr_mask"], expected)
    out = T.BodyMaskd("mr", "mr", spacing=SPACING)({"mr": image()})
    assert torch.equal(out["mr_mask"], expected)
    smooth = T.Denoised("mr", "mr")({"mr": with_affine(image())})["mr"]
    assert torch.equal(smooth, T.Denoise("mr")(image(), SPACING))


def test_without_a_spacing_the_message_says_what_is_missing():
    with pytest.raises(ValueError, match="expected a MetaTensor or a spacing"):
        T.Denoised("mr", "mr")({"mr": image()})


def test_field_of_view_is_put_beside_the_image():
    padded = image()
    padded[:, :5] = 0
    out = T.FieldOfViewd("mr")({"mr": padded})
    assert torch.equal(out["mr_valid"], T.FieldOfView()(padded))


def test_a_chain_with_one_modality_for_each_key():
    chain = Compose(
        [
            T.BodyMaskd(["ct", "mr"], ["ct", "mr"], spacing=SPACING, allow_missing_keys=True),
            T.NormalizeModalityd(["ct", "mr"], ["ct", "mr"], allow_missing_keys=True),
        ]
    )
    out = chain({"ct": image() - 100, "mr": image(1)})
    assert out["ct"].abs().max() <= 4
    assert out["mr"].abs().max() <= 4
    assert set(chain({"mr": image(1)})) == {"mr", "mr_mask"}


def test_the_bare_name_is_refused():
    root = Path(T.__file__).resolve().parents[1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import transforms"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "import fusion_pipeline.transforms, not transforms" in run.stderr
