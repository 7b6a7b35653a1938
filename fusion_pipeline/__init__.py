"""Register, harmonize and fuse the CT, MR and PET of one patient."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_pipeline.pipeline import FusionPipeline

__all__ = ["FusionPipeline", "__version__"]
__version__ = "0.1.0"

_HERE = Path(__file__).parent
if not (_HERE / "networks").is_dir():
    # a checkout or an unpacked sdist without symbolic links: the folders lie beside the package
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> object:
    """Import `FusionPipeline` when it is asked for (PEP 562): torch and MONAI take seconds."""
    if name == "FusionPipeline":
        from fusion_pipeline.pipeline import FusionPipeline

        return FusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The lazy names as well."""
    return sorted({*globals(), *__all__})
