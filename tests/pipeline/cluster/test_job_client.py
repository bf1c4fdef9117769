import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from jobs.__main__ import main


class _Server(ThreadingHTTPServer):
    """A job server with one job, which answers some requests and then fails."""

    daemon_threads = True

    def __init__(self, answers, failure):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.remaining, self.failure = answers, failure
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def handle_request(self):
        if self.path.endswith("version"):
            return self._answer(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": ""})
        self.server.remaining -= 1
        if self.server.remaining >= 0:
            job = {"type": "SUBMISSION", "submission_id": "demo-1", "status": "RUNNING", "entrypoint": ""}
            return self._answer(200, [job] if self.path.rstrip("/").endswith("jobs") else job)
        if self.server.failure == "gone":
            return self.connection.close()
        return self._answer(int(self.server.failure), {"error": "Unauthorized"})

    do_GET = do_POST = handle_request

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Log nothing."""


@pytest.mark.parametrize(
    ("command", "answers"), [("list", 1), ("status demo-1", 2), ("logs demo-1", 3), ("stop demo-1", 4)]
)
@pytest.mark.parametrize("failure", ["gone", "500", "401"])
def test_a_cluster_lost_during_a_command_is_reported_in_one_line(capsys, monkeypatch, command, answers, failure):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    server = _Server(answers, failure)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    assert main([*command.split(), "--job-server", address]) == 2
    error = capsys.readouterr().err
    expected = (
        "token: the cluster at" if failure == "401" else f"--job-server: the cluster at {address} stopped answering: "
    )
    assert error.startswith(f"error: {expected}"), error
    assert len(error.splitlines()) == 1, error
    server.shutdown()
    server.server_close()
