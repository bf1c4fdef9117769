import pytest

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.hashing import sha256_of_folder
from pipeline.storage import Folder


def test_what_is_written_is_read_back(tmp_path):
    folder = Folder.from_uri(tmp_path)
    manifest.write(folder, "student", step=3, student_sha256="ab")
    assert manifest.read(folder, "student")["step"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no complete distill here"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "kind: got 'list'; expected 'distill'"),
        (b'{"kind": "prepare"}', "kind: got 'prepare'; expected 'distill'"),
        (b'{"kind": "distill"}', "recipe: got None; expected a string"),
    ],
)
def test_a_folder_that_is_not_one_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / manifest.NAME).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        manifest.read(Folder.from_uri(tmp_path), "distill")
    assert "\n" not in str(error.value)


def test_a_folder_s_hash_sees_names_and_contents(tmp_path):
    hashes = set()
    for name, content in (("a", "1"), ("a", "2"), ("b", "2")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.add(sha256_of_folder(folder))
        assert sha256_of_folder(folder) in hashes
    assert len(hashes) == 3
