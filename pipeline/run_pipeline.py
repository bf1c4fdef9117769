"""The whole pipeline on one folder: prepare, distill, evaluate, register; each step resumes."""

from collections.abc import Callable
from contextlib import nullcontext

from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.summary_table import format_summary
from pipeline.prompts.prepare import prepare
from pipeline.ray_session import start_ray_session
from pipeline.recipe import Recipe
from pipeline.registry.register import register_run
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.storage import Folder
from pipeline.training.driver import distill


def run_pipeline(
    recipe: Recipe,
    run: Folder,
    tracking_uri: str,
    ray_address: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> RegisteredVersion:
    """Run every step and return the registered version."""
    with start_ray_session(ray_address) if ray_address else nullcontext():
        log("prepare")
        prepare(recipe, run / "prompts", ray_address, log)
        log("distill")
        distill(recipe, run / "prompts", run / "distilled", tracking_uri, ray_address)
        log("evaluate")
        summary = evaluate(
            run / "distilled", run / "prompts", run / "evaluation", tracking_uri, ray_address=ray_address
        )
        log(format_summary(summary))
        log("register")
        return register_run(run / "distilled", run / "evaluation", run / "registered", tracking_uri)
