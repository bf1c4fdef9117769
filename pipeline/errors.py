"""What ends a command early, in one line: a user's mistake, or training that stopped."""


class UserError(ValueError):
    """A mistake in a recipe, a folder or a file: the field, the value and what is allowed."""


class PassingError(UserError):
    """What is away or taken now: MLflow, the hub, room in a cluster. It may be a mistake; later it may be there."""


class StoreError(PassingError):
    """A folder, a bucket or MLflow that cannot be read or written now."""


class TrainingError(RuntimeError):
    """Training failed more often than the recipe's `train.max_failures` allows; its checkpoints are kept."""
