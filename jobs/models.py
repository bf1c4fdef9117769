"""List the registered models; promote a version by hand; roll back to the previous champion; download a version."""

import argparse
from pathlib import Path

from jobs import options as shared

ACTIONS = ("list", "promote", "rollback", "download")
DESCRIPTIONS = {
    "diffusers": "its pipeline is in {}/student",
    "lora": "its options are in {}/settings.json",
    "comfyui": "the settings of ComfyUI's nodes are in {}/settings.json",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="action (default: %(default)s)")
    parser.add_argument("--name", help="name of a registered model, such as nasa-shapes")
    parser.add_argument(
        "--to", metavar="VERSION", help="rollback: version to roll back to (default: the previous champion)"
    )
    parser.add_argument(
        "--version", metavar="VERSION", help="version to promote or download (download defaults to the champion)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="download: new output folder")
    parser.add_argument(
        "--format",
        default="diffusers",
        choices=tuple(DESCRIPTIONS),
        help="download: the whole version with its diffusers folder, the adapter of a LoRA student alone, or a file "
        "for ComfyUI (Stable Diffusion 1.x, 2.x, XL) (default: %(default)s)",
    )
    shared.add_tracking_options(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.registry import version_download, version_management

    uri = shared.resolve_tracking_uri(options)
    if options.action == "list":
        print(
            shared.format_table(
                version_management.list_rows(uri, options.name),
                "no registered models yet; `python -m jobs register` makes one",
            )
        )
        return
    name = shared.require_option(options, "name")
    if options.action == "rollback":
        done = version_management.roll_back(uri, name, options.to)
        print(f"{name}: the champion is version {done['to']} again, no longer version {done['from']}")
    elif options.action == "promote":
        done = version_management.promote(uri, name, shared.require_option(options, "version"))
        print(f"{name}: the champion is version {done['to']}" + (f", no longer {done['from']}" if done["from"] else ""))
    else:
        out = Path(shared.require_option(options, "out"))
        number, folder = version_download.download(uri, name, out, options.version, options.format)
        print(f"{name} version {number}: {folder}; {DESCRIPTIONS[options.format].format(folder)}")
