"""Cron expressions: five fields in a time zone, and the times that they match.

Daylight saving is handled as in Debian's cron: times in the skipped hour are due right after it, and times in the
repeated hour are due once, unless they are due every hour.
"""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

FIELDS = "minute hour day month weekday, such as '0 3 * * SUN'"
STAMP = "%Y%m%dT%H%MZ"


def is_cron(expression: str) -> bool:
    """Tell whether the expression has five fields and matches any time."""
    try:
        return len(expression.split()) == 5 and bool(
            list_next_times(expression, "UTC", datetime(2000, 1, 1, tzinfo=UTC))
        )
    except (CronSimError, ValueError):
        return False


def is_time_zone(name: str) -> bool:
    """Tell whether this is an IANA time zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def find_latest_time(expression: str, timezone: str, now: datetime) -> datetime:
    """Return the newest matching time at or before `now`, in UTC."""
    after = now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    time = next(CronSim(expression, after.astimezone(ZoneInfo(timezone)), reverse=True)).astimezone(UTC)
    while (
        later := list_next_times(expression, timezone, time)[0]
    ) <= now:  # searching backwards skips part of a repeated hour
        time = later
    return time


def list_next_times(expression: str, timezone: str, now: datetime, count: int = 1) -> list[datetime]:
    """Return the next matching times after `now`, in UTC."""
    coming = CronSim(expression, now.astimezone(ZoneInfo(timezone)))
    in_utc = (local_time.astimezone(UTC) for local_time in coming)
    return list(islice((when for when in in_utc if when > now), count))  # a repeated hour starts again


def format_stamp(when: datetime) -> str:
    """Return a time as a file name that sorts by time, such as 20261129T0300Z."""
    return when.astimezone(UTC).strftime(STAMP)


def is_stamp(text: str) -> bool:
    """Tell whether a text is a time as `format_stamp` writes it."""
    try:
        return format_stamp(parse_stamp(text)) == text
    except ValueError:
        return False


def parse_stamp(text: str) -> datetime:
    """Parse a time that `format_stamp` wrote."""
    return datetime.strptime(text, STAMP).replace(tzinfo=UTC)
