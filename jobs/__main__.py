"""`python -m jobs <command>`: prepare, distill, evaluate, register and more; `--help` lists them."""

import argparse
import sys

from jobs import (
    ablate,
    compare,
    distill,
    evaluate,
    evaluate_video,
    logs,
    manifest,
    merge,
    models,
    prepare,
    prepare_benchmarks,
    register,
    run,
    schedule,
    scheduler,
    status,
    stop,
    submit,
    tick,
    train_shapes,
)
from jobs import list as list_jobs
from pipeline.environment import require_locked
from pipeline.errors import TrainingError, UserError, again
from pipeline.secrets import masked

COMMANDS = (
    *(submit, status, logs, stop, list_jobs, schedule, scheduler, tick, run, manifest),
    *(prepare, prepare_benchmarks, distill, evaluate, compare, evaluate_video, register, models),
    *(merge, ablate, train_shapes),
)


def make_parser() -> argparse.ArgumentParser:
    """Of the whole command tree."""
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        subparser = subparsers.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run_command=module.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Parse and run; a failure is one line. Exit code 2 for a user's mistake, 1 for failed training, 130 for Ctrl-C,
    and of what was submitted its own."""
    options = make_parser().parse_args(arguments)
    try:
        require_locked()
        code = options.run_command(options)
    except UserError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {again()} to continue", file=sys.stderr)
        return 130
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
