"""The cache of registered versions on a machine, shared by its processes."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline.registry import version_cache
from pipeline.registry.version_cache import fetch_version


def test_a_version_is_downloaded_once_for_all_who_ask_at_a_time(four_versions, tmp_path, monkeypatch):
    shutil.copy(four_versions[0], tmp_path / "ml.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    downloads, download = [], version_cache._download_into

    def record(*arguments):
        downloads.append(arguments)
        time.sleep(0.2)
        download(*arguments)

    monkeypatch.setattr(version_cache, "_download_into", record)
    with ThreadPoolExecutor(4) as threads:
        fetched = list(threads.map(lambda _: fetch_version(f"sqlite:///{tmp_path}/ml.db", "nasa-tiny", "2"), range(4)))
    assert len(downloads) == 1
    assert {version.root for version in fetched} == {fetched[0].root}
    assert (fetched[0].student / "model_index.json").is_file()
