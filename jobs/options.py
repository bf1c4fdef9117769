"""Options that several commands share."""

import argparse
import json
import os
import re
from pathlib import Path

from pipeline.errors import UserError, invalid
from pipeline.recipe import Recipe, load
from pipeline.storage import Folder

OWN_TEACHER = (  # overrides for --teacher: without the CLIP, the pairs and the judge of the toy dataset
    *('train.clip_model=""', "train.clip_weight=0", 'regression.pairs=""', "regression.weight=0"),
    *('promotion.metric="hpsv2"', "promotion.guardrails=[]", "evaluation.num_prompts=16"),
)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", default="runs/demo", metavar="FOLDER", help="folder of the run, local or s3:// (%(default)s)"
    )


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", default="shapes", metavar="NAME", help="name of a recipe, or a .toml file (%(default)s)"
    )
    parser.add_argument(
        "--teacher", metavar="FOLDER", help="folder, s3:// or hub id of a teacher, instead of the recipe's"
    )
    parser.add_argument(
        "--prompts",
        action="append",
        metavar="FILES",
        help="file, folder or glob pattern, local or s3://, instead of the recipe's sources; repeatable",
    )
    add_override_options(parser)


def add_override_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="override of a recipe field; repeatable",
    )


def add_tracking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri",
        default=None,
        metavar="URI",
        help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, or sqlite in runs/)",
    )


def require_option(options: argparse.Namespace, name: str) -> str:
    """Return an option's value, which this use of the command requires."""
    value: str | None = getattr(options, name)
    if not value:
        raise UserError(f"--{name}: got nothing; expected a value.")
    return value


def load_recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe with this command line's overrides; --teacher drops the toy dataset's CLIP, pairs and judge."""
    overrides = list(OWN_TEACHER) if options.teacher else []
    if options.teacher:
        overrides += [f"teacher={options.teacher!r}", f"name={_derive_model_name(options.teacher)!r}"]
    if options.prompts:
        sources = ", ".join(f"{{path = {json.dumps(path, ensure_ascii=False)}}}" for path in options.prompts)
        overrides.append(f"prompts.sources=[{sources}]")
    for name in ("cron", "timezone"):
        if getattr(options, name, None):
            overrides.append(f"schedule.{name}={json.dumps(getattr(options, name))}")
    return load(options.recipe, [*overrides, *options.overrides])


def require_shared_prompts(recipe: Recipe) -> None:
    """Reject sources that only this machine has."""
    if paths := recipe.prompts.node_local_paths:
        raise UserError(
            f"prompts.sources: got {paths[0]!r}; expected s3://, a path that every node has, or "
            "--set prompts.root=s3://BUCKET/FOLDER"
        )


def require_shared_tracking(given: str | None) -> str:
    """Return an MLflow URI that other nodes can reach; there is no local default."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError(
            "--tracking-uri: got nothing; expected a server that every node reaches. MLFLOW_TRACKING_URI names it too."
        )
    return uri


def add_ray_address_option(parser: argparse.ArgumentParser) -> None:
    """Add the address of a Ray cluster; with it, the command is the cluster's driver."""
    parser.add_argument("--ray-address", metavar="ADDRESS", help="Ray cluster to join (default: start a local one)")


def add_job_server_option(parser: argparse.ArgumentParser) -> None:
    """Add the URL of a Ray cluster's job server, to which jobs are submitted."""
    parser.add_argument(
        "--job-server",
        metavar="URL",
        help="URL of the Ray job server (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )


def add_store_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        default="runs/schedules",
        metavar="FOLDER",
        help="folder of the schedules, local or s3:// (%(default)s)",
    )


def parse_scheduled_time(text: str | None) -> str | None:
    """Return the scheduled time of `--scheduled-time`, checked, or None."""
    from pipeline import cron

    if text is not None and not cron.is_stamp(text):
        raise invalid("--scheduled-time", text, "a UTC time such as 20261129T0300Z")
    return text


def add_job_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="submission id of the job, or its beginning")


def _derive_model_name(teacher: str) -> str:
    """Return the last part of a folder or hub id, in characters that a registered model's name may have."""
    return re.sub(r"[^\w.-]+", "-", Path(teacher).name).strip("-._")[:100] or "teacher"


def resolve_folder(options: argparse.Namespace, part: str) -> Folder:
    return Folder.from_uri(options.run) / part


def format_table(rows: list[dict[str, str]], empty: str) -> str:
    """Return aligned rows under the names of the columns, or the line `empty` without rows."""
    if not rows:
        return empty
    lines = [{name: name for name in rows[0]}, *rows]
    width = {name: max(len(line[name]) for line in lines) for name in rows[0]}
    return "\n".join("  ".join(line[name].ljust(width[name]) for name in width).rstrip() for line in lines)


def resolve_tracking_uri(options: argparse.Namespace) -> str:
    from pipeline.tracking import get_default_uri

    return options.tracking_uri or get_default_uri()
