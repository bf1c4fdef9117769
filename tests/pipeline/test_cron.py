from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from pipeline import cron

BERLIN = "Europe/Berlin"


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "zone", "now", "expected"),
    [
        ("0 3 * * SUN", "UTC", "2026-11-25 12:00", "2026-11-22 03:00"),
        ("0 3 * * 0", "UTC", "2026-11-25 12:00", "2026-11-22 03:00"),  # Sunday is 0, as in cron
        ("0 3 * * *", "UTC", "2026-11-25 03:00:00", "2026-11-25 03:00"),
        ("0 3 * * *", "UTC", "2026-11-25 03:00:59", "2026-11-25 03:00"),
        ("0 3 * * *", "UTC", "2026-11-25 02:59:59", "2026-11-24 03:00"),
        ("30 2 * * *", BERLIN, "2026-03-29 12:00", "2026-03-29 01:00"),  # left out: right after the gap
        ("30 2 * * *", BERLIN, "2026-10-25 12:00", "2026-10-25 00:30"),  # comes twice: the first
        ("0 9 * * *", "America/New_York", "2026-03-08 20:00", "2026-03-08 13:00"),
        ("0 0 29 2 *", "UTC", "2026-11-25 12:00", "2024-02-29 00:00"),
    ],
)
def test_the_latest_time(expression, zone, now, expected):
    assert cron.find_latest_time(expression, zone, at(now)) == at(expected)


@pytest.mark.parametrize("expression", ["*/30 * * * *", "30 2 * * *", "15 */2 * * *", "0 2 * * SUN"])
@pytest.mark.parametrize(
    ("zone", "start"),
    [(BERLIN, "2026-10-24 20:00"), (BERLIN, "2026-03-28 20:00"), ("America/New_York", "2026-11-01 00:00")],
)
def test_forwards_and_backwards_agree_over_a_change_of_the_clock(expression, zone, start):
    """No time is due twice, none is left out, and looking at any minute finds the one before it."""
    begin = at(start)
    times, when = [], begin - timedelta(days=8)
    while when < begin + timedelta(days=1):
        (when,) = cron.list_next_times(expression, zone, when)
        times.append(when)
    assert times == sorted(set(times))
    for minutes in range(0, 12 * 60, 5):
        now = begin + timedelta(minutes=minutes)
        assert cron.find_latest_time(expression, zone, now) == max(when for when in times if when <= now)


def test_the_next_time_is_not_past_in_an_hour_that_comes_twice():
    now = at("2026-10-25 01:15")  # the second 02:15 in Berlin
    assert cron.list_next_times("*/30 * * * *", BERLIN, now, 2) == [at("2026-10-25 01:30"), at("2026-10-25 02:00")]


def test_each_day_has_one_daily_time_over_a_year():
    times = cron.list_next_times("30 2 * * *", BERLIN, at("2026-01-01 00:00"), count=365)
    assert len({when.astimezone().date() for when in times} | {when.date() for when in times}) >= 365
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
def test_what_is_no_cron(expression):
    assert not cron.is_cron(expression)


@pytest.mark.parametrize("zone", ["", "Europe/Nowhere", "../etc/passwd", "/etc/localtime"])
def test_what_is_no_zone(zone):
    assert not cron.is_time_zone(zone)


def test_a_stamp_is_its_time_and_nothing_else_is_one():
    when = at("2026-11-29 03:00")
    assert cron.parse_stamp(cron.format_stamp(when)) == when
    assert cron.is_stamp("20261129T0300Z")
    assert not any(map(cron.is_stamp, ("", "20261129", "../x", "2026-11-29T03:00Z", "20261329T0300Z")))
