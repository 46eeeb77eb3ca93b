"""Every estimator that the library ships, in every setting that changes its gradient."""

from functools import partial

from upslope import A2C, GRPO, NPG, PPO, REINFORCE, RLOO, TRPO, AllActions, ContinuingActorCritic, OffPolicyGradient, OnlineActorCritic
from upslope import functional as F
from upslope.algorithms import grpo, ppo
from upslope.algorithms.off_policy import ESTIMATORS
from upslope.algorithms.reinforce import RETURNS
from upslope.updates import Ascent

SEVERAL = Ascent(num_epochs=2)


def shipped():
    """Name → algorithm."""
    found = {"reinforce-normalized": REINFORCE(), "reinforce-entropy": REINFORCE(entropy_coef=0.1, gamma=1.0)}
    for name, form in RETURNS.items():
        for baseline in (True, False):
            settings = {"returns": form, "baseline": baseline, "gamma": 0.9, "normalize_advantage": False}
            found[f"reinforce-{name}-{baseline}"] = REINFORCE(**settings)
    for trace in (0.0, 0.95, 1.0):
        found[f"a2c-{trace}"] = A2C(gae_lambda=trace, gamma=0.9)
    found |= {f"all-actions-{weight}": AllActions(gamma=0.9, state_discount=weight, entropy_coef=0.01) for weight in (0.9, 1.0)}
    found |= {
        "a2c-undiscounted": A2C(gamma=1.0, normalize_advantage=True),
        "npg": NPG(),
        "trpo": TRPO(),
        "trpo-undiscounted": TRPO(gamma=1.0),
    }
    found |= {f"ppo-{name}": PPO(surrogate=surrogate) for name, surrogate in ppo.SURROGATES.items()}
    found |= {
        "ppo-penalty": PPO(surrogate=F.importance_weighted, kl_coef=1.0, adaptive_kl=0.01),
        "ppo-dual": PPO(dual_clip=3.0, value_clip_range=0.2, gamma=1.0, normalize_advantage=False, entropy_coef=0.01),
        **{f"ppo-dual-{c}": PPO(dual_clip=c) for c in (1.1, 1.2, 1.5, 2.0)},
        "grpo-dual": GRPO(dual_clip=1.2, average_over="constant"),
        "ppo-reference": PPO(reference_kl_coef=0.1),
        "reinforce-reference": REINFORCE(reference_kl_coef=0.1, baseline=False),
    }
    for trace in (0.0, 0.7, 1.0):
        found[f"actor-critic-{trace}"] = OnlineActorCritic(gamma=0.9, trace_decay=trace)
    found["actor-critic-continuing"] = ContinuingActorCritic(trace_decay=0.5)
    found["actor-critic-unweighted"] = OnlineActorCritic(gamma=0.9, discount_weight=False)
    for name, estimator in ESTIMATORS.items():
        found[f"off-policy-{name}"] = OffPolicyGradient(estimator=estimator)
    bare = {"ratio_cap": None, "trace_cap": None, "scale_advantage": False, "baseline": False}
    for name in ("vtrace", "per-decision", "per-step"):
        found[f"off-policy-{name}-bare"] = OffPolicyGradient(estimator=ESTIMATORS[name], gamma=0.9, **bare)
    found |= {f"grpo-{name}": GRPO(**settings) for name, settings in grpo.RELATIVES.items()}
    for (name, advantage), surrogate in zip(grpo.ADVANTAGES.items(), grpo.SURROGATES.values(), strict=True):
        found[f"grpo-{name}"] = GRPO(advantage=advantage, surrogate=surrogate, average_over="constant")
    found |= {f"grpo-{name}": GRPO(ratio=ratio) for name, ratio in grpo.RATIOS.items()}
    found |= {
        "grpo-kl": GRPO(kl_coef=0.1),
        "grpo-kl-reward": GRPO(kl_coef=0.1, kl_estimator="k1", kl_placement="reward", entropy_coef=0.01),
        "grpo-scale-free": GRPO(advantage=partial(F.group_relative, scale=False)),
        "rloo": RLOO(),
        "rloo-several": RLOO(update=SEVERAL),
        "rloo-sequences": RLOO(average_over="sequences", kl_coef=0.1),
        "rloo-k2": RLOO(average_over="steps", kl_coef=0.1, kl_estimator="k2", kl_placement="objective"),
    }
    return found
