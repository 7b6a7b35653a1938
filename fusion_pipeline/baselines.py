"""The traditional ways, as the same callables as the stages: to be compared with, not to be used.

Wavelet fusion is missing: no library that this package needs brings a wavelet transform.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.geometry import WorldMap, lps_from_ras, rescaled_affine, resize
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.transforms import NormalizeModality, body_mask

FusionRule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_LEVELS = 1024


def z_score(image: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 inside a mask, then [−4, 4] to [0, 1] by a straight line.

    Args:
        image: any shape.
        mask: of that shape, bool.

    >>> z_score(torch.tensor([0.0, 2.0]), torch.tensor([True, True])).tolist()
    [0.375, 0.625]
    """
    inside = image[mask]
    scored = (image - inside.mean()) / inside.std(correction=0).clamp_min(1e-6)
    return ((scored + 4) / 8).clamp(0, 1)


def match_histogram(image: Tensor, template: Tensor, mask: Tensor, template_mask: Tensor) -> Tensor:
    """Map each quantile of an image to the same quantile of a template.

    Args:
        image: any shape.
        template: any shape.
        mask: of the image's shape, bool: what its histogram is made of.
        template_mask: of the template's shape, bool.

    Returns:
        The image's shape; what lies beyond the mask's values goes on with the ends' values.
    """
    ranks = np.linspace(0, 1, _LEVELS)
    source = np.quantile(image[mask].numpy(), ranks)
    target = np.quantile(template[template_mask].numpy(), ranks)
    # equal quantiles (a flat background) are one level, whose target is their mean
    levels, first = np.unique(source, return_inverse=True)
    heights = np.bincount(first, target) / np.bincount(first)
    mapped = np.interp(image.numpy().ravel(), levels, heights).reshape(image.shape)
    return torch.from_numpy(mapped).to(image.dtype)


class Nyul:
    """Piecewise linear intensity standardization by percentiles (landmarks).

    Args:
        percentiles: of the landmarks, rising.

    References:
        Nyúl, Udupa and Zhang, "New variants of a method of MRI scale standardization", IEEE TMI
        2000.
    """

    def __init__(
        self, percentiles: Sequence[float] = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
    ) -> None:
        self.percentiles = tuple(percentiles)
        self.standard: np.ndarray | None = None

    def fit(self, images: Sequence[tuple[Tensor, Tensor]]) -> "Nyul":
        """Learn the standard scale: the mean place of each landmark, the outer ones at 0 and 1.

        Args:
            images: pairs of an image and its mask (bool), of one modality.
        """
        found = [self._landmarks(image, mask) for image, mask in images]
        self.standard = np.mean([(m - m[0]) / max(m[-1] - m[0], 1e-6) for m in found], axis=0)
        return self

    def __call__(self, image: Tensor, mask: Tensor) -> Tensor:
        """Bring an image to the standard scale; beyond the outer landmarks the end pieces go on.

        Args:
            image: any shape.
            mask: of that shape, bool.

        Raises:
            ValueError: `fit` has not been called.
        """
        if self.standard is None:
            raise ValueError("expected a standard scale: call fit(images) first")
        marks, standard = self._landmarks(image, mask), self.standard
        values = image.numpy().astype(np.float64)
        place = np.clip(np.searchsorted(marks, values) - 1, 0, len(marks) - 2)
        width = np.maximum(np.diff(marks), 1e-6)
        slope = np.diff(standard) / width
        mapped = standard[place] + slope[place] * (values - marks[place])
        return torch.from_numpy(mapped).to(image.dtype)

    def _landmarks(self, image: Tensor, mask: Tensor) -> np.ndarray:
        return np.percentile(image[mask].numpy(), self.percentiles)


class HarmonizeByZScore:
    """The harmonize stage without a network: z-score of each modality's usual scale."""

    def __call__(
        self, images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Harmonization:
        """See `Harmonize`; no scores."""
        out = {}
        for key, image in images.items():
            view = fields_of_view[key] > 0.5
            kind = {"modality": image.modality, "units": image.units}
            body = body_mask(image.array, image.spacing.tolist(), **kind) & view
            normalized, _ = NormalizeModality().scaled(image.array, body, **kind)
            out[key] = image.with_array(((normalized + 4) / 8) * view, units="a.u.")
        return Harmonization(images=out, scores={})


class FuseBy:
    """The fuse stage with a rule in place of the network.

    Args:
        rule: `average`, `maximum`, `pca` or `laplacian_pyramid`.
    """

    def __init__(self, rule: FusionRule) -> None:
        self._rule = rule

    def __call__(
        self, harmonized: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
    ) -> Fusion:
        """See `Fuse`; no scores."""
        images = torch.cat([image.array for image in harmonized.values()])
        view = torch.cat([(fields_of_view[key] > 0.5).float() for key in harmonized])
        fused, weights = self._rule(images * view, view)
        reference = next(iter(harmonized.values()))
        return Fusion(Image(fused.clamp(0, 1), reference.affine, key="fused"), weights, {})


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
