"""CLIP's preprocessing, compared with transformers' image processor."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nasa.testing.tiny_stable_diffusion import tiny_tokenizer
from pipeline.errors import UserError
from pipeline.evaluation.scorers import Metric, load
from pipeline.models.clip.loss_model import Clip
from pipeline.models.clip.normalization import MEAN, STD, Normalization
from pipeline.shapes import WEIGHTS

SIDE = 32
TOLERANCE = 1e-5
INCEPTION = (0.5, 0.5, 0.5)  # used by LAION's ViT-L-14, among others
CONVENTIONS = {
    "OpenAI": (MEAN, STD),
    "Inception": (INCEPTION, INCEPTION),
    "unequal": ((0.1, 0.5, 0.9), (0.2, 0.3, 0.4)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    target, tokenizer = tmp_path_factory.mktemp("clip"), tiny_tokenizer()
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        vision_config={**tower, "image_size": SIDE, "patch_size": 8}, text_config=text, projection_dim=8
    )
    CLIPModel(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(array).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for array in noise]


@pytest.fixture(params=CONVENTIONS)
def processor(request, folder):
    mean, std = CONVENTIONS[request.param]
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=SIDE, image_mean=mean, image_std=std
    )
    image_processor.save_pretrained(folder)
    return image_processor


def compute_reference(folder, processor, images):
    """Return unit features that transformers' own code computes from the images."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        pooled = model.vision_model(**processor(images, return_tensors="pt")).pooler_output
        return F.normalize(model.visual_projection(pooled), dim=-1)


def to_signed(images):
    """Return images in the range -1 to 1, in which an autoencoder decodes them."""
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 127.5 - 1


def test_the_clip_loss_preprocesses_images_as_transformers_does(folder, processor, images):
    clip = Clip.load(str(folder))
    decoded = to_signed(images).requires_grad_()
    features = F.normalize(clip.encode_images(decoded), dim=-1)
    torch.testing.assert_close(features, compute_reference(folder, processor, images), atol=TOLERANCE, rtol=0)
    features[:, 0].sum().backward()
    assert decoded.grad.abs().min(dim=0).values.max() > 0


def test_a_clip_metric_preprocesses_as_transformers_does_and_records_another_mean(folder, processor, images):
    scorer = load(Metric(kind="clip", weights=str(folder), prefix=""))
    texts = ["a cat", "a dog"]
    expected = (compute_reference(folder, processor, images) * scorer.features.encode_texts(texts)).sum(-1)
    scores = scorer(images, texts, [None, None])["clip_positive"]
    assert scores == pytest.approx(expected.tolist(), abs=TOLERANCE)
    recorded = scorer.options.get("image_mean")
    assert recorded == (None if tuple(processor.image_mean) == MEAN else list(processor.image_mean))


def test_the_configuration_of_open_clip_is_read(tmp_path):
    values = {"model_cfg": {}, "preprocess_cfg": {"mean": INCEPTION, "std": INCEPTION}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(values))
    assert Normalization.read(tmp_path, "field") == Normalization(INCEPTION, INCEPTION)
    assert Normalization.read(tmp_path / "none", "field") == Normalization(MEAN, STD)


def test_the_bundled_clip_leaves_decoded_images_unchanged():
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Normalization.read(WEIGHTS / "clip", "field").from_signed(images), images)


@pytest.mark.parametrize("content", ["{", '{"image_mean": [0.5]}', '{"image_std": [0, 1, 1]}', "[]"])
def test_an_invalid_configuration_is_reported(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"^train.clip_model: .*preprocessor_config.json"):
        Normalization.read(tmp_path, "train.clip_model")
