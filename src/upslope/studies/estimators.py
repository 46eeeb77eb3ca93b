"""Gradient estimators by name: shipped algorithms, of whose objectives nothing but the policy gradient is left.

Advantages are not normalized, values and entropies have no weight, so that what is compared is comparable.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from upslope.algorithms import A2C, GRPO, PPO, REINFORCE, RLOO, OffPolicyGradient
from upslope.algorithms.grpo import RELATIVES
from upslope.algorithms.off_policy import ESTIMATORS as WEIGHTED
from upslope.algorithms.reinforce import RETURNS
from upslope.errors import require, unknown

Make = Callable[[float, float], Any]  # (gamma, gae_lambda) -> algorithm


@dataclass(frozen=True)
class Estimator:
    """One that the command line knows: how it is made, what its expectation is the gradient of, and what it needs."""

    make: Make
    target: str
    critic: bool = False
    grouped: bool = False
    weighted: bool = False


PLAIN: dict[str, Any] = {"normalize_advantage": False, "value_coef": 0.0}
"""Nothing but the policy gradient in the objective."""


def reinforce(form: str, baseline: bool) -> Make:
    return lambda gamma, _: REINFORCE(gamma=gamma, returns=RETURNS[form], baseline=baseline, **PLAIN)


def off_policy(name: str) -> Make:
    options: dict[str, Any] = {"estimator": WEIGHTED[name], "baseline": False, "scale_advantage": False, "value_coef": 0.0}
    return lambda gamma, trace_lambda: OffPolicyGradient(gamma=gamma, trace_lambda=trace_lambda, **options)


def advantage(kind: Any) -> Make:
    """A2C or PPO, which at ratio 1 differ by nothing."""
    return lambda gamma, trace: kind(gamma=gamma, gae_lambda=trace, **PLAIN)


def by_steps(algorithm: GRPO | RLOO) -> Make:
    return lambda _gamma, _trace: replace(algorithm, average_over="steps")


EXACT_CRITIC = "with γ = 1 and an exact critic"
WEIGHTED_TARGETS = {"trajectory": "discounted J", "per-decision": "discounted J"}
TARGETS = {**dict.fromkeys(RETURNS, "discounted J"), "to-go": "with γ = 1", "to-go-undiscounted": "undiscounted J"}


ESTIMATORS: dict[str, Estimator] = {
    **{f"reinforce-{form}": Estimator(reinforce(form, False), TARGETS[form]) for form in RETURNS},
    **{f"reinforce-{form}-baseline": Estimator(reinforce(form, True), TARGETS[form], critic=True) for form in RETURNS},
    "a2c": Estimator(advantage(A2C), EXACT_CRITIC, critic=True),
    "ppo": Estimator(advantage(PPO), EXACT_CRITIC, critic=True),
    "grpo": Estimator(lambda _gamma, _trace: GRPO(), "nothing", grouped=True),
    # averaging over a constant length is averaging over steps, but for a number that the meter takes out
    "dr-grpo": Estimator(by_steps(GRPO(**RELATIVES["dr-grpo"])), "(G − 1)/G of undiscounted J", grouped=True),
    "rloo": Estimator(by_steps(RLOO()), "undiscounted J", grouped=True),
    **{
        f"off-policy-{name}": Estimator(off_policy(name), WEIGHTED_TARGETS.get(name, "nothing"), critic=name == "vtrace", weighted=True)
        for name in WEIGHTED
    },
}
"""The names; ``a2c:0.95``, ``ppo:0.9`` and ``off-policy-vtrace:0.5`` also give λ (1 unless given)."""

DEFAULT = ("reinforce-full-trajectory", "reinforce-to-go-discounted", "reinforce-to-go", "reinforce-to-go-baseline", "a2c:0", "a2c:0.95")


def estimator_of(name: str) -> tuple[Estimator, float]:
    """An entry of the table and λ; raises :class:`UsageError` with the nearest name."""
    plain, colon, number = name.partition(":")
    if plain not in ESTIMATORS:
        raise unknown("estimator", plain, ESTIMATORS)
    if not colon:
        return ESTIMATORS[plain], 1.0
    try:
        trace = float(number)
    except ValueError:
        trace = -1.0
    require(0.0 <= trace <= 1.0, f"--estimators: expected λ in [0, 1] after {plain}:, found {number!r}")
    require(plain in ("a2c", "ppo", "off-policy-vtrace"), f"--estimators: {plain} has no λ; leave {colon}{number} out")
    return ESTIMATORS[plain], trace
