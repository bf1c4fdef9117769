"""The command's options: addresses, tokens, limits, and what it cannot serve."""

import asyncio
import os
import signal
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from jobs.__main__ import main
from pipeline.errors import UserError
from pipeline.hashing import hash_bytes
from pipeline.serving import server
from pipeline.serving.server import Address, Cluster, build_options, serve_until_stopped
from pipeline.serving.serving_options import TOKEN_VARIABLE

GIVEN = {"name": "tiny", "tracking_uri": "sqlite:///x"}


@pytest.mark.parametrize(
    ("host", "is_loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80"),
        ("localhost", True, "http://localhost:80"),
        ("::1", True, "http://[::1]:80"),
        ("0.0.0.0", False, "http://0.0.0.0:80"),
        ("10.0.0.1", False, "http://10.0.0.1:80"),
        ("gpu-server", False, "http://gpu-server:80"),
    ],
)
def test_loopback_addresses_need_no_token(monkeypatch, host, is_loopback, url):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    address = Address(host, 80)
    assert (address.is_loopback, address.url) == (is_loopback, url)
    if is_loopback:
        options = build_options(GIVEN, address, None)
        assert (options.token_sha256, "*" in options.allowed_hosts) == ("", False)
    else:
        with pytest.raises(UserError, match=rf"--token-file: got nothing; expected a token, as {host} is reached"):
            build_options(GIVEN, address, None)


def test_a_token_comes_from_a_file_or_the_environment(monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text("secret\n")
    public = Address("0.0.0.0", 80)
    assert build_options(GIVEN, public, str(file)).token_sha256 == hash_bytes(b"secret")
    monkeypatch.setenv(TOKEN_VARIABLE, "other")
    assert build_options(GIVEN, public, None).token_sha256 == hash_bytes(b"other")
    file.write_text("\n")
    with pytest.raises(UserError, match=r"--token-file: got .*; expected a file with a token"):
        build_options(GIVEN, public, str(file))
    with pytest.raises(UserError, match=r"--token-file: got .*; expected a readable file"):
        build_options(GIVEN, public, str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "absent"], "name: got 'absent'; expected a registered model: nasa-tiny"),
        (
            ["--name", "nasa-tiny", "--alias", "best"],
            "alias: got 'best'; expected an alias of nasa-tiny: challenger, champion",
        ),
        (["--name", "nasa-tiny", "--dtype", "int8"], "dtype: got 'int8'; expected 'float32' or 'bfloat16'"),
        (
            ["--name", "nasa-tiny", "--ray-address", "auto", "--metrics-port", "9091"],
            "--metrics-port: got 9091; expected none with --ray-address",
        ),
        (["--name", "nasa-tiny", "--batch-size", "0"], "batch_size: got 0; expected a number at least 1"),
        (["--name", "nasa-tiny", "--host", "0.0.0.0"], "--token-file: got nothing; expected a token"),
        (
            ["--name", "nasa-tiny", "--port", "0", "--metrics-port", "PORT"],
            "expected a free port of 0.0.0.0 (Address already in use)",
        ),
        (["--name", "nasa-tiny", "--port", "PORT"], "expected a free port of 127.0.0.1 (Address already in use)"),
    ],
)
def test_invalid_options_are_reported_in_one_line(uri, four_versions, tmp_path, capsys, arguments, message):
    (tmp_path / "ml.db").write_bytes(four_versions[0].read_bytes())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [port if word == "PORT" else word for word in arguments]
        assert main(["serve", *words, "--tracking-uri", uri]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def deleted(monkeypatch, tmp_path):
    """Return the applications that the server deletes, without Ray and a model."""
    names = []
    monkeypatch.setattr(server, "find_version", lambda *_: "1")
    monkeypatch.setattr(server, "start_ray_session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(server, "_require_resources", lambda _: None)
    monkeypatch.setattr(server, "locate_log_folder", lambda: tmp_path)
    monkeypatch.setattr(server, "serve", SimpleNamespace(delete=lambda name, _blocking: names.append(name)))
    return names


def test_ctrl_c_during_the_start_ends_it_at_once(deleted, monkeypatch):
    def start_forever(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the start went on")

    monkeypatch.setattr(server, "_start_replicas", start_forever)
    address = Address("127.0.0.1", 0)
    with pytest.raises(KeyboardInterrupt):
        serve_until_stopped(build_options(GIVEN, address, None), address, Cluster(), print)
    assert len(deleted) == 1, "a start that was cut short leaves no replicas"


def test_the_first_signal_stops_and_the_second_one_interrupts(deleted, monkeypatch):
    lines, answers = [], []

    async def answer(options, application, listener, stop, log):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            answers.append((stop.requested.is_set(), stop.interrupted.is_set()))
        await asyncio.sleep(0.01)  # the loop goes on

    monkeypatch.setattr(server, "_start_replicas", lambda *_: None)
    monkeypatch.setattr(server, "_answer", answer)
    address = Address("127.0.0.1", 0)
    with pytest.raises(KeyboardInterrupt):
        serve_until_stopped(build_options(GIVEN, address, None), address, Cluster(), lines.append)
    assert answers == [(True, False), (True, True)]
    assert ":0 " not in lines[0], "the line names the port that the system chose"
    assert len(deleted) == 1
