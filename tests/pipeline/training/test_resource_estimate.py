"""The estimated resources of a distillation, against those that can be measured here."""

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from jobs.__main__ import main
from nasa.families import FAMILIES
from nasa.prompt_embeds import PromptEmbeds
from nasa.steerable_denoiser import make_steerable
from nasa.testing import tiny_stable_diffusion
from pipeline.recipe import load
from pipeline.training.memory_advice import require_fit
from pipeline.training.resource_estimate import GIB, count_saved_bytes, estimate

PUBLISHED = {"sd15": 859_520_964, "sd21": 865_910_724, "pixart": 610_856_096}  # parameters of the denoisers


@pytest.fixture(scope="module", params=[pytest.param("sd15", marks=pytest.mark.slow), "sd21", "pixart"])
def paper(request):
    return load(request.param)


@pytest.fixture(scope="module")
def estimated(paper):
    return estimate(paper)


def test_the_paper_recipes_fit_their_gpus(paper, estimated):
    assert estimated.parameters == PUBLISHED[paper.name]
    assert estimated.passes == 1
    assert paper.train.batch_size == (32 if paper.name == "pixart" else 64)
    assert 25 < estimated.total / GIB < 40
    require_fit(paper)


def test_cheaper_settings_need_less(paper, estimated):
    checkpointed, one_worker, small_micro_batch = (
        estimate(paper.model_copy(update={"train": paper.train.model_copy(update=change)}))
        for change in ({"gradient_checkpointing": True}, {"num_workers": 1}, {"micro_batch_size": 4})
    )
    activations = "activations of a pass"
    assert checkpointed.memory[activations] < 0.25 * estimated.memory[activations]
    assert checkpointed.flops > estimated.flops
    assert one_worker.memory["student's optimizer states"] == pytest.approx(
        4 * estimated.memory["student's optimizer states"]
    )
    assert small_micro_batch.passes > estimated.passes
    assert small_micro_batch.memory[activations] == pytest.approx(
        estimated.memory[activations] * 4 / paper.train.micro_batch_size, rel=0.02
    )
    assert small_micro_batch.flops == pytest.approx(estimated.flops)


def test_saved_bytes_on_the_meta_device_equal_a_real_pass():
    model = tiny_stable_diffusion().unet.requires_grad_(True)
    saved_bytes = []
    for device in ("cpu", "meta"):
        denoiser = make_steerable(model.to(device))
        inputs = torch.zeros(3, 4, 4, 4, device=device), torch.zeros(3, device=device)
        text = PromptEmbeds(torch.zeros(3, 16, 16, device=device))
        saved_bytes.append(count_saved_bytes(lambda: denoiser(*inputs, text), model))  # noqa: B023
    assert saved_bytes[0] == saved_bytes[1] > 100_000


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
GEMMA = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
GEMMA |= {"num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000}
QWEN = {  # Qwen2.5-VL 7B
    "text_config": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    | {"num_attention_heads": 28, "num_key_value_heads": 4},
    "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "out_hidden_size": 3584},
    "tie_word_embeddings": False,
}
QWEN3 = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN3 |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
PROJECTED = CLIPTextModelWithProjection
ENCODERS = {
    "stable_diffusion": [[(CLIPTextModel, CLIPTextConfig, CLIP_L)], [(CLIPTextModel, CLIPTextConfig, CLIP_H)]],
    "stable_diffusion_xl": [
        [(CLIPTextModel, CLIPTextConfig, CLIP_L), (PROJECTED, CLIPTextConfig, {**CLIP_G, "projection_dim": 1280})]
    ],
    "pixart": [[(T5EncoderModel, T5Config, T5_XXL)]],
    "pixart_sigma": [[(T5EncoderModel, T5Config, T5_XXL)]],
    "sana": [[(Gemma2Model, Gemma2Config, GEMMA)]] * 2,
    "wan": [[(UMT5EncoderModel, UMT5Config, {**T5_XXL, "vocab_size": 256384})]],
    "flux": [[(CLIPTextModel, CLIPTextConfig, CLIP_L), (T5EncoderModel, T5Config, T5_XXL)]],
    "flux2": [[(Qwen3ForCausalLM, Qwen3Config, QWEN3)]],
    "stable_diffusion_3": [
        [
            (PROJECTED, CLIPTextConfig, {**CLIP_L, "projection_dim": 768}),
            (PROJECTED, CLIPTextConfig, {**CLIP_G, "projection_dim": 1280}),
            (T5EncoderModel, T5Config, T5_XXL),
        ]
    ]
    * 2,
    "z_image": [[(Qwen3Model, Qwen3Config, QWEN3)]] * 2,
    "qwen_image": [[(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, QWEN)]],
}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.distillation], ids=lambda f: f.name)
def test_text_encoder_parameters_match_their_architectures(family):
    with torch.device("meta"):
        counts = [
            sum(p.numel() for model, config, values in parts for p in model(config(**values)).parameters())
            for parts in ENCODERS[family.name]
        ]
    published = family.distillation.published.values()
    assert [model.text_encoder_parameters for model in published] == counts


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    assert main(["distill", "--recipe", "sd21", "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "guidance_range = [\n    0.5,\n    4.0,\n]",
        "866 M parameters",
        "40,000 steps",
        f"{tmp_path}/run/prompts",
    ):
        assert text in printed
    assert not (tmp_path / "run").exists()
