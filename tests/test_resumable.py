"""How far work is: a bar on a terminal, lines elsewhere."""

import re

import pytest

from mmgpt import resumable
from mmgpt.resumable import progress


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time it is, in seconds; rich and the lines go by it."""
    now = [1000.0]
    monkeypatch.setattr(resumable.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, clock):
    with progress("describing", 1200, 200) as advance:
        for _ in range(500):
            clock[0] += 0.1  # 50 seconds in all
            advance()
    told = capsys.readouterr()
    assert told.out == ""
    [line] = told.err.splitlines()
    found = re.fullmatch(r"describing: 500 of 1,200, (10\.\d) a second, 0:01:(\d\d) left", line)
    assert found is not None, line
    assert abs(float(found[1]) - 10) < 0.5
    assert abs(int(found[2]) - 10) <= 3  # 700 more, ten a second


def test_work_that_is_soon_done_is_silent(capsys, clock):
    with progress("asking", 3, 0) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar_that_is_gone_at_the_end(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("describing", 4, 1) as advance:
        advance()
    told = capsys.readouterr().err
    assert "describing" in told
    assert "2/4" in told
    assert told.endswith("\x1b[1A\x1b[2K")  # up, and the line is erased
