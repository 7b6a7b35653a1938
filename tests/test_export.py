"""Exported graphs give what the networks give, at sizes that they were not traced with."""

import sys
from functools import cache

import pytest
import torch
from pipeline_cases import small_network
from torch import nn

from fusion_pipeline import export
from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError
from fusion_pipeline.export import export_fusion, export_networks
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.networks.registration_net import RegistrationNet

KINDS = ("emission", "ct")
SIZES = {2: ((47, 64), (65, 49)), 3: ((47, 64, 49), (65, 49, 52))}


def network(spatial_dims):
    """A small network whose every layer matters: what begins at zero is drawn."""
    small = small_network(spatial_dims)
    register = RegistrationNet(
        spatial_dims, channels=(4, 4, 4, 4), learned_features=2, radius=1, integration_steps=1
    )
    whole = MultimodalNet(register, small.harmonization, small.fusion).eval()
    torch.manual_seed(3)
    for parameter in whole.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return whole


def pairs(channels, spatial_dims):
    """Images and fields of view of each size."""
    draw = torch.Generator().manual_seed(1)
    for shape in SIZES[spatial_dims]:
        images = torch.rand(1, channels, *shape, generator=draw)
        valid = (torch.rand(1, channels, *shape, generator=draw) > 0.1).float()
        yield images, valid


def run_pt2(path):
    return torch.export.load(path).module()


def run_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)

    def run(*tensors):
        names = [entry.name for entry in session.get_inputs()]
        out = session.run(None, dict(zip(names, [t.numpy() for t in tensors], strict=True)))
        return tuple(map(torch.from_numpy, out)) if len(out) > 1 else torch.from_numpy(out[0])

    return run


def check(name, file_format, whole, folder):
    """One network, in one format, at each size."""
    torch_gives = {
        "registration": whole.registration,
        "harmonization": lambda image, valid: whole.harmonization(image, KINDS[0], valid),
        "fusion": lambda images, valid: tuple(whole.fusion(images, KINDS, valid)),
    }[name]
    kinds = KINDS if name == "fusion" else KINDS[:1]  # each harmonization is a graph of its own
    (path,) = export_networks(whole, folder, names=[name], file_format=file_format, kinds=kinds)
    run = {"pt2": run_pt2, "onnx": run_onnx}[file_format](path)
    for pair in pairs(2 if name == "fusion" else 1, whole.registration.spatial_dims):
        with torch.no_grad():
            expected = torch_gives(*pair)
            # of the largest value: a field in voxels adds up many small ones
            largest = max(float(t.abs().max()) for t in _tensors(expected))
            atol = 1e-4 * max(1.0, largest)
            torch.testing.assert_close(run(*pair), expected, rtol=1e-4, atol=atol)


def _tensors(found):
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.slow
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", export.NETWORKS)
def test_graphs_equal_the_network(name, spatial_dims, monkeypatch, tmp_path):
    """In both formats, written from one trace: a trace takes up to a minute."""
    traced = cache(getattr(export, f"export_{name}"))
    monkeypatch.setattr(export, f"export_{name}", traced)
    whole = network(spatial_dims)
    for file_format in export.FORMATS:
        check(name, file_format, whole, tmp_path)
    assert traced.cache_info().misses == 1


@pytest.mark.slow
def test_a_size_below_the_smallest_is_refused():
    program = export_fusion(network(2).fusion, KINDS)
    with pytest.raises(AssertionError, match="45"):
        program.module()(torch.rand(1, 2, 44, 60), torch.ones(1, 2, 44, 60))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["warp"]}, "each network of registration, .*, got warp"),
        ({"file_format": "ts"}, "each format of pt2, onnx, got ts"),
        ({"kinds": ["pet"]}, "each kind of ct, mr, emission, got pet"),
        ({"kinds": []}, "each kind of ct, mr, emission, got none"),
    ],
)
def test_an_unknown_word_is_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_networks(network(2), tmp_path, **settings)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"fusion-pipeline\[export\]"):
        export_networks(
            network(2), tmp_path, names=["harmonization"], file_format="onnx", kinds=["ct"]
        )


@pytest.mark.slow
def test_the_command_exports_the_harmonization_of_a_bundle(tmp_path):
    from fusion_pipeline.pipeline import FusionPipeline, bundle_for

    bundle = str(bundle_for(2))
    arguments = ["--bundle", bundle, "--network", "harmonization", "--output", str(tmp_path)]
    assert main(["export", *arguments, "--kinds", "mr,emission"]) == 0
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["harmonization_emission.pt2", "harmonization_mr.pt2"]
    own = FusionPipeline.from_bundle(bundle).network.harmonization
    run = run_pt2(tmp_path / "harmonization_emission.pt2")
    for image, valid in pairs(1, 2):
        with torch.no_grad():
            torch.testing.assert_close(run(image, valid), own(image, "emission", valid))
