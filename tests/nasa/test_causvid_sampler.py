"""CausVid's sampler: the cache against one pass with a block-causal mask, and the few steps against their formula."""

import pytest
import torch
import torch.nn.functional as F

import nasa
from nasa.causvid_sampler import CausalAttnProcessor, generate_video, rotate, use_causal_attention
from nasa.testing.tiny_pipelines import TINY_PIPELINES

TOLERANCE = 1e-5
CALL = {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16, "output_type": "latent"}
PER_BLOCK = 1  # 9 frames are 3 latent ones


@pytest.fixture(scope="module")
def pipe():
    return TINY_PIPELINES["wan"]()


def generate(pipe, **overrides):
    generator = torch.Generator().manual_seed(0)
    return generate_video(pipe, "a cat", generator=generator, **{**CALL, "frames_per_block": PER_BLOCK, **overrides})


class MaskedAttnProcessor:
    """Attention over all frames at once, masked to a token's block and the earlier ones."""

    def __init__(self, blocks):
        self.blocks = blocks

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        query, key, value = (part.unflatten(2, (attn.heads, -1)) for part in (query, key, attn.to_v(hidden_states)))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        rotation = [part.transpose(1, 2) for part in rotary_emb]
        block = torch.arange(self.blocks).repeat_interleave(query.shape[2] // self.blocks)
        mask = block[:, None] >= block[None]
        z = F.scaled_dot_product_attention(rotate(query, *rotation), rotate(key, *rotation), value, attn_mask=mask)
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_the_cache_equals_a_block_causal_mask(pipe):
    """Generating block after block with the cache equals one masked pass over all blocks."""
    model = pipe.transformer
    frames = torch.randn(2, 16, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    arguments = {"timestep": torch.zeros(2), "encoder_hidden_states": torch.randn(2, 16, 16), "return_dict": False}
    with use_causal_attention(model) as cache:
        cache.is_recording, parts = True, []
        for part in frames.split(2, dim=2):
            parts.append(model(hidden_states=part, **arguments)[0])
            cache.num_frames += 2
    before = dict(model.attn_processors)
    masked = {name: MaskedAttnProcessor(3) if "attn1" in name else p for name, p in before.items()}
    model.set_attn_processor(masked)
    reference = model(hidden_states=frames, **arguments)[0]
    model.set_attn_processor(before)
    torch.testing.assert_close(torch.cat(parts, dim=2), reference, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(model(hidden_states=frames, **arguments)[0], reference, atol=100 * TOLERANCE)


def test_a_block_alternates_predictions_and_noise(pipe):
    """A block alternates predictions and fresh noise of the next level, and ends with a pass at timestep 0."""
    calls = []

    def record(_, args, kwargs, output):
        calls.append((float(kwargs["timestep"][0]), kwargs["hidden_states"].clone(), output[0].clone()))

    hook = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    latents = generate(pipe)
    hook.remove()
    assert [t for t, *_ in calls] == [1000, 757, 522, 0] * 3
    for block in range(3):
        (_, x, v), (_, second, _), (_, third, v3), (_, clean, _) = calls[4 * block : 4 * block + 4]
        x0 = x - v
        noise = (second - 0.243 * x0) / 0.757
        assert abs(float(noise.std()) - 1) < 0.3
        torch.testing.assert_close(clean, third - 0.522 * v3, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(latents[:, :, block : block + 1], clean)


def test_a_perfect_network_returns_the_video(pipe, monkeypatch):
    expected = torch.randn(1, 16, 3, 2, 2)
    calls = []

    def predict_flow(hidden_states, timestep, encoder_hidden_states, return_dict):
        calls.append(hidden_states)
        index = (len(calls) - 1) // 4
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        return ((hidden_states - expected[:, :, index : index + 1]) / sigma.clamp(min=1e-3),)

    monkeypatch.setattr(pipe.transformer, "forward", predict_flow)
    torch.testing.assert_close(generate(pipe), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_negative_prompt_steers_a_video_and_leaves_no_trace(pipe):
    before, plain = dict(pipe.transformer.attn_processors), generate(pipe)
    with nasa.steer(pipe, "a dog", 0.5, max_sequence_length=16):
        steered = generate(pipe)
        inside = pipe.transformer.attn_processors.values()
        assert not any(isinstance(processor, CausalAttnProcessor) for processor in inside)
    with nasa.steer(pipe, "a dog", 0.5, max_sequence_length=16, steps={0}):
        first = generate(pipe)
    assert torch.equal(generate(pipe), plain)
    assert not torch.allclose(steered, plain, atol=100 * TOLERANCE)
    assert not torch.allclose(steered, first, atol=10 * TOLERANCE)
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in before.items())
    assert "forward" not in vars(pipe.transformer.rope)


def test_a_cancelled_video_leaves_no_trace(pipe, monkeypatch):
    """The first video is cancelled in the second step of a block; `steps` then counts from the start again."""
    with nasa.steer(pipe, "a dog", 0.5, steps={0}):
        first, calls, forward = generate(pipe), [], pipe.transformer.forward

        def fail_once(*args, **kwargs):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return forward(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(pipe.transformer, "forward", fail_once)
            with pytest.raises(KeyboardInterrupt):
                generate(pipe)
        assert torch.equal(generate(pipe), first)


def test_the_output_is_a_video(pipe):
    assert generate(pipe, output_type="np").shape == (1, 9, 16, 16, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_block": 2}, "num_frames: got 9, 3 latent frames; expected a multiple of 2"),
        ({"timesteps": (500, 700)}, "timesteps: .* expected decreasing"),
        ({"timesteps": (1000, 0)}, "timesteps: .* above 0"),
        ({"timesteps": ()}, "timesteps: "),
    ],
)
def test_invalid_input_is_rejected(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        generate(pipe, **options)
