"""Any damage to a checkpoint is detected."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import find_corruption, require_safe_pickles

WORKERS = 2


def save(folder, rank):
    """Save the part of one process."""

    def save_engines(target):
        (target / "student").mkdir()
        (target / "student" / f"zero_{rank}.pt").write_bytes(bytes(range(100)) * 30)

    checkpoint.save(
        SimpleNamespace(
            rank=rank,
            world_size=WORKERS,
            attempt=0,
            engines=SimpleNamespace(save=save_engines),
            ema={"w": torch.ones(3)},
            collect_student_weights=lambda: {"w": torch.ones(3)},
            recipe=SimpleNamespace(train=SimpleNamespace(zero_stage=2)),
        ),
        folder,
        step=4,
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return the content of all files that the processes wrote, by name."""
    files = {}
    for rank in range(WORKERS):
        folder = tmp_path_factory.mktemp(f"rank{rank}")
        save(folder, rank)
        files |= {
            file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
        }
    return files


@pytest.fixture
def intact(parts, tmp_path):
    return write_files(parts, tmp_path / "whole")


def write_files(parts, folder):
    for name, content in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_an_intact_checkpoint_passes(intact):
    assert find_corruption(intact) == ""


def test_a_missing_file_is_detected(parts, intact):
    for name in parts:
        content = (intact / name).read_bytes()
        (intact / name).unlink()
        assert "missing" in find_corruption(intact), name
        (intact / name).write_bytes(content)


def test_a_truncated_or_changed_file_is_detected(parts, intact):
    for name, content in parts.items():
        for damaged in (content[:-1], content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 255])):
            (intact / name).write_bytes(damaged)
            assert find_corruption(intact), (name, len(damaged))
        (intact / name).write_bytes(content)
    assert find_corruption(intact) == ""


@pytest.mark.parametrize(
    ("name", "text"), [("files-0.json", "{}"), ("files-1.json", "{}"), ("files-0.json", '{"x": 1}')]
)
def test_an_incomplete_file_list_is_detected(intact, name, text):
    (intact / name).write_text(text)
    assert find_corruption(intact) == f"{name} does not list all files of its rank"


@pytest.mark.parametrize("workers", [0, -1])
def test_a_checkpoint_without_workers_is_invalid(intact, workers):
    """Otherwise no file list would be required and any folder would pass."""
    (intact / "state.json").write_text(json.dumps({"workers": workers, "step": 4}))
    assert find_corruption(intact) == f"state.json names {workers} workers"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_arbitrary_content_of_a_list_or_state_is_detected(parts, tmp_path_factory, data):
    intact = write_files(parts, tmp_path_factory.mktemp("fuzz"))
    name = data.draw(st.sampled_from(["state.json", "files-0.json", "files-1.json"]))
    junk = st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
    (intact / name).write_bytes(data.draw(junk))
    assert find_corruption(intact)


class Bomb:
    """A pickle that runs code when it is read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_rejected_unread(tmp_path, legacy):
    file = tmp_path / "student" / "mp_rank_00_model_states.pt"
    file.parent.mkdir()
    torch.save(
        {"module": Bomb(f"touch {tmp_path}/ran"), "w": torch.ones(2)}, file, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt: holds more than tensors and numbers"):
        require_safe_pickles(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists(), "loading it would have run the code"


def test_a_link_out_of_the_folder_is_rejected(tmp_path):
    """Python's file search does not follow the link, but DeepSpeed would."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "checkpoint"
    for directory in (elsewhere, folder):
        directory.mkdir()
    torch.save({"module": Bomb(f"touch {tmp_path}/ran")}, elsewhere / "mp_rank_00_model_states.pt")
    (folder / "student").symlink_to(elsewhere)
    with pytest.raises(UserError, match="student: is a symbolic link, which is not followed"):
        require_safe_pickles(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + bytes(200)])
def test_a_file_that_is_not_a_checkpoint_is_reported(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: holds more than"):
        require_safe_pickles(tmp_path)
