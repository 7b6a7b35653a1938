"""The shipped bundle: what MONAI asks of it; it builds what Python and the command build."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from pydoc import locate

import pytest
import pytorch_lightning as pl
import torch
from ignite.engine import Events
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    create_workflow,
    load,
    verify_metadata,
    verify_net_in_out,
)
from monai.data import Dataset
from monai.engines import Evaluator
from monai.inferers import Inferer
from monai.transforms import Compose, GaussianSmoothd
from pipeline_cases import ShiftRegister, small_network, write_case
from pytorch_lightning.callbacks import EMAWeightAveraging, LambdaCallback
from torch.utils.data import DataLoader

import fusion_pipeline
from fusion_pipeline.data import InputError
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline import FusionPipeline, bundle_for, load_weights
from fusion_pipeline.pipeline.bundle import load_checkpoint
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training import EndToEnd, MultimodalTraining

ROOT = bundle_for(3).parent
BUNDLE, BUNDLE_2D = ROOT / "multimodal_fusion", ROOT / "multimodal_fusion_2d"
CONFIGS = BUNDLE / "configs"
# MONAI warns about every config that it evaluates
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=[BUNDLE, BUNDLE_2D], ids=["3d", "2d"])
def bundle(request):
    return request.param


def workflow(name="inference", bundle=BUNDLE, **overrides):
    config = str(bundle / "configs" / f"{name}.json")
    kind = "train" if name == "train" else "inference"
    return create_workflow(
        config_file=config,
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(bundle),
        **overrides,
    )


@pytest.fixture
def copied(tmp_path):
    """A bundle that a test may spoil."""
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def test_the_files_of_a_bundle_are_there(bundle):
    for name in ("LICENSE", "models/model.pt", "docs/README.md", "configs/logging.conf"):
        assert (bundle / name).is_file(), name
    for name in ("metadata", "inference", "train", "evaluate"):
        json.loads((bundle / "configs" / f"{name}.json").read_text())
    assert (bundle / "models" / "model.pt").stat().st_size < 16 * 2**20


def test_every_key_of_the_weights_matches_the_network(bundle):
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network = workflow(bundle=bundle).network_def
    assert isinstance(network, MultimodalNet)
    assert list(state) == list(network.state_dict())
    assert all(torch.isfinite(value).all() for value in state.values())


def test_the_metadata_fits_the_schema_without_a_network(monkeypatch, bundle):
    def refuse(*_):
        raise AssertionError("no network here")

    monkeypatch.setattr(socket, "create_connection", refuse)
    verify_metadata(
        meta_file=str(bundle / "configs" / "metadata.json"),
        filepath=str(ROOT / "metadata_schema.json"),
    )


def test_the_schema_refuses_incomplete_metadata(tmp_path):
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    del metadata["network_data_format"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="network_data_format"):
        verify_metadata(
            meta_file=str(tmp_path / "metadata.json"), filepath=str(ROOT / "metadata_schema.json")
        )


def test_the_network_takes_and_gives_what_the_metadata_says(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        n=2,
    )


def test_monai_loads_the_trained_network(bundle):
    found = load(name=bundle.name, bundle_dir=str(ROOT), workflow_type="inference", device="cpu")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert isinstance(found, MultimodalNet)
    for name, value in found.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("name", ["inference", "evaluate"])
def test_the_properties_of_an_inference_workflow(name, bundle, tmp_path):
    found = workflow(name, bundle, output_dir=str(tmp_path))
    assert isinstance(found, ConfigWorkflow)
    assert found.check_properties() == []
    assert found.bundle_root == str(bundle)
    assert found.device == "cpu"
    assert isinstance(found.inferer, Inferer)
    assert isinstance(found.evaluator, Evaluator)
    assert isinstance(found.dataset, Dataset)
    assert isinstance(found.preprocessing, Compose)
    assert isinstance(found.postprocessing, Compose)
    assert found.network_def is found.evaluator.pipeline.network
    assert not found.network_def.training


def test_the_properties_of_a_training_workflow(bundle, tmp_path):
    found = workflow("train", bundle, output_dir=str(tmp_path))
    assert found.check_properties() == []
    assert (
        found.max_epochs
        == json.loads((CONFIGS / "train.json").read_text())["train"]["trainer"]["max_epochs"]
    )


@pytest.mark.parametrize(("word", "meant"), [("true", True), (True, True), ("false", False)])
def test_training_starts_from_the_weights_or_from_none(word, meant):
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    parser["pretrained"], parser["bundle_root"] = word, "somewhere"
    parser.parse()
    assert parser.get_parsed_content("network#path") == (
        "somewhere/models/model.pt" if meant else None
    )


def test_the_configs_share_one_network(bundle):
    first, *others = (
        json.loads((bundle / "configs" / f"{name}.json").read_text())["network_def"]
        for name in ("inference", "evaluate", "train")
    )
    assert all(other == first for other in others)


def test_the_configs_share_one_preprocessing(bundle):
    first, *others = (
        json.loads((bundle / "configs" / f"{name}.json").read_text())["preprocessing"]
        for name in ("inference", "evaluate", "train")
    )
    assert all(other == first for other in others)


def test_targets_point_into_the_package_into_monai_or_into_lightning(bundle):
    text = "".join(path.read_text() for path in (bundle / "configs").glob("*.json"))
    targets = {line.split('"')[3] for line in text.splitlines() if '"_target_"' in line}
    others = {target for target in targets if not target.startswith("fusion_pipeline.")}
    lightnings = {target for target in others if target.startswith("pytorch_lightning.")}
    assert others - lightnings == {"Compose", "DataLoader", "Orientationd"}
    assert all(locate(target) is not None for target in lightnings)


def test_the_keys_are_those_of_the_model_zoo(bundle):
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert {
        *("preprocessing", "dataset", "dataloader", "network_def", "inferer", "postprocessing"),
        *("handlers", "evaluator", "checkpointloader"),
    } <= config.keys()


class TestPreprocessing:
    """What a step of the config says has an effect on what comes out."""

    @pytest.fixture(scope="class")
    def case(self, tmp_path_factory):
        paths = write_case(tmp_path_factory.mktemp("patient"))
        return {key: str(path) for key, path in paths.items()}

    @pytest.fixture(autouse=True)
    def still_register(self, monkeypatch):
        monkeypatch.setattr("fusion_pipeline.pipeline.inferer.Register", ShiftRegister)

    def test_another_window_is_the_z_score_s_alone(self, case):
        """The harmonization has a curve of its own for HU."""
        window = {"preprocessing#transforms#6#window_hu": [-100.0, 200.0]}
        plain, other = FusionPipeline.from_bundle(), FusionPipeline.from_bundle(**window)
        first, second = (pipeline(case).harmonization for pipeline in (plain, other))
        assert first.scores["ct"]["information_kept"] != second.scores["ct"]["information_kept"]
        for key, image in first.images.items():
            assert torch.equal(image.array, second.images[key].array)

    def test_a_transform_of_the_user_takes_the_place_of_one(self, case):
        """All is body: then air counts in the z-score as well."""
        step = {"_target_": "CopyItemsd", "keys": "image_field_of_view", "names": "image_body"}
        pipeline = FusionPipeline.from_bundle(**{"preprocessing#transforms#5": step})
        loaded, before = pipeline.load(case), FusionPipeline.from_bundle().load(case)
        field = loaded.series["ct"].prepared.field_of_view
        assert torch.equal(loaded.series["ct"].prepared.body, field)
        assert before.series["ct"].prepared.body.sum() < field.sum()

    def test_denoising_leaves_the_image_as_given(self, case):
        pipeline = FusionPipeline.from_bundle(denoise="true")
        loaded = pipeline.load(case).series["mr"].prepared
        assert not torch.equal(loaded.image.array, loaded.working.array)
        assert loaded.working.array.std() < loaded.image.array.std()
        plain = FusionPipeline.from_bundle(denoise="false").load(case).series["mr"].prepared
        assert plain.working is plain.image
        assert torch.equal(plain.image.array, loaded.image.array)


class TestCheckpointLoader:
    def test_monais_own_can_take_its_place(self, tmp_path):
        step = {
            "_target_": "CheckpointLoader",
            "load_path": str(BUNDLE / "models" / "model.pt"),
            "load_dict": {"model": "@network_def"},
        }
        found = FusionPipeline.from_bundle(checkpointloader=step)
        state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
        for name, value in found.network.state_dict().items():
            assert torch.equal(value, state[name]), name

    def test_a_run_loads_the_weights_before_the_first_case(self, tmp_path):
        found = workflow(output_dir=str(tmp_path), cases=[])
        found.evaluator.state.epoch_length = 0
        found.evaluator.fire_event(Events.STARTED)
        state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
        for name, value in found.network_def.state_dict().items():
            assert torch.equal(value, state[name]), name


class TestOverrides:
    @pytest.mark.parametrize(
        ("name", "override"),
        [
            ("inference", "refine_step"),
            ("inference", "inferer#refine_step"),
            ("inference", "network_def#registration#spatial_dim"),
            ("train", "max_epochs"),
            ("train", "module#lambda"),
        ],
    )
    def test_a_misspelt_name_is_refused(self, name, override):
        with pytest.raises(RuntimeError) as caught:
            workflow(name, **{override: 3})
        assert f"unknown override: {override}" in str(caught.value.__cause__)

    @pytest.mark.parametrize(
        ("override", "hint"),
        [
            ("refine_step", "did you mean refine_steps?"),
            (
                "inferer#refine_step",
                "inferer has colour_map, device, fuse_steps, measure, only, refine_steps, same",
            ),
            ("inferer#refine_step", "did you mean inferer#refine_steps?"),
            (
                "preprocessing#transforms#2#axcode",
                "did you mean preprocessing#transforms#2#axcodes?",
            ),
        ],
    )
    def test_the_refusal_names_the_level_and_the_nearest_match(self, override, hint):
        with pytest.raises(InputError) as caught:
            FusionPipeline.from_bundle(**{override: 3})
        assert hint in str(caught.value)
        with pytest.raises(RuntimeError) as raised:
            workflow(**{override: 3})
        assert hint in str(raised.value.__cause__)

    @pytest.mark.parametrize(
        ("override", "hint"),
        [
            ("preprocessing#transforms#3#_diabled_", "transforms#3#_disabled_?"),
            ("_datalist", "unknown override: _datalist; the config has"),
            ("checkpointloader#load_dict#_mode_", "load_dict has model"),
            ("checkpointloader::load_pth", "did you mean checkpointloader#load_path?"),
        ],
    )
    def test_names_with_underscores_are_checked_as_well(self, override, hint):
        with pytest.raises(InputError) as caught:
            FusionPipeline.from_bundle(**{override: True})
        assert hint in str(caught.value)
        with pytest.raises(RuntimeError) as raised:
            workflow(**{override: True})
        assert hint in str(raised.value.__cause__)

    @pytest.mark.parametrize(
        "override",
        [
            {"preprocessing#transforms#2#_disabled_": True},
            {"inferer#_desc_": "mine", "inferer#_requires_": "@device"},
            {"dataloader#pin_memory": False, "dataloader#num_workers": 0},
            {"preprocessing#transforms#0#image_only": True},  # of MONAI's LoadImaged, above ours
        ],
    )
    def test_monais_words_and_inherited_arguments_are_taken(self, override, tmp_path):
        found = workflow(output_dir=str(tmp_path), **override)
        assert isinstance(found.evaluator, Evaluator)
        FusionPipeline.from_bundle(**override)

    def test_a_name_of_the_config_or_of_a_component_is_taken(self, tmp_path):
        found = workflow(
            refine_steps=0, output_dir=str(tmp_path), **{"network_def#harmonization#small_size": 30}
        )
        assert found.inferer.settings["refine_steps"] == 0
        assert found.network_def.harmonization.small_size == 30

    @pytest.mark.parametrize(
        ("word", "meant"), [("false", False), ("True", True), (False, False), (True, True)]
    )
    def test_a_switch_may_come_as_a_word(self, tmp_path, word, meant):
        found = workflow(same_person=word, resume=word, output_dir=str(tmp_path))
        assert found.inferer.settings["same_person"] is meant
        assert found.evaluator.resume is meant

    def test_a_second_config_may_bring_names_of_its_own(self, tmp_path):
        more = tmp_path / "more.json"
        more.write_text('{"note": "mine", "refine_steps": 0}')
        found = create_workflow(
            config_file=[str(CONFIGS / "inference.json"), str(more)],
            workflow_type="inference",
            logging_file=False,
            meta_file=str(CONFIGS / "metadata.json"),
            bundle_root=str(BUNDLE),
        )
        assert found.inferer.settings["refine_steps"] == 0

    @pytest.mark.parametrize("suffix", ["json", "yaml"])
    def test_another_transform_takes_a_place_by_a_nested_id(self, tmp_path, suffix):
        """As the Model Zoo's second config files do it."""
        step = {"_target_": "GaussianSmoothd", "keys": "image", "sigma": 2.0}
        more = tmp_path / f"more.{suffix}"
        more.write_text(json.dumps({"preprocessing#transforms#3": step}))  # YAML holds JSON
        found = create_workflow(
            config_file=[str(CONFIGS / "inference.json"), str(more)],
            workflow_type="inference",
            logging_file=False,
            meta_file=str(CONFIGS / "metadata.json"),
            bundle_root=str(BUNDLE),
        )
        assert isinstance(found.preprocessing.transforms[3], GaussianSmoothd)
        direct = workflow(**{"preprocessing#transforms#3": step})
        assert isinstance(direct.preprocessing.transforms[3], GaussianSmoothd)
        with pytest.raises(RuntimeError) as caught:
            workflow(**{"preprocessing#transforms#3": {**step, "sigmas": 1.0}})
        assert "did you mean preprocessing#transforms#3#sigma?" in str(caught.value.__cause__)

    def test_a_component_that_is_none_is_told(self):
        """Not as unknown arguments: those of no class are not known."""
        with pytest.raises(InputError, match=r"got: Cannot locate .*GaussianSmothd"):
            FusionPipeline.from_bundle(**{"preprocessing#transforms#2#_target_": "GaussianSmothd"})

    def test_values_that_a_component_does_not_take_are_told(self):
        with pytest.raises(InputError, match=r"inference\.json: expected values .* lower < upper"):
            FusionPipeline.from_bundle(**{"preprocessing#transforms#6#window_hu": [5, 1]})

    def test_a_config_may_come_as_a_path(self):
        create_workflow(
            config_file=CONFIGS / "inference.json",
            workflow_type="inference",
            logging_file=False,
            bundle_root=str(BUNDLE),
        )

    def test_a_workflow_made_by_its_class_is_checked_as_well(self):
        made = ConfigWorkflow(
            str(CONFIGS / "inference.json"), logging_file=False, output_dri="elsewhere"
        )
        with pytest.raises(RuntimeError) as caught:
            made.initialize()
        assert "unknown override: output_dri" in str(caught.value.__cause__)


class TestFromBundle:
    def test_the_packaged_one_needs_no_path(self):
        found, named = FusionPipeline.from_bundle(), FusionPipeline.from_bundle(BUNDLE)
        assert found.settings == named.settings
        for (name, a), b in zip(
            found.network.state_dict().items(), named.network.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name

    def test_the_defaults_of_the_bundle_can_be_replaced(self):
        found = FusionPipeline.from_bundle(
            BUNDLE, device="cpu", refine_steps=0, working_spacing=3.0, same_person=False
        )
        assert found.settings["refine_steps"] == 0
        assert found.settings["same_person"] is False
        assert found.settings["working_spacing"] == 3.0
        assert FusionPipeline.from_bundle(BUNDLE).settings["same_person"] is True

    def test_a_bundle_that_does_not_know_an_option_is_not_run_without_it(self, tmp_path):
        copy = tmp_path / "mine"
        shutil.copytree(BUNDLE, copy)
        path = copy / "configs" / "inference.json"
        config = json.loads(path.read_text())
        del config["same_person"], config["inferer"]["same_person"]
        path.write_text(json.dumps(config))
        assert FusionPipeline.from_bundle(copy).settings["same_person"] is True
        with pytest.raises(InputError, match="unknown override: same_person; the config has"):
            FusionPipeline.from_bundle(copy, same_person=False)

    def test_a_folder_that_is_no_bundle(self, tmp_path):
        with pytest.raises(InputError, match=r"expected a bundle with configs/inference\.json"):
            FusionPipeline.from_bundle(tmp_path)

    def test_weights_of_another_network(self, copied):
        torch.save(small_network().state_dict(), copied / "models" / "model.pt")
        with pytest.raises(InputError, match=r"model\.pt: expected the weights of MultimodalNet"):
            FusionPipeline.from_bundle(copied)

    def test_no_weights(self, copied):
        (copied / "models" / "model.pt").unlink()
        with pytest.raises(InputError, match="got no such file"):
            FusionPipeline.from_bundle(copied)

    def test_a_config_that_breaks_for_another_reason(self, copied):
        config = copied / "configs" / "inference.json"
        config.write_text(config.read_text().replace("FusionNet", "FusionNot"))
        with pytest.raises(Exception, match="FusionNot"):
            FusionPipeline.from_bundle(copied)

    def test_a_config_whose_inferer_is_something_else(self, copied):
        config = copied / "configs" / "inference.json"
        content = json.loads(config.read_text()) | {"inferer": "@network_def"}
        config.write_text(json.dumps(content))
        with pytest.raises(TypeError, match="'inferer' should be a FusionInferer"):
            FusionPipeline.from_bundle(copied)

    @pytest.mark.parametrize(
        ("spatial_dims", "message"),
        [
            (2, "2D input: expected the bundle multimodal_fusion_2d, got an installation without"),
            (3, "3D input: expected the bundle multimodal_fusion, got an installation without it"),
        ],
    )
    def test_no_bundle_for_the_input(self, monkeypatch, tmp_path, spatial_dims, message):
        monkeypatch.setattr(fusion_pipeline, "__path__", [str(tmp_path)])
        with pytest.raises(InputError, match=message):
            bundle_for(spatial_dims)


@pytest.fixture
def checkpoint(tmp_path):
    """A small network's Lightning checkpoint after three steps, and its weights at that moment."""

    def write(*callbacks):
        network = small_network(2, seed=5)
        module = MultimodalTraining(network, EndToEnd(), learning_rate=0.1)
        module.training_step = lambda *_: sum(p.square().sum() for p in network.parameters())
        path, plain = tmp_path / "last.ckpt", {}

        def save(trainer, *_):
            plain.update({name: value.clone() for name, value in network.state_dict().items()})
            trainer.save_checkpoint(path)

        trainer = pl.Trainer(
            max_steps=3,
            accelerator="cpu",
            logger=False,
            callbacks=[*callbacks, LambdaCallback(on_train_batch_end=save)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(torch.zeros(3, 1)))
        return path, plain

    return write


def same(first, second):
    return all(torch.equal(first[name], value) for name, value in second.items())


class TestLightningCheckpoint:
    def test_the_network_in_it_is_loaded(self, checkpoint):
        path, plain = checkpoint()
        assert same(load_weights(small_network(2), path).state_dict(), plain)

    def test_averaged_weights_come_before_those_of_the_last_step(self, checkpoint):
        path, plain = checkpoint(EMAWeightAveraging(decay=0.5))
        loaded = load_weights(small_network(2), path).state_dict()
        assert not same(loaded, plain)
        content = torch.load(path, weights_only=True)
        assert same({f"network.{k}": v for k, v in loaded.items()}, content["state_dict"])
        current = content["current_model_state"]
        assert same({k.removeprefix("network."): v for k, v in current.items()}, plain)

    def test_an_average_that_has_not_begun_is_not_taken(self, checkpoint):
        path, plain = checkpoint(EMAWeightAveraging(update_starting_at_step=100))
        assert same(load_weights(small_network(2), path).state_dict(), plain)

    def test_another_networks_is_refused_in_a_line(self, checkpoint):
        path, _ = checkpoint()
        with pytest.raises(InputError, match=r"last\.ckpt: expected the weights of Mult") as caught:
            FusionPipeline.from_bundle(BUNDLE_2D, weights=path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"state_dict": {"unet.a": torch.zeros(1)}}, "expected the weights of Multimod"),
            ({}, "expected the weights of MultimodalNet, got others"),
            ({"state_dict": {}, "hyper_parameters": small_network(2)}, "no state dict"),
        ],
        ids=["another module's", "without weights", "with objects"],
    )
    def test_what_else_ends_in_ckpt_is_refused(self, tmp_path, entries, message):
        torch.save({"pytorch-lightning_version": "2.6.6", **entries}, tmp_path / "x.ckpt")
        with pytest.raises(InputError, match=message):
            load_weights(small_network(2), tmp_path / "x.ckpt")

    @pytest.mark.slow
    def test_lightning_is_not_needed(self, checkpoint):
        path, _ = checkpoint()
        code = (
            "import sys\nfrom pipeline_cases import small_network\n"
            "from fusion_pipeline.pipeline import load_weights\n"
            f"load_weights(small_network(2), {str(path)!r})\n"
            "print('pytorch_lightning' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "False\n", done.stderr


@pytest.fixture
def other_weights(tmp_path):
    """Weights that fit the 2D bundle, and their file."""
    state = torch.load(BUNDLE_2D / "models" / "model.pt", weights_only=True)
    other = {name: value + 1 for name, value in state.items()}
    torch.save(other, tmp_path / "other.pt")
    return other, tmp_path / "other.pt"


class TestOtherWeights:
    def test_in_python(self, other_weights):
        state, path = other_weights
        found = FusionPipeline.from_bundle(BUNDLE_2D, weights=path)
        assert same(found.network.state_dict(), state)

    @pytest.mark.parametrize("name", ["inference", "evaluate"])
    def test_in_a_run(self, other_weights, name, tmp_path):
        state, path = other_weights
        made = workflow(name, BUNDLE_2D, ckpt_path=str(path), output_dir=str(tmp_path))
        load_checkpoint(made.parser.get_parsed_content("checkpointloader"))
        assert same(made.network_def.state_dict(), state)

    def test_as_the_start_of_a_training(self, other_weights, tmp_path):
        state, path = other_weights
        made = workflow("train", BUNDLE_2D, ckpt_path=str(path), output_dir=str(tmp_path))
        assert same(made.parser.get_parsed_content("network").state_dict(), state)


class TestLoadWeights:
    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="expected the weights of MultimodalNet, got others"):
            load_weights(small_network(2), tmp_path)

    @pytest.mark.parametrize("spoil", ["prefix", "missing", "garbage", "list"])
    def test_what_does_not_match_key_by_key_is_refused(self, spoil, tmp_path):
        network, path = small_network(2), tmp_path / "model.pt"
        state = network.state_dict()
        if spoil == "prefix":
            torch.save({f"network.{name}": value for name, value in state.items()}, path)
        elif spoil == "missing":
            torch.save(dict(list(state.items())[1:]), path)
        elif spoil == "list":
            torch.save([1, 2], path)
        else:
            path.write_bytes(b"not weights")
        with pytest.raises(InputError, match="expected the weights of MultimodalNet"):
            load_weights(network, path)

    def test_none_leaves_the_network_as_it_is(self):
        network = small_network(2)
        assert load_weights(network, None) is network


def ran(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def call(*arguments, folder):
    done = ran(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def leaves(tree, path=""):
    """Path → value of all that a report holds, so that a difference is named."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for key, part in tree.items() for k, v in leaves(part, f"{path}/{key}").items()}


@pytest.mark.slow
def test_bundle_command_and_python_leave_the_same_bytes(tmp_path):
    paths = write_case(tmp_path / "data", ("ct", "mr", "pet"))
    entry = {"id": "p1", **{key: str(path) for key, path in paths.items()}}
    datalist = tmp_path / "cases.json"
    datalist.write_text(json.dumps({"testing": [entry]}))
    config = str(CONFIGS / "inference.json")
    common = ["--datalist", str(datalist), "--output_dir", "bundle", "--refine_steps", "0"]
    call(
        *("monai.bundle", "run", "--bundle_root", str(BUNDLE), "--config_file", config, *common),
        folder=tmp_path,
    )
    common = ["--datalist", str(datalist), "--output", "command", "--refine-steps", "0"]
    call("fusion_pipeline.cli", "run", *common, folder=tmp_path)
    FusionPipeline.from_bundle(BUNDLE, refine_steps=0).run(entry, tmp_path / "python")
    names = sorted(path.name for path in (tmp_path / "python" / "p1").iterdir())
    assert len(names) == 19  # of three images and the whole
    for name in names:
        made = [(tmp_path / way / "p1" / name) for way in ("bundle", "command", "python")]
        if name == "report.json":
            reports = [json.loads(path.read_text()) for path in made]
            for report in reports:
                del report["timings"], report["peak_memory_mb"]
            first, *others = map(leaves, reports)
            for other in others:
                assert {k: v for k, v in first.items() if other.get(k) != v} == {}
                assert first.keys() == other.keys()
        elif name != "report.html":  # shows the timings
            first, *others = (path.read_bytes() for path in made)
            assert all(other == first for other in others), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("train", ["--pretrained", "no"], "expected pretrained true or false, got 'no'"),
        ("inference", ["--datalist", "broken.json"], "broken.json: expected valid JSON"),
        ("inference", ["--datalst", "cases.json"], "unknown override: datalst"),
        (
            "inference",
            ["--checkpointloader#load_path", "broken.json"],
            "broken.json: expected the weights of MultimodalNet",
        ),
        (
            "inference",
            ["--refine_steps", "-1"],
            "expected refine_steps a whole number of 0 or more, got -1",
        ),
        ("inference", ["--same_person", "no"], "expected same_person true or false, got 'no'"),
        ("inference", ["--resume", "no"], "expected resume true or false, got 'no'"),
        # what MONAI's and torch's components refuse
        (
            "inference",
            ["--dataloader#num_workers", "-1"],
            "got: DataLoader: num_workers option should be",
        ),
        (
            "inference",
            ["--dataset#data", "@nothing"],
            "got: the referring item `@nothing` is not defined",
        ),
    ],
)
def test_a_refusal_ends_the_bundle_command_in_one_line(tmp_path, name, arguments, line):
    (tmp_path / "broken.json").write_text("{")
    config = ["--bundle_root", str(BUNDLE), "--config_file", str(CONFIGS / f"{name}.json")]
    done = ran("monai.bundle", "run", *config, *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_evaluation_config_runs_on_a_case_with_truth(bundle, tmp_path):
    dims = 2 if bundle == BUNDLE_2D else 3
    datalist = synthetic_patient(3, spatial_dims=dims).save(tmp_path / "data")
    out, folder = tmp_path / "out", str(datalist.parent)
    found = workflow(
        "evaluate", bundle, output_dir=str(out), datalist=datalist.name, dataset_dir=folder
    )
    found.run()
    found.finalize()
    written = json.loads((out / "summary.json").read_text())
    assert (written["cases"], written["failed"]) == (1, 0)
    rows = {(row["name"], row["group"], row["method"]): row for row in written["summary"]}
    for group in ("ct-mr", "ct-pet"):
        assert rows["tre_mm", group, "start"]["mean"] > 0
        assert rows["tre_mm", group, "ours"]["cases"] == 1
        # what a plain run leaves out
        assert rows["protocol_residual", group, "ours"]["cases"] == 1
    assert (out / "study.html").is_file()


@pytest.mark.slow
def test_the_training_config_makes_a_step(bundle, tmp_path):
    config = str(bundle / "configs" / "train.json")
    shape = "[33,33]" if bundle == BUNDLE_2D else "[33,33,33]"
    small = ["--data#shape", shape, "--data#samples_per_epoch", "1"]
    short = ["--data#validation_samples", "1", "--train#trainer#max_epochs", "1"]
    start = ["--train#trainer#accumulate_grad_batches", "1", "--output_dir", "run"]
    call(
        *("monai.bundle", "run", "--bundle_root", str(bundle), "--config_file", config),
        *(*small, *short, *start),
        folder=tmp_path,
    )
    state = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    before = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert list(state) == list(before)
    assert any(not torch.equal(state[name], before[name]) for name in state)
