"""A process's share of a distillation, at small width: the same whatever the passes, the processes and the engine."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed

from nasa.denoiser import make_steerable
from nasa.teachers import merge_weights
from nasa.testing.pipelines import TINY_PIPELINES
from pipeline import models, recipe
from pipeline.models.clip.model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.training import engines
from pipeline.training.distiller import Distiller
from pipeline.training.export import collect_full_weights

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house", "car", "hat", "pen", "cup")]
TOLERANCE = 2e-5
SMALL = [
    "train.num_workers=1",
    "train.batch_size=8",
    "train.clip_weight=0",  # on where a test gives a `clip`
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


def make(teacher, *overrides, make=engines.PlainEngine, rank=0, world_size=1, clip=None):
    options = recipe.parse("", [*SMALL, *overrides])
    model = models.load(teacher)
    built = engines.build(options, model, torch.device("cpu"), workers=world_size, make=make)
    negatives = NegativeSampler(["ugly", "blurry", "dark"], np.array([0.5, 0.8, 1.0]), False)
    return Distiller(options, model, built, negatives, clip, None, rank, world_size)


def steps(distiller, count, prompts=PROMPTS):
    return [distiller.step(step, prompts) for step in range(count)]


def assert_same(a, b, tolerance=TOLERANCE):
    for name, value in a.collect_student_weights().items():
        torch.testing.assert_close(value, b.collect_student_weights()[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("micro_batch_size", "clip_images"), [(1, 3), (3, 3), (3, 8), (4, 3)])
def test_passes_add_up_to_the_whole_batch(teacher, micro_batch_size, clip_images):
    clip = Clip.load("shapes")
    more = ["train.clip_weight=1.0", f"train.clip_images={clip_images}", "train.clip_margin=2.0"]
    whole = make(teacher, *more, clip=clip)
    parts = make(teacher, *more, f"train.micro_batch_size={micro_batch_size}", clip=clip)
    for expected, actual in zip(steps(whole, 2), steps(parts, 2), strict=True):
        for name in ("loss_student", "loss_clip", "loss_lora_teacher", "gradient_norm_student"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-3), name
        assert expected["loss_clip"] > 0.1
    assert_same(parts, whole, 1e-4)


@pytest.mark.parametrize(("processes", "clip_images"), [(2, 8), (3, 3)])
def test_processes_share_the_images_of_one(teacher, processes, clip_images):
    """The mean over the processes is what one process has, noise, negatives, CLIP loss and all; some may have an image
    more."""
    clip = Clip.load("shapes")
    more = ["train.clip_weight=1.0", f"train.clip_images={clip_images}", "train.clip_margin=2.0"]
    (alone,) = steps(make(teacher, *more, clip=clip), 1)
    parts = [
        make(teacher, *more, "train.micro_batch_size=2", rank=rank, world_size=processes, clip=clip)
        for rank in range(processes)
    ]
    places = [part.recipe.get_batch_slice(part.rank, processes) for part in parts]
    assert [place for own in places for place in own] == list(range(8))
    shares = [steps(part, 1, [PROMPTS[i] for i in own])[0] for part, own in zip(parts, places, strict=True)]
    assert shares[0]["loss_student"] != shares[1]["loss_student"]
    for name in ("loss_student", "loss_lora_teacher", "loss_clip"):
        assert np.mean([metrics[name] for metrics in shares]) == pytest.approx(alone[name], rel=1e-4)
    assert shares[0]["scale"] == shares[1]["scale"] == alone["scale"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A process group of this process, as Ray Train makes one, and what else DeepSpeed asks of the environment."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("stage", "micro_batch_size", "shared"), [(1, 0, "false"), (2, 0, "false"), (2, 4, "false"), (2, 4, "true")]
)
def test_deepspeed_does_what_the_plain_engine_does(tiny_teacher, one_process, stage, micro_batch_size, shared):
    more = [f"train.zero_stage={stage}", f"train.micro_batch_size={micro_batch_size}", "student.learning_rate=1e-3"]
    more.append(f"method.lora_shares_pass={shared}")
    plain, sharded = make(tiny_teacher, *more), make(tiny_teacher, *more, make=engines.build_deepspeed_engine)
    for expected, actual in zip(steps(plain, 3), steps(sharded, 3), strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)
    assert_same(plain, sharded, 1e-4)


def test_a_lora_student_trains_its_adapters_alone(teacher):
    distiller = make(teacher, *STUDENT_LORA)
    before = deepcopy(distiller.engines.student.module.model.state_dict())
    steps(distiller, 2)
    after = distiller.engines.student.module.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == set(distiller.collect_student_weights()) == set(distiller.ema)
    assert all("lora_" in name for name in changed)


def test_merged_adapters_compute_the_same(tiny_teacher):
    distiller = make(tiny_teacher, *STUDENT_LORA)
    steps(distiller, 2)
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


def test_one_negative_for_a_batch(tiny_teacher):
    drawn = []
    distiller = make(tiny_teacher, 'method.negative_per="batch"')
    plain, distiller.negatives = distiller.negatives, distiller

    def spy(*args, **options):
        drawn.append(plain.sample(*args, **options))
        return drawn[-1]

    distiller.sample = spy
    steps(distiller, 6)
    assert all(len(set(texts)) == 1 for texts in drawn)
    assert len({texts[0] for texts in drawn}) > 1


def test_bfloat16_is_near_float32_and_keeps_the_weights(teacher):
    full, reduced = make(teacher), make(teacher, 'train.precision="bfloat16"')
    for expected, actual in zip(steps(full, 3), steps(reduced, 3), strict=True):
        for name in ("image_variation", "loss_lora_teacher"):
            assert actual[name] == pytest.approx(expected[name], rel=0.1)
            assert actual[name] != expected[name]
    trained = [*reduced.collect_student_weights().values(), *reduced.ema.values()]
    adapters = [p for n, p in reduced.engines.teachers.named_parameters() if "lora_" in n]
    assert {value.dtype for value in [*trained, *adapters]} == {torch.float32}
    kept = {f"model.{reduced.model.family.distillation.output_layer}.{part}" for part in ("weight", "bias")}
    frozen = {n: p for n, p in reduced.engines.teachers.named_parameters() if "lora_" not in n}
    assert {name for name, value in frozen.items() if value.dtype == torch.float32} == kept
    assert {value.dtype for name, value in frozen.items() if name not in kept} == {torch.bfloat16}
    exact = dict(models.load(teacher).denoiser.named_parameters())
    for name in kept:
        assert torch.equal(frozen[name], exact[name.removeprefix("model.")]), "rounded before it was kept"


@pytest.fixture
def autocast_as_on_cuda(monkeypatch):
    """Answer `torch.is_autocast_enabled()` for the CPU; DeepSpeed's engine asks it without a device: CUDA."""
    plain = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": plain(device))


@pytest.mark.parametrize(
    "own",
    [[], ["train.gradient_checkpointing=true"], [*STUDENT_LORA, "train.micro_batch_size=4"], ["train.zero_stage=1"]],
)
def test_deepspeed_on_cuda_computes_in_bfloat16_as_the_plain_engine_does(
    tiny_teacher, one_process, autocast_as_on_cuda, own
):
    """DeepSpeed turns autocast off around its module where CUDA's is on: the module has to enter it itself."""
    more = ['train.precision="bfloat16"', "method.lora_guidance=false", "student.learning_rate=1e-3"]
    clip = Clip.load("shapes")
    more += ["train.clip_weight=1.0", "train.clip_margin=2.0", *own]
    plain, sharded = (
        make(tiny_teacher, *more, clip=clip),
        make(tiny_teacher, *more, make=engines.build_deepspeed_engine, clip=clip),
    )
    seen = []
    for part in (sharded.engines.student.module.model, sharded.engines.teachers.model):
        for layer in (part.conv_in, part.conv_out):
            layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    for expected, actual in zip(steps(plain, 3), steps(sharded, 3), strict=True):
        assert actual == pytest.approx(expected, rel=2e-2)
        assert actual["vsd_gradient_rms"] > 0
    assert {output for _, output in seen[::2]} == {torch.bfloat16}, "the first layers"
    assert {output for _, output in seen[1::2]} == {torch.float32}, "the output layers"


def test_checkpointed_gradients_are_the_same(teacher):
    plain, checkpointed = make(teacher), make(teacher, "train.gradient_checkpointing=true")
    assert steps(checkpointed, 2)[1] == pytest.approx(steps(plain, 2)[1], rel=1e-4)
    assert_same(plain, checkpointed)


def test_the_clip_loss_fades_to_nothing_and_does_not_turn(tiny_teacher):
    sets = ["train.clip_weight=1.0", "train.clip_margin=2.0", "train.steps=4"]
    distiller = make(tiny_teacher, *sets, clip=Clip.load("shapes"))
    losses = [distiller.step(step, PROMPTS)["loss_clip"] for step in (0, 2, 4, 6)]
    assert losses[0] > losses[1] > 0
    assert losses[2:] == [0.0, 0.0]


def counting_compiler(made):
    def compiler(graph, _):
        made.append(graph)
        return graph.forward

    return compiler


@pytest.mark.parametrize(("overrides", "graphs"), [([], 3), (["method.lora_shares_pass=true"], 4)])
def test_a_compiled_step_makes_its_graphs_once(tiny_teacher, overrides, graphs):
    """At most the student's, the teachers' without gradient and with it, and in a shared pass one without gradient of
    half the batch. Another scale of the negative prompt, a new random number in each step, makes no other graph.
    """
    torch._dynamo.reset()
    plain, compiled = make(tiny_teacher, *overrides), make(tiny_teacher, *overrides)
    made = []
    engines.compile_denoisers(compiled.engines.student.module, compiled.engines.teachers, counting_compiler(made))
    found = [compiled.step(0, PROMPTS)]
    first = len(made)
    assert 3 <= first <= graphs
    found += [compiled.step(step, PROMPTS) for step in range(1, 4)]
    assert len({metrics["scale"] for metrics in found}) == 4
    assert len(made) == first
    for one, other in zip(found, steps(plain, 4), strict=True):
        assert one["loss_student"] == pytest.approx(other["loss_student"], rel=1e-5)
        assert one["loss_lora_teacher"] == pytest.approx(other["loss_lora_teacher"], rel=1e-5)
    assert_same(compiled, plain)
