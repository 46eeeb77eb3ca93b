"""``[N]`` against ``[N, 1]`` would broadcast to ``[N, N]``: every function refuses it, in one line that names the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from upslope import functional as F

X, WIDE = torch.zeros(4), torch.zeros(4, 1)
FLAG, WIDE_FLAG = X.bool(), WIDE.bool()

REFUSED: dict[str, Callable[[], Any]] = {
    "truncated": lambda: F.returns_to_go(X, FLAG, WIDE_FLAG, 0.9),
    "next_value": lambda: F.returns_to_go(X, FLAG, FLAG, 0.9, None, WIDE),
    "mask": lambda: F.episode_returns(X, FLAG, FLAG, 0.9, WIDE_FLAG),
    "truncated ": lambda: F.discount_weight(FLAG, WIDE_FLAG, 0.9),
    "first_step": lambda: F.discount_weight(FLAG, FLAG, 0.9, None, X),
    "value": lambda: F.td_error(X, WIDE, X, FLAG, 0.9),
    "next_value ": lambda: F.gae(X, X, WIDE, FLAG, FLAG, 0.9, 0.9),
    "truncated  ": lambda: F.gae(X, X, X, FLAG, WIDE_FLAG, 0.9, 0.9),
    "terminated": lambda: F.lambda_returns(X, X, X, WIDE_FLAG, FLAG, 0.9, 0.9),
    "next_value  ": lambda: F.n_step_returns(X, WIDE, FLAG, FLAG, 0.9, 2),
    "mask ": lambda: F.normalize(X, WIDE_FLAG),
    "returns": lambda: F.explained_variance(X, WIDE),
    "mask  ": lambda: F.effective_sample_size(X, WIDE_FLAG),
    "value ": lambda: F.weighted_sum(WIDE, X),
    "returns ": lambda: F.squared_error(X, WIDE),
    "old_value": lambda: F.clipped_squared_error(X, X, WIDE, 0.2),
    "behavior_log_prob": lambda: F.score_function(X, WIDE, X, None, None),
    "advantage": lambda: F.importance_weighted(X, X, WIDE, None, None),
    "behavior_log_prob ": lambda: F.clipped_surrogate(X, WIDE, X, None, 0.2),
    "advantage ": lambda: F.clipped_surrogate(X, X, WIDE, None, 0.2),
    "mask   ": lambda: F.clipped_surrogate(X, X, X, WIDE_FLAG, 0.2),
    "advantage  ": lambda: F.truncated_score(X, X, WIDE, None, 0.2),
    "kl": lambda: F.kl_penalized_surrogate(X, X, X, None, None, beta=1.0, kl=WIDE),
    "behavior_log_prob  ": lambda: F.truncated_importance_weight(X, WIDE, 2.0),
    "weight": lambda: F.surrogate_metrics(X, X, X, None, 0.2, WIDE),
    "other": lambda: F.kl_k3(X, WIDE),
    "logits_q": lambda: F.categorical_kl(X, WIDE),
    "logits_q ": lambda: F.bernoulli_kl(X, WIDE),
    "mean_q": lambda: F.gaussian_kl(X, X, WIDE, X),
    "log_std_q": lambda: F.gaussian_kl(X, X, X, WIDE),
    "log_beta_q": lambda: F.beta_kl(X, X, X, WIDE),
    "action": lambda: F.categorical_log_prob(WIDE, WIDE.long()),
    "mask    ": lambda: F.categorical_entropy(X, WIDE_FLAG),
    "action ": lambda: F.bernoulli_log_prob(X, WIDE),
    "action  ": lambda: F.gaussian_log_prob(X, X, WIDE),
    "log_std": lambda: F.gaussian_log_prob(X, WIDE, X),
    "log_std ": lambda: F.gaussian_sample(X, WIDE),
    "action   ": lambda: F.beta_log_prob(X, X, WIDE),
    "log_beta": lambda: F.beta_sample(X, WIDE),
    "mask     ": lambda: F.check_masked_rows(X, FLAG, FLAG, WIDE_FLAG),
}


@pytest.mark.parametrize(("name", "call"), REFUSED.items())
def test_a_trailing_axis_is_refused(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name.strip()}: expected shape .*, found \(4(, 1)?,?\)$") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_public_function_is_exported() -> None:
    for name in F.__all__:
        assert hasattr(F, name)
    for module in ("distributions", "divergences", "importance", "returns", "statistics", "surrogates", "weights"):
        for name, item in vars(getattr(F, module)).items():
            inner = {"check_log_std", "log_beta_function", "logsigmoid"}
            inner |= {name for name in vars(F.recursion) if not name.startswith("_")}
            if callable(item) and not name.startswith("_") and getattr(item, "__module__", "").startswith("upslope.functional"):
                assert name in F.__all__ or name in inner
    assert sorted(F.__all__) == F.__all__


def test_every_public_function_says_what_it_computes() -> None:
    for name in F.__all__:
        item = getattr(F, name)
        if callable(item) and hasattr(item, "__code__"):
            assert item.__doc__, name
            assert len(item.__doc__.splitlines()[0]) > 20, name
