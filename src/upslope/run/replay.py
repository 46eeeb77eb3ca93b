"""An iteration of a run again, to the bit, for a look at what it saw: batch, advantages, ratios, gradients, parameters before and after.

It is played from the newest checkpoint before it, or from the beginning of the run, in a copy of what the folder holds; the folder itself
is left as it is. A capsule is a small run folder that a run leaves when it stops because nothing is finite any more: the checkpoint
before, and the minibatch in which it was noticed.
"""

import json
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from upslope.errors import Diverged, Signaled, UsageError
from upslope.records import Algorithm, Batch, Policy, State
from upslope.run.capsule import CAPSULE, copy_of, tensors_of, write_tensors
from upslope.run.checkpoints import checkpoints_in, iteration_of, newest
from upslope.run.config import RunConfig
from upslope.run.folder import Output, json_line
from upslope.run.load import Run, damaged, read_json, read_safetensors
from upslope.run.session import Session
from upslope.run.train import RunState, load_policy_state, policy_state
from upslope.run.verify import differences
from upslope.updates.ascent import micro_batches
from upslope.updates.mismatch import at_old_policy


@dataclass
class Replay:
    """What an iteration saw and did: a callback that ends the run behind it.

    ``tensors`` are named ``batch/advantage``, ``ratio`` (π after the update over π that acted, of each step), ``gradient/NAME`` (of the
    whole batch's objective, at the parameters before the update), ``before/NAME`` and ``after/NAME`` (parameters). A method that learns
    at every step has no batch: only its parameters.
    """

    iteration: int
    session: Session | None = None
    start: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metrics: State = field(default_factory=dict[str, Any])
    fault: Diverged | None = None
    differs: list[str] = field(default_factory=list[str])
    compared: list[str] = field(default_factory=list[str])
    before: State = field(default_factory=dict[str, Any])
    algorithm: Any = None

    def begin(self, state: RunState) -> None:
        """Before the run's first iteration."""
        if state.iteration == self.iteration - 1:
            self.algorithm = state.algorithm
            self.before = {name: tensor.detach().clone() for name, tensor in policy_state(state.policy).items()}

    def __call__(self, state: RunState) -> bool:
        """After each iteration."""
        self.begin(state)
        if state.iteration < self.iteration:
            return False
        self.metrics = state.metrics
        after = {name: tensor.detach().clone() for name, tensor in policy_state(state.policy).items()}
        for title, found in {"before": self.before, "after": after}.items():
            self.tensors |= {f"{title}/{name}": tensor for name, tensor in found.items()}
        batch = None if state.batch is None else state.batch.by_unit()
        if batch is not None and batch.num_units:
            self.look(state.policy, batch)
        cast(Session, self.session).signal = signal.SIGINT  # no last evaluation
        return True

    def look(self, policy: Policy, batch: Batch) -> None:
        """The batch, its ratios after the update, and the gradient that the update started with."""
        pieces = list(micro_batches(batch, getattr(self.algorithm.update, "micro_batch_size", None)))
        self.tensors |= tensors_of(batch)
        with torch.no_grad():
            log_prob = torch.cat([policy.evaluate(**piece.inputs).log_prob for piece in pieces])
            self.tensors["ratio"] = (log_prob - batch.behavior_log_prob).exp().masked_fill(~batch.mask, 1.0)
        load_policy_state(policy, self.before)
        if batch.returns is not None and (follow := getattr(policy, "follow_returns", None)) is not None:
            follow(batch.returns[batch.mask])
        named = cast(Any, policy).named_parameters() if hasattr(policy, "named_parameters") else enumerate(policy.parameters())
        wanted = {str(name): parameter for name, parameter in named if parameter.requires_grad}
        for piece in pieces:
            scorer, scored = (policy, piece) if piece.sampler_log_prob is None else at_old_policy(policy, piece)
            objective, _ = cast(Algorithm, self.algorithm).objective(scorer, scored)
            found = torch.autograd.grad(objective, list(wanted.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(wanted, found, strict=True):
                self.tensors[f"gradient/{name}"] = self.tensors.get(f"gradient/{name}", 0.0) + gradient

    def write(self, path: Path) -> None:
        """All tensors into one safetensors file."""
        write_tensors(path, self.tensors)

    def lines(self) -> list[str]:
        """A few lines for a terminal: from where, whether it is the same, and the tensors by size and range."""
        where = f"from the checkpoint of iteration {self.start:,}" if self.start else "from the beginning"
        same = "it fails as recorded" if self.fault is not None else f"{len(self.compared)} numbers of its metrics are equal to the bit"
        same = same if self.compared or self.fault is not None else "its row of metrics was not kept, so there is nothing to compare"
        lines = [f"iteration {self.iteration:,} again, {where}: {f'not the same: {self.differs[0]}' if self.differs else same}"]
        lines += [f"  {self.fault}"] if self.fault is not None else []
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not name.startswith(("before/", "after/")):
                low, mean, high = tensor.min(), tensor.mean(), tensor.max()
                lines.append(f"  {name:<34} {'×'.join(map(str, tensor.shape)):>12}  {mean:.4g} ({low:.4g} to {high:.4g})")
        return lines


def replay(run: Run, config: RunConfig, iteration: int | None = None) -> Replay:
    """Play an iteration of the run again, of a capsule the one that failed.

    Raises:
        UsageError: the run has not come so far, or cannot be made again.
    """
    capsule = read_json(run.path / CAPSULE) if (run.path / CAPSULE).exists() else None
    planned = max(count for name in ("total_steps", "iterations") if (count := getattr(config.settings, name, None)) is not None)
    if capsule is not None and not (is_count(capsule.get("iteration"), planned) and isinstance(capsule.get("error"), str)):
        raise damaged(run.path / CAPSULE, "it names no iteration of this run and no error")
    if iteration is None and capsule is not None:
        iteration = capsule["iteration"]
    rows: dict[int, State] = {row["iteration"]: row for row in run.metrics() if isinstance(row.get("iteration"), int)}
    kept = newest(run.path)
    made = (run.summary or {}).get("iterations", 0)
    last = max(*rows, made if is_count(made, planned) else 0, 0 if kept is None else kept.state["run"]["iteration"], 0)
    if iteration is None or not (1 <= iteration <= last or (capsule is not None and iteration == capsule["iteration"])):
        raise UsageError(f"iteration: expected one of this run's iterations, 1 to {last:,}, found {iteration}")
    found = newest(run.path, before=iteration)
    taken = Replay(iteration, start=0 if found is None else found.state["run"]["iteration"])
    config = with_budget(config, run, taken.start + 1, iteration)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        if found is None:
            taken.session = config.session(Output(out=copy, quiet=True), [taken])
        else:
            copy_of(run.path, copy, found)
            taken.session = config.session(Output(quiet=True), [taken], resumed=copy)
        try:
            taken.session.run()
        except Diverged as fault:
            taken.fault = fault
    if not taken.metrics and taken.fault is None and taken.session.signal is not None:  # on the way to the iteration
        raise Signaled(taken.session.signal)
    compare(taken, run, rows.get(iteration), capsule)
    return taken


def is_count(value: Any, most: int) -> bool:
    """Whether a file's number is one of iterations: each takes a step of the budget at least."""
    return type(value) is int and 1 <= value <= most


def with_budget(config: RunConfig, run: Run, first: int, last: int) -> RunConfig:
    """The configuration with the budget that these iterations had, which schedules span.

    Raises:
        UsageError: they had several.
    """
    unit = "iterations" if run.world == "language" else "total_steps"
    earlier = run.earlier_budgets
    now = getattr(config.settings, unit)
    before, planned = (next((budget for until, budget in earlier if i <= until), now) for i in (first, last))
    if before != planned:
        change = max(until for until, _ in earlier if until < last)
        why = f"where the run's {unit} became {planned:,} from {before:,}; a replay has one budget, so take an iteration before"
        raise UsageError(f"iteration: no checkpoint is left between iteration {last:,} and {change:,}, {why}")
    return config.replaced({unit: planned})


def compare(taken: Replay, run: Run, row: State | None, capsule: State | None) -> None:
    """Say in what the iteration is not what the run has recorded of it."""
    failed = None if capsule is None else capsule["error"]
    if taken.fault is not None or failed is not None:
        said = None if taken.fault is None else str(taken.fault)
        seen = taken.fault.batch if taken.fault is not None else None
        recorded = run.path / "batch.safetensors"
        if isinstance(seen, Batch) and recorded.exists():
            again, then = tensors_of(seen), read_safetensors(recorded)
            taken.differs += [f"the minibatch that failed: {name[1:]}" for name in differences(then, again)]
        taken.differs += [] if said == failed else [f"it ended with {said or 'no error'}, recorded is {failed or 'none'}"]
    elif row is not None:
        again = json.loads(json_line({name: value for name, value in taken.metrics.items() if name in row}))
        taken.compared = list(again)
        taken.differs += [f"metrics: {name[1:]}" for name in differences({name: row[name] for name in again}, again)]
    if any(iteration_of(path) == taken.iteration for path in checkpoints_in(run.path)):
        kept = newest(run.path, before=taken.iteration + 1)
        if kept is not None and iteration_of(kept.path) == taken.iteration:
            after = {name.removeprefix("after/"): tensor for name, tensor in taken.tensors.items() if name.startswith("after/")}
            taken.differs += [f"parameters: {name[1:]}" for name in differences(kept.state["run"]["policy"], after)]
