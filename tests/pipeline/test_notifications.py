"""Notifications against a local server: what is sent, signatures, retries, and failures that end nothing."""

import hashlib
import hmac
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import notifications, tracking
from pipeline.errors import TrainingDivergedError, TrainingError, UserError
from pipeline.notifications import Notification, report_failure, send
from pipeline.recipe import Notify, dump, parse

PROMOTED = Notification("promoted", "nasa-tiny", 3, "ab12", "http://mlflow/#/models/nasa-tiny/versions/3")
KEY = "a key of the signature"


@pytest.fixture
def server(monkeypatch):
    """Return a server that answers by `statuses`, then by 200; `requests` has each request's headers and body."""
    monkeypatch.setattr(notifications, "iter_backoff_seconds", lambda retries: iter([0.01] * retries))
    monkeypatch.delenv("NASA_DISTILL_NOTIFY_SECRET", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            http.requests.append((self.path, dict(self.headers), body))
            status = http.statuses.pop(0) if http.statuses else 200
            time.sleep(http.delay)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{http.url}/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.requests, http.statuses, http.delay = [], [], 0
    http.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def list_warnings(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_body_holds_the_event_and_nothing_else(server):
    send(Notify(url=f"{server.url}/hook"), PROMOTED)
    ((path, headers, body),) = server.requests
    values = json.loads(body)
    sent = datetime.fromisoformat(values.pop("time"))
    assert abs(datetime.now(UTC) - sent) < timedelta(minutes=1)
    assert values == {
        "event": "promoted",
        "model": "nasa-tiny",
        "version": 3,
        "run": "ab12",
        "link": "http://mlflow/#/models/nasa-tiny/versions/3",
    }
    assert (path, headers["Content-Type"]) == ("/hook", "application/json")
    assert "X-Nasa-Distill-Signature" not in headers, "without a key"
    send(Notify(url=server.url), Notification("failed", "nasa-tiny"))
    assert set(json.loads(server.requests[1][2])) == {"event", "model", "version", "run", "time"}, "no link, no server"


def test_the_signature_is_the_hmac_of_the_body(server, monkeypatch):
    monkeypatch.setenv("NASA_DISTILL_NOTIFY_SECRET", KEY)
    monkeypatch.setenv("OTHER_SECRET", "another key")
    send(Notify(url=server.url), PROMOTED)
    send(Notify(url=server.url, secret_variable="OTHER_SECRET"), PROMOTED)
    for (_, headers, body), key in zip(server.requests, (KEY, "another key"), strict=True):
        block = key.encode().ljust(64, b"\0")  # RFC 2104
        inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + body).digest()
        expected = hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()
        assert headers["X-Nasa-Distill-Signature"] == f"sha256={expected}"
        assert hmac.new(key.encode(), body, "sha256").hexdigest() == expected


def test_the_documented_check_accepts_a_signature():
    """The published example of HMAC-SHA256, which docs/notifications.md is tested with too."""
    expected = "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
    assert notifications.sign(b"The quick brown fox jumps over the lazy dog", "key") == expected


@pytest.mark.parametrize(
    ("statuses", "requests", "problem"),
    [
        ([500, 429], 3, ""),
        ([503] * 9, 4, "HTTP 503"),
        ([404], 1, "HTTP 404"),
        ([302], 1, "HTTP 302"),
    ],
)
def test_passing_failures_are_retried_and_redirects_are_not_followed(server, caplog, statuses, requests, problem):
    server.statuses = list(statuses)
    send(Notify(url=f"{server.url}/hidden-path"), PROMOTED)
    assert len(server.requests) == requests
    expected = [f"notify: promoted was not delivered to 127.0.0.1: {problem}"] if problem else []
    assert list_warnings(caplog) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:9/hidden-path", "ConnectionRefusedError"),
        ("http://no-such-host.invalid/hidden-path", "gaierror"),
        ("http://[::1", None),
    ],
)
def test_an_address_without_a_server_is_one_line(server, caplog, monkeypatch, url, problem):
    monkeypatch.setenv("HOOK_TOKEN", url)
    send(Notify(url_variable="HOOK_TOKEN"), PROMOTED)
    (line,) = list_warnings(caplog)
    assert "hidden-path" not in line
    assert line.endswith(problem or "notify.url_variable: HOOK_TOKEN holds no http:// or https:// address")


def test_a_slow_server_is_given_up_on(server, caplog, monkeypatch):
    monkeypatch.setattr(notifications, "REQUEST_SECONDS", 0.1)
    server.delay = 0.5
    started = time.monotonic()
    send(Notify(url=server.url), PROMOTED)
    assert time.monotonic() - started < 5
    assert list_warnings(caplog) == ["notify: promoted was not delivered to 127.0.0.1: TimeoutError"]
    monkeypatch.setattr(notifications, "REQUEST_SECONDS", 60)
    monkeypatch.setattr(notifications, "MAX_SECONDS", 0.1)
    started = time.monotonic()
    send(Notify(url=server.url), PROMOTED)
    assert time.monotonic() - started < 0.4
    assert list_warnings(caplog)[1] == "notify: promoted was not delivered to 127.0.0.1: no answer in 0.1 s"


def test_only_the_chosen_events_are_sent_and_none_without_an_address(server):
    send(Notify(url=server.url, events=("failed",)), PROMOTED)
    send(Notify(), PROMOTED)
    assert not server.requests
    send(Notify(url=server.url, events=("promoted",)), PROMOTED)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("error", "event"),
    [(TrainingError("it broke"), "failed"), (TrainingDivergedError("NaN"), "diverged"), (UserError("no"), "failed")],
)
def test_an_error_is_reported_once_and_tagged(server, uri, client, error, event):
    recipe, run = parse("", ["name=tiny", f"notify.url='{server.url}'"]), tracking.create_run(uri, "tiny", {})

    def fail():
        with report_failure(recipe, uri), report_failure(recipe, uri) as report:
            report.mlflow_run = run
            raise error

    with pytest.raises(type(error)):
        fail()
    ((_, _, body),) = server.requests
    values = json.loads(body)
    assert (values["event"], values["model"], values["version"], values["run"]) == (event, "nasa-tiny", None, run)
    assert client.get_run(run).data.tags["last_event"] == event


def test_ctrl_c_and_success_are_no_failure(server, uri):
    recipe = parse("", [f"notify.url='{server.url}'"])
    with report_failure(recipe, uri):
        pass
    with pytest.raises(KeyboardInterrupt), report_failure(recipe, uri):
        raise KeyboardInterrupt
    assert not server.requests


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("sqlite:///runs/mlflow.db", None),
        ("http://user:hunter22@mlflow:5000/", "http://mlflow:5000/#/runs/ab"),
        ("https://mlflow.example.org/team", "https://mlflow.example.org/team/#/runs/ab"),
    ],
)
def test_links_lead_to_a_server_and_hold_no_password(uri, link):
    assert notifications.build_link(uri, "runs/ab") == link


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("notify.url='ftp://host/x'", "notify.url: got 'ftp://host/x'; expected an http:// or https:// address"),
        ("notify.url='http://'", "notify.url: got 'http://'; expected"),
        ("notify.url='http://host:port'", "notify.url: got 'http://host:port'; expected"),
        ('notify.url="http://host/a\\nb"', "notify.url: got "),
        ("notify.secret_variable='NAME'", "notify.secret_variable: got 'NAME'; expected a name with SECRET or TOKEN"),
        ("notify.events=['done']", "notify.events.0.: got 'done'; expected 'promoted', 'challenger'"),
        ("notify.key='abc'", "notify.key: got 'abc'; expected one of the fields url, url_variable"),
    ],
)
def test_a_bad_section_is_one_line(override, message):
    with pytest.raises(UserError, match=message) as caught:
        parse("", [override])
    assert "\n" not in str(caught.value)


def test_secrets_in_an_address_are_rejected_and_not_shown():
    for url in ("http://user:hunter22@host/x", "http://host/x?token=hunter22"):
        with pytest.raises(UserError) as caught:
            parse("", [f"notify.url='{url}'"])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected none beside url"):
        parse("", ["notify.url='http://host'", "notify.url_variable='HOOK_TOKEN'"])
    assert "hunter22" not in dump(parse("", ["notify.url_variable='HOOK_TOKEN'"]))
