"""Small networks, samples and trainers for the tests of the training."""

import json

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from fusion_pipeline.networks import FusionNet, HarmonizationNet, MultimodalNet, RegistrationNet
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training import (
    EndToEnd,
    FusionObjective,
    HarmonizationObjective,
    MultimodalData,
    MultimodalTraining,
    PaintedSamples,
    RegistrationObjective,
    Trainer,
    collate,
)

SHAPE = (33, 40)
OBJECTIVES = {
    "registration": RegistrationObjective,
    "harmonization": HarmonizationObjective,
    "fusion": FusionObjective,
    "all": EndToEnd,
}


def network(d=2, seed=0):
    torch.manual_seed(seed)
    return MultimodalNet(
        RegistrationNet(d, channels=(4, 4, 4, 4), learned_features=2),
        HarmonizationNet(d, channels=4, small_size=16),
        FusionNet(d, channels=(2, 4, 8)),
    )


def module(phase="all", d=2, **options):
    return MultimodalTraining(network(d), OBJECTIVES[phase](), **options)


def painted(phase, shape=SHAPE, count=1, **options):
    """A batch as the phase's overlay asks for."""
    moved = phase in ("registration", "all")
    options = {"motion": moved, "protocols": phase == "harmonization", "seed": 3} | options
    samples = PaintedSamples(count, shape, group=count, **options)
    return collate([samples[i] for i in range(count)])


def data(phase="all", **options):
    moved = phase in ("registration", "all")
    options = {
        "samples_per_epoch": 4,
        "validation_samples": 2,
        "motion": moved,
        "protocols": phase == "harmonization",
    } | options
    return MultimodalData(SHAPE, **options)


def trainer(folder, **options):
    """As the bundle's config builds it, without pictures and bars."""
    options = {"max_epochs": 1, "accelerator": "cpu", "devices": 1} | options
    checkpoints = {"dirpath": str(folder / "checkpoints"), "enable_version_counter": False}
    return Trainer(
        default_root_dir=folder,
        callbacks=[
            ModelCheckpoint(filename="best", monitor="val/loss", **checkpoints),
            ModelCheckpoint(filename="last", **checkpoints),
            EMAWeightAveraging(decay=0.9),
        ],
        logger=CSVLogger(str(folder), name="csv"),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )


@pytest.fixture(scope="session")
def datalist(tmp_path_factory):
    """Three synthetic patients: two with their truth, one whose MR is called aligned."""
    folder = tmp_path_factory.mktemp("cases")
    entries = []
    for seed in (1, 2, 3):
        listed = synthetic_patient(seed).save(folder)
        (entry,) = json.loads(listed.read_text())["testing"]
        if seed == 2:
            entry = {k: v for k, v in entry.items() if k in ("id", "ct", "mr")}
            entry["mr_transform"] = "none"
        entries.append(entry)
    path = folder / "training.json"
    path.write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    return path
