"""The example for MONAI Deploy: the choice of series, its settings, and its import."""

import sys
from pathlib import Path

import pytest
import yaml
from data_phantoms import save_series

from fusion_pipeline import __version__

DEPLOY = Path(__file__).resolve().parents[1] / "examples" / "monai_deploy"


@pytest.fixture
def deploy(monkeypatch):
    """The example's folder on the path, as its own commands have it."""
    monkeypatch.syspath_prepend(str(DEPLOY))
    yield
    for name in ("app", "fusion_operator", "series"):
        sys.modules.pop(name, None)


def test_the_longest_series_of_each_modality_is_taken(deploy, tmp_path):
    from series import case_of_study

    save_series(tmp_path / "a", SeriesInstanceUID="1.2.1")
    save_series(tmp_path / "b", SeriesInstanceUID="1.2.2", Modality="MR")
    save_series(tmp_path / "c", SeriesInstanceUID="1.2.3", Modality="MR")
    next((tmp_path / "b").iterdir()).unlink()
    (tmp_path / "note.txt").write_text("no DICOM")
    assert case_of_study(tmp_path) == {"ct": f"{tmp_path}::1.2.1", "mr": f"{tmp_path}::1.2.3"}


def test_one_modality_alone_is_refused(deploy, tmp_path):
    from series import case_of_study

    save_series(tmp_path, Modality="MR")
    with pytest.raises(ValueError, match="series of two modalities of CT, MR, PT, NM, got mr; "):
        case_of_study(tmp_path)


def test_the_settings_name_this_version():
    settings = list(yaml.safe_load_all((DEPLOY / "app.yaml").read_text()))[-1]
    assert settings["application"]["version"] == __version__
    assert f'version = "{__version__}"' in (DEPLOY / "app.py").read_text()


def test_the_application_imports(deploy):
    pytest.importorskip("monai.deploy", reason="needs monai-deploy-app-sdk, not in our index")
    from app import FusionApp

    assert FusionApp.version == __version__
