"""Z-Image's single sequence, steered, against a float64 reference of the whole denoiser that keeps three streams apart.

The reference reads the weights and shares no code with `nasa` or diffusers. In it image, positive and negative text
are tensors of their own, one prompt at a time, so there is no mask, no padding to a batch, and no place in a sequence.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import nasa
from nasa.families.z_image import Z_IMAGE
from nasa.joint_attention import JOINT_ATTENTION_MODES
from nasa.prompt_embeds import PromptEmbeds
from nasa.single_sequence import PairedCaptions, SequenceSteering, list_processors
from nasa.steerable_denoiser import make_steerable
from nasa.testing import TINY_PIPELINES, run_tiny_pipeline

TOLERANCE = 1e-5  # diffusers rotates queries and keys in float32
ALPHAS = [0.6, 0.9]
MULTIPLE = 32  # of tokens, to which Z-Image pads a caption and an image


def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


class Reference:
    """A Z-Image denoiser in float64 for one image."""

    def __init__(self, model, alpha, mode):
        self.model, self.alpha, self.mode = model, alpha, mode

    def rotate(self, x_TK, positions_T3):
        angles = []
        for axis, size in enumerate(self.model.axes_dims):
            exponents = torch.arange(0, size, 2).double() / size
            angles.append(positions_T3[:, axis, None] * self.model.rope_theta**-exponents)
        angle = torch.cat(angles, dim=-1)
        even, odd = x_TK[:, 0::2], x_TK[:, 1::2]
        turned = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
        return torch.stack(turned, dim=-1).flatten(1)

    def pad(self, tokens_TD, token_1D):
        return torch.cat([tokens_TD, token_1D.expand(-len(tokens_TD) % MULTIPLE, -1)])

    def embed_caption(self, text_TD):
        norm, linear = self.model.cap_embedder
        tokens = self.pad(rms(text_TD, norm) @ linear.weight.T + linear.bias, self.model.cap_pad_token)
        positions = torch.zeros(len(tokens), 3, dtype=torch.double)
        positions[:, 0] = 1 + torch.arange(len(tokens))
        return tokens, positions

    def embed_image(self, x_CHW, caption_tokens):
        channels, height, width = x_CHW.shape
        embedder = self.model.all_x_embedder["2-1"]
        patches, positions = [], []
        for row in range(height // 2):
            for column in range(width // 2):
                patch = x_CHW[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                patches.append(patch.permute(1, 2, 0).reshape(4 * channels))
                positions.append([caption_tokens + 1, row, column])
        tokens = self.pad(torch.stack(patches) @ embedder.weight.T + embedder.bias, self.model.x_pad_token)
        positions += [[0, 0, 0]] * (len(tokens) - len(positions))
        return tokens, torch.tensor(positions).double()

    def embed_time(self, t):
        first, _, last = self.model.t_embedder.mlp
        half = self.model.t_embedder.frequency_embedding_size // 2
        args = t * self.model.t_scale * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
        hidden = torch.cat([args.cos(), args.sin()]) @ first.weight.T + first.bias
        return F.silu(hidden) @ last.weight.T + last.bias

    def attend(self, query_LK, *key_values):
        keys, values = (torch.cat(parts) for parts in zip(*key_values, strict=True))
        return (query_LK @ keys.T / math.sqrt(query_LK.shape[1])).softmax(-1) @ values

    def attention(self, attn, streams, positions):
        """Return the attention of each stream, after its projection."""
        size = attn.to_q.weight.shape[0] // attn.heads
        heads = []
        for head in range(attn.heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = {}, {}, {}
            for name, x in streams.items():
                q[name] = self.rotate(rms(x @ attn.to_q.weight[part].T, attn.norm_q), positions[name])
                k[name] = self.rotate(rms(x @ attn.to_k.weight[part].T, attn.norm_k), positions[name])
                v[name] = x @ attn.to_v.weight[part].T
            heads.append(self.combine(q, {name: (k[name], v[name]) for name in streams}))
        return {name: torch.cat([z[name] for z in heads], dim=-1) @ attn.to_out[0].weight.T for name in streams}

    def combine(self, q, kv):
        """Each text sees itself and the image; the image sees itself and the positive, minus alpha times Z-."""
        image = [kv["image"]] if "image" in kv else []
        z = {name: self.attend(q[name], kv[name], *image) for name in q if name != "image"}
        if image:
            z["image"] = self.attend(q["image"], *image, *([kv["positive"]] if "positive" in kv else []))
        if image and "negative" in kv:
            seen = image if self.mode == "joint" else []
            z["image"] = z["image"] - self.alpha * self.attend(q["image"], kv["negative"], *seen)
        return z

    def block(self, block, streams, positions, time=None):
        ones = torch.ones(1).double()
        scale_attn = gate_attn = scale_ff = gate_ff = ones
        if time is not None:
            linear = block.adaLN_modulation[0]
            scale_attn, gate_attn, scale_ff, gate_ff = (time @ linear.weight.T + linear.bias).chunk(4)
            scale_attn, gate_attn, scale_ff, gate_ff = 1 + scale_attn, gate_attn.tanh(), 1 + scale_ff, gate_ff.tanh()
        normed = {name: rms(x, block.attention_norm1) * scale_attn for name, x in streams.items()}
        attended, ff = self.attention(block.attention, normed, positions), block.feed_forward
        result = {}
        for name, before in streams.items():
            x = before + gate_attn * rms(attended[name], block.attention_norm2)
            h = rms(x, block.ffn_norm1) * scale_ff
            h = (F.silu(h @ ff.w1.weight.T) * (h @ ff.w3.weight.T)) @ ff.w2.weight.T
            result[name] = x + gate_ff * rms(h, block.ffn_norm2)
        return result

    def __call__(self, x_CHW, t, positive_TD, negative_TD=None):
        texts = {"positive": positive_TD} | ({} if negative_TD is None else {"negative": negative_TD})
        streams, positions = {}, {}
        for name, text in texts.items():
            streams[name], positions[name] = self.embed_caption(text)
            for block in self.model.context_refiner:
                streams |= self.block(block, {name: streams[name]}, positions)
        streams["image"], positions["image"] = self.embed_image(x_CHW, len(streams["positive"]))
        time = self.embed_time(t)
        for block in self.model.noise_refiner:
            streams |= self.block(block, {"image": streams["image"]}, positions, time)
        for block in self.model.layers:
            streams = self.block(block, streams, positions, time)
        return self.unpatch(streams["image"], time, x_CHW.shape)

    def unpatch(self, tokens_LD, time, shape):
        final = self.model.all_final_layer["2-1"]
        scale = 1 + F.silu(time) @ final.adaLN_modulation[1].weight.T + final.adaLN_modulation[1].bias
        normed = F.layer_norm(tokens_LD, tokens_LD.shape[1:], eps=1e-6) * scale
        patches = normed @ final.linear.weight.T + final.linear.bias
        image, (channels, height, width) = torch.zeros(shape).double(), shape
        rows = []
        for row in range(height // 2):
            columns = patches[row * width // 2 : (row + 1) * width // 2]
            rows.append(columns.reshape(width // 2, 2, 2, channels).permute(3, 1, 0, 2).reshape(channels, 2, width))
        assert image.shape == torch.cat(rows, dim=1).shape
        return torch.cat(rows, dim=1)


def make_texts(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 16, generator=generator).double() for length in lengths]


def to_embeds(texts):
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.tensor([[float(token < len(text)) for token in range(padded.shape[1])] for text in texts])
    return PromptEmbeds(padded, mask)


@pytest.fixture(scope="module")
def model():
    """Return a denoiser whose norms and biases are random too, and whose layers all matter."""
    denoiser = TINY_PIPELINES["z-image"]().transformer.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
    return denoiser


LATENTS = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(1)).double()
TIMES = torch.tensor([997.0, 993.0]).double()  # diffusers embeds a time in float32, whose error grows with 1000 - time
LENGTHS = {
    "equal": ((5, 9), (3, 7)),  # all pad to 32 tokens
    "unequal": ((5, 40), (37, 3)),
    "longer negative": ((5, 5), (70, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("mode", JOINT_ATTENTION_MODES)
def test_a_steered_denoiser_matches_the_reference(model, mode, lengths):
    positives, negatives = make_texts(lengths[0], 2), make_texts(lengths[1], 3)
    negative, scale = to_embeds(negatives), torch.tensor(ALPHAS)
    pipe = TINY_PIPELINES["z-image"]()
    pipe.transformer = model
    options = {"scale": scale, "joint_attention": mode, "conditional": slice(None)}
    with nasa.steer(
        pipe, negative_prompt_embeds=negative.embeds, negative_attention_mask=negative.attention_mask, **options
    ):
        actual = model(list(LATENTS[:, :, None]), (1000 - TIMES) / 1000, positives, return_dict=False)[0]
    for image in range(2):
        reference = Reference(model, ALPHAS[image], mode)
        inputs = LATENTS[image], (1000 - TIMES[image]) / 1000, positives[image]
        expected, plain = reference(*inputs, negatives[image]), reference(*inputs)
        torch.testing.assert_close(actual[image][:, 0], expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert (expected - plain).abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize("mode", JOINT_ATTENTION_MODES)
def test_outputs_and_gradients_in_training_match_the_reference(model, mode):
    positives, negatives = make_texts((5, 40), 2), make_texts((37, 3), 3)
    own, alpha = copy.deepcopy(model), ALPHAS[0]
    denoiser = make_steerable(own, family=Z_IMAGE)
    denoiser.steering.joint_attention = mode
    velocity = denoiser(LATENTS, TIMES, to_embeds(positives), to_embeds(negatives), alpha)
    reference = Reference(model, alpha, mode)
    rows = zip(LATENTS, TIMES, positives, negatives, strict=True)
    expected = -torch.stack([reference(x, (1000 - t) / 1000, *texts) for x, t, *texts in rows])
    torch.testing.assert_close(velocity, expected, atol=TOLERANCE, rtol=TOLERANCE)
    for output in (velocity, expected):
        output.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=TOLERANCE * float(largest), rtol=0, msg=name)
    model.zero_grad()


@torch.no_grad()
def test_the_plain_denoiser_is_that_of_the_reference(model):
    (positive,) = make_texts((40,), 2)
    time = (1000 - TIMES[:1]) / 1000
    (actual,) = model([LATENTS[0][:, None]], time, [positive], return_dict=False)[0]
    expected = Reference(model, 0.0, "text")(LATENTS[0], time[0], positive)
    torch.testing.assert_close(actual[:, 0], expected, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("mode", JOINT_ATTENTION_MODES)
def test_image_and_positive_text_do_not_depend_on_a_negative_of_scale_zero(model, mode):
    """A tensor of zeros runs the steered layers, whose every stream but the negative's must be the plain one."""
    positives = make_texts((5, 40), 2)
    call = list(LATENTS[:, :, None]), (1000 - TIMES) / 1000, positives
    pipe = TINY_PIPELINES["z-image"]()
    pipe.transformer = model
    streams = []
    hook = model.layers[-1].register_forward_hook(lambda _, __, output: streams.append(output))
    plain = model(*call, return_dict=False)[0]
    for length in (1, 33, 97):
        (negative,) = make_texts((length,), length)
        options = {"scale": torch.zeros(1), "joint_attention": mode, "conditional": slice(None)}
        with nasa.steer(pipe, negative_prompt_embeds=negative[None], **options):
            actual = model(*call, return_dict=False)[0]
        torch.testing.assert_close(torch.stack(actual), torch.stack(plain), atol=TOLERANCE, rtol=TOLERANCE)
        image_and_positive = [MULTIPLE + MULTIPLE, MULTIPLE + 2 * MULTIPLE]
        for row, tokens in enumerate(image_and_positive):
            one, other = streams[0][row, :tokens], streams[-1][row, :tokens]
            torch.testing.assert_close(other, one, atol=TOLERANCE, rtol=TOLERANCE)
    hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("mode", JOINT_ATTENTION_MODES)
def test_each_image_of_a_batch_equals_it_alone(mode):
    """The texts pad to different lengths, and each prompt has two images."""
    pipe = TINY_PIPELINES["z-image"]()
    prompts = ["a cat", "a photo of a very small dog that sits on top of a hill"]
    negatives = ["blurry", "a red car, an ugly house, and some people who are looking at it"]
    scales = [0.4, 0.8]
    noise = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def draw(chosen, latents):
        texts = ([values[i] for i in chosen] for values in (negatives, scales))
        with nasa.steer(pipe, *texts, joint_attention=mode):
            return run_tiny_pipeline(pipe, [prompts[i] for i in chosen], latents=latents, num_images_per_prompt=2)

    batched = draw([0, 1], noise)
    alone = torch.cat([draw([i], noise[2 * i : 2 * i + 2]) for i in range(2)])
    torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=TOLERANCE)
    assert (batched - draw([1, 0], noise)).abs().max() > 1000 * TOLERANCE


def test_a_negative_is_encoded_once_although_the_pipeline_changes_the_list_of_prompts():
    pipe = TINY_PIPELINES["z-image"]()
    encoded = []
    hook = pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(None))
    with nasa.steer(pipe, "blurry", 0.5):
        for _ in range(3):
            run_tiny_pipeline(pipe, "a cat")
    hook.remove()
    assert len(encoded) == 3 + 1


@torch.no_grad()
def test_the_tokens_of_each_prompt_are_those_of_the_pipeline():
    """Embeddings are padded to one tensor; the denoiser gets each caption without its padding."""
    pipe, prompts = TINY_PIPELINES["z-image"](), ["a cat", "a small dog on a hill"]
    own, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    unpadded = Z_IMAGE.encode(pipe, prompts, None).unpad()
    assert [len(text) for text in own] == [len(text) for text in unpadded]
    assert all(torch.equal(*pair) for pair in zip(own, unpadded, strict=True))
    assert prompts == ["a cat", "a small dog on a hill"]


def test_a_recomputed_block_has_the_captions_of_its_forward_pass(model):
    """A call with other lengths comes between the forward and the backward pass of the first one."""
    positives, negatives = to_embeds(make_texts((5, 40), 2)), to_embeds(make_texts((37, 3), 3))
    others = to_embeds(make_texts((70, 70), 4))
    gradients = []
    for checkpointed in (False, True):
        denoiser = make_steerable(copy.deepcopy(model), family=Z_IMAGE)
        if checkpointed:
            denoiser.enable_gradient_checkpointing()
        output = denoiser(LATENTS, TIMES, positives, negatives, 0.7)
        with torch.no_grad():
            denoiser(LATENTS, TIMES, others, others, 0.3)
        output.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in denoiser.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-12, rtol=1e-9)


def test_images_of_different_sizes_the_omni_model_and_a_controlnet_are_rejected(model):
    captions = PairedCaptions(copy.deepcopy(model), SequenceSteering())
    images = [torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 4, 6)]
    pairs = [tuple(make_texts((3, 4), 0))] * 2
    with pytest.raises(ValueError, match="x: got images of different sizes; expected one size"):
        captions(images, pairs, 2, 1)
    with pytest.raises(ValueError, match="pipe: got a call of Z-Image-Omni"):
        Z_IMAGE.extend({"x": [[images[0]]], "cap_feats": []}, torch.zeros(1, 3, 16), None)
    with pytest.raises(ValueError, match="pipe: got a call with a ControlNet"):
        Z_IMAGE.extend({"x": images, "cap_feats": [], "controlnet_block_samples": {}}, torch.zeros(1, 3, 16), None)


def test_the_denoiser_is_as_before_after_it_was_steered(model):
    before = list_processors(model)
    pipe = TINY_PIPELINES["z-image"]()
    pipe.transformer = model
    with nasa.steer(pipe, "blurry"):
        assert isinstance(model.patchify_and_embed, PairedCaptions)
    assert "patchify_and_embed" not in vars(model)
    assert list_processors(model) == before
