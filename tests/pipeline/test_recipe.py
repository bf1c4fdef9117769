import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.recipe import load, params, parse

NAMES = sorted(path.stem for path in recipe.RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_round_trips_through_dump(name):
    loaded = recipe.load(name)
    assert loaded.name == name
    assert recipe.parse(recipe.dump(loaded)) == loaded


def test_overrides_of_every_type(tmp_path):
    loaded = recipe.load(
        "shapes",
        [
            "seed=7",
            "teacher=/some/folder",
            'train.clip_model=""',
            "train.cpus_per_worker=2",
            "prompts.avoid_contradictions=false",
            "method.guidance_range=[1, 2.5]",
            'lora_teacher.target_modules=["to_k"]',
        ],
    )
    assert (loaded.seed, loaded.teacher, loaded.train.clip_model) == (7, "/some/folder", "")
    assert loaded.train.cpus_per_worker == 2.0
    assert loaded.prompts.avoid_contradictions is False
    assert loaded.method.guidance_range == (1.0, 2.5)
    assert loaded.lora_teacher.target_modules == ("to_k",)
    file = tmp_path / "own.toml"
    file.write_text(recipe.dump(loaded))
    assert recipe.load(str(file)) == loaded


@pytest.mark.parametrize(("micro_batch_size", "expected"), [(0, 1), (1, 6), (2, 3), (4, 2), (5, 2), (6, 1)])
def test_gradient_accumulation_takes_the_fewest_passes_that_the_micro_batch_size_allows(micro_batch_size, expected):
    parsed = recipe.parse(
        "", ["train.batch_size=24", "train.num_workers=4", f"train.micro_batch_size={micro_batch_size}"]
    )
    assert parsed.count_gradient_accumulation_steps(4) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=-1", "train.batch_size: got -1; expected a number above 0."),
        ("train.batch_size=1", "train.batch_size: got 1; expected at least one image per worker, 2."),
        ("train.min_workers=3", "train.min_workers: got 3; expected at most train.num_workers, 2."),
        ("train.steps=0", "train.steps: got 0; expected a number above 0."),
        ("regression.start_steps=5", "regression.start_steps: got 5; expected 0 with regression.weight = 0."),
        (
            "method.final_guidance_range=[2.0]",
            "method.final_guidance_range: got [2.0]; expected two numbers, 0 <= low <= high.",
        ),
        ("train.steps=1.5", "train.steps: got 1.5; expected a whole number."),
        ("train.steps=many", "train.steps: got 'many'; expected a whole number."),
        ("train.steps=true", "train.steps: got True; expected a whole number."),
        ("train.clip_weight=true", "train.clip_weight: got True; expected a number."),
        ("train.clip_weight=nan", "train.clip_weight: got nan; expected a finite number."),
        ("train.clip_weight=1979-05-27", "train.clip_weight: got '1979-05-27'; expected a number."),
        ("train.zero_stage=4", "train.zero_stage: got 4; expected 0, 1, 2 or 3."),
        (
            "train={zero_stage=0, offload_optimizer=true}",
            "train.offload_optimizer: got True; expected False in zero_stage 0. Set train.zero_stage = 1, 2 or 3.",
        ),
        (
            "train={zero_stage=0, overlap_comm=true}",
            "train.overlap_comm: got True; expected False in zero_stage 0. Set train.zero_stage = 1, 2 or 3.",
        ),
        (
            "train.offload_parameters=true",
            "train.offload_parameters: got True; expected False in zero_stage 2. Set train.zero_stage = 3.",
        ),
        (
            "train={zero_stage=3, compile=true}",
            "train.compile: got True; expected False in zero_stage 3. Set train.zero_stage = 0, 1 or 2.",
        ),
        ("train.gpu=P100", "train.gpu: got 'P100'; expected A100-40GB, A100-80GB, H100, H200, B200."),
        ("student.ema_decay=1.0", "student.ema_decay: got 1.0; expected a number below 1."),
        ("prompts.avoid_contradictions=1", "prompts.avoid_contradictions: got 1; expected true or false."),
        ("prompts.sources=[]", "prompts.sources: got []; expected at least one entry."),
        ("prompts.sources=[{path='shapes'}, {path='a'}]", 'prompts.sources: got "shapes" beside others; expected'),
        ("prompts.filters.min_tokens=-1", "prompts.filters.min_tokens: got -1; expected 0 or more."),
        ("teacher=3", "teacher: got 3; expected a string."),
        ("name=''", "name: got ''; expected a name that matches ^[A-Za-z0-9]"),
        ("method.scale_range=[1, 0]", "method.scale_range: got [1.0, 0.0]; expected two numbers, 0 <= low <= high."),
        ("method.scale_range=[1]", "method.scale_range: got [1]; expected a list of another length."),
        ("method.scale_range=1", "method.scale_range: got 1; expected a list."),
        ("method.speed=1", "method.speed: got 1; expected one of the fields negative_on_student, "),
        ("method.null_text_probability=1.5", "method.null_text_probability: got 1.5; expected 0 to 1."),
        ("evaluation.scales=[0.5, 0]", "evaluation.scales[1]: got 0; expected a number above 0."),
        ("evaluation.scales=[]", "evaluation.scales: got []; expected at least one entry."),
        ("evaluation.metrics=[{kid=1}]", "evaluation.metrics[0].kid: got 1; expected one of the fields kind, weights"),
        ("promotion.guardrails=[{}]", "promotion.guardrails[0].metric: got None; expected a value."),
        ("promotion.confidence=1", "promotion.confidence: got 1; expected a number below 1."),
        ("schedule.cron=daily", "schedule.cron: got 'daily'; expected five fields: minute hour"),
        ("student.lora_target_modules=[]", "student.lora_target_modules: got []; expected at least one entry."),
        (
            "lora_teacher.target_modules=['']",
            "lora_teacher.target_modules[0]: got ''; expected a string that is not empty.",
        ),
        ("train.speed=1", "train.speed: got 1; expected one of the fields steps, batch_size"),
        ("sped.up=1", "sped: got {'up': 1}; expected one of the fields name, seed, teacher"),
        ("train=5", "train: got 5; expected a section with fields."),
        ("seed.more=1", "--set: got 'seed.more'; expected a field of a recipe."),
        ("train.steps", "--set: got 'train.steps'; expected section.field=value."),
    ],
)
def test_an_invalid_value_is_reported_in_one_line(override, message):
    with pytest.raises(UserError) as caught:
        recipe.parse("seed = 1", [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_first_stages_leave_steps_for_eq_6():
    stages = ["regression.weight=1", "regression.start_steps=6", "lora_teacher.warm_up_steps=4", "train.steps=10"]
    with pytest.raises(UserError, match=r"start_steps \+ lora_teacher.warm_up_steps: got 10; expected less than train"):
        recipe.parse("", stages)
    assert recipe.parse("", [*stages, "train.steps=11"]).first_vsd_step == 10


def test_a_cold_start_cannot_be_compiled():
    with pytest.raises(UserError, match="got 5; expected 0 with train"):
        recipe.parse("", ["method.cold_start_steps=5", "train.compile=true"])


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UserError, match=f"recipe: got 'nope'; expected one of {', '.join(NAMES)}, or the path"):
        recipe.load("nope")


@pytest.mark.parametrize(
    ("content", "message"), [(b"seed = = 1", "not valid TOML"), (b'name = "\xff"', "not UTF-8 text")]
)
def test_a_malformed_file_is_named(tmp_path, content, message):
    file = tmp_path / "own.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"own.toml: {message}"):
        recipe.load(str(file))


@pytest.mark.parametrize(
    ("root", "path", "resolved"),
    [
        ("", "laion/*.parquet", "laion/*.parquet"),
        ("s3://b/prompts/", "laion/*.parquet", "s3://b/prompts/laion/*.parquet"),
        ("s3://b/prompts", "/data/x.txt", "/data/x.txt"),
        ("s3://b/prompts", "s3://c/x.txt", "s3://c/x.txt"),
        ("s3://b/prompts", "shapes", "shapes"),
    ],
)
def test_relative_source_paths_are_resolved_below_the_root(root, path, resolved):
    prompts = recipe.parse("", [f"prompts.sources=[{{path='{path}'}}]", f"prompts.root='{root}'"]).prompts
    assert prompts.resolve(path) == resolved
    assert prompts.node_local_paths == ([resolved] if resolved == "laion/*.parquet" else [])


def test_a_recipe_inherits_unset_fields_from_its_base(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "sd21"\nname = "mine"\n[train]\nsteps = 5\n')
    (tmp_path / "hers.toml").write_text('base = "mine.toml"\nname = "hers"\n[evaluation]\nscales = [2.0]\n')
    paper, loaded = recipe.load("sd21"), recipe.load(str(tmp_path / "hers.toml"))
    assert (loaded.name, loaded.train.steps, loaded.evaluation.scales) == ("hers", 5, (2.0,))
    assert loaded.train.batch_size == paper.train.batch_size
    assert loaded.prompts == paper.prompts


def test_a_recipe_that_is_its_own_base_is_rejected(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "mine.toml"\n')
    with pytest.raises(
        UserError, match=r"base: got 'mine.toml'; expected a recipe's name or .toml file, at most 8 deep"
    ):
        recipe.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", ["sd15", "sd21", "pixart"])
def test_the_paper_recipes_match_table_6(name):
    loaded = recipe.load(name)
    steps, batch, guidance = {"sd15": (60000, 64, 4.0), "sd21": (40000, 64, 4.0), "pixart": (50000, 32, 3.0)}[name]
    assert (loaded.train.steps, loaded.train.batch_size, loaded.method.guidance_range) == (
        steps,
        batch,
        (0.5, guidance),
    )
    assert (loaded.student.learning_rate, loaded.lora_teacher.rank, loaded.train.num_workers) == (1e-6, 64, 4)


def test_a_run_s_name_and_note_say_what_its_recipe_changes():
    assert params.format_run_name(load("shapes", ["notify.url='http://hook'"])) == "shapes"
    assert params.format_note(load("shapes")) == ""
    changed = load("shapes", ["train.steps=50", "student.learning_rate=0.5"])
    assert params.list_changes(changed) == {"student.learning_rate": "0.5", "train.steps": "50"}
    assert params.format_run_name(changed) == "shapes, learning_rate=0.5, steps=50"
    note = "Differs from the recipe `shapes` in:\n\n- `student.learning_rate` = `0.5`\n- `train.steps` = `50`"
    assert params.format_note(changed) == note
    many = load("shapes", [*("train.steps=5", "train.batch_size=3", "seed=7", "resolution=64", "train.num_to_keep=9")])
    assert params.format_run_name(many) == "shapes, seed=7, resolution=64, steps=5, 2 more"
    own = parse("", ["name=mine", "seed=7"])
    assert (params.format_run_name(own), params.list_changes(own)) == ("mine", {"seed": "7"})
    assert params.format_note(own) == "Differs from the defaults in:\n\n- `seed` = `7`"
