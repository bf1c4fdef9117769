"""The small CLIP: image and text towers in transformers' own layout."""

from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from pipeline.shapes.tokenizer import MAX_LENGTH

WIDTH = 96
NORMALIZATION = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # trained on images in -1..1


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP for images of 64 x 64 pixels."""
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
