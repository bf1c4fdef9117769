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

SECONDS = 1.0
LONG = 6.0  # for what is held to the end however slow the machine is


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    return Folder.from_uri(
        f"{request.getfixturevalue('bucket')}/weekly" if request.param == "s3" else tmp_path / "weekly"
    )


def test_one_at_a_time_and_free_after(folder):
    with Lease(folder, "first", LONG), pytest.raises(BusyError, match=r"^first$"), Lease(folder, "second", LONG):
        pass
    started = time.monotonic()
    with Lease(folder, "second", LONG):
        assert time.monotonic() - started < LONG / 2, "a lease that was given back is taken without waiting"


def test_of_many_that_want_a_free_lease_one_has_it(folder):
    had, refused, all_refused = [], [], threading.Event()

    def want(number):
        try:
            with Lease(folder, f"holder {number}", LONG):
                had.append(number)
                all_refused.wait(10)
        except BusyError:
            refused.append(number)
            if len(refused) == 3:
                all_refused.set()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(had), len(refused)) == (1, 3)


def _hold_forever(uri, held):
    with Lease(Folder.from_uri(uri), "a process", SECONDS):
        held.set()
        time.sleep(60)


def test_it_ends_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold_forever, args=(str(tmp_path), held))
    holder.start()
    assert held.wait(30)
    with pytest.raises(BusyError, match="a process"), Lease(Folder.from_uri(tmp_path), "another", SECONDS):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Lease(Folder.from_uri(tmp_path), "another", SECONDS):
        assert json.loads((tmp_path / "lease.json").read_text())["holder"] == "another"


def test_a_holder_whose_lease_was_taken_is_told(folder):
    told = threading.Event()
    with Lease(folder, "first", SECONDS, on_lost=told.set) as held:
        store = lease_store(folder, "lease.json")
        other = LeaseRecord("second", "x", 1)
        while not store.compare_and_swap(store.read()[1], other):
            pass
        assert told.wait(5)
        assert held.lost
    assert store.read()[0] == other, "what is another's is left alone"


def test_a_store_that_is_away_for_a_moment_does_not_end_it(tmp_path, monkeypatch):
    told = threading.Event()
    with Lease(Folder.from_uri(tmp_path), "first", SECONDS, on_lost=told.set) as held:
        swap = held.store.compare_and_swap
        monkeypatch.setattr(held.store, "compare_and_swap", lambda *_, **__: (_ for _ in ()).throw(StorageError("503")))
        time.sleep(SECONDS / 2)
        monkeypatch.setattr(held.store, "compare_and_swap", swap)
        assert not told.wait(SECONDS)
        monkeypatch.setattr(held.store, "compare_and_swap", lambda *_, **__: (_ for _ in ()).throw(StorageError("503")))
        assert told.wait(2 * SECONDS), "away for too long, and another may have it"


@pytest.fixture
def failing(bucket, monkeypatch):
    """A bucket behind a proxy that answers as it is told."""
    server = FaultProxy(os.environ["AWS_ENDPOINT_URL"]).start()
    server.fault, server.folder = "503", Folder.from_uri(f"{bucket}/weekly")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.stop()


def test_a_bucket_that_fails_for_a_moment_is_waited_for(failing, monkeypatch):
    monkeypatch.setattr(lease.retries, "MAX_ATTEMPTS", 3)
    failing.matches = lambda number, path: number in (1, 2, 4)
    with Lease(failing.folder, "first", SECONDS):
        assert failing.requests >= 5
        failing.matches = lambda number, path: True
    failing.matches = lambda number, path: False
    with Lease(failing.folder, "another", SECONDS):
        """What could not be given back has ended by itself."""


def test_a_beat_asks_once(failing):
    told = threading.Event()
    with Lease(failing.folder, "first", SECONDS, on_lost=told.set):
        before, failing.matches = failing.requests, lambda number, path: True
        assert told.wait(3 * SECONDS)
        assert failing.requests - before <= 6, "five beats before it is lost, and nothing behind them"


@pytest.mark.parametrize(("how", "message"), [("503", "SlowDown"), ("expired", "ExpiredToken")])
def test_a_bucket_that_does_not_serve_is_one_line(failing, monkeypatch, how, message):
    monkeypatch.setattr(lease.retries, "MAX_ATTEMPTS", 1)
    failing.fault, failing.matches = how, lambda number, path: True
    with (
        pytest.raises(StorageError, match=f"^s3://.*weekly/lease.json: .*{message}"),
        Lease(failing.folder, "first", SECONDS),
    ):
        pass


@pytest.mark.parametrize("delay", [2.5, None], ids=["no answer", "no server"])
def test_a_bucket_that_does_not_answer_ends_the_beats_in_time(failing, delay):
    told = threading.Event()
    with Lease(failing.folder, "first", SECONDS, on_lost=told.set) as held:
        if delay:
            failing.fault, failing.delay, failing.matches = "slow", delay, lambda number, path: True
        else:
            failing.stop()
        with pytest.raises(StorageError, match=r"^s3://.*weekly/lease\.json: "):
            lease_store(failing.folder, "lease.json", SECONDS).read(retry=False)
        assert told.wait(3 * SECONDS)
        assert held.lost


def test_a_holder_whose_beats_end_by_a_fault_of_ours_is_told(tmp_path, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with Lease(Folder.from_uri(tmp_path), "first", SECONDS, on_lost=told.set) as held:
        monkeypatch.setattr(held.store, "compare_and_swap", lambda *_: 1 / 0)
        assert told.wait(SECONDS)


def test_a_bucket_that_is_not_there_is_one_line(s3_server):
    with (
        pytest.raises(StorageError, match="NoSuchBucket"),
        Lease(Folder.from_uri("s3://gone/weekly"), "first", SECONDS),
    ):
        pass


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"file/lease\.json: "),
        Lease(Folder.from_uri(tmp_path / "file"), "first", SECONDS),
    ):
        pass


def test_what_is_no_lease_is_one_line(tmp_path):
    (tmp_path / "lease.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="expected a lease"), Lease(Folder.from_uri(tmp_path), "first", SECONDS):
        pass
