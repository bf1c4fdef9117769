"""Notifications of a run's events by a webhook: bounded in time, and a failed delivery is one line of the log."""

import hashlib
import hmac
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline import tracking
from pipeline.errors import TrainingDivergedError
from pipeline.recipe import Notify, Recipe
from pipeline.recipe.notify import Event, is_web_address
from pipeline.retry import iter_backoff_seconds

LAST_EVENT = "last_event"  # a tag of the MLflow run
SIGNATURE = "X-Nasa-Distill-Signature"  # sha256= and the HMAC of the body, in hexadecimal
REQUEST_SECONDS, MAX_SECONDS, RETRIES = 5.0, 20.0, 3
TRANSIENT = (408, 425, 429)  # answers beside 5xx after which another attempt may succeed
_REPORTED = "_reported_to_webhook"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notification:
    """The whole content of a request.

    Attributes:
        event: the event.
        model: the registered model's name.
        version: the registered version, if there is one.
        run: the MLflow run, or the schedule and the time that was missed.
        link: the page in MLflow, if it has a server.
    """

    event: Event
    model: str
    version: int | None = None
    run: str | None = None
    link: str | None = None

    def to_body(self) -> bytes:
        """Return the body as JSON, with the time of sending."""
        time_sent = datetime.now(UTC).isoformat(timespec="seconds")
        values = {"event": self.event, "model": self.model, "version": self.version, "run": self.run, "time": time_sent}
        return json.dumps(values | ({"link": self.link} if self.link else {})).encode()


@dataclass
class FailureReport:
    """The MLflow run of a command, set once it is known."""

    mlflow_run: str = ""


@contextmanager
def report_failure(recipe: Recipe, tracking_uri: str) -> Iterator[FailureReport]:
    """Send `failed` or `diverged` if an error ends the context, once for an error that passes several contexts."""
    report = FailureReport()
    try:
        yield report
    except Exception as error:
        if not getattr(error, _REPORTED, False):
            setattr(error, _REPORTED, True)
            _report(recipe, tracking_uri, report.mlflow_run, isinstance(error, TrainingDivergedError))
        raise


def _report(recipe: Recipe, tracking_uri: str, mlflow_run: str, diverged: bool) -> None:
    event: Event = "diverged" if diverged else "failed"
    if mlflow_run:
        tracker = tracking.Tracker(tracking_uri, mlflow_run)
        tracker.set_tags({LAST_EVENT: event})
        tracker.flush()
    link = build_link(tracking_uri, f"runs/{mlflow_run}") if mlflow_run else None
    send(recipe.notify, Notification(event, f"nasa-{recipe.name}", None, mlflow_run or None, link))


def notify_missed(recipe: Recipe, schedule: str, scheduled_time: str) -> None:
    """Send `missed` for a scheduled time."""
    send(recipe.notify, Notification("missed", f"nasa-{recipe.name}", run=f"{schedule}/{scheduled_time}"))


def build_link(tracking_uri: str, page: str) -> str | None:
    """Return the address of a page of the MLflow server, without a password; None if there is no server."""
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https"):
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/#/{quote(page)}"


def send(options: Notify, notification: Notification, environment: Mapping[str, str] | None = None) -> None:
    """Send a notification if the recipe asks for its event; wait at most `MAX_SECONDS`, and raise nothing."""
    variables = os.environ if environment is None else environment
    url = options.url or variables.get(options.url_variable, "")
    if notification.event not in options.events or not (options.url or options.url_variable):
        return
    if not is_web_address(url):
        logger.warning("notify.url_variable: %s holds no http:// or https:// address", options.url_variable)
        return
    problems = [f"no answer in {MAX_SECONDS:g} s"]
    body, key = notification.to_body(), variables.get(options.secret_variable, "")

    def deliver() -> None:
        problems[0] = _deliver(url, body, key)

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    if problem := problems[0]:
        parts = urlsplit(url)  # the path may be a secret
        logger.warning("notify: %s was not delivered to %s: %s", notification.event, parts.hostname, problem)


def sign(body: bytes, key: str) -> str:
    """Return the signature of a body, as its header shows it."""
    return f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"


def _deliver(url: str, body: bytes, key: str) -> str:
    """Send until it is accepted, rejected, or tried often enough; return the last problem, or an empty string."""
    delays = iter_backoff_seconds(RETRIES)
    while True:
        problem, may_pass = _post(url, body, key)
        delay = next(delays, None) if problem and may_pass else None
        if delay is None:
            return problem
        time.sleep(delay)


def _post(url: str, body: bytes, key: str) -> tuple[str, bool]:
    """Send once; return the problem, or an empty string, and whether another attempt may succeed."""
    headers = {"Content-Type": "application/json", "User-Agent": "nasa-distill"}
    if key:
        headers[SIGNATURE] = sign(body, key)
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        urllib.request.build_opener(_NoRedirects).open(request, timeout=REQUEST_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}", error.code >= 500 or error.code in TRANSIENT
    except urllib.error.URLError as error:
        return type(error.reason).__name__, True
    except (OSError, HTTPException) as error:
        return type(error).__name__, True
    except Exception as error:  # an address that no request can be made of
        return type(error).__name__, False
    return "", False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: an event goes to the address of the recipe and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that the redirect is an error."""
