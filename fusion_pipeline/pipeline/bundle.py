"""Bundles: find one, build what its config says, load its weights, refuse a misspelt override."""

import inspect
import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import fusion_pipeline
from fusion_pipeline.data import InputError, monai_is_the_program, one_line_refusals

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

logger = logging.getLogger(__name__)
_NAMES = {3: "multimodal_fusion", 2: "multimodal_fusion_2d"}
_TARGET = "_target_"


@one_line_refusals()
def switch(name: str, value: bool | str) -> bool:
    """A switch of a config: a bool, or the word that MONAI's command line leaves of one.

    >>> switch("resume", "false")
    False

    Raises:
        InputError: anything else, which Python would take for true.
    """
    words = {"true": True, "false": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise InputError(f"expected {name} true or false, got {value!r}")
    return found


def bundle_for(spatial_dims: int) -> Path:
    """The bundle for 2D or 3D input that comes with the package.

    Raises:
        InputError: this installation has none.
    """
    name = _NAMES[spatial_dims]
    # several folders where a checkout has no symbolic links, see `fusion_pipeline.__path__`
    for folder in fusion_pipeline.__path__:
        path = Path(folder) / "bundles" / name
        if (path / "configs" / "inference.json").is_file():
            return path
    raise InputError(
        f"{spatial_dims}D input: expected the bundle {name}, got an installation without it; "
        "install the package again, or name a bundle with --bundle"
    )


def from_config(path: Path | str | None, overrides: Mapping[str, object]) -> object:
    """What ``inferer`` in a bundle's ``configs/inference.json`` builds.

    Args:
        path: folder of the bundle; None: the packaged 3D one.
        overrides: values for ids of the config.

    Raises:
        InputError: the folder is no bundle.
    """
    from monai.bundle import ConfigParser  # late: two seconds, and needless to print the help

    root = bundle_for(3) if path is None else Path(path)
    config = root / "configs" / "inference.json"
    if not config.is_file():
        raise InputError(
            f"{root}: expected a bundle with configs/inference.json, got a folder without it; "
            "name the bundle's folder"
        )
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.update({"bundle_root": str(root), **overrides})
    try:
        return parser.get_parsed_content("inferer")
    except RuntimeError as error:  # MONAI wraps what a component raises
        raise _refusal_within(error) or error from error


def _refusal_within(error: BaseException | None) -> InputError | None:
    """The refusal that caused an error."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


@one_line_refusals()
def load_weights(network: nn.Module, path: Path | str | None) -> nn.Module:
    """Load a state dict into a network, every key matched.

    Args:
        network: what the weights belong to.
        path: file that ``torch.save(network.state_dict(), path)`` made; None: leave it as it is.

    Returns:
        The same network.

    Raises:
        InputError: the file is missing, is no state dict, or does not match key by key and shape by
            shape: a network that is random in part must not run on a patient.
    """
    if path is None:
        return network
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected the bundle's weights, got no such file") from error
    except (RuntimeError, pickle.UnpicklingError, TypeError, AttributeError, EOFError) as error:
        summary = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: expected the weights of {type(network).__name__}, got others: {summary}; "
            "use the model.pt that was made with this bundle"
        ) from error
    return network


@one_line_refusals()
def refuse_unknown_overrides(config: str) -> None:
    """Refuse an override whose name the bundle's config does not know; call it in ``initialize``.

    MONAI adds a misspelt name to the config, where nothing reads it. A config's expressions cannot
    see the config they stand in, so the running workflow is looked up on the call stack.

    Args:
        config: name of the config that asks, such as ``inference.json``; where ``monai.bundle run``
            or ``create_workflow`` were given several files, those count. (What a ``ConfigWorkflow``
            was made from, MONAI does not keep.)

    Raises:
        InputError: a name is unknown.
    """
    workflow, given = _running_workflow()
    if workflow is None:
        return
    known: dict[str, Any] = {"_meta_": None}
    for file in given or [workflow.config_root_path / config]:
        known |= json.loads(Path(file).read_text(encoding="utf-8"))
    unknown = sorted(_unknown(workflow.parser.get(), known))
    if unknown:
        names = ", ".join(sorted(key for key in known if not key.startswith("_")))
        message = f"unknown override: {', '.join(unknown)}; {config} has {names}"
        if not monai_is_the_program():
            logger.error(message)  # MONAI hides what a component raises behind a message of its own
        raise InputError(message)


def _running_workflow() -> "tuple[ConfigWorkflow | None, list[str]]":
    """The workflow that is being initialized, and the config files it was made from where known."""
    from monai.bundle import ConfigWorkflow

    workflow = None
    frame = inspect.currentframe()
    while frame is not None:
        if workflow is None and isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            workflow = frame.f_locals["self"]
        if workflow is not None and frame.f_code.co_name == "create_workflow":
            given = frame.f_locals.get("config_file") or []
            return workflow, [str(x) for x in ([given] if isinstance(given, str | Path) else given)]
        frame = frame.f_back
    return workflow, []


def _unknown(config: object, known: object, path: str = "") -> Iterator[str]:
    """Ids in ``config`` that ``known`` lacks; arguments of a ``_target_`` go by its signature."""
    if not isinstance(config, dict) or not isinstance(known, dict):
        return
    accepted = _arguments(known[_TARGET]) if _TARGET in known else set()
    for key, value in config.items():
        if key in known:
            yield from _unknown(value, known[key], f"{path}{key}#")
        elif key not in accepted and not str(key).startswith("_"):
            yield f"{path}{key}"


def _arguments(target: str) -> set[str]:
    """Names that a class or function takes."""
    found = locate(target)
    return set(inspect.signature(found).parameters) if callable(found) else set()
