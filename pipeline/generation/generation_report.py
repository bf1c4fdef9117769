"""The lines that a batch generation prints: its progress and a summary."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.generation.generation_run import GenerationRun

REPORT_SECONDS = 10.0
Log = Callable[[str], None]


@dataclass(frozen=True)
class GenerationSummary:
    """The images that a command made, of all that its folder holds, and the seconds that it took."""

    run: GenerationRun
    generated: int
    seconds: float

    def __str__(self) -> str:
        """Return the summary in one line."""
        if not self.generated:
            return f"already generated: {self.run.images} images"
        rate = self.generated / self.seconds
        return f"generated {self.generated} of {self.run.images} images in {self.seconds:.1f} s ({rate:.1f} images/s)"


@dataclass
class Progress:
    """Reports finished images, at most every `REPORT_SECONDS`."""

    images: int
    log: Log
    finished: int = 0
    started: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        """Count finished images."""
        self.finished, now = self.finished + count, time.monotonic()
        if self.finished < self.images and now - self.reported < REPORT_SECONDS:
            return
        rate, self.reported = self.finished / (now - self.started), now
        left = (self.images - self.finished) / rate / 60
        self.log(f"{self.finished} of {self.images} images ({rate:.1f} images/s, {left:.0f} minutes left)")
