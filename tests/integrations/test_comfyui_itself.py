"""The exported files and the node in the real ComfyUI, against `nasa.steer` in diffusers on the same noise.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python python -m pytest tests/integrations

ComfyUI runs in a process of its own, whose interpreter needs ComfyUI's requirements and no package of this project.
`COMFYUI_STUDENT` names a student's folder to take instead of the bundled teacher.
"""

import copy
import json
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from hook_contract import CONTRACT
from safetensors.torch import load_file, save_file
from small_pipelines import build_scheduler, small_sd15, small_sd21, small_sdxl
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import nasa
from nasa.diffusion_process import decode_latents
from nasa.lora import add_lora, collect_adapters, merge_weights
from nasa.schedulers import build_lcm, build_one_step_ddim
from pipeline import models
from pipeline.models import comfyui
from pipeline.models.single_file import build_single_file
from pipeline.shapes import WEIGHTS

ROOT = Path(__file__).parents[2]
NODE = ROOT / "integrations/comfyui/nasa_negative_prompt"
COMFYUI = os.environ.get("COMFYUI_PATH", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH is not set; it names a checkout of ComfyUI"),
]

PIXEL_TOLERANCE = 0.01  # of 255; the two libraries sum in another order
LATENT_TOLERANCE = 1e-5  # relative to the largest latent
HIDDEN_TOLERANCE = 1e-5
LEAST_EFFECT = 0.01  # a steered latent differs by more, relative to the largest
LEAST_LATE_EFFECT = 3 * LATENT_TOLERANCE  # an untrained epsilon network's first step outweighs its second
PROMPT, NEGATIVE, OTHER = "a photo of a shape", "red", "blurry"
RULES = {"nasa": 0.5, "nag": 2.0, "vsf": 0.5}
TWO_STEPS = (999, 499)
LORA_FILE = "{}-lora.safetensors"
TIMEOUT = 1800
FIRST_STEP_PERCENT = 0.25  # the sigma of timestep 749


@dataclass(frozen=True)
class Model:
    """A pipeline, the options that ComfyUI's detection cannot find for its width, and the student's timesteps."""

    pipe: object
    family: str
    extra: dict
    timesteps: tuple


def load_shapes():
    pipe = models.load_pipeline(Path(os.environ.get("COMFYUI_STUDENT") or WEIGHTS / "teacher"))
    pipe.scheduler = build_one_step_ddim(pipe.scheduler.config)
    extra = {"num_heads": 4, "groups": 16, "prediction": "V_PREDICTION"}
    return Model(pipe, "SD15", extra, (999,))


def with_lcm(pipe, family, extra):
    pipe.scheduler = build_lcm(pipe.scheduler.config)
    return Model(pipe, family, extra, TWO_STEPS)


BUILDERS = {
    "shapes": load_shapes,
    "sd15": lambda: with_lcm(small_sd15(), "SD15", {}),
    "sd21": lambda: with_lcm(small_sd21(), "SD20", {"num_head_channels": 16, "prediction": "V_PREDICTION"}),
    "sdxl": lambda: with_lcm(small_sdxl(), "SDXL", {"num_head_channels": 16}),
}


def build_node(text=NEGATIVE, **options):
    return {"text": text, "scale": 0.5, **options}


def list_cases(model):
    """Return each case's nodes and options in ComfyUI."""
    cases = {
        "plain": {"nodes": []},
        "scale 0": {"nodes": [build_node(scale=0.0)]},
        "two negatives": {"nodes": [build_node(), build_node(OTHER, scale=0.25)]},
        "nag on nasa": {"nodes": [build_node(), build_node(OTHER, rule="nag")]},
        "vsf on nasa": {"nodes": [build_node(), build_node(OTHER, rule="vsf")]},
        "cfg": {"nodes": [], "cfg": 3.0},
        "cfg and nasa": {"nodes": [build_node()], "cfg": 3.0},
        **{rule: {"nodes": [build_node(rule=rule, scale=scale)]} for rule, scale in RULES.items()},
    }
    if len(model.timesteps) > 1:
        cases["first step"] = {"nodes": [build_node(end_percent=FIRST_STEP_PERCENT)]}
        cases["second step"] = {"nodes": [build_node(start_percent=FIRST_STEP_PERCENT)]}
        cases["LoRA"] = {"nodes": [], "lora": LORA_FILE.format(model.family)}
        cases["LoRA and nasa"] = {**cases["LoRA"], "nodes": [build_node()]}
    sampler = {"sampler": "lcm"} if len(model.timesteps) > 1 else {}
    return {name: {**case, **sampler} for name, case in cases.items()}


def make_noise(model):
    size = model.pipe.unet.config.sample_size
    return torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(0))


def encode(pipe, text):
    """Return a text's embeddings, and with SDXL the pooled ones."""
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    encoded = pipe.encode_prompt(text, **options)
    return encoded[0], encoded[2] if isinstance(pipe, StableDiffusionXLPipeline) else None


@contextmanager
def adapt(unet):
    """Add random adapters to a UNet, and merge them; restore it afterwards."""
    original = {name: value.clone() for name, value in unet.state_dict().items()}
    adapted = copy.deepcopy(unet)
    add_lora(adapted, rank=2, lora_alpha=8, target_modules=["to_k", "to_q", "to_v", "to_out.0", "conv1", "proj_in"])
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    unet.load_state_dict(merge_weights(adapted))
    yield collect_adapters(adapted)
    unet.load_state_dict(original)


def write_model(name, model, folder):
    """Write a model's checkpoint and tensors, and return its tasks."""
    save_file(build_single_file(model.pipe), folder / f"{name}.safetensors")
    noise = make_noise(model)
    tensors = {"noise": noise}
    for key, text in (("positive", PROMPT), ("unconditional", ""), ("text.red", NEGATIVE), ("text.blurry", OTHER)):
        tensors[key], pooled = encode(model.pipe, text)
        if pooled is not None:
            tensors[f"{key}.pooled"] = pooled
    if len(model.timesteps) > 1:
        with adapt(model.pipe.unet) as adapters:
            models.save_lora(folder, "unet", adapters)
            (folder / models.COMFYUI_FILE).rename(folder / LORA_FILE.format(model.family))
        generator = torch.Generator().manual_seed(1)
        tensors["step_noises"] = torch.randn(noise.shape, generator=generator)[None]
    save_file(tensors, folder / f"{name}-tensors.safetensors")
    common = {"checkpoint": f"{name}.safetensors", "tensors": f"{name}-tensors.safetensors"}
    common |= {"family": model.family, "timesteps": model.timesteps, **model.extra}
    tasks = [{"kind": "sample", "name": name, "cases": list_cases(model), **common}]
    if name == "sd15":
        tasks.append({"kind": "contract", "name": "contract", **common})
        tasks.append({"kind": "schedule", "name": "schedule", "scheduler": comfyui.SCHEDULER, **common})
    if name != "shapes":
        tasks.append({"kind": "encode", "name": f"{name} texts", **describe_encoders(model), **common})
    return tasks


ENCODERS = {"SD15": ["clip_l"], "SD20": ["clip_h"], "SDXL": ["clip_l", "clip_g"]}


def list_encoders(model):
    parts = [model.pipe.text_encoder, getattr(model.pipe, "text_encoder_2", None)]
    return dict(zip(ENCODERS[model.family], [part for part in parts if part is not None], strict=True))


def describe_encoders(model):
    tokens = model.pipe.tokenizer(PROMPT, padding="max_length", truncation=True).input_ids
    return {
        "encoders": {name: part.config.to_dict() for name, part in list_encoders(model).items()},
        "tokens": [tokens],
    }


FULL_SIZE = {
    "SD15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD20": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "SDXL": {
        "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
SCALES = {"SD15": 0.18215, "SD20": 0.18215, "SDXL": 0.13025}


def build_parts(family):
    """Return UNet, autoencoder and text encoders of the true size, with random weights."""
    large = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    clip["hidden_act"], large["hidden_act"] = "quick_gelu", "gelu"
    clip_h = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    clip_g = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    parts = {
        "unet": UNet2DConditionModel(sample_size=64, **FULL_SIZE[family]),
        "vae": AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, scaling_factor=SCALES[family],
        ),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**{**large, **(clip_h if family == "SD20" else clip)})),
    }  # fmt: skip
    if family == "SDXL":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**large, **clip_g, projection_dim=1280))
    return parts


def build_full_size(family):
    """Return a pipeline of the true size without memory: all its tensors are one number, expanded."""
    with torch.device("meta"):
        parts = build_parts(family)
    for part in parts.values():
        for module in part.modules():
            for key, value in module._parameters.items():
                if value is not None:
                    module._parameters[key] = torch.nn.Parameter(
                        torch.zeros(()).expand(value.shape), requires_grad=False
                    )
    return type("StableDiffusionXLPipeline" if family == "SDXL" else "StableDiffusionPipeline", (), parts)


def write_full_size(family, folder):
    checkpoint = build_single_file(build_full_size(family)())
    shapes = {name: list(value.shape) for name, value in checkpoint.items()}
    (folder / f"{family}.json").write_text(json.dumps(shapes))
    return {"kind": "detect", "name": f"detect {family}", "shapes": f"{family}.json"}


def write_workflow(kind, folder):
    settings = comfyui.ComfyUISettings(
        f"student-{kind}.safetensors", kind, "base" if kind == "lora" else "", (999, 499),
        {"steps": 2, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0},
        {"sampling": "eps", "zsnr": False}, {"width": 512, "height": 512, "batch_size": 1},
        {"scale": 0.5, "rule": "nasa", "start_percent": 0.0, "end_percent": 1.0},
    )  # fmt: skip
    (folder / f"{kind}.json").write_text(json.dumps(comfyui.build_workflow(settings, "student")))
    files = {"checkpoints": comfyui.BASE_CHECKPOINT if kind == "lora" else settings.file}
    files |= {"loras": settings.file} if kind == "lora" else {}
    return {"kind": "validate", "name": f"{kind} workflow", "workflow": f"{kind}.json", "files": files}


@pytest.fixture(scope="module")
def small_models():
    return {name: build() for name, build in BUILDERS.items()}


def run_comfyui(folder, tasks):
    """Run tasks in a process with ComfyUI; return its results and tensors."""
    (folder / "tasks.json").write_text(json.dumps(tasks))
    script = ROOT / "tests/data/comfyui/run_comfyui.py"
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, str(script), COMFYUI, str(NODE), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "results.json").read_text()), load_file(folder / "results.safetensors")


@pytest.fixture(scope="module")
def outcome(small_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    tasks = [task for name, model in small_models.items() for task in write_model(name, model, folder)]
    tasks += [write_workflow(kind, folder) for kind in ("checkpoint", "lora")]
    tasks += [write_full_size(family, folder) for family in FULL_SIZE]
    return run_comfyui(folder, tasks)


def sample_in_diffusers(model, guidance_scale=0.0, **options):
    """Return latents, steered if there are options of `nasa.steer`."""
    pipe, noise = model.pipe, make_noise(model)
    steps = {"num_inference_steps": 1} if len(model.timesteps) == 1 else {"timesteps": list(model.timesteps)}
    pixels = noise.shape[-1] * pipe.vae_scale_factor
    call = {
        "prompt": [PROMPT] * len(noise), "latents": noise, "generator": torch.Generator().manual_seed(1),
        "guidance_scale": guidance_scale, "output_type": "latent", "height": pixels, "width": pixels, **steps,
    }  # fmt: skip
    if guidance_scale > 1:
        call["negative_prompt"] = [""] * len(noise)
    with torch.no_grad(), nasa.steer(pipe, NEGATIVE, **{"scale": 0.0, **options}):
        return pipe(**call).images


STEER = {
    "plain": {},
    "scale 0": {},
    "nasa": {"scale": RULES["nasa"]},
    "nag": {"scale": RULES["nag"], "rule": "nag"},
    "vsf": {"scale": RULES["vsf"], "rule": "vsf"},
    "cfg": {"guidance_scale": 3.0},
    "cfg and nasa": {"guidance_scale": 3.0, "scale": 0.5},
    "first step": {"scale": 0.5, "steps": range(1)},
    "second step": {"scale": 0.5, "steps": range(1, 2)},
    "LoRA": {"lora": True},
    "LoRA and nasa": {"lora": True, "scale": 0.5},
}


def compare(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def list_comparisons():
    return [
        (name, case)
        for name in BUILDERS
        for case in STEER
        if name != "shapes" or case not in ("first step", "second step", "LoRA", "LoRA and nasa")
    ]


@pytest.mark.parametrize(("name", "case"), list_comparisons(), ids=lambda value: value)
def test_the_node_samples_what_steer_samples(name, case, small_models, outcome):
    model, found = small_models[name], outcome[1][f"{name}.{case}"]
    options = dict(STEER[case])
    with adapt(model.pipe.unet) if options.pop("lora", False) else nullcontext():
        expected = sample_in_diffusers(model, **options)
    difference = compare(found, expected)
    decoded = [decode_latents(model.pipe.vae, latents).detach().clamp(-1, 1) for latents in (found, expected)]
    pixels = float((decoded[0] - decoded[1]).abs().max()) * 127.5
    print(f"{name}, {case}: latents {difference:.1e}, pixels {pixels:.1e} of 255")
    assert difference <= LATENT_TOLERANCE
    assert pixels <= PIXEL_TOLERANCE


@pytest.mark.parametrize("name", BUILDERS)
def test_steering_has_an_effect_and_scale_0_has_none(name, small_models, outcome):
    _, tensors = outcome
    plain = tensors[f"{name}.plain"]
    assert torch.equal(tensors[f"{name}.scale 0"], plain)
    for case in list_cases(small_models[name]):
        if case not in ("plain", "scale 0", "vsf on nasa"):
            least = LEAST_LATE_EFFECT if case == "second step" else LEAST_EFFECT
            assert compare(tensors[f"{name}.{case}"], plain) > least, case
    assert outcome[0][name]["untouched"], "the node changes a clone"
    for first, second in (("two negatives", "nasa"), ("nag on nasa", "nasa"), ("cfg and nasa", "cfg")):
        assert compare(tensors[f"{name}.{first}"], tensors[f"{name}.{second}"]) > LEAST_EFFECT / 10


def test_a_second_negative_with_vsf_is_an_error(outcome):
    message = bytes(outcome[1]["sd15.vsf on nasa.error"].tolist()).decode()
    assert message == "rule: got 'vsf' for a model with another attention patch; expected 'nasa' or 'nag'."


def test_the_recorded_contract_is_comfyui_s(outcome):
    contract = outcome[0]["contract"]
    assert contract["facts"] == CONTRACT
    assert contract["layers"] == 16
    assert contract["calls"] == contract["layers"] * len(TWO_STEPS), "one call for both halves of the batch"
    assert contract["parts"] == ["to_q", "to_k", "to_v", "to_out"]


def test_the_simple_scheduler_has_the_student_s_timesteps(outcome):
    from nasa.diffusion_process import DiffusionProcess

    for steps, timesteps in outcome[0]["schedule"].items():
        process = DiffusionProcess.from_alphas_cumprod(torch.ones(1000), "v_prediction", student_steps=int(steps))
        assert tuple(timesteps) == process.student_timesteps


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "shapes"])
def test_comfyui_s_text_encoder_has_the_checkpoint_s_weights(name, small_models, outcome):
    model = small_models[name]
    tokens = torch.tensor(describe_encoders(model)["tokens"])
    for part, encoder in list_encoders(model).items():
        with torch.no_grad():
            expected = encoder(tokens, output_hidden_states=True)
        last = expected.last_hidden_state
        assert compare(outcome[1][f"{name} texts.{part}.last"], last) <= HIDDEN_TOLERANCE
        assert compare(outcome[1][f"{name} texts.{part}.hidden"], expected.hidden_states[-2]) <= HIDDEN_TOLERANCE
        if part == "clip_g":
            assert compare(outcome[1][f"{name} texts.{part}.projected"], expected.text_embeds) <= HIDDEN_TOLERANCE


@pytest.mark.parametrize("kind", ["checkpoint", "lora"])
def test_comfyui_s_server_accepts_the_workflow(kind, outcome):
    result = outcome[0][f"{kind} workflow"]
    assert result["valid"], result


@pytest.mark.parametrize(("family", "detected"), [("SD15", "SD15"), ("SD20", "SD20"), ("SDXL", "SDXL")])
def test_comfyui_detects_a_checkpoint_of_the_true_size(family, detected, outcome):
    result = outcome[0][f"detect {family}"]
    assert result["detected"] == detected
    assert result["wrong"] == [], "every tensor of the UNet and the autoencoder, and no other"
    assert result["wrong_texts"] == []
    ignored = ("logit_scale", "text_projection.weight")
    missing = [name for name in result["missing_texts"] if not name.endswith(ignored)]
    last_of_openclip = "clip_h.transformer.text_model.encoder.layers.23."  # diffusers leaves it out, and none reads it
    assert [name for name in missing if not name.startswith(last_of_openclip)] == []
    assert result["latent_scale"] == SCALES[family]


SEED, PIXELS, FULL_SCALE = 0, 256, 0.5
FULL_SIZE_TOLERANCE = 0.5  # of 255: half a step of an image's eight bits


def build_full_student(family, prediction_type, folder):
    """Write the configuration of a student of the true size with random weights, and return its pipeline."""
    torch.manual_seed(0)
    tokens = {"model_max_length": 77, "pad_token": "!" if family == "SD20" else "<|endoftext|>"}
    pipe = StableDiffusionPipeline(
        **build_parts(family), tokenizer=CLIPTokenizer.from_pretrained(Path(COMFYUI) / "comfy/sd1_tokenizer", **tokens),
        scheduler=build_one_step_ddim(build_scheduler(prediction_type).config), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for part in ("unet", "vae", "scheduler"):
        getattr(pipe, part).save_config(folder / part)
    pipe.text_encoder.config.save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": type(pipe).__name__}))
    (folder / models.STUDENT_FILE).write_text(json.dumps({"start_timestep": -1, "height": PIXELS, "width": PIXELS}))
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "prediction_type"),
    [("SD15", "Stable Diffusion 1.x", "epsilon"), ("SD20", "Stable Diffusion 2.x", "v_prediction")],
)
def test_a_student_of_the_true_size_makes_the_same_image_from_the_exported_workflow(
    family, name, prediction_type, tmp_path
):
    """ComfyUI loads the checkpoint by itself, tokenises, encodes, samples and decodes: 4 GB of disk, 14 of memory."""
    pipe = build_full_student(family, prediction_type, tmp_path / "student")
    assert comfyui.require_comfyui_architecture(tmp_path / "student") == name
    settings = comfyui.describe_settings(tmp_path / "student", "full.safetensors", FULL_SCALE)
    workflow = comfyui.build_workflow(settings, "full")
    (tmp_path / "full.json").write_text(json.dumps(workflow))
    checkpoints = tmp_path / "models/checkpoints"
    checkpoints.mkdir(parents=True)
    save_file(build_single_file(pipe), checkpoints / settings.file)
    task = {"kind": "workflow", "name": "full", "workflow": "full.json", "files": {"checkpoints": settings.file}}
    results, tensors = run_comfyui(tmp_path, [task])
    (checkpoints / settings.file).unlink()
    assert results["full"]["valid"]
    texts = [entry["inputs"]["text"] for entry in workflow.values() if "text" in entry["inputs"]]
    negative, prompt = texts[0], texts[1]
    noise = torch.randn(1, 4, PIXELS // 8, PIXELS // 8, generator=torch.manual_seed(SEED))
    call = {"latents": noise, "num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "pt"}
    images = {}
    for scale in (FULL_SCALE, 0.0):
        with torch.no_grad(), nasa.steer(pipe, negative, scale=scale):
            images[scale] = pipe(prompt, height=PIXELS, width=PIXELS, **call).images.permute(0, 2, 3, 1)
    difference = float((tensors["full.VAEDecode"] - images[FULL_SCALE]).abs().max()) * 255
    effect = float((images[0.0] - images[FULL_SCALE]).abs().max()) * 255
    print(f"{name}, full size: pixels {difference:.1e} of 255; the negative's effect {effect:.1f}")
    assert difference <= FULL_SIZE_TOLERANCE < effect / 4
