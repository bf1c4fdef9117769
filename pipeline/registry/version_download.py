"""Download of a version: as it is registered, its LoRA alone, or a file for ComfyUI."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from safetensors.torch import save_file

from pipeline import models, tracking
from pipeline.errors import UserError, invalid
from pipeline.hashing import hash_folder
from pipeline.models import comfyui
from pipeline.models.single_file import build_single_file
from pipeline.recipe import parse
from pipeline.registry import mlflow_registry
from pipeline.registry.lora_use import describe_lora
from pipeline.registry.mlflow_registry import CHAMPION
from pipeline.registry.version_artifacts import STUDENT

SETTINGS_FILE, WORKFLOW_FILE = "settings.json", "workflow_api.json"


@dataclass(frozen=True)
class DownloadedVersion:
    """A version's artifacts on this machine, verified."""

    name: str
    number: str
    root: Path

    @property
    def student(self) -> Path:
        """The student's diffusers folder."""
        return self.root / STUDENT

    @property
    def scale(self) -> float:
        """The alpha that the evaluation chose, or the default."""
        config = Model.load(str(self.root)).flavors["python_function"]["config"]
        return float(config["scale"])

    @property
    def model_card(self) -> str:
        """The version's model card, in Markdown."""
        return (self.root / "README.md").read_text(encoding="utf-8")

    @property
    def base_model(self) -> str:
        """The model that the student's LoRA changes, with its revision; empty for a whole student."""
        if not (self.student / models.LORA_FILE).is_file():
            return ""
        recipe = parse((self.root / "recipe.toml").read_text(encoding="utf-8"), [])
        use = describe_lora(recipe, self.student)
        return "" if use is None else use.base + (f"@{use.revision}" if use.revision else "")


def download(
    tracking_uri: str, name: str, folder: Path, version: str | None = None, output_format: str = "diffusers"
) -> tuple[str, Path]:
    """Download a version, by default the champion, into a new folder; return its number and the folder.

    The files are downloaded beside the folder, verified, and renamed into place together: the folder is complete, or
    it is not there.

    Raises:
        UserError: The version does not exist, was changed, or has no such format; or the folder is not empty.
    """
    target = folder.expanduser().resolve()
    with tracking.open_client(tracking_uri) as client:
        registered = _find_version(client, name, version)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise invalid("out", str(folder), "an empty or a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        with tracking.open_client(tracking_uri):
            root = _download_verified(registered, Path(scratch) / "version")
        downloaded = DownloadedVersion(name, str(registered.version), root)
        FORMATS[output_format](downloaded, Path(scratch) / "out").replace(target)
    return downloaded.number, folder


def _find_version(client: MlflowClient, name: str, version: str | None) -> ModelVersion:
    mlflow_registry.require_model(client, name)
    number = version or mlflow_registry.get_aliases(client, name).get(CHAMPION)
    if number is None:
        raise UserError(f"name: {name} has no champion. Pass --version NUMBER.")
    return mlflow_registry.get_version(client, name, number, "version")


def _download_verified(registered: ModelVersion, folder: Path) -> Path:
    """Download a version's artifacts, and return their folder, which is a subfolder for some stores."""
    folder.mkdir()
    mlflow.artifacts.download_artifacts(artifact_uri=registered.source, dst_path=str(folder))
    (root,) = [file.parent for file in folder.rglob("MLmodel")]
    if hash_folder(root / STUDENT) != registered.tags.get(mlflow_registry.STUDENT, ""):
        raise UserError(f"{registered.source}/{STUDENT}: is not what was registered (its checksum is another)")
    return root


def _keep_all(version: DownloadedVersion, _: Path) -> Path:
    return version.root


def _write_lora(version: DownloadedVersion, out: Path) -> Path:
    """Copy the adapter's file, and write the pipeline's options for it."""
    _require_lora(version)
    out.mkdir()
    shutil.copy2(version.student / models.LORA_FILE, out)
    settings: dict[str, Any] = {
        "file": models.LORA_FILE,
        "base_model": version.base_model,
        "lora_scale": 1.0,  # B holds lora_alpha / rank
        "scheduler": json.loads((version.student / "model_index.json").read_text())["scheduler"][1],
        "call": models.build_call_options(version.student),
        "nasa_scale": version.scale,
    }
    (out / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    return out


def _require_lora(version: DownloadedVersion) -> None:
    if not (version.student / models.LORA_FILE).is_file():
        raise UserError(
            f"format: got 'lora' for version {version.number} of {version.name}, a whole student; expected a LoRA "
            "student. Extract a LoRA with `python -m jobs extract-lora`."
        )


def _write_comfyui(version: DownloadedVersion, out: Path) -> Path:
    """Write a checkpoint, or copy a LoRA student's adapter, with the settings of ComfyUI's nodes and a workflow."""
    comfyui.require_comfyui_architecture(version.student)
    out.mkdir()
    base_model, stem = version.base_model, f"{version.name}-{version.number}"
    file = f"{stem}{'-lora' if base_model else ''}.safetensors"
    if base_model:
        shutil.copy2(version.student / models.COMFYUI_FILE, out / file)
    else:
        save_file(build_single_file(models.load_pipeline(version.student)), out / file, metadata={"format": "pt"})
    settings = comfyui.describe_settings(version.student, file, version.scale, base_model)
    (out / SETTINGS_FILE).write_text(settings.to_json())
    if settings.ksampler:
        (out / WORKFLOW_FILE).write_text(json.dumps(comfyui.build_workflow(settings, stem), indent=2) + "\n")
    return out


FORMATS: dict[str, Callable[[DownloadedVersion, Path], Path]] = {
    "diffusers": _keep_all,
    "lora": _write_lora,
    "comfyui": _write_comfyui,
}
