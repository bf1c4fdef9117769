import json
import shutil

import pytest
from diffusers import EDMEulerScheduler

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.storage import Folder
from pipeline.training import preflight


def test_the_storage_check_leaves_no_files(tmp_path):
    preflight.check_storage(Folder.from_uri(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        preflight.check_storage(Folder.from_uri(tmp_path / "file" / "run"))


def test_an_epsilon_teacher_without_signal_at_its_last_timestep_is_rejected(tiny_teacher, tmp_path):
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    file = folder / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text()) | {"rescale_betas_zero_snr": True, "_class_name": "DDIMScheduler"}
    file.write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"^method.start_timestep: got -1, where alpha is 0; expected alpha of at least"
    ):
        preflight._check_models(recipe.parse(""), folder, None)
    preflight._check_models(recipe.parse("", ["method.start_timestep=900"]), folder, None)


def test_a_teacher_with_another_diffusion_process_is_rejected(tiny_teacher, tmp_path):
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    components = json.loads(index.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}
    index.write_text(json.dumps(components))
    with pytest.raises(UserError, match=r"^teacher.scheduler: got EDMEulerScheduler; expected one of flow"):
        preflight._check_models(recipe.parse(""), folder, None)
