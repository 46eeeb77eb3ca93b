"""A time limit for Python code that nobody vouches for: a model's chat template can loop without end."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
TEMPLATE_SECONDS = 10.0
"""What a chat template may take for one conversation."""


class TookTooLong(Exception):
    """The time is over."""


def in_time(call: Callable[[], Result], seconds: float) -> Result:
    """Call it here, and raise :class:`TookTooLong` in it once its time is over, between two instructions of Python."""
    thread, over = threading.get_ident(), threading.Lock()
    raises = ctypes.pythonapi.PyThreadState_SetAsyncExc
    ended = False

    def end() -> None:
        with over:
            if not ended:
                raises(ctypes.c_ulong(thread), ctypes.py_object(TookTooLong))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        return call()
    finally:
        with over:  # from here on it is not raised any more, and what was raised and has not come yet does not come
            ended = True
            raises(ctypes.c_ulong(thread), None)
        timer.cancel()
