"""A checkpoint that is damaged is known to be, whatever is damaged."""

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
    """One process's part."""

    def save_engines(place):
        (place / "student").mkdir()
        (place / "student" / f"zero_{rank}.pt").write_bytes(bytes(range(100)) * 30)

    checkpoint.save(
        SimpleNamespace(
            rank=rank,
            world_size=WORKERS,
            attempt=0,
            engines=SimpleNamespace(save=save_engines),
            ema={"w": torch.ones(3)},
            student_weights=lambda: {"w": torch.ones(3)},
            recipe=SimpleNamespace(train=SimpleNamespace(zero_stage=2)),
        ),
        folder,
        step=4,
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What the processes wrote, each into a folder of its own, by name."""
    found = {}
    for rank in range(WORKERS):
        folder = tmp_path_factory.mktemp(f"rank{rank}")
        save(folder, rank)
        found |= {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return found


@pytest.fixture
def whole(parts, tmp_path):
    return written(parts, tmp_path / "whole")


def written(parts, folder):
    for name, content in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_whole_one_has_no_find_corruption(whole):
    assert find_corruption(whole) == ""


def test_every_file_is_missed(parts, whole):
    for name in parts:
        content = (whole / name).read_bytes()
        (whole / name).unlink()
        assert "missing" in find_corruption(whole), name
        (whole / name).write_bytes(content)


def test_every_file_that_is_cut_short_or_changed_is_seen(parts, whole):
    for name, content in parts.items():
        for damaged in (content[:-1], content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 255])):
            (whole / name).write_bytes(damaged)
            assert find_corruption(whole), (name, len(damaged))
        (whole / name).write_bytes(content)
    assert find_corruption(whole) == ""


@pytest.mark.parametrize(
    ("name", "text"), [("files-0.json", "{}"), ("files-1.json", "{}"), ("files-0.json", '{"x": 1}')]
)
def test_a_list_that_lists_too_little_is_a_find_corruption(whole, name, text):
    (whole / name).write_text(text)
    assert find_corruption(whole) == f"{name} does not list all files of its rank"


@pytest.mark.parametrize("workers", [0, -1])
def test_one_of_no_process_is_none(whole, workers):
    """Otherwise no list would be asked for, and anything would be whole."""
    (whole / "state.json").write_text(json.dumps({"workers": workers, "step": 4}))
    assert find_corruption(whole) == f"state.json names {workers} workers"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_bytes_of_a_list_or_a_state_end_in_a_traceback(parts, tmp_path_factory, data):
    whole = written(parts, tmp_path_factory.mktemp("fuzz"))
    name = data.draw(st.sampled_from(["state.json", "files-0.json", "files-1.json"]))
    junk = st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
    (whole / name).write_bytes(data.draw(junk))
    assert find_corruption(whole)


class Bomb:
    """A pickle that runs code when it is read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_unread(tmp_path, legacy):
    file = tmp_path / "student" / "mp_rank_00_model_states.pt"
    file.parent.mkdir()
    torch.save(
        {"module": Bomb(f"touch {tmp_path}/ran"), "w": torch.ones(2)}, file, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt: holds more than tensors and numbers"):
        require_safe_pickles(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have"


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    """Python's own search for files does not follow it; DeepSpeed would."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "checkpoint"
    for each in (elsewhere, folder):
        each.mkdir()
    torch.save({"module": Bomb(f"touch {tmp_path}/ran")}, elsewhere / "mp_rank_00_model_states.pt")
    (folder / "student").symlink_to(elsewhere)
    with pytest.raises(UserError, match="student: is a symbolic link, which is not followed"):
        require_safe_pickles(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + bytes(200)])
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: holds more than"):
        require_safe_pickles(tmp_path)
