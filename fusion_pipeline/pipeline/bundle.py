"""Bundles: find one, build what its config says, load its weights, refuse a misspelt override."""

import copy
import inspect
import logging
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from monai import handlers
from torch import nn

import fusion_pipeline
from fusion_pipeline.data import (
    InputError,
    monai_is_the_program,
    one_line_refusals,
    refusal_within,
)

if TYPE_CHECKING:
    from monai.bundle import ConfigParser, ConfigWorkflow

from fusion_pipeline.data.refusals import READ_ERRORS, one_line

logger = logging.getLogger(__name__)
_NAMES = {3: "multimodal_fusion", 2: "multimodal_fusion_2d"}
_TARGET, _META = "_target_", "_meta_"
_LIGHTNING = "pytorch-lightning_version"  # an entry of each of its checkpoints
_NETWORK = "network."  # `training.MultimodalTraining.network`
_WRONG_VALUES = (ValueError, TypeError, ModuleNotFoundError)  # of a constructor, or of no class
_COMPONENT = re.compile(r"Failed to instantiate component '([^']+)'")  # MONAI's words


@one_line_refusals()
def switch(name: str, value: bool | str) -> bool:
    """A switch of a config: a bool, or the word that MONAI's command line leaves of one.

    >>> switch("resume", "false")
    False

    Raises:
        InputError: anything else, which Python would take for true.
    """
    words = {"true": True, "false": False}
    meaning = value if isinstance(value, bool) else words.get(str(value).lower())
    if meaning is None:
        raise InputError(f"expected {name} true or false, got {value!r}")
    return meaning


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


def from_config(
    path: Path | str | None, overrides: Mapping[str, object], *names: str
) -> dict[str, Any]:
    """Components that a bundle's ``configs/inference.json`` describes.

    Args:
        path: folder of the bundle; None: the packaged 3D one.
        overrides: values for ids of the config; None leaves the bundle's.
        names: ids of the components.

    Raises:
        InputError: the folder is no bundle, an id is unknown, or a component refuses its values.
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
    parser["bundle_root"] = str(root)
    override(parser, overrides)
    return _built(parser, names, config)


def override(parser: "ConfigParser", overrides: Mapping[str, object]) -> None:
    """Set ids of a config.

    Args:
        parser: the config.
        overrides: values for its ids, such as ``network_def#fusion#channels``; None: as it is.

    Raises:
        InputError: an id is unknown.
    """
    shipped = copy.deepcopy(parser.get())
    for path, value in overrides.items():
        if value is not None:
            _refuse([*_missing_level(path, parser.get())])
            parser[path] = value
    _refuse(sorted(_unknown(parser.get(), shipped)))


def _built(parser: "ConfigParser", names: Sequence[str], config: Path) -> dict[str, Any]:
    """Components of a config.

    Raises:
        InputError: one refuses its values, or is no class or function.
    """
    try:
        return {name: parser.get_parsed_content(name) for name in names}
    except (RuntimeError, *_WRONG_VALUES) as error:  # MONAI wraps what a component raises
        refused = refusal_within(error) or _refused_values(config, error)
        if refused is error:
            raise
        raise refused from error


def _refused_values(config: Path, error: Exception) -> Exception:
    """The refusal of values that a component does not take; another error as it is."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, _WRONG_VALUES):
        cause = cause.__cause__
    if not isinstance(cause, _WRONG_VALUES):
        return error
    wrapper = _COMPONENT.match(str(error))
    component = f"{wrapper[1].rpartition('.')[2]}: " if wrapper else ""
    message = one_line(f"{component}{cause}", limit=1000)
    return InputError(f"{config}: expected values that its components take, got: {message}")


class CheckpointLoader(handlers.CheckpointLoader):
    """MONAI's ``CheckpointLoader``, which refuses weights that do not fit.

    Args:
        load_path: a state dict or a Lightning checkpoint, see `load_weights`.
        load_dict: ``{"model": network}``.
    """

    def __init__(self, load_path: str, load_dict: Mapping[str, nn.Module]) -> None:
        super().__init__(load_path, dict(load_dict), map_location="cpu", strict=True)

    def __call__(self, engine: Engine) -> None:
        """Load the weights; MONAI calls it when the evaluator starts."""
        for network in self.load_dict.values():
            load_weights(network, self.load_path)


def load_checkpoint(loader: handlers.CheckpointLoader) -> None:
    """Let a config's ``checkpointloader``, ours or MONAI's, load without an evaluator."""
    loader(Engine(lambda *_: None))


@one_line_refusals()
def load_weights(network: nn.Module, path: Path | str | None) -> nn.Module:
    """Load a state dict or a Lightning checkpoint into a network, every key matched.

    Of a checkpoint the entry ``state_dict`` counts. It holds the averaged weights where the
    training averaged them (Lightning's ``WeightAveraging`` and ``EMAWeightAveraging``, 2.6). The
    plain weights of the last step, ``current_model_state``, count only before the averaging began.

    Args:
        network: what the weights belong to.
        path: file that ``torch.save(network.state_dict(), path)`` made, or a ``.ckpt`` of
            `training.MultimodalTraining`; None: leave the network as it is.

    Returns:
        The same network.

    Raises:
        InputError: the file is missing, is no state dict, or does not match key by key and shape by
            shape: a network that is random in part must not run on a patient.
    """
    if path is None:
        return network
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(_network_state(content), strict=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected the bundle's weights, got no such file") from error
    except (*READ_ERRORS, pickle.UnpicklingError) as error:
        summary = (
            "no state dict" if isinstance(error, pickle.UnpicklingError) else one_line(error, 300)
        )
        raise InputError(
            f"{path}: expected the weights of {type(network).__name__}, got others: {summary}; "
            "use weights that were made with this bundle's network_def"
        ) from error
    return network


def _network_state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network's state dict, of a file that is one or of a Lightning checkpoint.

    A checkpoint holds further entries, such as those of metrics: only the network's count.
    """
    if _LIGHTNING not in content:
        return content
    averaged = content.get("averaging_state", {}).get("n_averaged", 1)
    state = content["state_dict" if averaged > 0 else "current_model_state"]
    return {k.removeprefix(_NETWORK): v for k, v in state.items() if k.startswith(_NETWORK)}


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
    from monai.bundle import ConfigParser

    workflow, given = running_workflow()
    if workflow is None:
        return
    reader = ConfigParser()  # several files, JSON or YAML, with nested ids
    reader.read_config([str(file) for file in given or [workflow.config_root_path / config]])
    config_now = {key: value for key, value in workflow.parser.get().items() if key != _META}
    unknown = sorted(_unknown(config_now, reader.get()))
    if unknown and not monai_is_the_program():
        # MONAI hides what a component raises behind a message of its own
        logger.error("; ".join(str(one) for one in unknown))
    _refuse(unknown)


@one_line_refusals()
def refuse_wrong_values(ids: Sequence[str]) -> None:
    """Build components before the run, so that values they refuse end it in one line.

    Call it in ``initialize``. It acts under ``python -m monai.bundle`` alone: there MONAI's
    traceback would be all that the user gets. The run uses the same objects.

    Args:
        ids: what the run needs, such as ``["evaluator"]``.

    Raises:
        InputError: a component refuses its values, or a ``_target_`` names nothing.
    """
    workflow, _ = running_workflow()
    if workflow is not None and monai_is_the_program():
        _built(workflow.parser, ids, Path(workflow.config_root_path))


def _refuse(unknown: Sequence["UnknownId"]) -> None:
    """Refuse ids that a config does not have, with the names that stand at their level."""
    if not unknown:
        return
    raise InputError("; ".join(str(one) for one in unknown))


@dataclass(frozen=True, order=True)
class UnknownId:
    """An override that names nothing.

    Attributes:
        path: ids above it, joined by ``#``; empty at the top.
        name: what came.
        siblings: what there is at its level.
    """

    path: str
    name: str
    siblings: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence with the nearest match."""
        near = get_close_matches(self.name, self.siblings, n=1, cutoff=0.5)
        hint = f"; did you mean {self.path}{near[0]}?" if near else ""
        level = f"{self.path.rstrip('#')} has" if self.path else "the config has"
        return f"unknown override: {self.path}{self.name}; {level} {', '.join(self.siblings)}{hint}"


def running_workflow() -> "tuple[ConfigWorkflow | None, list[str]]":
    """The workflow that is being initialized or run, and its config files where known."""
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


def _missing_level(path: str, config: object) -> Iterator[UnknownId]:
    """The first level above an override's name that the config does not have."""
    from monai.bundle import ReferenceResolver

    level, above = config, ""
    names = [str(name) for name in ReferenceResolver.split_id(path)]
    for depth, name in enumerate(names, start=1):
        if isinstance(level, list) and name.isdecimal() and int(name) < len(level):
            level = level[int(name)]
        elif isinstance(level, dict) and (name in level or depth == len(names)):
            level = level.get(name)
        else:
            yield UnknownId(above, name, _names(level, name))
            return
        above += f"{name}#"


def _unknown(config: object, shipped: object, path: str = "") -> Iterator[UnknownId]:
    """Ids in ``config`` that ``shipped`` lacks; arguments of a ``_target_`` go by its signature."""
    if isinstance(config, list) and isinstance(shipped, list):
        for number, (one, other) in enumerate(zip(config, shipped, strict=False)):
            yield from _unknown(one, other, f"{path}{number}#")
    if not isinstance(config, dict) or not isinstance(shipped, dict):
        return
    if config.get(_TARGET) != shipped.get(_TARGET):
        shipped = {_TARGET: config.get(_TARGET)}  # another component in its place
    arguments = _arguments(shipped.get(_TARGET))
    for key, value in config.items():
        if key in shipped:
            yield from _unknown(value, shipped[key], f"{path}{key}#")
        # of a `_target_` that names nothing none is known; it is refused when it is built
        elif arguments is not None and key not in arguments | _reserved(shipped):
            yield UnknownId(path, str(key), _names(shipped, str(key)))


def _names(level: object, came: str) -> tuple[str, ...]:
    """What can be overridden at a level of the config; MONAI's ``_words_`` if one was meant."""
    if isinstance(level, list):
        return tuple(str(n) for n in range(len(level)))
    if not isinstance(level, dict):
        return ()
    names = {key for key in level if not key.startswith("_")}
    names |= _arguments(level.get(_TARGET)) or set()
    return tuple(sorted(names | _reserved(level) if came.startswith("_") else names))


def _reserved(level: Mapping[str, Any]) -> set[str]:
    """MONAI's words in a component: ``_target_``, ``_disabled_``, ``_mode_``, …; else none."""
    from monai.bundle import ConfigComponent

    return set(ConfigComponent.non_arg_keys) if _TARGET in level else set()


def _arguments(target: object) -> set[str] | None:
    """Names that a class or function takes; None where the target names neither."""
    from monai.bundle.config_item import ComponentLocator

    if not isinstance(target, str):
        return set()
    component = locate(target)
    if component is None:  # a bare name is MONAI's
        modules = ComponentLocator(excludes=[]).get_component_module_name(target)
        module = modules[0] if isinstance(modules, list) else modules
        component = locate(f"{module}.{target}") if module else None
    if not callable(component):
        return None
    above = component.__mro__[1:] if isinstance(component, type) else ()
    names: set[str] = set()
    for taker in (component, *[vars(one)["__init__"] for one in above if "__init__" in vars(one)]):
        parameters = inspect.signature(taker).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):  # else the class above takes more
            break
    return names - {"self"}
