"""Train all bundled networks in order, each resumable, and measure them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from datasets_prep.shapes.prompts import sample_held_out_prompts
from datasets_prep.shapes.scene import ATTRIBUTES
from pipeline import models
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.recipe import Evaluation
from pipeline.shapes.classifier import AttributeClassifier
from pipeline.shapes.clip import NORMALIZATION
from pipeline.shapes.denoiser import build_scheduler
from pipeline.shapes.samples import LABELS, Samples, draw_samples
from pipeline.shapes.tokenizer import build_tokenizer
from pipeline.shapes_training import autoencoder, classifier, clip, denoiser
from pipeline.shapes_training.pool import build_pool

METRICS = "metrics.json"
TIME_SHARES = {"clip": 0.08, "autoencoder": 0.27, "denoiser": 0.6, "classifier": 0.05}
_CHECKED = 2048  # held-out images that measure the judge


def build(work: Path, out: Path, threads: int, device: str = "cpu", max_minutes: float = math.inf) -> None:
    """Train what is missing under `work`, then write `teacher`, `clip`, `judge.safetensors` and `metrics.json`."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    work.mkdir(parents=True, exist_ok=True)
    on = torch.device(device)
    seconds = {name: 60 * max_minutes * share for name, share in TIME_SHARES.items()}
    tokenizer = build_tokenizer()
    pool = build_pool(tokenizer, work / "pool.pt", on)
    towers = _train_once(
        work / "clip", CLIPModel, on, lambda: clip.train(work, pool, tokenizer, max_seconds=seconds["clip"])
    )
    vae = _train_once(
        work / "vae", AutoencoderKL, on, lambda: autoencoder.train(work, pool, max_seconds=seconds["autoencoder"])
    )
    text_encoder = CLIPTextModel.from_pretrained(work / "clip")
    model = denoiser.train(work, pool, vae, text_encoder, max_seconds=seconds["denoiser"])
    judge = classifier.train(work, pool, vae, model, max_seconds=seconds["classifier"])
    for part in (towers, vae, model, judge):
        part.cpu()
    _export(out, tokenizer, towers, vae, model, judge)
    metrics = {
        **measure_judge(judge, vae),
        "autoencoder": measure_autoencoder(vae),
        "teacher": measure_teacher(out / "teacher", judge, on),
    }
    (out / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


def _train_once(folder: Path, kind: Any, device: torch.device, train: Callable[[], Any]) -> Any:
    if not folder.is_dir():
        train().save_pretrained(folder)
    return kind.from_pretrained(folder).requires_grad_(False).eval().to(device)


def _export(
    out: Path, tokenizer: CLIPTokenizer, towers: CLIPModel, vae: AutoencoderKL, model: nn.ModuleDict, judge: nn.Module
) -> None:
    """Write the weights in half precision, which loads as float32 at half the size."""
    shutil.rmtree(out, ignore_errors=True)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"],
        tokenizer=tokenizer,
        unet=model["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(out / "teacher")
    towers.half().save_pretrained(out / "clip")
    tokenizer.save_pretrained(out / "clip")
    preprocessor = {"do_normalize": True, "image_processor_type": "CLIPImageProcessor", **NORMALIZATION}
    (out / "clip" / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, out / "judge.safetensors")
    pipe.to(torch.float32)
    models.remove_source_paths(out)
    _set_float32(out / "teacher" / "text_encoder" / "config.json")


def _set_float32(config: Path) -> None:
    """Set the configuration's dtype: transformers loads that one, diffusers float32, and a pipeline needs one dtype."""
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")


def measure_judge(judge: AttributeClassifier, vae: AutoencoderKL) -> dict[str, dict[str, float]]:
    """Return accuracy per attribute on held-out renders: clean ones, all, and all after the autoencoder."""
    samples = draw_samples(_CHECKED, 99, held_out=True)
    clean = torch.tensor([scene.quality == "clean" for scene in samples.scenes])
    rebuilt = torch.cat([classifier.reconstruct(vae, part) for part in samples.images.split(64)])
    return {
        "clean_renders": _measure_accuracy(judge, samples, samples.images, clean),
        "renders": _measure_accuracy(judge, samples, samples.images, torch.ones_like(clean)),
        "clean_reconstructions": _measure_accuracy(judge, samples, rebuilt, clean),
        "reconstructions": _measure_accuracy(judge, samples, rebuilt, torch.ones_like(clean)),
    }


@torch.no_grad()
def measure_autoencoder(vae: AutoencoderKL) -> dict[str, float]:
    """Return the mean PSNR in dB of reconstructed held-out renders, by quality."""
    samples = draw_samples(_CHECKED, 99, held_out=True)
    rebuilt = torch.cat([classifier.reconstruct(vae, part) for part in samples.images.split(64)])
    squared = ((rebuilt - samples.images) / 2).square().flatten(1).mean(dim=1)
    psnr = -10 * squared.log10()
    qualities = samples.get_labels()["quality"]
    by_quality = {name: psnr[qualities == index].mean().item() for index, name in enumerate(LABELS["quality"])}
    return {name: round(value, 2) for name, value in {"psnr": psnr.mean().item(), **by_quality}.items()}


def measure_teacher(folder: Path, judge: AttributeClassifier, device: torch.device) -> dict[str, float]:
    """Return the share of right attributes on held-out prompts, with an evaluation's steps and guidance."""
    options = Evaluation()
    prompts = sample_held_out_prompts(options.num_prompts, options.seed)
    sampling = SamplingMethod("steps", options.teacher_guidance, options.teacher_steps)
    seeds = range(options.seed, options.seed + len(prompts))
    images = Sampler(models.load(folder, device)).sample(sampling, [text for text, _ in prompts], seeds)
    pairs = list(zip(AttributeJudge(judge).classify_attributes(images), (scene for _, scene in prompts), strict=True))
    return {
        name: round(sum(shown[name] == getattr(scene, name) for shown, scene in pairs) / len(pairs), 4)
        for name in ATTRIBUTES
    } | {"clean": round(sum(shown["quality"] == "clean" for shown, _ in pairs) / len(pairs), 4)}


@torch.no_grad()
def _measure_accuracy(
    judge: nn.Module, samples: Samples, images: torch.Tensor, chosen: torch.Tensor
) -> dict[str, float]:
    logits, labels = judge(images), samples.get_labels()
    return {name: round((logits[name].argmax(-1) == labels[name])[chosen].float().mean().item(), 4) for name in LABELS}
