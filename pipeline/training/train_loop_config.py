"""The configuration that the training driver passes to its workers and to the evaluation of checkpoints."""

from dataclasses import dataclass

from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class TrainLoopConfig:
    """Holds plain data for every worker. `init_folder` may be empty; `prompts` is the prepared folder's manifest.

    `cached_embeds` are the encoded texts of the previews, if the workers have no text encoder. `pairs_uri` is the
    folder of the regression's pairs, if the recipe has one.
    """

    recipe: Recipe
    teacher_folder: str
    init_folder: str
    prompts_uri: str
    prompts: PromptsManifest
    tracking_uri: str
    mlflow_run: str
    preview_prompts: tuple[str, ...] = ()
    cached_embeds: bytes = b""
    pairs_uri: str = ""
