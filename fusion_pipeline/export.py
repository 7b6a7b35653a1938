"""Write the networks of a bundle as graphs that run without this package: ``torch.export``, ONNX.

The graphs take images of any size. Those of MONAI's ``ckpt_export`` are right at one size alone,
and wrong at others without a word.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fusion_pipeline.data import InputError, check_output_folder
from fusion_pipeline.networks.fusion_net import STRIDE, FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import KINDS, kind_indices
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.networks.registration_net import RegistrationNet

Format = Literal["pt2", "onnx"]
NETWORKS = ("registration", "harmonization", "fusion")
FORMATS: tuple[Format, ...] = ("pt2", "onnx")
# voxels along each axis. Registration pads to at least 33 by itself; the boxes of the fusion
# network (11 coarse positions of 4 voxels) must fit: in a smaller image they have another width.
_SMALLEST = {"registration": 18, "harmonization": 8, "fusion": 45}
_LARGEST = 4096  # voxels along an axis: above any scanner matrix; a graph needs some bound
_EXAMPLE = (50, 61, 70)  # no two sizes alike, none that needs no padding


class _OneKind(nn.Module):
    """The harmonization of one kind of image: a graph takes tensors alone."""

    def __init__(self, network: HarmonizationNet, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, image: Tensor, valid: Tensor) -> Tensor:
        """``(B, 1, *S)`` in own units and its field of view, to ``(B, 1, *S)`` in [0, 1]."""
        return self.network(image, self.kind, valid)


class _GivenKinds(nn.Module):
    """The fusion of images of given kinds, in this order."""

    def __init__(self, network: FusionNet, kinds: Sequence[str]) -> None:
        super().__init__()
        self.network, self.kinds = network, list(kinds)

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, M, *S)`` harmonized and their fields of view, to the fused image and weights."""
        # whole coarse positions: the network's own padding would tell sizes that need none apart
        shape = images.shape[2:]
        whole = [(n + STRIDE - 1) // STRIDE * STRIDE for n in shape]
        out = self.network(_brought_to(images, whole), self.kinds, _brought_to(valid, whole))
        return _brought_to(out.fused, shape), _brought_to(out.weights, shape)


def export_registration(network: RegistrationNet) -> ExportedProgram:
    """The graph ``(fixed, moving) → ddf`` for images of any size from 18 voxels along each axis.

    Convention:
        - direction: pull-back, on the fixed grid; unit: voxels; batch size 1

    Args:
        network: see `RegistrationNet`.

    Returns:
        Takes ``(1, 1, *S)`` twice, gives ``(1, d, *S)``.
    """
    return _exported(network, "registration", network.spatial_dims, channels=1)


def export_harmonization(network: HarmonizationNet, kind: str) -> ExportedProgram:
    """The graph ``(image, valid) → harmonized`` of one kind, for images from 8 voxels.

    Args:
        network: see `HarmonizationNet`.
        kind: ``ct``, ``mr`` or ``emission``.

    Returns:
        Takes ``(1, 1, *S)`` twice, gives ``(1, 1, *S)`` in [0, 1].
    """
    kind_indices(kind, 1)
    return _exported(_OneKind(network, kind), "harmonization", network.spatial_dims, channels=1)


def export_fusion(network: FusionNet, kinds: Sequence[str]) -> ExportedProgram:
    """The graph ``(images, valid) → (fused, weights)`` for images from 45 voxels.

    Args:
        network: see `FusionNet`.
        kinds: kind of each image; the graph takes as many, in this order.

    Returns:
        Takes ``(1, M, *S)`` twice, gives ``(1, 1, *S)`` and ``(1, M, *S)``.
    """
    kind_indices(kinds, len(kinds))
    own = _GivenKinds(network, kinds)
    return _exported(own, "fusion", network.spatial_dims, channels=len(kinds))


def export_networks(
    network: MultimodalNet,
    output: Path | str,
    *,
    names: Sequence[str] = NETWORKS,
    file_format: Format = "pt2",
    kinds: Sequence[str] = ("ct", "mr"),
) -> list[Path]:
    """Write graphs: ``registration``, ``harmonization_KIND`` for each kind, ``fusion_KIND_KIND``.

    Args:
        network: the bundle's, with its weights.
        output: folder of the files; made where it is not there.
        names: which of `NETWORKS`.
        file_format: ``pt2`` for ``torch.export.load``, or ``onnx``, which needs the packages of
            the extra ``export``.
        kinds: of the images that are fused, in their order; each is harmonized by its own graph.

    Returns:
        The files.

    Raises:
        InputError: an unknown name, format or kind; packages that ONNX needs are missing.
    """
    _check_choice("network", names, NETWORKS)
    _check_choice("format", [file_format], FORMATS)
    _check_choice("kind", kinds, KINDS)
    if file_format == "onnx":
        _check_onnx_packages()
    folder = check_output_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().eval()
    programs: dict[str, dict[str, Callable[[], ExportedProgram]]] = {
        "registration": {"registration": partial(export_registration, network.registration)},
        "harmonization": {
            f"harmonization_{kind}": partial(export_harmonization, network.harmonization, kind)
            for kind in kinds
        },
        "fusion": {f"fusion_{'_'.join(kinds)}": partial(export_fusion, network.fusion, kinds)},
    }
    files = []
    for name in names:
        for stem, make in programs[name].items():
            files.append(folder / f"{stem}.{file_format}")
            _write(make(), files[-1])
    return files


def _exported(module: nn.Module, name: str, spatial_dims: int, *, channels: int) -> ExportedProgram:
    """The graph of a module that takes two tensors of one shape, of any spatial size."""
    shape = (1, channels, *_EXAMPLE[:spatial_dims])
    draw = torch.Generator().manual_seed(0)
    images = tuple(torch.rand(shape, generator=draw) for _ in range(2))
    size = Dim.DYNAMIC(min=_SMALLEST[name], max=_LARGEST)
    sizes = {2 + axis: size for axis in range(spatial_dims)}
    with torch.no_grad():
        return torch.export.export(
            module.eval(), images, dynamic_shapes=(sizes, sizes), strict=False
        )


def _brought_to(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut at the far end of each axis, or continue with zeros; by indices, for any size."""
    for axis, (size, wanted) in enumerate(zip(values.shape[2:], shape, strict=True), start=2):
        index = torch.arange(wanted, device=values.device)
        there = (index < size).to(values.dtype)
        there = there.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = values.index_select(axis, index.clamp_max(size - 1)) * there
    return values


def _write(program: ExportedProgram, path: Path) -> None:
    """One file, in the format that its name says."""
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return
    # its optimizer takes numbers below 1e-8 for 0, and a sum that keeps a divisor above 0 away
    written = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False)
    if written is None:
        raise RuntimeError(f"{path}: torch gave no ONNX program")
    written.save(str(path), external_data=False)


def _check_onnx_packages() -> None:
    """Refuse before the work, which takes minutes."""
    try:
        import onnxscript  # noqa: F401 - torch asks for it in the middle of the work
    except ModuleNotFoundError as error:
        raise InputError(
            'export to onnx: expected the packages onnx and onnxscript, got none; "pip install '
            "'fusion-pipeline[export]'\", or choose the format pt2"
        ) from error


def _check_choice(what: str, given: Sequence[str], choices: Sequence[str]) -> None:
    """Refuse another word."""
    unknown = [name for name in given if name not in choices]
    if unknown or not given:
        came = ", ".join(unknown) or "none"
        raise InputError(f"export: expected each {what} of {', '.join(choices)}, got {came}")
