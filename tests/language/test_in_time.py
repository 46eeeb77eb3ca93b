"""A time limit for Python code that does not end by itself."""

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
