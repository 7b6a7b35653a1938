"""Kinds of modality: what the encoders and tone curves distinguish."""

from collections.abc import Sequence
from typing import Literal

Kind = Literal["ct", "mr", "emission"]
KINDS: tuple[Kind, ...] = ("ct", "mr", "emission")
_KIND_OF: dict[str, Kind] = {"ct": "ct", "mr": "mr", "pet": "emission", "spect": "emission"}


def kind_of(modality: str) -> Kind:
    """The kind of a modality: PET and SPECT are both ``emission``.

    Args:
        modality: ``ct``, ``mr``, ``pet`` or ``spect``.

    Raises:
        ValueError: another name.

    >>> kind_of("spect")
    'emission'
    """
    if modality not in _KIND_OF:
        raise ValueError(f"expected a modality of {', '.join(_KIND_OF)}, got {modality!r}")
    return _KIND_OF[modality]


def kind_indices(kinds: str | Sequence[str], count: int) -> list[int]:
    """The index of each kind in `KINDS`; one name stands for all.

    Args:
        kinds: one kind for all, or one for each.
        count: how many are needed.

    Raises:
        ValueError: another number of kinds, or an unknown one.

    >>> kind_indices("mr", 2), kind_indices(["emission", "ct"], 2)
    ([1, 1], [2, 0])
    """
    names = [kinds] * count if isinstance(kinds, str) else list(kinds)
    if len(names) != count:
        raise ValueError(f"expected {count} kinds, one for each image, got {len(names)}: {names}")
    for name in names:
        if name not in KINDS:
            raise ValueError(f"expected kinds of {', '.join(KINDS)}, got {name!r}")
    return [KINDS.index(name) for name in names]
