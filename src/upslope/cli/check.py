"""``upslope check module:name``: look for mistakes in a user's estimator, surrogate, policy or algorithm."""

import inspect
import json
from typing import Any, cast

import upslope
from upslope.cli.command import Command
from upslope.cli.flags import REAL, SWITCH, TEXT, Flag, one_of, several
from upslope.errors import require
from upslope.run.settings import instance_of, load_object

KINDS = ("estimator", "surrogate", "algorithm", "policy")
FLAGS = (
    Flag("kind", one_of(KINDS), None, "what it is (none: seen from what it has); an algorithm is an estimator and more"),
    Flag("gamma", REAL, None, "discount factor of a function; an algorithm says its gamma itself (none: 1, or 0.9 for a parameter gamma)"),
    Flag("group", SWITCH, None, "recordings are groups of rows from the same start (none: GRPO and RLOO)"),
    Flag("off_policy", SWITCH, None, "it corrects for another behavior policy (none: if it reacts to behavior_log_prob)"),
    Flag("whole_episodes", SWITCH, None, "it is for whole episodes, one in a row: no truncations are tried"),
    Flag("by_design", several(TEXT, None), (), "mistakes that are made on purpose"),
    Flag("json", SWITCH, False, "print one JSON object and nothing else"),
)

HELP = """\
usage: upslope check module:name [flags]

Compute an estimator's exact expectation on small problems, compare it with the exact policy gradient, and name the mistake that it
has. `name` is an algorithm (a class or an instance), a function (policy, rollout) or (policy, rollout, gamma) that returns a
number to differentiate or a gradient, a surrogate (log_prob, behavior_log_prob, advantage, mask, clip_range), or a function without
parameters that returns a policy and its inputs: (policy, {"observation": ...}).
Exit code 0: no mistake is found, 1: one is, 2: it cannot be checked.

  upslope check my_module:estimator
  upslope check my_module:MyGRPO --group --json
"""


def check_named(plain: list[str], values: dict[str, Any]) -> int:
    require(":" in plain[0], f"check: expected module:name, found {plain[0]}; try: upslope check my_module:estimator")
    target = load_object(plain[0], "check")
    as_json = values.pop("json")
    kind = values.pop("kind") or kind_of(target)
    result, text = check(target, kind, values)
    print(json.dumps({"check": plain[0], "kind": kind, **result}, ensure_ascii=False) if as_json else text)
    return 1 if result["mistake"] else 0


def kind_of(target: Any) -> str:
    if hasattr(target, "estimate") and hasattr(target, "objective"):
        return "algorithm"
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return "estimator"
    names = list(parameters)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if "behavior_log_prob" in names or "advantage" in names or (len(needed) == 5 and not isinstance(target, type)):
        return "surrogate"  # whatever the five are called: an estimator is given two, or three
    return "policy" if not names and not isinstance(target, type) else "estimator"


def check(target: Any, kind: str, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """``(fields with mistake, text)``."""
    if isinstance(target, type):
        target = instance_of(target, f"check: {target.__name__}", "name an instance")
    name = getattr(target, "__name__", type(target).__name__)
    if kind in ("surrogate", "policy"):
        for flag in FLAGS:
            require(options.get(flag.name) in (None, ()), f"{flag.option}: a {kind} has no such setting")
        arguments = policy_and_inputs(target, name) if kind == "policy" else (target,)
        broken = contract(upslope.testing.check_policy if kind == "policy" else upslope.testing.check_surrogate, *arguments)
        if broken is None:
            return {"mistake": None, "contract": None}, f"{name}: this {kind} has none of the known mistakes"
        return {"mistake": broken.mistake, "contract": str(broken)}, f"{name}: breaks its contract\n  BROKEN       {broken}"
    report = upslope.testing.check_estimator(target, **options)
    broken = contract(upslope.testing.check_algorithm, target, group=options["group"]) if kind == "algorithm" else None
    fields, (first, *rest) = {**report.as_dict(), "contract": None}, str(report).splitlines()
    if broken is not None:
        first = f"{first}, and breaks its contract" if report.mistake else f"{name}: breaks its contract"
        rest.append(f"  BROKEN       {broken}")
        fields |= {"mistake": report.mistake or broken.mistake, "contract": str(broken)}
    return fields, "\n".join([first, *rest])


def contract(function: Any, *arguments: Any, **options: Any) -> Any:
    try:
        function(*arguments, **options)
    except upslope.testing.ContractError as error:
        return error
    return None


def policy_and_inputs(target: Any, name: str) -> tuple[Any, Any]:
    makes = callable(target) and not hasattr(target, "sample")
    with cast(Any, upslope.testing).contract.user_errors(name):
        found: Any = target() if makes else target
    what = "name a function that returns (policy, inputs), such as (policy, {'observation': …})"
    require(isinstance(found, tuple) and len(found) == 2, f"check: a policy is checked on its inputs; {what}")
    for member in ("sample", "evaluate", "parameters"):
        there = f"{type(found[0]).__name__} as policy: it has no {member}"
        require(hasattr(found[0], member), f"{name}: expected (policy, inputs), found {there}")
    return found


COMMAND = Command(check_named, HELP, FLAGS, "check: expected module:name, found nothing; try: upslope check my_module:estimator")
