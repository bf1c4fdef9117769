import pytest

from pipeline.registry import model_card
from pipeline.registry.evaluation_scores import Scores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlicense: creativeml-openrail-m\ntags: [a]\n---\n# Model"}, "creativeml-openrail-m"),
        ({"README.md": '---\ntags: [a]\nlicense: "mit" # free\n---\n'}, "mit"),
        ({"README.md": "---\ntags: [a]\n---\nlicense: no"}, "unknown"),
        ({"README.md": "license: no", "LICENSE": "\n  MIT License\n\nPermission"}, "MIT License (its LICENSE)"),
        ({"LICENSE.md": "Apache License\n"}, "Apache License (its LICENSE.md)"),
        ({}, "unknown"),
    ],
)
def test_the_teacher_s_licence_is_read_from_its_folder(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert model_card.find_licence(str(tmp_path)) == expected


def test_the_embedded_teacher_is_under_the_project_s_licence():
    assert model_card.find_licence("shapes") == "Apache-2.0"


def test_a_hub_that_does_not_answer_leaves_the_licence_unknown(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_card.find_licence("stable-diffusion-v1-5/stable-diffusion-v1-5") == "unknown"


def test_the_card_tells_licence_lineage_scores_and_use(candidate, tiny_teacher):
    made = candidate(0)
    page = model_card.render(
        made, Scores.read(made.evaluation), "nasa-tiny", {"num_inference_steps": 1, "guidance_scale": 0.0}
    )
    assert page.startswith("---\nlicense: other\n")
    assert "| licence of the teacher | unknown; check the source of the teacher before" in page
    assert 'pipe("a photo", num_inference_steps=1, guidance_scale=0.0)' in page
    assert "| clean_and_right | 0.50" in page
    assert "| 64 | version 1 |" in page
    for value in (made.student_sha256, made.teacher_sha256, made.data_sha256, made.mlflow_run, str(tiny_teacher)):
        assert value in page
