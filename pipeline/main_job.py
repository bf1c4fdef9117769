"""The whole main job on one folder: prepare, distill, evaluate, register; each step goes on where it was."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pipeline.evaluation.evaluate import evaluate
from pipeline.prompts.prepare import prepare
from pipeline.recipe import Recipe
from pipeline.registry.register import register_run
from pipeline.session import ray_session
from pipeline.storage import Folder
from pipeline.training.distill import distill


def run_pipeline(
    recipe: Recipe,
    run: Folder,
    tracking_uri: str,
    address: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Returns what registering said: model, version, alias, decision."""
    with ray_session(address) if address else nullcontext():
        say("prepare")
        prepare(recipe, run / "prompts", address, say)
        say("distill")
        distill(recipe, run / "prompts", run / "distilled", tracking_uri, address)
        say("evaluate")
        evaluate(run / "distilled", run / "prompts", run / "evaluation", tracking_uri, address=address)
        say("register")
        return register_run(run / "distilled", run / "evaluation", run / "registered", tracking_uri)
