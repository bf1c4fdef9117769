"""The request that a folder of prompts was prepared for, as its manifest keeps it; a different request is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from pipeline.errors import UserError
from pipeline.prompts import clean
from pipeline.prompts.input_files import InputFile
from pipeline.prompts.prompt_dataset import PromptRequest, PromptsManifest, SourceFile
from pipeline.recipe import Recipe
from pipeline.storage import Folder

INDEPENDENT = ("avoid_contradictions",)  # settings of prompts that only training reads


def build_request(recipe: Recipe, files: Sequence[InputFile], negatives: Sequence[InputFile]) -> PromptRequest:
    """Return the request that a recipe makes of the files found."""
    return PromptRequest(
        cleaning=0 if recipe.prompts.is_bundled else clean.VERSION,
        settings=_settings(recipe),
        files=tuple(files),
        negative_files=tuple(negatives),
    )


def _settings(recipe: Recipe) -> dict[str, JsonValue]:
    settings = {f"prompts.{name}": value for name, value in recipe.prompts.values().items() if name not in INDEPENDENT}
    teacher = {} if recipe.prompts.is_bundled else {"teacher": recipe.teacher, "revision": recipe.revision}
    return {**settings, "seed": recipe.seed, **teacher}


def count_new_files(folder: Folder, prepared: PromptsManifest, request: PromptRequest) -> int:
    """Return the number of files to add to a finished preparation; 0 if it is what is requested.

    Raises:
        UserError: where the folder holds something else.
    """
    held = prepared.request
    where = (
        f"as in {folder.uri}, which holds {prepared.prompts} prompts of {', '.join(prepared.sources)}. "
        f"Pass another --run, or remove {folder.uri}/manifest.json to prepare it again."
    )
    for name in {**held.settings, **request.settings}:
        got, expected = request.settings.get(name), held.settings.get(name)
        if got != expected:
            raise UserError(f"{name}: got {_format_value(got)}; expected {_format_value(expected)}, {where}")
    if held.cleaning != request.cleaning:
        raise UserError(f"prompts: got version {request.cleaning} of the cleaning; expected {held.cleaning}, {where}")
    return _count_added("prompts.sources", held.files, request.files, where) + _count_added(
        "prompts.negatives", held.negative_files, request.negative_files, where
    )


def _count_added(name: str, held: Sequence[SourceFile], found: Sequence[SourceFile], where: str) -> int:
    now = [file.values() for file in found]
    if lost := [file.uri for file in held if file.values() not in now]:
        raise UserError(
            f"{name}: got {len(lost)} of {len(held)} files changed or gone, such as {lost[0]!r}; "
            f"expected them unchanged, {where}"
        )
    return len(found) - len(held)


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_format_value, value))
    if isinstance(value, Mapping):
        given = {name: item for name, item in value.items() if item not in ("", None)}
        return repr(given["path"]) if set(given) == {"path", "weight"} and given["weight"] == 0 else str(given)
    return repr(value)
