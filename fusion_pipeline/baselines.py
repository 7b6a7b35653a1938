"""The traditional ways, as the same callables as the stages: to be compared with, not to be used.

Harmonization: see `standards`. Wavelet fusion is missing: no library that this package needs
brings a wavelet transform.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.fuse import Fusion, scores_of_fusion
from fusion_pipeline.geometry import WorldMap, lps_from_ras, rescaled_affine, resize
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register import Evidence, Registration

FusionRule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FuseBy:
    """The fuse stage with a rule in place of the network.

    Args:
        rule: `average`, `maximum`, `pca` or `laplacian_pyramid`.
    """

    def __init__(self, rule: FusionRule) -> None:
        self._rule = rule

    def __call__(
        self,
        harmonized: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        displayed: Mapping[str, Image] | None = None,
    ) -> Fusion:
        """See `Fuse`; the harmonized images are fused, and judged by the displayed ones.

        So every method is judged by the same sources: the images as a reader displays them.
        """
        images = torch.cat([image.array for image in harmonized.values()])
        view = torch.cat([(fields_of_view[key] > 0.5).float() for key in harmonized])
        fused, weights = self._rule(images * view, view)
        fused = fused.clamp(0, 1)
        shown = harmonized if displayed is None else displayed
        sources = {
            key: shown[key].array[0] * one for key, one in zip(harmonized, view, strict=True)
        }
        reference = next(iter(harmonized.values()))
        return Fusion(
            Image(fused, reference.affine, key="fused"),
            weights,
            scores_of_fusion(fused, weights, sources),
        )


def average(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the sources that see a voxel.

    Args:
        images: ``(M, *S)`` in [0, 1], 0 outside the fields of view.
        view: ``(M, *S)`` 0/1.

    Returns:
        Fused ``(1, *S)`` and weights ``(M, *S)``.
    """
    return _weighted(images, view)


def maximum(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """The brightest source at each voxel; arguments and results as in `average`."""
    fused = images.amax(0, keepdim=True)
    return fused, _weighted(images, (images == fused) * view)[1]


def pca(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Weights from the first principal component of the voxels that all see.

    Arguments and results as in `average`.
    """
    inside = images[:, view.amin(0) > 0]
    share = torch.ones(images.shape[0])
    if inside.shape[1] > 1:
        _, vectors = torch.linalg.eigh(torch.cov(inside.double()).reshape([images.shape[0]] * 2))
        share = vectors[:, -1].abs().float()
    return _weighted(images, view * share.view(-1, *[1] * (images.ndim - 1)))


def laplacian_pyramid(images: Tensor, view: Tensor, levels: int = 4) -> tuple[Tensor, Tensor]:
    """The strongest detail at each voxel and level, the mean of the coarsest level.

    Arguments and results as in `average`; the weights tell which source gave the finest detail.

    References:
        Burt and Adelson, "The Laplacian pyramid as a compact image code", IEEE Trans Commun 1983.
    """
    rest, parts = images[:, None], []
    for _ in range(levels):
        if min(rest.shape[2:]) < 4:
            break
        coarse = _halved(rest)
        parts.append(rest - resize(coarse, rest.shape[2:]))
        rest = coarse
    fused = rest.mean(0, keepdim=True)
    for part in reversed(parts):
        best = part.abs().argmax(0, keepdim=True)
        fused = resize(fused, part.shape[2:]) + part.gather(0, best)
    finest = parts[0][:, 0] if parts else images
    strength = finest.abs().masked_fill(view <= 0, -1.0)
    chosen = (strength == strength.amax(0, keepdim=True)) * view
    return (fused[0] * view.amax(0)).clamp(0, 1), _weighted(images, chosen)[1]


def _halved(images: Tensor) -> Tensor:
    """Smoothed by the binomial kernel and resized to half the voxels along each axis."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    d = images.ndim - 2
    conv = F.conv3d if d == 3 else F.conv2d
    for axis in range(d):
        shape, pad = [1] * d, [0] * (2 * d)
        shape[axis] = 5
        pad[2 * (d - 1 - axis)] = pad[2 * (d - 1 - axis) + 1] = 2
        images = conv(F.pad(images, pad, mode="replicate"), kernel.view(1, 1, *shape))
    return resize(images, [(n + 1) // 2 for n in images.shape[2:]])


def _weighted(images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Shares to weights that sum to 1 where there are any, and the weighted mean."""
    weights = share / share.sum(0, keepdim=True).clamp_min(1e-12)
    return (weights * images).sum(0, keepdim=True), weights


class RegisterByMutualInformation:
    """The register stage by SimpleITK: Mattes mutual information, rigid, then a B-spline.

    Args:
        working_spacing: mm of the lattice on which the deformation is kept.
        grid_mm: distance of the B-spline's control points.
        iterations: of each optimization and level.
    """

    def __init__(
        self, working_spacing: float = 4.0, grid_mm: float = 40.0, iterations: int = 100
    ) -> None:
        self.working_spacing = working_spacing
        self.grid_mm = grid_mm
        self.iterations = iterations

    def __call__(
        self, fixed: Image, moving: Image, *, transform: TransformKind = "deformable"
    ) -> Registration:
        """Register.

        Args:
            fixed: the reference.
            moving: the image to bring to it.
            transform: ``none``, ``rigid`` or ``deformable`` (``affine`` is treated as rigid).

        Returns:
            The mapping: the rigid transform, and the B-spline as the deformation before it.
        """
        d = fixed.spatial_dims
        affine, shape = rescaled_affine(fixed.affine, fixed.shape, self.working_spacing)
        nothing = torch.zeros((d, *shape))
        if transform == "none":
            return Registration(WorldMap(np.eye(d + 1), nothing, affine), Evidence("none"))
        f, m = to_itk(fixed), to_itk(moving)
        rigid = self._rigid(f, m, d)
        matrix = _ras_matrix(rigid, d)
        if transform != "deformable":
            return Registration(WorldMap(matrix, nothing, affine), Evidence("rigid"))
        spline = self._spline(f, m, rigid, d)
        # ITK applies the moving initial transform last: rigid(spline(x)), as WorldMap has it
        lattice = to_itk(Image(torch.zeros((1, *shape)), affine, fixed.key))
        field = sitk.TransformToDisplacementField(
            spline,
            sitk.sitkVectorFloat64,
            lattice.GetSize(),
            lattice.GetOrigin(),
            lattice.GetSpacing(),
            lattice.GetDirection(),
        )
        array = np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)
        array = np.ascontiguousarray(array.transpose(0, *range(d, 0, -1)))
        signs = lps_from_ras(d).diagonal()[:d].reshape(d, *[1] * d)
        ddf_mm = torch.from_numpy((array * signs).astype(np.float32))
        return Registration(WorldMap(matrix, ddf_mm, affine), Evidence("deformable"))

    def _method(self, f: sitk.Image, shrink: Sequence[int]) -> sitk.ImageRegistrationMethod:
        """What both optimizations share; sampled on a fixed seed, so that runs agree."""
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(48)
        method.SetMetricSamplingStrategy(method.REGULAR)
        voxels = float(np.prod(f.GetSize()))
        method.SetMetricSamplingPercentage(min(1.0, 40_000 / voxels), 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetShrinkFactorsPerLevel(list(shrink))
        method.SetSmoothingSigmasPerLevel([float(s) for s in shrink])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetGlobalDefaultNumberOfThreads(1)
        return method

    def _rigid(self, f: sitk.Image, m: sitk.Image, d: int) -> sitk.Transform:
        """From the headers, coarse to fine."""
        start = sitk.Euler3DTransform() if d == 3 else sitk.Euler2DTransform()
        centre = f.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in f.GetSize()])
        start.SetCenter(centre)
        method = self._method(f, _shrinks(f, (4, 2)))
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=2.0, minStep=0.01, numberOfIterations=self.iterations
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(f, m)
        return start

    def _spline(
        self, f: sitk.Image, m: sitk.Image, rigid: sitk.Transform, d: int
    ) -> sitk.Transform:
        """A deformation before the rigid transform."""
        extent = np.array(f.GetSize()) * np.array(f.GetSpacing())
        mesh = [max(1, round(e / self.grid_mm)) for e in extent]
        spline = sitk.BSplineTransformInitializer(f, mesh, 3)
        method = self._method(f, _shrinks(f, (2,)))
        method.SetMovingInitialTransform(rigid)
        method.SetOptimizerAsLBFGSB(
            gradientConvergenceTolerance=1e-5, numberOfIterations=self.iterations
        )
        method.SetInitialTransform(spline, inPlace=True)
        method.Execute(f, m)
        return spline


def _shrinks(f: sitk.Image, factors: Sequence[int]) -> list[int]:
    """Factors that leave at least 8 voxels along each axis."""
    return [max(1, min(k, min(f.GetSize()) // 8)) for k in factors]


def to_itk(image: Image) -> sitk.Image:
    """A float image in LPS mm."""
    d = image.spatial_dims
    out = sitk.GetImageFromArray(np.ascontiguousarray(image.array[0].numpy().T.astype(np.float32)))
    affine = lps_from_ras(d) @ image.affine
    out.SetSpacing([float(s) for s in image.spacing])
    out.SetOrigin([float(v) for v in affine[:d, d]])
    out.SetDirection((affine[:d, :d] / image.spacing).ravel().tolist())
    return out


def _ras_matrix(transform: sitk.Transform, d: int) -> Matrix:
    """The matrix of a linear ITK transform, RAS mm."""
    origin = np.asarray(transform.TransformPoint([0.0] * d))
    columns = [np.asarray(transform.TransformPoint(list(e))) - origin for e in np.eye(d)]
    matrix = np.eye(d + 1)
    matrix[:d, :d] = np.stack(columns, axis=1)
    matrix[:d, d] = origin
    flip = lps_from_ras(d)
    return flip @ matrix @ flip
