"""Components of the tiny pipelines: tokenizers of single characters, text encoders, an autoencoder."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, GemmaTokenizer, Qwen2Tokenizer, T5Tokenizer

from nasa.testing.tiny_stable_diffusion import CHARACTERS, tiny_tokenizer

TEXT_WIDTH = 16
QWEN_TEMPLATE = (  # diffusers' pipeline drops the 34 tokens before the prompt
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def clip_config() -> CLIPTextConfig:
    """Return the configuration of a small CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=TEXT_WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer of single characters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5Tokenizer(vocab=special + [(character, -3.0) for character in CHARACTERS], extra_ids=0)


def tiny_gemma_tokenizer() -> GemmaTokenizer:
    """Return a Gemma tokenizer of single characters."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *CHARACTERS]
    return GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen2 tokenizer of bytes, with one token per word of the pipeline's template."""
    special = ["<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer().train_new_from_iterator([QWEN_TEMPLATE] * 4, 1024, new_special_tokens=special)


def t5_config(config: Any, width: int = TEXT_WIDTH) -> Any:
    """Return the configuration of a small T5 encoder."""
    return config(vocab_size=len(tiny_t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)


def tiny_autoencoder() -> AutoencoderKL:
    """Return a small autoencoder; `shift_factor` is 0 since FLUX and Stable Diffusion 3 require a number."""
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=0.0,
    )


def set_up_for_inference(pipe: Any) -> Any:
    """Return a pipeline in evaluation mode without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe
