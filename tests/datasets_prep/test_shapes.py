import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from datasets_prep.shapes import (
    COLOURS,
    POSITIONS,
    QUALITIES,
    SHAPES,
    SIZES,
    Scene,
    build_full_prompt,
    is_held_out,
    render,
    sample_caption,
    sample_scene,
    sample_tags,
)
from datasets_prep.shapes.caption import COMMON_QUALITY_WORDS, QUALITY_WORDS
from datasets_prep.shapes.prompts import (
    BAD_PHOTO,
    DEGRADATIONS,
    NEVER_NEGATIVE,
    PAIRS,
    sample_held_out_prompts,
    sample_negatives,
    sample_prompts,
)

PLAIN = Scene("circle", "red", "blue", "medium", "in the centre")
DRAWS = 1500


def sample_scenes(seed=0, **changes):
    rng = np.random.default_rng(seed)
    return [(replace(sample_scene(rng), **changes), rng) for _ in range(DRAWS)]


def find_words(phrases, text):
    return {phrase for phrase in phrases if re.search(rf"\b{phrase}\b", text)}


def test_the_same_scene_gives_the_same_bytes():
    scene = sample_scene(np.random.default_rng(3))
    image = render(scene)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert render(scene).tobytes() == image.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", [name for name in COLOURS if name != "blue"])
def test_the_object_and_the_background_have_their_colours(shape, colour):
    image = render(replace(PLAIN, shape=shape, colour=colour))
    centre = "blue" if shape == "ring" else colour
    assert tuple(image[32, 32]) == COLOURS[centre]
    assert all(tuple(image[y, x]) == COLOURS["blue"] for y in (0, 63) for x in (0, 63))
    assert (image == COLOURS[colour]).all(axis=-1).sum() > 100


@pytest.mark.parametrize(("position", "offset"), POSITIONS.items())
def test_the_object_is_at_its_position(position, offset):
    rows, columns = np.nonzero((render(replace(PLAIN, position=position)) == COLOURS["red"]).all(axis=-1))
    assert (columns.mean() - 31.5, rows.mean() - 31.5) == pytest.approx(offset, abs=0.6)


def test_each_size_covers_more_pixels():
    covered = [(render(replace(PLAIN, size=size)) == COLOURS["red"]).all(axis=-1).sum() for size in SIZES]
    assert covered == sorted(set(covered))


def test_shapes_and_qualities_look_different():
    kinds = [replace(PLAIN, shape=shape) for shape in SHAPES]
    kinds += [replace(PLAIN, quality=quality) for quality in QUALITIES[1:]]
    assert len({render(scene).tobytes() for scene in kinds}) == len(kinds)


def measure_object(scene):
    """Return the number of pixels that are nearer to the object's colour than to the background's."""
    image = render(scene).astype(float)
    distances = [np.abs(image - np.array(COLOURS[name])).sum(axis=-1) for name in (scene.colour, scene.background)]
    return distances[0] < distances[1]


def count_parts(mask):
    return ndimage.label(mask)[1]


def test_a_blurry_scene_has_no_sharp_edge():
    sharp, blurry = (
        np.abs(np.diff(render(replace(PLAIN, quality=quality)).astype(float), axis=0)).max()
        for quality in ("clean", "blurry")
    )
    assert blurry < 0.4 * sharp


def test_grain_varies_by_seed_and_keeps_the_mean():
    grainy = [render(replace(PLAIN, quality="grainy", texture_seed=seed)).astype(float) for seed in (1, 2)]
    assert np.abs(grainy[0] - grainy[1]).mean() > 15
    assert abs(grainy[0].mean() - render(PLAIN).mean()) < 12


def test_a_duplicate_shows_two_objects_and_a_clean_scene_one():
    assert count_parts(measure_object(PLAIN)) == 1
    assert count_parts(measure_object(replace(PLAIN, quality="duplicate"))) == 2


@pytest.mark.parametrize("position", POSITIONS)
def test_an_object_out_of_the_frame_touches_its_edge(position):
    mask = measure_object(replace(PLAIN, position=position, quality="out of frame"))
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    clean = measure_object(replace(PLAIN, position=position))
    assert edges.any()
    assert not np.concatenate([clean[0], clean[-1], clean[:, 0], clean[:, -1]]).any()


def test_a_deformed_object_has_about_the_area_of_the_clean_one_at_other_pixels():
    clean, deformed = measure_object(PLAIN), measure_object(replace(PLAIN, quality="deformed", texture_seed=3))
    assert 0.7 < deformed.sum() / clean.sum() < 1.4
    assert (clean != deformed).sum() > 0.1 * clean.sum()


def test_a_watermark_covers_the_background_with_lines():
    changed = (render(PLAIN) != render(replace(PLAIN, quality="watermark"))).any(axis=-1)
    assert changed[:, 0].any()
    assert 0.1 < changed.mean() < 0.5


def test_held_out_scenes_are_apart_from_training_ones():
    rng = np.random.default_rng(0)
    key = lambda scene: (scene.shape, scene.colour, scene.background, scene.size)  # noqa: E731
    trained = {key(sample_scene(rng)) for _ in range(DRAWS)}
    held_out = {key(sample_scene(rng, held_out=True)) for _ in range(DRAWS)}
    assert trained.isdisjoint(held_out)
    assert len(held_out) > 50
    assert is_held_out(replace(PLAIN, position="on the left", quality="grainy")) == is_held_out(PLAIN)


@pytest.mark.parametrize("make", [sample_caption, sample_tags])
def test_captions_mention_only_what_the_scene_shows(make):
    quality_words = {*COMMON_QUALITY_WORDS, *(word for words in QUALITY_WORDS.values() for word in words)}
    for scene, rng in sample_scenes():
        text = make(scene, rng)
        backgrounds = re.findall(r"(\w+) background", text)
        foreground = re.sub(r"\w+ background", "", text)
        assert set(backgrounds) <= {scene.background}
        assert find_words(COLOURS, foreground) <= {scene.colour}
        assert find_words(SHAPES, text) <= {scene.shape}
        assert find_words(SIZES, text) <= {scene.size}
        assert find_words(POSITIONS, text) <= {scene.position}
        allowed = {*COMMON_QUALITY_WORDS, *QUALITY_WORDS[scene.quality]} if scene.quality != "clean" else set()
        assert find_words(quality_words, text) <= allowed


@pytest.mark.parametrize("quality", QUALITIES[1:])
def test_degraded_captions_use_a_specific_a_common_or_no_quality_word(quality):
    texts = [sample_caption(scene, rng) for scene, rng in sample_scenes(quality=quality)]
    specific = sum(bool(find_words(QUALITY_WORDS[quality], text)) for text in texts) / DRAWS
    common = sum(bool(find_words(COMMON_QUALITY_WORDS, text)) for text in texts) / DRAWS
    assert specific > 0.3
    assert common > 0.15
    assert specific + common < 0.85


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "orange", "size": "small"}, "a photo of a small orange circle in the centre on a blue background"),
        ({"background": "orange"}, "a photo of a medium red circle in the centre on an orange background"),
    ],
)
def test_full_prompts_mention_everything(change, expected):
    assert build_full_prompt(replace(PLAIN, **change)) == expected
    assert build_full_prompt(replace(PLAIN, **change), position=False) == expected.replace(" in the centre", "")


def test_articles_agree_with_their_nouns():
    texts = [sample_caption(scene, rng) for scene, rng in sample_scenes()]
    assert any("an orange" in text for text in texts)
    assert any(text.startswith("an ugly") for text in texts)
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", text) for text in texts)


def test_prompts_depend_only_on_the_seed():
    for sample in (sample_prompts, sample_negatives):
        assert list(sample(50, 0)) == list(sample(50, 0)) != list(sample(50, 1))


def test_training_negatives_exclude_held_out_values():
    texts = list(sample_negatives(DRAWS, 0))
    assert len(texts) == DRAWS
    assert not any(word in text for text in texts for word in NEVER_NEGATIVE)
    assert {pair.value for pair in PAIRS if not pair.trained} == set(NEVER_NEGATIVE)
    assert all(any(pair.value in text for text in texts) for pair in PAIRS if pair.trained)


def test_held_out_prompts_are_distinct_and_held_out():
    chosen = sample_held_out_prompts(200, 7)
    assert len({prompt for prompt, _ in chosen}) == 200
    assert all(is_held_out(scene) for _, scene in chosen)
    assert all(
        prompt in (build_full_prompt(scene), build_full_prompt(scene, position=False)) for prompt, scene in chosen
    )
    assert sample_held_out_prompts(200, 7) == chosen


def test_training_negatives_include_the_words_of_the_evaluation():
    training_words = {word for text in sample_negatives(DRAWS, 0) for word in text.split(", ")}
    assert {*BAD_PHOTO.split(", "), *DEGRADATIONS.split(", ")} <= training_words
