#!/usr/bin/env bash
# The manifests of this folder, as `python -m jobs k8s-manifest` prints them for the sd21 recipe.
set -euo pipefail
cd "$(dirname "$0")/kuberay"
own=(--recipe sd21 --image REGISTRY/nasa-distill:latest --gpus-per-node 4)
own+=(--set prompts.root=s3://BUCKET/prompts --set evaluation.benchmarks=s3://BUCKET/benchmarks)
when=(--cron "0 3 * * SUN" --timezone Europe/Berlin)
jobs() { PYTHONPATH=../.. "${PYTHON:-python}" -m jobs k8s-manifest "$@"; }
jobs RayCluster "${own[@]}" --run s3://BUCKET/runs/first > raycluster.yaml
jobs RayJob "${own[@]}" --run s3://BUCKET/runs/first > rayjob.yaml
jobs RayCronJob "${own[@]}" --run s3://BUCKET/schedules/weekly "${when[@]}" > raycronjob.yaml
jobs CronJob "${own[@]}" --run s3://BUCKET/schedules/weekly "${when[@]}" > cronjob.yaml
