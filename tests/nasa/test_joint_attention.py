"""Joint attention, compared with diffusers' processors run on the image and one text at a time."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0

import nasa
from nasa.families import find_family
from nasa.joint_attention import JOINT_ATTENTION_MODES, JointSteeredProcessor, JointSteering
from nasa.testing.tiny_pipelines import TINY_PIPELINES

TOLERANCE = 2e-6
BATCH, WIDTH, HEADS = 2, 16, 2
POSITIVE, NEGATIVE, IMAGE = 5, 3, 7
ALPHA = 0.6


def make_attention(kind):
    torch.manual_seed(0)
    if kind in ("stable-diffusion-3", "qwen-image"):
        processor = QwenDoubleStreamAttnProcessor2_0() if kind == "qwen-image" else JointAttnProcessor2_0()
        return Attention(
            query_dim=WIDTH,
            added_kv_proj_dim=WIDTH,
            dim_head=WIDTH // HEADS,
            heads=HEADS,
            out_dim=WIDTH,
            context_pre_only=False,
            bias=True,
            processor=processor,
            qk_norm="rms_norm",
        ).eval()
    single = kind == "flux-single"
    return FluxAttention(
        query_dim=WIDTH,
        added_kv_proj_dim=None if single else WIDTH,
        dim_head=WIDTH // HEADS,
        heads=HEADS,
        out_dim=WIDTH,
        bias=True,
        context_pre_only=False,
        pre_only=single,
        processor=FluxAttnProcessor(),
    ).eval()


def make_tokens(count, seed):
    return torch.randn(BATCH, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def make_rotary(*counts):
    """Return rotary angles of texts, which share one position, and of the image."""
    angles = torch.rand(IMAGE, WIDTH // HEADS // 2, generator=torch.Generator().manual_seed(9)).repeat_interleave(2, 1)
    text = torch.zeros(sum(counts), WIDTH // HEADS)
    combined = torch.cat([text, angles])
    return combined.cos(), combined.sin()


def mask_options(mask):
    return {} if mask is None else {"encoder_hidden_states_mask": mask}


def make_complex_rotary(count):
    """Return complex rotary factors of the image and of a text with consecutive positions."""
    angles = torch.rand(IMAGE + 20, WIDTH // HEADS // 2, generator=torch.Generator().manual_seed(9)) * 6
    factors = torch.polar(torch.ones_like(angles), angles)
    return factors[:IMAGE], factors[IMAGE : IMAGE + count]


def run_attention(attn, kind, image, text, **overrides):
    """Return image rows and text rows for any kind of layer."""
    if kind == "flux-single":
        both = attn(torch.cat([text, image], dim=1), image_rotary_emb=make_rotary(text.shape[1]), **overrides)
        return both[:, text.shape[1] :], both[:, : text.shape[1]]
    rope = {} if kind == "stable-diffusion-3" else {"image_rotary_emb": make_rotary(text.shape[1])}
    if kind == "qwen-image":
        rope = {"image_rotary_emb": make_complex_rotary(text.shape[1])}
    return attn(image, encoder_hidden_states=text, **rope, **overrides)


def compute_negative_output(attn, kind, image, negative, mode):
    """Return Z- after `to_out`; an additive mask over the image's keys leaves only the negative's."""
    if mode == "joint":
        return run_attention(attn, kind, image, negative)[0]
    mask = torch.zeros(1, 1, 1, NEGATIVE + IMAGE)
    mask[..., NEGATIVE:] = -torch.inf
    return run_attention(attn, kind, image, negative, attention_mask=mask)[0]


CASES = [(kind, mode) for kind in ("flux", "flux-single") for mode in JOINT_ATTENTION_MODES]
CASES += [("stable-diffusion-3", "joint"), ("qwen-image", "joint")]  # their own processors cannot mask the image


@torch.no_grad()
@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_only_the_image_is_steered_and_texts_are_unchanged(kind, mode):
    attn = make_attention(kind)
    image, positive, negative = make_tokens(IMAGE, 1), make_tokens(POSITIVE, 2), make_tokens(NEGATIVE, 3)
    z_image, z_text = run_attention(attn, kind, image, positive)
    _, z_negative_text = run_attention(attn, kind, image, negative)
    bias = 0 if kind == "flux-single" else attn.to_out[0].bias
    expected = z_image - ALPHA * (compute_negative_output(attn, kind, image, negative, mode) - bias)

    steering = JointSteering(embeds_NTD=negative, scale=ALPHA, positive_tokens=POSITIVE, joint_attention=mode)
    attn.set_processor(JointSteeredProcessor(attn.processor, steering))
    steered, texts = run_attention(attn, kind, image, torch.cat([positive, negative], dim=1))
    torch.testing.assert_close(steered, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(texts, torch.cat([z_text, z_negative_text], dim=1), atol=TOLERANCE, rtol=0)
    assert steering.used


@torch.no_grad()
@pytest.mark.parametrize("padded", ["both", "positive", "negative"])
def test_padding_of_either_text_has_no_effect(padded):
    """A text of 3 tokens padded to 5 is equivalent to the text of 3 tokens."""
    attn = make_attention("qwen-image")
    lengths = {"positive": POSITIVE, "negative": NEGATIVE}
    image, texts = make_tokens(IMAGE, 1), {name: make_tokens(length, 2 + length) for name, length in lengths.items()}
    longer, masks = {}, []
    for name, text in texts.items():
        pad = 2 if padded in (name, "both") else 0
        longer[name] = torch.cat([text, make_tokens(pad, 7)], dim=1)
        masks.append(torch.arange(lengths[name] + pad) < lengths[name])
    plain = attn.processor
    outputs = []
    for pair, mask in ((texts, None), (longer, torch.cat(masks).expand(BATCH, -1))):
        count = pair["positive"].shape[1]
        steering = JointSteering(embeds_NTD=pair["negative"], scale=ALPHA, positive_tokens=count)
        attn.set_processor(JointSteeredProcessor(plain, steering))
        outputs.append(
            run_attention(attn, "qwen-image", image, torch.cat(list(pair.values()), dim=1), **mask_options(mask))
        )
    (image_unpadded, texts_unpadded), (image_padded, texts_padded) = outputs
    torch.testing.assert_close(image_padded, image_unpadded, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(texts_padded[:, torch.cat(masks)], texts_unpadded, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_mode_text_of_qwen_image_attends_only_to_the_negative():
    """The reference is the original processor with a single image token that the mask hides."""
    attn = make_attention("qwen-image")
    image, positive, negative = make_tokens(IMAGE, 1), make_tokens(POSITIVE, 2), make_tokens(NEGATIVE, 3)
    scales = []
    for alpha in (ALPHA, 2 * ALPHA):
        steering = JointSteering(embeds_NTD=negative, scale=alpha, positive_tokens=POSITIVE)
        attn.set_processor(JointSteeredProcessor(QwenDoubleStreamAttnProcessor2_0(), steering))
        scales.append(run_attention(attn, "qwen-image", image, torch.cat([positive, negative], dim=1))[0])
    heads = WIDTH // HEADS
    image_factors, text_factors = make_complex_rotary(NEGATIVE)

    def rotate_heads(x, norm, factors):
        pairs = torch.view_as_complex(norm(x.unflatten(-1, (HEADS, heads))).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * factors[:, None]).flatten(-2)

    query = rotate_heads(attn.to_q(image), attn.norm_q, image_factors)
    key = rotate_heads(attn.add_k_proj(negative), attn.norm_added_k, text_factors)
    weights = (torch.einsum("blhk,bthk->bhlt", query, key) / heads**0.5).softmax(-1)
    negative_output = torch.einsum("bhlt,bthk->blhk", weights, attn.add_v_proj(negative).unflatten(-1, (HEADS, heads)))
    change = -ALPHA * negative_output.flatten(-2) @ attn.to_out[0].weight.T
    torch.testing.assert_close(scales[1] - scales[0], change, atol=5 * TOLERANCE, rtol=0)


def record_first_outputs(pipe, calls, **options):
    """Return the denoiser's outputs at the first step, two if guidance is a separate call."""
    _, model = find_family(pipe)
    outputs = []
    hook = model.register_forward_hook(lambda _, args, output: outputs.append(output[0]))
    try:
        generator = torch.Generator().manual_seed(3)
        size = {"height": 32, "width": 32, "max_sequence_length": 16}
        pipe(prompt="a cat", num_inference_steps=1, generator=generator, output_type="latent", **size, **options)
    finally:
        hook.remove()
    assert len(outputs) == calls
    outputs = [torch.stack(output) if isinstance(output, list) else output for output in outputs]
    return outputs[0].chunk(2) if calls == 1 and len(outputs[0]) == 2 else outputs


@pytest.mark.parametrize("mode", JOINT_ATTENTION_MODES)
@pytest.mark.parametrize("family", ["flux", "flux2-klein", "qwen-image"])
def test_guidance_in_calls_steers_only_the_conditional_call(family, mode):
    pipe = TINY_PIPELINES[family]()
    guided = {"guidance_scale": 3.0} if family == "flux2-klein" else {"true_cfg_scale": 3.0, "negative_prompt": "dog"}
    plain = record_first_outputs(pipe, 2, **guided)
    with nasa.steer(pipe, "blurry", 0.5, max_sequence_length=16, joint_attention=mode):
        steered = record_first_outputs(pipe, 2, **guided)
        (unguided,) = record_first_outputs(pipe, 1, **({"guidance_scale": 1.0} if family == "flux2-klein" else {}))
    assert torch.equal(steered[1], plain[1])
    assert torch.equal(steered[0], unguided)
    assert not torch.allclose(steered[0], plain[0])


@pytest.mark.parametrize("mode", JOINT_ATTENTION_MODES)
@pytest.mark.parametrize(("family", "conditional"), [("stable-diffusion-3", 1), ("z-image", 0)])
def test_guidance_in_a_batch_steers_only_the_conditional_half(family, conditional, mode):
    pipe = TINY_PIPELINES[family]()
    plain = record_first_outputs(pipe, 1, guidance_scale=3.0)
    with nasa.steer(pipe, "blurry", 0.5, max_sequence_length=16, joint_attention=mode):
        steered = record_first_outputs(pipe, 1, guidance_scale=3.0)
        (unguided,) = record_first_outputs(pipe, 1, guidance_scale=0)
    other = 1 - conditional
    torch.testing.assert_close(steered[other], plain[other], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(steered[conditional], unguided, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(steered[conditional], plain[conditional], atol=100 * TOLERANCE)


@torch.no_grad()
def test_a_batch_of_unequal_texts_equals_separate_calls():
    pipe = TINY_PIPELINES["qwen-image"]()
    pairs = [("a cat", "blurry"), ("dog", "on a table")]
    noise = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))

    def draw(prompts, negatives, latents):
        with nasa.steer(pipe, negatives, 0.5):
            size = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
            return pipe(prompts, latents=latents, **size)[0]

    prompts, negatives = map(list, zip(*pairs, strict=True))
    batched = draw(prompts, negatives, noise)
    separate = torch.cat([draw([p], [n], noise[i : i + 1]) for i, (p, n) in enumerate(pairs)])
    torch.testing.assert_close(batched, separate, atol=10 * TOLERANCE, rtol=0)
    assert not torch.allclose(batched, draw(prompts, negatives[::-1], noise), atol=100 * TOLERANCE)


@pytest.mark.parametrize("family", ["flux", "flux2-klein", "stable-diffusion-3", "qwen-image", "z-image"])
def test_modes_differ_and_a_zero_tensor_scale_is_plain(family):
    pipe = TINY_PIPELINES[family]()
    (plain,) = record_first_outputs(pipe, 1, guidance_scale=0)
    outputs = {}
    for mode in JOINT_ATTENTION_MODES:
        with nasa.steer(pipe, "blurry", 0.5, max_sequence_length=16, joint_attention=mode):
            (outputs[mode],) = record_first_outputs(pipe, 1, guidance_scale=0)
        with nasa.steer(pipe, "blurry", torch.zeros(1), max_sequence_length=16, joint_attention=mode):
            torch.testing.assert_close(
                record_first_outputs(pipe, 1, guidance_scale=0)[0], plain, atol=TOLERANCE, rtol=0
            )
    assert not torch.allclose(outputs["text"], outputs["joint"], atol=100 * TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"joint_attention": "both"}, "joint_attention: got 'both'; expected text or joint"),
        (
            {"negative_attention_mask": torch.ones(1, 3), "negative_prompt_embeds": torch.ones(1, 3, 16)},
            "negative_attention_mask: got a mask; expected None",
        ),
    ],
)
def test_invalid_arguments_are_named(options, message):
    pipe = TINY_PIPELINES["flux"]()
    prompt = {} if "negative_prompt_embeds" in options else {"negative_prompt": "x"}
    with pytest.raises(ValueError, match=message), nasa.steer(pipe, **prompt, **options):
        pass
