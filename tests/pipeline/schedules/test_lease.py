import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from benchmarks.chaos.fault_proxy import FaultProxy
from pipeline.errors import StorageError, UserError
from pipeline.schedules import lease
from pipeline.schedules.lease import BusyError, Lease, LeaseRecord, lease_store
from pipeline.storage import Folder

TTL = 1.0
LONG_TTL = 6.0  # does not expire within a test, however slow the machine is


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    return Folder.from_uri(
        f"{request.getfixturevalue('bucket')}/weekly" if request.param == "s3" else tmp_path / "weekly"
    )


def test_a_lease_has_one_holder_and_is_free_afterwards(folder):
    with (
        Lease(folder, "first", LONG_TTL),
        pytest.raises(BusyError, match=r"^first$"),
        Lease(folder, "second", LONG_TTL),
    ):
        pass
    started = time.monotonic()
    with Lease(folder, "second", LONG_TTL):
        assert time.monotonic() - started < LONG_TTL / 2, "a released lease is acquired without waiting"


def test_one_of_many_candidates_acquires_a_free_lease(folder):
    acquired, rejected, all_rejected = [], [], threading.Event()

    def acquire(number):
        try:
            with Lease(folder, f"holder {number}", LONG_TTL):
                acquired.append(number)
                all_rejected.wait(10)
        except BusyError:
            rejected.append(number)
            if len(rejected) == 3:
                all_rejected.set()

    threads = [threading.Thread(target=acquire, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(acquired), len(rejected)) == (1, 3)


def _hold_forever(uri, acquired):
    with Lease(Folder.from_uri(uri), "a process", TTL):
        acquired.set()
        time.sleep(60)


def test_a_lease_expires_after_its_holder_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    acquired = context.Event()
    holder = context.Process(target=_hold_forever, args=(str(tmp_path), acquired))
    holder.start()
    assert acquired.wait(30)
    with pytest.raises(BusyError, match="a process"), Lease(Folder.from_uri(tmp_path), "another", TTL):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Lease(Folder.from_uri(tmp_path), "another", TTL):
        assert json.loads((tmp_path / "lease.json").read_text())["holder"] == "another"


def test_a_holder_is_notified_if_its_lease_is_taken(folder):
    notified = threading.Event()
    with Lease(folder, "first", TTL, on_lost=notified.set) as held:
        store = lease_store(folder, "lease.json")
        other = LeaseRecord("second", "x", 1)
        while not store.compare_and_swap(store.read()[1], other):
            pass
        assert notified.wait(5)
        assert held.lost
    assert store.read()[0] == other, "another holder's record is left alone"


def test_a_short_outage_does_not_end_a_lease(tmp_path, monkeypatch):
    notified = threading.Event()
    with Lease(Folder.from_uri(tmp_path), "first", TTL, on_lost=notified.set) as held:
        compare_and_swap = held.store.compare_and_swap
        monkeypatch.setattr(held.store, "compare_and_swap", lambda *_, **__: (_ for _ in ()).throw(StorageError("503")))
        time.sleep(TTL / 2)
        monkeypatch.setattr(held.store, "compare_and_swap", compare_and_swap)
        assert not notified.wait(TTL)
        monkeypatch.setattr(held.store, "compare_and_swap", lambda *_, **__: (_ for _ in ()).throw(StorageError("503")))
        assert notified.wait(2 * TTL), "after a long outage another holder may have the lease"


@pytest.fixture
def failing(bucket, monkeypatch):
    """Yield a proxy in front of a bucket, whose faults a test chooses."""
    server = FaultProxy(os.environ["AWS_ENDPOINT_URL"]).start()
    server.fault, server.folder = "503", Folder.from_uri(f"{bucket}/weekly")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.stop()


def test_acquiring_a_lease_is_retried_during_a_short_outage(failing, monkeypatch):
    monkeypatch.setattr(lease.retries, "MAX_ATTEMPTS", 3)
    failing.matches = lambda number, path: number in (1, 2, 4)
    with Lease(failing.folder, "first", TTL):
        assert failing.requests >= 5
        failing.matches = lambda number, path: True
    failing.matches = lambda number, path: False
    with Lease(failing.folder, "another", TTL):
        pass  # a lease that could not be released expires


def test_a_heartbeat_is_not_retried(failing):
    notified = threading.Event()
    with Lease(failing.folder, "first", TTL, on_lost=notified.set):
        before, failing.matches = failing.requests, lambda number, path: True
        assert notified.wait(3 * TTL)
        assert failing.requests - before <= 6, "five heartbeats until the lease is lost, and no retries"


@pytest.mark.parametrize(("fault", "message"), [("503", "SlowDown"), ("expired", "ExpiredToken")])
def test_a_failing_bucket_is_reported_in_one_line(failing, monkeypatch, fault, message):
    monkeypatch.setattr(lease.retries, "MAX_ATTEMPTS", 1)
    failing.fault, failing.matches = fault, lambda number, path: True
    with (
        pytest.raises(StorageError, match=f"^s3://.*weekly/lease.json: .*{message}"),
        Lease(failing.folder, "first", TTL),
    ):
        pass


@pytest.mark.parametrize("delay", [2.5, None], ids=["no answer", "no server"])
def test_a_silent_bucket_ends_the_heartbeats_in_time(failing, delay):
    notified = threading.Event()
    with Lease(failing.folder, "first", TTL, on_lost=notified.set) as held:
        if delay:
            failing.fault, failing.delay, failing.matches = "slow", delay, lambda number, path: True
        else:
            failing.stop()
        with pytest.raises(StorageError, match=r"^s3://.*weekly/lease\.json: "):
            lease_store(failing.folder, "lease.json", TTL).read(retry=False)
        assert notified.wait(3 * TTL)
        assert held.lost


def test_a_holder_is_notified_if_its_heartbeats_fail(tmp_path, monkeypatch):
    notified = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with Lease(Folder.from_uri(tmp_path), "first", TTL, on_lost=notified.set) as held:
        monkeypatch.setattr(held.store, "compare_and_swap", lambda *_: 1 / 0)
        assert notified.wait(TTL)


def test_a_missing_bucket_is_reported(s3_server):
    with (
        pytest.raises(StorageError, match="NoSuchBucket"),
        Lease(Folder.from_uri("s3://gone/weekly"), "first", TTL),
    ):
        pass


def test_a_folder_path_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"file/lease\.json: "),
        Lease(Folder.from_uri(tmp_path / "file"), "first", TTL),
    ):
        pass


def test_an_invalid_lease_file_is_reported(tmp_path):
    (tmp_path / "lease.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="expected a lease"), Lease(Folder.from_uri(tmp_path), "first", TTL):
        pass
