"""The whole pipeline on one folder: prepare, distill, evaluate, register; each step resumes."""

from collections.abc import Callable
from contextlib import nullcontext

from pipeline.cleanup.run_cleanup import clean
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.summary_table import format_summary
from pipeline.notifications import report_failure
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
    session = start_ray_session(ray_address) if ray_address else nullcontext()
    with report_failure(recipe, tracking_uri) as report, session:
        log("prepare")
        prepare(recipe, run / "prompts", ray_address, log)
        log("distill")
        distilled = distill(recipe, run / "prompts", run / "distilled", tracking_uri, ray_address)
        report.mlflow_run = distilled.mlflow_run
        log("evaluate")
        summary = evaluate(
            run / "distilled", run / "prompts", run / "evaluation", tracking_uri, ray_address=ray_address
        )
        log(format_summary(summary))
        log("register")
        version = register_run(run / "distilled", run / "evaluation", run / "registered", tracking_uri)
    if not recipe.retention.keep_checkpoints:
        _clean(run, log)
    return version


def _clean(run: Folder, log: Callable[[str], None]) -> None:
    """Remove what a registered run no longer needs; the run is complete even if that fails."""
    try:
        log(clean(run))
    except UserError as error:
        log(f"retention.keep_checkpoints: nothing more was removed: {error}")
