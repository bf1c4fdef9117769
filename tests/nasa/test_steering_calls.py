"""Calls within a `steer` context: complete, cancelled, and by another pipeline."""

import copy
from contextlib import nullcontext

import diffusers
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from peft import LoraConfig

import nasa
from nasa.attention import SteeredAttnProcessor
from nasa.families import get_denoisers
from nasa.testing.tiny_pipelines import TINY_CALLS, TINY_PIPELINES

SCALE = 0.6
STEPS = 4


@pytest.fixture(scope="module", params=["stable-diffusion", "pixart", "flux", "stable-diffusion-3", "wan"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(family):
    return TINY_PIPELINES[family]()


@pytest.fixture
def stable_diffusion():
    return TINY_PIPELINES["stable-diffusion"]()


def draw(pipe, family="stable-diffusion", **options):
    call = {**TINY_CALLS[family], "num_inference_steps": STEPS, **options}
    return pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **call)[0]


class SteeringRecorder:
    """Records whether each denoiser call of a pipeline had a steered layer."""

    def __init__(self, pipe, monkeypatch):
        self.calls, self.is_steered, combine = [], False, SteeredAttnProcessor._combine

        def record_combine(*args):
            self.is_steered = True
            return combine(*args)

        monkeypatch.setattr(SteeredAttnProcessor, "_combine", record_combine)
        for model in get_denoisers(pipe):
            model.register_forward_hook(self.record_call)

    def record_call(self, *_):
        self.calls.append(self.is_steered)
        self.is_steered = False


def interrupt(pipe, index, timestep, values):
    pipe._interrupt = True
    return values


def fail(*_):
    raise RuntimeError("cancelled")


CANCELLED = [(family, cancel) for family in ("stable-diffusion", "flux", "wan") for cancel in (interrupt, fail)]


@pytest.mark.parametrize(("family", "cancel"), [*CANCELLED, ("pixart", fail)], indirect=["family"])
def test_a_cancelled_call_leaves_no_trace(family, pipe, cancel):
    name = "callback" if family == "pixart" else "callback_on_step_end"
    with nasa.steer(pipe, "dog", SCALE, steps={0}):
        first = draw(pipe, family)
    with nasa.steer(pipe, "dog", SCALE, steps={0}):
        with nullcontext() if cancel is interrupt else pytest.raises(RuntimeError, match="cancelled"):
            draw(pipe, family, **{name: cancel})
        assert torch.equal(draw(pipe, family), first)


def test_a_call_that_failed_before_its_first_step_leaves_no_trace(monkeypatch):
    """The call fails after its prompt was encoded; the next call's prompt is recognised again."""
    pipe = TINY_PIPELINES["pixart"]()
    with nasa.steer(pipe, "dog", SCALE):
        expected = draw(pipe, "pixart", guidance_scale=3.0)
    with nasa.steer(pipe, "dog", SCALE):
        with monkeypatch.context() as patch:
            patch.setattr(pipe, "prepare_latents", fail)
            with pytest.raises(RuntimeError, match="cancelled"):
                draw(pipe, "pixart", guidance_scale=0)
        assert torch.equal(draw(pipe, "pixart", guidance_scale=3.0), expected)


@pytest.mark.parametrize("scheduler", [diffusers.HeunDiscreteScheduler, diffusers.KDPM2DiscreteScheduler])
@pytest.mark.parametrize("step", range(3))
def test_both_calls_of_a_step_belong_to_that_step(stable_diffusion, monkeypatch, scheduler, step):
    """A second-order scheduler makes five calls in three steps."""
    pipe = stable_diffusion
    steered = SteeringRecorder(pipe, monkeypatch)
    with nasa.steer(pipe, "dog", SCALE, steps={step}):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)  # even if it is replaced inside the block
        draw(pipe, num_inference_steps=3)
    assert steered.calls == [call // 2 == step for call in range(5)]
    assert "step" not in vars(pipe.scheduler)


@torch.no_grad()
@pytest.mark.parametrize("by_scheduler", [True, False], ids=["scheduler", "own sampler"])
def test_steps_of_a_loop_outside_the_pipeline(stable_diffusion, monkeypatch, by_scheduler):
    """The loop makes two denoiser calls per step, as for guidance, and runs twice."""
    pipe = stable_diffusion
    latents, text = torch.randn(1, 4, 4, 4), torch.randn(1, 16, 16)
    pipe.scheduler.set_timesteps(3)
    steered = SteeringRecorder(pipe, monkeypatch)
    with nasa.steer(pipe, "dog", SCALE, steps={1}, conditional=lambda rows, call: slice(0 if call else rows)):
        for timestep in [*pipe.scheduler.timesteps] * 2:
            for _ in range(2):
                output = pipe.unet(sample=latents, timestep=timestep, encoder_hidden_states=text)[0]
            if by_scheduler:
                pipe.scheduler.step(output, timestep, latents)
    assert steered.calls == [False, False, True, False, False, False] * 2


@pytest.mark.parametrize("steps", [{4}, range(5), {0, -1}], ids=str)
def test_a_missing_step_is_rejected(family, pipe, steps):
    message = r"steps: got (4|-1); expected 0 to 3"
    with pytest.raises(ValueError, match=message), nasa.steer(pipe, "dog", SCALE, steps=steps):
        draw(pipe, family)


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf"), [0.5, -0.1], torch.tensor([-1.0])], ids=str)
def test_an_invalid_scale_is_rejected(stable_diffusion, scale):
    message = "scale: got .*; expected finite numbers of at least 0"
    with pytest.raises(ValueError, match=message), nasa.steer(stable_diffusion, "dog", scale):
        pass


def test_a_nested_context_is_rejected_and_the_outer_one_continues(family, pipe):
    with nasa.steer(pipe, "dog", SCALE):
        expected = draw(pipe, family)
    sibling = copy.copy(pipe)
    with nasa.steer(pipe, "dog", SCALE):
        for inner in (pipe, sibling):
            with (
                pytest.raises(ValueError, match="being steered; expected one `steer` context"),
                nasa.steer(inner, "ice", SCALE),
            ):
                pass
        assert torch.equal(draw(pipe, family), expected)
    with nasa.steer(sibling, "dog", SCALE):
        assert torch.equal(draw(sibling, family), expected)


def test_another_pipeline_on_the_same_denoiser_is_rejected(stable_diffusion):
    pipe = stable_diffusion
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    plain = draw(other, guidance_scale=3.0)
    with nasa.steer(pipe, "dog", SCALE):
        draw(pipe)
        with pytest.raises(ValueError, match="pipe: got a call of StableDiffusionPipeline while"):
            draw(other, guidance_scale=3.0)
    assert torch.equal(draw(other, guidance_scale=3.0), plain)


def make_wan_with_two_denoisers():
    first, second = TINY_PIPELINES["wan"](), TINY_PIPELINES["wan"]()
    parts = {**first.components, "transformer_2": second.transformer, "boundary_ratio": 0.9}
    pipe = diffusers.WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("steps", "expected"), [(None, [True] * 4), ({0}, [1, 0, 0, 0]), ({3}, [0, 0, 0, 1])], ids=str)
def test_both_denoisers_of_wan_2_2_are_steered_and_steps_counted_over_both(monkeypatch, steps, expected):
    pipe = make_wan_with_two_denoisers()
    used = []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_hook(lambda *_, name=name: used.append(name))
    steered = SteeringRecorder(pipe, monkeypatch)
    with nasa.steer(pipe, "dog", SCALE, steps=steps):
        draw(pipe, "wan")
    assert used == ["transformer"] * 2 + ["transformer_2"] * 2
    assert steered.calls == [bool(step) for step in expected]
    assert not any(isinstance(p, SteeredAttnProcessor) for p in pipe.transformer_2.attn_processors.values())


def record_keys(monkeypatch):
    layers, project = [], SteeredAttnProcessor.project_key_value

    def record_project(self, attn, text):
        layers.append(attn)
        return project(self, attn, text)

    monkeypatch.setattr(SteeredAttnProcessor, "project_key_value", record_project)
    return layers


def test_keys_of_the_negative_are_computed_once_while_nothing_changes(stable_diffusion, monkeypatch):
    pipe, counted = stable_diffusion, record_keys(monkeypatch)
    encoded = []
    pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(None))
    with nasa.steer(pipe, "dog", SCALE):
        for _ in range(3):
            draw(pipe)
    layers = len({id(attn) for attn in counted})
    assert len(counted) == layers * (1 + 3 * STEPS)  # the negative's once, the prompt's in each step
    assert len(encoded) == 1 + 3


@pytest.mark.parametrize("family", ["stable-diffusion", "flux"])
def test_the_negative_is_encoded_again_when_a_text_encoder_changes(family):
    """Textual inversion or LoRA weights may be loaded within the context."""
    pipe = TINY_PIPELINES[family]()
    with nasa.steer(pipe, "dog", SCALE):
        draw(pipe, family)
        with torch.no_grad():
            for encoder in filter(None, (pipe.text_encoder, getattr(pipe, "text_encoder_2", None))):
                for weight in encoder.parameters():
                    weight.mul_(1.5)
        actual = draw(pipe, family)
    with nasa.steer(pipe, "dog", SCALE):
        expected = draw(pipe, family)
    assert torch.equal(torch.as_tensor(actual), torch.as_tensor(expected))


def set_adapters(model):
    model.set_adapters("default", 0.3)


def fuse(model):
    model.fuse_lora(lora_scale=0.3)


@torch.no_grad()
def change_weights(model):
    for weight in model.parameters():
        weight.mul_(0.8)


def make_pipe_with_adapter(family):
    pipe = TINY_PIPELINES[family]()
    (model,) = get_denoisers(pipe)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=2, lora_alpha=16, target_modules=["to_k", "to_v"], init_lora_weights=False))
    return pipe, model


@pytest.mark.parametrize("change", [set_adapters, fuse, change_weights])
def test_keys_are_recomputed_when_the_layers_change(change):
    """A second call with other weights equals the same call in a new context."""
    pipe, model = make_pipe_with_adapter("stable-diffusion")
    with nasa.steer(pipe, "dog", SCALE):
        draw(pipe)
        change(model)
        actual = draw(pipe)
    with nasa.steer(pipe, "dog", SCALE):
        assert torch.equal(draw(pipe), actual)


def test_keys_are_recomputed_when_the_call_scales_its_adapters():
    """The text encoder ignores the scale, so the text stays the same."""
    pipe, _ = make_pipe_with_adapter("wan")
    drawn = []
    with nasa.steer(pipe, "dog", SCALE):
        drawn += [draw(pipe, "wan", attention_kwargs={"scale": scale}) for scale in (1.0, 0.2)]
    with nasa.steer(pipe, "dog", SCALE):
        assert torch.equal(draw(pipe, "wan", attention_kwargs={"scale": 0.2}), drawn[1])


@pytest.mark.parametrize("family", ["flux", "qwen-image", "wan"])  # diffusers does not name the calls of the others
@pytest.mark.parametrize("steps", [{0, 1}, {2, 3}], ids=["early", "late"])
def test_a_cache_over_steps_keeps_steered_calls_apart(family, steps):
    """A cache that never skips changes nothing; one that always skips reuses the first step of the same kind."""
    pipe = TINY_PIPELINES[family]()
    with nasa.steer(pipe, "dog on ice", SCALE, steps=steps):
        uncached = draw(pipe, family)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    with nasa.steer(pipe, "dog on ice", SCALE, steps=steps):
        torch.testing.assert_close(draw(pipe, family), uncached, atol=1e-5, rtol=1e-5)
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    skipping = draw(pipe, family)
    with nasa.steer(pipe, "dog on ice", SCALE, steps=steps):
        assert not torch.equal(draw(pipe, family), skipping)
    assert torch.equal(draw(pipe, family), skipping)


def test_a_cache_that_counts_calls_requires_every_step():
    pipe = TINY_PIPELINES["flux"]()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    pipe.transformer.enable_cache(config)
    message = "steps: got .* with PyramidAttentionBroadcastConfig on; expected None"
    with pytest.raises(ValueError, match=message), nasa.steer(pipe, "dog", SCALE, steps={0}):
        pass


@pytest.mark.parametrize("family", TINY_PIPELINES)
def test_weights_may_be_stored_in_eight_bits(family):
    pipe = TINY_PIPELINES[family]()
    (model,) = get_denoisers(pipe)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    plain = draw(pipe, family, num_inference_steps=2)
    with nasa.steer(pipe, "dog", 1e-6):
        almost = draw(pipe, family, num_inference_steps=2)
    with nasa.steer(pipe, "dog", SCALE):
        steered = draw(pipe, family, num_inference_steps=2)
    torch.testing.assert_close(almost, plain, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(steered, plain, atol=1e-3)
