"""What ends a command early, in one line: a user's mistake, or training that stopped."""

import os

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in which Ray tells a job how it was submitted


def again() -> str:
    """Tell how to continue what was cut short: a submitted job has another way than a command in a terminal."""
    return "submit it again with --retry" if os.environ.get(IN_JOB) else "run the same command again"


class UserError(ValueError):
    """A mistake in a recipe, a folder or a file: the field, the value and what is allowed."""


def invalid(field: str, got: object, expected: str, remedy: str = "") -> UserError:
    """Return the error of a value that is not accepted: `FIELD: got VALUE; expected CONSTRAINT.` and what to do.

    `expected` is a noun phrase, `remedy` an imperative sentence with its full stop.
    """
    return UserError(f"{field}: got {got!r}; expected {expected}." + (f" {remedy}" if remedy else ""))


class TransientError(UserError):
    """What is away or taken now: MLflow, the hub, room in a cluster. It may be a mistake; later it may be there."""


class StorageError(TransientError):
    """A folder, a bucket or MLflow that cannot be read or written now."""


class TrainingError(RuntimeError):
    """Training failed more often than the recipe's `train.max_failures` allows; its checkpoints are kept."""
