"""Generate the images of files of prompts with a registered model; run again to resume."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument(
        "--prompts",
        action="append",
        required=True,
        metavar="FILE",
        help=".txt, .csv, .jsonl or .parquet, local or s3://, with the columns prompt and optionally negative_prompt, "
        "seed, scale and method; repeatable",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new output folder, local or s3://")
    parser.add_argument("--negative-prompt", default="", help="negative prompt of rows without one")
    parser.add_argument("--scale", type=float, help="scale of rows without one (default: the version's or method's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of rows without one (default: %(default)s)")
    parser.add_argument("--method", default="nasa", help="nasa, nag, vsf or cfg, of rows without one (%(default)s)")
    parser.add_argument(
        "--images-per-prompt",
        type=int,
        default=1,
        metavar="N",
        help="images of a row, with the seeds seed to seed + N - 1 (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=1, help="number of workers (default: %(default)s)")
    parser.add_argument("--cpus-per-worker", type=float, default=1.0, help="CPU cores of one (default: %(default)g)")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0, help="GPUs of one (default: %(default)g)")
    parser.add_argument("--batch-size", type=int, default=16, help="most images of one pass (default: %(default)s)")
    shared.add_tracking_options(parser)
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.generation.batch_generation import generate_images
    from pipeline.generation.generation_run import BatchOptions
    from pipeline.storage import Folder

    given = {name: value for name, value in vars(options).items() if name in BatchOptions.model_fields}
    summary = generate_images(
        options.model,
        options.prompts,
        Folder.from_uri(options.out),
        BatchOptions.from_values(given),
        shared.resolve_tracking_uri(options),
        options.ray_address,
        log=lambda line: print(line, flush=True),
    )
    print(f"{summary}: {options.out}")
