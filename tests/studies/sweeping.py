"""A worker of a sweep that is no process: it carries its run out at once, and what it says is read afterwards."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import ClassVar

import pytest

from upslope.studies import sweep_search
from upslope.studies.sweep_runs import Watcher, Worker, carried_out


class HereWorker(Worker):
    """Carries runs out in this process; ``begun`` are their folders."""

    begun: ClassVar[list[Path]] = []

    def __init__(self) -> None:
        self.line, self.parent = multiprocessing.Pipe()
        self.run, self.ready = None, True

    def begin(self, run, config, output) -> None:
        self.run = run
        self.begun.append(output.out)
        self.parent.send(carried_out(config, output, Watcher(self.parent)))

    def end(self) -> None:
        self.line.close()
        self.parent.close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[HereWorker]:
    """Sweeps whose runs are carried out in this process."""
    HereWorker.begun = []
    monkeypatch.setattr(sweep_search, "Worker", HereWorker)
    return HereWorker
