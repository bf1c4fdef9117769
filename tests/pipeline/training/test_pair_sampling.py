"""Pairs of a user's own teacher: sampled once by Ray Data actors, resumed by file."""

import pytest
import torch

from pipeline import models, recipe
from pipeline.errors import UserError
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.prompts.teacher_pairs import PAIRS_PER_FILE, TeacherPairs, list_pair_files, read_pairs
from pipeline.storage import Folder
from pipeline.training import preflight
from pipeline.training.pair_sampling import FIRST_SEED, locate_pairs, sample_pairs

COUNT = PAIRS_PER_FILE + 10


@pytest.fixture(scope="module")
def sampled(ray_cluster, tmp_path_factory, tiny_teacher):
    options = recipe.parse(
        "",
        [
            f"teacher={str(tiny_teacher)!r}",
            "prompts.count=600",
            "prompts.negative_draws=40",
            "regression.weight=0.5",
            f"regression.num_pairs={COUNT}",
            "regression.teacher_steps=2",
            "evaluation.cpus_per_process=0.5",
        ],
    )
    folder = Folder.from_uri(tmp_path_factory.mktemp("pairs") / "prompts")
    prepare(options, folder)
    pairs = locate_pairs(options, folder, "teacher")
    sample_pairs(options, folder, load_manifest(folder), pairs, tiny_teacher)
    return options, folder, pairs


def test_a_pair_is_the_teachers_image_of_its_prompt_and_noise(sampled, tiny_teacher):
    options, _, folder = sampled
    pairs = read_pairs(options, folder.uri)
    assert pairs.seeds == list(range(FIRST_SEED, FIRST_SEED + COUNT))
    assert len(set(pairs.prompts)) > 0.5 * COUNT
    rows = [0, COUNT - 1]
    expected = Sampler(models.load(tiny_teacher)).sample_latents(
        SamplingMethod("steps", 3.0, 2), [pairs.prompts[row] for row in rows], [pairs.seeds[row] for row in rows]
    )
    torch.testing.assert_close(pairs.latents[rows].float(), expected, atol=5e-3, rtol=5e-3)


def test_only_missing_files_are_sampled_again(sampled, tiny_teacher):
    options, prompts, folder = sampled
    first, last = list_pair_files(COUNT)
    before = {name: folder.read(name) for name in (first, last)}
    marked = TeacherPairs.read(folder, PAIRS_PER_FILE)
    folder.write_table(first, TeacherPairs(marked.prompts, marked.seeds, 0 * marked.latents).to_table())
    folder.remove(last)
    sample_pairs(options, prompts, load_manifest(prompts), folder, tiny_teacher)
    assert not TeacherPairs.read(folder, PAIRS_PER_FILE).latents.any()
    assert folder.read(last) == before[last]
    folder.write(first, before[first])


def test_the_folder_depends_on_what_the_images_depend_on(sampled):
    options, prompts, folder = sampled
    assert locate_pairs(options, prompts, "another").uri != folder.uri
    more = options.model_copy(update={"regression": options.regression.model_copy(update={"num_pairs": 9})})
    assert locate_pairs(more, prompts, "teacher").uri == folder.uri
    other = options.model_copy(update={"regression": options.regression.model_copy(update={"guidance_scale": 9.0})})
    assert locate_pairs(other, prompts, "teacher").uri != folder.uri


def test_pairs_of_another_teachers_shape_are_refused(tiny_teacher):
    options = recipe.parse("", [f"teacher={str(tiny_teacher)!r}", "regression.weight=1.0", "regression.pairs='shapes'"])
    with pytest.raises(UserError, match=r"regression.pairs: got 'shapes'; expected pairs of latents \[4, 4, 4\]"):
        preflight._check_pairs(options, tiny_teacher)
