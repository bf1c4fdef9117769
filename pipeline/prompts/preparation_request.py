"""Comparison of a request for prompts with the one that a folder was prepared for; a different request is an error."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from pipeline.errors import UserError
from pipeline.prompts import file_cleaning
from pipeline.prompts.prompt_dataset import PromptRequest, PromptsManifest
from pipeline.prompts.source_files import SourceFile
from pipeline.recipe import Recipe
from pipeline.storage import Folder

TRAINING_ONLY = ("avoid_contradictions",)  # settings that preparation does not read


def build_request(recipe: Recipe, files: Sequence[SourceFile], negatives: Sequence[SourceFile]) -> PromptRequest:
    """Return the request of a recipe and the files of its sources."""
    return PromptRequest(
        cleaning=0 if recipe.prompts.is_bundled else file_cleaning.VERSION,
        settings=_collect_settings(recipe),
        files=tuple(files),
        negative_files=tuple(negatives),
    )


def _collect_settings(recipe: Recipe) -> dict[str, JsonValue]:
    settings = {
        f"prompts.{name}": value for name, value in recipe.prompts.to_dict().items() if name not in TRAINING_ONLY
    }
    teacher = {} if recipe.prompts.is_bundled else {"teacher": recipe.teacher, "revision": recipe.revision}
    return {**settings, "seed": recipe.seed, **teacher}


def count_added_files(folder: Folder, prepared: PromptsManifest, request: PromptRequest) -> int:
    """Return the number of files to add to a finished preparation; 0 if it is what is requested.

    Raises:
        UserError: if the folder was prepared for another request.
    """
    earlier = prepared.request
    location = (
        f"as in {folder.uri}, which holds {prepared.prompts} prompts of {', '.join(prepared.sources)}. "
        f"Pass another --run, or remove {folder.uri}/manifest.json to prepare it again."
    )
    for name in {**earlier.settings, **request.settings}:
        got, expected = request.settings.get(name), earlier.settings.get(name)
        if got != expected:
            raise UserError(f"{name}: got {_format_setting(got)}; expected {_format_setting(expected)}, {location}")
    if earlier.cleaning != request.cleaning:
        raise UserError(
            f"prompts: got version {request.cleaning} of the cleaning; expected {earlier.cleaning}, {location}"
        )
    return _count_added("prompts.sources", earlier.files, request.files, location) + _count_added(
        "prompts.negatives", earlier.negative_files, request.negative_files, location
    )


def _count_added(field: str, earlier: Sequence[SourceFile], files: Sequence[SourceFile], location: str) -> int:
    present = set(files)
    if changed := [file.uri for file in earlier if file not in present]:
        raise UserError(
            f"{field}: got {len(changed)} of {len(earlier)} files changed or missing, such as {changed[0]!r}; "
            f"expected them unchanged, {location}"
        )
    return len(files) - len(earlier)


def _format_setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_format_setting, value))
    if isinstance(value, Mapping):
        given = {name: item for name, item in value.items() if item not in ("", None)}
        return repr(given["path"]) if set(given) == {"path", "weight"} and given["weight"] == 0 else str(given)
    return repr(value)
