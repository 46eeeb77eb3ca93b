"""What a run takes of its process and gives back: device and threads, signals, and random generators that others may draw from."""

import contextlib
import random
import signal
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch

from upslope.errors import UsageError, require
from upslope.records import Policy, State

SMALL = 500_000  # parameters below which a policy on the processor runs on one thread


@contextlib.contextmanager
def one_thread(policy: Policy | None = None) -> Generator[None]:
    """Small networks on the processor are made and run on one thread: waking a second one costs more than their products.

    Sums round by the number of threads, so the same seed gives the same bits whatever the number of cores, and ``OMP_NUM_THREADS``.
    Without a policy it is about to be made.
    """
    parameters = [] if policy is None else list(policy.parameters())
    small = sum(p.numel() for p in parameters) < SMALL and all(p.device.type == "cpu" for p in parameters)
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # which is none of those below
    require(device.type in ("cpu", "cuda", "mps"), f"device: expected cpu, cuda, cuda:N or mps, found {name!r}")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device: {name!r} is not available, {torch.cuda.device_count()} CUDA devices are; use --device cpu")
    require(device.type != "mps" or torch.backends.mps.is_available(), "device: 'mps' is not available here; use --device cpu")
    return device


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler, a terminal that was closed


@contextlib.contextmanager
def handled(handler: Callable[..., Any]) -> Generator[None]:
    """Call ``handler(number, frame)`` at each of them for a while; not outside the main thread, where the caller's program has handlers."""
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


CLOSING = 10.0  # seconds after which what lets go of everything is interrupted


def in_time(call: Callable[[], object]) -> None:
    """Call what lets go of everything; where that takes too long, TimeoutError is raised in it, each second anew, until it comes back.

    In the main thread, and not on Windows: elsewhere it takes what it takes.
    """

    def late(*_: object) -> None:
        raise TimeoutError(f"it did not come back within {CLOSING:g} s, and everything is saved")

    try:
        before = signal.signal(signal.SIGALRM, late)
    except (ValueError, AttributeError):
        call()
        return
    signal.setitimer(signal.ITIMER_REAL, CLOSING, 1.0)
    try:
        call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def generators() -> State:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (others may use it)
    return {"python": random.getstate(), "numpy": [name, keys, *rest], "torch": torch.get_rng_state()}


def set_generators(state: State) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed them all for a while, so that what draws from them is the same each time; afterwards they are what they were."""
    before = generators()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    try:
        yield
    finally:
        set_generators(before)
