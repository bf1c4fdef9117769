"""The dashboard and the alert rules name metrics that exist, and a real Prometheus scrapes them from a Ray cluster."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from ray.dashboard.consts import NODE_TAG_KEYS

from pipeline.evaluation import prometheus as evaluation_gauges
from pipeline.recipe import load
from pipeline.schedules import prometheus as schedule_gauges
from pipeline.schedules.history import History
from pipeline.schedules.schedule_store import StoredSchedule
from pipeline.serving.metrics import CACHE_GAUGES, PREFIX, VERSION_GAUGES
from pipeline.storage import Folder
from pipeline.training import prometheus as training_gauges

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "deploy/grafana/nasa-distill.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
DROPPED_SECONDS = 30  # Ray drops a value after 20, and Prometheus' next scrape after it has none
RAYS_OWN = {"ray_node_disk_free", "ray_node_disk_usage"}  # of Ray's dashboard agent


ADDED, DAY_AFTER = "2026-11-25T00:00:00+00:00", datetime(2026, 11, 26, 12, tzinfo=UTC)
MODULES = (training_gauges, evaluation_gauges, schedule_gauges)
GAUGES = {f"ray_{module.PREFIX}_{name}" for module in MODULES for name in module.GAUGES}


def list_expressions():
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    yield from (variable["query"] for variable in DASHBOARD["templating"]["list"][1:])
    yield from (rule["expr"] for rule in RULES)


def list_known_metrics():
    serving = re.findall(r'"(nasa_serving_\w+)"', (ROOT / "pipeline/serving/metrics.py").read_text())
    histograms = {f"ray_{name}_{part}" for name in serving for part in ("bucket", "sum", "count")}
    gauges = {f"ray_{PREFIX}_{name}" for name in VERSION_GAUGES | CACHE_GAUGES}
    return GAUGES | gauges | {f"ray_{name}" for name in serving} | histograms | RAYS_OWN


def test_the_dashboard_and_the_alerts_name_metrics_that_exist():
    named = {name for expression in list_expressions() for name in re.findall(r"ray_\w+", expression)}
    assert len(named) > 20
    assert named <= list_known_metrics()
    assert named >= GAUGES, "a gauge that no panel shows"


def test_the_disk_alert_names_the_node_by_a_label_of_ray():
    (rule,) = (rule for rule in RULES if rule["alert"] == "DiskNearlyFull")
    labels = re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])
    assert labels
    assert set(labels) <= set(NODE_TAG_KEYS)


def test_the_page_defines_every_gauge():
    page = (ROOT / "docs/monitoring.md").read_text()
    assert set(re.findall(r"`(ray_nasa_(?:training|evaluation|schedule)_\w+)`", page)) == GAUGES
    assert all(f"`{rule['alert']}`" in page for rule in RULES)


def test_the_panels_do_not_overlap_and_use_the_chosen_data_source():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {"${datasource}"}


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine")
def test_promtool_accepts_the_rules():
    result = subprocess.run(
        [PROMTOOL, "check", "rules", ROOT / "deploy/prometheus/alerts.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"{len(RULES)} rules found" in result.stdout


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine")
def test_every_alert_fires_when_it_should_and_only_then():
    file = ROOT / "tests/data/prometheus/alerts_test.yaml"
    result = subprocess.run([PROMTOOL, "test", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    cases = [case for group in yaml.safe_load(file.read_text())["tests"] for case in group["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires} == {
            rule["alert"] for rule in RULES
        }


@pytest.fixture
def prometheus(ray_cluster, tmp_path):
    """Run Prometheus on the cluster's metrics port, and yield a function that queries it."""
    (node,) = ray_cluster.nodes()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{node['MetricsExportPort']}"]}]}
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    process = subprocess.Popen(
        [PROMETHEUS, *options, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    )

    def query(expression):
        url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
        try:
            answer = json.load(urllib.request.urlopen(url, timeout=5))
        except OSError:
            return []
        return [(item["metric"], float(item["value"][1])) for item in answer["data"]["result"]]

    yield query
    process.terminate()
    process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus on this machine")
def test_prometheus_scrapes_the_gauges_of_every_process(ray_cluster, prometheus):
    class Worker:
        def __init__(self):
            self.training = training_gauges.TrainingGauges("run-of-a-test", "shapes")
            self.evaluation = evaluation_gauges.EvaluationGauges("shapes", "0123456789abcdef")

        def report(self, values):
            self.training.report(values)
            self.evaluation.report(7, 3)

    values = {name: number + 0.5 for number, name in enumerate(training_gauges.GAUGES)}
    worker = ray_cluster.remote(Worker).options(num_cpus=0).remote()
    ray_cluster.get(worker.report.remote({**values, "unknown": 1.0}))
    schedule = StoredSchedule("of-a-test", load("shapes", ["schedule.cron='0 3 * * *'"]), "sqlite://", ADDED)
    schedules = schedule_gauges.ScheduleGauges()
    schedules.report(schedule, History(Folder.from_uri("/nonexistent")), DAY_AFTER)
    expected = {
        **{f'ray_nasa_training_{name}{{run="run-of-a-test"}}': value for name, value in values.items()},
        'ray_nasa_evaluation_work_units{student="0123456789ab"}': 7,
        'ray_nasa_evaluation_work_units_left{student="0123456789ab"}': 3,
        'ray_nasa_schedule_lateness_seconds{schedule="of-a-test"}': 9 * 3600,
        'ray_nasa_schedule_last_success_timestamp_seconds{schedule="of-a-test"}': 0,
        'ray_nasa_schedule_missed_in_a_row{schedule="of-a-test"}': 0,
        'ray_nasa_schedule_paused{schedule="of-a-test"}': 0,
    }
    scraped = {}
    for _ in range(60):
        for query in expected:
            for labels, value in prometheus(query):
                assert labels["recipe"] == "shapes"
                scraped[query] = value
        if scraped == expected and prometheus("ray_node_disk_free"):
            break
        time.sleep(0.5)
    assert scraped == expected
    assert [metric["schedule"] for metric, _ in prometheus(get_rule("ScheduleLate"))] == ["of-a-test"]
    time.sleep(DROPPED_SECONDS)
    lasting = {query: value for query in expected for _, value in prometheus(query)}
    assert lasting == expected, "Ray dropped values that no step set again"
    for rule in RULES:
        assert prometheus(f"count({rule['expr']}) or vector(0)"), rule["alert"]  # Prometheus evaluates every rule


def get_rule(name):
    (expression,) = [rule["expr"] for rule in RULES if rule["alert"] == name]
    return expression
