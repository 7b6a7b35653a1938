"""A trained bundle: a complete folder with its weights, configs, metadata and model card."""

import hashlib
import io
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

import fusion_pipeline
from fusion_pipeline.data import InputError, check_output_folder, one_line_refusals
from fusion_pipeline.data.refusals import one_line, refusal
from fusion_pipeline.pipeline.bundle import from_config, load_weights, running_workflow
from fusion_pipeline.pipeline.folder import deliver_whole

logger = logging.getLogger(__name__)
_COPIED = ("configs", "docs", "scripts", "LICENSE")  # models/ belong to the earlier weights
_CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
_SHARED = ("network_def", "preprocessing")
_METADATA = "metadata.json"
_CARD, _CARD_OF_SOURCE = "README.md", "README_of_source.md"
_VERSIONS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


@dataclass(frozen=True)
class TrainingFacts:
    """What the model card says of a training.

    Attributes:
        phase: registration, harmonization, fusion or all.
        steps: optimizer steps in all, those before a stop included.
        seeds: by what each of them starts.
        data: what was trained on, such as ``{"training cases": 12}``.
        scores: of these weights in validation, with their units; they go to the metadata as well.
        settings: whatever else decides the result, by name.
        command: what was typed; empty: the command of this process.
    """

    phase: str
    steps: int
    seeds: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class BundleInUse:
    """The bundle whose configs this training was made from.

    Attributes:
        root: its folder.
        config: the ids that inference has to share with the training, as the training uses them:
            the network, the preprocessing, and the switches that they read.
    """

    root: Path
    config: Mapping[str, Any]


def bundle_in_use() -> BundleInUse | None:
    """The bundle that a workflow of MONAI's runs at this moment; None: Python built the training.

    Call it before the first step: what cannot be written should be refused before hours of work.

    Raises:
        InputError: an override is an object, which no config file can hold.
    """
    workflow, _ = running_workflow()
    if workflow is None:
        return None
    root = Path(str(workflow.parser.get_parsed_content("bundle_root")))
    if not _is_bundle(root):
        root = workflow.config_root_path.parent
    if not _is_bundle(root):
        return None
    config = workflow.parser.get()
    shared = {key: deepcopy(config[key]) for key in _shared_ids(config)}
    try:
        json.dumps(shared)
    except TypeError as error:
        raise refusal(
            "training", f"values that JSON takes for {', '.join(shared)}", str(error),
            "describe the component by its _target_",
        ) from error  # fmt: skip
    return BundleInUse(root, shared)


def check_bundle_folder(folder: Path | str) -> Path:
    """Refuse a folder that `write_bundle` cannot write or must not replace.

    Raises:
        InputError: it cannot be written, or holds something that is no bundle.
    """
    path = check_output_folder(folder)
    if path.exists() and any(path.iterdir()) and not _is_bundle(path):
        raise refusal(
            f"bundle {path}", "an earlier bundle or nothing", "a folder with other files",
            "choose another folder",
        )  # fmt: skip
    return path


@one_line_refusals()
def write_bundle(
    folder: Path | str,
    source: Path | str,
    weights: Mapping[str, Tensor],
    *,
    config: Mapping[str, object] | None = None,
    facts: TrainingFacts,
) -> Path:
    """Write a complete bundle with these weights: whole or not at all.

    It takes the place of an earlier bundle in ``folder``, which may be ``source`` itself.

    Args:
        folder: becomes ``configs/``, ``docs/README.md``, ``models/model.pt``, ``LICENSE``.
        source: the bundle that was trained; its configs, license and documents are taken over.
        weights: state dict of the network.
        config: top-level ids that all configs which have them take, such as a changed
            ``network_def`` (`bundle_in_use` gives them).
        facts: for the model card and the metadata.

    Returns:
        The folder.

    Raises:
        InputError: ``source`` is no bundle, ``folder`` holds something else, or the weights do not
            fit the network that the configs describe.
    """
    source, folder = Path(source), check_bundle_folder(folder)
    if not _is_bundle(source):
        raise InputError(
            f"{source}: expected a bundle with configs/inference.json and configs/{_METADATA}, got "
            "a folder without them; name the bundle that was trained"
        )
    with deliver_whole(folder) as aside:
        _copy(source, aside)
        for path in sorted((aside / "configs").iterdir()):
            if path.suffix in _CONFIG_SUFFIXES and path.name != _METADATA:
                _change(path, config or {})
        digest = _write_state_dict(weights, aside / "models" / "model.pt")
        _check_weights(aside, folder)
        metadata = _write_metadata(aside / "configs" / _METADATA, facts)
        _write_card(aside / "docs", metadata, facts, digest)
    logger.info("bundle: %s\nnext: fusion-pipeline run --bundle %s %s", folder, folder, _NEXT)
    return folder


_NEXT = "--ct CT --mr MR --output results"


def _is_bundle(folder: Path) -> bool:
    """The folder has what an inference starts from, and the version to count from."""
    return all((folder / "configs" / name).is_file() for name in ("inference.json", _METADATA))


def _shared_ids(config: Mapping[str, Any]) -> list[str]:
    """Network, preprocessing, and the top-level ids that they refer to."""
    from monai.bundle import ReferenceResolver

    ids: list[str] = []
    waiting = [key for key in _SHARED if key in config]
    while waiting:
        key = waiting.pop(0)
        if key in ids:
            continue
        ids.append(key)
        references = ReferenceResolver.find_refs_in_config(config[key], id=key)
        waiting += [r for r in (i.partition("#")[0].partition("::")[0] for i in references) if r]
    return [key for key in ids if key in config and key != "bundle_root"]


def _copy(source: Path, target: Path) -> None:
    """What a bundle keeps when its weights change."""
    for name in _COPIED:
        if (source / name).is_dir():
            shutil.copytree(
                source / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (source / name).is_file():
            shutil.copy(source / name, target / name)


def _change(path: Path, values: Mapping[str, object]) -> None:
    """Give a config those of the values whose ids it has; without a change the file stays."""
    from monai.bundle import ConfigParser

    content = ConfigParser.load_config_file(path)
    changed = {key: value for key, value in values.items() if content.get(key, value) != value}
    if not changed:
        return
    kind = "json" if path.suffix == ".json" else "yaml"
    ConfigParser.export_config_file({**content, **changed}, str(path), fmt=kind, indent=4)


def _write_state_dict(weights: Mapping[str, Tensor], path: Path) -> str:
    """Save a plain state dict on the CPU.

    Returns:
        SHA-256 of the file: the same for the same weights, whatever its name and device.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    buffer = io.BytesIO()  # a file's name would go into the archive and change its bytes
    torch.save(state, buffer)
    path.parent.mkdir(parents=True)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _check_weights(written: Path, folder: Path) -> None:
    """Refuse weights that do not fit the network of the configs they stand beside."""
    try:
        network = from_config(written, {}, "network_def")["network_def"]
        load_weights(network, written / "models" / "model.pt")
    except InputError as error:
        raise refusal(
            f"bundle {folder}",
            "weights that fit the network_def of its configs",
            one_line(error.__cause__ or error, 300),
            "give the network_def that was trained as config",
        ) from error


def _write_metadata(path: Path, facts: TrainingFacts) -> dict[str, Any]:
    """The next version, what it was made from, and the versions of the packages.

    Returns:
        The content of the file.
    """
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    earlier = str(metadata["version"])
    metadata["version"] = _next_version(earlier, metadata["changelog"])
    metadata["changelog"] = {
        **metadata["changelog"],
        metadata["version"]: f"trained from {earlier}: phase {facts.phase}, {facts.steps} steps",
    }
    for key, package in _VERSIONS.items():
        metadata[key] = _version(package, metadata[key])
    required = metadata["required_packages_version"]
    metadata["required_packages_version"] = {k: _version(k, v) for k, v in required.items()}
    metadata["eval_metrics"] = {k: float(v) for k, v in facts.scores.items() if isfinite(v)}
    path.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return metadata


def _next_version(earlier: str, taken: Iterable[str]) -> str:
    """The minor number goes up: the same interface, other weights.

    >>> _next_version("0.1.0", ["0.1.0"])
    '0.2.0'
    """
    major, minor = (int(part) for part in (*earlier.split("."), "0")[:2])
    while f"{major}.{minor}.0" in {earlier, *taken}:
        minor += 1
    return f"{major}.{minor}.0"


def _version(package: str, otherwise: str = "") -> str:
    """The installed version without its build, such as ``+cpu``."""
    if package == "fusion_pipeline":
        return fusion_pipeline.__version__
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return otherwise


def _write_card(docs: Path, metadata: Mapping[str, Any], facts: TrainingFacts, digest: str) -> None:
    """The card of these weights, beside the source's, whose figures are of other weights."""
    docs.mkdir(exist_ok=True)
    of_source = docs / _CARD_OF_SOURCE
    if (docs / _CARD).is_file() and not of_source.is_file():
        (docs / _CARD).rename(of_source)
    packages = ("fusion_pipeline", "torch", "monai", "pytorch-lightning", "numpy")
    environment = Environment(
        loader=PackageLoader("fusion_pipeline.pipeline", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
    text = environment.get_template("model_card.md.j2").render(
        metadata=metadata,
        facts=facts,
        command=facts.command or _command(),
        digest=digest,
        day=datetime.now(UTC).date().isoformat(),
        versions={"python": python_version(), **{name: _version(name) for name in packages}},
        of_source=_CARD_OF_SOURCE if of_source.is_file() else "",
    )
    (docs / _CARD).write_text(text, encoding="utf-8")


def _command() -> str:
    """What was typed to start this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    module = spec.name.removesuffix(".__main__")
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


__all__ = [
    "BundleInUse",
    "TrainingFacts",
    "bundle_in_use",
    "check_bundle_folder",
    "write_bundle",
]
