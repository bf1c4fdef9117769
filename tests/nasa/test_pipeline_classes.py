"""Coverage of all diffusers pipeline classes with a steerable denoiser: supported and tested, or rejected.

Conditional rows are detected from outside, because their text changes with the prompt. Options that encode the
negative are too: steering away from the prompt itself at scale 1 leaves exactly nothing.
"""

import copy
import inspect
import re
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.utils import is_sentencepiece_available
from peft import LoraConfig, inject_adapter_in_model

import nasa
from nasa.attention import SteeredAttnProcessor
from nasa.batch_layouts import PIPELINES
from nasa.families import FAMILIES, find_denoiser_family, get_denoisers
from nasa.testing import tiny_stable_diffusion
from nasa.testing.pipeline_variants import GUIDED, GUIDED_BY_SECOND_CALL, build_variant

DEPRECATED = "diffusers.pipelines.deprecated."
UNSUPPORTED = {  # in addition to those that diffusers marks as deprecated
    "another UNet, made of this one": (
        "AnimateDiffControlNetPipeline AnimateDiffPAGPipeline AnimateDiffPipeline AnimateDiffSDXLPipeline "
        "AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoControlNetPipeline AnimateDiffVideoToVideoPipeline"
    ),
    "no attention to text alone": (
        "IFImg2ImgPipeline IFImg2ImgSuperResolutionPipeline IFInpaintingPipeline IFInpaintingSuperResolutionPipeline "
        "IFPipeline IFSuperResolutionPipeline KandinskyImg2ImgPipeline KandinskyInpaintPipeline KandinskyPipeline "
        "KandinskyV22ControlnetImg2ImgPipeline KandinskyV22ControlnetPipeline KandinskyV22Img2ImgPipeline "
        "KandinskyV22InpaintPipeline KandinskyV22Pipeline"
    ),
    "several pipelines in one": (
        "KandinskyCombinedPipeline KandinskyImg2ImgCombinedPipeline KandinskyInpaintCombinedPipeline "
        "KandinskyV22CombinedPipeline KandinskyV22Img2ImgCombinedPipeline KandinskyV22InpaintCombinedPipeline "
        "VisualClozePipeline"
    ),
    "no prompt, or an image in its place": (
        "BlipDiffusionControlNetPipeline MarigoldDepthPipeline MarigoldIntrinsicsPipeline MarigoldNormalsPipeline "
        "StableDiffusionImageVariationPipeline StableUnCLIPImg2ImgPipeline StableUnCLIPPipeline "
        "VisualClozeGenerationPipeline"
    ),
    "a prompt that is read beside an image": (
        "QwenImageEditInpaintPipeline QwenImageEditPipeline QwenImageEditPlusPipeline QwenImageLayeredPipeline"
    ),
    "a text encoder or layers that were not tried": (
        "Flux2KleinKVPipeline Flux2Pipeline KolorsImg2ImgPipeline KolorsPAGPipeline KolorsPipeline "
        "LDMTextToImagePipeline StableDiffusionLatentUpscalePipeline"
    ),
    "layers that its ControlNet shares, or several images in one sequence": (
        "ZImageControlNetInpaintPipeline ZImageControlNetPipeline ZImageOmniPipeline"
    ),
    "attention of its own in the layers to steer": (
        "LEditsPPPipelineStableDiffusion LEditsPPPipelineStableDiffusionXL StableDiffusion3PAGImg2ImgPipeline "
        "StableDiffusion3PAGPipeline"
    ),
}
ONE_VIDEO = ("LucyEditPipeline", "WanImageToVideoPipeline")  # diffusers does not repeat the image
ALL_UNSUPPORTED = {name for names in UNSUPPORTED.values() for name in names.split()}

TEXT_OPTIONS = {  # options of a call that concern its text, each with a value that is not the default
    "attention_kwargs": {"scale": 0.25},
    "clean_caption": True,
    "clip_skip": 1,
    "complex_human_instruction": ["say it", "briefly"],
    "cross_attention_kwargs": {"scale": 0.25},
    "joint_attention_kwargs": {"scale": 0.25},
    "max_sequence_length": 8,
    "prompt_2": "on ice",
    "prompt_3": "at sea",
    "text_encoder_out_layers": (3, 9, 27),
}
PROMPT_OPTIONS = {"prompt", "prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask", "prompt_embeds_mask"}
GUIDANCE_OPTIONS = (
    "cfg_normalization cfg_truncation guidance_rescale guidance_scale guidance_scale_2 image_guidance_scale "
    "negative_pooled_prompt_embeds "
    "negative_prompt negative_prompt_2 negative_prompt_3 negative_prompt_attention_mask negative_prompt_embeds "
    "negative_prompt_embeds_mask pag_adaptive_scale pag_scale skip_guidance_layers skip_layer_guidance_scale "
    "skip_layer_guidance_start skip_layer_guidance_stop true_cfg_scale"
)
OTHER_OPTIONS = (
    "_auto_resize adapter_conditioning_factor adapter_conditioning_scale aesthetic_score callback "
    "callback_on_step_end callback_on_step_end_tensor_inputs callback_steps control_guidance_end "
    "control_guidance_start control_image control_mask control_mode controlnet_conditioning_scale "
    "controlnet_pooled_projections crops_coords_top_left denoising_end denoising_start depth_map eta generator "
    "guess_mode height image image_embeds image_reference intermediate_timesteps ip_adapter_image "
    "ip_adapter_image_embeds kwargs last_image latents mask_image masked_image_latents max_area max_timesteps mu "
    "negative_aesthetic_score negative_crops_coords_top_left negative_ip_adapter_image "
    "negative_ip_adapter_image_embeds negative_original_size negative_target_size noise_level num_frames "
    "num_images_per_prompt num_inference_steps num_videos_per_prompt original_inference_steps original_size "
    "output_type padding_mask_crop return_dict self sigmas strength target_size timesteps use_resolution_binning "
    "video width"
)
KNOWN_OPTIONS = {*TEXT_OPTIONS, *PROMPT_OPTIONS, *GUIDANCE_OPTIONS.split(), *OTHER_OPTIONS.split()}


def get_call_parameters(name):
    return inspect.signature(getattr(diffusers, name).__call__).parameters


def find_steerable_classes():
    """Return exported pipeline classes whose constructor takes a supported denoiser."""
    names = re.compile(rf"\b({'|'.join(family.denoiser_class for family in FAMILIES)})\b")
    actual = {}
    for name in dir(diffusers):
        cls = getattr(diffusers, name) if "Pipeline" in name else None
        if inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline):
            taken = inspect.signature(cls.__init__).parameters
            if any(names.search(str(taken[part].annotation)) for part in ("unet", "transformer") if part in taken):
                actual[name] = cls
    return actual


def find_placeholders():
    """Return placeholder classes, such as Kolors without sentencepiece."""
    return set() if is_sentencepiece_available() else {name for name in ALL_UNSUPPORTED if name.startswith("Kolors")}


def test_every_diffusers_class_is_supported_or_rejected():
    actual = find_steerable_classes()
    deprecated = {name for name, cls in actual.items() if cls.__module__.startswith(DEPRECATED)}
    assert not deprecated & set(PIPELINES)
    assert not ALL_UNSUPPORTED & set(PIPELINES)
    assert set(actual) - deprecated == (ALL_UNSUPPORTED | set(PIPELINES)) - find_placeholders()
    unet = tiny_stable_diffusion().unet
    for name in (ALL_UNSUPPORTED | deprecated) & set(actual):
        pipe = object.__new__(actual[name])
        pipe.__dict__["unet"] = unet
        with pytest.raises(ValueError, match=rf"pipe: got {name}; .*Pass conditional="), nasa.steer(pipe, "x"):
            pass


@pytest.mark.parametrize("name", PIPELINES)
def test_every_call_option_is_classified(name):
    assert set(get_call_parameters(name)) <= KNOWN_OPTIONS
    source = inspect.getsource(getattr(diffusers, name).__call__)
    assert "self.check_inputs(" in source or "self.prepare_latents(" in source


def record_calls(pipe, call):
    """Return text and output of each denoiser call, as lists of rows."""
    texts, outputs = [], []

    def record(_, args, kwargs, output):
        texts_by_name = [kwargs[name] for name in ("encoder_hidden_states", "cap_feats") if name in kwargs]
        text = texts_by_name[0] if texts_by_name else args[2]
        texts.append(list(text))
        outputs.append(list(output[0]))

    hooks = [model.register_forward_hook(record, with_kwargs=True) for model in get_denoisers(pipe)]
    pipe(**call, generator=torch.Generator().manual_seed(0))
    for hook in hooks:
        hook.remove()
    return texts, outputs


def find_changes(before, after):
    """Return the (call, row) pairs that differ."""
    return [
        (call, row)
        for call, rows in enumerate(zip(before, after, strict=True))
        for row, (one, other) in enumerate(zip(*rows, strict=True))
        if one.shape != other.shape or not torch.allclose(one, other, atol=1e-5)
    ]


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("name", PIPELINES)
def test_only_the_conditional_rows_are_steered(name, guided):
    pipe, call = build_variant(name)
    options = get_call_parameters(name)
    count = "num_images_per_prompt" if "num_images_per_prompt" in options else "num_videos_per_prompt"
    guidance = GUIDED_BY_SECOND_CALL if "true_cfg_scale" in options else GUIDED
    unguided = {"guidance_scale": 0.0 if name.startswith("ZImage") else 1.0}  # its formula is another
    call = {**call, count: 1 if name in ONE_VIDEO else 2, **(guidance if guided else unguided)}
    call = {key: value for key, value in call.items() if key in options}
    texts, plain = record_calls(pipe, {**call, "prompt": "cat"})
    others, _ = record_calls(pipe, {**call, "prompt": "dog"})
    conditional = find_changes(texts, others)
    assert conditional
    if "pag_scale" in options:  # the second half of the rows with the prompt is perturbed
        conditional = conditional[: len(conditional) // 2]
    assert guided or "pag_scale" in options or conditional == [(0, row) for row in range(len(plain[0]))]
    with nasa.steer(pipe, "ice", 0.7):
        _, steered = record_calls(pipe, {**call, "prompt": "cat"})
    assert find_changes(plain, steered) == conditional


class ResidueRecorder:
    """Records the largest remaining cross-attention output, or the largest difference of the two texts."""

    def __init__(self, pipe, monkeypatch):
        self.largest, self.layers = 0.0, 0
        combine = SteeredAttnProcessor._combine

        def record_combined(*args):
            return self.record(combine(*args))

        def compare(_, args, kwargs):
            if "cap_feats" in kwargs:
                positive, negative = kwargs["cap_feats"][0]
            else:
                positive, negative = kwargs["encoder_hidden_states"].chunk(2, dim=1)
            self.record(positive - negative)

        monkeypatch.setattr(SteeredAttnProcessor, "_combine", record_combined)
        if find_denoiser_family(get_denoisers(pipe)[0]).extend:
            for model in get_denoisers(pipe):
                model.register_forward_pre_hook(compare, with_kwargs=True)

    def record(self, residue):
        self.largest, self.layers = max(self.largest, float(residue.abs().max())), self.layers + 1
        return residue


def add_adapters(pipe):
    """Replace the denoiser and the first text encoder by copies with adapters."""
    parts = {"unet": ["to_k", "to_v"], "transformer": ["to_k", "to_v"], "text_encoder": ["q_proj", "v_proj", "q", "v"]}
    torch.manual_seed(1)
    for part, targets in parts.items():
        if getattr(pipe, part, None) is not None:
            copied = copy.deepcopy(getattr(pipe, part))
            config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
            setattr(pipe, part, inject_adapter_in_model(config, copied))


def make_clip_skippable(pipe):
    """Work around `clip_skip`, which expects a module that transformers 5 removed."""
    encoder = pipe.text_encoder
    if hasattr(encoder, "final_layer_norm"):
        encoder.text_model = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)


CASES = [(name, option) for name in PIPELINES for option in TEXT_OPTIONS if option in get_call_parameters(name)]
CASES.remove(("WanImageToVideoPipeline", "max_sequence_length"))  # diffusers counts 512 tokens of text there


@pytest.mark.parametrize(("name", "option"), CASES)
def test_steering_away_from_the_prompt_at_scale_1_leaves_nothing(name, option, monkeypatch):
    pipe, call = build_variant(name)
    add_adapters(pipe)
    make_clip_skippable(pipe)
    if option == "clean_caption":  # a parser of HTML is not needed to tell one text from another
        for check in ("is_bs4_available", "is_ftfy_available"):
            monkeypatch.setattr(sys.modules[type(pipe).__module__], check, lambda: True)
        monkeypatch.setattr(pipe, "_clean_caption", lambda text: text[1:], raising=False)
    value = TEXT_OPTIONS[option]
    second = {f"negative_{option}": value} if option in ("prompt_2", "prompt_3") else {}
    call = {**call, "prompt": "a cat", "guidance_scale": 1.0, "pag_scale": 0.0, option: value}
    call = {key: value for key, value in call.items() if key in get_call_parameters(name)}
    with nasa.steer(pipe, "a cat", 1.0, **second):
        residue = ResidueRecorder(pipe, monkeypatch)
        pipe(**call)
    assert residue.layers
    assert residue.largest == 0.0


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_prompt_given_as_embeddings_keeps_the_other_options(name, monkeypatch):
    pipe, call = build_variant(name)
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    make_clip_skippable(pipe)
    encode = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "device": "cpu", "clip_skip": 1}
    encoded = pipe.encode_prompt("a cat", **encode)
    embeddings = {"prompt_embeds": encoded[0], **({"pooled_prompt_embeds": encoded[2]} if "XL" in name else {})}
    with nasa.steer(pipe, "a cat", 1.0):
        residue = ResidueRecorder(pipe, monkeypatch)
        pipe(**call, **embeddings, guidance_scale=0, clip_skip=1)
        assert residue.largest == 0.0
        pipe(**call, **embeddings, guidance_scale=0)
    assert residue.largest > 0
