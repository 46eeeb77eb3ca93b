"""A time limit for Python code that nobody vouches for: a model's chat template can loop without end."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
TEMPLATE_SECONDS = 10.0
"""What a chat template may take for one conversation."""


class TookTooLong(Exception):
    """The time is over."""


def in_time(call: Callable[[], Result], seconds: float) -> Result:
    """Call it here, and raise :class:`TookTooLong` in it once its time is over, between two instructions of Python.

    What was raised is waited for, never taken back: CPython 3.11 would then look for it at every call until the process ends, and for
    ever where a profiler is set.
    """
    thread, lock = threading.get_ident(), threading.Lock()
    over = raised = False

    def end() -> None:
        nonlocal raised
        with lock:
            if not over:
                raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TookTooLong))

    def settle() -> None:
        nonlocal over
        with lock:
            over = True
        timer.cancel()
        while raised:  # just as the call ended: it comes here
            time.sleep(0.001)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        found = call()
    except TookTooLong:
        raise
    except BaseException:
        settle()
        raise
    settle()
    return found
