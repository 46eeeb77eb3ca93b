"""Environments and rewards with one fault each, named on the command line as ``planted:make`` and ``planted:REWARD``."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH, LONG = 10, 1000.0
"""Steps of an episode; seconds of what hangs."""


class Odd(Exception):
    """Cannot be taken out of a pipe again, and says something that a terminal would obey."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"\x1b]0;owned\x07{one} and\r{two} \u2028é")


def raises() -> None:
    raise RuntimeError("the motor\nis on fire")


def raises_odd() -> None:
    raise Odd("lost", "found")


def exits() -> None:
    sys.exit(3)


def recursion() -> None:
    recursion()


def memory() -> None:
    raise MemoryError


def hangs() -> None:
    time.sleep(LONG)


def spins() -> None:
    while True:
        pass


def ignores() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(LONG)


def stops() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def dies() -> None:
    os._exit(3)


def crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def loses_its_pipes() -> None:
    os.closerange(3, 256)
    time.sleep(LONG)


def starts_a_child() -> None:
    """What a simulator is that runs a program of its own."""
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})"])


def hangs_with_a_child() -> None:
    starts_a_child()
    time.sleep(LONG)


def elsewhere() -> None:
    os.chdir("/")


def vanishes() -> None:
    """The run's folder is gone."""
    shutil.rmtree("run")


def talks() -> None:
    os.write(1, b"\xff\xfe" * 2000)
    os.write(2, b"")


HANGS = (hangs, spins, ignores, stops, loses_its_pipes, hangs_with_a_child)
DIES = (dies, crashes, killed)
DOES: dict[str, Callable[[], None]] = {
    item.__name__: item
    for item in (raises, raises_odd, exits, recursion, memory, *HANGS, *DIES, starts_a_child, elsewhere, vanishes, talks)
}
"""What happens, by name."""
STATE = np.zeros(3, np.float32)
ANSWERS: dict[str, tuple[str, Any]] = {
    "observation nan": ("observation", np.full(3, np.nan, np.float32)),
    "observation of another shape": ("observation", STATE[:2]),
    "observation of text": ("observation", np.array(["a", "b", "c"])),
    "observation none": ("observation", None),
    "reward nan": ("reward", float("nan")),
    "reward infinite": ("reward", float("inf")),
    "reward text": ("reward", "one"),
    "reward none": ("reward", None),
    "reward array": ("reward", np.ones(2)),
    "reward huge": ("reward", 1e38),
    "terminated text": ("terminated", "no"),
    "terminated none": ("terminated", None),
    "terminated two": ("terminated", 2),
    "info list": ("info", []),
    "info none": ("info", None),
    "four values": ("answer", (STATE, 1.0, False, {})),
    "no answer": ("answer", None),
}
"""What ``step`` returns in place of something."""


class Planted(gymnasium.Env[Any, Any]):
    """Episodes of ten steps, reward 1; ``fault`` strikes at ``where``: made, reset, later reset, step or close.

    A step strikes from step ``at`` on, counted over the environment's life. ``once``: one process strikes a single time, and no other does.
    ``apart``: only in a worker's process. ``discrete``: a state is a number.
    """

    action_space = spaces.Discrete(2)

    def __init__(
        self, fault: str = "", where: str = "step", at: int = 40, once: bool = False, apart: bool = False, discrete: bool = False
    ) -> None:
        self.observation_space: Any = spaces.Discrete(LENGTH + 1) if discrete else spaces.Box(-1, 1, (3,), np.float32)
        self.fault, self.where, self.at, self.once, self.discrete = fault, where, at, once, discrete
        self.here = not apart or multiprocessing.parent_process() is not None
        self.clock = self.time = self.resets = 0
        self.strike("made")

    def strikes(self, where: str) -> bool:
        if not self.here or self.where != where or (where == "step" and self.clock < self.at):
            return False
        if not self.once:
            Path("struck").touch()
        else:
            try:
                os.close(os.open("struck", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
        return True

    def strike(self, where: str) -> None:
        if self.fault in DOES and self.strikes(where):
            DOES[self.fault]()

    def state(self) -> Any:
        return self.time if self.discrete else np.full(3, 0.1 * self.time, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.resets = 0, self.resets + 1
        self.strike("reset" if self.resets == 1 else "later reset")
        return self.state(), {}

    def step(self, action: Any) -> Any:
        self.clock, self.time = self.clock + 1, self.time + 1
        self.strike("step")
        parts = {"observation": self.state(), "reward": 1.0, "terminated": self.time >= LENGTH, "truncated": False, "info": {}}
        if self.fault in ANSWERS and self.strikes("step"):
            name, value = ANSWERS[self.fault]
            if name == "answer":
                return value
            parts[name] = value
        return tuple(parts.values())

    def close(self) -> None:
        self.strike("close")


def make(**options: Any) -> Planted:
    return Planted(**options)


class Few(Planted):
    """At most four in a process, and they keep their port for good."""

    number = 0

    def __init__(self) -> None:
        super().__init__()
        Few.number += 1
        if Few.number > 4:
            raise RuntimeError(f"port already in use ({Few.number} instances)")


def few() -> Few:
    return Few()


# ------------------------------------------------------------------------------------------------------------------ rewards


def always(what: Callable[[], None]) -> Callable[..., Any]:
    """A reward to which it happens at every call."""

    def reward(*, completions: list[str]) -> list[float]:
        what()
        return [float(len(text) % 2) for text in completions]

    return reward


def at_one(what: Callable[[], None]) -> Callable[..., Any]:
    """A reward to which it happens where the first item is among those that it is asked about."""

    def reward(*, completions: list[str], item: list[int] | None = None) -> list[float]:
        if len(completions) > 1 or Path("struck").exists():
            Path("struck").touch()
            if len(completions) > 1 or not Path("twice").exists():
                Path("twice").touch() if len(completions) == 1 else None
                what()
        return [float(len(text) % 2) for text in completions]

    return reward


def gives(value: Callable[[int], Any]) -> Callable[..., Any]:
    """A reward that returns something else."""

    def reward(*, completions: list[str]) -> Any:
        return value(len(completions))

    return reward


def backtracks() -> None:
    """A regular expression that lets no other thread have its turn."""
    re.match(r"(a+)+$", "a" * 60 + "b")


reward_raises, reward_exits, reward_recursion, reward_memory = always(raises_odd), always(exits), always(recursion), always(memory)
reward_hangs, reward_backtracks, reward_dies, reward_crashes = always(hangs), always(backtracks), always(dies), always(crashes)
reward_raises_once, reward_hangs_once, reward_backtracks_once = at_one(raises), at_one(hangs), at_one(backtracks)
reward_dies_once, reward_child, reward_elsewhere, reward_talks = at_one(dies), always(starts_a_child), always(elsewhere), always(talks)
reward_text, reward_number, reward_none = gives(lambda n: ["good"] * n), gives(lambda n: 1.0), gives(lambda n: None)
reward_too_few, reward_nan, reward_infinite = gives(lambda n: [1.0]), gives(lambda n: [float("nan")] * n), gives(lambda n: [10**400] * n)
reward_nested, reward_huge = gives(lambda n: [[1.0]] * n), gives(lambda n: [1e38 * (i % 2) for i in range(n)])
reward_abstains, reward_mapping = gives(lambda n: [None] * n), gives(lambda n: dict.fromkeys(range(n), 1.0))


def reward_hangs_later(*, completions: list[str]) -> list[float]:
    """It hangs once, when an iteration is written down."""
    if len(completions) > 1 and not Path("struck").exists() and Path("run/metrics.jsonl").exists():
        Path("struck").touch()
        time.sleep(LONG)
    return [float(len(text) % 2) for text in completions]


async def reward_never(*, completions: list[str]) -> list[float]:
    await asyncio.sleep(LONG)
    return [1.0] * len(completions)


def reward_clears(*, prompts: list[str], completions: list[str]) -> list[float]:
    """It empties what it is given."""
    count = len(completions)
    prompts.clear()
    completions.clear()
    return [float(i % 2) for i in range(count)]
