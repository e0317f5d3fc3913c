"""The schedule as crontab and as systemd units says the same, in syntax that both accept."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from python_udfs.operations import jobs
from python_udfs.settings import REPOSITORY

FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # of crontab(5)


def values(field: str, low: int, high: int) -> set[int]:
    """What a field of a crontab stands for; an assertion where it is none."""
    found: set[int] = set()
    for item in field.split(","):
        match = re.fullmatch(r"(\*|\d+(?:-\d+)?)(?:/(\d+))?", item)
        assert match, f"{item!r} is no field of a crontab"
        first, _, last = match[1].partition("-")
        start, end = (low, high) if first == "*" else (int(first), int(last or first))
        assert low <= start <= end <= high, item
        found |= set(range(start, end + 1, int(match[2] or 1)))
    return found


def entries(text: str) -> list[tuple[list[set[int]], str]]:
    """The lines of a crontab: fields and command."""
    found = []
    for line in text.splitlines():
        if not line or line.startswith("#") or re.match(r"[A-Z_]+=\S", line):
            continue
        *fields, command = line.split(None, 5)
        found.append(([values(f, *limits) for f, limits in zip(fields, FIELDS, strict=True)], command))
    return found


def test_the_crontab_parses_and_names_each_scheduled_job_once(tmp_path: Path) -> None:
    secrets = tmp_path / "100 % secret.env"
    secrets.touch()
    found = entries(jobs.crontab(secrets))
    assert [command.split()[-3] for _, command in found] == [job.name for job in jobs.JOBS if job.cron]
    assert len({frozenset(fields[0]) for fields, _ in found}) == len(found), "two start in the same minutes"
    for _, command in found:
        assert command.count("%") == command.count(r"\%") == 1, "cron ends a command at a bare %"
        assert f"'{secrets}'".replace("%", r"\%") in command
    text = jobs.crontab()
    assert text.startswith("#")
    assert "CRON_TZ=UTC" in text.splitlines()


def test_the_seed_of_overdue_jobs_says_how_often_the_schedule_runs_each() -> None:
    day = 24 * 3600
    runs = {
        job.name: len(values(job.cron.split()[0], *FIELDS[0])) * len(values(job.cron.split()[1], *FIELDS[1]))
        for job in jobs.JOBS
        if job.cron
    }
    with (REPOSITORY / "seeds" / "health_jobs.csv").open(newline="") as file:
        assert {r["job"]: int(r["every_s"]) for r in csv.DictReader(file)} == {
            j: day / n for j, n in runs.items()
        }
    assert all(job.cron.split()[2:] == ["*", "*", "*"] for job in jobs.JOBS if job.cron)


@pytest.mark.parametrize("bad", ["61", "*/x", "5-1", "a"])
def test_the_check_of_the_crontab_can_fail(bad: str) -> None:
    with pytest.raises(AssertionError):
        values(bad, 0, 59)


def test_units_are_what_systemd_accepts_and_start_when_cron_would(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed")
    units = jobs.systemd_units()
    for file, text in units.items():
        (tmp_path / file).write_text(text)
    checked = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / file) for file in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in checked.stderr.splitlines() if "marketprism" in line]
    assert not [line for line in ours if "not executable" not in line], checked.stderr
    for job in (j for j in jobs.JOBS if j.calendar):
        timer = units[f"marketprism-{job.name}.timer"]
        assert f"OnCalendar={job.calendar} UTC\nPersistent=true" in timer
        shown = subprocess.run(
            [
                analyze,
                "calendar",
                "--base-time=2026-01-05 00:00:30 UTC",
                "--iterations=30",
                f"{job.calendar} UTC",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        times = re.findall(r"(?:elapse|#\d+): \w+ [\d-]+ (\d\d):(\d\d):00 UTC", shown)
        minutes, hours = (values(f, *x) for f, x in zip(job.cron.split()[:2], FIELDS[:2], strict=True))
        assert len(times) == 30
        assert {(int(h), int(m)) for h, m in times} <= {(h, m) for h in hours for m in minutes}
        assert len(set(times)) == min(30, len(hours) * len(minutes))
