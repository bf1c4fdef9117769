"""The small CLIP: image and text towers in transformers' own layout, trained by contrast."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from nasa.prompt_embeds import tokenize
from pipeline.shapes.fit import fit
from pipeline.shapes.samples import draw
from pipeline.shapes.text import MAX_LENGTH

STEPS, BATCH, LEARNING_RATE = 800, 128, 2e-3
WIDTH = 96
NORMALIZATION = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # it is trained on images in -1..1


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = CLIPTextConfig(
        **tower,
        num_hidden_layers=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**tower, num_hidden_layers=3, image_size=64, patch_size=16)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def train(work: Path, tokenizer: CLIPTokenizer, *, steps: int = STEPS) -> CLIPModel:
    torch.manual_seed(0)
    clip = build(tokenizer)
    fit(
        clip,
        lambda step: _loss(clip, tokenizer, step),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "clip.pt",
    )
    return clip


def _loss(clip: CLIPModel, tokenizer: CLIPTokenizer, step: int) -> Tensor:
    batch = draw(BATCH, (2, step))
    output = clip(input_ids=tokenize(tokenizer, batch.captions), pixel_values=batch.images, return_loss=True)
    loss: Tensor = output.loss
    return loss
