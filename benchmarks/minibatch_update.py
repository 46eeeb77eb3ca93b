"""One minibatch update (forward, objective, backward, clip, Adam): upslope's ways against the eager way of SB3 and CleanRL.

python benchmarks/minibatch_update.py                                # about 10 minutes
python benchmarks/minibatch_update.py --rounds 5 --processes 1       # a look

All ways do the same mathematics on the same rows in the same order; their parameters after one step are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import OURS, Record, load_average, ours_is_ready, run, write

WAYS = ("eager", "compiled", "own-surrogate", "own-module")
HEADS = ("categorical", "gaussian")
SIZES = {64: 16, 256: 8, 1024: 4}
"""Rows of a minibatch, and how many make one timed pass."""
TARGETS = {
    "compiled": {64: 5.0, 256: 3.0, 1024: 1.8},
    "own-surrogate": {64: 10.0, 256: 5.0, 1024: 2.5},
    "own-module": {64: 2.0, 256: 1.6, 1024: 1.2},
}
"""The least that an eager update's time divided by ours should be."""
OBSERVATION, ACTIONS, HIDDEN, LEARNING_RATE, VALUE_COEF, ENTROPY_COEF, CLIP, MAX_GRAD_NORM = 4, 2, 64, 3e-4, 0.25, 0.01, 0.2, 0.5
PROTOCOL = (
    "Observations of 4 numbers, 2 actions (or 2 action dimensions), actor and critic of two tanh layers of 64 each. eager: nn.Sequential, "
    "torch.distributions with its defaults, PPO's loss, approx_kl and clip fraction reported, zero_grad, backward, clip_grad_norm_, "
    "torch.optim.Adam. compiled: upslope's PPO on its MLPPolicy. own-surrogate: the same policy, the surrogate a plain torch function of "
    "the user's. own-module: the same network as the user's nn.Module. One timed pass is an epoch of 16, 8 or 4 minibatches, shuffling "
    "and gathering included; times are microseconds of CPU per minibatch: with one thread they are the wall's, less what other processes "
    "take. In one process the ways take turns; fresh processes, each running one way, take turns too. Medians; pinned to one core."
)


def user_surrogate(log_prob: Any, behavior_log_prob: Any, advantage: Any, mask: Any, clip_range: Any) -> Any:
    """The clipped surrogate as a user would write it: nothing tells the library that it is the shipped one."""
    import torch

    ratio = (log_prob - behavior_log_prob).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


def networks() -> Any:
    """Actor and critic as everybody writes them."""
    from torch import nn

    def mlp(outputs: int) -> Any:
        return nn.Sequential(nn.Linear(OBSERVATION, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))

    class UserNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = mlp(ACTIONS), mlp(1)

        def forward(self, observation: Any) -> Any:
            return self.actor(observation), self.critic(observation).squeeze(-1)

    return UserNetwork()


class Case:
    """One batch and one set of initial weights, for every way."""

    def __init__(self, head: str, minibatch: int, minibatches: int) -> None:
        import numpy as np
        import torch
        from gymnasium import spaces

        from upslope import functional as F
        from upslope.control import MLPPolicy
        from upslope.records import Batch

        torch.set_num_threads(1)
        self.head, self.minibatch, self.minibatches = head, minibatch, minibatches
        box = spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
        self.spaces = box, spaces.Discrete(ACTIONS) if head == "categorical" else spaces.Box(-1, 1, (ACTIONS,), np.float32)
        self.policy = MLPPolicy.for_envs(self.spaces, seed=0, normalize_value=False)
        rows, generator = minibatch * minibatches, torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.policy.actor[-1].weight.mul_(30.0)  # away from the uniform policy that training starts with
        observation = torch.randn(rows, OBSERVATION, generator=generator)
        sample = self.policy.sample({"observation": observation}, generator=generator)
        mask = torch.ones(rows, dtype=torch.bool)
        self.batch = Batch(
            inputs={"observation": observation, "action": sample.action},
            behavior_log_prob=sample.log_prob,
            mask=mask,
            weight=F.average_weight(mask),
            advantage=torch.randn(rows, generator=generator),
            returns=torch.randn(rows, generator=generator),
            value=sample.value,
        )

    def way(self, name: str) -> tuple[Callable[[], None], Callable[[], Any]]:
        """A pass over the batch that can be repeated, and the parameters it has led to, in one order for all ways."""
        return self.eager() if name == "eager" else self.ours(name)

    def ours(self, name: str) -> tuple[Callable[[], None], Callable[[], Any]]:
        """One of upslope's ways, chosen by what the objects are, as ``train`` does."""
        import copy

        import torch

        from upslope import PPO, Ascent, control
        from upslope.fast import twins

        update = Ascent(learning_rate=LEARNING_RATE, num_minibatches=self.minibatches, max_grad_norm=MAX_GRAD_NORM)
        algorithm = PPO(clip_range=CLIP, value_coef=VALUE_COEF, entropy_coef=ENTROPY_COEF, update=update)
        policy = copy.deepcopy(self.policy)
        if name == "own-surrogate":
            algorithm = replace(algorithm, surrogate=user_surrogate)
        if name == "own-module":
            policy = control.ActorCritic(networks(), self.spaces, seed=0, normalize_value=False)
            pairs = zip(policy.parameters(), self.policy.parameters(), strict=True)
            with torch.no_grad():
                for own, given in pairs:
                    own.copy_(given)
        state, step = update.start(policy, seed=0), twins.fast_update(algorithm, policy)
        expected = {"compiled": "CompiledUpdate", "own-surrogate": "CompiledUpdate", "own-module": "HeadUpdate"}[name]
        if type(step).__name__ != expected:
            raise SystemExit(f"{name}: expected {expected}, found {type(step).__name__}; is llvmlite installed?")
        old = [policy]  # the batch stays the policy's own, so that the first ratio of every pass is 1

        def once() -> None:
            step(algorithm, policy, self.fresh(old[0]), state)

        return once, lambda: torch.cat([p.detach().reshape(-1) for p in policy.parameters()])

    def fresh(self, policy: Any) -> Any:
        """The batch with the log-probabilities that the policy gives its actions now; not part of what is timed."""
        import torch

        paused = time.process_time()
        with torch.no_grad():
            batch = replace(self.batch, behavior_log_prob=policy.evaluate(**self.batch.inputs).log_prob)
        self.paused = time.process_time() - paused
        return batch

    def eager(self) -> tuple[Callable[[], None], Callable[[], Any]]:
        """The reference: how SB3 and CleanRL update, in the plainest form."""
        import torch
        from torch import nn
        from torch.distributions import Categorical, Normal

        agent = networks()
        if self.head == "gaussian":
            agent.log_std = nn.Parameter(torch.zeros(ACTIONS))
        given = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, p in agent.named_parameters():
                p.copy_(given[f"spread.{name}" if name == "log_std" else f"network.{name}"])
        optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)
        generator, inputs = torch.Generator().manual_seed(0), self.batch.inputs

        def evaluate(observation: Any, action: Any) -> tuple[Any, Any, Any]:
            output, value = agent(observation)
            if self.head == "categorical":
                distribution = Categorical(logits=output)
                return distribution.log_prob(action), distribution.entropy(), value
            normal = Normal(output, agent.log_std.expand_as(output).exp())
            return normal.log_prob(action).sum(1), normal.entropy().sum(1), value

        def once() -> None:
            paused = time.process_time()
            with torch.no_grad():
                behavior = evaluate(inputs["observation"], inputs["action"])[0]
            self.paused = time.process_time() - paused
            approx_kls, clip_fractions = [], []
            order = torch.randperm(len(behavior), generator=generator)
            for start in range(0, len(order), self.minibatch):
                rows = order[start : start + self.minibatch]
                advantage, returns = self.batch.advantage[rows], self.batch.returns[rows]
                log_prob, entropy, value = evaluate(inputs["observation"][rows], inputs["action"][rows])
                log_ratio = log_prob - behavior[rows]
                ratio = log_ratio.exp()
                with torch.no_grad():
                    approx_kls.append(((ratio - 1) - log_ratio).mean().item())
                    clip_fractions.append(((ratio - 1).abs() > CLIP).float().mean().item())
                policy_loss = -torch.min(advantage * ratio, advantage * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)).mean()
                value_loss = ((value - returns) ** 2).mean()
                loss = policy_loss + VALUE_COEF * value_loss - ENTROPY_COEF * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()

        def vector() -> Any:
            parts = [*agent.actor.parameters(), *agent.critic.parameters(), *([agent.log_std] if self.head == "gaussian" else [])]
            return torch.cat([p.detach().reshape(-1) for p in parts])

        return once, vector

    def timed(self, once: Callable[[], None]) -> float:
        """CPU microseconds per minibatch of one pass."""
        self.paused = 0.0
        started = time.process_time()
        once()
        return (time.process_time() - started - self.paused) / self.minibatches * 1e6


def agreement(head: str, minibatch: int) -> dict[str, float]:
    """The largest difference of any parameter from the eager way's after one minibatch update from the same weights."""
    case, found = Case(head, minibatch, 1), {}
    for name in WAYS:
        once, vector = case.way(name)
        once()
        found[name] = vector()
    return {name: float((found[name] - found["eager"]).abs().max()) for name in WAYS}


def in_one_process(head: str, minibatch: int, rounds: int, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Times of ways that take turns, after two passes of each that are not counted."""
    case = Case(head, minibatch, SIZES[minibatch])
    ways = {name: case.way(name)[0] for name in names}
    for once in ways.values():
        once()
        once()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(case.timed(ways[name]))
    return times


def worker(rounds: int, names: tuple[str, ...]) -> None:
    """What one fresh process does: everything with the ways named, as JSON on standard output."""
    together = len(names) > 1
    found: Record = {"times": {}, "agreement": {}}
    for head in HEADS:
        for size in SIZES:
            key = f"{head} {size}"
            times = in_one_process(head, size, rounds, names)
            found["times"][key] = {name: round(statistics.median(values), 1) for name, values in times.items()}
            if together:
                found["agreement"][key] = agreement(head, size)
    print(json.dumps(found))


def speedups(records: list[Record], together: bool) -> Record:
    """By case and way: the median time, the eager median divided by it, and whether that meets the target."""
    table: Record = {}
    for head in HEADS:
        for size in SIZES:
            key = f"{head} {size}"
            medians = {
                name: statistics.median(r["times"][key][name] for r in records if r["together"] == together and name in r["times"][key])
                for name in WAYS
            }
            row: Record = {"eager_us": medians["eager"]}
            for name, targets in TARGETS.items():
                ratio = round(medians["eager"] / medians[name], 2)
                row[name] = {"us": medians[name], "speedup": ratio, "target": targets[size], "met": ratio >= targets[size]}
            table[key] = row
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="passes of each way in a process")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each way, and for all of them together")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs="+", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.rounds, tuple(args.worker))
        return
    ours_is_ready()
    load, records = load_average(), []
    for number in range(args.processes):
        groups: list[tuple[str, ...]] = [WAYS, *((name,) for name in WAYS)]
        turn = number % len(groups)
        for names in groups[turn:] + groups[:turn]:
            command = [OURS / "python", Path(__file__).resolve(), "--rounds", str(args.rounds), "--worker", *names]
            _, output = run(command, args.core)
            records.append({"together": len(names) > 1, "ways": list(names), "round": number, **json.loads(output.splitlines()[-1])})
            print(f"round {number + 1}/{args.processes}  {' '.join(names)}", file=sys.stderr, flush=True)
    differences = [max(d.values()) for r in records for d in r["agreement"].values()]
    agree = {"largest_difference_after_one_update": max(differences), "target": "<= 1e-6", "met": max(differences) <= 1e-6}
    sections = {"in_one_process": speedups(records, True), "fresh_processes": speedups(records, False), "agreement": agree}
    write("minibatch_update", [], records, args.out, protocol=PROTOCOL, load_average_before=load, **sections)


if __name__ == "__main__":
    main()
