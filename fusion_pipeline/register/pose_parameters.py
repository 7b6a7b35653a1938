"""Poses as vectors: turns, shifts and strains, all in mm-like units, about a centre."""

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.settings import POSE


def pose_parameters(d: int) -> tuple[int, int]:
    """How many numbers turn and strain: 1 and 3 in 2D, 3 and 6 in 3D; d more shift."""
    return d * (d - 1) // 2, d * (d + 1) // 2


def matrices_of(poses: Tensor) -> Tensor:
    """Parameters (turns, shifts, strains; all in mm-like units) to ``(P, d, d + 1)``."""
    d = 2 if poses.shape[1] == 6 else 3
    turns, _ = pose_parameters(d)
    angles = poses[:, :turns] / POSE.mm_per_radian
    strain = poses[:, turns + d :] / POSE.mm_per_radian
    rows, columns = torch.triu_indices(d, d, 1)
    skew = poses.new_zeros(len(poses), d, d)
    if d == 2:
        skew[:, 1, 0], skew[:, 0, 1] = angles[:, 0], -angles[:, 0]
    else:
        x, y, z = angles.unbind(1)
        for (a, b), angle in (((2, 1), x), ((0, 2), y), ((1, 0), z)):
            skew[:, a, b], skew[:, b, a] = angle, -angle
    symmetric = torch.diag_embed(strain[:, :d])
    symmetric[:, rows, columns] = symmetric[:, columns, rows] = strain[:, d:]
    linear = torch.linalg.matrix_exp(skew) @ torch.linalg.matrix_exp(symmetric)
    return torch.cat([linear, poses[:, turns : turns + d, None]], 2)


def recentred(poses: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The same maps with another centre: only the shift changes."""
    d = len(old)
    turns, _ = pose_parameters(d)
    linear = matrices_of(poses)[:, :, :d]
    out = poses.clone()
    out[:, turns : turns + d] += (linear @ (new - old)) - (new - old)
    return out


def parameters_of(matrix: Matrix, centre: Tensor) -> Tensor:
    """The parameters ``(1, n)`` of a rigid 3D map: the inverse of `world_matrix`."""
    c = centre.double().numpy()
    turn = Rotation.from_matrix(matrix[:3, :3]).as_rotvec() * POSE.mm_per_radian
    shift = apply_affine(matrix, c) - c
    strains = np.zeros(pose_parameters(3)[1])
    return torch.from_numpy(np.concatenate([turn, shift, strains])[None]).float()


def nearest_parameters(matrix: Matrix, centre: Tensor, *, strain: bool = False) -> Tensor:
    """The parameters ``(1, n)`` of any map that does not mirror, in 2D or 3D.

    Args:
        matrix: ``(d + 1, d + 1)`` world to world.
        centre: ``(d,)`` mm, about which it turns.
        strain: with stretch and shear; else those of the rigid map next to it.
    """
    d, c = len(centre), centre.double().numpy()
    u, lengths, vt = np.linalg.svd(matrix[:d, :d])
    rotation = u @ vt
    if d == 2:
        turn = np.array([math.atan2(rotation[1, 0], rotation[0, 0])])
    else:
        turn = Rotation.from_matrix(rotation).as_rotvec()
    stretch = vt.T @ np.diag(np.log(lengths)) @ vt * strain
    rows, columns = np.triu_indices(d, 1)
    strains = np.concatenate([stretch.diagonal(), stretch[rows, columns]])
    shift = apply_affine(matrix, c) - c
    scaled = POSE.mm_per_radian * turn, shift, POSE.mm_per_radian * strains
    return torch.from_numpy(np.concatenate(scaled)[None]).float()


def world_matrix(pose: Tensor, centre: Tensor) -> Matrix:
    """One pose as a homogeneous world matrix in float64."""
    m = matrices_of(pose.double())[0].numpy()
    d = len(centre)
    c = centre.double().numpy()
    out = np.eye(d + 1)
    out[:d, :d] = m[:, :d]
    out[:d, d] = m[:, d] + c - m[:, :d] @ c
    return out
