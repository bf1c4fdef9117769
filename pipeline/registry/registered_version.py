"""The result of registering a student."""

from pydantic.dataclasses import dataclass

from pipeline.strict_model import STRICT


@dataclass(frozen=True, config=STRICT)
class RegisteredVersion:
    """A version of a registered model, its alias (or an empty string), its MLflow URI and the decision about it."""

    model: str
    version: int
    alias: str
    uri: str
    decision: str

    def __str__(self) -> str:
        """Return one line for a log."""
        return f"version {self.version} of {self.model}: {self.decision}"
