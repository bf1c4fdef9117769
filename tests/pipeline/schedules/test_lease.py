import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from pipeline.errors import UserError
from pipeline.schedules.lease import BusyError, Lease, store_of
from pipeline.storage import Folder

SECONDS = 1.0


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    return Folder.of(f"{request.getfixturevalue('bucket')}/weekly" if request.param == "s3" else tmp_path / "weekly")


def test_one_at_a_time_and_free_after(folder):
    with Lease(folder, "first", SECONDS), pytest.raises(BusyError, match=r"^first$"), Lease(folder, "second", SECONDS):
        pass
    started = time.monotonic()
    with Lease(folder, "second", SECONDS):
        assert time.monotonic() - started < SECONDS / 2, "a lease that was given back is taken without waiting"


def test_of_many_that_want_a_free_lease_one_has_it(folder):
    had, refused, all_refused = [], [], threading.Event()

    def want(number):
        try:
            with Lease(folder, f"holder {number}", SECONDS):
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
    with Lease(Folder.of(uri), "a process", SECONDS):
        held.set()
        time.sleep(60)


def test_it_ends_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold_forever, args=(str(tmp_path), held))
    holder.start()
    assert held.wait(30)
    with pytest.raises(BusyError, match="a process"), Lease(Folder.of(tmp_path), "another", SECONDS):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Lease(Folder.of(tmp_path), "another", SECONDS):
        assert json.loads((tmp_path / "lease.json").read_text())["holder"] == "another"


def test_a_holder_whose_lease_was_taken_is_told(folder):
    told = threading.Event()
    with Lease(folder, "first", SECONDS, on_lost=told.set) as lease:
        store = store_of(folder, "lease.json")
        other = {"holder": "second", "id": "x", "beat": 1}
        while not store.swap(store.read()[1], other):
            pass
        assert told.wait(5)
        assert lease.lost
    assert store.read()[0] == other, "what is another's is left alone"


def test_a_store_that_is_away_for_a_moment_does_not_end_it(tmp_path, monkeypatch):
    told = threading.Event()
    with Lease(Folder.of(tmp_path), "first", SECONDS, on_lost=told.set) as lease:
        swap = lease.store.swap
        monkeypatch.setattr(lease.store, "swap", lambda *_: (_ for _ in ()).throw(OSError("503")))
        time.sleep(SECONDS / 2)
        monkeypatch.setattr(lease.store, "swap", swap)
        assert not told.wait(SECONDS)
        monkeypatch.setattr(lease.store, "swap", lambda *_: (_ for _ in ()).throw(OSError("503")))
        assert told.wait(2 * SECONDS), "away for too long, and another may have it"


def test_what_is_no_lease_is_one_line(tmp_path):
    (tmp_path / "lease.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="is no lease"), Lease(Folder.of(tmp_path), "first", SECONDS):
        pass
