"""The server of a command: HTTP in its own process, replicas on a Ray cluster."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import uvloop
from ray import serve
from ray.serve.handle import DeploymentHandle

from pipeline.errors import UserError, get_first_line, invalid
from pipeline.hashing import hash_bytes
from pipeline.ray_session import start_ray_session
from pipeline.registry.version_cache import find_version
from pipeline.serving.application import ReplicaHandle, build_replicas
from pipeline.serving.http_server import answer_requests, listen, log_requests_to
from pipeline.serving.metrics import RequestMetrics
from pipeline.serving.middleware import Traffic
from pipeline.serving.serving_options import TOKEN_VARIABLE, ServingOptions
from pipeline.serving.web_app import UnavailableError, build_web_app

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
LOOK_SECONDS, ANSWER_SECONDS = 1.0, 5.0


@dataclass(frozen=True)
class Address:
    """The host and the port on which the server listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine reaches it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """The page's URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster to join; without an address a local one, with a port for its metrics."""

    ray_address: str | None = None
    metrics_port: int | None = None


@dataclass(frozen=True)
class Stop:
    """The events that end the server: `requested` after the requests in progress, `interrupted` before."""

    requested: threading.Event = field(default_factory=threading.Event)
    interrupted: threading.Event = field(default_factory=threading.Event)


def build_options(given: Mapping[str, Any], address: Address, token_file: str | None) -> ServingOptions:
    """Return the checked options of a command.

    Raises:
        UserError: A value is not accepted, or there is no token for an address beyond this machine.
    """
    token = _read_token(token_file)
    if not token and not address.is_loopback:
        raise UserError(
            f"--token-file: got nothing; expected a token, as {address.host} is reached from other machines. "
            f"Put one into a file, or into {TOKEN_VARIABLE}."
        )
    cpus = given.get("cpus") or max(1.0, (os.cpu_count() or 1) - 1.0)  # the web server needs one, too
    hosts = (*LOCAL_HOSTS, address.host) if address.is_loopback else ("*",)
    security = {"token_sha256": hash_bytes(token.encode()) if token else "", "allowed_hosts": hosts}
    return ServingOptions.from_values({**given, "cpus": cpus, **security})


def _read_token(file: str | None) -> str:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise invalid("--token-file", file, f"a readable file ({get_first_line(error)})") from None
    if not token:
        raise invalid("--token-file", file, "a file with a token")
    return token


def serve_until_stopped(
    options: ServingOptions, address: Address, cluster: Cluster, log: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM, then let the requests in progress end.

    Raises:
        UserError: The model cannot be served, or the address is taken.
    """
    find_version(options.tracking_uri, options.name, options.alias)
    if cluster.metrics_port:
        listen("0.0.0.0", cluster.metrics_port, "--metrics-port").close()
    listener = listen(address.host, address.port)
    address = replace(address, port=listener.getsockname()[1])
    with closing(listener), start_ray_session(cluster.ray_address, metrics_port=cluster.metrics_port):
        if not cluster.ray_address:
            _require_resources(options)
        with log_requests_to(locate_log_folder()):
            run(options, listener, _handle_stop_signals(), log, address.url)


def locate_log_folder() -> Path:
    """Return the folder of Ray Serve's logs in the current session."""
    return Path("/tmp/ray", ray.get_runtime_context().get_session_name(), "logs", "serve")


@contextmanager
def _handle_stop_signals() -> Iterator[Stop]:
    """Yield what Ctrl-C or SIGTERM requests, and a second one interrupts.

    The handler raises nothing, as uvicorn catches what is raised while a request is answered.
    """
    stop = Stop()

    def handle(*_: Any) -> None:
        (stop.interrupted if stop.requested.is_set() else stop.requested).set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(
    options: ServingOptions,
    listener: socket.socket,
    stop_signals: AbstractContextManager[Stop],
    log: Callable[[str], None],
    url: str,
) -> None:
    """Start the replicas on the current Ray cluster, and answer requests until `stop_signals` requests the end.

    Signals interrupt the start, as nothing is in progress then.

    Raises:
        UserError: The version in service cannot be loaded.
        KeyboardInterrupt: Requests in progress were interrupted.
    """
    application = name_application(listener)
    try:
        _start_replicas(options, application)
        with stop_signals as stop:
            log(f"{options.name} is served at {url} (API: {url}/docs). Ctrl-C stops it.")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_answer(options, application, listener, stop, log))
        if stop.interrupted.is_set():
            raise KeyboardInterrupt
    finally:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # it complains about the end of the event loop
        serve.delete(application, _blocking=False)


def name_application(listener: socket.socket) -> str:
    """Return the Ray Serve application of a server: no two servers that run at a time have the same node and port.

    A server that is started again replaces replicas which a killed one left on a standing cluster.
    """
    return f"nasa-distill-{ray.util.get_node_ip_address()}-{listener.getsockname()[1]}"


def _start_replicas(options: ServingOptions, application: str) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it warns of each replica that dies, and replaces it
    serve.start(proxy_location="Disabled")
    try:
        serve.run(build_replicas(options), name=application, route_prefix=None)
    except RuntimeError as error:
        reason = _find_reason(application, error)
        raise UserError(f"name: {options.name} cannot be served: {reason}") from None


def _find_reason(application: str, error: Exception) -> str:
    """Return the last line of a replica's traceback, which Ray Serve puts into its message."""
    for deployment in serve.status().applications[application].deployments.values():
        lines = [line for line in deployment.message.splitlines() if "Error" in line]
        if lines:
            return lines[-1].strip()
    return get_first_line(error)


async def _answer(
    options: ServingOptions,
    application: str,
    listener: socket.socket,
    stop: Stop,
    log: Callable[[str], None],
) -> None:
    """Answer requests until the end is requested; then take no further one, and finish those in progress."""
    handle: DeploymentHandle[Any] = serve.get_deployment_handle("student", application)
    replicas, traffic = ReplicaHandle(handle), Traffic()
    app = build_web_app(options, replicas, RequestMetrics().observe, traffic)
    async with answer_requests(app, listener):
        await _watch(options, replicas, stop.requested, log)
        log("stopping: requests in progress are finished first")
        with suppress(TimeoutError):
            await asyncio.wait_for(traffic.drain(stop.interrupted.is_set), options.max_seconds)
        if traffic.ongoing:
            for name in ("asyncio", "uvicorn.error"):  # they report each request that is cut short now
                logging.getLogger(name).setLevel(logging.CRITICAL)


async def _watch(
    options: ServingOptions, replicas: ReplicaHandle, stopped: threading.Event, log: Callable[[str], None]
) -> None:
    """Print the version in service, and each change of it, until `stopped` is set."""
    version, alarm = "", ""
    while not stopped.is_set():
        try:
            served = await asyncio.wait_for(replicas.describe(), ANSWER_SECONDS)
        except (UnavailableError, TimeoutError) as error:  # all replicas are being replaced
            log(f"no answer from the replicas: {get_first_line(error)}")
        else:
            if served.version != version:
                log(f"version {served.version} ({options.alias}) is in service")
            if served.alarm and served.alarm != alarm:
                log(f"alarm: {served.alarm}")
            version, alarm = served.version, served.alarm
        await asyncio.sleep(LOOK_SECONDS)


def _require_resources(options: ServingOptions) -> None:
    """Reject replicas that this machine cannot hold, for which Ray Serve would wait for ever."""
    held, count = ray.cluster_resources(), options.min_replicas
    for option, asked, kind in (("--cpus", options.cpus, "CPU"), ("--gpus", options.gpus, "GPU")):
        if asked * count > (most := held.get(kind, 0.0)):
            raise invalid(option, asked, f"at most {most / count:g} for each of {count} replicas on this machine")
