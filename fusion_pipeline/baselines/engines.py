"""Classical registration engines from the package index, as callables like our own stage.

Each takes a fixed and a moving image and gives back a `Registration` whose affine is the identity
and whose field is the whole map: every engine says it in its own way, and here all those ways end.
One setting each; an expert gets more out of them. Volumes are read at 2 mm, pictures in their own
pixels, CT in HU as it is, without masks, from the pose of the headers. convexAdam, which has no
world, gets the moving image on the fixed one's lattice.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from fusion_pipeline.baselines.mutual_information import RegisterByMutualInformation, to_itk
from fusion_pipeline.data import Image, InputError, TransformKind
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

_SPACING_MM = 2.0  # of volumes
_BLUR = 0.35  # of the new voxel, where the old one is smaller: as our own stage reads its images
_ITERATIONS = "100x50x20"  # greedy's, from a quarter of the resolution to the full one
_EXTRA = "pip install 'fusion-pipeline[peers]'"
_ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


class RegisterBy(Protocol):
    """A register stage without networks and masks."""

    def __call__(
        self, fixed: Image, moving: Image, *, transform: TransformKind = "deformable"
    ) -> Registration:
        """Map the fixed image's world to the moving one's."""
        ...


class FieldEngine(Protocol):
    """An engine that finds a whole map as a field."""

    def ddf_mm(self, f: Image, moving: Image, transform: TransformKind) -> Tensor:
        """The map of the fixed world to the moving one.

        Args:
            f: the fixed image on the lattice of the result.
            moving: as it was given.
            transform: rigid, affine or deformable.

        Returns:
            ``(d, *S)`` on the lattice of ``f``, RAS mm.
        """
        ...


class RegisterByField:
    """The register stage by an engine that gives a field.

    Args:
        engine: which.
    """

    def __init__(self, engine: FieldEngine) -> None:
        self._engine = engine

    def __call__(
        self, fixed: Image, moving: Image, *, transform: TransformKind = "deformable"
    ) -> Registration:
        """See `RegisterBy`."""
        f = _lattice(fixed)
        if transform == "none":
            return _unmoved(f)
        return _registration(self._engine.ddf_mm(f, moving, transform), f, transform)


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

    def ddf_mm(self, f: Image, moving: Image, transform: TransformKind) -> Tensor:
        """See `FieldEngine`."""
        greedy = self._engine.Greedy3D() if f.spatial_dims == 3 else self._engine.Greedy2D()
        linear = "-dof 12" if transform == "affine" else "-dof 6"
        greedy.execute(
            f"-i fixed moving -a {linear} -ia-identity {self._common} -o linear",
            fixed=to_itk(f),
            moving=to_itk(_lattice(moving)),
            linear=None,
        )
        chain = "linear"
        if transform == "deformable":
            greedy.execute(f"-i fixed moving -it linear {self._common} -o warp", warp=None)
            chain = "warp linear"
        # it composes its own transforms, so that their order is not ours to get wrong
        greedy.execute(f"-rf fixed -r {chain} -rc whole -V 0", whole=None)
        return _ddf_mm(sitk.GetArrayFromImage(greedy["whole"]))


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
        self._threads = threads

    def ddf_mm(self, f: Image, moving: Image, transform: TransformKind) -> Tensor:
        """See `FieldEngine`."""
        ants = self._engine
        kind = {"rigid": "Rigid", "affine": "Affine", "deformable": "SyNRA"}[transform]
        theirs = [ants.from_numpy(x.array[0].numpy(), *_frame(x)) for x in (f, _lattice(moving))]
        with _itk_threads(self._threads), tempfile.TemporaryDirectory() as folder:
            result = ants.registration(
                *theirs,
                type_of_transform=kind,
                # its default joins centres of mass: where air is −1000 these lie 100 mm apart
                initial_transform="Identity",
                random_seed=1,
                outprefix=f"{folder}/",
            )
            field = ants.apply_transforms(
                *theirs, transformlist=result["fwdtransforms"], compose=f"{folder}/whole_"
            )
            return _ddf_mm(sitk.GetArrayFromImage(sitk.ReadImage(str(Path(field)))))


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
        self._parameters = {
            transform: self._maps(names)
            for transform, names in (
                ("rigid", ("rigid",)),
                ("affine", ("rigid", "affine")),
                ("deformable", ("rigid", "affine", "bspline")),
            )
        }

    def ddf_mm(self, f: Image, moving: Image, transform: TransformKind) -> Tensor:
        """See `FieldEngine`."""
        theirs = [self._image(x) for x in (f, _lattice(moving))]
        _, result = self._engine.elastix_registration_method(
            *theirs,
            parameter_object=self._parameters[transform],
            number_of_threads=self._threads,
            log_to_console=False,
        )
        # it writes the field, asked to or not
        with _itk_threads(self._threads), tempfile.TemporaryDirectory() as folder:
            field = self._engine.transformix_deformation_field(
                theirs[1], result, output_directory=folder
            )
            return _ddf_mm(self._engine.array_from_image(field))

    def _maps(self, names: tuple[str, ...]) -> Any:  # noqa: ANN401 - itk is not typed
        """Its default parameters of some transforms, one after the other."""
        parameters = self._engine.ParameterObject.New()
        for name in names:
            parameters.AddParameterMap(parameters.GetDefaultParameterMap(name))
        return parameters

    def _image(self, image: Image) -> object:
        """An image of its own."""
        origin, spacing, direction = _frame(image)
        array = np.ascontiguousarray(image.array[0].numpy().T.astype(np.float32))
        out = self._engine.image_from_array(array)
        out.SetOrigin(origin)
        out.SetSpacing(spacing)
        out.SetDirection(self._engine.matrix_from_array(direction))
        return out


class ConvexAdam:
    """convexAdam: coupled convex optimization of self-similarity, refined by Adam; its defaults.

    It is made for volumes, and only deforms.

    Args:
        threads: torch's, which its caller sets.

    References:
        Siebert et al., "ConvexAdam: self-configuring dual-optimisation-based 3D multitask medical
        image registration", IEEE TMI 2024.
    """

    def __init__(self, threads: int = 1) -> None:
        self._engine = _imported("convexAdam.convex_adam_MIND", threads)

    def ddf_mm(self, f: Image, moving: Image, transform: TransformKind) -> Tensor:
        """See `FieldEngine`.

        Raises:
            InputError: pictures, or a transform that it does not have.
        """
        if f.spatial_dims != 3 or transform != "deformable":
            raise InputError(
                f"convexadam: expected volumes to be deformed, got {f.spatial_dims}D images and "
                f"the transform {transform}; take another engine"
            )
        m = _on(moving, f.affine, f.shape)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of its own sampling
            voxels = self._engine.convex_adam_pt(
                f.array[0], m.array[0], dtype=torch.float32, device=torch.device("cpu")
            )
        ddf = torch.from_numpy(np.moveaxis(voxels, -1, 0).astype(np.float32))
        return ddf_mm_from_ddf(ddf[None], torch.from_numpy(f.affine))[0]


@dataclass(frozen=True)
class Engine:
    """An engine to compare with.

    Attributes:
        title: column of a table.
        package: its name on the package index.
        stage: makes the callable, given a number of threads.
        dimensions: of the images that it registers.
    """

    title: str
    package: str
    stage: Callable[[int], RegisterBy]
    dimensions: tuple[int, ...] = (2, 3)

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        try:
            return bool(self.version)
        except InputError:
            return False

    @property
    def version(self) -> str:
        """Of the installed package.

        Raises:
            InputError: it is not installed.
        """
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError as error:
            raise self._missing(error) from error

    def load(self, threads: int = 1) -> RegisterBy:
        """The callable.

        Raises:
            InputError: the package is not installed.
        """
        try:
            return self.stage(threads)
        except (ModuleNotFoundError, AttributeError) as error:  # itk is there without elastix
            raise self._missing(error) from error

    def _missing(self, error: Exception) -> InputError:
        return InputError(
            f"{self.title}: expected {self.package} to be installed, got none ({error}); {_EXTRA}"
        )


# deeds is missing: the package of that name on the index is about real estate
ENGINES: Mapping[str, Engine] = {
    "mutual-information": Engine(
        "SimpleITK MI", "SimpleITK", lambda _: RegisterByMutualInformation()
    ),
    "greedy": Engine("greedy rigid → NMI", "picsl-greedy", lambda n: RegisterByField(Greedy(n))),
    "ants": Engine("ANTs SyNRA", "antspyx", lambda n: RegisterByField(Ants(n))),
    "elastix": Engine("elastix default", "itk-elastix", lambda n: RegisterByField(Elastix(n))),
    "convexadam": Engine(
        "convexAdam", "convexAdam", lambda n: RegisterByField(ConvexAdam(n)), dimensions=(3,)
    ),
}


def _imported(name: str, threads: int) -> ModuleType:
    """An engine's module, with its threads set and kept from muting the warnings of all others."""
    with _itk_threads(threads), warnings.catch_warnings():
        return importlib.import_module(name)


@contextmanager
def _itk_threads(count: int) -> Iterator[None]:
    """ITK reads its number of threads from the environment, whichever engine brings it."""
    before = os.environ.get(_ITK_THREADS)
    os.environ[_ITK_THREADS] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ITK_THREADS]
        else:
            os.environ[_ITK_THREADS] = before


def _lattice(image: Image) -> Image:
    """A volume at 2 mm over its own field of view; a picture as it is."""
    if image.spatial_dims != 3:
        return image.with_array(image.array.float(), colour=None)
    return _on(image, *rescaled_affine(image.affine, image.shape, _SPACING_MM))


def _on(image: Image, affine: Matrix, shape: tuple[int, ...]) -> Image:
    """A volume on a 2 mm lattice, blurred first along the axes whose voxels are finer."""
    sigma = _BLUR * _SPACING_MM * (image.spacing < _SPACING_MM) / image.spacing
    blurred = torch.from_numpy(ndimage.gaussian_filter(image.array[0].numpy(), sigma))
    voxels = torch.from_numpy(inverse_affine(image.affine) @ affine)
    array = resample(blurred[None, None], voxels, shape, fill=image.fill_value)[0]
    return image.with_array(array, affine=affine)


def _unmoved(fixed: Image) -> Registration:
    """What the headers say."""
    d = fixed.spatial_dims
    nothing = torch.zeros((d, *fixed.shape))
    return Registration(WorldMap(np.eye(d + 1), nothing, fixed.affine), Evidence("none"))


def _registration(ddf_mm: Tensor, fixed: Image, transform: TransformKind) -> Registration:
    """The whole map as a field on the lattice of the fixed image, with its folds counted."""
    if not bool(ddf_mm.isfinite().all()):
        raise ValueError("the engine gave a field that is not finite")
    ddf = ddf_from_ddf_mm(ddf_mm[None], torch.from_numpy(fixed.affine))
    folded = float(folded_fraction(ddf).mean())
    whole = WorldMap(np.eye(fixed.spatial_dims + 1), ddf_mm, fixed.affine)
    return Registration(whole, Evidence(transform, folded_fraction=folded))


def _frame(image: Image) -> tuple[tuple[float, ...], tuple[float, ...], Matrix]:
    """Origin, spacing and direction in LPS mm."""
    d, spacing = image.spatial_dims, image.spacing
    affine = lps_from_ras(d) @ image.affine
    return tuple(affine[:d, d].tolist()), tuple(spacing.tolist()), affine[:d, :d] / spacing


def _ddf_mm(vectors: np.ndarray) -> Tensor:
    """ITK's field ``(k, j, i, d)`` in LPS mm as ours, ``(d, i, j, k)`` in RAS mm."""
    d = vectors.shape[-1]
    signs = lps_from_ras(d).diagonal()[:d].astype(np.float32)
    ras = vectors.astype(np.float32) * signs
    return torch.from_numpy(np.ascontiguousarray(ras.transpose(*range(d, -1, -1))))


__all__ = [
    "ENGINES",
    "Ants",
    "ConvexAdam",
    "Elastix",
    "Engine",
    "Greedy",
    "RegisterBy",
    "RegisterByField",
]
