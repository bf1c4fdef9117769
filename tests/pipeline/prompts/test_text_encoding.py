"""Separate text encoder actors, compared with encoding within each worker."""

import numpy as np
import pytest
import torch

from nasa.testing.tiny_pipelines import tiny_pixart
from pipeline import models, recipe
from pipeline.errors import UserError
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts import text_encoding
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.prompts.prompt_stream import EncoderPool, PromptStream
from pipeline.prompts.teacher_pairs import TeacherPairs, list_pair_files
from pipeline.storage import Folder
from pipeline.training import engines
from pipeline.training.distiller import Distiller
from pipeline.training.previews import list_preview_texts

BATCH = 4
OVERRIDES = ["train.num_workers=1", f"train.batch_size={BATCH}", "train.num_encoders=1"]
OVERRIDES += ["lora_teacher.rank=2", "prompts.count=64", "prompts.negative_draws=40"]


@pytest.fixture(scope="module", params=["unet", "pixart"])
def teacher(request, tiny_teacher, tmp_path_factory):
    if request.param == "unet":
        return tiny_teacher
    folder = tmp_path_factory.mktemp("teacher") / "pixart"
    tiny_pixart().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    prepare(recipe.parse("", OVERRIDES), Folder.from_uri(tmp_path / "prompts"))
    return Folder.from_uri(tmp_path / "prompts")


def build_options(teacher, *overrides):
    return recipe.parse("", [*OVERRIDES, f"teacher={str(teacher)!r}", *overrides])


def write_pairs(teacher, folder):
    """Write four pairs, so that the encoders have a third text for each prompt."""
    latents = torch.randn(4, *models.load(teacher).latent_shape, generator=torch.Generator().manual_seed(0)).half()
    pairs = TeacherPairs([f"a {word}" for word in ("cat", "dog", "hen", "cow")], list(range(4)), latents)
    folder.write_table(list_pair_files(4)[0], pairs.to_table())
    return TeacherPairs.read(folder, 4)


def build_distiller(options, folder, cached_embeds, pairs):
    model = models.load(models.find_teacher_folder(options.teacher), cached_embeds=cached_embeds)
    negatives = NegativeSampler.read(folder, avoid_contradictions=options.prompts.avoid_contradictions)
    built = engines.build_engines(options, model, torch.device("cpu"), make=engines.PlainEngine)
    return Distiller(options, model, built, negatives, Clip.load(options.train.clip_model), pairs=pairs)


@pytest.mark.parametrize("passes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_is_the_same_with_separate_text_encoders(ray_cluster, teacher, folder, passes):
    regression = ["regression.weight=0.5", "regression.images=3", "regression.num_pairs=4"]
    options = build_options(teacher, f"train.micro_batch_size={BATCH // passes}", *regression)
    pairs = write_pairs(teacher, folder / "pairs")
    encoding = text_encoding.build_encoder_config(options, str(teacher), folder.uri, options.seed, pairs.uri)
    texts = list_preview_texts(["a photo of a ring"])
    cached = text_encoding.decode_cached(texts, text_encoding.encode_cached(encoding, texts), "cpu")
    separate, integrated = (build_distiller(options, folder, embeds, pairs) for embeds in (cached, {}))
    assert separate.model.pipe.text_encoder is None
    stream = PromptStream(folder, load_manifest(folder), options.seed, BATCH, range(BATCH))
    encoders = EncoderPool(1, 0.5, 0.0, text_encoding.TextEncoderActor, encoding)
    for step, batch in enumerate(stream.iter_batches(0, 3, encoders)):
        encoded = text_encoding.build_prompt_embeds(batch.encoded, "cpu")
        actual, expected = separate.step(step, batch.prompts, encoded), integrated.step(step, batch.prompts)
        assert actual == pytest.approx(expected, rel=1e-4)
    assert step == 2
    for name, value in integrated.collect_student_weights().items():
        torch.testing.assert_close(separate.collect_student_weights()[name], value, rtol=1e-3, atol=1e-6)


def test_bfloat16_embeddings_arrive_bit_for_bit():
    embeds = torch.randn(2, 3, 5, 4).bfloat16()  # prompt and negative, three texts
    stacked = np.stack([text_encoding.convert_to_numpy(part) for part in embeds], axis=1)
    assert stacked.shape == (3, 2, 5, 4)
    decoded = text_encoding.build_prompt_embeds({"embeds": stacked}, "cpu")
    assert decoded.embeds.dtype == torch.bfloat16
    assert torch.equal(decoded.embeds, embeds.reshape(6, 5, 4))


def test_a_negative_per_batch_requires_encoding_within_the_workers():
    with pytest.raises(UserError, match=r'train.num_encoders: got 1; expected 0 with method.negative_per = "batch"'):
        recipe.parse("", ["train.num_encoders=1", "method.negative_per=batch"])
