"""The retry policy of requests to stores and services: exponential backoff."""

import itertools
from collections.abc import Iterator

MAX_ATTEMPTS = 12  # attempts of one S3 request, about two minutes in all
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 64.0


def iter_backoff_seconds(max_retries: int | None = None, max_delay: float = MAX_DELAY_SECONDS) -> Iterator[float]:
    """Yield the delay before each retry, doubled every time up to `max_delay`; without `max_retries` for ever."""
    delays = (min(max_delay, FIRST_DELAY_SECONDS * 2**n) for n in itertools.count())
    return itertools.islice(delays, max_retries)
