"""Phases of a start, on a clock that the test turns."""

import pytest

from quire.worker.start_report import StartReport, process_age_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_the_phases_are_the_whole_time(clock):
    report = StartReport(age_seconds=0.5, clock=clock)
    report.end_phase("start_process")
    for name, seconds in (("import_torch", 2.0), ("load_weights", 3.0), ("import_torch", 0.25)):
        clock.advance(seconds)
        report.end_phase(name)
    assert report.seconds == {"start_process": 0.5, "import_torch": 2.25, "load_weights": 3.0}
    assert report.total_seconds == 5.75


def test_phases_that_were_measured_elsewhere_leave_a_rest(clock):
    report = StartReport(clock=clock)
    clock.advance(4.0)
    report.include({"load_weights": 2.5, "kv_cache": 1.0}, rest="build_executor")
    clock.advance(1.0)
    report.end_phase("tokenizer")
    assert report.seconds == {"load_weights": 2.5, "kv_cache": 1.0, "build_executor": 0.5, "tokenizer": 1.0}
    assert report.total_seconds == clock.now - 100.0


def test_clocks_that_disagree_leave_no_negative_rest(clock):
    report = StartReport(clock=clock)
    clock.advance(1.0)
    report.include({"load_weights": 1.01}, rest="other")
    assert report.seconds["other"] == 0.0


def test_the_table_shows_the_long_phases_first_and_sums_up_the_short_ones(clock):
    report = StartReport(clock=clock)
    for name, seconds in (("find_device", 0.01), ("import_torch", 3.0), ("load_weights", 6.96), ("kv_cache", 0.03)):
        clock.advance(seconds)
        report.end_phase(name)
    assert report.table().splitlines() == [
        "started in 10.00 s",
        "  load weights    6.96 s   70%",
        "  import torch    3.00 s   30%",
        "  the rest        0.04 s    0%",
    ]
    assert StartReport(clock=clock).table() == "started in 0.00 s"


def test_the_age_of_this_process(tmp_path):
    assert 0.0 <= process_age_seconds() < 3600.0
    assert process_age_seconds(tmp_path / "absent") == 0.0
    strange = tmp_path / "stat"
    strange.write_text("1 (a name) with) S " + " ".join(["999999999999"] * 30))
    assert process_age_seconds(strange) == 0.0
