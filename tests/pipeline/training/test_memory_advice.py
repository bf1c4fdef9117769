"""The memory of each ZeRO stage, against DeepSpeed's own engine, and the options that make a recipe fit."""

import dataclasses
import re

import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.gpu_specs import GPUS
from pipeline.recipe import load, parse
from pipeline.training import memory_advice
from pipeline.training.memory_advice import advise, list_stages, require_fit
from pipeline.training.resource_estimate import GIB, UNSHARDED, Estimate, build_meta_denoiser, replace_memory
from pipeline.training.state_memory import NetworkSize, estimate_gpu_bytes, estimate_host_bytes

NAMES = sorted(path.stem for path in recipe.RECIPES.glob("*.toml"))
SIZE = NetworkSize(parameters=400_000_000, trained=300_000_000, frozen_bytes=2.0)


def build_train(*overrides):
    return parse("", ["train.num_workers=4", *(f"train.{override}" for override in overrides)]).train


@pytest.mark.parametrize(
    ("overrides", "weights", "gradients", "master", "states"),
    [  # bytes of a trained parameter; weights also 2 of each frozen one
        (["zero_stage=0"], 1, 4, 0, 8),
        (["zero_stage=1"], 1, 4, 1, 2),
        (["zero_stage=2"], 1, 1, 1, 2),
        (["zero_stage=3"], 1 / 4, 1, 1, 2),
        (["zero_stage=1", "offload_optimizer=true"], 1, 4, 0, 0),
        (["zero_stage=2", "offload_optimizer=true"], 1, 0, 0, 0),
        (["zero_stage=3", "offload_optimizer=true", "offload_parameters=true"], 0, 0, 0, 0),
    ],
)
def test_each_stage_shards_one_more_kind_of_state_over_four_workers(overrides, weights, gradients, master, states):
    size = SIZE.trained
    actual = estimate_gpu_bytes(build_train(*overrides), SIZE)
    assert actual["weights"] == pytest.approx(weights * (4 * size + 2 * 100_000_000))
    assert actual["gradients"] == pytest.approx(gradients * size)
    assert actual["ZeRO float32 partition"] == pytest.approx(master * size)
    assert actual["optimizer states"] == pytest.approx(states * size)
    gathered = SIZE.weight_bytes / 4 if "zero_stage=3" in overrides else 0  # a hundred of four hundred million
    assert actual["gathered weights"] == pytest.approx(gathered)


def test_what_is_offloaded_is_in_host_memory():
    both = build_train("zero_stage=3", "offload_optimizer=true", "offload_parameters=true")
    assert estimate_host_bytes(build_train("zero_stage=3"), SIZE) == 0
    assert estimate_host_bytes(both, SIZE) == pytest.approx(16 * SIZE.trained / 4 + SIZE.weight_bytes / 4)


def test_overlap_takes_a_second_bucket_and_bfloat16_a_copy():
    buckets = [
        estimate_gpu_bytes(build_train(*overrides), SIZE)["reduce bucket"] / SIZE.trained
        for overrides in ([], ["overlap_comm=true"], ["communication_precision=bfloat16"])
    ]
    assert buckets == [4, 8, 6]


@pytest.fixture(scope="module")
def large():
    """Return a recipe that does not fit as it is: 64 images at once on each of two GPUs."""
    return parse(
        recipe.dump(load("sd21")), ["train.num_workers=2", "train.batch_size=128", "train.micro_batch_size=64"]
    )


def test_a_recipe_that_does_not_fit_is_rejected_with_the_options_that_make_it_fit(large):
    with pytest.raises(UserError) as error:
        require_fit(large)
    matched = re.fullmatch(
        r"train.gpu: got 'A100-40GB', 40 GiB; expected at least (\d+) GiB, the estimate of a worker's memory. "
        r"Set train.gradient_checkpointing = true( and train.micro_batch_size = (\d+))?\.",
        str(error.value),
    )
    assert matched, str(error.value)
    assert int(matched[1]) > 40
    overrides = ["train.gradient_checkpointing=true"]
    overrides += [f"train.micro_batch_size={matched[3]}"] if matched[3] else []
    require_fit(parse(recipe.dump(large), overrides))
    require_fit(parse(recipe.dump(large), ["train.gpus_per_worker=0"]))


@pytest.fixture
def measure_states(monkeypatch):
    """Replace the measurement by a denoiser of 3e9 parameters without activations."""
    measured = Estimate(dict.fromkeys(UNSHARDED, 0.0), 1.0, 3_000_000_000, 1, 1.0, 3_000_000_000, 10_000_000)

    def measure(given):
        trained = 20_000_000 if given.student.lora_rank else measured.trained
        return replace_memory(given, dataclasses.replace(measured, trained=trained))

    monkeypatch.setattr(memory_advice, "estimate", measure)
    return measure


def set_memory(monkeypatch, gib):
    gpu = dataclasses.replace(GPUS["A100-40GB"], memory=gib * GIB)
    monkeypatch.setattr(memory_advice, "GPUS", {"A100-40GB": gpu, "H100": GPUS["H100"]})


@pytest.mark.parametrize(
    ("workers", "gib", "expected"),
    [
        (4, 60, "Set train.zero_stage = 1."),
        (4, 48, "Set train.zero_stage = 2."),
        (4, 32, "Set train.zero_stage = 3."),
        (4, 26, "Set train.zero_stage = 3 and train.offload_optimizer = true."),
        (1, 47, "Set train.zero_stage = 2 and train.offload_optimizer = true."),
        (1, 30, "Set student.lora_rank = 64."),
        (4, 23, "No option makes it fit. Use H100, more workers or a smaller teacher."),
    ],
)
def test_the_advice_names_the_first_options_that_fit(measure_states, monkeypatch, workers, gib, expected):
    set_memory(monkeypatch, gib)
    given = parse("", [f"train.num_workers={workers}", "train.batch_size=8", "train.zero_stage=0"])
    assert measure_states(given).needed > gib * GIB
    assert advise(given) == expected


def test_parameters_are_offloaded_last(measure_states, monkeypatch):
    """The start is left out, when each worker holds both networks whole."""
    monkeypatch.setattr(Estimate, "needed", property(lambda estimated: estimated.total))
    set_memory(monkeypatch, 2)
    given = parse("", ["train.num_workers=8", "train.batch_size=8", "train.zero_stage=3", "student.lora_rank=64"])
    assert advise(given) == "Set train.offload_parameters = true."


def test_the_stages_are_listed_with_and_without_offload(measure_states):
    needs = dict(list_stages(parse("", ["train.num_workers=4"]), measure_states(parse(""))))
    assert list(needs) == [
        *("zero_stage 0", "zero_stage 1", "zero_stage 1, offload_optimizer", "zero_stage 2"),
        *("zero_stage 2, offload_optimizer", "zero_stage 3", "zero_stage 3, offload_optimizer"),
        "zero_stage 3, both offloads",
    ]
    plain = [needs[f"zero_stage {stage}"] for stage in range(4)]
    assert plain == sorted(plain, reverse=True)


@pytest.mark.parametrize(
    ("gib", "share", "precision", "remedy"),
    [
        (20, "1.0", "float32", 'Set evaluation.precision = "bfloat16".'),
        (40, "0.5", "float32", 'Set evaluation.precision = "bfloat16".'),
        (40, "0.25", "float32", "Set evaluation.gpus_per_process = 1.0."),
        (20, "0.5", "float32", 'Set evaluation.precision = "bfloat16" and evaluation.gpus_per_process = 1.0.'),
        (10, "1.0", "bfloat16", "Use a larger GPU, or a smaller teacher."),
    ],
)
def test_an_evaluation_that_does_not_fit_is_explained(measure_states, monkeypatch, gib, share, precision, remedy):
    """Two denoisers of 3e9 parameters are 22 GiB in float32 and 11 GiB in bfloat16."""
    overrides = [f"evaluation.gpus_per_process={share}", f"evaluation.precision={precision}"]
    options = parse(recipe.dump(load("sd21")), overrides)
    set_memory(monkeypatch, gib)
    text = memory_advice.explain_evaluation_misfit(options, measure_states(options))
    assert text.startswith(f"evaluation.precision: got '{precision}', with which a process needs at least ")
    assert text.endswith(f"expected at most {gib * float(share):.0f} GiB of the memory of one A100-40GB. {remedy}")
    roomy = parse(recipe.dump(options), ["evaluation.gpus_per_process=0"])
    assert not memory_advice.explain_evaluation_misfit(roomy, measure_states(roomy))


def test_only_an_evaluation_beside_training_must_fit_before_it(measure_states, monkeypatch):
    set_memory(monkeypatch, 20)
    overrides = ["evaluation.gpus_per_process=1.0", "student.lora_rank=4"]
    with pytest.raises(UserError, match="which a process needs"):
        require_fit(parse(recipe.dump(load("sd21")), [*overrides, "evaluation.every_n_checkpoints=1"]))
    require_fit(parse(recipe.dump(load("sd21")), [*overrides, "evaluation.every_n_checkpoints=0"]))


GPU_RECIPES = [name for name in NAMES if load(name).evaluation.gpus_per_process]


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_the_evaluations_of_the_recipes_fit_their_gpus(name):
    options = load(name)
    estimated = dataclasses.replace(
        Estimate({}, 0.0, 0, 1, 0.0, 0, 0),
        parameters=sum(p.numel() for p in build_meta_denoiser(options)[0].parameters()),
    )
    assert not memory_advice.explain_evaluation_misfit(options, estimated)
