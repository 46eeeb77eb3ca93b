"""Optuna as a sweep uses it: a journal with one writer, TPE, the median pruner, and importances that need nothing more."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

STARTUP, WARMUP = 5, 2  # complete trials, and points of a trial, before which nothing is pruned
LEAST = 5  # trials from which importances are computed


def optuna() -> Any:
    import optuna as found  # takes half a second, and is there only where the extra is installed

    return found


@contextmanager
def quiet_optuna() -> Generator[None]:
    """Optuna without its log and without its warnings of what may change one day."""
    logging = optuna().logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
            yield
    finally:
        logging.set_verbosity(level)


class Held:
    """The journal's lock: the sweep holds its folder already, by a lock that no killed process leaves behind."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing to do."""


def study_in(journal: Path, direction: str) -> Any:
    """The study in a journal, whose last line a kill may have cut; a new one where there is none."""
    if journal.exists():
        content = journal.read_bytes()
        if content and not content.endswith(b"\n"):
            with journal.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    storages = optuna().storages
    storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(journal), lock_obj=Held()))
    pruner = optuna().pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP)
    return optuna().create_study(storage=storage, study_name="sweep", direction=direction, pruner=pruner, load_if_exists=True)


def sampler_for(seed: int, number: int, *, several: bool) -> Any:
    """What draws trial ``number``: TPE with a seed of that trial alone, so a sweep that goes on does not draw the same again.

    Where ``several`` trials are under way, those that have not ended count as bad ones, so that they are not drawn twice.
    """
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna().samplers.TPESampler(seed=own, constant_liar=several)


def begun_states() -> tuple[Any, ...]:
    """Of trials that count: all but those that are only planned."""
    return tuple(state for state in optuna().trial.TrialState if state.name != "WAITING")


def handle_of(study: Any, frozen: Any) -> Any:
    """A trial that had begun, to go on with it."""
    return optuna().trial.Trial(study, frozen._trial_id)


def tell(study: Any, number: int, state: str, value: float | None) -> None:
    """End a trial as ``complete`` with its value, ``pruned`` or ``failed``."""
    states = optuna().trial.TrialState
    kind = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
    study.tell(number, value, state=kind)


def ranked(study: Any) -> list[Any]:
    """Its trials from the best to the worst: complete ones by value, behind them pruned ones by how far they came and what they had."""
    sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0

    def place(trial: Any) -> tuple[float, float, float]:
        if trial.state.name == "COMPLETE":
            return 0.0, 0.0, sign * trial.value
        last = trial.last_step
        return (1.0, math.inf, 0.0) if last is None else (1.0, -float(last), sign * trial.intermediate_values[last])

    found: Sequence[Any] = study.get_trials(deepcopy=False)
    return sorted((trial for trial in found if trial.state.name in ("COMPLETE", "PRUNED")), key=place)


def importances(study: Any) -> dict[str, float]:
    """How much each setting has to do with being among the best tenth of the trials, by PED-ANOVA; they add up to 1.

    Pruned trials count with their rank. Empty where there are too few trials. Source: Watanabe, Bansal & Hutter 2023.
    """
    trials = ranked(study)
    if len(trials) < LEAST:
        return {}
    create, other = optuna().trial.create_trial, optuna().create_study(direction="minimize")
    for rank, trial in enumerate(trials):
        other.add_trial(create(params=trial.params, distributions=trial.distributions, value=float(rank)))
    found = optuna().importance.get_param_importances(other, evaluator=optuna().importance.PedAnovaImportanceEvaluator())
    return {name: float(share) for name, share in found.items()}
