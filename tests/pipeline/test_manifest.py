import json

import pytest

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.hashing import hash_folder
from pipeline.manifest import DataFile, DistilledManifest
from pipeline.recipe import parse
from pipeline.storage import Folder

STUDENT = DistilledManifest(
    recipe=parse("", ['prompts.sources=[{path="mine", weight=0.5}]']),
    teacher_sha256="1",
    student_sha256="2",
    student_raw_sha256="3",
    prompts={"shard-0.parquet": DataFile(rows=1, bytes=2, sha256="4", source="mine")},
    mlflow_run="5",
    metrics={"step": 3, "loss": float("nan")},
)


def test_a_manifest_round_trips(tmp_path):
    folder = Folder.from_uri(tmp_path)
    manifest.write(folder, STUDENT)
    actual = manifest.read(folder, DistilledManifest)
    assert actual.model_copy(update={"metrics": {}}) == STUDENT.model_copy(update={"metrics": {}})
    assert actual.step == 3
    assert json.loads(folder.read(manifest.NAME))["kind"] == "distill"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no complete distill here.*run `python -m jobs distill` first"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "kind: got 'list'; expected 'distill'"),
        (b'{"kind": "prepare"}', "kind: got 'prepare'; expected 'distill'"),
        (b'{"kind": "distill"}', "recipe: got None; expected a value"),
        ({"student_sha256": 1}, "manifest.json: student_sha256: got 1; expected a string"),
        ({"prompts": {"a": {}}}, "manifest.json: prompts.a.rows: got None; expected a value"),
        ({"recipe": {"train": {"steps": "x"}}}, "manifest.json: recipe.train.steps: got 'x'; expected a whole number"),
    ],
)
def test_an_invalid_manifest_is_reported_in_one_line(tmp_path, content, message):
    if isinstance(content, dict):
        content = json.dumps({**STUDENT.to_dict(), **content}).encode()
    if content is not None:
        (tmp_path / manifest.NAME).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        manifest.read(Folder.from_uri(tmp_path), DistilledManifest)
    assert "\n" not in str(error.value)


def test_a_folder_hash_covers_names_and_contents(tmp_path):
    hashes = set()
    for name, content in (("a", "1"), ("a", "2"), ("b", "2")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.add(hash_folder(folder))
        assert hash_folder(folder) in hashes
    assert len(hashes) == 3
