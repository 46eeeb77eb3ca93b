"""A time limit for Python code that does not end by itself."""

import subprocess
import sys
import time

import pytest

from upslope.language.in_time import TookTooLong, in_time


def test_a_loop_without_end_is_ended():
    started = time.monotonic()

    def loops():
        while True:
            pass

    with pytest.raises(TookTooLong):
        in_time(loops, 0.1)
    assert time.monotonic() - started < 20.0


def test_what_is_quick_is_left_alone():
    assert [in_time(lambda i=i: i, 0.5) for i in range(50)] == list(range(50))
    with pytest.raises(KeyError):
        in_time(lambda: {}["x"], 0.5)
    time.sleep(0.7)  # nothing comes later


def test_the_interpreter_is_left_as_it_was():
    """CPython 3.11 looks for an exception that was taken back at every call, and never gets past the first one under a profiler."""
    lines = [
        "import sys",
        "from upslope.language.in_time import in_time",
        "print(in_time(lambda: 1, 60.0))",
        "def outer():",
        "    x = 3",
        "    def inner(): return x",
        "    return inner()",
        "sys.setprofile(lambda *_: None)",
        "print(outer())",
        "sys.setprofile(None)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n3\n"), done.stderr


def test_it_comes_in_time_or_not_at_all():
    """However close to the end of its time a call ends."""
    late = 0
    for i in range(60):
        until = time.perf_counter() + 0.002 * (0.5 + i / 60)
        try:
            in_time(lambda until=until: [0 for _ in iter(lambda: time.perf_counter() < until, False)], 0.002)
        except TookTooLong:
            late += 1
    assert late < 60
    time.sleep(0.1)  # nothing comes later
