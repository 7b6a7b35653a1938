"""Classical registration engines from the package index, as callables like our own stage.

Each takes a fixed and a moving image and gives back a `Registration` whose affine is the identity
and whose field is the whole map: every engine says it in its own way, and here all those ways end.
Settings are those of PEERS.md, "Registration, 3D, 2 mm": one setting each, an expert gets more out
of them. All read the images at 2 mm, CT in HU as it is, without masks, and start from the headers'
pose. convexAdam, which knows no world, gets the moving image on the fixed one's lattice.

Convention:
    - direction: all of them pull back; their fields live on the fixed lattice, as ours do
    - unit and axes: greedy, ANTs and elastix speak LPS mm, their arrays run ``k, j, i``;
      convexAdam speaks voxels, its components run along ``i, j, k``
"""

import importlib
import importlib.metadata
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import (
    WorldMap,
    ddf_from_ddf_mm,
    ddf_mm_from_ddf,
    inverse_affine,
    lps_from_ras,
    resample,
    rescaled_affine,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.metrics import folded_fraction
from fusion_pipeline.register import Evidence, Registration

_SPACING_MM = 2.0
_BLUR = 0.35  # of the new voxel, where the old one is smaller: as our own stage reads its images
_ITERATIONS = "100x50x20"  # greedy's, from a quarter of the resolution to the full one


class Greedy:
    """Greedy (PICSL): rigid, then a diffeomorphic deformation, both by mutual information.

    Args:
        threads: of its own.

    References:
        Yushkevich et al., "Fast automatic segmentation of hippocampal subfields and medial temporal
        lobe subregions in 3 Tesla and 7 Tesla T2-weighted MRI", Alzheimer's & Dementia 2016.
    """

    def __init__(self, threads: int = 1) -> None:
        self._engine = _imported("picsl_greedy", threads)
        # without a seed no run is like another
        self._common = f"-m NMI -n {_ITERATIONS} -threads {threads} -seed 1 -V 0"

    def __call__(self, fixed: Image, moving: Image) -> Registration:
        """Register."""
        f, m = _at_2mm(fixed), _at_2mm(moving)
        greedy = self._engine.Greedy3D()
        greedy.execute(
            f"-i fixed moving -a -dof 6 -ia-identity {self._common} -o rigid",
            fixed=_simple_itk(f),
            moving=_simple_itk(m),
            rigid=None,
        )
        greedy.execute(f"-i fixed moving -it rigid {self._common} -o warp", warp=None)
        # it composes its own transforms, so that their order is not ours to get wrong
        greedy.execute("-rf fixed -r warp rigid -rc whole -V 0", whole=None)
        return _registration(_ddf_mm(sitk.GetArrayFromImage(greedy["whole"])), f)


class Ants:
    """ANTs' SyNRA: rigid, affine, then symmetric diffeomorphic, all by Mattes mutual information.

    Args:
        threads: of its own.

    References:
        Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Med
        Image Anal 2008.
    """

    def __init__(self, threads: int = 1) -> None:
        self._engine = _imported("ants", threads)

    def __call__(self, fixed: Image, moving: Image) -> Registration:
        """Register."""
        ants, f, m = self._engine, _at_2mm(fixed), _at_2mm(moving)
        theirs = [ants.from_numpy(x.array[0].numpy(), *_frame(x)) for x in (f, m)]
        with tempfile.TemporaryDirectory() as folder:
            found = ants.registration(
                *theirs,
                type_of_transform="SyNRA",
                # its default joins centres of mass: where air is −1000 these lie 100 mm apart
                initial_transform="Identity",
                random_seed=1,
                outprefix=f"{folder}/",
            )
            field = ants.apply_transforms(
                *theirs, transformlist=found["fwdtransforms"], compose=f"{folder}/whole_"
            )
            vectors = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(field))))
        return _registration(_ddf_mm(vectors), f)


class Elastix:
    """elastix: its default rigid, affine and B-spline maps, by mutual information.

    Args:
        threads: of its own.

    References:
        Klein et al., "elastix: a toolbox for intensity-based medical image registration", IEEE TMI
        2010.
    """

    def __init__(self, threads: int = 1) -> None:
        self._engine = _imported("itk", threads)
        self._threads = threads
        # itk reads its modules when they are first asked for: not on the first case's clock
        self._parameters = self._engine.ParameterObject.New()
        for name in ("rigid", "affine", "bspline"):
            self._parameters.AddParameterMap(self._parameters.GetDefaultParameterMap(name))

    def __call__(self, fixed: Image, moving: Image) -> Registration:
        """Register."""
        f, m = _at_2mm(fixed), _at_2mm(moving)
        theirs = [self._image(x) for x in (f, m)]
        _, found = self._engine.elastix_registration_method(
            *theirs,
            parameter_object=self._parameters,
            number_of_threads=self._threads,
            log_to_console=False,
        )
        with tempfile.TemporaryDirectory() as folder:  # it writes the field, asked to or not
            field = self._engine.transformix_deformation_field(
                theirs[1], found, output_directory=folder
            )
            vectors = self._engine.array_from_image(field)
        return _registration(_ddf_mm(vectors), f)

    def _image(self, image: Image) -> object:
        """An image of its own."""
        origin, spacing, direction = _frame(image)
        out = self._engine.image_from_array(_backwards(image.array[0]))
        out.SetOrigin(origin)
        out.SetSpacing(spacing)
        out.SetDirection(self._engine.matrix_from_array(direction))
        return out


class ConvexAdam:
    """convexAdam: coupled convex optimization of self-similarity, refined by Adam; its defaults.

    Args:
        threads: torch's, which its caller sets.

    References:
        Siebert et al., "ConvexAdam: self-configuring dual-optimisation-based 3D multitask medical
        image registration", IEEE TMI 2024.
    """

    def __init__(self, threads: int = 1) -> None:
        self._engine = _imported("convexAdam.convex_adam_MIND", threads)

    def __call__(self, fixed: Image, moving: Image) -> Registration:
        """Register."""
        f = _at_2mm(fixed)
        m = _on(moving, f.affine, f.shape)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of its own sampling
            voxels = self._engine.convex_adam_pt(
                f.array[0], m.array[0], dtype=torch.float32, device=torch.device("cpu")
            )
        ddf = torch.from_numpy(np.moveaxis(voxels, -1, 0).astype(np.float32))
        return _registration(ddf_mm_from_ddf(ddf[None], torch.from_numpy(f.affine))[0], f)


@dataclass(frozen=True)
class Peer:
    """An engine to compare with.

    Attributes:
        title: column of the table.
        package: its name on the package index.
        engine: makes the callable, given a number of threads.
    """

    title: str
    package: str
    engine: Callable[[int], Callable[[Image, Image], Registration]]

    @property
    def version(self) -> str:
        """Of the installed package."""
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def load(self, threads: int) -> Callable[[Image, Image], Registration]:
        """The callable; ends the program where the package is missing."""
        try:
            return self.engine(threads)
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"{self.package} is not installed ({error}): pip install -e '.[peers]'"
            ) from error


# deeds of PEERS.md is missing: the package of that name on the index is about real estate
PEERS = {
    "greedy": Peer("greedy rigid → NMI", "picsl-greedy", Greedy),
    "ants": Peer("ANTs SyNRA", "antspyx", Ants),
    "elastix": Peer("elastix default", "itk-elastix", Elastix),
    "convexadam": Peer("convexAdam", "convexAdam", ConvexAdam),
}


def _imported(name: str, threads: int) -> ModuleType:
    """An engine's module, told its threads and kept from muting the warnings of all others."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    with warnings.catch_warnings():
        return importlib.import_module(name)


def _at_2mm(image: Image) -> Image:
    """An image at 2 mm over its own field of view."""
    return _on(image, *rescaled_affine(image.affine, image.shape, _SPACING_MM))


def _on(image: Image, affine: Matrix, shape: tuple[int, ...]) -> Image:
    """An image on a 2 mm lattice, blurred first along the axes whose voxels are finer."""
    sigma = _BLUR * _SPACING_MM * (image.spacing < _SPACING_MM) / image.spacing
    blurred = torch.from_numpy(ndimage.gaussian_filter(image.array[0].numpy(), sigma))
    voxels = torch.from_numpy(inverse_affine(image.affine) @ affine)
    array = resample(blurred[None, None], voxels, shape, fill=image.fill_value)[0]
    return image.with_array(array, affine=affine)


def _registration(ddf_mm: Tensor, fixed: Image) -> Registration:
    """The whole map as a field on the lattice of the fixed image, with its folds counted."""
    if not bool(ddf_mm.isfinite().all()):
        raise ValueError("the engine gave a field that is not finite")
    ddf = ddf_from_ddf_mm(ddf_mm[None], torch.from_numpy(fixed.affine))
    folded = float(folded_fraction(ddf).mean())
    return Registration(
        WorldMap(np.eye(4), ddf_mm, fixed.affine), Evidence("deformable", folded_fraction=folded)
    )


def _frame(image: Image) -> tuple[tuple[float, ...], tuple[float, ...], Matrix]:
    """Origin, spacing and direction in LPS mm."""
    affine = lps_from_ras(3) @ image.affine
    spacing = image.spacing
    return tuple(affine[:3, 3].tolist()), tuple(spacing.tolist()), affine[:3, :3] / spacing


def _backwards(array: Tensor) -> np.ndarray:
    """Axes ``k, j, i``, as ITK's arrays have them."""
    return np.ascontiguousarray(array.numpy().T.astype(np.float32))


def _simple_itk(image: Image) -> sitk.Image:
    """A SimpleITK image in LPS mm."""
    origin, spacing, direction = _frame(image)
    out = sitk.GetImageFromArray(_backwards(image.array[0]))
    out.SetOrigin(origin)
    out.SetSpacing(spacing)
    out.SetDirection(direction.ravel().tolist())
    return out


def _ddf_mm(vectors: np.ndarray) -> Tensor:
    """ITK's field ``(k, j, i, 3)`` in LPS mm as ours, ``(3, i, j, k)`` in RAS mm."""
    ras = vectors.astype(np.float32) * np.array([-1, -1, 1], np.float32)
    return torch.from_numpy(np.ascontiguousarray(ras.transpose(3, 2, 1, 0)))
