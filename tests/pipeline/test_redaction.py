import pytest

from jobs.__main__ import main
from pipeline.redaction import is_secret, redact

SECRET = "hush-hush-hush"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key {SECRET}!", "key ***!"),
        ("http://me:pass@mlflow:5000/x", "http://me:***@mlflow:5000/x"),
        ("postgresql+psycopg2://me:p/a:s@s@host/db", "postgresql+psycopg2://me:***@host/db"),
        (
            "https://b.s3.amazonaws.com/k?X-Amz-Signature=abc&x=1",
            "https://b.s3.amazonaws.com/k?X-Amz-Signature=***&x=1",
        ),
        ("http://sometoken@mlflow/x", "http://***@mlflow/x"),
        ("s3://b/r?secret_key=abc&access_key=def", "s3://b/r?secret_key=***&access_key=***"),
        ("Authorization: Bearer abcdefgh123", "Authorization: Bearer ***"),
        ("authorization=Basic abc=", "authorization=Basic ***"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.x", "Bearer ***"),
        ("a basic photograph of a bearer", "a basic photograph of a bearer"),
        ("a photo of a cat: 3 at 12:30, me@home", "a photo of a cat: 3 at 12:30, me@home"),
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("short", "short"),
    ],
)
def test_secrets_are_redacted_and_other_text_is_kept(text, expected):
    assert redact(text, {"AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": "short", "PATH": "photo of a cat"}) == expected


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "db_password", "API_KEY")
        ),
        *((name, True) for name in ("apikey", "OPENAI_APIKEY", "PGPASS", "PASSPHRASE", "DB_PWD", "AUTHORIZATION")),
        *((name, True) for name in ("HTTP_AUTH", "SSH_PRIVATEKEY", "COOKIE", "MLFLOW_TRACKING_HEADERS")),
        *((name, False) for name in ("PATH", "RAY_AUTH_TOKEN_PATH", "MONKEY", "KEYBOARD", "AWS_REGION", "X")),
        *((name, False) for name in ("RAY_AUTH_MODE", "AUTHOR", "COMPASS_X", "BYPASS_CACHE", "PWD")),
    ],
)
def test_environment_variables_with_secrets_are_recognised(name, secret):
    assert is_secret(name) is secret


def test_error_messages_are_redacted(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert main(["prepare", "--recipe", f"http://me:word@host/{SECRET}"]) == 2
    err = capsys.readouterr().err
    assert SECRET not in err
    assert "me:***@host/***" in err


@pytest.mark.parametrize(
    "override",
    ["student.init=s3://u:hushhush@b/x", "prompts.root=https://hushhush@hub/x", "teacher=s3://b/x?key=1&token=hush"],
)
def test_a_recipe_with_a_secret_is_rejected(tmp_path, capsys, override):
    """Recipes are written to manifests, reports, model cards and MLflow."""
    assert main(["distill", "--dry-run", "--run", str(tmp_path), "--set", override]) == 2
    out, err = capsys.readouterr()
    assert "hush" not in out + err
    assert "***" in err


def test_dry_run_output_is_redacted(tmp_path, capsys):
    command = ["distill", "--dry-run", "--run", str(tmp_path), "--tracking-uri", "https://me:word@mlflow"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "word@" not in out
    assert "https://me:***@mlflow" in out


@pytest.mark.parametrize("name", ["../../x", "", "a/b", "a:b", ".x", "a b", "x" * 101])
def test_an_invalid_recipe_name_is_rejected(name, capsys):
    assert main(["prepare", "--set", f"name={name!r}"]) == 2
    assert "name: " in capsys.readouterr().err


def test_files_of_a_manifest_cannot_leave_its_folder(tmp_path, capsys):
    overrides = ["--set", "prompts.count=40", "--set", "prompts.negative_draws=20", "--set", "train.batch_size=8"]
    run = ["--run", str(tmp_path / "run")]
    assert main(["prepare", *run, *overrides]) == 0
    manifest = tmp_path / "run/prompts/manifest.json"
    (tmp_path / "outside.parquet").write_bytes(b"x")
    for name in ("../../outside.parquet", str(tmp_path / "outside.parquet")):
        text = manifest.read_text()
        manifest.write_text(text.replace('"negatives.parquet"', f'"{name}"'))
        assert main(["distill", *run, *overrides]) == 2
        assert f"got {name!r}; expected names of files in this folder" in capsys.readouterr().err
        manifest.write_text(text)
