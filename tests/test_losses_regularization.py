import numpy as np
import pytest
import torch
from monai.losses import BendingEnergyLoss, DiffusionLoss

from fusion_pipeline.geometry import identity_points
from fusion_pipeline.losses import bending_energy, diffusion_energy

CASES = [((12, 15), (1.0, 2.5)), ((9, 11, 13), (1.0, 1.5, 3.0))]


@pytest.fixture(params=CASES, ids=["2d", "3d"])
def case(request):
    return request.param


def _positions(shape, spacing):
    """(d, *S) mm, float64."""
    return (
        identity_points(shape, dtype=torch.float64) * torch.tensor(spacing, dtype=torch.float64)
    ).movedim(-1, 0)


def _noise(shape, seed=0, batch=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn((batch, len(shape), *shape), generator=g, dtype=torch.float64)


def test_affine_fields_do_not_bend(case):
    shape, spacing = case
    d = len(shape)
    matrix = _noise((d,) * d)[0].reshape(d, -1)[:, :d]
    field = torch.einsum("ab,b...->a...", matrix, _positions(shape, spacing)) + 7
    assert bending_energy(field[None], spacing).item() == pytest.approx(0, abs=1e-20)


def test_bending_of_a_quadratic_is_its_hessian_squared(case):
    """u_c = ½ xᵀ H_c x has the Hessian H_c everywhere, and differences are exact on it."""
    shape, spacing = case
    d = len(shape)
    hessian = _noise((d,) * d, seed=2)[0].reshape(d, -1)[:, : d * d].reshape(d, d, -1)[..., :d]
    hessian = hessian + hessian.transpose(1, 2)
    x = _positions(shape, spacing)
    field = 0.5 * torch.einsum("cij,i...,j...->c...", hessian, x, x)
    expected = hessian.square().sum().item()
    assert bending_energy(field[None], spacing).item() == pytest.approx(expected, rel=1e-9)


def test_diffusion_of_an_affine_field_is_its_matrix_squared(case):
    shape, spacing = case
    d = len(shape)
    matrix = _noise((d,) * d, seed=1)[0].reshape(d, -1)[:, :d]
    field = torch.einsum("ab,b...->a...", matrix, _positions(shape, spacing)) + 7
    expected = matrix.square().sum().item()
    assert diffusion_energy(field[None], spacing).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # inside MONAI
def test_quadratic_at_unit_spacing_equals_monai():
    """MONAI averages over the components."""
    shape = (9, 11, 13)
    x = _positions(shape, (1, 1, 1))
    field = torch.stack([x[0] * x[1], 0.3 * x[2] ** 2, x[0] ** 2 - x[1] * x[2]])[None]
    found = bending_energy(field, (1, 1, 1)).item()
    assert found == pytest.approx(3 * BendingEnergyLoss()(field).item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # inside MONAI
def test_linear_field_at_unit_spacing_equals_monai():
    x = _positions((9, 11, 13), (1, 1, 1))
    field = torch.stack([x[0] + 2 * x[1], 0.3 * x[2], x[0] - x[1]])[None]
    found = diffusion_energy(field, (1, 1, 1)).item()
    assert found == pytest.approx(3 * DiffusionLoss()(field).item(), rel=1e-6)


@pytest.mark.parametrize("energy", [bending_energy, diffusion_energy])
def test_does_not_depend_on_the_lattice(energy):
    """The same smooth field in mm, sampled twice as finely along one axis."""

    def at(shape, spacing):
        x = _positions(shape, spacing)
        return torch.stack([torch.sin(x[0] / 9) * torch.cos(x[1] / 7), torch.cos(x[1] / 8)])[None]

    coarse = energy(at((60, 50), (1.0, 1.2)), (1.0, 1.2)).item()
    fine = energy(at((60, 100), (1.0, 0.6)), (1.0, 0.6)).item()
    assert fine == pytest.approx(coarse, rel=0.05)


@pytest.mark.parametrize("energy", [bending_energy, diffusion_energy])
def test_a_batch_gives_one_value_each_and_a_rotation_of_the_vectors_changes_nothing(energy, case):
    shape, spacing = case
    field = _noise(shape, batch=2)
    values = energy(field, spacing)
    alone = torch.cat([energy(one[None], spacing) for one in field])
    torch.testing.assert_close(values, alone)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(shape),) * 2))
    turned = torch.einsum("ab,nb...->na...", torch.from_numpy(q), field)
    torch.testing.assert_close(energy(turned, spacing), values)


@pytest.mark.parametrize("energy", [bending_energy, diffusion_energy])
def test_gradient_passes_gradcheck(energy):
    field = _noise((4, 5, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: energy(u, (1.0, 2.0, 0.5)), field)


@pytest.mark.parametrize("energy", [bending_energy, diffusion_energy])
def test_errors_name_what_came(energy):
    with pytest.raises(ValueError, match=r"one spacing per axis of field \(1, 2, 5, 6\), got \[1"):
        energy(_noise((5, 6)), [1.0])
    with pytest.raises(ValueError, match=r"voxels along each axis, got field \(1, 2, 5, 1\)"):
        energy(_noise((5, 1)), [1.0, 1.0])


@pytest.mark.parametrize("energy", [bending_energy, diffusion_energy])
def test_half_precision_fields_are_measured_in_float32(energy, case):
    shape, spacing = case
    field = _noise(shape).to(torch.bfloat16)
    found = energy(field, spacing)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, energy(field.float(), spacing))
