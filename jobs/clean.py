"""Show the disk space that a run and the version cache no longer need, and free it with --yes."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", required=True, metavar="FOLDER", help="folder of a run, local or s3://, without a running job"
    )
    parser.add_argument("--yes", action="store_true", help="remove what is shown (default: show it)")
    shared.add_tracking_options(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cleanup.cache_cleanup import find_in_cache, remove_from_cache
    from pipeline.cleanup.run_cleanup import find_in_run, format_size
    from pipeline.schedules.history import require_over
    from pipeline.storage import Folder

    folder = Folder.from_uri(options.run)
    require_over(folder)
    of_run = find_in_run(folder)
    of_cache = find_in_cache(shared.resolve_tracking_uri(options))
    freed = 0
    for entry in [*of_run, *of_cache]:
        removed = True
        if options.yes and entry in of_cache:
            removed = remove_from_cache(entry)
        elif options.yes:
            entry.remove()
        freed += entry.size if removed else 0
        print(
            f"{format_size(entry.size):>9}  {entry.uri}  {entry.reason if removed else 'kept: it is in use'}",
            flush=True,
        )
    print(f"{format_size(freed):>9}  " + ("removed" if options.yes else "in all; --yes removes it"))
