"""The numbers that the register stage was tuned by: one frozen table per step.

Each line gives unit, meaning and source. "Training" means the patients and painted heads that
``benchmarks/registration.py --patients train`` runs. A number without a source was set by hand; no
fit of it is recorded. Decisions are those in ``docs/decisions``.
"""

from dataclasses import dataclass

from fusion_pipeline.register.criteria import Criterion
from fusion_pipeline.register.smoothness import Smoothness


@dataclass(frozen=True)
class LatticeSettings:
    """Of the lattice that a pair is registered on."""

    finest_mm: float = 2.0  # mm
    coarsest_mm: float = 4.0  # mm
    most_voxels: int = 1_200_000  # voxels
    smallest_side: int = 17  # voxels along an axis
    blur: float = 0.35  # voxels of the lattice; half of what keeps all aliasing out, for edges
    rim_mm: float = 10.0  # mm around the body where an image counts as data
    bone_hu: float = 250.0  # HU
    bone_blur_mm: float = 5.0  # mm around bone that is looked at as well


@dataclass(frozen=True)
class ViewSettings:
    """Of an image as the pose search reads it."""

    emission_blur_mm: float = 2.5  # mm, at least: voxels of emission images are noisier
    quantiles: int = 33  # knots of the ranks
    air_range: float = 0.15  # share of the values' range
    most_voxels: int = 4_000_000  # voxels; whole bodies at 2 mm took 300 bytes a voxel, 10 GB


@dataclass(frozen=True)
class SearchLevel:
    """One level of the pose search after the first.

    Attributes:
        size: voxel size, times the spacing of the search.
        blur: standard deviation, times the spacing of the search.
        points: points of the source.
        rate: first step, mm.
        kept: poses that go on.
    """

    size: float
    blur: float
    points: int
    rate: float
    kept: int


@dataclass(frozen=True)
class PoseSettings:
    """Of the pose search and its score (decision 0010)."""

    bins: int = 24  # of each image in the joint histogram
    independent_bins: float = 0.6  # share of the bins, after the histogram is smoothed
    margin_mm: float = 10.0  # mm: points lie in the tissue and so far around it
    air_on_tissue: float = 0.1  # weight of a point where one image may show padding
    mm_per_radian: float = 50.0  # mm; makes a step of the optimiser alike for angles and shifts
    spacing_mm: float = 5.0  # mm: what sizes and blurs of the levels count in
    room_mm: float = 20.0  # mm around its points that a target is kept, on the finer levels
    strain_penalty_2d: float = 1.0  # nats per squared strain
    strain_penalty_3d: float = 10.0  # nats; more than in 2D, strain takes up what does not fit
    structure: float = 6.0  # nats per unit of the descriptors' distance
    structure_blind: float = 10.0  # the same of descriptors that are blind to noise
    structure_emission_2d: float = 2.0  # the same in a slice with a PET or SPECT (decision 0032)
    noise_floor: float = 0.1  # share of the mean variance, of those descriptors
    distance_penalty: float = 0.003  # nats per mm (or 1.1°) from the initial alignment
    prior_nats: float = 0.06  # nats λ of the prior λ p² / (p² + s²) (Geman and McClure)
    prior_nats_emission: float = 0.3  # the same beside PET or SPECT: one scanner takes the CT too
    # the same in a slice: no scanner wrote where pictures lie, and its score is lower (0032)
    prior_nats_emission_2d: float = 0.1
    prior_mm: float = 6.0  # mm, s of the prior
    coarse_size: float = 1.0  # voxel size of the first level, times the spacing of the search
    coarse_blur: float = 0.8  # its blur, times the spacing of the search
    coarse_points: int = 6000  # points of the first level
    climbing: int = 24  # poses that climb first
    climbing_on: int = 9  # poses that climb on the finer levels
    distinct_mm: float = 8.0  # mm (or 9°) between poses that climb
    start_turn_deg: float = 35.0  # degrees, largest of the first poses
    start_shift_mm: float = 45.0  # mm, largest of the first poses
    middle: SearchLevel = SearchLevel(size=0.6, blur=0.4, points=8000, rate=1.0, kept=2)
    fine: SearchLevel = SearchLevel(size=0.4, blur=0.25, points=12000, rate=0.3, kept=1)


@dataclass(frozen=True)
class PolishSettings:
    """Of the last placement of a rigid result (decision 0015)."""

    spacing_mm: float = 2.0  # mm
    blur_mm: float = 0.6  # mm; little blur places sharp images more exactly, from near by
    points: int = 20_000  # points of the source
    points_emission: int = 50_000  # the same beside an emission image
    structure: float = 6.0  # nats per unit of the descriptors' distance
    structure_emission: float = 20.0  # beside emission images structure says more than information
    farthest_mm: float = 2.0  # mm; a polish that goes further has left the pose that was found


@dataclass(frozen=True)
class RefinementSettings:
    """Of the instance optimization."""

    patience: int = 8  # steps without a fall of the loss
    least_fall: float = 1e-3  # share of the loss
    rate: float = 0.5  # voxels of the whole lattice
    second_rate: float = 0.4  # share of the rate on the second level; twice that without the first
    least_nodes: int = 3  # along an axis, so that it can bend
    bins: int = 24  # of each image in the joint histogram
    squarings: int = 4  # of the velocity that is compared; within 0.05 of a node of the field's 6
    histogram_stride: int = 3  # every third voxel of the lattice enters the histogram


@dataclass(frozen=True)
class DeformationSettings:
    """Of the deformation: how soft it may be, and what it has to show (decisions 0012 to 0014)."""

    stiff: Smoothness = Smoothness(diffusion=80.0)  # noqa: RUF009 - frozen; first refinement
    soft: Smoothness = Smoothness(diffusion=5.0, bending=10.0)  # noqa: RUF009 - from the stiff one
    # last, between different people only, whose tissues differ in shape and not in position alone
    softest: Smoothness = Smoothness(diffusion=2.0, bending=2.0, nodes=2)  # noqa: RUF009
    # weight of a nat of information in a soft field beside a CT or emission image, whose edges lie
    # otherwise than an MR's; two MRs are better without (training; decision 0014)
    information: float = 3.0
    taper_mm: float = 20.0  # mm over which the network's field fades where an image ends
    general: Criterion = Criterion(0.03, 0.02)  # noqa: RUF009 - shares; pairs without emission
    # emission images carry little structure, beside a CT least: small gains were noise (training)
    pet_ct: Criterion = Criterion(0.10, 0.05)  # noqa: RUF009 - shares
    pet_mr: Criterion = Criterion(0.015, 0.05)  # noqa: RUF009 - shares
    softer: Criterion = Criterion(0.0, 0.02)  # noqa: RUF009 - a soft field after an accepted stiff
    on_trial: Criterion = Criterion(0.035, 0.08)  # noqa: RUF009 - after a stiff one that was not
    # what the stiff field must show for a trial, whatever NMI does: painted training heads moved
    # rigidly: 0.3 to 1.7 % (CT-T1: 0.7 at most), in mild deformations 1.9 % and more
    trial: Criterion = Criterion(0.01, -1.0)  # noqa: RUF009 - shares


@dataclass(frozen=True)
class DecisionSettings:
    """Of the choice between poses, and of the doubts about a result."""

    # mm, the network's estimate up to which images are clear: no gain of a pose is too small then,
    # a pair with a CT may bend softly. Painted training heads 0.9 to 1.3, limbs 1.45 and more
    # (decision 0021)
    clear_mm: float = 1.4
    pose_gain_nats: float = 0.03  # nats that a pose must gain beside its distance penalty
    small_gain: float = 0.02  # share of the score that is enough for a small move
    small_move_mm: float = 2.0  # mm, mean move under which a move is small
    # times the rigid score; smaller gains came with worse poses as often as not (training)
    affine_gain: float = 1.15
    # a pose so many times and nats above the initial alignment is not tried against it: on
    # training patients the initial alignment never won beyond 1.96 times and 0.55 nats
    undisputed: float = 2.2
    undisputed_nats: float = 0.6
    # times the estimated error falls by a pose, beyond which it is not tried: of 18 such moves of
    # training patients (of 54) the initial alignment won one, in which both ended alike
    estimate_falls: float = 2.0
    estimate_falls_clear: float = 1.25  # the same where the pose is clear: heads (decision 0021)
    trial_spacing: float = 1.5  # times the working spacing, of the trial: a third of the time
    # of the fields in the trial; nodes at 3 voxels of the usual lattice in place of 4
    trial_smoothness: Smoothness = Smoothness(diffusion=80.0, nodes=2)  # noqa: RUF009
    strain_weight: float = 8.0  # of the self-similarity distance, per mean squared strain
    # logarithm of what is left unexplained: a pose at the usual error must gain as much, one twice
    # as far anything, one three times as far may lose as much (20 training patients; 0017)
    near_gain: float = 0.05
    initial_error_mm: float = 15.0  # mm, as far as the initial alignment is often wrong
    disagreement: float = 0.1  # weight of the logarithm of the estimated error beside it
    least_overlap: float = 0.1  # share of the smaller body that both images must show
    # mm estimated; of 55 training results 17 are beyond, 14 of them more than 5 mm off
    doubtful_mm: float = 4.0
    least_voxels: int = 100  # voxels; under so few no similarity is measured
    bins: int = 32  # of each image in the NMI


@dataclass(frozen=True)
class StandingSettings:
    """Of when a move is earned against "they are aligned already" (decision 0032)."""

    # share by which NMI - 1 must rise in a slice. Slices of painted training heads whose planes lie
    # up to 2.5 mm and 3° apart: 26 % at most where nothing is to be moved, 36 % and more after
    # known moves of 2 px and more (``python benchmarks/standing.py``)
    slice_gain: float = 0.3
    # the same with a PET or SPECT, whose edges are soft: 6 % at most where nothing is to be moved,
    # 10 % and more after known moves whose pose is right (decision 0032)
    slice_gain_emission: float = 0.1
    # mm (pictures: px), mean displacement: of PETs of training patients as scanned with their CT
    # 1 to 3 were found (``python benchmarks/sarcoma_cohort.py``); nearer is taken for aligned
    resolved_mm: float = 3.0
    # the same, the longest move of a slice's PET or SPECT: of training patients' PET slices those
    # that ended nearer had moved by up to 15.0, and a move of 22.8 was wrong
    # (``python benchmarks/standing.py --limbs``; docs/history/registration.md)
    slice_reach_emission: float = 16.0
    # nats that the score of such a move must rise by per mm (px): of the same slices 0.013 and more
    # where they ended nearer, 0.009 and 0.011 where they went 10 px and more astray
    slice_nats_emission: float = 0.012


@dataclass(frozen=True)
class RiskSettings:
    """Of the probability that a volume's error exceeds 5 mm.

    Fitted to 150 results of 38 training patients and generated bodies, to be fitted anew with the
    network: ``python benchmarks/doubt.py --rows docs/history/doubt_rows.jsonl``
    (docs/history/doubt.md).
    """

    offset: float = -4.017  # logit
    estimate: float = 1.056  # logit per e-fold of the network's estimate in mm
    fall: float = -1.525  # logit per e-fold of the score's fall in nats
    stays: float = -2.485  # logit, where the search left the image as it came
    limit: float = 0.67  # probability; 15 % of the training results under 5 mm lie above it,
    # each patient judged by a fit to the others


LATTICE = LatticeSettings()
VIEW = ViewSettings()
POSE = PoseSettings()
POLISH = PolishSettings()
REFINEMENT = RefinementSettings()
DEFORMATION = DeformationSettings()
DECISION = DecisionSettings()
STANDING = StandingSettings()
RISK = RiskSettings()
