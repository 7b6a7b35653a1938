"""Harmonization beside the classical standards: between protocols, what is kept, agreement.

    python benchmarks/harmonization.py --weights bundles/multimodal_fusion/models/model.pt \
        --out docs/figures

--ablation adds our mapping without its learned parts: the standard alone, with the learned curve,
with the learned bias field.

CT, T1 MR and PET of the sarcoma patients on the CT's grid. Each image is mapped twice: as it is,
and as another protocol shows it (`synthesis.protocols`), with a body mask of its own.

Rows, per modality (`harmonization_measures`):
 residual      RMS difference of the two over the body, in deviations of the output
 smoothed      the same after 2 mm of smoothing
 oracle        what the best increasing curve and smooth bias leave of the pair
 separation    of neighbouring tissue classes (Otsu; CT: −200, −30, 180 HU), over the input's
 rank          Spearman's correlation with the input in blocks of 24 voxels; MR: a known smooth
               bias of the input does not count
 direction     cosine of the gradients with the input's
 tumour        contrast-to-noise of the tumour's contour in PET, over the input's
 correlation, distance   of two modalities over their common body
 idempotence   RMS change by mapping the result again
 inverse       largest error of the way back, over the width of the values above black
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from harmonization_measures import (
    contrast_to_noise,
    gradient_direction,
    local_rank_correlation,
    oracle_residual,
    residual,
    separation,
    shared_tissue,
    smoothed,
    tissue_classes,
)
from sarcoma_grids import EVALUATION, KEYS, Patient, patient_ids, patients
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.intensity_map import IntensityMap
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.standards import Standard, classical_standards
from fusion_pipeline.synthesis.protocols import other_protocol
from fusion_pipeline.transforms import body_mask

# Training patients that nobody looks at while tuning.
ASIDE = ("sts002", "sts014", "sts017", "sts025")
_UNITS = {"ct": "HU", "mr": "a.u.", "pet": "SUV"}
_MEDIAN, _POWER_LEVEL = 50.0, 0.45


def power_curve(image: Image, view: Tensor, body: Tensor) -> Tensor:
    """Percentiles 1 and 99 of the body to 0 and 1, the median to 0.45."""
    low, middle, high = np.percentile(image.array[body].numpy(), (1, _MEDIAN, 99))
    share = (middle - low) / max(high - low, 1e-9)
    exponent = np.log(_POWER_LEVEL) / np.log(np.clip(share, 0.02, 0.98))
    unit = ((image.array - low) / max(high - low, 1e-9)).clamp(0, 1)
    return (unit ** float(exponent)) * view


class Ours:
    """The harmonization network as a standard.

    Args:
        network: with its weights.
        curve: use the learned curve.
        bias: use the learned part of the bias field.
    """

    def __init__(self, network: HarmonizationNet, *, curve: bool = True, bias: bool = True) -> None:
        self.network = network.eval()
        with torch.no_grad():
            for head, used in ((network.curve_head, curve), (network.bias_head, bias)):
                if not used:
                    head.weight.zero_()
                    head.bias.zero_()

    def __call__(self, image: Image, view: Tensor, body: Tensor) -> Tensor:
        """Map."""
        return self.mapping(image, view, body)(image.array[None])[0] * view

    @torch.no_grad()
    def mapping(self, image: Image, view: Tensor, body: Tensor) -> IntensityMap:
        """How it is mapped."""
        masks = (mask[None].float() for mask in (view, body))
        return self.network.mapping(image.array[None], kind_of(image.modality), *masks)


def methods(
    training: list[Patient], weights: Path | None, *, ablation: bool
) -> dict[str, Standard]:
    """The classical standards, learned on training patients where they learn, and ours."""
    examples = [
        (_image(p.original[m][None], key, p.affine), p.body[m][None] > 0)
        for p in training
        for m, key in enumerate(KEYS)
    ]
    out = classical_standards(examples)
    out["power curve"] = power_curve
    out["standard"] = Ours(HarmonizationNet())
    if weights is not None:
        if ablation:
            out["standard, curve"] = Ours(_loaded(weights), bias=False)
            out["standard, bias"] = Ours(_loaded(weights), curve=False)
        out["network"] = Ours(_loaded(weights))
    return out


def _loaded(weights: Path) -> HarmonizationNet:
    """The harmonization network of a bundle's ``model.pt``."""
    state = torch.load(weights, weights_only=True)
    own = {k.removeprefix("harmonization."): v for k, v in state.items() if k.startswith("harm")}
    network = HarmonizationNet()
    network.load_state_dict(own)
    return network


def _image(array: Tensor, key: str, affine: np.ndarray) -> Image:
    """``(1, *S)`` as an image in the unit of its modality."""
    return Image(array, affine, key, units=_UNITS[key])


@dataclass(frozen=True)
class Pair:
    """An image and the same anatomy under another protocol.

    Attributes:
        key: of the image.
        image: as it is.
        other: under the other protocol.
        view: ``(1, *S)`` bool, field of view.
        body: ``(1, *S)`` bool of ``image``.
        other_body: ``(1, *S)`` bool of ``other``.
        classes: ``(*S)`` tissue classes of ``image``.
        tumour: ``(*S)`` bool.
        oracle: residual that no curve and smooth bias can undo.
    """

    key: str
    image: Image
    other: Image
    view: Tensor
    body: Tensor
    other_body: Tensor
    classes: np.ndarray
    tumour: np.ndarray
    oracle: float


def pairs_of(patient: Patient, seed: int, tumour: np.ndarray) -> list[Pair]:
    """The three images of a patient, each under two protocols."""
    out = []
    for m, key in enumerate(KEYS):
        image = _image(patient.original[m][None], key, patient.affine)
        view, body = (t[m][None] > 0 for t in (patient.valid, patient.body))
        generator = torch.Generator().manual_seed(10 * seed + m)
        spacing = patient.spacing.tolist()
        whole = image.array[None], kind_of(key), body[None].float(), generator
        other = image.with_array(other_protocol(*whole, spacing=spacing)[0])
        again = body_mask(other.array, spacing, key, units=image.units)
        inside, source = body[0].numpy(), image.array[0].numpy()
        out.append(
            Pair(
                *(key, image, other, view, body, again & view),
                classes=tissue_classes(source, inside, key),
                tumour=tumour & inside,
                oracle=oracle_residual(other.array[0].numpy(), source, inside),
            )
        )
    return out


def judge(method: Standard, pairs: list[Pair]) -> dict[str, float]:
    """All numbers of one method on one patient."""
    out: dict[str, float] = {}
    mapped = []
    for pair in pairs:
        first = method(pair.image, pair.view, pair.body)
        second = method(pair.other, pair.view, pair.other_body)
        array, inside = first[0].numpy(), pair.body[0].numpy()
        mapped.append((array, inside))
        measured = {"residual": residual(array, second[0].numpy(), inside)}
        smooth = [smoothed(t[0].numpy(), inside, pair.image.spacing) for t in (first, second)]
        measured["smoothed"] = residual(*smooth, inside)
        measured |= {"oracle": pair.oracle} | kept(array, pair)
        if isinstance(method, Ours):
            measured |= way_back(method, pair, first)
        out |= {f"{name} {pair.key}": value for name, value in measured.items()}
    for (m, a), (n, b) in combinations(enumerate(KEYS), 2):
        both = mapped[m][1] & mapped[n][1]
        for name, value in shared_tissue(mapped[m][0], mapped[n][0], both).items():
            out[f"{name} {a}–{b}"] = value
    return out


def kept(output: np.ndarray, pair: Pair) -> dict[str, float]:
    """What an image kept of its input."""
    source, body = pair.image.array[0].numpy(), pair.body[0].numpy()
    out = {
        "separation": separation(output, pair.classes) / separation(source, pair.classes),
        "rank": local_rank_correlation(output, source, body),
        "direction": gradient_direction(output, source, body),
    }
    if pair.key == "pet" and pair.tumour.sum() > 50:
        before = contrast_to_noise(source, pair.tumour, body)
        out["tumour"] = contrast_to_noise(output, pair.tumour, body) / before
    return out


def way_back(method: Ours, pair: Pair, first: Tensor) -> dict[str, float]:
    """RMS change by mapping again; largest error of the inverse over the width of the values."""
    again = method(pair.image.with_array(first), pair.view, pair.body)
    mapping = method.mapping(pair.image, pair.view, pair.body)
    array = pair.image.array[None]
    expected = array.clamp_min(float(mapping.black))[0][pair.body]
    error = (mapping.inverse(mapping(array))[0][pair.body] - expected).abs().max()
    return {
        "idempotence": float((again - first)[pair.body].square().mean().sqrt()),
        "inverse": float(error / (expected.max() - expected.min())),
    }


def seconds_of(method: Standard) -> float:
    """CPU seconds for 128³."""
    image = _image(torch.rand(1, 128, 128, 128) * 100, "mr", np.eye(4))
    whole = torch.ones_like(image.array) > 0
    begun = time.process_time()
    method(image, whole, whole)
    return time.process_time() - begun


def table(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over the patients, as Markdown."""
    lines = [f"| | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    measures = dict.fromkeys(k for results in rows.values() for r in results for k in r)
    for measure in measures:
        cells = []
        for results in rows.values():
            values = np.array([r[measure] for r in results if measure in r])
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}" if len(values) else "–")
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Ours minus each classical method, paired, with 95 % intervals (bootstrap over patients)."""
    own = rows["network" if "network" in rows else "standard"]
    draw = np.random.default_rng(0)
    lines = ["| residual, ours minus | " + " | ".join(KEYS) + " |", "|---" * 4 + "|"]
    for name, results in rows.items():
        if results is own:
            continue
        cells = []
        for key in KEYS:
            gap = np.array(
                [
                    a[f"residual {key}"] - b[f"residual {key}"]
                    for a, b in zip(own, results, strict=True)
                ]
            )
            means = draw.choice(gap, (4000, len(gap))).mean(1)
            low, high = np.percentile(means, (2.5, 97.5))
            cells.append(f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="model.pt of the 3D bundle")
    parser.add_argument("--ablation", action="store_true", help="ours without its learned parts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    parser.add_argument(
        "--patients", choices=("evaluation", "aside", "training"), default="evaluation"
    )
    parser.add_argument("--most", type=int, default=100, help="patients at most")
    parser.add_argument("--examples", type=int, default=100, help="patients to learn from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, cache = arguments.open_data, arguments.cache
    names = [n for n in patient_ids(data, evaluation=False) if n not in ASIDE]
    learned_from = names[: arguments.examples]
    training = patients(data, cache, evaluation=False, ids=learned_from)
    ways = methods(training, arguments.weights, ablation=arguments.ablation)
    del training
    groups = {"aside": ASIDE, "training": names, "evaluation": EVALUATION}
    on_evaluation = arguments.patients == "evaluation"
    ids = groups[arguments.patients][: arguments.most]
    chosen = patients(data, cache, evaluation=on_evaluation, ids=ids)
    entries = json.loads((arguments.open_data / "datalist.json").read_text())["ct_mr_pet_3d"]
    contours = {e["id"]: arguments.open_data / e["gtv_ct"] for e in entries}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for seed, patient in enumerate(chosen):
        tumour = np.asarray(nib.load(contours[patient.id]).dataobj) > 0
        pairs = pairs_of(patient, seed, tumour)
        for name, way in ways.items():
            rows[name].append(judge(way, pairs))
        print(patient.id, flush=True)
    seconds = {name: seconds_of(way) for name, way in ways.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"patients": [p.id for p in chosen], "rows": rows, "seconds": seconds}
    (arguments.out / "harmonization.json").write_text(json.dumps(record, indent=1) + "\n")
    cost = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    text = (
        f"n = {len(chosen)} patients ({arguments.patients}), mean ± standard deviation\n\n"
        f"{table(rows)}\n{differences(rows)}\nCPU seconds for 128³: {cost}\n"
    )
    (arguments.out / "harmonization.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
