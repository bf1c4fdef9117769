import pytest

from pipeline import recipe
from pipeline.errors import UserError

NAMES = sorted(path.stem for path in recipe.RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_and_its_dump_gives_it_back(name):
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
    own = tmp_path / "own.toml"
    own.write_text(recipe.dump(loaded))
    assert recipe.load(str(own)) == loaded


@pytest.mark.parametrize(("micro_batch_size", "expected"), [(0, 1), (1, 6), (2, 3), (4, 2), (5, 2), (6, 1)])
def test_a_step_s_images_are_shared_by_workers_and_passes(micro_batch_size, expected):
    parsed = recipe.parse(
        "", ["train.batch_size=24", "train.num_workers=4", f"train.micro_batch_size={micro_batch_size}"]
    )
    assert parsed.passes(4) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=-1", "train.batch_size: -1 is not allowed; allowed: a number above 0"),
        ("train.steps=0", "train.steps: 0 is not allowed; allowed: a number above 0"),
        ("train.steps=1.5", "train.steps: 1.5 is not allowed; allowed: a whole number"),
        ("train.steps=many", "train.steps: 'many' is not allowed; allowed: a whole number"),
        ("train.steps=true", "train.steps: True is not allowed; allowed: a whole number"),
        ("train.clip_weight=true", "train.clip_weight: True is not allowed; allowed: a number"),
        ("train.clip_weight=nan", "train.clip_weight: nan is not allowed; allowed: 0 or more"),
        ("train.zero_stage=3", "train.zero_stage: 3 is not allowed; allowed: 1 or 2"),
        ("student.ema_decay=1.0", "student.ema_decay: 1.0 is not allowed; allowed: at least 0 and below 1"),
        ("prompts.avoid_contradictions=1", "prompts.avoid_contradictions: 1 is not allowed; allowed: true or false"),
        ("teacher=3", "teacher: 3 is not allowed; allowed: a text"),
        ("method.scale_range=[1, 0]", "method.scale_range: [1, 0] is not allowed; allowed: two numbers, 0 <= low"),
        ("method.scale_range=[1]", "method.scale_range: [1] is not allowed; allowed: a list of"),
        ("method.scale_range=1", "method.scale_range: 1 is not allowed; allowed: a list of"),
        ("method.null_text_probability=1.5", "method.null_text_probability: 1.5 is not allowed; allowed: 0 to 1"),
        ("evaluation.scales=[0.5, 0]", "evaluation.scales: [0.5, 0] is not allowed; allowed: "),
        ("evaluation.scales=[]", "evaluation.scales: [] is not allowed; allowed: "),
        ("lora_teacher.target_modules=[]", "lora_teacher.target_modules: [] is not allowed; allowed: "),
        ("train.speed=1", "train.speed: no such field; allowed: steps, batch_size"),
        ("sped.up=1", "sped: no such field; allowed: name, seed, teacher"),
        ("train=5", "train: 5 is not allowed; it is a section with fields"),
        ("seed.more=1", "--set: 'seed.more' is no field of a recipe"),
        ("train.steps", "--set: 'train.steps' has no value; allowed: section.field=value"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(override, message):
    with pytest.raises(UserError) as caught:
        recipe.parse("seed = 1", [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UserError, match=f"recipe: 'nope' is not known; allowed: {', '.join(NAMES)}, or the path"):
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
    ("root", "path", "placed"),
    [
        ("", "laion/*.parquet", "laion/*.parquet"),
        ("s3://b/prompts/", "laion/*.parquet", "s3://b/prompts/laion/*.parquet"),
        ("s3://b/prompts", "/data/x.txt", "/data/x.txt"),
        ("s3://b/prompts", "s3://c/x.txt", "s3://c/x.txt"),
        ("s3://b/prompts", "shapes", "shapes"),
    ],
)
def test_sources_are_below_their_root_unless_they_stand_for_themselves(root, path, placed):
    prompts = recipe.parse("", [f"prompts.sources=[{{path='{path}'}}]", f"prompts.root='{root}'"]).prompts
    assert prompts.place(path) == placed
    assert prompts.of_one_machine == ([placed] if placed == "laion/*.parquet" else [])
