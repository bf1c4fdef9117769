"""Settings of ComfyUI's nodes for a student, and a workflow with them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, invalid
from pipeline.models.pipelines import read_student_diffusion, read_student_record

SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}  # by diffusers' prediction type
SAMPLER, SCHEDULER = "lcm", "simple"  # at full noise their timesteps are the student's
BASE_CHECKPOINT = "BASE.safetensors"  # in a LoRA's workflow, which names no checkpoint of the reader's
_COMMON = {
    "unet.in_channels": 4,
    "unet.layers_per_block": 2,
    "unet.norm_num_groups": 32,
    "scheduler.num_train_timesteps": 1000,
    "scheduler.beta_schedule": "scaled_linear",
    "scheduler.beta_start": 0.00085,
    "scheduler.beta_end": 0.012,
    "scheduler.rescale_betas_zero_snr": False,
}
_STABLE_DIFFUSION = {**_COMMON, "unet.block_out_channels": [320, 640, 1280, 1280], "vae.scaling_factor": 0.18215}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.x": {
        "unet.cross_attention_dim": 768,
        "unet.attention_head_dim": 8,
        "text_encoder.num_hidden_layers": 12,
        **_STABLE_DIFFUSION,
    },
    "Stable Diffusion 2.x": {
        "unet.cross_attention_dim": 1024,
        "unet.attention_head_dim": [5, 10, 20, 20],
        "text_encoder.num_hidden_layers": 23,
        **_STABLE_DIFFUSION,
    },
    "Stable Diffusion XL": {
        "unet.cross_attention_dim": 2048,
        "unet.attention_head_dim": [5, 10, 20],
        "unet.transformer_layers_per_block": [1, 2, 10],
        "unet.block_out_channels": [320, 640, 1280],
        "vae.scaling_factor": 0.13025,
        **_COMMON,
    },
}


@dataclass(frozen=True)
class ComfyUISettings:
    """The settings of ComfyUI's nodes for a student, as `settings.json` holds them.

    Attributes:
        file: name of the weights' file.
        kind: "checkpoint" or "lora".
        base_model: the model that a LoRA changes; empty for a checkpoint.
        timesteps: the timesteps of the student's steps.
        ksampler: inputs of the node KSampler; None if no sampler of ComfyUI takes these timesteps.
        model_sampling_discrete: inputs of the node ModelSamplingDiscrete.
        empty_latent_image: inputs of the node EmptyLatentImage.
        nasa_negative_prompt: inputs of the node NASANegativePrompt, but its text.
    """

    file: str
    kind: str
    base_model: str
    timesteps: tuple[int, ...]
    ksampler: dict[str, Any] | None
    model_sampling_discrete: dict[str, Any]
    empty_latent_image: dict[str, int]
    nasa_negative_prompt: dict[str, Any]

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def require_comfyui_architecture(student: Path) -> str:
    """Return the name of a student's architecture, one that ComfyUI knows by its shapes.

    Raises:
        UserError: The student is of another family, or of another width, such as the Shapes toy dataset's.
    """
    name = _name_architecture(student)
    if name is None:
        expected = f"a student of {', '.join(ARCHITECTURES)}; other families have no tested file for ComfyUI"
        raise invalid("format", _read_class(student), expected)
    for field, expected in ARCHITECTURES[name].items():
        part, key = field.split(".")
        value = _read_config(student, part).get(key, False)
        if value != expected:
            raise UserError(
                f"format: got 'comfyui' for a student with {field} {value}; expected {expected}, by which ComfyUI "
                f"knows {name}. Use --format diffusers."
            )
    return name


def _name_architecture(student: Path) -> str | None:
    if _read_class(student) == "StableDiffusionXLPipeline":
        return "Stable Diffusion XL"
    if _read_class(student) != "StableDiffusionPipeline":
        return None
    is_second = _read_config(student, "unet").get("use_linear_projection")
    return "Stable Diffusion 2.x" if is_second else "Stable Diffusion 1.x"


def _read_class(student: Path) -> str:
    return str(json.loads((student / "model_index.json").read_text())["_class_name"])


def _read_config(student: Path, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return dict(json.loads((student / part / name).read_text()))


def describe_settings(student: Path, file: str, scale: float, base_model: str = "") -> ComfyUISettings:
    """Return the settings of a student's nodes; `base_model` is set for a LoRA."""
    diffusion, record = read_student_diffusion(student), read_student_record(student)
    starts_last = diffusion.student_timesteps[0] == diffusion.steps - 1
    sampler = {"sampler_name": SAMPLER, "scheduler": SCHEDULER}
    steps = {"steps": diffusion.student_steps, "cfg": 1.0, "denoise": 1.0, **sampler}
    compression = 2 ** (len(_read_config(student, "vae")["block_out_channels"]) - 1)
    size = _read_config(student, "unet")["sample_size"] * compression
    return ComfyUISettings(
        file=file,
        kind="lora" if base_model else "checkpoint",
        base_model=base_model,
        timesteps=diffusion.student_timesteps,
        ksampler=steps if starts_last else None,
        model_sampling_discrete={"sampling": SAMPLING[diffusion.prediction_type], "zsnr": False},
        empty_latent_image={"width": record.get("width", size), "height": record.get("height", size), "batch_size": 1},
        nasa_negative_prompt={"scale": scale, "rule": "nasa", "start_percent": 0.0, "end_percent": 1.0},
    )


def build_workflow(settings: ComfyUISettings, name: str) -> dict[str, Any]:
    """Return a workflow in the format of ComfyUI's API, which also its interface opens."""
    assert settings.ksampler is not None
    checkpoint = settings.file if settings.kind == "checkpoint" else BASE_CHECKPOINT
    source = ["checkpoint", 0] if settings.kind == "checkpoint" else ["lora", 0]
    lora = {"model": ["checkpoint", 0], "lora_name": settings.file, "strength_model": 1.0}
    negative = {"clip": ["checkpoint", 1], "text": "blurry, low quality", **settings.nasa_negative_prompt}
    sampler = {"positive": ["positive", 0], "negative": ["empty", 0], "latent_image": ["latent", 0], "seed": 0}
    workflow = {
        "checkpoint": _node("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "lora": _node("LoraLoaderModelOnly", lora),
        "sampling": _node("ModelSamplingDiscrete", {"model": source, **settings.model_sampling_discrete}),
        "nasa": _node("NASANegativePrompt", {"model": ["sampling", 0], **negative}),
        "positive": _node("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": "a photo of a lighthouse"}),
        "empty": _node("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": ""}),
        "latent": _node("EmptyLatentImage", settings.empty_latent_image),
        "sample": _node("KSampler", {"model": ["nasa", 0], **sampler, **settings.ksampler}),
        "decode": _node("VAEDecode", {"samples": ["sample", 0], "vae": ["checkpoint", 2]}),
        "save": _node("SaveImage", {"images": ["decode", 0], "filename_prefix": name}),
    }
    used = [key for key in workflow if key != "lora" or settings.kind == "lora"]
    return _number(workflow, used)


def _node(class_type: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": dict(inputs)}


def _number(workflow: Mapping[str, dict[str, Any]], used: list[str]) -> dict[str, Any]:
    """Return the used nodes by numbers, as ComfyUI's interface expects them."""
    numbers = {name: str(number) for number, name in enumerate(used, 1)}
    return {
        numbers[name]: {
            **workflow[name],
            "inputs": {
                key: [numbers[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in workflow[name]["inputs"].items()
            },
        }
        for name in used
    }
