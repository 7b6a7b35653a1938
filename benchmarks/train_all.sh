#!/usr/bin/env bash
# The recipe: every network of both bundles from the open data, by steps and with seeds.
#
#     DATA=../shared/data/open RUNS=runs DEVICE=cpu benchmarks/train_all.sh
#
# The same command goes on where it was stopped: each phase from its last checkpoint. The phases of a
# bundle follow each other: each starts from the bundle that the one before left. The last ones are
# runs/3d/fusion/bundle and runs/2d/fusion/bundle.
set -euo pipefail
DATA=${DATA:-../shared/data/open}
RUNS=${RUNS:-runs}
DEVICE=${DEVICE:-cpu}
WORKERS=${WORKERS:-1}

phase() { # dims, phase, datalist, steps, bundle to start from, overrides
    local dims=$1 phase=$2 list=$3 steps=$4 from=$5
    shift 5
    [ -d "$RUNS/${dims}d/$phase/bundle" ] && return
    fusion-pipeline train --phase "$phase" --bundle "$from" --datalist "$RUNS/open_${dims}d/$list" \
        --output "$RUNS/${dims}d/$phase" --device "$DEVICE" --max-steps "$steps" \
        --override "data#label_maps=$RUNS/open_${dims}d/label_maps" \
        --override "data#workers=$WORKERS" --override train#trainer#max_epochs=-1 "$@"
}

for dims in 3 2; do
    [ -f "$RUNS/open_${dims}d/cases.json" ] || python "$(dirname "$0")/open_data.py" \
        --data "$DATA" --out "$RUNS/open_${dims}d" --spatial-dims "$dims"
done

start=$(python -c 'from fusion_pipeline.pipeline import bundle_for; print(bundle_for(3))')
phase 3 registration registration.json 5000 "$start" --override pretrained=false \
    --override "data#shape=[49,49,49]" --override data#batch_size=1 \
    --override data#samples_per_epoch=160 --override data#windows_per_case=4 \
    --override data#validation_samples=24
phase 3 harmonization cases.json 1600 "$RUNS/3d/registration/bundle" \
    --override data#batch_size=4 --override data#samples_per_epoch=64 \
    --override data#windows_per_case=16
phase 3 fusion cases.json 600 "$RUNS/3d/harmonization/bundle" \
    --override data#samples_per_epoch=32 --override data#windows_per_case=4 \
    --override data#typical=1.0 --override data#validation_samples=4

start=$(python -c 'from fusion_pipeline.pipeline import bundle_for; print(bundle_for(2))')
phase 2 registration registration.json 6000 "$start" --override pretrained=false \
    --override data#batch_size=8 --override data#samples_per_epoch=960 \
    --override data#windows_per_case=2 --override data#validation_samples=64
phase 2 harmonization cases.json 2000 "$RUNS/2d/registration/bundle" \
    --override data#batch_size=4 --override data#samples_per_epoch=400
phase 2 fusion cases.json 600 "$RUNS/2d/harmonization/bundle" \
    --override data#batch_size=4 --override train#trainer#accumulate_grad_batches=1 \
    --override data#samples_per_epoch=318 --override data#typical=1.0
