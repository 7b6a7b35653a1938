"""Small patients on disk and a registration stand-in, for the tests of pipeline, CLI and bundle."""

import json
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.data.utils import no_collation
from monai.transforms import Compose

import fusion_pipeline.pipeline.folder as folder_module
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.pipeline import (
    CaseDataset,
    CaseQueue,
    EvaluationHandler,
    FusionEvaluator,
    FusionInferer,
    FusionPipeline,
    ProgressHandler,
    SaveResult,
    SummaryHandler,
    bundle_for,
    from_config,
)
from fusion_pipeline.register import Evidence, Registration

CT_AFFINE = np.array([[-1.5, 0, 0.1, 20], [0, 1.2, 0, -18], [0, 0.05, 3, -30], [0, 0, 0, 1.0]])
OTHER_AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])
OTHER_AFFINE[:3, 3] = [-24, -20, -32]


def body(shape, affine, rng):
    """A bumpy ball of 20 mm around (0, 2, -2) mm, with a bar in it; each axis looks different."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3] - [0, 2, -2]
    ball = np.linalg.norm(world / [18, 16, 22], axis=-1) < 1
    bar = (np.abs(world[..., 0] - 4) < 4) & (np.abs(world[..., 1] + 2) < 9)
    return ball + 0.6 * (bar & ball) + 0.03 * rng.standard_normal(shape)


def write_case(folder, keys=("ct", "mr")):
    """A path per key: CT in HU and others on another grid."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    paths = {}
    for number, key in enumerate(keys):
        ct = key.startswith("ct")
        affine = CT_AFFINE if ct else OTHER_AFFINE
        shape = (26, 30, 18) if ct else (24, 20, 26)
        array = body(shape, affine, rng) * (1000 if ct else 300 + 50 * number)
        paths[key] = folder / f"{key}.nii.gz"
        nib.save(nib.Nifti1Image((array - 1000 * ct).astype(np.float32), affine), paths[key])
    return paths


def small_network(spatial_dims=3, seed=0):
    torch.manual_seed(seed)
    return MultimodalNet(
        RegistrationNet(spatial_dims, channels=(4, 4, 4, 4), learned_features=2),
        HarmonizationNet(spatial_dims, channels=4),
        FusionNet(spatial_dims, channels=(2, 4, 8)),
    )


def preprocessing(spatial_dims=3, **overrides):
    """The packaged bundle's; overrides by id of the config."""
    return from_config(bundle_for(spatial_dims), overrides, "preprocessing")["preprocessing"]


def small_pipeline(spatial_dims=3, seed=0, window_hu=None, **settings):
    """Untrained small networks in the packaged bundle's preprocessing."""
    inferer = FusionInferer(**{"refine_steps": 0, "fuse_steps": 0, **settings})
    steps = preprocessing(spatial_dims, **{"preprocessing#transforms#6#window_hu": window_hu})
    return FusionPipeline(small_network(spatial_dims, seed), steps, inferer)


def small_evaluator(cases, output, *, seed=0, save=None, evaluate=False, **switches):
    """As the bundle's config builds it, with an untrained small network."""
    steps = preprocessing()
    dataset = CaseDataset(cases, steps)
    loader = DataLoader(dataset, batch_size=1, sampler=CaseQueue(dataset), collate_fn=no_collation)
    handlers = [ProgressHandler(), SummaryHandler(output)]
    if evaluate:
        handlers.append(EvaluationHandler(output))
    return FusionEvaluator(
        val_data_loader=loader,
        network=small_network(seed=seed),
        inferer=FusionInferer(refine_steps=0, fuse_steps=0),
        preprocessing=steps,
        postprocessing=Compose([save or SaveResult(output)]),
        val_handlers=handlers,
        output_dir=output,
        **switches,
    )


@pytest.fixture
def brief_report(monkeypatch):
    """A report without pictures: they take a second."""

    def write(result, folder, files):
        report = {
            "id": result.case.id,
            "files": {**files, "report": "report.html"},
            "reference": result.case.reference,
            "modalities": list(result.modalities),
            "harmonization": {key: {} for key in result.harmonization.images},
            "fusion": {},
            "registration": {
                key: {
                    "ok": found.ok,
                    "reason": found.reason,
                    "transform": found.transform,
                    "error_mm": None,
                    "over_5_mm": None,
                    "folded_fraction": 0.0,
                    "similarity_before": dict(found.evidence.similarity_before),
                    "similarity_after": dict(found.evidence.similarity_after),
                }
                for key, found in result.registrations.items()
            },
            "warnings": list(result.warnings),
            "timings": result.timings,
            "peak_memory_mb": result.peak_memory_mb,
            "input": result.input_digest,
            "evaluation": dict(result.evaluation),
        }
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "report.html").write_text("<html></html>")

    monkeypatch.setattr(folder_module, "write_report", write)


class ShiftRegister:
    """Stands for the register stage: moves everything by 2 mm, and keeps what it is told."""

    shift_mm = (2.0, 0.0, 0.0)

    calls: ClassVar[list] = []

    def __init__(self, network, **settings):
        pass

    def __call__(self, fixed, moving, *, transform="deformable", **options):
        fixed, moving = fixed.image, moving.image
        masks = options["fixed_mask"], options["moving_mask"]
        self.calls.append((moving.key, transform, *masks))
        d = fixed.spatial_dims
        matrix = np.eye(d + 1)
        matrix[:d, d] = self.shift_mm[:d]
        return Registration(
            WorldMap(
                moving_from_fixed=matrix if transform != "none" else np.eye(d + 1),
                ddf_mm=torch.zeros(d, *[2] * d),
                working_affine=fixed.affine,
            ),
            Evidence(
                transform=transform,
                ok=transform != "affine",
                reason="an affine is not trusted here" if transform == "affine" else "",
                similarity_before={"nmi": 1.1, "mind": 0.3},
                similarity_after={"nmi": 1.2, "mind": 0.2},
                error_mm=float("nan"),
            ),
        )
