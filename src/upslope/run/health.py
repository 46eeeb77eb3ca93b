"""What did not go well in a run, in plain terms: one set of rules, for warnings while it runs, its last lines, and ``upslope doctor``.

Each rule is a pure function of a :class:`~upslope.run.history.History`. Of a run that reached its goal nothing is said about entropies and
groups: a deterministic policy and groups without spread are what success looks like, too. Every finding shows what was seen and names a
change to try; how often they are right is measured by ``benchmarks/reliability/doctor.py``.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from upslope.run.history import LOST, MEASURES, MIN_ITERATIONS, History, Rows

LARGE_KL = 0.3
"""KL(π_old‖π) of one update, in nats a step, that a surrogate around π_old no longer describes."""
OFTEN = 0.05
"""Share of the iterations in which it is no accident."""
COLLAPSED, CERTAIN = 0.02, 0.003
"""Entropy of discrete actions that explores nothing: as a share of the beginning's, and in nats where the first update took it all."""
LONG = (50_000, 20)
"""Steps and iterations after which something should have been learned: hundreds of episodes, tens of updates."""
NATS = 3.0
"""Change of the entropy of continuous actions, for each dimension, that is a change of the standard deviation by a factor of 20."""
CLIPPED = 0.45
"""Share of a batch outside the clip range, most of which then has no gradient."""
UNEXPLAINED = 0.03
"""Share of the returns' variance that a critic explains at its best, in the median of :data:`WINDOW` iterations, and is dead."""
WINDOW = 9
LEARNED = 0.1
"""What is left of a critic's error where it has learned: all there was to explain, if returns hardly vary any more."""
EXPLODED = 1e3
"""Growth of the gradient's norm, from the first iterations' median to the last ones'."""
STILL = 3e-4
"""Length of all that the weights have moved between evaluations, as a share of theirs, that changes nothing."""
HORIZONS = 30.0
"""Length of an episode, in steps of the discount's horizon 1/(1 − γ), whose end no action is credited with."""
SCALES = (1e-3, 1e3)
"""Size of what a critic learns, in whose units its rates and coefficients are."""
LONGER = (1.5, 8.0)
"""Growth of a completion's length, as a factor and in tokens."""
MISMATCH = 0.1
"""Mean |log π − log π_sampler|, in nats a token."""
FEW = 0.01
"""Effective sample size, as a share of the steps that it is of."""
LIVE_AFTER = 0.25
"""Share of the budget that is spent before a run in progress is judged."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: the evidence, and a change to try."""

    rule: str
    seen: str
    change: str

    def __str__(self) -> str:
        return f"{self.seen}; {self.change}"


Found = tuple[str, str] | None
"""Evidence and change, of a rule that has something to say."""


@dataclass(frozen=True)
class Rule:
    """``check`` looks at the metrics named in ``reads``, or at what ``needs`` finds; ``live`` where it makes sense before the end."""

    name: str
    check: Callable[[History], Found]
    reads: tuple[str, ...] = ()
    live: bool = True
    last: bool = False
    """asked only where no other rule has found anything"""
    needs: Callable[[History], object] = lambda history: False

    def applies(self, history: History) -> bool:
        """Whether the run has what the rule looks at."""
        return bool(self.needs(history)) or any(history.values(name) for name in self.reads)


def findings(history: History, *, live: bool = False) -> list[Finding]:
    """One for each thing that went wrong; none where a run went well. ``live``: of a run that goes on."""
    found: list[Finding] = []
    for rule in RULES:
        if (live and not rule.live) or (rule.last and found) or not rule.applies(history):
            continue
        if (seen := rule.check(history)) is not None:
            found.append(Finding(rule.name, *seen))
    return found


def not_checked(history: History) -> list[str]:
    """The rules that have nothing to look at in this run."""
    return [rule.name for rule in RULES if not rule.applies(history)]


def restarts_of(rows: Rows) -> list[str]:
    """That environments hung or died and were started anew, which a run survives, whatever it learns."""
    count = sum(int(row.get("environment_restarts") or 0) for row in rows)
    what = "an environment hung or died and was" if count == 1 else f"{count} times an environment hung or died and was"
    return [f"{what} started anew, its episode cut off (environment_restarts in the metrics)"] if count else []


# ---------------------------------------------------------------------------------------------------------------- the rules


def failed(history: History) -> Found:
    error = history.error
    if error is None:
        return None
    if error.startswith("ratio:"):
        return None  # stale_log_probs says it
    return f"the run failed: {error}", "try `upslope resume` once the cause is mended"


def stale_log_probs(history: History) -> Found:
    """The policy that is scored is not the one that acted."""
    if history.error is not None and history.error.startswith("ratio:"):
        return history.error, "try to let sampling and training use the same temperature, masks, dropout and weights"
    mismatch = history.end("mismatch")
    if len(mismatch) >= MIN_ITERATIONS and statistics.median(mismatch) > MISMATCH:
        seen = f"what the sampler says of a token and what the policy says of it differ by {statistics.median(mismatch):.2g} nats"
        return seen, "try the same precision for both, and weights that reach the sampler before each iteration"
    few = [size / steps for size, steps in effective(history) if steps > 0]
    if len(few) >= MIN_ITERATIONS and statistics.median(few) < FEW and not history.reached_goal:
        seen = f"importance weights leave {statistics.median(few):.2%} of the steps with a say: the data are of quite another policy"
        return seen, "try --ratio-cap 1, or newer data"
    return None


def effective(history: History) -> list[tuple[float, float]]:
    """Effective sample size and number of steps of each iteration."""
    rows = [row for row in history.rows if row.get("effective_sample_size") is not None]
    recorded = history.settings.get("num_rows")
    lengths = [
        recorded or (later["total_steps"] - row["total_steps"]) / (later["iteration"] - row["iteration"])  # not every row is kept
        for row, later in itertools.pairwise(rows)
    ]
    return [(row["effective_sample_size"], steps) for row, steps in zip(rows[1:], lengths, strict=False)]


def far_below_best(history: History) -> Found:
    final, goal = history.final, history.goal
    if final is None or not history.lost:
        return None
    best = history.best
    seen = f"the final policy has {final.mean:.4g}, far below the {best.mean:.4g}"
    seen += f" after {best.total_steps:,} steps, which --policy best takes" if best.total_steps else " before training"
    calmer = "a decreasing --schedule" if history.settings.get("schedule") in (None, "constant") else "larger batches"
    return seen + ("" if goal is None else f" (the goal is {goal:g})"), f"try a smaller --learning-rate or {calmer}"


def kl_ran_away(history: History) -> Found:
    values = [kl for row in history.rows if (kl := kl_of(row)) is not None]
    large = [kl for kl in values if not kl <= LARGE_KL]
    if len(large) < max(3, OFTEN * len(values)):
        return None
    seen = f"an update moved the policy by more than {LARGE_KL:g} nats of KL in {len(large):,} of {len(values):,} iterations on record"
    seen += f" (up to {max(large):.3g}; 0.01 to 0.05 is usual): the data no longer speaks of such a policy"
    return seen, "try a smaller --learning-rate, fewer epochs or --target-kl 0.03"


def kl_of(row: Mapping[str, float]) -> float | None:
    """KL of the update in a row; ``kl`` is that of a natural-gradient step where it has an improvement, else one to a reference."""
    return row["kl"] if "improvement" in row and "kl" in row else row.get("approx_kl")


def clip_saturated(history: History) -> Found:
    late = history.end("clip_fraction")
    if len(late) < MIN_ITERATIONS or (median := statistics.median(late)) < CLIPPED:
        return None
    seen = f"{median:.0%} of each batch ended outside the clip range, where most steps have no gradient (0.05 to 0.3 is usual)"
    return seen, "try a smaller --learning-rate, fewer --num-epochs or a wider --clip-range"


def entropy_ran_away(history: History) -> Found:
    values = history.values("entropy")
    if len(values) < 2 * MIN_ITERATIONS or history.reached_goal:
        return None
    start, late = max(values[:MIN_ITERATIONS]), statistics.median(history.end("entropy"))
    if history.action_dims:
        change = (late - start) / history.action_dims
        if change > NATS:
            seen = f"the entropy of the actions rose from {start:.2f} to {late:.2f}, so they are noise"
            return seen, "try a smaller --entropy-coef or --learning-rate, or --distribution squashed"
        if change < -NATS and not history.learned:
            seen = f"the entropy of the actions fell from {start:.2f} to {late:.2f}: the policy hardly varies them any more"
            return f"{seen} and the return is no better for it", "try a larger --entropy-coef or a smaller --learning-rate"
        return None
    if start <= 0 or late > max(COLLAPSED * start, CERTAIN) or history.learned:
        return None
    seen = f"the entropy fell from {start:.3g} to {late:.2g}, so the policy does the same whatever happens and finds nothing new"
    return f"{seen}, and the return is no better for it", "try a smaller --learning-rate or a larger --entropy-coef"


def groups_died(history: History) -> Found:
    late = history.in_vain("dead_groups")
    if min(late, default=0.0) < 1.0:
        return None
    seen = f"in the last {len(late):,} iterations the members of every group had the same score, so their advantages are all 0"
    hint = "try a larger --group-size, a reward with more levels, and for texts easier tasks or a higher --temperature"
    return f"{seen} and nothing is learned", hint


def nothing_accepted(history: History) -> Found:
    late = history.in_vain("accepted")
    if max(late, default=1.0) > 0.0:
        return None
    seen = f"the trust region accepted no step in the last {len(late):,} iterations, so the policy stood still"
    return seen, "try a larger --max-kl, more --damping, more --num-cg-steps or a larger batch"


def no_signal(history: History) -> Found:
    """Every advantage is the same, or every episode paid the same."""
    if min(history.in_vain("zero_spread"), default=0.0) >= 1.0:
        return "all advantages of a batch are equal, so no action is better than another", "try a reward that tells actions apart"
    returns = history.values("episode_return")
    if len(returns) < 2 * MIN_ITERATIONS or not history.in_vain("episode_return") or max(returns) > min(returns):
        return None
    seen = f"every episode of training returned {returns[0]:g}, so what the updates follow is noise"
    return seen, "try a larger --entropy-coef or --log-std, longer episodes (--max-episode-steps), or a reward on the way to the goal"


def dead_critic(history: History) -> Found:
    """It explains nothing of the returns at any time of a run, though they vary."""
    values = history.values("explained_variance")
    well = history.reached_goal or (history.goal is None and history.learned)
    if len(values) < 2 * WINDOW or well or len(set(history.values("episode_return"))) == 1:
        return None
    best = max(statistics.median(values[start : start + WINDOW]) for start in range(len(values) - WINDOW + 1))
    error, at_first = (statistics.median(part or [1.0]) for part in (history.end("value_error"), history.begin("value_error")))
    if best >= UNEXPLAINED or error < LEARNED * at_first:
        return None
    share = f"{max(best, 0.0):.0%} of the variance of the returns"
    seen = f"at its best the critic explained {share}, so advantages are as noisy as without one"
    return seen, "try a larger --value-coef or --value-learning-rate, more epochs for the critic, or --normalize-value"


def gradient_exploded(history: History) -> Found:
    skipped = sum(history.values("skipped_steps"))
    if skipped > max(1.0, 0.01 * len(history.rows)):
        seen = f"{skipped:,.0f} gradient steps were not finite and were skipped"
        return seen, "try a smaller --learning-rate, --normalize-reward, or a reward and observations without overflow"
    late = history.in_vain("gradient_norm")
    if not late:
        return None
    start, end = statistics.median(history.begin("gradient_norm")), statistics.median(late)
    if not end > EXPLODED * start > 0.0:
        return None
    seen = f"the gradient's norm grew from {start:.3g} to {end:.3g}"
    return seen, "try a smaller --learning-rate, a smaller --max-grad-norm, or --normalize-reward"


def weights_stand_still(history: History) -> Found:
    moved, late = history.values("weight_change"), history.values("weights_moved")
    if len(late) > len(history.rows) / 2:
        seen = f"an update moved {statistics.median(late):.1%} of the weights: steps are smaller than the distance between their numbers"
        return seen, "try a larger --learning-rate, or float32 weights"
    if len(moved) < MIN_ITERATIONS or len(history.rows) < LONG[1] or history.reached_goal or sum(moved) >= STILL:
        return None
    seen = f"all updates together have moved the weights by {sum(moved):.1g} of their size"
    return seen, "try a larger --learning-rate (3e-4 is usual for networks, 1e-6 to 1e-5 for language models)"


def horizon_too_short(history: History) -> Found:
    gamma, lengths = history.settings.get("gamma"), history.in_vain("episode_length")
    if not isinstance(gamma, int | float) or not 0 <= gamma < 1 or not lengths:
        return None
    horizon, length = 1 / (1 - gamma), statistics.median(lengths)
    if length <= HORIZONS * horizon:
        return None
    seen = f"with --gamma {gamma:g} an action is credited with about {horizon:.3g} steps, while episodes last {length:,.0f}"
    return seen, f"try --gamma {1 - 10 / length:.3g}"


def reward_scale_off(history: History) -> Found:
    """What the critic learns is far from 1, in whose units its rates are; or, of a method that learns at every step, its TD errors are."""
    errors = history.end("td_error_squared")
    size = math.sqrt(statistics.median(errors)) if errors else 1.0
    at_first = ""
    if (in_vain := bool(history.in_vain("td_error_squared"))) and size < SCALES[0]:  # what a policy that is stuck is paid is predicted well
        first = math.sqrt(max(history.begin("td_error_squared")))
        size, at_first = (first, " at first") if first > SCALES[0] else (size, "")
    if size > SCALES[1] or (in_vain and 0.0 < size < SCALES[0]):
        seen = f"TD errors are about {size:.2g}{at_first}, and this method's steps are in the units of rewards"
        return seen, f"try --reward-scale {10.0 ** -round(math.log10(size)):g}, and rewards without an added constant"
    settings, rewards = history.settings, history.in_vain("reward_per_step")
    if not rewards:
        rewards = [r / n for r, n in zip(history.in_vain("episode_return"), history.in_vain("episode_length"), strict=False) if n]
    scaled = settings.get("normalize_value") is not False or settings.get("normalize_reward")
    if not rewards or scaled:
        return None
    gamma, lengths = float(settings.get("gamma", 1.0)), history.end("episode_length")
    steps = min(1 / (1 - gamma) if gamma < 1 else math.inf, statistics.median(lengths) if lengths else math.inf, 1e4)
    size = statistics.median(abs(reward) for reward in rewards) * float(settings.get("reward_scale") or 1.0) * steps
    if size == 0 or SCALES[0] <= size <= SCALES[1]:
        return None
    seen = f"discounted returns are about {size:.2g}, and nothing scales what the critic learns"
    return seen, "try --normalize-value, --normalize-reward or --reward-scale"


def longer_for_nothing(history: History) -> Found:
    early, late = history.begin("completion_length"), history.end("completion_length")
    if len(history.values("completion_length")) < 4 * MIN_ITERATIONS or history.rose:
        return None
    start, end, (factor, tokens) = statistics.mean(early), statistics.mean(late), LONGER
    if end < factor * start or end < start + tokens:
        return None
    reward = statistics.mean(history.end(history.measure))
    seen = f"completions grew from {start:.0f} to {end:.0f} tokens while the reward stayed at {reward:.3g}"
    return seen, "try --average-over constant, --overlong-buffer, fewer --max-tokens or a smaller --entropy-coef"


def nothing_learned(history: History) -> Found:
    """A long run that knows its goal has come no nearer to it, neither in its evaluations nor in training, and nothing else says why."""
    final, goal, (steps, iterations) = history.final, history.goal, LONG
    if final is None or goal is None or not history.evaluations or history.reached_goal or history.learned:
        return None
    first = history.evaluations[0]
    if final.total_steps < steps or len(history.rows) < iterations or final.mean - first.mean >= LOST * (goal - first.mean):
        return None
    early = f"after {first.total_steps:,} steps" if first.total_steps else "before training"
    seen = f"nothing was learned in {final.total_steps:,} steps: the final policy has {final.mean:.4g}, no better than the {first.mean:.4g}"
    seen += f" {early}, and training ended as it had begun (the goal is {goal:g})"
    return seen, "try a smaller --learning-rate, a larger --entropy-coef or more steps"


RULES = (
    Rule("failed", failed, live=False, needs=lambda history: True),
    Rule(
        "stale log-probabilities", stale_log_probs, ("mismatch", "effective_sample_size"), live=False, needs=lambda history: history.error
    ),
    Rule("far below its best", far_below_best, live=False, needs=lambda history: history.evaluations),
    Rule("KL runaway", kl_ran_away, ("approx_kl", "improvement")),
    Rule("clip saturation", clip_saturated, ("clip_fraction",)),
    Rule("entropy collapse", entropy_ran_away, ("entropy",)),
    Rule("dead groups", groups_died, ("dead_groups",)),
    Rule("no step accepted", nothing_accepted, ("accepted",)),
    Rule("advantage without signal", no_signal, ("zero_spread", "episode_return"), live=False),
    Rule("dead critic", dead_critic, ("explained_variance",), live=False),
    Rule("gradient explosion", gradient_exploded, ("gradient_norm",)),
    Rule("weights that do not move", weights_stand_still, ("weight_change", "weights_moved")),
    Rule("discount too short", horizon_too_short, ("episode_length",), live=False),
    Rule("reward scale", reward_scale_off, ("value_error", "td_error_squared"), live=False),
    Rule("longer for nothing", longer_for_nothing, ("completion_length",)),
    Rule("nothing learned", nothing_learned, live=False, last=True, needs=lambda history: history.evaluations and history.goal is not None),
)
ALWAYS = ("iteration", "total_steps", "kl", "skipped_steps", "environment_restarts", *MEASURES)
WATCHED = tuple(sorted({*ALWAYS, *(name for rule in RULES for name in rule.reads)}))
"""The metrics that are looked at."""
