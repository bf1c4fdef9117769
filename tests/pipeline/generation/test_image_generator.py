"""Batches of different requests, held against `steer` on each student's own pipeline."""

import itertools

import diffusers.schedulers.scheduling_lcm as lcm
import numpy as np
import pytest
import torch

import nasa
from nasa.testing import TINY_CALLS, TINY_PIPELINES
from pipeline import models
from pipeline.errors import UserError
from pipeline.evaluation.contact_sheet import to_pixels
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.generation.image_generator import ImageGenerator
from pipeline.generation.image_request import ImageRequest
from pipeline.generation.text_cache import TextCache

ONE_LEVEL = 1  # of 255: batches of another size round differently
FAMILIES = ["stable-diffusion", "sdxl", "pixart", "sana", "stable-diffusion-3", "flux", "flux2-klein", "qwen-image"]
RESOLUTIONS = {"flux": 16, "flux2-klein": 32, "qwen-image": 32}  # of the tiny models; others have their own
MIXED = [
    ImageRequest("a cat", 1),
    ImageRequest("a dog on a mat", 2, "blurry", 0.9),
    ImageRequest("a cat", 3, "a dog", 0.4),
    ImageRequest("a bird", 4, "blurry", 0.0),
    ImageRequest("a cat", 1, "a dog", 2.0, "nag"),
    ImageRequest("a cat", 1, "a dog", 0.5, "vsf"),
    ImageRequest("a cat", 1, "a dog", 3.0, "cfg"),
]


@pytest.fixture(scope="module")
def build_student(tmp_path_factory):
    """Return a function that makes a student's folder of a family, once."""
    folders = {}

    def build(family, steps=1):
        if (family, steps) not in folders:
            folder = tmp_path_factory.mktemp(family)
            TINY_PIPELINES[family]().save_pretrained(folder / "teacher")
            options = {"student_steps": steps, "resolution": RESOLUTIONS.get(family, 0)}
            weights = models.load(folder / "teacher", **options).denoiser.state_dict()
            models.save_student(folder / "teacher", weights, folder / "student", **options)
            folders[family, steps] = folder / "student"
        return folders[family, steps]

    return build


def find_difference(first, second):
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize(("family", "steps"), [*((family, 1) for family in FAMILIES), ("stable-diffusion", 4)])
def test_each_image_of_a_mixed_batch_is_that_of_the_pipeline_with_steer(build_student, family, steps):
    folder = build_student(family, steps)
    requests = MIXED[:4]
    images = ImageGenerator(folder, batch_size=len(requests)).generate(requests)
    pipe = models.load_pipeline(folder)
    left_out = ("max_sequence_length", "num_inference_steps", "output_type")
    call = {key: value for key, value in TINY_CALLS[family].items() if key not in left_out}
    call |= models.build_call_options(folder)
    for request, image in zip(requests, images, strict=True):
        negative = None if request.is_plain else request.negative_prompt
        with nasa.steer(pipe, negative, request.scale):
            noise = torch.Generator().manual_seed(request.seed)
            expected = np.asarray(pipe(prompt=request.prompt, generator=noise, **call).images[0])
        assert find_difference(image, expected) <= 2 * ONE_LEVEL


def test_a_request_gives_the_same_image_in_any_batch(build_student):
    generator = ImageGenerator(build_student("stable-diffusion"), batch_size=3)
    alone = [generator.generate([request])[0] for request in MIXED]
    for order in (MIXED, MIXED[::-1], MIXED * 2):
        for request, image in zip(order, generator.generate(order), strict=True):
            assert find_difference(image, alone[MIXED.index(request)]) <= ONE_LEVEL
    for first, second in itertools.combinations(range(len(MIXED)), 2):
        assert find_difference(alone[first], alone[second]) > 2 * ONE_LEVEL


@pytest.mark.parametrize(("rule", "scale"), [("nag", 2.0), ("vsf", 0.5)])
def test_other_rules_are_those_of_steer(build_student, rule, scale):
    folder = build_student("stable-diffusion")
    (image,) = ImageGenerator(folder).generate([ImageRequest("a cat", 1, "a dog", scale, rule)])
    pipe = models.load_pipeline(folder)
    with nasa.steer(pipe, "a dog", scale, rule=rule):
        noise = torch.Generator().manual_seed(1)
        expected = np.asarray(pipe(prompt="a cat", generator=noise, **models.build_call_options(folder)).images[0])
    assert find_difference(image, expected) <= ONE_LEVEL


def test_guidance_is_that_of_the_evaluation(build_student):
    generator = ImageGenerator(build_student("stable-diffusion"))
    (image,) = generator.generate([ImageRequest("a cat", 1, "a dog", 3.0, "cfg")])
    judged = Sampler(generator.model).sample(SamplingMethod("cfg", 3.0), ["a cat"], [1], ["a dog"])
    assert find_difference(image, to_pixels(judged)[0]) <= ONE_LEVEL


@pytest.mark.parametrize("method", ["nasa", "nag", "vsf", "cfg"])
def test_a_request_without_effect_is_plain_beside_any_other(build_student, method):
    generator = ImageGenerator(build_student("stable-diffusion"))
    plain = generator.generate([ImageRequest("a cat", 1)])[0]
    without_effect = [ImageRequest("a cat", 1, "a dog", 0.0, method), ImageRequest("a cat", 1, "", 3.0, method)]
    steered = ImageRequest("a cat", 1, "a dog", 3.0, method)
    *images, other = generator.generate([*without_effect, steered])
    for request, image in zip(without_effect, images, strict=True):
        assert find_difference(image, plain) <= ONE_LEVEL
        assert generator.get_applied_scale(request) == 0
    assert find_difference(other, plain) > 2 * ONE_LEVEL
    assert generator.get_applied_scale(steered) == 3.0


def test_a_request_without_a_scale_takes_the_student_s_own(build_student):
    generator = ImageGenerator(build_student("stable-diffusion"), scale=0.7)
    asked = ImageRequest("a cat", 1, "a dog", None)
    chosen, given = generator.generate([asked, ImageRequest("a cat", 1, "a dog", 0.7)])
    assert np.array_equal(chosen, given)


def test_bfloat16_gives_nearly_the_same_image(build_student):
    folder = build_student("stable-diffusion")
    exact = ImageGenerator(folder).generate(MIXED[:3])
    for image, expected in zip(ImageGenerator(folder, dtype=torch.bfloat16).generate(MIXED[:3]), exact, strict=True):
        assert 0 < np.abs(image.astype(float) - expected).mean() < 4


def test_texts_and_negatives_are_computed_once(build_student, monkeypatch):
    generator = ImageGenerator(build_student("stable-diffusion"))
    encoded = []
    monkeypatch.setattr(type(generator.model), "encode", lambda self, texts: encoded.extend(texts) or real(self, texts))
    generator.generate(MIXED)
    generator.generate(MIXED)
    assert sorted(encoded) == ["", "a bird", "a cat", "a dog", "a dog on a mat", "blurry"]
    assert generator.negatives.take_counts() == {"hit": 5 + 2, "miss": 3}


real = models.TextToImage.encode


def test_stages_are_measured(build_student):
    stages = []
    generator = ImageGenerator(build_student("stable-diffusion"), observe=lambda *stage: stages.append(stage))
    generator.generate(MIXED[:2])
    assert [stage for stage, _ in stages] == ["text", "denoise", "decode"]
    assert all(seconds > 0 for _, seconds in stages)


def test_a_student_of_videos_is_rejected(tmp_path):
    (tmp_path / models.STUDENT_FILE).write_text('{"num_frames": 5}')
    with pytest.raises(UserError, match=r"student: got .*, whose student makes videos; expected one of images"):
        ImageGenerator(tmp_path)


def test_a_cache_is_bounded_in_bytes_and_keeps_what_was_used_last():
    computed = []

    def compute(text):
        computed.append(text)
        return text.upper()

    cache = TextCache(compute, len, max_bytes=6)
    assert cache.get(["aa", "bb", "aa"]) == ["AA", "BB", "AA"]
    assert computed == ["aa", "bb"]
    cache.get(["cc", "aa", "dd"])
    assert cache.nbytes == 6
    assert cache.get(["aa"]) == ["AA"]
    assert computed == ["aa", "bb", "cc", "dd"]
    assert cache.get(["bb"]) == ["BB"]
    assert computed[-1] == "bb"
    assert cache.get(["too long"]) == ["TOO LONG"]
    assert cache.nbytes == 6


def test_step_noise_is_drawn_as_the_scheduler_draws_it(build_student, monkeypatch):
    drawn = []
    draw = lcm.randn_tensor
    monkeypatch.setattr(lcm, "randn_tensor", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    folder = build_student("stable-diffusion", 4)
    pipe = models.load_pipeline(folder)
    call = models.build_call_options(folder)
    pipe(prompt="a cat", generator=torch.Generator().manual_seed(1), **call)
    _, *others = ImageGenerator(folder)._draw_noise([1])
    assert len(drawn) == len(others) == 3
    for noise, expected in zip(others, drawn, strict=True):
        assert torch.equal(noise, expected)
