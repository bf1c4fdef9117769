"""One process's share of a distillation at small width, independent of passes, processes and engine."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed

from nasa.lora import get_lora_parameters, merge_weights
from nasa.steerable_denoiser import make_steerable
from nasa.student import generate
from nasa.testing.tiny_pipelines import TINY_PIPELINES
from pipeline import models, recipe
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.teacher_pairs import TeacherPairs
from pipeline.training import distiller as distiller_module
from pipeline.training import engines
from pipeline.training.distiller import Distiller
from pipeline.training.student_export import collect_full_weights

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house", "car", "hat", "pen", "cup")]
TOLERANCE = 2e-5
SMALL = [
    "train.num_workers=1",
    "train.batch_size=8",
    "train.clip_weight=0",  # tests that pass a `clip` switch it on
    "lora_teacher.rank=2",
    "lora_teacher.lora_alpha=4",
]
STUDENT_LORA = ["student.lora_rank=2", "student.lora_alpha=8", "student.learning_rate=1e-2"]


@pytest.fixture(scope="module", params=["stable-diffusion", "pixart", "pixart-sigma"])
def teacher(request, tiny_teacher, tmp_path_factory):
    if request.param == "stable-diffusion":
        return tiny_teacher
    folder = tmp_path_factory.mktemp("teacher") / request.param
    TINY_PIPELINES[request.param]().save_pretrained(folder)
    return folder


def build_distiller(teacher, *overrides, engine=engines.PlainEngine, rank=0, world_size=1, clip=None, pairs=None):
    options = recipe.parse("", [*SMALL, *overrides])
    model = models.load_for_recipe(options, teacher)
    built = engines.build_engines(options, model, torch.device("cpu"), workers=world_size, make=engine)
    negatives = NegativeSampler(["ugly", "blurry", "dark"], np.array([0.5, 0.8, 1.0]), False)
    return Distiller(options, model, built, negatives, clip, None, pairs, rank, world_size)


def run_steps(distiller, count, prompts=PROMPTS):
    return [distiller.step(step, prompts) for step in range(count)]


def assert_same(a, b, tolerance=TOLERANCE):
    for name, value in a.collect_student_weights().items():
        torch.testing.assert_close(value, b.collect_student_weights()[name], atol=tolerance, rtol=tolerance)


REGRESSION = ["regression.weight=0.7", "regression.images=5", 'regression.pairs="given"']


@pytest.fixture(scope="module")
def pairs(teacher):
    shape = models.load(teacher).latent_shape
    latents = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)).half()
    return TeacherPairs([f"a {name}" for name in ("cat", "dog", "hen", "cow", "pig", "emu")], list(range(6)), latents)


@pytest.mark.parametrize("distance", ["squared", "pseudo_huber"])
def test_the_regression_is_the_distance_to_the_pairs(teacher, pairs, distance):
    """The student learns the pairs if their weight is so large that VSD vanishes."""
    overrides = [
        f"regression.distance={distance}",
        "regression.weight=1e4",
        "regression.images=8",
        "student.learning_rate=3e-3",
        'regression.pairs="given"',
    ]
    distiller = build_distiller(teacher, *overrides, pairs=pairs)
    rows = pairs.draw_rows(distiller.seed, 0, range(8))
    with torch.no_grad():
        texts = distiller.model.encode([pairs.prompts[row] for row in rows])
        start = generate(distiller.engines.student, distiller.model.diffusion, pairs.get_noise(rows), texts)
    losses = [metrics["loss_regression"] for metrics in run_steps(distiller, 12)]
    squared_B = (start - pairs.latents[rows].float()).square().flatten(1).mean(dim=1)
    expected = squared_B if distance == "squared" else squared_B.sqrt() - 0.00054
    assert losses[0] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("scheduler", "share"), [("constant", 1), ("linear", 0.25)])
def test_the_learning_rate_stays_or_falls_to_nought(tiny_teacher, scheduler, share):
    """AdamW's first update moves a weight by the learning rate, whatever the gradient's size."""
    rate, options = 1e-3, [f'student.lr_scheduler="{scheduler}"', "student.learning_rate=1e-3", "train.steps=8"]
    distiller = build_distiller(tiny_teacher, *options)
    before = {name: value.clone() for name, value in distiller.collect_student_weights().items()}
    distiller.step(6, PROMPTS)
    moved = max(
        float((value - before[name]).abs().max()) for name, value in distiller.collect_student_weights().items()
    )
    assert moved == pytest.approx(share * rate, rel=0.05)


def test_a_recipe_without_pairs_has_no_regression(teacher):
    assert "loss_regression" not in run_steps(build_distiller(teacher), 1)[0]


@pytest.mark.parametrize(("processes", "micro_batch_size"), [(1, 3), (2, 2), (3, 0)])
def test_the_regression_is_the_same_for_any_number_of_passes_and_processes(teacher, pairs, processes, micro_batch_size):
    (single,) = run_steps(build_distiller(teacher, *REGRESSION, pairs=pairs), 1)
    parts = [
        build_distiller(
            teacher,
            *REGRESSION,
            f"train.micro_batch_size={micro_batch_size}",
            rank=rank,
            world_size=processes,
            pairs=pairs,
        )
        for rank in range(processes)
    ]
    slices = [part.recipe.get_batch_slice(part.rank, processes) for part in parts]
    losses = [
        run_steps(part, 1, [PROMPTS[index] for index in indices])[0]["loss_regression"]
        for part, indices in zip(parts, slices, strict=True)
    ]
    assert np.mean(losses) == pytest.approx(single["loss_regression"], rel=1e-4)


@pytest.mark.parametrize(("micro_batch_size", "clip_images"), [(1, 3), (3, 3), (3, 8), (4, 3)])
def test_gradient_accumulation_equals_one_pass(teacher, micro_batch_size, clip_images):
    clip = Clip.load("shapes")
    overrides = ["train.clip_weight=1.0", f"train.clip_images={clip_images}", "train.clip_margin=2.0"]
    one_pass = build_distiller(teacher, *overrides, clip=clip)
    accumulated = build_distiller(teacher, *overrides, f"train.micro_batch_size={micro_batch_size}", clip=clip)
    for expected, actual in zip(run_steps(one_pass, 2), run_steps(accumulated, 2), strict=True):
        for name in ("loss_student", "loss_clip", "loss_lora_teacher", "gradient_norm_student"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-3), name
        assert expected["loss_clip"] > 0.1
    assert_same(accumulated, one_pass, 1e-4)


@pytest.mark.parametrize(("processes", "clip_images"), [(2, 8), (3, 3)])
def test_processes_together_equal_one_process(teacher, processes, clip_images):
    """The mean over the processes equals the metrics of one process; some processes may have one image more."""
    clip = Clip.load("shapes")
    overrides = ["train.clip_weight=1.0", f"train.clip_images={clip_images}", "train.clip_margin=2.0"]
    (single,) = run_steps(build_distiller(teacher, *overrides, clip=clip), 1)
    parts = [
        build_distiller(teacher, *overrides, "train.micro_batch_size=2", rank=rank, world_size=processes, clip=clip)
        for rank in range(processes)
    ]
    sample_indices = [part.recipe.get_batch_slice(part.rank, processes) for part in parts]
    assert [index for indices in sample_indices for index in indices] == list(range(8))
    rank_metrics = [
        run_steps(part, 1, [PROMPTS[i] for i in indices])[0]
        for part, indices in zip(parts, sample_indices, strict=True)
    ]
    assert rank_metrics[0]["loss_student"] != rank_metrics[1]["loss_student"]
    for name in ("loss_student", "loss_lora_teacher", "loss_clip"):
        assert np.mean([metrics[name] for metrics in rank_metrics]) == pytest.approx(single[name], rel=1e-4)
    assert rank_metrics[0]["scale"] == rank_metrics[1]["scale"] == single["scale"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Create a group of this process alone, as Ray Train does, and set the variables that DeepSpeed reads."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("stage", "micro_batch_size", "shared"), [(1, 0, "false"), (2, 0, "false"), (2, 4, "false"), (2, 4, "true")]
)
def test_deepspeed_equals_the_plain_engine(tiny_teacher, one_process, stage, micro_batch_size, shared):
    overrides = [
        f"train.zero_stage={stage}",
        f"train.micro_batch_size={micro_batch_size}",
        "student.learning_rate=1e-3",
    ]
    overrides.append(f"method.lora_shares_pass={shared}")
    plain, sharded = (
        build_distiller(tiny_teacher, *overrides),
        build_distiller(tiny_teacher, *overrides, engine=engines.build_deepspeed_engine),
    )
    for expected, actual in zip(run_steps(plain, 3), run_steps(sharded, 3), strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)
    assert_same(plain, sharded, 1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_equals_the_plain_engine_with_a_regression(tiny_teacher, one_process, stage):
    """A step runs the student twice before its backward pass."""
    overrides = [*REGRESSION, f"train.zero_stage={stage}", "train.micro_batch_size=4", "student.learning_rate=1e-3"]
    shape = models.load(tiny_teacher).latent_shape
    latents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).half()
    given = TeacherPairs(["a cat", "a dog", "a hen"], [1, 2, 3], latents)
    plain, sharded = (
        build_distiller(tiny_teacher, *overrides, pairs=given, engine=engine)
        for engine in (engines.PlainEngine, engines.build_deepspeed_engine)
    )
    for expected, actual in zip(run_steps(plain, 3), run_steps(sharded, 3), strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)
    assert_same(plain, sharded, 1e-4)


def test_a_lora_student_trains_only_its_adapters(teacher):
    distiller = build_distiller(teacher, *STUDENT_LORA)
    before = deepcopy(distiller.engines.student.module.model.state_dict())
    run_steps(distiller, 2)
    after = distiller.engines.student.module.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == set(distiller.collect_student_weights()) == set(distiller.ema)
    assert all("lora_" in name for name in changed)


def test_merged_adapters_give_the_same_output(tiny_teacher):
    distiller = build_distiller(tiny_teacher, *STUDENT_LORA)
    run_steps(distiller, 2)
    adapted, plain = distiller.engines.student.module, models.load(tiny_teacher)
    noise, embeds = torch.randn(2, *plain.latent_shape), plain.encode(["a cat", "a dog"])
    inputs = noise, torch.tensor([999, 999]), embeds, embeds[:1], 0.5
    merged = make_steerable(plain.denoiser)
    with torch.no_grad():
        untrained, expected = merged(*inputs), adapted(*inputs)
        plain.denoiser.load_state_dict(merge_weights(adapted.model))
        torch.testing.assert_close(merged(*inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(untrained, expected, atol=10 * TOLERANCE)
    exported = collect_full_weights(distiller.recipe, tiny_teacher, distiller.collect_student_weights())
    assert exported.keys() == plain.denoiser.state_dict().keys()
    for name, value in exported.items():
        torch.testing.assert_close(value, plain.denoiser.state_dict()[name])


def test_one_negative_is_drawn_per_batch(tiny_teacher):
    drawn = []
    distiller = build_distiller(tiny_teacher, 'method.negative_per="batch"')
    plain, distiller.negatives = distiller.negatives, distiller

    def spy(*args, **options):
        drawn.append(plain.sample(*args, **options))
        return drawn[-1]

    distiller.sample = spy
    run_steps(distiller, 6)
    assert all(len(set(texts)) == 1 for texts in drawn)
    assert len({texts[0] for texts in drawn}) > 1


def test_bfloat16_is_near_float32_and_keeps_float32_weights(teacher):
    full, reduced = build_distiller(teacher), build_distiller(teacher, 'train.precision="bfloat16"')
    for expected, actual in zip(run_steps(full, 3), run_steps(reduced, 3), strict=True):
        for name in ("image_variation", "loss_lora_teacher"):
            assert actual[name] == pytest.approx(expected[name], rel=0.1)
            assert actual[name] != expected[name]
    trained = [*reduced.collect_student_weights().values(), *reduced.ema.values()]
    adapters = [p for n, p in reduced.engines.teachers.named_parameters() if "lora_" in n]
    assert {value.dtype for value in [*trained, *adapters]} == {torch.float32}
    float32_names = {f"model.{reduced.model.family.distillation.output_layer}.{part}" for part in ("weight", "bias")}
    frozen = {n: p for n, p in reduced.engines.teachers.named_parameters() if "lora_" not in n}
    assert {name for name, value in frozen.items() if value.dtype == torch.float32} == float32_names
    assert {value.dtype for name, value in frozen.items() if name not in float32_names} == {torch.bfloat16}
    exact = dict(models.load(teacher).denoiser.named_parameters())
    for name in float32_names:
        assert torch.equal(frozen[name], exact[name.removeprefix("model.")]), "rounded to bfloat16 on the way"


@pytest.fixture
def autocast_as_on_cuda(monkeypatch):
    """Make `torch.is_autocast_enabled()` report the CPU's state; DeepSpeed calls it without a device, meaning CUDA."""
    plain = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": plain(device))


@pytest.mark.parametrize(
    "extra_overrides",
    [[], ["train.gradient_checkpointing=true"], [*STUDENT_LORA, "train.micro_batch_size=4"], ["train.zero_stage=1"]],
)
def test_deepspeed_on_cuda_equals_the_plain_engine_in_bfloat16(
    tiny_teacher, one_process, autocast_as_on_cuda, extra_overrides
):
    """DeepSpeed turns CUDA's autocast off around its module, so that the module must enter it itself."""
    overrides = ['train.precision="bfloat16"', "method.lora_guidance=false", "student.learning_rate=1e-3"]
    clip = Clip.load("shapes")
    overrides += ["train.clip_weight=1.0", "train.clip_margin=2.0", *extra_overrides]
    plain, sharded = (
        build_distiller(tiny_teacher, *overrides, clip=clip),
        build_distiller(tiny_teacher, *overrides, engine=engines.build_deepspeed_engine, clip=clip),
    )
    layer_dtypes = []
    for part in (sharded.engines.student.module.model, sharded.engines.teachers.model):
        for layer in (part.conv_in, part.conv_out):
            layer.register_forward_hook(lambda _, inputs, output: layer_dtypes.append((inputs[0].dtype, output.dtype)))
    for expected, actual in zip(run_steps(plain, 3), run_steps(sharded, 3), strict=True):
        assert actual == pytest.approx(expected, rel=2e-2)
        assert actual["vsd_gradient_rms"] > 0
    assert {output for _, output in layer_dtypes[::2]} == {torch.bfloat16}, "the first layers"
    assert {output for _, output in layer_dtypes[1::2]} == {torch.float32}, "the output layers"


def test_gradient_checkpointing_gives_the_same_gradients(teacher):
    plain, checkpointed = build_distiller(teacher), build_distiller(teacher, "train.gradient_checkpointing=true")
    assert run_steps(checkpointed, 2)[1] == pytest.approx(run_steps(plain, 2)[1], rel=1e-4)
    assert_same(plain, checkpointed)


def test_the_clip_loss_decays_to_zero_and_stays_there(tiny_teacher):
    overrides = ["train.clip_weight=1.0", "train.clip_margin=2.0", "train.steps=4"]
    distiller = build_distiller(tiny_teacher, *overrides, clip=Clip.load("shapes"))
    losses = [distiller.step(step, PROMPTS)["loss_clip"] for step in (0, 2, 4, 6)]
    assert losses[0] > losses[1] > 0
    assert losses[2:] == [0.0, 0.0]


def build_counting_compiler(compiled_graphs):
    def compiler(graph, _):
        compiled_graphs.append(graph)
        return graph.forward

    return compiler


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "graphs"), [([], 3), (["method.lora_shares_pass=true"], 4)])
def test_a_step_is_compiled_once(tiny_teacher, overrides, graphs):
    """The graphs are the student's, the teachers' with and without gradient and, in a shared pass, one without gradient
    for half the batch. Another scale of the negative prompt, which is random in each step, compiles no other graph.
    """
    torch._dynamo.reset()
    plain, compiled = build_distiller(tiny_teacher, *overrides), build_distiller(tiny_teacher, *overrides)
    compiled_graphs = []
    engines.compile_denoisers(
        compiled.engines.student.module, compiled.engines.teachers, build_counting_compiler(compiled_graphs)
    )
    metrics_by_step = [compiled.step(0, PROMPTS)]
    first_count = len(compiled_graphs)
    assert 3 <= first_count <= graphs
    metrics_by_step += [compiled.step(step, PROMPTS) for step in range(1, 4)]
    assert len({metrics["scale"] for metrics in metrics_by_step}) == 4
    assert len(compiled_graphs) == first_count
    for one, other in zip(metrics_by_step, run_steps(plain, 4), strict=True):
        assert one["loss_student"] == pytest.approx(other["loss_student"], rel=1e-5)
        assert one["loss_lora_teacher"] == pytest.approx(other["loss_lora_teacher"], rel=1e-5)
    assert_same(compiled, plain)


def test_four_steps_and_three_lora_updates_are_the_same_for_any_number_of_passes(teacher):
    overrides = ["method.student_steps=4", "method.lora_updates=3"]
    whole, accumulated = (build_distiller(teacher, *overrides, f"train.micro_batch_size={size}") for size in (0, 3))
    once = build_distiller(teacher, overrides[0])
    for distiller in (whole, accumulated, once):
        run_steps(distiller, 2)
    assert_same(whole, accumulated)
    adapters = [get_lora_parameters(d.engines.teachers) for d in (whole, accumulated, once)]
    for one, same, other in zip(*adapters, strict=True):
        torch.testing.assert_close(one, same, atol=TOLERANCE, rtol=TOLERANCE)
        assert not torch.equal(one, other)


def copy_weights(distiller):
    """Return copies of the student's weights and of the LoRA teacher's."""
    adapters = {str(number): value for number, value in enumerate(get_lora_parameters(distiller.engines.teachers))}
    student = distiller.collect_student_weights()
    return [{name: value.detach().clone() for name, value in weights.items()} for weights in (student, adapters)]


def changed(before, after):
    return [any(not torch.equal(old[name], new[name]) for name in old) for old, new in zip(before, after, strict=True)]


def test_training_starts_with_pairs_alone_then_warms_up_the_lora_teacher(teacher, pairs):
    stages = ["regression.start_steps=2", "lora_teacher.warm_up_steps=1", "method.lora_updates=2"]
    distiller = build_distiller(teacher, *REGRESSION, *stages, pairs=pairs)
    trained, collected = [], []
    for step in range(4):
        before = copy_weights(distiller)
        collected.append(distiller.step(step, PROMPTS))
        trained.append(changed(before, copy_weights(distiller)))
    assert trained == [[True, False], [True, False], [False, True], [True, True]]
    assert {tuple(metrics) for metrics in collected} == {tuple(collected[0])}
    for name, present in {
        "loss_student": (0, 0, 0, 1),
        "loss_regression": (1, 1, 0, 1),
        "loss_lora_teacher": (0, 0, 1, 1),
        "gradient_norm_student": (1, 1, 0, 1),
        "gradient_norm_lora_teacher": (0, 0, 1, 1),
        "image_variation": (1, 1, 1, 1),
    }.items():
        assert tuple(int(metrics[name] > 0) for metrics in collected) == present, name


def test_the_cold_start_begins_with_eq_6(teacher, pairs, monkeypatch):
    stages = ["regression.start_steps=1", "lora_teacher.warm_up_steps=1", "method.cold_start_steps=2"]
    distiller, sampled = build_distiller(teacher, *REGRESSION, *stages, pairs=pairs), []
    original = distiller_module.sample_step

    def record(*arguments, **options):
        sampled.append(original(*arguments, **options))
        return sampled[-1]

    monkeypatch.setattr(distiller_module, "sample_step", record)
    run_steps(distiller, 5)
    assert [randomness.cold_start for randomness in sampled] == [1, 1, 1, 0.5, 0]


@pytest.mark.parametrize("stage", ["regression.start_steps=2", "lora_teacher.warm_up_steps=2"])
def test_the_first_steps_are_the_same_for_any_number_of_passes(teacher, pairs, stage):
    whole, accumulated = (
        build_distiller(teacher, *REGRESSION, stage, f"train.micro_batch_size={size}", pairs=pairs) for size in (0, 3)
    )
    for distiller in (whole, accumulated):
        run_steps(distiller, 2)
    for one, other in zip(copy_weights(whole), copy_weights(accumulated), strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
