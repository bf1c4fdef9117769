"""`cluster.yaml`, validated offline by Ray's own launcher."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Return the file with Ray's defaults filled in, without any AWS credentials in reach."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return prepare_config(yaml.safe_load(FILE.read_text()))


def test_ray_accepts_the_cluster(config):
    validate_config(config)


def test_ray_rejects_an_unknown_field(config):
    with pytest.raises(Exception, match="worker_count"):
        validate_config({**config, "worker_count": 4})


def test_the_head_has_no_gpu_and_workers_start_on_demand(config):
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["node_config"]["InstanceType"] == "m5.2xlarge"
    assert "GPU" not in head["resources"]
    assert {worker["node_config"]["InstanceType"] for worker in types.values()} == {"p4d.24xlarge", "p5.48xlarge"}
    for worker in types.values():
        assert worker["resources"]["GPU"] == 8
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= config["max_workers"]


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_spot_instances_are_preferred_to_on_demand_ones(config, gpu):
    spot, on_demand = (config["available_node_types"][f"{gpu}_{name}"] for name in ("spot", "on_demand"))
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["priority"] > on_demand["priority"]
    assert "RAY_enable_autoscaler_v2=1" in config["head_start_ray_commands"][-1], (
        "version 1 of the autoscaler has no priorities"
    )


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_node_starts_with_token_authentication(config, role):
    start = config[f"{role}_start_ray_commands"][-1]
    assert start.index("RAY_AUTH_MODE=token") < start.index("ray start")


def test_s3_access_uses_instance_roles_and_the_file_holds_no_key(config):
    for node in config["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
    text = FILE.read_text()
    assert not any(word in text for word in ("aws_secret", "AWS_SECRET", "AKIA", "AWS_ACCESS_KEY"))


@pytest.mark.parametrize("role", ["head", "worker"])
def test_torch_is_installed_before_the_lock(config, role):
    commands = "\n".join(config[f"{role}_setup_commands"])
    assert commands.index("torch==") < commands.index("requirements.lock")
