"""Conversion of a command line to the job that runs it on a cluster."""

import argparse
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jobs import options as shared
from pipeline.errors import UserError, invalid
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.cluster.job_submission import Job

FOLDERS = ("run", "runs", "out", "store")
OF_RECIPE = ("recipe", "teacher", "prompts", "overrides", "cron", "timezone")  # options that the resolved recipe holds
ONCE = "once"  # the scheduled time of a job that does not recur


def build_job(options: argparse.Namespace, command: str, module: ModuleType) -> "Job":
    """Return the job of a command, with its recipe resolved here and its folders checked to be shared."""
    from pipeline.cluster.job_submission import Job
    from pipeline.recipe import dump

    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    recipe = shared.load_recipe(options) if getattr(options, "recipe", None) else None
    if recipe and "prompts" in actions:
        shared.require_shared_prompts(recipe)
    sent = recipe is not None and not options.in_image
    arguments: list[str] = []
    for dest, action in actions.items():
        value = getattr(options, dest)
        if dest in FOLDERS:
            _require_shared(action, value)
        if dest in ("ray_address", "job_server") or (sent and dest in OF_RECIPE):
            continue
        arguments += _format_arguments(
            action, shared.require_shared_tracking(value) if dest == "tracking_uri" else value
        )
    if "ray_address" in actions:
        arguments += ["--ray-address", "auto"]
    return Job(
        command,
        tuple(arguments),
        dump(recipe) if recipe and sent else None,
        name=recipe.name if recipe else "",
        scheduled_time=_resolve_scheduled_time(options, recipe) if command == "run-scheduled" else ONCE,
        in_image=options.in_image,
    )


def _resolve_scheduled_time(options: argparse.Namespace, recipe: Recipe | None) -> str:
    """Return the scheduled time of `run-scheduled`: each is a job of its own."""
    if options.scheduled_time or recipe is None:
        return shared.parse_scheduled_time(options.scheduled_time) or shared.require_option(options, "scheduled_time")
    from pipeline import cron

    when = recipe.schedule
    if not when.cron:
        raise invalid("schedule.cron", "", "five fields", "Pass --cron, such as '0 3 * * SUN', or --scheduled-time.")
    return cron.format_stamp(cron.find_latest_time(when.cron, when.timezone, datetime.now(UTC)))


def _format_arguments(action: argparse.Action, value: Any) -> list[str]:
    """Return the arguments that give an option this value."""
    if value is None or value is False or value == []:
        return []
    if value is True:
        return [action.option_strings[0]]
    values = value if isinstance(value, list) else [value]
    if not action.option_strings:
        return [str(each) for each in values]
    return [text for each in values for text in (action.option_strings[-1], str(each))]


def _require_shared(action: argparse.Action, value: str | None) -> None:
    if value and not value.startswith(("s3://", "/")):
        raise UserError(
            f"{action.option_strings[0]}: got {value!r}; expected s3://, or an absolute path that every node has"
        )


def collect_variables(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables of `--env NAME=VALUE` and `--ignore-lock`."""
    from pipeline.lockfile import PINNED

    pairs = [entry.partition("=") for entry in options.env]
    for name, separator, _ in pairs:
        if not separator or not name.isidentifier():
            raise invalid("--env", name, "NAME=VALUE")
    return {name: value for name, _, value in pairs} | ({PINNED: ""} if options.ignore_lock else {})
