#!/usr/bin/env bash
# Write the manifests in kuberay/, as `python -m jobs k8s-manifest` prints them for the recipe sd21, and the operator's alert rules.
set -euo pipefail
cd "$(dirname "$0")/kuberay"
options=(--recipe sd21 --image REGISTRY/nasa-distill:TAG --gpus-per-node 4)
options+=(--set prompts.root=s3://BUCKET/prompts --set evaluation.benchmarks=s3://BUCKET/benchmarks)
schedule=(--cron "0 3 * * SUN" --timezone Europe/Berlin)
jobs() { PYTHONPATH=../.. "${PYTHON:-python}" -m jobs k8s-manifest "$@"; }
rules() {
  printf '%s\n' "# For the Prometheus operator: the rules of alerts.yaml. Written by deploy/render.sh." "apiVersion: monitoring.coreos.com/v1"
  printf '%s\n' "kind: PrometheusRule" "metadata:" "  name: nasa-distill" "  labels:" "    app.kubernetes.io/name: nasa-distill" "spec:"
  grep -v '^#' ../prometheus/alerts.yaml | sed 's/^/  /'
}
rules > ../prometheus/prometheusrule.yaml
jobs RayCluster "${options[@]}" --run s3://BUCKET/runs/first > raycluster.yaml
jobs RayJob "${options[@]}" --run s3://BUCKET/runs/first > rayjob.yaml
jobs RayService --recipe sd21 --image REGISTRY/nasa-distill:TAG > rayservice.yaml
jobs RayCronJob "${options[@]}" --run s3://BUCKET/schedules/weekly "${schedule[@]}" > raycronjob.yaml
jobs CronJob "${options[@]}" --run s3://BUCKET/schedules/weekly "${schedule[@]}" > cronjob.yaml
