import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import GROUPS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _set_tracking_uri(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["prepare", "--recipe", "nope"],
            "recipe: got 'nope'; expected one of flux-dev-lora, flux2-klein-lora, gpu-smoke, pixart, qwen-image-lora",
        ),
        (
            ["distill", "--recipe", "nope"],
            "recipe: got 'nope'; expected one of flux-dev-lora, flux2-klein-lora, gpu-smoke, pixart, qwen-image-lora",
        ),
        (["prepare", "--set", "train.batch_size=-1"], "train.batch_size: got -1; expected a number above 0"),
        (["prepare", "--prompts", "gone.txt"], "prompts.sources: got 'gone.txt'; expected an existing file"),
        (["evaluate"], "no complete distill here (no manifest.json); run `python -m jobs distill` first"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--run", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_prepare_prints_a_summary(tmp_path, capsys):
    overrides = ["--set", "prompts.count=100", "--set", "prompts.negative_draws=50", "--set", "train.batch_size=8"]
    assert main(["prepare", "--run", str(tmp_path), *overrides]) == 0
    assert capsys.readouterr().out.startswith("prepared 100 prompts (shards: 1, prompts per epoch: 100) and 39 ")
    assert (tmp_path / "prompts" / "manifest.json").is_file()


def test_paths_of_prompts_may_have_any_characters(tmp_path, capsys):
    folder = tmp_path / "caf\u00e9 \U0001f98a [1] #2?"
    folder.mkdir()
    (folder / 'a "fox".txt').write_text("a red fox\n")
    overrides = ["--set", "prompts.negative_count=50", "--set", "train.batch_size=8"]
    assert main(["prepare", "--run", str(folder / "run"), "--prompts", str(folder / 'a "fox".txt'), *overrides]) == 0
    assert capsys.readouterr().out.startswith("prepared 1 prompts (shards: 1, ")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("prepare", "distill", "evaluate", "register", "train-shapes"))


def test_without_a_command_all_commands_are_listed_by_group(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    for title, group in GROUPS.items():
        assert f"{title}:" in lines
        for module in group:
            name = module.__name__.rpartition(".")[2].replace("_", "-")
            (line,) = (line for line in lines if line.split()[:1] == [name])
            assert line.endswith(module.__doc__)
    modules = {path.stem for path in (ROOT / "jobs").glob("*.py") if "def run(" in path.read_text()}
    listed = {module.__name__.rpartition(".")[2] for group in GROUPS.values() for module in group}
    assert listed == modules, "every command is in a group"


def test_help_imports_no_model_library():
    """Model libraries take seconds to import; each command imports what it needs."""
    code = "import jobs.__main__, sys; print(*{'torch', 'ray', 'mlflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_an_interrupted_command_prints_how_to_resume(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.prompts.prepare.prepare", interrupt)
    assert main(["prepare", "--run", str(tmp_path)]) == 130
    assert "run the same command again" in capsys.readouterr().err
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["prepare", "--run", str(tmp_path)]) == 130
    assert "submit it again with --retry" in capsys.readouterr().err, "the hint for a job on a cluster"
