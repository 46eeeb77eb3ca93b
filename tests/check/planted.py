"""Estimators with one error each, as people write them, and sound ones beside them."""

from dataclasses import dataclass, replace

import torch

from upslope import A2C, GRPO, PPO, REINFORCE, AllActions, OffPolicyGradient
from upslope import functional as F
from upslope.algorithms.reinforce import to_go
from upslope.records import Batch

PLANTED = {}
"""Name → (estimator, options, mistake)."""


def planted(mistake, **options):
    def add(estimator):
        made = estimator() if isinstance(estimator, type) else estimator
        PLANTED[estimator.__name__] = (made, options, mistake)
        return estimator

    return add


def log_prob(policy, rollout):
    return policy.evaluate(**rollout.inputs).log_prob


def total(x, rollout):
    """Mean over rows of the sum over real steps."""
    return x.where(rollout.mask, 0.0).sum(-1).mean()


def returns(rollout, gamma):
    return F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, gamma, rollout.mask)


def discount(rollout, gamma):
    return gamma ** torch.arange(rollout.reward.shape[-1])


# ----------------------------------------------------------------------------------------------------------- sound


def plain_reinforce(policy, rollout):
    return total(log_prob(policy, rollout) * returns(rollout, 1.0), rollout)


def discounted_reinforce(policy, rollout, gamma):
    return total(discount(rollout, gamma) * log_prob(policy, rollout) * returns(rollout, gamma), rollout)


def number_for_each_row(policy, rollout):
    return (log_prob(policy, rollout).where(rollout.mask, 0.0) * rollout.reward.sum(-1, keepdim=True)).sum(-1)


def gradient_by_hand(policy, rollout):
    """∇ log π = e_a − π for a softmax table, and nothing for the critic."""
    states, actions = rollout.inputs["observation"], rollout.inputs["action"]
    chosen = torch.nn.functional.one_hot(actions, 2) - policy.probabilities()[states].detach()
    credit = (chosen * (returns(rollout, 1.0) * rollout.mask).unsqueeze(-1)).reshape(-1, 2)
    table, values = (torch.zeros_like(p) for p in policy.parameters())
    return [table.index_add(0, states.reshape(-1), credit) / len(states), values]


def actor_critic_with_its_own_critic(policy, rollout, gamma):
    new = policy.evaluate(**rollout.inputs)
    target = F.lambda_returns(
        rollout.reward, rollout.value, rollout.next_value, rollout.terminated, rollout.truncated, gamma, 0.9, rollout.mask
    )
    weight = F.discount_weight(rollout.terminated, rollout.truncated, gamma, rollout.mask)
    return total(weight * new.log_prob * (target - new.value.detach()) - 0.5 * (new.value - target) ** 2, rollout)


def steps_of_a_minibatch(policy, rollout):
    return (log_prob(policy, rollout) * returns(rollout, 1.0))[rollout.mask].mean()


def group_with_leave_one_out(policy, rollout):
    score = rollout.reward.sum(-1)
    return total(log_prob(policy, rollout) * F.leave_one_out(score).unsqueeze(-1), rollout)


def group_scaled_by_its_range(policy, rollout):
    score = rollout.reward.sum(-1, keepdim=True)
    low, high = score.amin(-2, keepdim=True), score.amax(-2, keepdim=True)
    return total(log_prob(policy, rollout) * (score - score.mean(-2, keepdim=True)) / (high - low + 1e-8), rollout)


def group_without_a_comparison(policy, rollout):
    return total(log_prob(policy, rollout) * rollout.reward.sum(-1, keepdim=True), rollout)


def every_action(policy, rollout, gamma):
    """The library's all-actions gradient with the exact action values."""
    algorithm = AllActions(q=lambda inputs: policy.action_values(**inputs), state_discount=gamma)
    return algorithm.objective(policy, algorithm.estimate(policy, rollout))[0]


def trajectory_ratio(policy, rollout):
    return ((log_prob(policy, rollout) - rollout.behavior_log_prob).where(rollout.mask, 0.0).sum(-1).exp() * rollout.reward.sum(-1)).mean()


def ratios_up_to_each_reward(policy, rollout):
    ratio = (log_prob(policy, rollout) - rollout.behavior_log_prob).where(rollout.mask, 0.0).cumsum(-1).exp()
    return total(ratio * rollout.reward, rollout)


def trajectory_ratio_in_groups(policy, rollout):
    ratio = (log_prob(policy, rollout) - rollout.behavior_log_prob).where(rollout.mask, 0.0).sum(-1).exp()
    return (ratio * F.leave_one_out(rollout.reward.sum(-1))).mean()


def near_a_reference(policy, rollout, estimate, in_reward):
    new = log_prob(policy, rollout)
    kl = (estimate(new.detach() if in_reward else new, rollout.reference_log_prob)).where(rollout.mask, 0.0)
    g = rollout.reward.sum(-1, keepdim=True) - (0.2 * kl.sum(-1, keepdim=True) if in_reward else 0.0)
    return total(new * g - (0.0 if in_reward else 0.2 * kl), rollout)


def k1_in_the_reward(policy, rollout):
    return near_a_reference(policy, rollout, F.kl_k1, True)


def k2_in_the_objective(policy, rollout):
    return near_a_reference(policy, rollout, F.kl_k2, False)


def k3_in_the_objective(policy, rollout):
    return near_a_reference(policy, rollout, F.kl_k3, False)


SOUND = {
    f.__name__: (f, options)
    for f, options in (
        (k1_in_the_reward, {}),
        (k2_in_the_objective, {}),
        (k3_in_the_objective, {}),
        (plain_reinforce, {}),
        (discounted_reinforce, {}),
        (number_for_each_row, {}),
        (gradient_by_hand, {}),
        (actor_critic_with_its_own_critic, {}),
        (steps_of_a_minibatch, {}),
        (group_with_leave_one_out, {"group": True}),
        (group_scaled_by_its_range, {"group": True}),
        (group_without_a_comparison, {"group": True}),
        (every_action, {}),
        (trajectory_ratio, {}),
        (ratios_up_to_each_reward, {}),
        (trajectory_ratio_in_groups, {"group": True}),
    )
}


# ------------------------------------------------------------------------------ sound, and rows of a batch see each other


def standardized(x, mask):
    """As people write it, with an eps."""
    return ((x - x[mask].mean()) / (x[mask].std() + 1e-8)).where(mask, 0.0)


def generalized_advantage(rollout, gamma, trace=0.9):
    r = rollout
    return F.gae(r.reward, r.value, r.next_value, r.terminated, r.truncated, gamma, trace, r.mask)


def normalized_advantage(policy, rollout):
    return total(log_prob(policy, rollout) * F.normalize(generalized_advantage(rollout, 1.0), rollout.mask), rollout)


def normalized_return_less_value(policy, rollout):
    return total(log_prob(policy, rollout) * standardized(returns(rollout, 1.0) - rollout.value, rollout.mask), rollout)


def normalized_in_float32(policy, rollout):
    g = standardized((returns(rollout, 1.0) - rollout.value).float(), rollout.mask)
    return total(log_prob(policy, rollout) * g, rollout)


def normalized_with_a_critic_of_its_own(policy, rollout, gamma):
    new = policy.evaluate(**rollout.inputs)
    a = standardized(returns(rollout, gamma) - new.value.detach(), rollout.mask)
    return total(new.log_prob * a * discount(rollout, gamma) + 0.01 * new.entropy, rollout)


def normalized_ppo(policy, rollout):
    """The clipped objective, an advantage normalized over the batch, an entropy bonus, a critic: one number."""
    new = policy.evaluate(**rollout.inputs)
    a, mask = generalized_advantage(rollout, 1.0), rollout.mask
    ratio = (new.log_prob - rollout.behavior_log_prob).exp()
    scaled = standardized(a, mask)
    surrogate = torch.minimum(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled)
    return (surrogate - 0.5 * (new.value - (a + rollout.value)) ** 2 + 0.01 * new.entropy)[mask].mean()


def mean_of_the_batch_as_baseline(policy, rollout):
    g = returns(rollout, 1.0)
    return total(log_prob(policy, rollout) * (g - g[rollout.mask].mean()), rollout)


def mean_at_each_step_as_baseline(policy, rollout):
    g = returns(rollout, 1.0)
    mean = g.where(rollout.mask, 0.0).sum(0) / rollout.mask.sum(0).clamp(min=1)
    return total(log_prob(policy, rollout) * (g - mean), rollout)


BATCHED = {
    f.__name__: (f, options)
    for f, options in (
        (normalized_advantage, {}),
        (normalized_return_less_value, {}),
        (normalized_in_float32, {}),
        (normalized_with_a_critic_of_its_own, {}),
        (normalized_ppo, {}),
        (mean_of_the_batch_as_baseline, {}),
        (mean_at_each_step_as_baseline, {}),
    )
}


# --------------------------------------------------------------------------------------------- returns and discounts


@planted("missing discount weight")
def forgets_gamma_to_the_t(policy, rollout, gamma):
    return total(log_prob(policy, rollout) * returns(rollout, gamma), rollout)


@planted("discount applied twice")
def discounts_from_the_start_and_again(policy, rollout, gamma):
    rewards = discount(rollout, gamma) * rollout.reward
    g = rewards.flip(-1).cumsum(-1).flip(-1)
    return total(discount(rollout, gamma) * log_prob(policy, rollout) * g, rollout)


@planted("discount applied twice")
def squares_gamma(policy, rollout, gamma):
    return total(discount(rollout, gamma) * log_prob(policy, rollout) * returns(rollout, gamma * gamma), rollout)


@planted("discount restarted")
class RestartsDiscount(REINFORCE):
    def __init__(self):
        super().__init__(gamma=0.9, normalize_advantage=False, returns=lambda rollout, gamma, after: self.form(rollout, gamma, after))

    def form(self, rollout, gamma, after):
        credit, _, target = to_go(rollout, gamma, after)
        return credit, F.discount_weight(rollout.terminated, rollout.truncated, gamma, rollout.mask, dtype=credit.dtype), target


@planted("wrong sign")
def descends(policy, rollout):
    return -plain_reinforce(policy, rollout)


@planted("off by one")
def begins_with_the_next_reward(policy, rollout, gamma):
    g = returns(rollout, gamma)
    g = torch.cat([g[..., 1:], torch.zeros_like(g[..., :1])], -1)
    return total(discount(rollout, gamma) * log_prob(policy, rollout) * g, rollout)


@planted("later rewards left out")
def sums_forwards(policy, rollout, gamma):
    g, seen = torch.zeros_like(rollout.reward), torch.zeros_like(rollout.reward[..., 0])
    for t in range(g.shape[-1]):
        seen = rollout.reward[..., t] + gamma * seen
        g[..., t] = seen
    return total(discount(rollout, gamma) * log_prob(policy, rollout) * g, rollout)


@planted("later rewards left out")
def bootstraps_from_where_it_is(policy, rollout, gamma):
    """δ_t = r_t + γ V(s_t) − V(s_t): the value of this state has no part in the expectation."""
    delta = rollout.reward + gamma * rollout.value - rollout.value
    return total(discount(rollout, gamma) * log_prob(policy, rollout) * delta, rollout)


@planted("log-probabilities shifted")
def shifts_tokens(policy, rollout):
    new, g = log_prob(policy, rollout), returns(rollout, 1.0)
    return (new[..., 1:] * g[..., :-1]).where(rollout.mask[..., 1:], 0.0).sum(-1).mean()


@planted("baseline depends on the action")
def baseline_of_the_next_state(policy, rollout):
    return total(log_prob(policy, rollout) * (returns(rollout, 1.0) - rollout.next_value), rollout)


@planted("baseline depends on the action")
def baseline_of_the_action(policy, rollout):
    q = policy.action_values(**rollout.inputs).gather(-1, rollout.inputs["action"].unsqueeze(-1)).squeeze(-1)
    return total(log_prob(policy, rollout) * (returns(rollout, 1.0) - q), rollout)


# ----------------------------------------------------------------------- two things at once: neither hides the other


@planted("missing discount weight")
def mean_of_the_batch_and_no_weight(policy, rollout, gamma):
    g = returns(rollout, gamma)
    return total((g - g[rollout.mask].mean()) * log_prob(policy, rollout), rollout)


@planted("missing discount weight")
def normalized_and_no_weight(policy, rollout, gamma):
    return total(standardized(returns(rollout, gamma), rollout.mask) * log_prob(policy, rollout), rollout)


@planted("off by one")
def normalized_and_late(policy, rollout):
    g = returns(rollout, 1.0)
    g = torch.cat([g[..., 1:], torch.zeros_like(g[..., :1])], -1)
    return total(standardized(g, rollout.mask) * log_prob(policy, rollout), rollout)


@planted("later rewards left out")
def normalized_rewards(policy, rollout):
    return total(standardized(rollout.reward, rollout.mask) * log_prob(policy, rollout), rollout)


@planted("length bias")
def bonus_and_a_mean_over_each_row(policy, rollout):
    new = policy.evaluate(**rollout.inputs)
    step = (returns(rollout, 1.0) * new.log_prob + 0.01 * new.entropy).where(rollout.mask, 0.0)
    return (step.sum(-1) / rollout.mask.sum(-1)).mean()


@planted("missing discount weight")
def bonus_and_no_weight(policy, rollout, gamma):
    new = policy.evaluate(**rollout.inputs)
    return total(returns(rollout, gamma) * new.log_prob + 0.01 * new.entropy, rollout)


def ended_where_it_is_cut(rollout):
    after = rollout.next_value.masked_fill(rollout.terminated | rollout.truncated, 0.0)
    return generalized_advantage(replace(rollout, next_value=after), 1.0)


@planted("truncation taken for termination")
def bonus_and_one_flag(policy, rollout):
    new = policy.evaluate(**rollout.inputs)
    return total(ended_where_it_is_cut(rollout) * new.log_prob + 0.01 * new.entropy, rollout)


@planted("truncation taken for termination")
def normalized_and_one_flag(policy, rollout):
    return total(F.normalize(ended_where_it_is_cut(rollout), rollout.mask) * log_prob(policy, rollout), rollout)


@planted("length bias")
def normalized_and_a_mean_over_each_row(policy, rollout):
    step = (standardized(returns(rollout, 1.0), rollout.mask) * log_prob(policy, rollout)).where(rollout.mask, 0.0)
    return (step.sum(-1) / rollout.mask.sum(-1)).mean()


# ------------------------------------------------------------------------------------------------------ actor-critics


class Advantage(A2C):
    """A2C whose advantage comes from :meth:`advantage`."""

    def estimate(self, policy, rollout):
        a = self.advantage(rollout.reward, rollout.value, rollout.next_value, rollout.terminated, rollout.truncated, rollout.mask)
        return Batch.of(rollout, advantage=a, returns=a.detach() + rollout.value)


def actor_critic(mistake, **options):
    def add(advantage):
        cls = type(advantage.__name__, (Advantage,), {"advantage": staticmethod(advantage)})
        PLANTED[advantage.__name__] = (cls(gamma=0.9, gae_lambda=0.8), {"by_design": ["missing discount weight"], **options}, mistake)
        return advantage

    return add


@actor_critic("truncation taken for termination")
def one_flag_for_both(reward, value, after, terminated, truncated, mask):
    return F.gae(reward, value, after, terminated | truncated, torch.zeros_like(truncated), 0.9, 0.8, mask)


@actor_critic("termination taken for truncation")
def bootstraps_at_the_end(reward, value, after, terminated, truncated, mask):
    return F.gae(reward, value, after, torch.zeros_like(terminated), terminated | truncated, 0.9, 0.8, mask)


@actor_critic("ends do not cut")
def runs_through_ends(reward, value, after, terminated, truncated, mask):
    delta = F.td_error(reward, value, after, terminated, 0.9, mask)
    found, rest = torch.zeros_like(delta), torch.zeros_like(delta[..., 0])
    for t in reversed(range(delta.shape[-1])):
        rest = delta[..., t] + 0.9 * 0.8 * rest
        found[..., t] = rest
    return found.where(mask, 0.0)


@actor_critic("ends do not cut")
def cut_by_terminations_only(reward, value, after, terminated, truncated, mask):
    return F.gae(reward, value, after, terminated, torch.zeros_like(truncated), 0.9, 0.8, mask)


@actor_critic("reward of the next step")
def next_reward(reward, value, after, terminated, truncated, mask):
    reward = torch.cat([reward[..., 1:], torch.zeros_like(reward[..., :1])], -1)
    return F.gae(reward, value, after, terminated, truncated, 0.9, 0.8, mask)


@actor_critic("off by one")
def late_advantage(reward, value, after, terminated, truncated, mask):
    a = F.gae(reward, value, after, terminated, truncated, 0.9, 0.8, mask) + 0.5 * value
    return torch.cat([a[..., 1:].where(mask[..., 1:], 0.0), torch.zeros_like(a[..., :1])], -1)


@actor_critic("temporal-difference sign")
def critic_upside_down(reward, value, after, terminated, truncated, mask):
    return F.gae(reward, -value, -after, terminated, truncated, 0.9, 0.8, mask)


def unknown_decay(mistake):
    """A function whose λ nobody was told."""

    def add(advantage):
        def estimator(policy, rollout, gamma):
            weight = F.discount_weight(rollout.terminated, rollout.truncated, gamma, rollout.mask)
            return total(weight * log_prob(policy, rollout) * advantage(rollout, gamma, 0.37), rollout)

        PLANTED[advantage.__name__] = (estimator, {}, mistake)
        return advantage

    return add


@unknown_decay("truncation taken for termination")
def one_flag(r, gamma, trace):
    ended = r.terminated | r.truncated
    return F.gae(r.reward, r.value, r.next_value, ended, torch.zeros_like(ended), gamma, trace, r.mask)


@unknown_decay("discount applied twice")
def gamma_squared_in_the_td_error(r, gamma, trace):
    return F.gae(r.reward, r.value, r.next_value, r.terminated, r.truncated, gamma * gamma, trace, r.mask)


@unknown_decay("value of the same state")
def value_of_this_state_for_the_next(r, gamma, trace):
    return F.gae(r.reward, r.value, r.value, r.terminated, r.truncated, gamma, trace, r.mask)


@unknown_decay("off by one")
def advantage_of_the_step_after(r, gamma, trace):
    a = F.gae(r.reward, r.value, r.next_value, r.terminated, r.truncated, gamma, trace, r.mask)
    return torch.cat([a[..., 1:], torch.zeros_like(a[..., :1])], -1)


@planted("advantage carries gradient")
def forgets_detach(policy, rollout):
    new = policy.evaluate(**rollout.inputs)
    return total(new.log_prob * (returns(rollout, 1.0) - new.value), rollout)


@planted("advantage carries gradient", by_design=["missing discount weight"])
class CarriesGradient(A2C):
    def estimate(self, policy, rollout):
        batch = super().estimate(policy, rollout)
        return replace(batch, advantage=batch.returns - policy.evaluate(**rollout.inputs).value)


# ---------------------------------------------------------------- a bias without a name, beside what is made on purpose


@actor_critic("biased by no known mistake")
def value_of_the_state_where_it_is_cut(reward, value, after, terminated, truncated, mask):
    return F.gae(reward, value, torch.where(truncated, value, after), terminated, truncated, 0.9, 0.8, mask)


@planted("biased by no known mistake")
class ShippedAndCutTwice(PPO):
    """γ^t is left out by design, as in PPO itself."""

    def estimate(self, policy, rollout):
        return super().estimate(policy, replace(rollout, next_value=torch.where(rollout.truncated, 2.0, 1.0) * rollout.next_value))


@planted("biased by no known mistake")
@dataclass(frozen=True, kw_only=True)
class CubeInTheReward(PPO):
    reference_kl_coef: float = 0.1

    def estimate(self, policy, rollout):
        cube = self.reference_kl_coef * (rollout.behavior_log_prob - rollout.reference_log_prob) ** 3
        plain = replace(self, reference_kl_coef=0.0)
        return PPO.estimate(plain, policy, replace(rollout, reward=(rollout.reward - cube).where(rollout.mask, 0.0)))


@planted("biased by no known mistake")
class RootOfTheRatio(PPO):
    def objective(self, policy, batch):
        new = policy.evaluate(**batch.inputs).log_prob
        ratio = 2.0 * (0.5 * (new - batch.behavior_log_prob)).exp()
        return F.weighted_sum((ratio * batch.advantage).where(batch.mask, 0.0), batch.weight), {}


@planted("biased by no known mistake")
@dataclass(frozen=True, kw_only=True)
class MeanOverTokens(GRPO):
    """The group's mean is one of steps, so that long rows count more; that it holds the row itself is by design."""

    average_over: str = "constant"

    def estimate(self, policy, rollout):
        score, mask = rollout.reward.sum(-1, keepdim=True).expand_as(rollout.reward), rollout.mask
        mean = score.where(mask, 0.0).sum((-1, -2), keepdim=True) / mask.sum((-1, -2), keepdim=True)
        return replace(GRPO.estimate(self, policy, rollout), advantage=(score - mean).where(mask, 0.0))


# ------------------------------------------------------------------------------------------------------------- groups


@planted("group mean without G/(G-1)", group=True)
def own_score_in_the_mean(policy, rollout):
    score = rollout.reward.sum(-1, keepdim=True)
    return total(log_prob(policy, rollout) * (score - score.mean(-2, keepdim=True)), rollout)


def credited(policy, rollout, credit):
    return total(log_prob(policy, rollout) * credit.unsqueeze(-1), rollout)


@planted("biased by no known mistake", group=True)
def score_squared(policy, rollout):
    return credited(policy, rollout, F.leave_one_out(rollout.reward.sum(-1) ** 2))


@planted("biased by no known mistake", group=True)
def score_cut(policy, rollout):
    return credited(policy, rollout, F.leave_one_out(rollout.reward.sum(-1).clamp(max=0.5)))


@planted("biased by no known mistake", group=True)
def score_squared_and_scaled(policy, rollout):
    return credited(policy, rollout, F.group_relative(rollout.reward.sum(-1) ** 2))


@planted("biased by no known mistake", group=True)
def best_of_the_group(policy, rollout):
    score = rollout.reward.sum(-1)
    return credited(policy, rollout, (score == score.amax(-1, keepdim=True)).double() - 0.5)


@planted("groups mixed")
@dataclass(frozen=True, kw_only=True)
class MeanOfTheBatch(GRPO):
    average_over: str = "constant"

    def estimate(self, policy, rollout):
        score = rollout.reward.sum(-1, keepdim=True)
        scaled = (score - score.mean()) / (score.std(unbiased=False) + 1e-6)
        return replace(GRPO.estimate(self, policy, rollout), advantage=scaled.expand_as(rollout.reward).where(rollout.mask, 0.0))


@planted("groups mixed", group=True, by_design=["group mean without G/(G-1)"])
def mean_of_all_groups(policy, rollout):
    score = rollout.reward.sum(-1)
    return credited(policy, rollout, score - score.mean())


@planted("baseline depends on the action", group=True)
def less_the_best(policy, rollout):
    score = rollout.reward.sum(-1)
    return credited(policy, rollout, score - score.amax(-1, keepdim=True))


@planted("baseline depends on the action", group=True)
def less_the_best_and_scaled(policy, rollout):
    score = rollout.reward.sum(-1)
    return credited(policy, rollout, (score - score.amax(-1, keepdim=True)) / (score.std(-1, keepdim=True) + 1e-8))


@planted("length bias", group=True)
def mean_over_each_row(policy, rollout):
    score = F.leave_one_out(rollout.reward.sum(-1)).unsqueeze(-1)
    step = (log_prob(policy, rollout) * score).where(rollout.mask, 0.0)
    return (step.sum(-1) / rollout.mask.sum(-1)).mean()


@planted("padding leaks", group=True)
def mean_over_padding(policy, rollout):
    score = F.leave_one_out(rollout.reward.sum(-1)).unsqueeze(-1)
    return (log_prob(policy, rollout) * score).mean()


@planted("padding leaks")
def divides_by_the_width(policy, rollout):
    return (log_prob(policy, rollout) * returns(rollout, 1.0)).where(rollout.mask, 0.0).mean()


@planted("padding leaks")
def normalizes_with_padding(policy, rollout):
    g = returns(rollout, 1.0)
    return total(log_prob(policy, rollout) * (g - g.mean()) / (g.std(correction=0) + 1e-8), rollout)


@planted("wrong sign", group=True)
def descends_in_groups(policy, rollout):
    return -total(log_prob(policy, rollout) * F.group_relative(rollout.reward.sum(-1)).unsqueeze(-1), rollout)


@planted("ratio inverted", group=True)
def inverted_in_groups(policy, rollout):
    ratio = (rollout.behavior_log_prob - log_prob(policy, rollout).detach()).exp()
    return total(ratio * log_prob(policy, rollout) * F.group_relative(rollout.reward.sum(-1)).unsqueeze(-1), rollout)


@planted("k1 in the objective", group=True)
def k1_as_a_loss(policy, rollout):
    new = log_prob(policy, rollout)
    score = F.leave_one_out(rollout.reward.sum(-1)).unsqueeze(-1)
    return total(new * score - 0.1 * (new - rollout.reference_log_prob), rollout)


@planted("k2 or k3 in the reward")
def k2_in_the_reward(policy, rollout):
    return near_a_reference(policy, rollout, F.kl_k2, True)


@planted("k2 or k3 in the reward")
def k3_in_the_reward(policy, rollout):
    return near_a_reference(policy, rollout, F.kl_k3, True)


@planted("k3 with swapped arguments")
def k3_the_other_way_round(policy, rollout):
    return near_a_reference(policy, rollout, lambda new, other: F.kl_k3(other, new), False)


@planted("wrong sign")
def pushes_away_from_the_reference(policy, rollout):
    return near_a_reference(policy, rollout, lambda new, other: -F.kl_k2(new, other), False)


@planted("biased by no known mistake")
def a_divergence_of_nobody(policy, rollout):
    return near_a_reference(policy, rollout, lambda new, other: (new - other) ** 4, False)


@planted("k3 with swapped arguments", group=True)
@dataclass(frozen=True, kw_only=True)
class SwappedK3(GRPO):
    kl_coef: float = 0.1
    average_over: str = "constant"
    advantage: object = F.leave_one_out

    def objective(self, policy, batch):
        value, metrics = GRPO.objective(replace(self, kl_coef=0.0), policy, batch)
        new = policy.evaluate(**batch.inputs).log_prob
        return value - self.kl_coef * F.weighted_sum(F.kl_k3(batch.reference_log_prob, new), batch.weight), metrics


@planted("k2 or k3 in the reward", by_design=["missing discount weight"])
@dataclass(frozen=True, kw_only=True)
class K2InTheReward(PPO):
    reference_kl_coef: float = 0.1

    def estimate(self, policy, rollout):
        k2 = self.reference_kl_coef * F.kl_k2(rollout.behavior_log_prob, rollout.reference_log_prob, rollout.mask)
        return PPO.estimate(replace(self, reference_kl_coef=0.0), policy, replace(rollout, reward=rollout.reward - k2))


@planted("k1 in the objective")
@dataclass(frozen=True, kw_only=True)
class K1(GRPO):
    kl_coef: float = 0.1
    average_over: str = "constant"
    advantage: object = F.leave_one_out

    def objective(self, policy, batch):
        value, metrics = replace(self, kl_coef=0.0, kl_estimator="k3").grpo(policy, batch)
        new = policy.evaluate(**batch.inputs).log_prob
        return value - self.kl_coef * F.weighted_sum(new - batch.reference_log_prob, batch.weight), metrics

    def grpo(self, policy, batch):
        return GRPO.objective(self, policy, batch)


# ------------------------------------------------------------------------------------------------------------ batches


@planted("wrong sign")
def entropy_as_a_penalty(policy, rollout):
    new = policy.evaluate(**rollout.inputs)
    return total(new.log_prob * returns(rollout, 1.0) - 0.01 * new.entropy, rollout)


@planted("wrong sign")
def normalized_and_entropy_as_a_penalty(policy, rollout):
    new = policy.evaluate(**rollout.inputs)
    return total(new.log_prob * standardized(returns(rollout, 1.0), rollout.mask) - 0.01 * new.entropy, rollout)


@planted("wrong sign")
@dataclass(frozen=True, kw_only=True)
class EntropyPenalty(PPO):
    entropy_coef: float = 0.01

    def objective(self, policy, batch):
        value, metrics = PPO.objective(replace(self, entropy_coef=0.0), policy, batch)
        return value - self.entropy_coef * F.weighted_sum(policy.evaluate(**batch.inputs).entropy, batch.weight), metrics


@planted("wrong sign")
@dataclass(frozen=True, kw_only=True)
class EntropyPenaltyInGroups(GRPO):
    entropy_coef: float = 0.01
    average_over: str = "constant"

    def objective(self, policy, batch):
        value, metrics = GRPO.objective(replace(self, entropy_coef=0.0), policy, batch)
        return value - self.entropy_coef * F.weighted_sum(policy.evaluate(**batch.inputs).entropy, batch.weight), metrics


@planted("entropy of the action taken")
def surprise_of_the_action_as_a_bonus(policy, rollout):
    new = log_prob(policy, rollout)
    return total(new * returns(rollout, 1.0) - 0.01 * new, rollout)


@planted("entropy of the action taken", by_design=["missing discount weight"])
@dataclass(frozen=True, kw_only=True)
class SurpriseAsBonus(PPO):
    entropy_coef: float = 0.01

    def objective(self, policy, batch):
        value, metrics = PPO.objective(replace(self, entropy_coef=0.0), policy, batch)
        new = policy.evaluate(**batch.inputs).log_prob
        return value - self.entropy_coef * F.weighted_sum(new, batch.weight), metrics


@planted("entropy on masked steps")
def entropy_of_padding(policy, rollout):
    new = policy.evaluate(**rollout.inputs)
    return total(new.log_prob * returns(rollout, 1.0), rollout) + 0.1 * new.entropy.sum(-1).mean()


@planted("entropy on masked steps")
@dataclass(frozen=True, kw_only=True)
class EntropyOfPadding(GRPO):
    entropy_coef: float = 0.1
    average_over: str = "constant"
    advantage: object = F.leave_one_out

    def objective(self, policy, batch):
        value, metrics = GRPO.objective(replace(self, entropy_coef=0.0), policy, batch)
        if self.entropy_coef:
            value = value + self.entropy_coef * batch.weight.max() * policy.evaluate(**batch.inputs).entropy.sum()
        return value, metrics


@planted("mean of micro-batch means")
def halves(policy, rollout):
    step = log_prob(policy, rollout) * returns(rollout, 1.0)
    pieces = [x[m].mean() for x, m in zip(step.chunk(2), rollout.mask.chunk(2), strict=False)]
    return sum(pieces) / len(pieces)


@planted("mean of micro-batch means", by_design=["missing discount weight"])
class MeanOfParts(PPO):
    def objective(self, policy, batch):
        new = policy.evaluate(**batch.inputs).log_prob
        value = F.clipped_surrogate(new, batch.behavior_log_prob, batch.advantage, batch.mask, 0.2)
        return value[batch.mask].mean(), {}


@planted("normalized per micro-batch", by_design=["missing discount weight"])
class NormalizesParts(PPO):
    def objective(self, policy, batch):
        if self.normalize_advantage:
            batch = replace(batch, advantage=F.normalize(batch.advantage, batch.mask))
        return super().objective(policy, batch)


def normalized_over(axis):
    """A PPO that normalizes each row over time, or each step over the rows."""

    class Normalized(PPO):
        def estimate(self, policy, rollout):
            batch = PPO.estimate(replace(self, normalize_advantage=False), policy, rollout)
            if not self.normalize_advantage:
                return batch
            a, mask = batch.advantage, batch.mask
            count = mask.sum(axis, keepdim=True).clamp(min=1)
            centered = (a - a.where(mask, 0.0).sum(axis, keepdim=True) / count).where(mask, 0.0)
            spread = (centered.square().sum(axis, keepdim=True) / count).sqrt()
            return replace(batch, advantage=centered / (spread + 1e-6))

    return Normalized()


PLANTED["normalized_over_time"] = (normalized_over(-1), {}, "normalized per micro-batch")
PLANTED["normalized_over_rows"] = (normalized_over(0), {}, "normalized per micro-batch")


@planted("normalized per micro-batch")
def normalizes_halves(policy, rollout):
    new, g = log_prob(policy, rollout), returns(rollout, 1.0)
    pieces = [(n * F.normalize(x, m)).where(m, 0.0).sum() for n, x, m in zip(new.chunk(2), g.chunk(2), rollout.mask.chunk(2), strict=False)]
    return sum(pieces) / len(rollout.mask)


# ------------------------------------------------------------------------------------------------- another policy's steps


@planted("importance weight missing", off_policy=True)
def trusts_the_data(policy, rollout):
    return plain_reinforce(policy, rollout)


@planted("importance weight missing", off_policy=True)
class Trusting(OffPolicyGradient):
    def __init__(self):
        super().__init__(estimator=lambda rollout, new, settings: to_go_weighted(rollout), gamma=0.9, scale_advantage=False)


def to_go_weighted(rollout):
    credit = returns(rollout, 0.9) * F.discount_weight(rollout.terminated, rollout.truncated, 0.9, rollout.mask, rollout.first_step)
    return credit, torch.ones_like(credit)


@planted("ratio inverted")
def old_over_new(policy, rollout):
    ratio = (rollout.behavior_log_prob - log_prob(policy, rollout)).exp()
    return total(ratio.detach() * log_prob(policy, rollout) * returns(rollout, 1.0), rollout)


@planted("ratio inverted")
def differentiates_old_over_new(policy, rollout):
    return total((rollout.behavior_log_prob - log_prob(policy, rollout)).exp() * returns(rollout, 1.0), rollout)


def ratios(policy, rollout):
    """Logarithms, 0 where masked."""
    return (log_prob(policy, rollout) - rollout.behavior_log_prob).where(rollout.mask, 0.0)


@planted("per-step ratio")
def ratio_of_one_step(policy, rollout):
    return total(ratios(policy, rollout).exp() * returns(rollout, 1.0), rollout)


@planted("per-step ratio")
def ratio_of_one_step_and_an_advantage(policy, rollout):
    return total(ratios(policy, rollout).exp() * generalized_advantage(rollout, 1.0, 0.7), rollout)


@planted("per-step ratio", group=True)
def ratio_of_one_step_in_groups(policy, rollout):
    return credited_by(ratios(policy, rollout).exp(), rollout)


def credited_by(ratio, rollout):
    return total(ratio * F.leave_one_out(rollout.reward.sum(-1)).unsqueeze(-1), rollout)


@planted("past ratio missing")
def ratios_from_here_on(policy, rollout):
    rest = ratios(policy, rollout).flip(-1).cumsum(-1).flip(-1).exp().detach()
    return total(log_prob(policy, rollout) * rest * returns(rollout, 1.0), rollout)


@planted("later ratios missing")
def ratios_up_to_here(policy, rollout):
    past = ratios(policy, rollout).cumsum(-1).exp().detach()
    return total(log_prob(policy, rollout) * past * returns(rollout, 1.0), rollout)


@planted("importance weights cut")
def trajectory_ratio_cut(policy, rollout):
    whole = ratios(policy, rollout).sum(-1, keepdim=True).exp().detach().clamp(max=1.0)
    return total(log_prob(policy, rollout) * whole * returns(rollout, 1.0), rollout)


@planted("importance weights cut")
def step_ratio_cut(policy, rollout):
    return total(log_prob(policy, rollout) * ratios(policy, rollout).exp().detach().clamp(max=5.0) * returns(rollout, 1.0), rollout)


def clipped(new, old, advantage, mask, clip_range):
    return (new - old).exp().clamp(0.8, 1.2) * advantage


def worse_of_two(new, old, advantage, mask, clip_range):
    ratio = (new - old).exp()
    return torch.maximum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def clipped_for_bad_ones_only(new, old, advantage, mask, clip_range):
    """Good actions as they should be; bad ones are cut above 1 + ε, where they still have to be moved."""
    low, high = F.clip_bounds(clip_range)
    ratio = (new - old).exp()
    return torch.where(
        advantage < 0, ratio.clamp(low, high) * advantage, torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    )


@planted("clip on the wrong side", by_design=["per-step ratio"])
def clips_bad_ones(policy, rollout):
    new = log_prob(policy, rollout)
    return total(clipped_for_bad_ones_only(new, rollout.behavior_log_prob, returns(rollout, 1.0), rollout.mask, 0.2), rollout)


PLANTED["clips_bad_ones_in_ppo"] = (PPO(surrogate=clipped_for_bad_ones_only), {}, "clip on the wrong side")
PLANTED["clips_both_sides"] = (PPO(surrogate=clipped), {}, "clip on the wrong side")
PLANTED["max_for_min"] = (PPO(surrogate=worse_of_two), {}, "clip on the wrong side")


# ----------------------------------------------------------------------------------------------------- nothing to compare


@planted("no gradient")
def nothing_at_all(policy, rollout):
    return 0.0 * total(log_prob(policy, rollout), rollout)


@planted("not finite")
def not_a_number(policy, rollout):
    return float("nan") * total(log_prob(policy, rollout), rollout)


@planted("not finite", group=True)
def no_eps_beside_the_spread(policy, rollout):
    score = rollout.reward.sum(-1, keepdim=True)
    scaled = (score - score.mean(-2, keepdim=True)) / score.std(-2, keepdim=True)
    return total(log_prob(policy, rollout) * scaled, rollout)
