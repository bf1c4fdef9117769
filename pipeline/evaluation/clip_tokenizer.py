"""CLIP's tokenizer as open_clip has it: what it cleans, where it cuts, what it fills with.

transformers' CLIPTokenizer cleans otherwise (neither mojibake nor HTML) and fills with the end token.
"""

import functools
import gzip
import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import regex  # letters and numbers of the same Unicode as open_clip's; those of `tokenizers` are of an older one
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor

MERGES = Path(__file__).parent / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY = 49408
START, END = VOCABULARY - 2, VOCABULARY - 1
SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}  # open_clip reads them in prompts too
LENGTH = 77
WORDS = regex.compile(
    "|".join(SPECIAL) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def tokenize(texts: Sequence[str], length: int = LENGTH) -> Tensor:
    """Token ids int64 [B, length]: start, text, end, zeros; of a longer text the end token takes the last place."""
    words = [WORDS.findall(clean(text)) for text in texts]
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, encoding in enumerate(_tokenizer().encode_batch(words, is_pretokenized=True)):
        tokens = [START, *encoding.ids[: length - 2], END]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


@functools.cache
def _tokenizer() -> Tokenizer:
    characters = _byte_characters()
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY - 2 - 2 * 256 + 1]]
    words = [*characters, *(character + "</w>" for character in characters), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate(words)} | SPECIAL
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def _byte_characters() -> list[str]:
    """GPT-2's visible character for every byte, in the vocabulary's order: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
