"""The settings of ComfyUI's nodes for a student, and the architectures that ComfyUI knows."""

import json

import pytest

from nasa.testing import TINY_PIPELINES
from pipeline import models
from pipeline.errors import UserError
from pipeline.models import comfyui

SCALE = 0.4
CLASSES = {"Stable Diffusion XL": "StableDiffusionXLPipeline"}


def write_student(folder, name, changes=(), prediction="epsilon", **record):
    """Write the configuration files of a student of the true size."""
    fields = {**comfyui.ARCHITECTURES[name], "scheduler.prediction_type": prediction, "unet.sample_size": 64}
    fields |= {"vae.block_out_channels": [128, 256, 512, 512], "scheduler._class_name": "LCMScheduler"}
    fields |= {"unet.use_linear_projection": name != "Stable Diffusion 1.x", **dict(changes)}
    for part in ("unet", "vae", "scheduler", "text_encoder"):
        (folder / part).mkdir()
        values = {key.partition(".")[2]: value for key, value in fields.items() if key.startswith(f"{part}.")}
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / file).write_text(json.dumps(values))
    index = {"_class_name": CLASSES.get(name, "StableDiffusionPipeline")}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / models.STUDENT_FILE).write_text(json.dumps({"start_timestep": -1, "student_steps": 1, **record}))
    return folder


@pytest.mark.parametrize("name", comfyui.ARCHITECTURES)
def test_the_true_sizes_are_known(name, tmp_path):
    assert comfyui.require_comfyui_architecture(write_student(tmp_path, name)) == name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("unet.cross_attention_dim", 96, "unet.cross_attention_dim 96; expected 768, by which ComfyUI knows Stable"),
        ("vae.scaling_factor", 1.0196, "vae.scaling_factor 1.0196; expected 0.18215"),
        ("scheduler.beta_start", 0.0001, "scheduler.beta_start 0.0001; expected 0.00085"),
        ("scheduler.rescale_betas_zero_snr", True, "scheduler.rescale_betas_zero_snr True; expected False"),
        ("text_encoder.num_hidden_layers", 11, "text_encoder.num_hidden_layers 11; expected 12"),
    ],
)
def test_another_size_is_an_error(field, value, message, tmp_path):
    student = write_student(tmp_path, "Stable Diffusion 1.x", {field: value})
    with pytest.raises(UserError) as caught:
        comfyui.require_comfyui_architecture(student)
    assert str(caught.value).startswith(f"format: got 'comfyui' for a student with {message}")


def test_another_family_is_an_error(tmp_path):
    TINY_PIPELINES["pixart"]().save_pretrained(tmp_path)
    expected = (
        r"^format: got 'PixArtAlphaPipeline'; expected a student of Stable Diffusion 1\.x, Stable Diffusion 2\.x, "
    )
    with pytest.raises(UserError, match=expected):
        comfyui.require_comfyui_architecture(tmp_path)


def test_the_settings_are_those_of_the_student(tmp_path):
    record = {"student_steps": 4, "width": 512, "height": 768}
    student = write_student(tmp_path, "Stable Diffusion 2.x", prediction="v_prediction", **record)
    settings = comfyui.describe_settings(student, "a.safetensors", SCALE)
    assert json.loads(settings.to_json()) == {
        "file": "a.safetensors",
        "kind": "checkpoint",
        "base_model": "",
        "timesteps": [999, 749, 499, 249],
        "ksampler": {"steps": 4, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0},
        "model_sampling_discrete": {"sampling": "v_prediction", "zsnr": False},
        "empty_latent_image": {"width": 512, "height": 768, "batch_size": 1},
        "nasa_negative_prompt": {"scale": SCALE, "rule": "nasa", "start_percent": 0.0, "end_percent": 1.0},
    }


def test_a_start_that_no_sampler_takes_has_no_settings_of_one(tmp_path):
    student = write_student(tmp_path, "Stable Diffusion XL", start_timestep=399)
    settings = comfyui.describe_settings(student, "a.safetensors", SCALE)
    assert settings.ksampler is None
    assert settings.timesteps == (399,)
    assert settings.empty_latent_image["width"] == 512, "sample_size times the autoencoder's compression"


@pytest.mark.parametrize(("base_model", "count"), [("", 9), ("someone/model@v1", 10)])
def test_a_workflow_links_every_node(base_model, count, tmp_path):
    student = write_student(tmp_path, "Stable Diffusion 1.x")
    settings = comfyui.describe_settings(student, "a.safetensors", SCALE, base_model)
    workflow = comfyui.build_workflow(settings, "nasa-sd15-1")
    assert list(workflow) == [str(number) for number in range(1, count + 1)]
    by_class = {node["class_type"]: (number, node["inputs"]) for number, node in workflow.items()}
    links = {value[0] for node in workflow.values() for value in node["inputs"].values() if isinstance(value, list)}
    assert links == set(workflow) - {by_class["SaveImage"][0]}
    assert by_class["KSampler"][1]["model"] == [by_class["NASANegativePrompt"][0], 0]
    assert by_class["NASANegativePrompt"][1]["scale"] == SCALE
    if base_model:
        assert by_class["LoraLoaderModelOnly"][1]["lora_name"] == "a.safetensors"
        assert by_class["ModelSamplingDiscrete"][1]["model"] == [by_class["LoraLoaderModelOnly"][0], 0]
        assert by_class["CheckpointLoaderSimple"][1]["ckpt_name"] == comfyui.BASE_CHECKPOINT
    else:
        assert by_class["CheckpointLoaderSimple"][1]["ckpt_name"] == "a.safetensors"
