"""Recordings: flags, masks, successors' values; and training in the library's one loop."""

from functools import partial

import pytest
import torch

from tests.tabular.made import case
from upslope import A2C, PPO, REINFORCE, Ascent, RunFault, UsageError, tabular, train
from upslope import functional as F
from upslope.algorithms.reinforce import RETURNS, to_go_discounted
from upslope.tabular import average, exact


def test_an_episode_a_row():
    mdp, policy = case(0, critic=True, time_limit=6)
    collect = tabular.Episodes(mdp, 50, seed=0)
    rollout = collect(policy)
    ended = rollout.terminated | rollout.truncated
    lengths = rollout.mask.sum(-1)
    assert rollout.mask.shape == (50, 6) and rollout.max_steps == 6
    assert bool((ended.sum(-1) == 1).all()) and bool(ended.gather(-1, lengths.unsqueeze(-1) - 1).all())
    assert bool((rollout.mask == (torch.arange(6) < lengths.unsqueeze(-1))).all())
    assert bool(rollout.terminated.any()) and bool((rollout.truncated.any(-1) <= (lengths == 6)).all())
    evaluation = policy.evaluate(**rollout.inputs)
    assert torch.equal(evaluation.log_prob.detach()[rollout.mask], rollout.behavior_log_prob[rollout.mask])
    values = policy.values().detach()
    successors = torch.cat([rollout.inputs["observation"][:, 1:], mdp.observation[collect.state].unsqueeze(-1)], -1)
    for row, n in enumerate(lengths.tolist()):
        assert torch.equal(rollout.next_value[row, : n - 1], values[successors[row, : n - 1]])
        assert rollout.next_value[row, n - 1] == values[mdp.observation[collect.state[row]]]  # the true successor's, where it ended
    pays = mdp.reward[rollout.inputs["observation"], rollout.inputs["action"]]
    assert torch.equal(rollout.reward[rollout.mask], pays[rollout.mask])
    assert rollout.metrics["episode_return"] == pytest.approx(float(rollout.reward.sum(-1).mean()))


def test_sampled_frequencies_are_the_probabilities_of_the_enumeration():
    mdp, policy = case(2, time_limit=2)
    listed, probability = tabular.enumerate_rollouts(mdp, policy)
    sampled = tabular.Episodes(mdp, 20_000, seed=3)(policy)

    def key(rollout):
        code = (rollout.inputs["observation"] * 2 + rollout.inputs["action"] + 1) * rollout.mask
        return code[:, 0] * 100 + code[:, 1] * 10 + rollout.terminated.any(-1)

    expected, found = torch.zeros(1000, dtype=torch.float64), torch.bincount(key(sampled), minlength=1000) / 20_000
    expected.index_add_(0, key(listed), probability)
    assert float((found - expected).abs().max()) < 0.015  # four standard errors of a frequency near ½
    assert bool((found[expected == 0] == 0).all())


def test_the_mean_of_sampled_gradients_is_the_exact_gradient():
    mdp, policy = case(5, time_limit=4)
    expected = tabular.gradient(mdp.unrolled(), policy, 0.9)
    algorithm = REINFORCE(gamma=0.9, returns=to_go_discounted, baseline=False, normalize_advantage=False)
    estimates = []
    for seed in range(100):
        rollout = tabular.Episodes(mdp, 100, seed=seed)(policy)
        estimates.append(tabular.expected_gradient(algorithm, policy, rollout, torch.full((100,), 0.01, dtype=torch.float64)))
    found = torch.stack(estimates)
    error = (found.mean(0) - expected).abs() / (found.std(0) / 10.0).clamp(min=1e-12)
    assert float(error[expected != 0].max()) < 4.0  # standard errors


def test_steps_go_on_where_they_stopped():
    mdp, policy = case(0, critic=True, time_limit=5)
    collect = tabular.Steps(mdp, 4, 7, seed=0)
    first, second = collect(policy), collect(policy)
    whole = tabular.Steps(mdp, 4, 14, seed=0)(policy)
    for name in ("reward", "terminated", "truncated", "behavior_log_prob", "value", "next_value"):
        assert torch.equal(torch.cat([getattr(first, name), getattr(second, name)], -1), getattr(whole, name)), name
    assert bool(whole.mask.all()) and first.first_step.tolist() == [0] * 4 and bool((second.first_step > 0).any())
    weights = [F.discount_weight(r.terminated, r.truncated, 0.9, r.mask, r.first_step, dtype=torch.float64) for r in (first, second, whole)]
    assert torch.allclose(torch.cat(weights[:2], -1), weights[2], rtol=0, atol=1e-15)
    ended = whole.terminated | whole.truncated
    assert torch.equal(whole.next_value[:, :-1][~ended[:, :-1]], whole.value[:, 1:][~ended[:, :-1]])
    assert bool((whole.next_value[:, :-1][ended[:, :-1]] != whole.value[:, 1:][ended[:, :-1]]).any())


def test_a_seed_decides_everything():
    mdp, policy = case(0, time_limit=5)
    runs = [tabular.Episodes(mdp, 10, seed=seed)(policy).inputs["action"] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape != runs[2].shape or not torch.equal(runs[0], runs[2])


def test_what_never_ends_says_so():
    ring = tabular.ring()
    with pytest.raises(UsageError, match="its episodes never end; give the mdp a time_limit, or collect with Steps"):
        tabular.Episodes(ring)
    corridor = tabular.short_corridor()
    stuck = tabular.tabular_policy(corridor)
    with torch.no_grad():
        stuck.preferences.table[0, 0] = 40.0  # the end has a probability, and no episode will see it
    with pytest.raises(RunFault, match="did not end within 50 steps"):
        tabular.Episodes(corridor, 2, max_steps=50)(stuck)
    for make in (partial(tabular.Episodes, corridor, 0), partial(tabular.Steps, ring, 0), partial(tabular.Steps, ring, 1, 0)):
        with pytest.raises(UsageError, match="expected"):
            make()


def test_a_policy_for_another_problem_or_without_probabilities_says_so():
    ring = tabular.ring(time_limit=5)
    lost = tabular.tabular_policy(ring)
    with torch.no_grad():
        lost.preferences.table.fill_(float("nan"))
    for collect in (tabular.Episodes(ring, 2), tabular.Steps(ring, 2, 3)):
        with pytest.raises(UsageError, match=r"policy: expected probabilities of shape \[5, 2\] for this mdp, found \[2, 3\]"):
            collect(tabular.tabular_policy(tabular.bandit()))
        with pytest.raises(UsageError, match=r"policy: the probabilities in state 0 are \[nan, nan\]"):
            collect(lost)
    for options in ({"num_episodes": "3"}, {"num_episodes": 1.5}, {"max_steps": 0}, {"seed": -1}, {"seed": 2**70}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}: expected an integer"):
            tabular.Episodes(ring, **options)


def test_an_end_that_cannot_be_reached_says_so_before_the_first_step():
    """0 ↔ 1, and nothing leads to the terminal state 2; then a way to it, and a trap beside it."""
    transition = torch.zeros(3, 2, 3)
    transition[0, :, 1] = transition[1, :, 0] = 1.0
    rest = ([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], [1.0, 0.0, 0.0], [False, False, True])
    with pytest.raises(UsageError, match="mdp: from state 0 no terminal state can be reached, so its episodes never end"):
        tabular.Episodes(tabular.MDP(transition, *rest), 1)
    assert tabular.Episodes(tabular.MDP(transition, *rest, time_limit=4), 1)(tabular.tabular_policy(tabular.ring(3))).num_steps == 4
    transition[0, 0] = torch.tensor([0.0, 0.0, 1.0])
    transition[1] = torch.tensor([0.0, 1.0, 0.0])
    collect = tabular.Episodes(tabular.MDP(transition, *rest), 8, max_steps=5)
    policy = tabular.tabular_policy(collect.mdp)
    with pytest.raises(UsageError, match="policy: from state 0 it may come to where an episode never ends"):
        collect(policy)
    with torch.no_grad():
        policy.preferences.table[0, 0] = 800.0  # action 1, which leads to the trap, has probability 0
    assert collect(policy).num_steps == 8


@pytest.mark.parametrize("trace_lambda,value", [(1.0, 2.6288), (0.0, 3.5714)])
def test_a_truncation_taken_for_a_termination(trace_lambda, value):
    """The loop with limit 5: a critic that sees one state tends to 10; to less, where the limit is taken for an end."""
    rollout = tabular.Episodes(tabular.loop(), 1)(tabular.tabular_policy(tabular.loop(), critic=True))
    assert float(F.returns_to_go(rollout.reward, rollout.truncated, rollout.terminated, 0.9)[0, 0]) == pytest.approx(4.0951, abs=1e-12)
    for ends, expected in (((rollout.terminated, rollout.truncated), 10.0), ((rollout.truncated, rollout.terminated), value)):
        v = torch.zeros_like(rollout.reward)
        for _ in range(400):  # V ← mean target; the error shrinks by 0.9 a round at the least
            v = F.lambda_returns(rollout.reward, v, v, *ends, 0.9, trace_lambda).mean().expand_as(v)
        assert float(v[0, 0]) == pytest.approx(expected, abs=5e-5)  # four decimals are published


@pytest.mark.parametrize("make", [tabular.tabular_policy, tabular.linear_policy, partial(tabular.network_policy, hidden_sizes=(4,))])
def test_reinforce_climbs_the_corridor(make):
    mdp = tabular.short_corridor(time_limit=500)
    policy = make(mdp)
    algorithm = REINFORCE(gamma=1.0, baseline=False, update=Ascent(learning_rate=0.05))
    train(algorithm, policy, tabular.Episodes(mdp, 32, seed=0), iterations=30, seed=0)
    with torch.no_grad():
        assert float(exact.objective(mdp, policy, 1.0)) > -12.5


def test_ppo_and_a2c_go_around_the_ring():
    ring = tabular.ring()
    ppo = PPO(update=Ascent(learning_rate=0.05, num_epochs=4))
    for algorithm, least in ((ppo, 0.16), (A2C(update=Ascent(learning_rate=0.1)), 0.14)):  # the uniform policy: 0.115
        policy = tabular.tabular_policy(ring, critic=True)
        train(algorithm, policy, tabular.Steps(ring, 8, 32, seed=0), iterations=20, seed=0)
        with torch.no_grad():
            assert float(average.objective(ring, policy)) > least


def test_a_policy_scores_what_it_samples_and_offers_its_distribution():
    _, policy = case(1)
    observation = torch.tensor([[0, 1, 2], [2, 1, 0]])
    drawn = policy.sample({"observation": observation}, generator=torch.Generator().manual_seed(0))
    assert drawn.value is None and drawn.action.shape == (2, 3)
    assert torch.equal(drawn.log_prob, policy(observation=observation, action=drawn.action).log_prob.detach())
    p, q = policy.distribution(observation=observation), tabular.Softmax(torch.zeros(2, 3, 2, dtype=torch.float64))
    kl = (p.probabilities * (p.probabilities.log() - q.probabilities.log())).sum(-1)
    assert torch.allclose(p.kl(q), kl, rtol=0, atol=1e-12)
    assert torch.allclose(p.log_prob(drawn.action), p.probabilities.log().gather(-1, drawn.action.unsqueeze(-1)).squeeze(-1))


def test_the_exact_kl_penalty_of_ppo_works_here():
    mdp = tabular.random_mdp(3, 2, seed=0, time_limit=5)
    policy = tabular.tabular_policy(mdp, critic=True)
    state = train(PPO(kl_coef=0.5), policy, tabular.Episodes(mdp, 8), iterations=2)
    assert state.metrics["kl_coef"] == 0.5


@pytest.mark.parametrize("form", RETURNS.values(), ids=RETURNS)
def test_a_recording_that_is_cut_does_not_change_what_is_learned(form):
    """1.5 at once, or 1 and then nothing for ever: the value behind the cut is that of going on, not of the whole episode."""
    transition = torch.zeros(3, 2, 3)
    transition[0, 0, 2] = transition[0, 1, 1] = 1.0
    transition[1, :, 1] = 1.0
    mdp = tabular.MDP(transition, [[1.5, 1.0], [0.0, 0.0], [0.0, 0.0]], [1.0, 0.0, 0.0], [False, False, True], time_limit=3)
    policy = tabular.tabular_policy(mdp, critic=True)
    update = Ascent(learning_rate=0.05, max_grad_norm=None)
    algorithm = REINFORCE(gamma=0.9, returns=form, normalize_advantage=False, update=update)
    train(algorithm, policy, tabular.Episodes(mdp, 32, seed=0), iterations=250, seed=0)
    assert policy.probabilities()[0, 0] > 0.9 and abs(policy.values()[1]) < 0.3
