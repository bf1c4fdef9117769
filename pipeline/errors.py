"""Errors that end a command with one line, and the functions that format them."""

import os

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the processes of a submitted job


class UserError(ValueError):
    """An error in a recipe, an option, a folder or a file; its message is one line."""


class TransientError(UserError):
    """Something that is unavailable now, such as MLflow, the hub or a cluster's resources, and may come back."""


class StorageError(TransientError):
    """A folder, a bucket or MLflow that cannot be read or written now."""


class TrainingError(RuntimeError):
    """Training failed more often than `train.max_failures` allows; its checkpoints are kept."""


class TrainingDivergedError(TrainingError):
    """Training diverged: NaN, exploding gradients or images that are all alike."""


def invalid(field: str, got: object, expected: str, remedy: str = "") -> UserError:
    """Return the error of a value that is not accepted: `FIELD: got VALUE; expected CONSTRAINT.` and a remedy.

    `expected` is a noun phrase, `remedy` an imperative sentence with its full stop.
    """
    return UserError(f"{field}: got {got!r}; expected {expected}." + (f" {remedy}" if remedy else ""))


def get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def resume_hint() -> str:
    """Return how to continue what was cut short, which differs between a submitted job and a terminal."""
    return "submit it again with --retry" if os.environ.get(IN_JOB) else "run the same command again"
