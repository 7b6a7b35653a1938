"""SimpleITK's mutual information as the register stage."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.geometry import WorldMap, lps_from_ras, rescaled_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register import Evidence, Registration


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


__all__ = ["RegisterByMutualInformation", "to_itk"]
