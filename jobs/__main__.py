"""`python -m jobs <command>`: prepare, distill, evaluate, register and more. Lists the commands if none is given."""

import argparse
import os
import sys
from types import ModuleType

from jobs import (
    clean,
    compare,
    distill,
    evaluate,
    evaluate_video,
    extract_lora,
    generate,
    k8s_manifest,
    logs,
    merge_students,
    models,
    prepare,
    prepare_benchmarks,
    register,
    run,
    run_scheduled,
    schedule,
    scheduler,
    serve,
    status,
    stop,
    submit,
    train_shapes,
)
from jobs import list as list_jobs
from pipeline import apply_environment, logging_setup
from pipeline.errors import TrainingError, UserError, resume_hint
from pipeline.lockfile import check_versions
from pipeline.redaction import redact

GROUPS = {
    "one run": (prepare, distill, evaluate, register, run, clean),
    "registered models": (models, serve, generate),
    "students": (compare, merge_students, extract_lora, prepare_benchmarks, evaluate_video, train_shapes),
    "jobs on a Ray cluster": (submit, status, logs, stop, list_jobs),
    "schedules and Kubernetes": (schedule, scheduler, run_scheduled, k8s_manifest),
}
USAGE_ERROR = 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command tree."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs",
        description="Distil, evaluate and register one-step text-to-image students.",
        epilog=f"{_format_commands()}\n\n`python -m jobs COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--log-format",
        choices=logging_setup.FORMATS,
        help="format of log records on stderr, of this process and its workers",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", help="one of the list below")
    for module in (module for group in GROUPS.values() for module in group):
        subparser = subparsers.add_parser(_name(module), description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run_command=module.run)
    return parser


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2].replace("_", "-")


def _format_commands() -> str:
    """Return the commands by group, one line each."""
    width = max(len(_name(module)) for group in GROUPS.values() for module in group)
    parts = []
    for title, group in GROUPS.items():
        parts.append(f"{title}:")
        parts += [f"  {_name(module):<{width}}  {module.__doc__}" for module in group]
        parts.append("")
    return "\n".join(parts[:-1])


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a failure is one line on stderr.

    Returns:
        0; 2 for a UserError, 1 for failed training, 130 after Ctrl-C; a followed job's own exit code.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    apply_environment()
    if options.log_format:
        os.environ[logging_setup.FORMAT_VARIABLE] = options.log_format
    logging_setup.configure()
    try:
        check_versions()
        code = options.run_command(options)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {resume_hint()} to continue", file=sys.stderr)
        return 130
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
