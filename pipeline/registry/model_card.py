"""The model card of a version: use, scores, lineage and licence."""

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import TransientError
from pipeline.model_download import is_hub_id, query_hub
from pipeline.models import LORA_FILE
from pipeline.recipe import BUNDLED
from pipeline.registry.candidate import Candidate
from pipeline.registry.lora_use import LoraUse
from pipeline.registry.student_scores import Scores
from pipeline.storage import Folder

UNKNOWN = "unknown"
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
LICENCE_LINE = re.compile(r"^license(?:_name)?:\s*['\"]?([^'\"\s#]+)", re.MULTILINE)
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")


def render(
    candidate: Candidate, scores: Scores, name: str, options: Mapping[str, object], lora: LoraUse | None = None
) -> str:
    """Return Markdown with the hub's front matter; `options` are those of the pipeline's call."""
    recipe = candidate.recipe
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    known = find_licence(recipe.teacher, recipe.revision)
    page: str = environment.get_template("model_card.md.j2").render(
        candidate=candidate,
        recipe=recipe,
        scores=scores,
        name=name,
        licence=known,
        licence_tag=known.lower() if re.fullmatch(r"[\w.+-]+", known) and known != UNKNOWN else "other",
        bundled=recipe.teacher == BUNDLED,
        on_hub=is_hub_id(recipe.teacher),
        call=_join_items(options, "="),
        listed=_join_items,
        lora=lora,
        lora_file=LORA_FILE,
        comfyui_file=lora.comfyui_file if lora else "",
        steps=recipe.method.student_steps,
        video="num_frames" in options,
    )
    return page


def _join_items(values: Mapping[str, object], between: str = " ") -> str:
    return ", ".join(f"{key}{between}{value}" for key, value in values.items())


def find_licence(teacher: str, revision: str = "main") -> str:
    """Return the teacher's licence: from its README's front matter, else its licence file, else "unknown"."""
    if teacher == BUNDLED:
        return "Apache-2.0"
    if is_hub_id(teacher):
        return _read_hub_licence(teacher, revision)
    folder = Folder.from_uri(teacher)
    if folder.exists("README.md"):
        front = FRONT_MATTER.match(folder.read("README.md").decode(errors="replace"))
        match = LICENCE_LINE.search(front[1]) if front else None
        if match:
            return match[1]
    for file in LICENCE_FILES:
        if folder.exists(file):
            lines = folder.read(file).decode(errors="replace").split("\n")
            return f"{next((line.strip() for line in lines if line.strip()), UNKNOWN)} (its {file})"
    return UNKNOWN


def _read_hub_licence(teacher: str, revision: str) -> str:
    """Return the licence in the hub's metadata, if the hub answers."""
    try:
        metadata = query_hub(teacher, revision).card_data
    except TransientError:
        return UNKNOWN
    return str(getattr(metadata, "license", None) or UNKNOWN)
