"""Results come in order, few wait, processes end with their work; progress is told without noise."""

import os
import signal
import struct
import sys
import time

import pytest

from audio_diffusion.packing import parallel
from audio_diffusion.packing.parallel import Progress, ordered


def slow_if_even(number: int) -> int:
    time.sleep(0.02 * (number % 2 == 0))
    return number * number


def kill_itself(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    raise ValueError(f"input: {number} is wrong")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_and_few_are_ahead(num_workers: int) -> None:
    taken, ahead = [], []

    def numbers():
        for number in range(30):
            taken.append(number)
            yield number

    results = []
    for result in ordered(slow_if_even, numbers(), num_workers):
        results.append(result)
        ahead.append(len(taken) - len(results))
    assert results == [number * number for number in range(30)]
    assert max(ahead) < 2 * num_workers


def test_a_process_that_is_killed_is_told_with_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"num_workers: one of 2 processes was killed, .*; use fewer\. Repeat the command"
    ):
        list(ordered(kill_itself, range(9), 2))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_come_through(num_workers: int) -> None:
    with pytest.raises(ValueError, match="input: 0 is wrong"):
        list(ordered(fail, range(9), num_workers))


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: now[0])
    progress = Progress("packing")
    for done in range(61):  # a tenth of an hour of audio each second
        progress(100 + done, 200, 360.0 * (100 + done), 360.0 * 200)
        now[0] += 1
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "packing: 131/200 files, 13.10/20.00 h, 360 x real time, 0:01:09 left",
        "packing: 160/200 files, 16.00/20.00 h, 360 x real time, 0:00:40 left",
    ]


def test_progress_is_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pty, fcntl, termios = (pytest.importorskip(name, reason="needs Unix") for name in ("pty", "fcntl", "termios"))
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    with os.fdopen(child, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        progress = Progress("packing")
        for done in (1, 2, 3):
            progress(done, 3, 3600.0 * done, 3 * 3600.0)
        progress.close()
        terminal.flush()
        text = ""
        while "\n" not in text:
            text += os.read(parent, 10_000).decode()
    assert text.count("\r") > 1
    assert "packing: 3/3 files, 3.00/3.00 h" in text
    assert text.count("\n") == 1
