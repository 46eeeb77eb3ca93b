"""The signals that end a run with everything saved."""

import contextlib
import signal
from collections.abc import Callable, Generator
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler, a terminal that was closed


@contextlib.contextmanager
def handled(handler: Callable[..., Any]) -> Generator[None]:
    """Call ``handler(number, frame)`` at each of them for a while; where this is not the main thread, the program around us has its own."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN:  # nohup: the run goes on
        numbers.remove(hangup)
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
