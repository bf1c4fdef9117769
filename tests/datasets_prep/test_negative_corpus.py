import pytest

from datasets_prep.negative_corpus import SCHEMA, build_weighted_corpus, contradicts


def test_the_corpus_has_distinct_texts_by_weight_then_alphabet():
    table = build_weighted_corpus(["ugly", "dark", "blurry", "dark", "ugly", "dark"])
    assert table.schema == SCHEMA
    assert table.to_pydict() == {"negative_prompt": ["dark", "ugly", "blurry"], "weight": [3, 2, 1]}
    assert build_weighted_corpus(["b", "a", "c"])["negative_prompt"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "expected"),
    [
        ("a photo of a red circle", "red", True),
        ("a photo of a Red circle", "blue, RED square", True),
        ("a photo of a red circle", "blue", False),
        ("a photo of a reddish circle", "red", False),
        ("a photo on a white background", "bad photo, background", False),
        ("a photo of a shape", "", False),
        ("Ein Foto von Bäumen", "bäumen", True),
    ],
)
def test_a_negative_contradicts_a_prompt_with_a_shared_content_word(prompt, negative_prompt, expected):
    assert contradicts(prompt, negative_prompt) is expected
