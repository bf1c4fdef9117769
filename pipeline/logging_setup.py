"""Logging of this project: rank, run and step in each record, as text or as JSON lines.

Importing a module configures nothing. A command and a worker call `configure`.
"""

import json
import logging
import os
import sys
from contextvars import ContextVar
from typing import TextIO

FORMAT_VARIABLE = "NASA_DISTILL_LOG_FORMAT"
FORMATS = ("text", "json")
CONTEXT = ("rank", "run", "step")
_LOGGERS = ("nasa", "datasets_prep", "pipeline", "jobs")
_LIBRARY_LEVELS = {
    "DeepSpeed": logging.ERROR,
    "mlflow.store.db": logging.WARNING,  # logs every table that it creates
    "mlflow.store.model_registry": logging.WARNING,  # logs every version that it waits for
    "mlflow.system_metrics": logging.ERROR,  # logs every start
    "ray.data": logging.ERROR,
    "ray.data.exceptions": logging.CRITICAL,  # asks for a bug report about Ray
    "ray.train": logging.ERROR,
}
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # attributes of every record
_context: ContextVar[dict[str, object]] = ContextVar("log_context", default={})  # noqa: B039


def set_context(**values: object) -> None:
    """Add values, such as `rank`, `run` and `step`, to the records of this process."""
    _context.set({**_context.get(), **values})


def configure(log_format: str | None = None) -> None:
    """Write this project's log records to stderr, and set the levels of noisy libraries.

    Without a `log_format` the environment variable `FORMAT_VARIABLE` names it; text is the default.
    """
    chosen = log_format or os.environ.get(FORMAT_VARIABLE, "text")
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _StderrHandler)]
        logger.addHandler(_StderrHandler(JsonFormatter() if chosen == "json" else TextFormatter()))
        logger.setLevel(logging.INFO)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)


class TextFormatter(logging.Formatter):
    """Formats a record as one line: level, context and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return, for example, `WARNING [rank 0, step 12] MLflow does not answer`."""
        context = ", ".join(f"{name} {value}" for name, value in _context.get().items() if name in CONTEXT)
        text = f"{record.levelname} {f'[{context}] ' if context else ''}{record.getMessage()}"
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a JSON line with time, level, logger, message, context and the record's extra values."""
        values: dict[str, object] = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        values |= {"message": record.getMessage(), **_context.get(), **extra}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """A handler that writes to the current `sys.stderr`, which may be replaced later."""

    def __init__(self, formatter: logging.Formatter) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(formatter)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr
