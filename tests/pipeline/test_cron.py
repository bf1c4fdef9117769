from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from pipeline import cron

BERLIN = "Europe/Berlin"


def parse_utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "zone", "now", "expected"),
    [
        ("0 3 * * SUN", "UTC", "2026-11-25 12:00", "2026-11-22 03:00"),
        ("0 3 * * 0", "UTC", "2026-11-25 12:00", "2026-11-22 03:00"),  # Sunday is 0, as in cron
        ("0 3 * * *", "UTC", "2026-11-25 03:00:00", "2026-11-25 03:00"),
        ("0 3 * * *", "UTC", "2026-11-25 03:00:59", "2026-11-25 03:00"),
        ("0 3 * * *", "UTC", "2026-11-25 02:59:59", "2026-11-24 03:00"),
        (
            "30 2 * * *",
            BERLIN,
            "2026-03-29 12:00",
            "2026-03-29 01:00",
        ),  # skipped by the clock change: right after the gap
        ("30 2 * * *", BERLIN, "2026-10-25 12:00", "2026-10-25 00:30"),  # occurs twice: the first
        ("0 9 * * *", "America/New_York", "2026-03-08 20:00", "2026-03-08 13:00"),
        ("0 0 29 2 *", "UTC", "2026-11-25 12:00", "2024-02-29 00:00"),
    ],
)
def test_the_latest_due_time(expression, zone, now, expected):
    assert cron.find_latest_time(expression, zone, parse_utc(now)) == parse_utc(expected)


@pytest.mark.parametrize("expression", ["*/30 * * * *", "30 2 * * *", "15 */2 * * *", "0 2 * * SUN"])
@pytest.mark.parametrize(
    ("zone", "start"),
    [(BERLIN, "2026-10-24 20:00"), (BERLIN, "2026-03-28 20:00"), ("America/New_York", "2026-11-01 00:00")],
)
def test_next_and_latest_times_agree_across_a_clock_change(expression, zone, start):
    """No time is due twice or skipped, and the latest time at any minute is the one before it."""
    begin = parse_utc(start)
    times, due = [], begin - timedelta(days=8)
    while due < begin + timedelta(days=1):
        (due,) = cron.list_next_times(expression, zone, due)
        times.append(due)
    assert times == sorted(set(times))
    for minutes in range(0, 12 * 60, 5):
        now = begin + timedelta(minutes=minutes)
        assert cron.find_latest_time(expression, zone, now) == max(due for due in times if due <= now)


def test_the_next_time_is_in_the_future_within_a_repeated_hour():
    now = parse_utc("2026-10-25 01:15")  # the second 02:15 in Berlin
    assert cron.list_next_times("*/30 * * * *", BERLIN, now, 2) == [
        parse_utc("2026-10-25 01:30"),
        parse_utc("2026-10-25 02:00"),
    ]


def test_a_daily_schedule_is_due_once_a_day_over_a_year():
    times = cron.list_next_times("30 2 * * *", BERLIN, parse_utc("2026-01-01 00:00"), count=365)
    assert len({due.astimezone().date() for due in times} | {due.date() for due in times}) >= 365
    assert all(timedelta(hours=22.9) < b - a < timedelta(hours=25.1) for a, b in pairwise(times))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "x",
        "* * * *",
        "60 * * * *",
        "0 0 30 2 *",
        "@daily",
        "* * * * * *",
        "0 0 */29 2 SUN#5",
        "9" * 5000 + " * * * *",
    ],
)
def test_an_invalid_cron_expression_is_recognised(expression):
    assert not cron.is_cron(expression)


@pytest.mark.parametrize("zone", ["", "Europe/Nowhere", "../etc/passwd", "/etc/localtime"])
def test_an_invalid_time_zone_is_recognised(zone):
    assert not cron.is_time_zone(zone)


def test_a_stamp_round_trips_and_other_text_is_not_a_stamp():
    due = parse_utc("2026-11-29 03:00")
    assert cron.parse_stamp(cron.format_stamp(due)) == due
    assert cron.is_stamp("20261129T0300Z")
    assert not any(map(cron.is_stamp, ("", "20261129", "../x", "2026-11-29T03:00Z", "20261329T0300Z")))
