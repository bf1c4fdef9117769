import pytest

from pipeline.errors import UserError
from pipeline.storage import Folder
from pipeline.training import preflight


def test_the_probe_of_a_store_leaves_nothing(tmp_path):
    preflight.check_store(Folder.of(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        preflight.check_store(Folder.of(tmp_path / "file" / "run"))
