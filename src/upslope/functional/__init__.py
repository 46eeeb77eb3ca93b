"""Pure functions on tensors, time last: the mathematics of policy gradients, without configuration or input and output.

Each is checked against the plain loops of :mod:`upslope.reference`. Only torch is imported.
"""

from upslope.functional.distributions import (
    bernoulli_entropy,
    bernoulli_log_prob,
    bernoulli_sample,
    beta_entropy,
    beta_log_prob,
    beta_sample,
    categorical_entropy,
    categorical_log_prob,
    categorical_sample,
    gaussian_entropy,
    gaussian_log_prob,
    gaussian_sample,
    squashed_gaussian_log_prob,
)
from upslope.functional.divergences import bernoulli_kl, beta_kl, categorical_kl, gaussian_kl, kl_k1, kl_k2, kl_k3
from upslope.functional.importance import cumulative_ratio, per_decision_returns, trajectory_ratio, vtrace
from upslope.functional.preferences import (
    bradley_terry,
    hinge_preference,
    ipo_preference,
    kto_value,
    sequence_log_ratio,
    sigmoid_preference,
)
from upslope.functional.returns import discount_weight, episode_returns, gae, lambda_returns, n_step_returns, returns_to_go, td_error
from upslope.functional.shapes import check_masked_rows, check_shapes
from upslope.functional.statistics import (
    batch_relative,
    effective_sample_size,
    explained_variance,
    group_relative,
    has_spread,
    leave_one_out,
    normalize,
)
from upslope.functional.surrogates import (
    ClipRange,
    Ratio,
    clip_bounds,
    clipped_surrogate,
    importance_weighted,
    kl_penalized_surrogate,
    score_function,
    sequence_mean_ratio,
    sequence_mean_token_ratio,
    sequence_ratio,
    surrogate_metrics,
    token_ratio,
    truncated_importance_weight,
    truncated_score,
)
from upslope.functional.weights import AverageOver, average_weight, clipped_squared_error, squared_error, weighted_sum

__all__ = [
    "AverageOver", "ClipRange", "Ratio", "average_weight", "batch_relative", "bernoulli_entropy", "bernoulli_kl", "bernoulli_log_prob",
    "bernoulli_sample", "beta_entropy", "beta_kl", "beta_log_prob", "beta_sample", "bradley_terry", "categorical_entropy", "categorical_kl",
    "categorical_log_prob", "categorical_sample", "check_masked_rows", "check_shapes", "clip_bounds", "clipped_squared_error",
    "clipped_surrogate", "cumulative_ratio", "discount_weight", "effective_sample_size", "episode_returns", "explained_variance", "gae",
    "gaussian_entropy", "gaussian_kl", "gaussian_log_prob", "gaussian_sample", "group_relative", "has_spread", "hinge_preference",
    "importance_weighted", "ipo_preference", "kl_k1", "kl_k2", "kl_k3", "kl_penalized_surrogate", "kto_value", "lambda_returns",
    "leave_one_out", "n_step_returns", "normalize", "per_decision_returns", "returns_to_go", "score_function", "sequence_log_ratio",
    "sequence_mean_ratio", "sequence_mean_token_ratio", "sequence_ratio", "sigmoid_preference", "squared_error",
    "squashed_gaussian_log_prob", "surrogate_metrics", "td_error", "token_ratio", "trajectory_ratio", "truncated_importance_weight",
    "truncated_score", "vtrace", "weighted_sum",
]  # fmt: skip
