"""Whether one grey image can tell the class: the average and the maximum of ours' two channels.

    python benchmarks/study_fused.py --output out/study

Reads what ``benchmarks/study.py`` left in ``out/study/generated``, and trains the study's
classifier on both, under the same folds. Writes ``diagnosis/one_image.json`` there, for the page.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor

from fusion_pipeline.data import read_datalist, read_image, written_whole
from fusion_pipeline.evaluation.classifier import Recipe, classify_by_folds
from fusion_pipeline.evaluation.diagnosis import Prediction, diagnose
from fusion_pipeline.evaluation.rows import read_csv
from fusion_pipeline.pipeline.summary import read_report
from fusion_pipeline.training.folds import fold_numbers

ONE_IMAGE = "one_image.json"
_SIDE = 64  # pixels, as the study's classifiers read 2D images
_RULES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "average": lambda channels: channels.mean(1, keepdim=True),
    "maximum": lambda channels: channels.amax(1, keepdim=True),
}


def channels_of(folder: Path) -> Tensor:
    """A case's harmonized images, ``(2, 64, 64)`` in 0..1."""
    names = read_report(folder)["files"]["harmonized"]
    pool = Pool[Pool.ADAPTIVEAVG, 2]((_SIDE, _SIDE))
    images = [read_image(str(folder / name), key)[0] for key, name in names.items()]
    small = [pool(one.in_canonical_axes().array[None].float())[0] for one in images]
    return torch.cat(small) / 255.0


def predictions_of(output: Path, folds: int, steps: int) -> dict[str, list[Prediction]]:
    """Per rule what the classifiers say, on the cases that the study's diagnosis has."""
    cases = {case.id: case for case in read_datalist(output / "cohort" / "cases.json")}
    made = read_csv(output / "generated" / "diagnosis" / "predictions.csv", Prediction)
    chosen = [one for one in made if one.input == made[0].input]
    numbers = fold_numbers(list(cases.values()), folds)
    channels = torch.stack(
        [channels_of(output / "generated" / "cases" / "ours" / one.case) for one in chosen]
    )
    target = torch.tensor([one.target for one in chosen])
    of_case = [numbers[one.case] for one in chosen]
    predictions = {}
    for name, rule in _RULES.items():
        found = classify_by_folds(rule(channels), target, of_case, Recipe(steps=steps))
        predictions[name] = [
            Prediction(one.case, one.patient, fold, name, one.target, float(p))
            for one, fold, p in zip(chosen, of_case, found, strict=True)
        ]
    return predictions


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args(arguments)
    predictions = predictions_of(args.output, args.folds, args.steps)
    content = {
        name: {"patients": len(some), **asdict(diagnose(some).scores["auroc"])}
        for name, some in predictions.items()
    }
    with written_whole(args.output / "generated" / "diagnosis" / ONE_IMAGE) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, one in content.items():
        print(f"{name}: AUROC {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})")


if __name__ == "__main__":
    main()
