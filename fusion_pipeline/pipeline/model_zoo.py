"""A bundle packed as MONAI's Model Zoo takes it: weights elsewhere, named by address and digest."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from fusion_pipeline.data import InputError, check_output_folder
from fusion_pipeline.pipeline.folder import deliver_whole

_LARGE_FILES = "large_files.yml"  # what `python -m monai.bundle download_large_files` reads
_NEEDED = ("configs/metadata.json", "configs/inference.json", "docs/README.md", "LICENSE")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_URL = re.compile(r"(https|file)://\S+[^/\s]")


def pack_for_model_zoo(bundle: Path | str, target: Path | str, url: str) -> Path:
    """Copy a bundle without its weights, and write where they are and their SHA-256.

    The Model Zoo keeps weights out of its repository. `python -m monai.bundle download_large_files`
    brings them back to their place and checks the digest.

    Args:
        bundle: the folder of a bundle.
        target: the new folder, named as the bundle shall be called there; replaced if it is there.
        url: where the weights will lie: of the folder ``models``, without a slash at its end.

    Returns:
        The folder.

    Raises:
        InputError: a file is missing, the version breaks a rule, or the address is none.
    """
    root, folder = Path(bundle), check_output_folder(Path(target))
    missing = [name for name in _NEEDED if not (root / name).is_file()]
    weights = sorted((root / "models").glob("*.pt"))
    if missing or not weights:
        raise InputError(
            f"bundle {root}: expected {', '.join(_NEEDED)} and models/*.pt, got none of "
            f"{', '.join(missing or ['models/*.pt'])}; name a complete bundle"
        )
    if not _URL.fullmatch(url):
        raise InputError(
            f"expected the address of the weights' folder (https://…), got {url!r}; correct it"
        )
    check_version(json.loads((root / "configs/metadata.json").read_text(encoding="utf-8")), root)
    with deliver_whole(folder) as aside:
        shutil.copytree(
            root, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pt")
        )
        (aside / "models").mkdir(exist_ok=True)
        lines = ["large_files:"]
        for path in weights:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines += [
                f'  - path: "models/{path.name}"',
                f'    url: "{url}/{path.name}"',
                f'    hash_val: "{digest}"',
                '    hash_type: "sha256"',
            ]
        (aside / _LARGE_FILES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def check_version(metadata: Mapping[str, object], bundle: Path | str) -> None:
    """Refuse a version that breaks the rules: three numbers, in the changelog, the highest there.

    Args:
        metadata: content of ``metadata.json``.
        bundle: for the message.

    Raises:
        InputError: it does.
    """
    version, changelog = str(metadata.get("version", "")), metadata.get("changelog")
    listed = [str(one) for one in changelog] if isinstance(changelog, dict) else []
    wrong = next((one for one in (version, *listed) if not _VERSION.fullmatch(one)), None)
    if wrong is not None:
        raise InputError(
            f"bundle {bundle}: expected versions of three numbers (1.2.0) in metadata.json, got "
            f"{wrong!r}; correct it"
        )
    if version not in listed or max(listed, key=_numbers) != version:
        raise InputError(
            f"bundle {bundle}: expected version {version} as the highest of the changelog in "
            f"metadata.json, got {', '.join(listed) or 'none'}; add a line that says what changed"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """To compare versions."""
    return tuple(int(part) for part in version.split("."))


__all__ = ["check_version", "pack_for_model_zoo"]
