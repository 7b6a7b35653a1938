"""A trained bundle on disk: complete, taken by MONAI and by us, whole or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow, verify_metadata, verify_net_in_out
from pipeline_cases import small_network

from fusion_pipeline.data import InputError
from fusion_pipeline.pipeline import (
    FusionPipeline,
    TrainingFacts,
    bundle_folder,
    bundle_for,
    bundle_in_use,
    check_bundle_folder,
    write_bundle,
)

SOURCE = bundle_for(2)
FACTS = TrainingFacts(
    phase="fusion",
    steps=20,
    seeds={"samples": 7},
    data={"training cases": 12},
    scores={"tre_mm_after": 1.2500001, "dice_after": float("nan")},
    settings={"precision": "bf16-mixed"},
    command="fusion-pipeline train --phase fusion",
)
# MONAI warns about every config that it evaluates
pytestmark = pytest.mark.filterwarnings("ignore")


def small_definition():
    """The ``network_def`` of `small_network`."""
    config = json.loads((SOURCE / "configs" / "inference.json").read_text())["network_def"]
    config["registration"] |= {"channels": [4, 4, 4, 4], "learned_features": 2}
    del config["registration"]["radius"]
    config["harmonization"] |= {"channels": 4}
    config["fusion"] |= {"channels": [2, 4, 8]}
    return config


@pytest.fixture
def state():
    return small_network(2, seed=3).state_dict()


@pytest.fixture
def written(tmp_path, state):
    definition = {"network_def": small_definition()}
    return write_bundle(tmp_path / "run" / "bundle", SOURCE, state, config=definition, facts=FACTS)


def config_of(folder, name):
    return json.loads((folder / "configs" / f"{name}.json").read_text())


def card_of(folder):
    return (folder / "docs" / "README.md").read_text("utf-8")


def test_the_folder_is_complete_and_alone(written):
    wanted = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.*")} | {Path("LICENSE")}
    assert {path.relative_to(written) for path in written.rglob("*") if path.is_file()} == {
        *wanted,
        Path("docs", "README_of_source.md"),
    }
    assert list(written.parent.iterdir()) == [written]


def test_python_runs_the_network_that_was_trained(written, state):
    for name, value in FusionPipeline.from_bundle(written).network.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("name", ["inference", "evaluate", "train"])
def test_every_config_describes_the_network_that_was_trained(written, name):
    assert config_of(written, name)["network_def"] == small_definition()
    before = config_of(SOURCE, name)
    assert config_of(written, name) | {"network_def": before["network_def"]} == before


def test_without_a_change_the_configs_stay_as_they_are(tmp_path):
    weights = torch.load(SOURCE / "models" / "model.pt", weights_only=True)
    folder = write_bundle(tmp_path / "bundle", SOURCE, weights, facts=FACTS)
    for name in ("inference", "evaluate", "train"):
        path = Path("configs") / f"{name}.json"
        assert (folder / path).read_bytes() == (SOURCE / path).read_bytes()


def test_yaml_configs_take_the_change_as_well(tmp_path, state):
    source = shutil.copytree(SOURCE, tmp_path / "source")
    (source / "configs" / "mine.yaml").write_text("network_def: none\nnote: mine\n")
    definition = {"network_def": small_definition()}
    folder = write_bundle(tmp_path / "b", source, state, config=definition, facts=FACTS)
    workflow = ConfigWorkflow(str(folder / "configs" / "mine.yaml"), logging_file=False)
    assert workflow.parser.get("network_def") == small_definition()
    assert workflow.parser.get("note") == "mine"


def test_monai_takes_the_folder(written):
    schema = SOURCE.parent / "metadata_schema.json"
    metadata = str(written / "configs" / "metadata.json")
    verify_metadata(meta_file=metadata, filepath=str(schema))
    config = str(written / "configs" / "inference.json")
    verify_net_in_out(
        net_id="network_def", meta_file=metadata, config_file=config, device="cpu", n=2
    )


def test_training_goes_on_from_the_folder(written, state, tmp_path):
    workflow = create_workflow(
        config_file=str(written / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(written),
        output_dir=str(tmp_path / "again"),
    )
    network = workflow.parser.get_parsed_content("network")
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_metadata_say_which_version_and_which_packages(written):
    metadata, before = config_of(written, "metadata"), config_of(SOURCE, "metadata")
    assert (before["version"], metadata["version"]) == ("0.1.0", "0.2.0")
    assert metadata["changelog"]["0.2.0"] == "trained from 0.1.0: phase fusion, 20 steps"
    assert metadata["changelog"]["0.1.0"] == before["changelog"]["0.1.0"]
    assert metadata["pytorch_version"] == torch.__version__.partition("+")[0]
    assert (
        metadata["required_packages_version"].keys() == before["required_packages_version"].keys()
    )
    assert metadata["eval_metrics"] == {"tre_mm_after": 1.2500001}  # JSON has no number for nan
    assert metadata["network_data_format"] == before["network_data_format"]


def test_the_card_is_of_this_training(written):
    card = card_of(written)
    digest = hashlib.sha256((written / "models" / "model.pt").read_bytes()).hexdigest()
    for row in (
        "| phase | fusion |",
        "| steps | 20 |",
        f"`{digest}`",
        "| samples | 7 |",
        "| training cases | 12 |",
        "| tre_mm_after | 1.25 |",
        "| precision | bf16-mixed |",
        f"| torch | {torch.__version__.partition('+')[0]} |",
    ):
        assert row in card
    assert "\nfusion-pipeline train --phase fusion\n" in card
    assert "Atlas" not in card  # the figures of the source's card are of other weights
    of_source = written / "docs" / "README_of_source.md"
    assert of_source.read_bytes() == (SOURCE / "docs" / "README.md").read_bytes()
    assert "\n\n\n" not in card


def test_a_card_without_facts_says_so_and_names_the_command(tmp_path, state, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/tool.py", "--rate", "a b"])
    definition, bare = {"network_def": small_definition()}, TrainingFacts(phase="all", steps=1)
    card = card_of(write_bundle(tmp_path / "b", SOURCE, state, config=definition, facts=bare))
    assert "--rate 'a b'" in card
    assert "None: the training did not validate." in card
    assert "The training named none." in card
    assert "Seeds" not in card


def test_the_same_weights_have_the_same_digest(tmp_path, written, state):
    definition = {"network_def": small_definition()}
    other = write_bundle(tmp_path / "x", SOURCE, state, config=definition, facts=FACTS)
    weights = (folder / "models" / "model.pt" for folder in (written, other))
    assert len({path.read_bytes() for path in weights}) == 1


def test_a_second_training_counts_on_and_may_replace_its_own_start(written, state):
    other = {
        name: value + 1 if value.is_floating_point() else value for name, value in state.items()
    }
    write_bundle(written, written, other, facts=FACTS)
    metadata = config_of(written, "metadata")
    assert metadata["version"] == "0.3.0"
    assert list(metadata["changelog"]) == ["0.1.0", "0.2.0", "0.3.0"]
    now = torch.load(written / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(now[name], other[name]) for name in other)
    of_source = (written / "docs" / "README_of_source.md").read_bytes()
    assert of_source == (SOURCE / "docs" / "README.md").read_bytes()
    assert list(written.parent.iterdir()) == [written]


def test_only_what_belongs_to_a_bundle_is_taken_over(tmp_path, state):
    source = shutil.copytree(SOURCE, tmp_path / "source")
    for name in ("runs/last.ckpt", "large_files.yml", "models/model.ts", "scripts/mine.py"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    definition = {"network_def": small_definition()}
    folder = write_bundle(source / "out", source, state, config=definition, facts=FACTS)
    assert {path.name for path in folder.iterdir()} == {
        *("configs", "docs", "models", "scripts", "LICENSE"),
    }
    assert [path.name for path in (folder / "models").iterdir()] == ["model.pt"]


class TestRefusals:
    def test_weights_of_another_network_leave_the_earlier_bundle(self, written, state):
        before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match="expected weights that fit the network_def of its co"):
            write_bundle(written, SOURCE, state, facts=FACTS)
        assert {p: p.read_bytes() for p in written.rglob("*") if p.is_file()} == before
        assert list(written.parent.iterdir()) == [written]

    def test_a_failure_leaves_nothing(self, tmp_path, state, monkeypatch):
        def fail(*_):
            raise OSError("no space")

        monkeypatch.setattr(bundle_folder, "_write_card", fail)
        with pytest.raises(OSError, match="no space"):
            write_bundle(
                tmp_path / "run" / "b", SOURCE, state,
                config={"network_def": small_definition()}, facts=FACTS,
            )  # fmt: skip
        assert not (tmp_path / "run").exists()

    def test_a_source_that_is_no_bundle(self, tmp_path, state):
        with pytest.raises(InputError, match=r"expected a bundle with configs/inference\.json and"):
            write_bundle(tmp_path / "b", tmp_path, state, facts=FACTS)

    def test_a_folder_of_somebody_else_is_not_replaced(self, tmp_path, state):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match="got a folder with other files; choose another"):
            write_bundle(tmp_path, SOURCE, state, facts=FACTS)
        with pytest.raises(InputError, match="got a folder with other files; choose another"):
            check_bundle_folder(tmp_path)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "bundle").write_text("")
        with pytest.raises(InputError, match="expected a folder, got the file"):
            check_bundle_folder(tmp_path / "bundle")


class TestBundleInUse:
    @pytest.fixture
    def asked(self, monkeypatch):
        """What `bundle_in_use` gives to a component that asks while a workflow runs."""
        answers = []
        monkeypatch.setattr(
            "fusion_pipeline.training.fit", lambda **_: answers.append(bundle_in_use())
        )

        def run(bundle=SOURCE, **overrides):
            workflow = create_workflow(
                config_file=str(bundle / "configs" / "train.json"),
                workflow_type="train",
                logging_file=False,
                **{"bundle_root": str(bundle), **overrides},
            )
            workflow.run()
            return answers[-1]

        return run

    def test_no_workflow_no_bundle(self):
        assert bundle_in_use() is None

    def test_the_network_and_the_preprocessing_as_they_are_used(self, asked, tmp_path):
        found = asked(
            output_dir=str(tmp_path),
            denoise="true",
            pretrained=False,
            **{
                "network_def#harmonization#small_size": 30,
                "preprocessing#transforms#6#window_hu": [-10, 90],
            },
        )
        assert found.root == SOURCE
        assert set(found.config) == {"network_def", "preprocessing", "denoise"}
        assert found.config["network_def"]["harmonization"]["small_size"] == 30
        assert found.config["preprocessing"]["transforms"][6]["window_hu"] == [-10, 90]
        assert found.config["denoise"] == "true"

    def test_what_is_found_makes_the_next_bundle(self, asked, tmp_path, state):
        small = small_definition()
        found = asked(output_dir=str(tmp_path / "run"), pretrained=False, network_def=small)
        folder = write_bundle(tmp_path / "b", found.root, state, config=found.config, facts=FACTS)
        for name in ("inference", "evaluate", "train"):
            assert config_of(folder, name)["network_def"] == small

    def test_the_folder_of_the_config_where_the_root_is_another(self, asked, tmp_path):
        weights = str(SOURCE / "models" / "model.pt")
        found = asked(output_dir=str(tmp_path), bundle_root=str(tmp_path), ckpt_path=weights)
        assert found.root == SOURCE

    def test_a_config_outside_of_any_bundle(self, asked, tmp_path):
        bundle = tmp_path / "mine"
        (bundle / "configs").mkdir(parents=True)
        shutil.copy(SOURCE / "configs" / "train.json", bundle / "configs")
        assert asked(bundle, output_dir=str(tmp_path / "o"), pretrained=False) is None

    def test_an_object_that_no_config_can_hold(self, asked, tmp_path):
        with pytest.raises(RuntimeError) as caught:
            asked(output_dir=str(tmp_path), pretrained=False, network_def=small_network(2))
        assert "expected values that JSON takes for network_def" in str(caught.value.__cause__)
