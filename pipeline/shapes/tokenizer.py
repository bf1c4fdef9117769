"""The small vocabulary: a CLIP tokenizer whose byte-pair merges are learned on the dataset's captions."""

import string

import numpy as np
from transformers import CLIPTokenizer

from datasets_prep import shapes

MAX_LENGTH = 24  # tokens, with the start and the end
VOCABULARY_SIZE = 1024
_CAPTIONS = 20_000


def build_tokenizer() -> CLIPTokenizer:
    """Train the tokenizer: each word of the captions is one token, any other text splits into characters."""
    rng = np.random.default_rng(3)
    captions = [shapes.sample_caption(shapes.sample_scene(rng), rng) for _ in range(_CAPTIONS)]
    characters = [" ".join(string.printable.split())] + [" ".join(string.printable.strip())] * 2
    extra = ["not", "without", "no", "and", "with"]
    trained = CLIPTokenizer().train_new_from_iterator(captions + (characters + extra) * 50, VOCABULARY_SIZE)
    trained.model_max_length = MAX_LENGTH
    return trained
