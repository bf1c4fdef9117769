"""Text encoders apart from the workers: the same numbers as where each worker encodes for itself."""

import numpy as np
import pytest
import torch

from nasa.testing.pipelines import tiny_pixart
from pipeline import models, recipe
from pipeline.errors import UserError
from pipeline.models.clip.model import Clip
from pipeline.prompts import text_encoding
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.prompts.prompt_stream import EncoderPool, PromptStream
from pipeline.storage import Folder
from pipeline.training import engines
from pipeline.training.distiller import Distiller
from pipeline.training.previews import list_preview_texts

BATCH = 4
SETS = ["train.num_workers=1", f"train.batch_size={BATCH}", "train.num_encoders=1"]
SETS += ["lora_teacher.rank=2", "prompts.count=64", "prompts.negative_draws=40"]


@pytest.fixture(scope="module", params=["unet", "pixart"])
def teacher(request, tiny_teacher, tmp_path_factory):
    if request.param == "unet":
        return tiny_teacher
    folder = tmp_path_factory.mktemp("teacher") / "pixart"
    tiny_pixart().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    prepare(recipe.parse("", SETS), Folder.from_uri(tmp_path / "prompts"))
    return Folder.from_uri(tmp_path / "prompts")


def options(teacher, *more):
    return recipe.parse("", [*SETS, f"teacher={str(teacher)!r}", *more])


def distiller(own, folder, fixed):
    model = models.load(models.find_teacher_folder(own.teacher), cached_embeds=fixed)
    negatives = NegativeSampler.read(folder, avoid_contradictions=own.prompts.avoid_contradictions)
    built = engines.build(own, model, torch.device("cpu"), make=engines.PlainEngine)
    return Distiller(own, model, built, negatives, Clip.load(own.train.clip_model))


@pytest.mark.parametrize("passes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_sees_the_same_texts(ray_cluster, teacher, folder, passes):
    own = options(teacher, f"train.micro_batch_size={BATCH // passes}")
    encoding = text_encoding.build_encoder_config(own, str(teacher), folder.uri, own.seed)
    texts = list_preview_texts(["a photo of a ring"])
    fixed = text_encoding.decode_cached(texts, text_encoding.encode_cached(encoding, texts), "cpu")
    apart, within = distiller(own, folder, fixed), distiller(own, folder, {})
    assert apart.model.pipe.text_encoder is None
    stream = PromptStream(folder, load_manifest(folder), own.seed, BATCH, range(BATCH))
    encoders = EncoderPool(1, 0.5, 0.0, text_encoding.TextEncoderActor, encoding)
    for step, batch in enumerate(stream.iter_batches(0, 3, encoders)):
        encoded = text_encoding.build_prompt_embeds(batch.encoded, "cpu")
        ours, theirs = apart.step(step, batch.prompts, encoded), within.step(step, batch.prompts)
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert step == 2
    for name, value in within.collect_student_weights().items():
        torch.testing.assert_close(apart.collect_student_weights()[name], value, rtol=1e-3, atol=1e-6)


def test_bfloat16_arrives_bit_for_bit():
    states = torch.randn(2, 3, 5, 4).bfloat16()  # prompt and negative, three texts
    stacked = np.stack([text_encoding.convert_to_numpy(part) for part in states], axis=1)
    assert stacked.shape == (3, 2, 5, 4)
    again = text_encoding.build_prompt_embeds({"embeds": stacked}, "cpu")
    assert again.embeds.dtype == torch.bfloat16
    assert torch.equal(again.embeds, states.reshape(6, 5, 4))


def test_a_negative_for_the_batch_needs_the_workers_own_encoder():
    with pytest.raises(UserError, match=r'train.num_encoders: got 1; expected 0 with method.negative_per = "batch"'):
        recipe.parse("", ["train.num_encoders=1", "method.negative_per=batch"])
