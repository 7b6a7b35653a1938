"""Bundles packed for the Model Zoo: MONAI brings the weights back; versions follow the rules."""

import json
import shutil
from pathlib import Path

import pytest
from monai.apps.utils import HashCheckError
from monai.bundle import download_large_files

from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError
from fusion_pipeline.pipeline import bundle_for, pack_for_model_zoo
from fusion_pipeline.pipeline.model_zoo import check_version


@pytest.fixture
def bundle(tmp_path):
    """A copy that may be changed."""
    return Path(shutil.copytree(bundle_for(2), tmp_path / "bundle"))


@pytest.mark.filterwarnings("ignore")
def test_monai_brings_the_weights_back_to_their_place(bundle, tmp_path):
    packed = pack_for_model_zoo(bundle, tmp_path / "zoo" / "mine", f"file://{bundle}/models")
    assert not list(packed.rglob("*.pt"))
    download_large_files(str(packed))
    given = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*.*")}
    back = {p.relative_to(packed).as_posix(): p.read_bytes() for p in packed.rglob("*.*")}
    back.pop("large_files.yml")
    assert back == given


@pytest.mark.filterwarnings("ignore")
def test_other_weights_under_the_address_are_noticed(bundle, tmp_path):
    packed = pack_for_model_zoo(bundle, tmp_path / "mine", f"file://{bundle}/models")
    (bundle / "models" / "model.pt").write_bytes(b"others")
    with pytest.raises(HashCheckError, match="sha256 hash check"):
        download_large_files(str(packed))


def test_the_command_packs_and_says_where(bundle, tmp_path, capsys):
    command = [
        "export",
        "--format",
        "zoo",
        "--bundle",
        str(bundle),
        "--output",
        str(tmp_path / "z"),
    ]
    assert main(command) == 2
    assert "--format zoo: expected --weights-url" in capsys.readouterr().err
    assert main([*command, "--weights-url", "https://example.org/v1"]) == 0
    assert str(tmp_path / "z") in capsys.readouterr().out
    assert 'url: "https://example.org/v1/model.pt"' in (tmp_path / "z/large_files.yml").read_text()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_packaged_bundles_follow_the_rules(dims):
    path = bundle_for(dims) / "configs" / "metadata.json"
    check_version(json.loads(path.read_text()), bundle_for(dims))


@pytest.mark.parametrize(
    ("version", "changelog", "message"),
    [
        ("1.0", {"1.0": "x"}, "three numbers .* got '1.0'"),
        ("1.0.0", {}, "version 1.0.0 as the highest of the changelog .* got none"),
        ("1.9.0", {"1.9.0": "x", "1.10.0": "y"}, "1.9.0 as the highest .* got 1.9.0, 1.10.0"),
        ("1.0.0", {"0.9.0": "x"}, "got 0.9.0; add a line"),
    ],
)
def test_a_version_that_breaks_a_rule_is_refused(version, changelog, message):
    with pytest.raises(InputError, match=message):
        check_version({"version": version, "changelog": changelog}, "mine")


def test_a_bundle_that_is_not_whole_and_an_address_that_is_none_are_refused(bundle, tmp_path):
    with pytest.raises(InputError, match="address of the weights' folder"):
        pack_for_model_zoo(bundle, tmp_path / "z", "models")
    (bundle / "LICENSE").unlink()
    with pytest.raises(InputError, match="got none of LICENSE"):
        pack_for_model_zoo(bundle, tmp_path / "z", "https://example.org")
    assert not (tmp_path / "z").exists()
