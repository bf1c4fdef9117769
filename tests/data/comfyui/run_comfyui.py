"""Tasks for a process with the real ComfyUI: `python run_comfyui.py COMFYUI NODE FOLDER`.

It reads `tasks.json` and `*.safetensors` in FOLDER, and writes `results.json` and `results.safetensors`. It imports
nothing of this project but the node, which ComfyUI's own loader loads.
"""

# ruff: noqa: E402  ComfyUI reads its arguments while it is imported.

import asyncio
import json
import logging
import sys
from pathlib import Path

COMFYUI, NODE, FOLDER = (Path(argument).resolve() for argument in sys.argv[1:4])
sys.argv = ["main.py", "--cpu", *sys.argv[4:]]
sys.path.insert(0, str(COMFYUI))

import comfy.options

comfy.options.enable_args_parsing()

import comfy.clip_model
import comfy.ldm.modules.attention
import comfy.model_detection
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import execution
import nodes
import torch
from hook_contract import BATCH, CHANNELS, Probe, list_layers, record
from safetensors.torch import load_file, save_file

PREFIX = "model.diffusion_model."
TENSORS = {}


class EncodedTexts:
    """Stands for a CLIP whose texts were encoded by diffusers."""

    def __init__(self, embeds):
        self.embeds = embeds

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens):
        return self.embeds[tokens]


def build_config(family, unet_config, extra):
    """Return ComfyUI's configuration of a family, with the heads of an unusual width."""
    config_class = type(family, (getattr(comfy.supported_models, family),), {})
    heads = {name: extra[name] for name in ("num_heads", "num_head_channels") if name in extra}
    config_class.unet_extra_config = {**config_class.unet_extra_config, **heads}
    if "prediction" in extra:
        kind = getattr(comfy.model_base.ModelType, extra["prediction"])
        config_class.model_type = lambda self, state_dict, prefix="": kind
    return config_class(unet_config)


def build_patcher(task):
    """Return the model of a checkpoint: ComfyUI's network, of which only heads and norm groups are told."""
    checkpoint = load_file(FOLDER / task["checkpoint"])
    detected = comfy.model_detection.detect_unet_config(checkpoint, PREFIX)
    config = build_config(task["family"], detected, task)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(checkpoint, PREFIX, device="cpu")
    wanted = {name.removeprefix(PREFIX) for name in checkpoint if name.startswith(PREFIX)}
    assert set(model.diffusion_model.state_dict()) == wanted, "the network has the checkpoint's tensors, and no other"
    model.load_model_weights(checkpoint, PREFIX)
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = task.get("groups", 32)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def build_condition(tensors, name):
    options = {"pooled_output": tensors[f"{name}.pooled"]} if f"{name}.pooled" in tensors else {}
    return [[tensors[name], options]]


def select_sigmas(sampling, timesteps):
    return torch.tensor([*(float(sampling.sigmas[t]) for t in timesteps), 0.0])


def sample(patcher, tensors, case, schedule):
    """Return latents in the model's own scale."""
    noises = iter(tensors["step_noises"]) if "step_noises" in tensors else iter(())
    options = {"noise_sampler": lambda *_: next(noises)} if case.get("sampler") == "lcm" else {}
    sampler = comfy.samplers.ksampler(case.get("sampler", "euler"), options)
    noise = tensors["noise"]
    samples = comfy.sample.sample_custom(
        patcher, noise, case.get("cfg", 1.0), sampler, schedule, build_condition(tensors, "positive"),
        build_condition(tensors, "unconditional"), torch.zeros_like(noise), disable_pbar=True, seed=0,
    )  # fmt: skip
    return patcher.model.process_latent_in(samples)


def apply_nodes(patcher, tensors, case):
    """Apply the case's LoRA, as the node LoraLoaderModelOnly does, and its negatives."""
    clip = EncodedTexts({name.removeprefix("text."): value for name, value in tensors.items() if "text." in name})
    if "lora" in case:
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, load_file(FOLDER / case["lora"]), 1.0, 0.0)
    for node in case["nodes"]:
        options = {"rule": "nasa", "start_percent": 0.0, "end_percent": 1.0, **node}
        (patcher,) = nodes.NODE_CLASS_MAPPINGS["NASANegativePrompt"]().apply(patcher, clip, **options)
    return patcher


def run_sample(task):
    """Sample every case with one model; return the largest sigma of each and the names of the layers."""
    patcher, tensors = build_patcher(task), load_file(FOLDER / task["tensors"])
    sampling = patcher.get_model_object("model_sampling")
    schedule = select_sigmas(sampling, task["timesteps"])
    for name, case in task["cases"].items():
        try:
            steered = apply_nodes(patcher, tensors, case)
        except ValueError as error:
            TENSORS[f"{task['name']}.{name}.error"] = torch.tensor(list(str(error).encode()))
            continue
        TENSORS[f"{task['name']}.{name}"] = sample(steered, tensors, case, schedule)
    return {"untouched": "patches_replace" not in patcher.model_options["transformer_options"]}


def run_contract(task):
    """Record the hooks in a step under guidance, with the probe in every layer."""
    patcher, tensors, probe = build_patcher(task), load_file(FOLDER / task["tensors"]), Probe()
    probed = patcher.clone()
    for name, module in patcher.model.diffusion_model.named_modules():
        if getattr(module, "attn2", None) is not None:
            side, number = name.split(".")[:2]
            place = (side.partition("_")[0], 0 if side == "middle_block" else int(number))
            probed.set_model_attn2_replace(probe.build(module.n_heads), *place, int(name.rpartition(".")[2]))
    assert tensors["noise"].shape[:2] == (BATCH, CHANNELS)
    schedule = select_sigmas(patcher.get_model_object("model_sampling"), task["timesteps"])
    sample(probed, tensors, {"cfg": 3.0}, schedule)
    attention = comfy.ldm.modules.attention.optimized_attention
    facts = record(patcher, probed, probe, comfy.sd.CLIP, attention)
    layers = [
        module for module in patcher.model.diffusion_model.modules() if getattr(module, "attn2", None) is not None
    ]
    return {"facts": facts, "calls": len(probe.calls), "layers": len(layers), "parts": list_layers(patcher.model)}


def run_encode(task):
    """Encode token ids by a checkpoint's text encoder, after ComfyUI renamed its tensors."""
    checkpoint = load_file(FOLDER / task["checkpoint"])
    config = build_config(task["family"], comfy.model_detection.detect_unet_config(checkpoint, PREFIX), task)
    weights = config.process_clip_state_dict(checkpoint)
    for part, description in task["encoders"].items():
        prefix = f"{part}.transformer."
        model = comfy.clip_model.CLIPTextModel(description, torch.float32, "cpu", comfy.ops.manual_cast)
        state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert set(missing) <= {"text_projection.weight"}, missing
        with torch.no_grad():
            last, hidden, projected, _ = model(
                torch.tensor(task["tokens"]), intermediate_output=-2, final_layer_norm_intermediate=False
            )
        TENSORS.update({f"{task['name']}.{part}.last": last, f"{task['name']}.{part}.hidden": hidden})
        TENSORS[f"{task['name']}.{part}.projected"] = projected
    return {}


def run_detect(task):
    """Detect the model of a checkpoint's shapes, and compare the tensors with those of ComfyUI's own networks."""
    shapes = json.loads((FOLDER / task["shapes"]).read_text())
    checkpoint = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(checkpoint, PREFIX)
    if config is None:
        return {"detected": None}
    with torch.device("meta"):
        network = config.get_model(checkpoint, PREFIX, device="meta").diffusion_model
        clip = config.clip_target(checkpoint).clip()
    expected = {PREFIX + name: list(value.shape) for name, value in network.state_dict().items()}
    vae = {name: value for name, value in checkpoint.items() if name.startswith("first_stage_model.")}
    autoencoder = comfy.sd.VAE(sd={name.partition(".")[2]: torch.zeros(value.shape) for name, value in vae.items()})
    expected |= {
        f"first_stage_model.{name}": list(v.shape) for name, v in autoencoder.first_stage_model.state_dict().items()
    }
    texts = {name: list(value.shape) for name, value in config.process_clip_state_dict(dict(checkpoint)).items()}
    wanted_texts = {name: list(value.shape) for name, value in clip.state_dict().items()}
    found = {name: shape for name, shape in shapes.items() if name.startswith((PREFIX, "first_stage_model."))}
    return {
        "detected": type(config).__name__,
        "wrong": sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name)),
        "wrong_texts": sorted(name for name, shape in texts.items() if wanted_texts.get(name) != shape),
        "missing_texts": sorted(set(wanted_texts) - set(texts)),
        "latent_scale": config.latent_format.scale_factor,
    }


def run_validate(task):
    """Validate a workflow as ComfyUI's server does; the files it names may be empty."""
    workflow = json.loads((FOLDER / task["workflow"]).read_text())
    for kind, file in task["files"].items():
        nodes.folder_paths.filename_list_cache.clear()
        folder = FOLDER / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
        nodes.folder_paths.add_model_folder_path(kind, str(folder))
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt("prompt", workflow, None))
    return {"valid": valid, "error": str(error), "node_errors": json.loads(json.dumps(node_errors, default=str))}


def run_workflow(task):
    """Run the nodes of a workflow in their order, up to the decoded image."""
    valid = run_validate(task)
    workflow = json.loads((FOLDER / task["workflow"]).read_text())
    outputs = {}
    for number, entry in workflow.items():  # every node comes after those that it takes
        if entry["class_type"] == "SaveImage":
            continue
        node_class = nodes.NODE_CLASS_MAPPINGS[entry["class_type"]]
        inputs = {
            name: outputs[value[0]][value[1]] if isinstance(value, list) else value
            for name, value in entry["inputs"].items()
        }
        with torch.inference_mode():
            outputs[number] = getattr(node_class(), node_class.FUNCTION)(**inputs)
        if entry["class_type"] in ("KSampler", "VAEDecode"):
            result = outputs[number][0]
            TENSORS[f"{task['name']}.{entry['class_type']}"] = result["samples"] if isinstance(result, dict) else result
    return valid


def run_schedule(task):
    """Return the timesteps of ComfyUI's scheduler for each number of steps."""
    sampling = build_patcher(task).get_model_object("model_sampling")
    sigmas = {n: comfy.samplers.calculate_sigmas(sampling, task["scheduler"], n) for n in range(1, 9)}
    return {str(n): [int(sampling.timestep(sigma)) for sigma in values[:-1]] for n, values in sigmas.items()}


async def load_nodes():
    await nodes.load_custom_node(str(COMFYUI / "comfy_extras/nodes_model_advanced.py"), module_parent="comfy_extras")
    assert await nodes.load_custom_node(str(NODE)), "ComfyUI's loader takes the node"


def main():
    logging.getLogger().setLevel(logging.ERROR)
    asyncio.run(load_nodes())
    results = {}
    for task in json.loads((FOLDER / "tasks.json").read_text()):
        results[task["name"]] = globals()[f"run_{task['kind']}"](task)
    save_file({name: value.contiguous() for name, value in TENSORS.items()}, FOLDER / "results.safetensors")
    (FOLDER / "results.json").write_text(json.dumps(results))


main()
