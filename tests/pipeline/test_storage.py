import os
import pickle
from pathlib import Path

import pytest

from benchmarks.chaos.fault_proxy import FaultProxy
from pipeline import storage
from pipeline.errors import StorageError, UserError
from pipeline.storage import Folder


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder.from_uri(tmp_path / "run")
    return Folder.from_uri(request.getfixturevalue("bucket") + "/run/")


def make_tree(root, **files):
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def read_tree(root):
    return {file.relative_to(root).as_posix(): file.read_text() for file in root.rglob("*") if file.is_file()}


def test_a_written_file_is_read_back(folder):
    assert not folder.exists("a.txt")
    folder.write("a.txt", b"one")
    folder.write("a.txt", b"two")
    (folder / "deep" / "er").write("b.txt", b"")
    assert folder.exists("a.txt")
    assert folder.read("a.txt") == b"two"
    assert (folder / "deep").read("er/b.txt") == b""
    assert not folder.exists("deep")


def test_a_missing_file_is_named(folder):
    with pytest.raises(UserError, match=r"run/gone.txt: no such file"):
        folder.read("gone.txt")


def test_an_uploaded_folder_can_be_downloaded(folder, tmp_path):
    source = make_tree(tmp_path / "source", a="1", unet__weights="2")
    (folder / "student").upload(source)
    assert read_tree((folder / "student").copy_to_local(tmp_path / "scratch")) == {"a": "1", "unet/weights": "2"}


def test_local_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Folder.from_uri("runs/demo").uri == f"{tmp_path}/runs/demo"
    assert Folder.from_uri("~/runs").uri == f"{Path.home()}/runs"
    assert Folder.from_uri("runs").copy_to_local(tmp_path / "unused") == tmp_path / "runs"


def test_a_failed_local_write_leaves_the_old_content(tmp_path, monkeypatch):
    folder = Folder.from_uri(tmp_path)
    folder.write("a.txt", b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"a.txt: cannot be written: No space left on device"):
        folder.write("a.txt", b"new")
    assert read_tree(tmp_path) == {"a.txt": "old"}


def test_an_upload_replaces_the_folder_as_a_whole(folder, tmp_path):
    target = folder / "student"
    target.upload(make_tree(tmp_path / "old", kept="1", stale__part="1"))
    target.upload(make_tree(tmp_path / "new", kept="2"))
    assert target.read("kept") == b"2"
    assert not target.exists("stale/part")


def test_a_failed_local_upload_leaves_the_old_content(tmp_path):
    target = Folder.from_uri(tmp_path / "target")
    target.upload(make_tree(tmp_path / "first", a="1"))
    with pytest.raises(UserError, match="target: cannot be written"):
        target.upload(tmp_path / "gone")
    assert read_tree(tmp_path / "target") == {"a": "1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "target"]


def test_a_folder_below_a_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    folder = Folder.from_uri(tmp_path / "file") / "prompts"
    with pytest.raises(UserError, match=r"prompts/a.txt: cannot be written"):
        folder.write("a.txt", b"")


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(UserError, match=r"s3://elsewhere/run/a.txt: cannot be written"):
        Folder.from_uri("s3://elsewhere/run").write("a.txt", b"")


def test_a_missing_s3_folder_is_named(bucket, tmp_path):
    with pytest.raises(UserError, match="s3://runs/gone: no such folder"):
        Folder.from_uri(f"{bucket}/gone").copy_to_local(tmp_path)


OPERATIONS = {
    "has": lambda folder, _: folder.exists("a"),
    "get_size": lambda folder, _: folder.get_size("a"),
    "read": lambda folder, _: folder.read("a"),
    "write": lambda folder, _: folder.write("a", b"1"),
    "remove": lambda folder, _: folder.remove("a"),
    "delete": lambda folder, _: folder.delete(),
    "list_files": lambda folder, _: folder.list_files(),
    "walk": lambda folder, _: folder.walk(),
    "upload": lambda folder, scratch: folder.upload(scratch),
    "copy_to_local": lambda folder, scratch: folder.copy_to_local(scratch),
}


def test_a_pickled_file_system_keeps_its_retries(bucket, monkeypatch):
    """Ray Train sends a pickled file system to its controller and workers."""
    server = FaultProxy(os.environ["AWS_ENDPOINT_URL"]).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr(storage.retry, "MAX_ATTEMPTS", 5)
    filesystem = pickle.loads(pickle.dumps(Folder.from_uri(f"{bucket}/run").filesystem))
    server.fault, server.matches = "503", lambda number, path: number < 5
    with filesystem.open_output_stream("runs/run/list.json") as stream:
        stream.write(b"[]")
    assert server.requests >= 5
    server.stop()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", ["503", "expired"])
def test_a_failing_store_is_reported_in_one_line(bucket, tmp_path, monkeypatch, operation, fault):
    server = FaultProxy(os.environ["AWS_ENDPOINT_URL"]).start()
    server.fault, server.matches = fault, lambda number, path: True
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr(storage.retry, "MAX_ATTEMPTS", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=rf"^{bucket}/run(/a)?: cannot be \w+: [^\n]+$"):
        OPERATIONS[operation](Folder.from_uri(f"{bucket}/run"), tmp_path)
    server.stop()
