"""Print a Kubernetes manifest of a distillation, sized by its recipe, or of the server of its model."""

import argparse

from jobs import options as shared

KINDS = ("RayCluster", "RayJob", "RayCronJob", "CronJob", "RayService")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="kind of the manifest; a CronJob submits to a standing RayCluster")
    parser.add_argument("--recipe", default="shapes", metavar="NAME", help="name of a recipe in the image")
    shared.add_override_options(parser)
    parser.add_argument(
        "--run",
        metavar="s3://...",
        help="folder of the run, or of the schedule of a recurring one; a RayService needs none",
    )
    parser.add_argument("--image", required=True, help="image built from deploy/kuberay/Dockerfile")
    parser.add_argument(
        "--tracking-uri", default="http://mlflow:5000", metavar="URL", help="MLflow tracking server (%(default)s)"
    )
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="N", help="GPUs of a worker pod (%(default)s)")
    parser.add_argument(
        "--name",
        default="",
        help="name of the object (default: nasa-RECIPE, and nasa-distill for the RayCluster of a CronJob)",
    )
    parser.add_argument("--queue", default="", metavar="NAME", help="LocalQueue of Kueue that admits the whole cluster")
    parser.add_argument(
        "--priority-class",
        default="",
        metavar="NAME",
        help="PriorityClass of the pods; with --queue also the WorkloadPriorityClass of this name",
    )
    parser.add_argument("--cron", metavar="FIELDS", help="cron expression instead of the recipe's schedule.cron")
    parser.add_argument("--alias", default="champion", help="RayService: alias to follow (default: %(default)s)")
    parser.add_argument(
        "--max-replicas", type=int, default=2, metavar="N", help="RayService: most replicas (%(default)s)"
    )
    parser.add_argument("--timezone", metavar="NAME", help="time zone instead of the recipe's schedule.timezone")


def run(options: argparse.Namespace) -> None:
    options.teacher = options.prompts = None
    recipe = shared.load_recipe(options)
    serves = options.kind == "RayService"
    if not (serves or options.kind == "RayCluster"):  # which run no recipe
        shared.require_shared_prompts(recipe)
    from pipeline.cluster.kubernetes_manifests import ManifestValues, render
    from pipeline.cluster.ray_service_manifest import render_ray_service

    values = ManifestValues(
        run="" if serves else shared.require_option(options, "run"),
        recipe=options.recipe,
        image=options.image,
        tracking_uri=options.tracking_uri,
        sets=tuple(options.overrides),
        gpus_per_node=options.gpus_per_node,
        name=options.name,
        queue=options.queue,
        priority_class=options.priority_class,
    )
    if serves:
        print(render_ray_service(recipe, values, options.alias, options.max_replicas), end="")
    else:
        print(render(options.kind, recipe, values), end="")
