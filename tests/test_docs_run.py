"""Every command and Python snippet of README.md and docs/*.md runs as documented, at its smallest size.

`RUN` says how a command is made small, `NOT_RUN` why one is not run; a command in neither fails. They run in a copy of
the checkout, on one tiny run of `make demo`. `test_docs.py` parses the commands of `jobs`;
`pipeline/cluster/test_docs_run.py` runs docs/cluster.md and docs/runbook.md on a cluster.
"""

import dataclasses
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from datasets_prep.benchmark_prompts import HPSV2_STYLES
from nasa.testing import TINY_PIPELINES
from pipeline import recipe

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STARTS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:time )?(?:python[\d.]*|make|pip|ray|mlflow|kubectl|helm|docker|free|du) ")
COMPLAINTS = re.compile(
    r"Traceback \(most recent call last\)|recompile_limit|recompile limit|torch\._dynamo hit|Graph break"
    r"|(?:User|Runtime|Resource)Warning"
)
TIMEOUT = 900
CPU_OPTIONS = "--set train.num_workers=1 --set train.steps=2 --set train.batch_size=4 --set prompts.negative_count=50"
SMALL_OPTIONS = (
    f"{CPU_OPTIONS} --set evaluation.num_prompts=2 --set evaluation.teacher_prompts=0 --set evaluation.scales=[0.5]"
)
PAPER_OPTIONS = f"--recipe shapes --teacher teacher {SMALL_OPTIONS}"
ABLATION_OPTIONS = "--seeds 1 --steps 1 --warm-up-steps 1 --set train.batch_size=4 --set evaluation.num_prompts=16 "
ABLATION_OPTIONS += "--set evaluation.exclusion_seeds=24"
DEMO_OVERRIDES = {
    "train.steps": 4, "train.num_workers": 1, "train.batch_size": 4, "prompts.count": 200,
    "prompts.negative_draws": 100,
    "evaluation.num_prompts": 8, "evaluation.teacher_prompts": 2, "evaluation.exclusion_seeds": 24,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SmallRun:
    """A documented command at its smallest size.

    `extra` is appended, and `replacements` maps words to others. The documented commands in `prerequisites` run first.
    With `exact`, the page must hold every printed row. `expected` must be printed, and `exit_code` returned.
    """

    extra: str = ""
    replacements: dict[str, str] = dataclasses.field(default_factory=dict)
    prerequisites: tuple[str, ...] = ()
    exact: bool = False
    table: bool = False
    expected: str = ""
    exit_code: int = 0


OWN_TEACHER_COMMAND = "python -m jobs {} --teacher FOLDER --prompts my_prompts.txt --run runs/mine"
SD21_COMMAND = "python -m jobs {} --recipe sd21 --prompts prompts.txt --run runs/sd21"
CORPUS = {"/tmp/corpus": "corpus", "/tmp/prepared": "prepared"}
PREPARE_CORPUS = "python -m benchmarks.preparation run --data /tmp/corpus --keep /tmp/prepared"
CURVES = "OMP_NUM_THREADS=1 python -m benchmarks.convergence --curves --seconds"
SHORT_RUN = "python -m jobs run --set train.steps=50 --run runs/short"
PROMOTE_COMMAND = "python -m jobs models promote --name nasa-shapes --version 2"
RUN = {
    "python -m jobs": SmallRun(exit_code=2, expected="jobs on a Ray cluster:"),
    "python -m jobs <command>": SmallRun("--help", {"<command>": "distill"}),
    "python -m benchmarks.NAME": SmallRun("--help", {"NAME": "costs"}),
    "python -m benchmarks.ablation": SmallRun("--help"),
    **{f"python -m jobs {name}": SmallRun("--help") for name in ("models download", "run-scheduled")},
    "make demo": SmallRun(),
    "time make demo": SmallRun(),
    "python -m jobs run": SmallRun("--help"),
    OWN_TEACHER_COMMAND.format("prepare"): SmallRun(SMALL_OPTIONS, {"FOLDER": "teacher"}),
    OWN_TEACHER_COMMAND.format("distill"): SmallRun(
        SMALL_OPTIONS, {"FOLDER": "teacher"}, (OWN_TEACHER_COMMAND.format("prepare"),)
    ),
    "python -m jobs evaluate --run runs/mine": SmallRun(prerequisites=(OWN_TEACHER_COMMAND.format("distill"),)),
    "python -m jobs register --run runs/mine": SmallRun(
        prerequisites=("python -m jobs evaluate --run runs/mine",), expected="challenger"
    ),
    "python -m jobs models promote --name NAME --version 1": SmallRun(
        replacements={"NAME": "nasa-teacher"},
        prerequisites=("python -m jobs register --run runs/mine",),
        expected="is version 1",
    ),
    SHORT_RUN: SmallRun("--recipe tiny.toml --set train.steps=2"),
    'python -m jobs schedule add weekly --recipe shapes-full --cron "0 3 * * SUN" --timezone Europe/Berlin --store '
    "s3://BUCKET/schedules --tracking-uri http://MLFLOW:5000": SmallRun(replacements={"s3://BUCKET": "."}),
    "OMP_NUM_THREADS=1 python -m benchmarks.ablation --steps 80 --warm-up-steps 80 --seeds 9 "
    "--set evaluation.num_prompts=512 --docs docs": SmallRun(ABLATION_OPTIONS),
    "python -m benchmarks.rules runs/seed0/distilled runs/seed1/distilled runs/seed2/distilled": SmallRun(
        "--seeds 12", {f"runs/seed{number}": "runs/demo" for number in range(3)}
    ),
    "python -m benchmarks.costs": SmallRun(exact=True),
    "python -m jobs distill --recipe NAME --dry-run": SmallRun(replacements={"NAME": "sd15"}, expected="GPU hours"),
    SD21_COMMAND.format("prepare"): SmallRun(PAPER_OPTIONS),
    f"{SD21_COMMAND.format('distill')} --dry-run": SmallRun(expected="not ready: "),
    SD21_COMMAND.format("distill"): SmallRun(PAPER_OPTIONS, prerequisites=(SD21_COMMAND.format("prepare"),)),
    "python -m benchmarks.rounding": SmallRun(exact=True, table=True),
    "OMP_NUM_THREADS=1 python -m benchmarks.expected_curves --seeds 6": SmallRun("--help"),
    "OMP_NUM_THREADS=1 python -m benchmarks.epsilon_twin --seconds 60 --seeds 2": SmallRun("--help"),
    "OMP_NUM_THREADS=1 python -m benchmarks.convergence --seconds 60 --seeds 6": SmallRun(
        "--seconds 1 --seeds 1 --lever small train.batch_size=4 --out convergence.json", expected="s to 0.7"
    ),
    'OMP_NUM_THREADS=1 python -m benchmarks.convergence --seconds 60 --seeds 3 --lever "1 step" method.student_steps=1 '
    '--lever "2 steps" method.student_steps=2 --lever "4 steps" method.student_steps=4 '
    '--lever "1 step, 3 LoRA updates" method.lora_updates=3 --out docs/data/few_steps.json': SmallRun(
        "--seconds 1 --seeds 1 --out few_steps.json", expected="s to 0.7"
    ),
    **{
        f"{CURVES} {lever} --out docs/data/convergence_start.json": SmallRun(
            "--seconds 1 --seeds 1 --out curves.json", expected="seed 0: "
        )
        for lever in (
            '16 --seeds 4 --lever "VSD and regression" regression.weight=0.3',
            '40 --seeds 4 --lever "VSD alone, both teachers guided" regression.weight=0 method.lora_guidance=true',
        )
    },
    "OMP_NUM_THREADS=1 python -m benchmarks.flow_teachers --teacher sana --minutes 52": SmallRun("--help"),
    "OMP_NUM_THREADS=1 python -m benchmarks.flow_teachers --teacher sd3 --minutes 52": SmallRun("--help"),
    "OMP_NUM_THREADS=1 python -m benchmarks.flow_teachers --teacher sd3 --minutes 22 --restart": SmallRun("--help"),
    "OMP_NUM_THREADS=1 python -m benchmarks.flow_students --teacher sana --settings": SmallRun("--help"),
    "OMP_NUM_THREADS=1 python -m benchmarks.flow_students --seconds 75 --seeds 3": SmallRun("--help"),
    "python -m benchmarks.flow_students --recorded": SmallRun("--image students.png", exact=True),
    "python -m benchmarks.flow_students --recorded --settings": SmallRun(exact=True),
    "OMP_NUM_THREADS=1 python -m benchmarks.frontier --seconds 60 --seeds 1": SmallRun("--help"),
    "python -m benchmarks.frontier --recorded": SmallRun("--image frontier.png", exact=True),
    "OMP_NUM_THREADS=1 python -m benchmarks.family_steps": SmallRun("--steps 1", expected="| wan |"),
    "python -m pipeline.recipe.reference": SmallRun(exact=True),
    "python -m benchmarks.distillation --check": SmallRun("--batch 4", expected="largest relative difference"),
    "OMP_NUM_THREADS=1 python -m benchmarks.distillation --threads 1 --rounds 15 --rows plain shared compiled both": (
        SmallRun("--batch 4 --rounds 3 --compiler eager", table=True)
    ),
    "python -m benchmarks.distillation --threads 1 --memory baseline": SmallRun("--batch 4", expected="MiB"),
    "python -m benchmarks.gpu --device cpu --sizes tiny --batch 2 --toy-steps 5 --out gpu.json": SmallRun(
        expected="steer tiny"
    ),
    "python -m benchmarks.gpu_step --size tiny --device cpu --batch 4 --no-bfloat16 --rows ours shared": SmallRun(
        "--rounds 1 --out step.json", expected="denoiser_share"
    ),
    "python -m jobs extract-lora STUDENT TEACHER --rank 64 --out FOLDER": SmallRun(
        replacements={"STUDENT": "runs/demo/distilled/student", "TEACHER": "shapes", "FOLDER": "lora"},
        expected="relative error of the layers",
    ),
    "python -m jobs merge-students FIRST SECOND --out FOLDER": SmallRun(
        replacements={"FIRST": "runs/demo/distilled/student", "SECOND": "runs/demo/distilled/student-raw"}
    ),
    "python -m jobs evaluate --run runs/demo": SmallRun(),
    "python -m jobs compare runs/demo runs/other": SmallRun(replacements={"runs/other": "runs/demo"}),
    "python -m jobs prepare-benchmarks --run runs/sd21 --hpsv2 FOLDER --negopt FILE": SmallRun(
        "--pairs 20", {"FOLDER": "HPDv2/benchmark", "FILE": "negopt.parquet"}
    ),
    "python -m jobs prepare-benchmarks --negopt negopt.parquet --hpsv2 HPDv2/benchmark --run runs/sd21": SmallRun(
        "--pairs 20"
    ),
    "python -m benchmarks.flops": SmallRun('--only "Stable Diffusion 1.5"', exact=True),
    "OMP_NUM_THREADS=1 python -m benchmarks.wall_clock --width 320 --side 32 --rounds 7": SmallRun(
        "--width 16 --side 8 --rounds 1"
    ),
    "python -m benchmarks.wall_clock --side 32 --rounds 40": SmallRun("--width 16 --side 8 --rounds 1"),
    "python -m benchmarks.gallery runs/demo/distilled": SmallRun("--seeds 16"),
    "python -m jobs k8s-manifest RayJob --recipe sd21 --run s3://BUCKET/runs/first "
    "--image REGISTRY/nasa-distill:$TAG --gpus-per-node 4 --set prompts.root=s3://BUCKET/prompts "
    "--set evaluation.benchmarks=s3://BUCKET/benchmarks "
    "> rayjob.yaml": SmallRun(),
    "python -m jobs k8s-manifest RayJob --recipe sd21 --name sd21-second --run s3://BUCKET/runs/second --image "
    "REGISTRY/nasa-distill:$TAG --gpus-per-node 4 --set prompts.root=s3://BUCKET/prompts --set "
    "evaluation.benchmarks=s3://BUCKET/benchmarks > second.yaml": SmallRun(),
    "python -m jobs k8s-manifest RayCronJob --recipe sd21 --run s3://BUCKET/schedules/weekly --image "
    "REGISTRY/nasa-distill:$TAG --set prompts.root=s3://BUCKET/prompts --set "
    'evaluation.benchmarks=s3://BUCKET/benchmarks --gpus-per-node 4 --cron "0 3 * * SUN" --timezone Europe/Berlin '
    "> raycronjob.yaml": SmallRun(),
    "python -m jobs k8s-manifest RayCluster --recipe sd21 --run s3://BUCKET/runs/first --image "
    "REGISTRY/nasa-distill:$TAG --gpus-per-node 4 > raycluster.yaml": SmallRun(),
    "python -m jobs k8s-manifest CronJob --recipe sd21 --run s3://BUCKET/schedules/weekly --image "
    "REGISTRY/nasa-distill:$TAG --set prompts.root=s3://BUCKET/prompts --set "
    'evaluation.benchmarks=s3://BUCKET/benchmarks --cron "0 3 * * SUN" --timezone Europe/Berlin '
    "> cronjob.yaml": SmallRun(),
    "python -m jobs k8s-manifest RayJob --recipe sd21 --run s3://BUCKET/runs/first --image "
    "REGISTRY/nasa-distill:$TAG --gpus-per-node 4 --set prompts.root=s3://BUCKET/prompts --set "
    "evaluation.benchmarks=s3://BUCKET/benchmarks --queue team-a --priority-class night > queued.yaml": SmallRun(),
    "python -m benchmarks.joint_attention --work runs/joint --threads 1": SmallRun("--steps 2 --seeds 16 --prompts 16"),
    "python -m jobs prepare --recipe sd21 --prompts journeydb/train_anno_realease_repath.jsonl.tgz --prompts "
    '"laion/*.parquet" --run runs/sd21': SmallRun(
        "--teacher teacher --run runs/sources --set prompts.negative_count=50"
    ),
    "python -m benchmarks.cleaning FILE --show 20": SmallRun(replacements={"FILE": "prompts.txt"}),
    "python -m benchmarks.cleaning tests/data/english/wordnet.txt.gz": SmallRun(expected="42,730"),
    PREPARE_CORPUS: SmallRun(replacements=CORPUS, expected="a second time: 0."),
    "python -m benchmarks.prompt_stream --prompts /tmp/prepared/prompts": SmallRun(
        "--rounds 1", CORPUS, (PREPARE_CORPUS,), expected="the stream"
    ),
    "python -m jobs register --run runs/demo": SmallRun(expected="nasa-shapes"),
    "python -m jobs models": SmallRun(expected="nasa-shapes"),
    PROMOTE_COMMAND: SmallRun(prerequisites=(SHORT_RUN,), expected="the champion is version 2, no longer 1"),
    "python -m jobs models rollback --name nasa-shapes": SmallRun(
        prerequisites=(PROMOTE_COMMAND,), expected="is version 1 again"
    ),
    "python -m jobs models download --name nasa-shapes --out champion": SmallRun(
        expected="its pipeline is in champion/student"
    ),
    "python -m jobs models download --name nasa-sd21 --format comfyui --out for-comfyui": SmallRun(
        replacements={"nasa-sd21": "nasa-shapes"}, exit_code=2, expected="cross_attention_dim 96; expected 768"
    ),
    "python -m jobs distill --run runs/demo": SmallRun("--recipe tiny.toml", expected="already distilled"),
    **{f"python -m jobs {name}": SmallRun("--help") for name in ("generate", "serve")},
    "python -m jobs generate --model models:/nasa-shapes@champion --prompts my_prompts.txt --out runs/images": SmallRun(
        expected="generated 60 of 60 images"
    ),
    "python -m benchmarks.chaos --table --results docs/data/chaos.jsonl": SmallRun(exact=True),
    "OMP_NUM_THREADS=1 python -m benchmarks.scaling --steps 10 --rounds 3": SmallRun(
        "--workers 2 --images 2 --steps 1 --rounds 1"
    ),
    "python -m benchmarks.scaling --extrapolate sd21": SmallRun(exact=True),
    "python -m jobs k8s-manifest RayService --recipe sd21 --image REGISTRY/nasa-distill:$TAG > rayservice.yaml": (
        SmallRun()
    ),
    "python -m benchmarks.serving table": SmallRun(exact=True),
    "python -m benchmarks.serving speed": SmallRun(
        "--rounds 1 --images 32 --out serving.json", expected="server against the loop"
    ),
    "python -m benchmarks.serving chaos --minutes 10": SmallRun("--minutes 0.2 --out serving.json", expected="wrong"),
    "python -m benchmarks.serving hostile --requests 10000": SmallRun(
        "--requests 100 --out serving.json", expected="answers 500"
    ),
}
NOT_RUN = {  # by the beginning of a command
    "make test": "the tests themselves",
    "make test-slow": "the tests themselves",
    "make chaos": "an hour of kills; tests/benchmarks/test_chaos.py tests its parts",
    **dict.fromkeys(
        ("make demo RECIPE=shapes-full", "python -m jobs run --recipe shapes-full"), "half an hour; the demo is run"
    ),
    "ln -s": "a checkout of ComfyUI",
    "COMFYUI_PATH=../ComfyUI": "a checkout of ComfyUI; tests/integrations has the rest",
    **dict.fromkeys(("make serve", "python -m jobs serve"), "a server; tests/pipeline/serving starts one"),
    **dict.fromkeys(("make ui", "python -m http.server"), "a server, which runs until it is ended"),
    "make docs": "tests/test_site.py builds the site",
    "make gpu": "a GPU",
    "make gpu-wheels": "a network: it downloads wheels",
    "time make test": "the tests themselves",
    "free -m": "no command of ours",
    "du -sh": "no command of ours",
    "source .venv/bin/activate": "the environment is there",
    "python -m jobs distill --recipe mine.toml": "the reader's recipe; tests/pipeline/test_recipe.py inherits",
    "python3.11 -m venv": "a network: it installs",
    ".venv/bin/pip install": "a network: it installs",
    **dict.fromkeys(("pip install .", "pip wheel"), "tests/test_wheel.py builds the wheel and imports it"),
    "pip install": "a network: it installs",
    "mlflow server": "PostgreSQL and S3; runs until it is ended",
    **dict.fromkeys(("export", "TAG=$(git", "CLUSTER=$(kubectl"), "sets a variable"),
    **dict.fromkeys(
        [
            f"python -m jobs {name}"
            for name in ("submit", "list", "status", "logs", "stop", "schedule", "scheduler", "run-scheduled", "clean")
        ],
        "a Ray cluster; tests/pipeline/cluster/test_docs_run.py has one",
    ),
    "python -m jobs generate --model models:/nasa-sd21@champion": "a Ray cluster with GPUs",
    **dict.fromkeys(
        ("mlflow models serve", "mlflow models generate-dockerfile", "mlflow models build-docker", "curl"),
        "MLflow's own server; tests/pipeline/registry/test_mlflow_server.py has it",
    ),
    "python -m jobs models rollback --name nasa-sd21": "a cluster's registry; as above",
    "python -m jobs train-shapes": "80 minutes; test_training_loop.py tests its training",
    "python -m benchmarks.gpu_step --size sd21": "a GPU",
    "python -m benchmarks.hpsv2 --golden": "HPSv2's weights, 4 GB",
    "OMP_NUM_THREADS=1 python -m benchmarks.hpsv2": "a checkpoint of HPSv2's size, 4 GB",
    "OMP_NUM_THREADS=1 peer/bin/python": "hpsv2x in an environment of its own",
    "python -m jobs evaluate-video": "VBench's weights; tests/pipeline/evaluation has it at small width",
    "python -m benchmarks.preparation generate": "wordfreq, which the environment does not have",
    "python -m benchmarks.preparation baseline": "datasketch and pandas, which are not in the lock",
    **dict.fromkeys(("kubectl", "helm", "docker", "sed"), "a Kubernetes cluster, or a registry of images"),
    "ray": "a cluster",
    "python -m pytest -m slow -s tests/test_cluster_launch.py": "root and an ssh server; itself a test",
    "sbatch": "Slurm; tests/test_deploy_slurm.py runs the script with recorded calls",
}


def find_blocks(page):
    """Yield the commands of each code block and inline code, the text that follows, and whether it is a block."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        if not match[1]:
            lines = match[2].replace("\\\n", " ").splitlines()
            yield [normalise_command(line) for line in lines if line.strip()], read_following_text(text, match), True
    prose = FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    for match in re.finditer(r"`([^`]+)`", prose):
        if STARTS.match(match[1]):
            yield [normalise_command(match[1])], read_following_text(text, match), False


def read_following_text(text, match):
    """Return the text between a command and the next block or heading."""
    return re.split(r"^(?:```|##+ )", text[match.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def normalise_command(line):
    return " ".join(re.sub(r"\s+#.*", "", line).split())


def parse_table(text):
    """Return the header and the rows of the first table whose columns have names."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return next(((head, split) for head in split if all(head)), ([], [])) if lines else ([], [])


COMMANDS = {}  # command: its page, whether a table that follows belongs to it alone, and the text that follows
for _page in PAGES:
    for _lines, _after, _block in find_blocks(_page):
        for _line in _lines:
            if _line not in COMMANDS or _block:
                COMMANDS[_line] = (_page.name, _block and len(_lines) == 1, _after)


def find_reason(line):
    """Return why a command is not run, or an empty string."""
    starts = [key for key in NOT_RUN if line == key or line.startswith(f"{key} ")]
    return NOT_RUN[max(starts, key=len)] if starts else ""


def build_environment(python=sys.executable):
    overrides = {"PATH": f"{Path(python).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return {**{key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}, **overrides}


def run_shell(text, folder, python=sys.executable):
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=build_environment(python), capture_output=True, text=True, timeout=TIMEOUT
    )


def write_inputs(folder, teacher):
    """Write the files that the pages name, with few rows."""
    shutil.copytree(teacher, folder / "teacher")
    colours = ("red", "blue", "green", "golden", "silver", "purple", "brown", "white")
    animals = ("fox", "owl", "horse", "whale", "beetle", "crane", "salmon", "tiger")
    combinations = itertools.product(colours, animals, ("harbour", "forest", "kitchen", "desert"))
    texts = [
        f"A {colour} {animal} waits in the {location} beside number {n}"
        for n, (colour, animal, location) in enumerate(combinations)
    ]
    for name in ("prompts.txt", "my_prompts.txt"):
        (folder / name).write_text("\n".join(texts[:60]))
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts[:128])
    for name in ("journeydb", "laion", "corpus/journeydb", "corpus/laion", "HPDv2/benchmark"):
        (folder / name).mkdir(parents=True)
    with gzip.open(folder / "corpus/journeydb/train_anno_000.jsonl.gz", "wt") as file:
        file.write(rows)
    (folder / "rows.jsonl").write_text(rows)
    with tarfile.open(folder / "journeydb/train_anno_realease_repath.jsonl.tgz", "w:gz") as archive:
        archive.add(folder / "rows.jsonl", "rows.jsonl")
    columns = {"TEXT": texts[128:], **{name: [0.1] * 128 for name in ("punsafe", "pwatermark")}}
    for name in ("laion/part-00000.parquet", "corpus/laion/part-00000.parquet"):
        pq.write_table(pa.table({**columns, "AESTHETIC_SCORE": [6.0] * 128}), folder / name)
    pq.write_table(pa.table({"prompt": texts[:60], "negative_prompt": texts[60:120]}), folder / "negopt.parquet")
    for style in HPSV2_STYLES:
        (folder / "HPDv2/benchmark" / f"{style}.json").write_text(json.dumps([style] * 800))
    overrides = [f"{name}={value}" for name, value in DEMO_OVERRIDES.items()]
    (folder / "tiny.toml").write_text(recipe.dump(recipe.load("shapes", overrides)))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, tiny_teacher):
    """Return a copy of the checkout in which a small `make demo` has run, with the installed environment."""
    folder = tmp_path_factory.mktemp("checkout") / "nasa-distill"
    ignored = shutil.ignore_patterns(".git", ".venv", "venv", "runs", "build", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored)
    write_inputs(folder, tiny_teacher)
    result = run_shell(f"make demo VENV={sys.prefix} -o {sys.prefix}/installed RECIPE=tiny.toml", folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, {"make demo": result}


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory, checkout):
    """Return another folder with the same `runs`, and a Python into which the Makefile installed the library."""
    folder, venv = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("venv")
    (folder / "runs").symlink_to(checkout[0] / "runs")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "shared.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.endswith(" -e ."))
    python = venv / "bin/python"
    result = run_shell(line.strip().replace("$(BIN)/pip", f"{python} -m pip"), checkout[0], python)
    assert result.returncode == 0, result.stderr
    frozen = run_shell(f"{python} -m pip freeze --exclude-editable", folder, python).stdout
    assert "nasa" not in frozen, "`make lock` leaves it out"
    return folder, python


def run_documented_command(line, checkout):
    """Run a documented command after its prerequisites, once per session."""
    folder, results = checkout
    if line.removeprefix("time ").startswith("make demo"):
        return results["make demo"]
    if line not in results:
        small = RUN[line]
        for prerequisite in small.prerequisites:
            assert run_documented_command(prerequisite, checkout).returncode == 0, prerequisite
        command_text, redirection, file = line.partition(" > ")
        for word, replacement in small.replacements.items():
            command_text = command_text.replace(word, replacement)
        results[line] = run_shell(f"{command_text} {small.extra}{redirection}{file}", folder)
    return results[line]


def test_every_command_is_run_or_has_a_reason():
    assert len(COMMANDS) > 80
    unexplained = [line for line in COMMANDS if line not in RUN and not find_reason(line)]
    assert not unexplained, unexplained
    missing = [line for line in RUN if line not in COMMANDS]
    assert not missing, f"no page has them any more: {missing}"
    unused = [key for key in NOT_RUN if not any(line == key or line.startswith(f"{key} ") for line in COMMANDS)]
    assert not unused, unused


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN, ids=[f"{COMMANDS.get(line, '?')[0]}: {line[:70]}" for line in RUN])
def test_a_documented_command_runs(line, checkout):
    small, (_, has_own_table, following_text) = RUN[line], COMMANDS[line]
    result = run_documented_command(line, checkout)
    output = result.stdout + result.stderr
    assert result.returncode == small.exit_code, output
    assert not (complaint := COMPLAINTS.search(output)), f"{complaint and complaint[0]}\n{output}"
    assert small.expected in output, output
    (head, rows), (documented_head, documented_rows) = parse_table(result.stdout), parse_table(following_text)
    if documented_head and (has_own_table or small.table):
        assert head, f"the page shows a table of {documented_head}, the command printed none:\n{output}"
    if head and documented_head and (has_own_table or small.table or small.exact):
        assert head == documented_head[: len(head)], "columns; the page may add some that explain"
    if small.exact:
        page_rows = [row[: len(head)] for row in documented_rows]
        assert all(row in page_rows for row in rows if set("".join(row)) != {"-"}), result.stdout
    if " > " in line:
        assert list(yaml.safe_load_all((checkout[0] / line.partition(" > ")[2]).read_text()))


EXTRACT_LORA = """
import subprocess, sys
from pathlib import Path
command = "-m jobs extract-lora runs/demo/distilled/student shapes --rank 8 --out runs/lora"
subprocess.run([sys.executable, *command.split()], cwd=Path("runs").resolve().parent, check=True)
"""
SNIPPETS = {  # (page, number): code before the snippet, replacements in it, and a check after it
    ("README.md", 0): ("", {}, "assert image.size == (64, 64)"),
    ("distillation.md", 0): (
        EXTRACT_LORA,
        {'"TEACHER"': '"runs/../pipeline/shapes/weights/teacher"', '"FOLDER"': '"runs/lora"'},
        "assert image.size == (64, 64)",
    ),
    ("mlflow.md", 0): ("", {}, "assert students"),
    ("notifications.md", 0): (
        "",
        {},
        "body = b'The quick brown fox jumps over the lazy dog'\n"
        "header = 'sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8'\n"
        "assert is_genuine(body, header, 'key') and not is_genuine(body + b'.', header, 'key')",
    ),
    ("negative-prompts.md", 0): ("", {'"..."': '"sdxl"', '.to("cuda")': ""}, "assert image.size"),
    ("negative-prompts.md", 1): (
        "from nasa.testing import TINY_PIPELINES\npipe = TINY_PIPELINES['wan']()",
        {'beach")': 'beach", height=32, width=32, num_frames=9, frames_per_block=1, max_sequence_length=16)'},
        "assert video.shape == (9, 32, 32, 3)",
    ),
    ("negative-prompts.md", 2): (
        "import nasa\nfrom nasa.testing import run_tiny_pipeline as run, tiny_stable_diffusion as tiny\npipe = tiny()",
        {'pipe("a photo")': 'run(pipe, "a photo")'},
        "",
    ),
    ("registry.md", 0): ("", {}, "assert images[0][:4] == b'\\x89PNG'"),
    ("registry.md", 1): ("", {}, "assert image.size == (64, 64)"),
}
DOCUMENTED_SNIPPETS = {
    (page.name, number): code
    for page in PAGES
    for number, code in enumerate(text for name, text in FENCE.findall(page.read_text()) if name == "python")
}


def test_every_snippet_is_run():
    assert DOCUMENTED_SNIPPETS.keys() == SNIPPETS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("key", SNIPPETS, ids=[f"{page} {number}" for page, number in SNIPPETS])
def test_a_snippet_runs_from_another_folder(key, elsewhere):
    folder, python = elsewhere
    preparation, replacements, check = SNIPPETS[key]
    code = DOCUMENTED_SNIPPETS[key]
    if key == ("negative-prompts.md", 0) and not (folder / "sdxl").exists():
        TINY_PIPELINES["sdxl"]().save_pretrained(folder / "sdxl")
    for word, replacement in replacements.items():
        assert word in code
        code = code.replace(word, replacement)
    (folder / "snippet.py").write_text(f"{preparation}\n{code}\n{check}\n")
    result = run_shell("python snippet.py", folder, python)
    assert result.returncode == 0, result.stderr
    assert not COMPLAINTS.search(result.stderr), result.stderr
