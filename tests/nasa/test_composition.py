"""`steer` combined with LoRA, fused projections, compilation, offloading and threads."""

import copy
import pickle
import threading

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo.utils import counters

import nasa
from nasa.attention import SteeredAttnProcessor, Steering
from nasa.families import find_family
from nasa.testing.tiny_pipelines import TINY_CALLS, TINY_PIPELINES

FUSED_TOLERANCE = 2e-5  # one matrix product replaces three
HALF_TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 5e-3}  # PixArt divides by alpha_T = 1 / 157
SCALE = 0.4
SLOW_TO_COMPILE = ("sdxl", "flux")


@pytest.fixture(params=TINY_PIPELINES)
def family(request):
    return request.param


@pytest.fixture
def pipe(family):
    return TINY_PIPELINES[family]()


def draw(family, pipe, **options):
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt="a photo", generator=generator, **{**TINY_CALLS[family], **options})[0]


def draw_steered(family, pipe, negative="dog", scale=SCALE):
    length = TINY_CALLS[family].get("max_sequence_length")
    with nasa.steer(pipe, negative, scale, max_sequence_length=length):
        return draw(family, pipe)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW_TO_COMPILE else ()) for name in TINY_PIPELINES]
)
def test_one_compilation_serves_all_scales_and_negatives(family, pipe):
    """There is one graph, and no recompilation for another scale or negative."""
    torch._dynamo.reset()
    counters.clear()
    family_spec, model = find_family(pipe)
    eager = draw_steered(family, pipe)
    setattr(pipe, family_spec.denoiser_part, torch.compile(model, backend="eager", fullgraph=True))
    assert torch.equal(draw_steered(family, pipe), eager)
    assert counters["stats"]["unique_graphs"] == 1
    images = [draw_steered(family, pipe, *choice) for choice in (("dog", 0.7), ("cat", 0.7))]  # Qwen-Image does not pad
    assert counters["stats"]["unique_graphs"] == 1
    assert not torch.equal(*images)
    torch._dynamo.reset()


def test_a_lora_adapter_is_part_of_both_texts(family, pipe):
    """Steering with the adapter equals steering with its merged weights."""
    _, model = find_family(pipe)
    plain = draw_steered(family, pipe)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    torch.manual_seed(1)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), model)
    adapted = draw_steered(family, pipe)
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        layer.merge()
    torch.testing.assert_close(adapted, draw_steered(family, pipe), atol=FUSED_TOLERANCE, rtol=FUSED_TOLERANCE)
    assert not torch.allclose(adapted, plain, atol=100 * FUSED_TOLERANCE)


FUSABLE = (
    "stable-diffusion",
    "sdxl",
    "pixart",
    "flux",
)  # diffusers does not fuse SANA, and fuses SD3.5's second attention wrongly


@pytest.mark.parametrize("family", FUSABLE)
def test_fused_projections_give_the_same_image(family, pipe):
    expected = draw_steered(family, pipe)
    _, model = find_family(pipe)
    model.fuse_qkv_projections()
    torch.testing.assert_close(draw_steered(family, pipe), expected, atol=FUSED_TOLERANCE, rtol=FUSED_TOLERANCE)
    before = dict(model.attn_processors)
    draw_steered(family, pipe)
    assert all(model.attn_processors[name] is processor for name, processor in before.items())


@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=str)
def test_half_precision_is_near_float32(family, pipe, dtype):
    """The error is relative to the largest latent, which steering changes by 2 to 20 %."""
    expected = draw_steered(family, pipe)
    pipe.to(dtype)
    error = (draw_steered(family, pipe).float() - expected).abs().max() / expected.abs().max()
    assert error < HALF_TOLERANCE[dtype]


class OffloadHook(ModelHook):
    """A hook that restores weights only during a forward pass, as offloading does."""

    def __init__(self, module):
        self.saved = copy.deepcopy(module.state_dict())
        self.post_forward(module, None)

    def pre_forward(self, module, *args, **kwargs):
        module.load_state_dict(self.saved)
        return args, kwargs

    def post_forward(self, module, output):
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
        return output


def test_an_offloaded_model_is_loaded_in_time(family, pipe):
    expected = draw_steered(family, pipe)
    _, model = find_family(pipe)
    accelerate.hooks.add_hook_to_module(model, OffloadHook(model))
    assert torch.equal(draw_steered(family, pipe), expected)


def test_layers_may_be_offloaded_one_by_one(family, pipe):
    """accelerate keeps the weights on the meta device and loads each layer's for its forward pass."""
    expected = draw_steered(family, pipe)
    _, model = find_family(pipe)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    torch.testing.assert_close(draw_steered(family, pipe), expected, atol=FUSED_TOLERANCE, rtol=FUSED_TOLERANCE)


class MetaOffloadHook(OffloadHook):
    """An `OffloadHook` that keeps the weights on the meta device in between."""

    def pre_forward(self, module, *args, **kwargs):
        module.to_empty(device="cpu")
        return super().pre_forward(module, *args, **kwargs)

    def post_forward(self, module, output):
        module.to("meta")
        return output


@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl", "pixart", "pixart-sigma", "sana-sprint", "wan"])
def test_blocks_may_be_offloaded_one_by_one(family, pipe):
    """K- and V- are computed in each call if they cannot be computed beforehand."""
    expected = draw_steered(family, pipe)
    _, model = find_family(pipe)
    for block in [module for module in model.modules() if hasattr(module, "attn2")]:
        accelerate.hooks.add_hook_to_module(block, MetaOffloadHook(block))
    assert torch.equal(draw_steered(family, pipe), expected)


@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl"])
@pytest.mark.parametrize("change", ["sliced", "other processors"])
def test_other_processors_are_replaced_and_restored(family, pipe, change):
    """Steered layers use torch's attention, the others keep processors such as xFormers'."""
    expected = draw_steered(family, pipe)
    if change == "sliced":
        pipe.enable_attention_slicing(1)
    else:
        pipe.unet.set_attn_processor(AttnProcessor())
    before = dict(pipe.unet.attn_processors)
    torch.testing.assert_close(draw_steered(family, pipe), expected, atol=FUSED_TOLERANCE, rtol=FUSED_TOLERANCE)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())


def test_an_ip_adapter_is_rejected():
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    attn = Attention(query_dim=8, cross_attention_dim=8, heads=2, dim_head=4)
    attn.set_processor(SteeredAttnProcessor(AttnProcessor2_0(), Steering(embeds_NTD=torch.zeros(1, 3, 8), scale=1.0)))
    text_and_image = (torch.zeros(1, 3, 8), [torch.zeros(1, 1, 4, 8)])
    with pytest.raises(ValueError, match="pipe: got a pipeline with an IP-Adapter"):
        attn(torch.zeros(1, 4, 8), encoder_hidden_states=text_and_image)


def test_a_pipeline_is_copied_and_pickled_after_it_was_steered(family, pipe):
    expected = draw_steered(family, pipe)
    family_spec, model = find_family(pipe)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        setattr(pipe, family_spec.denoiser_part, copied)
        assert torch.equal(draw_steered(family, pipe), expected)


def test_two_pipelines_in_two_threads(family):
    """Two threads steer different pipelines and share no state."""
    pipes = [TINY_PIPELINES[family]() for _ in range(2)]
    negatives, actual = ("dog", "a cat"), [None, None]
    expected = [draw_steered(family, pipe, negative) for pipe, negative in zip(pipes, negatives, strict=True)]

    def steer_pipeline(index):
        actual[index] = [draw_steered(family, pipes[index], negatives[index]) for _ in range(3)]

    threads = [threading.Thread(target=steer_pipeline, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for images, expected_image in zip(actual, expected, strict=True):
        assert all(torch.equal(image, expected_image) for image in images)
