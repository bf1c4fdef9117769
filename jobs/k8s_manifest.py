"""Print a Kubernetes manifest of a distillation, sized by its recipe."""

import argparse

from jobs import options as shared

KINDS = ("RayCluster", "RayJob", "RayCronJob", "CronJob")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="kind of the manifest; a CronJob submits to a standing RayCluster")
    parser.add_argument("--recipe", default="shapes", metavar="NAME", help="name of a recipe in the image")
    shared.add_override_options(parser)
    parser.add_argument(
        "--run", required=True, metavar="s3://...", help="folder of the run, or of the schedule of a recurring one"
    )
    parser.add_argument("--image", required=True, help="image built from deploy/kuberay/Dockerfile")
    parser.add_argument(
        "--tracking-uri", default="http://mlflow:5000", metavar="URL", help="MLflow tracking server (%(default)s)"
    )
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="N", help="GPUs of a worker pod (%(default)s)")
    parser.add_argument("--cron", metavar="FIELDS", help="cron expression instead of the recipe's schedule.cron")
    parser.add_argument("--timezone", metavar="NAME", help="time zone instead of the recipe's schedule.timezone")


def run(options: argparse.Namespace) -> None:
    options.teacher = options.prompts = None
    recipe = shared.load_recipe(options)
    if options.kind != "RayCluster":  # a RayCluster runs no recipe
        shared.require_shared_prompts(recipe)
    from pipeline.cluster.kubernetes_manifests import ManifestValues, render

    values = ManifestValues(
        run=options.run,
        recipe=options.recipe,
        image=options.image,
        tracking_uri=options.tracking_uri,
        sets=tuple(options.overrides),
        gpus_per_node=options.gpus_per_node,
    )
    print(render(options.kind, recipe, values), end="")
