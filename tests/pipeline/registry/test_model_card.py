import pytest

from pipeline.registry import model_card
from pipeline.registry.student_scores import Scores


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


def test_the_bundled_teacher_has_the_licence_of_the_project():
    assert model_card.find_licence("shapes") == "Apache-2.0"


def test_a_hub_that_does_not_answer_leaves_the_licence_unknown(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_card.find_licence("stable-diffusion-v1-5/stable-diffusion-v1-5") == "unknown"


def test_the_card_shows_licence_lineage_scores_and_usage(candidate, tiny_teacher):
    registered = candidate(0)
    page = model_card.render(
        registered, Scores.read(registered.evaluation), "nasa-tiny", {"num_inference_steps": 1, "guidance_scale": 0.0}
    )
    assert page.startswith("---\nlicense: other\n")
    assert "| licence of the teacher | unknown; check the source of the teacher before" in page
    assert 'pipe(prompt="a photo", num_inference_steps=1, guidance_scale=0.0' in page
    assert "| clean_and_right | 0.50" in page
    assert "| 64 | version 1 |" in page
    for value in (
        registered.student_sha256,
        registered.teacher_sha256,
        registered.data_sha256,
        registered.mlflow_run,
        str(tiny_teacher),
    ):
        assert value in page
