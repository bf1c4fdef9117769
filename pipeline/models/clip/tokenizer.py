"""open_clip's tokenizer of CLIP: the same cleaning, truncation and padding.

transformers' CLIPTokenizer cleans neither mojibake nor HTML entities, and pads with the end token.
"""

import functools
import gzip
import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import regex  # classifies letters and numbers by open_clip's Unicode version; `tokenizers` has an older one
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor

MERGES = Path(__file__).parent / "bpe" / "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY = 49408
START, END = VOCABULARY - 2, VOCABULARY - 1
SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}  # open_clip reads them in prompts too
LENGTH = 77
WORDS = regex.compile(
    "|".join(SPECIAL) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def tokenize(texts: Sequence[str], length: int = LENGTH) -> Tensor:
    """Return token ids int64 [B, length]: start, text, end, zeros; a longer text is truncated before the end token."""
    words = [WORDS.findall(clean(text)) for text in texts]
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, encoding in enumerate(_build_tokenizer().encode_batch(words, is_pretokenized=True)):
        tokens = [START, *encoding.ids[: length - 2], END]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def clean(text: str) -> str:
    """Return the text without mojibake, HTML entities, repeated whitespace and capitals."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return str(regex.sub(r"\s+", " ", text)).strip().lower()


@functools.cache
def _build_tokenizer() -> Tokenizer:
    characters = _list_byte_characters()
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : VOCABULARY - 2 - 2 * 256 + 1])]
    words = [*characters, *(character + "</w>" for character in characters), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate(words)} | SPECIAL
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def _list_byte_characters() -> list[str]:
    """Return GPT-2's visible character for every byte, in the vocabulary's order: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
