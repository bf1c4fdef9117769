"""Run a command as a job on a Ray cluster, and follow its log. Run it again to follow it again."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs import (
    distill,
    evaluate,
    evaluate_video,
    job_building,
    prepare,
    prepare_benchmarks,
    register,
    run_scheduled,
    scheduler,
)
from jobs import options as shared
from jobs import run as run_command
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.cluster.job_submission import Job

COMMANDS = {
    "run": run_command,
    "prepare": prepare,
    "prepare-benchmarks": prepare_benchmarks,
    "distill": distill,
    "evaluate": evaluate,
    "evaluate-video": evaluate_video,
    "register": register,
    "run-scheduled": run_scheduled,
    "scheduler": scheduler,
}


FOLLOWED_NO_LONGER = 130  # the exit code of any command that Ctrl-C ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="submitted", required=True, metavar="command")
    for name, module in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=module.__doc__, description=module.__doc__, conflict_handler="resolve"
        )
        module.add_arguments(subparser)
        shared.add_job_server_option(subparser)
        subparser.add_argument(
            "--attempt",
            type=int,
            default=0,
            metavar="N",
            help="number of the attempt, from 1, if an earlier one has ended",
        )
        subparser.add_argument(
            "--retry", action="store_true", help="start the next attempt of a job that failed or was stopped"
        )
        subparser.add_argument(
            "--in-image",
            action="store_true",
            help="use the code in the cluster's image instead of sending the checkout",
        )
        subparser.add_argument("--ignore-lock", action="store_true", help="accept other package versions than the lock")
        subparser.add_argument(
            "--no-wait", action="store_true", help="exit after submitting, without following the log"
        )
        subparser.add_argument(
            "--env",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="environment variable of the job, which must not be a secret; repeatable",
        )
        subparser.set_defaults(dry_run=False)  # of a command that has a dry run of its own
        subparser.add_argument(
            "--dry-run",
            dest="print_command",
            action="store_true",
            help="pack the job, print the `ray job submit` command that would send it, and send nothing",
        )


def run(options: argparse.Namespace) -> int:
    from pipeline.cluster.job_client import connect_to_cluster
    from pipeline.cluster.job_submission import choose_attempt, submit

    job = job_building.build_job(options, options.submitted, COMMANDS[options.submitted])
    if options.print_command:
        return print_ray_command(options, job)
    with connect_to_cluster(options.job_server) as client:
        job = choose_attempt(client, job, options.attempt, options.retry)
        sent = submit(client, job, job_building.collect_variables(options))
        print(f"submitted {job.id}" if sent else describe_existing_job(client, job.id), flush=True)
        if options.no_wait:
            return 0
        return follow_until_end(client, job.id)


def print_ray_command(options: argparse.Namespace, job: "Job") -> int:
    """Print the command of Ray that sends the job, and the folder that holds its code; connect to nothing."""
    from pipeline.cluster.submit_command import prepare_command

    if options.retry:
        raise UserError("--retry: the number of the next attempt is the cluster's. Pass --attempt N with --dry-run.")
    variables = job_building.collect_variables(options)
    command, folder = prepare_command(job, options.job_server, options.attempt, options.no_wait, variables)
    if folder:
        print(f"packed into {folder}; remove it when you have submitted the job", file=sys.stderr)
    print(command)
    return 0


def describe_existing_job(client: Any, submission_id: str) -> str:
    """Return the state of a job that was submitted before, and how to run it again."""
    status = str(client.get_job_info(submission_id).status)
    again = "; pass --retry to resume it" if status in ("FAILED", "STOPPED") else ""
    return f"already submitted: {submission_id} ({status.lower()}){again}"


def follow_until_end(client: Any, submission_id: str) -> int:
    """Follow a job until it ends and return its exit code; Ctrl-C leaves it running."""
    from pipeline.cluster.job_logs import follow_job

    try:
        code = follow_job(client, submission_id)
    except KeyboardInterrupt:
        print(
            f"\n{submission_id} goes on; `python -m jobs logs {submission_id} --follow` follows it, "
            f"`python -m jobs stop {submission_id}` ends it",
            file=sys.stderr,
        )
        return FOLLOWED_NO_LONGER
    details = client.get_job_info(submission_id)
    print(f"{submission_id}: {str(details.status).lower()}", file=sys.stderr)
    return code
