"""The parts of the launched cluster that need no root; `tests/test_cluster_launch.py` launches it."""

import os

import yaml

from benchmarks.chaos import launched_cluster, namespace_hosts
from pipeline import ROOT


def test_missing_programs_are_named_by_their_packages(monkeypatch):
    monkeypatch.setattr(namespace_hosts.shutil, "which", lambda program, path: None if program == "sshd" else program)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert namespace_hosts.find_missing() == ["root", "openssh-server"]


def test_the_file_names_the_addresses_of_the_hosts():
    text = (ROOT / launched_cluster.CLUSTER_FILE).read_text()
    provider = yaml.safe_load(text)["provider"]
    assert f"http://{provider['head_ip']}:5000" == launched_cluster.TRACKING_URI
    assert provider["worker_ips"] == ["10.0.0.11", "10.0.0.12"]
    assert f"AWS_ENDPOINT_URL={launched_cluster.S3}" in text


def test_the_checkout_of_the_desk_has_the_files_that_git_does_not_ignore(tmp_path):
    launched_cluster.copy_checkout(tmp_path)
    assert (tmp_path / launched_cluster.CLUSTER_FILE).is_file()
    assert (tmp_path / ".git").is_dir()
    assert not (tmp_path / ".venv").exists()
