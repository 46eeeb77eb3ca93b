"""The compiled update against its readable twin, ``Ascent.__call__``: same parameters, moments, metrics and stops."""

from dataclasses import replace

import pytest
import torch

from tests.fast.cases import close, close_to_rounding, make_batch, make_policy, twice, vector
from upslope import A2C, GRPO, PPO, REINFORCE, RLOO, TRPO, Ascent, Diverged, OffPolicyGradient, RunFault
from upslope import functional as F
from upslope.algorithms.off_policy import per_step
from upslope.fast import update
from upslope.fast.twins import fast_update
from upslope.fast.update import CompiledUpdate
from upslope.updates.state import MAX_SKIPPED

pytest.importorskip("llvmlite")
SEVERAL = Ascent(learning_rate=3e-3, num_epochs=3, num_minibatches=4)


def both(algorithm, policy, batches, *, starts=("compiled", "readable")):
    """Run the same updates through both twins; their states, metrics and policies."""
    outcomes = []
    for way, own in zip(starts, twice(policy), strict=True):
        state = algorithm.update.start(own, seed=5)
        compiled = fast_update(algorithm, own)
        assert isinstance(compiled, CompiledUpdate)
        run = compiled if way == "compiled" else algorithm.update
        metrics = [run(algorithm, own, batch, state) for batch in batches]
        outcomes.append((own, state, metrics))
    return outcomes


def assert_equal_twins(algorithm, policy, batches):
    before = vector(policy)
    (ours, our_state, our_metrics), (theirs, their_state, their_metrics) = both(algorithm, policy, batches)
    assert not close(before, vector(ours), atol=1e-5), "nothing was learned"
    # Adam divides a gradient by its own size, and with it the rounding of gradients near 0: the moments are held tighter
    assert close(vector(ours), vector(theirs), atol=4e-6)
    assert our_state.num_updates == their_state.num_updates > 0
    for ours, theirs in zip(our_state.moments[0], their_state.moments[0], strict=True):
        assert close_to_rounding(ours, theirs)
    for ours, theirs in zip(our_metrics, their_metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert close(ours[name], theirs[name], atol=2e-6), name  # means of float32 sums of up to 64 terms
    return our_metrics


PPOS = {
    "plain": {},
    "entropy": {"entropy_coef": 0.1},
    "asymmetric": {"clip_range": (0.05, 0.3)},
    "dual clip": {"dual_clip": 1.1, "clip_range": 0.05},
    "value clip": {"value_clip_range": 0.05, "value_coef": 1.0},
    "everything": {"value_clip_range": 0.1, "dual_clip": 1.2, "entropy_coef": 0.05, "clip_range": (0.1, 0.02)},
    "importance": {"surrogate": F.importance_weighted},
    "truncated score": {"surrogate": F.truncated_score, "clip_range": (0.1, 0.02)},
    "no value": {"value_coef": 0.0},
}


@pytest.mark.parametrize("options", PPOS.values(), ids=PPOS.keys())
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_ppo(head, options):
    policy = make_policy(head)
    batch = make_batch(policy)
    if "value_clip_range" in options:  # values that have moved since they were recorded
        batch = replace(batch, value=batch.value + 0.1 * torch.randn(batch.value.shape, generator=torch.Generator().manual_seed(1)))
    algorithm = PPO(update=Ascent(learning_rate=0.01, num_epochs=4, num_minibatches=3), **options)
    (metrics,) = assert_equal_twins(algorithm, policy, [batch])
    if "dual_clip" in options:
        assert metrics["dead_fraction"] > 0, "the case does not reach what it is there for"


@pytest.mark.parametrize("hidden_sizes", [(5,), (64, 64), (17, 33, 8), ()])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_every_shape_of_network(head, activation, hidden_sizes):
    policy = make_policy(head, inputs=19, outputs=5, hidden_sizes=hidden_sizes, activation=activation)
    assert_equal_twins(PPO(update=SEVERAL, entropy_coef=0.01), policy, [make_batch(policy, (70,), seed=k) for k in range(1)])


@pytest.mark.parametrize("algorithm", [A2C(entropy_coef=0.02), REINFORCE(), REINFORCE(baseline=False)], ids=["a2c", "baseline", "plain"])
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_score_function_methods(head, algorithm):
    policy = make_policy(head)
    algorithm = replace(algorithm, update=Ascent(learning_rate=0.01, max_grad_norm=None))
    assert_equal_twins(algorithm, policy, [make_batch(policy)])


GROUPS = {
    "grpo": GRPO(update=SEVERAL),
    "grpo, asymmetric, entropy, dual clip": GRPO(update=SEVERAL, clip_range=(0.05, 0.3), entropy_coef=0.1, dual_clip=1.1),
    "grpo, truncated score": GRPO(update=SEVERAL, surrogate=F.truncated_score, clip_range=(1.0, 0.02)),
    "grpo, score function": GRPO(update=SEVERAL, surrogate=F.score_function),
    "rloo, one step": RLOO(update=Ascent(learning_rate=3e-3), entropy_coef=0.1),
    "rloo, several": RLOO(update=SEVERAL, clip_range=0.05),
}


@pytest.mark.parametrize("algorithm", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("head, critic", [("categorical", False), ("gaussian", True)])
def test_group_methods(head, critic, algorithm):
    policy = make_policy(head, critic=critic)
    batch = make_batch(policy, (5, 3, 6), unit="group", masked=0.3, average_over="sequences")
    assert_equal_twins(algorithm, policy, [replace(batch, returns=None, value=None)])


@pytest.mark.parametrize("ratio", [F.sequence_ratio, F.sequence_mean_ratio, F.sequence_mean_token_ratio])
def test_a_ratio_of_sequences_runs_as_it_is_written(ratio):
    policy = make_policy()
    batch = make_batch(policy, (5, 3, 6), unit="group", masked=0.3, average_over="sequences")
    assert_equal_twins(GRPO(ratio=ratio, update=SEVERAL), policy, [replace(batch, returns=None, value=None)])


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_off_policy(head):
    policy = make_policy(head)
    assert_equal_twins(OffPolicyGradient(update=SEVERAL, entropy_coef=0.02), policy, [make_batch(policy)])
    assert_equal_twins(OffPolicyGradient(update=SEVERAL, clip_range=(0.1, 0.3)), policy, [make_batch(policy)])
    blind = OffPolicyGradient(estimator=per_step, baseline=False, update=SEVERAL)
    assert_equal_twins(blind, policy, [replace(make_batch(policy), returns=None)])


def test_without_a_critic():
    policy = make_policy(critic=False)
    assert_equal_twins(REINFORCE(baseline=False, update=replace(SEVERAL, num_epochs=1)), policy, [make_batch(policy)])


def test_illegal_actions_take_no_part():
    policy = make_policy(outputs=6)
    assert_equal_twins(PPO(update=SEVERAL, entropy_coef=0.1), policy, [make_batch(policy, (90,), action_mask=True)])


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 64, 65, 131])
def test_ragged_minibatches_and_blocks(rows):
    policy = make_policy()
    algorithm = PPO(update=Ascent(learning_rate=3e-3, num_epochs=2, num_minibatches=5))
    assert_equal_twins(algorithm, policy, [make_batch(policy, (rows,), masked=0.0, zero_weight=0.0)])


@pytest.mark.parametrize("unit,shape", [("step", (6, 7)), ("sequence", (9, 5)), ("group", (4, 3, 5))])
@pytest.mark.parametrize("average_over", ["steps", "sequences"])
def test_units_stay_together(unit, shape, average_over):
    policy = make_policy()
    batch = make_batch(policy, shape, unit=unit, masked=0.4, average_over=average_over)
    batch.mask[0] = False  # a unit of which nothing is left
    batch = replace(batch, weight=batch.weight * batch.mask)
    assert_equal_twins(PPO(update=Ascent(learning_rate=3e-3, num_epochs=2, num_minibatches=3)), policy, [batch])


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_what_is_masked_or_has_no_weight_is_not_looked_at(head):
    policy = make_policy(head)
    batch = make_batch(policy, (9, 5), unit="sequence", masked=0.3, zero_weight=0.0, action_mask=head == "categorical")
    spoiled = replace(batch, inputs=dict(batch.inputs), advantage=batch.advantage.clone(), returns=batch.returns.clone())
    spoiled.inputs["observation"] = batch.inputs["observation"].where(batch.mask.unsqueeze(-1), torch.nan)
    if head == "categorical":  # nothing is legal there
        spoiled.inputs["action_mask"] = batch.inputs["action_mask"] & batch.mask.unsqueeze(-1)
    else:
        spoiled.inputs["action"] = batch.inputs["action"].where(batch.mask.unsqueeze(-1), torch.nan)
    spoiled.advantage[~batch.mask] = torch.nan
    spoiled.returns[~batch.mask] = torch.inf
    algorithm = PPO(update=SEVERAL)
    found = []
    for given in (batch, spoiled):
        own = twice(policy)[1]
        fast_update(algorithm, own)(algorithm, own, given, algorithm.update.start(own, seed=0))
        found.append(vector(own))
    assert torch.equal(*found)


def test_target_kl_stops_both_at_the_same_minibatch_and_leaves_the_same_generator():
    policy = make_policy()
    algorithm = PPO(update=Ascent(learning_rate=0.02, num_epochs=20, num_minibatches=2, target_kl=0.05))
    (metrics,) = assert_equal_twins(algorithm, policy, [make_batch(policy)])
    assert 2 < metrics["num_minibatches"] < 40
    (_, ours, _), (_, theirs, _) = both(algorithm, policy, [make_batch(policy)])
    assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())


def test_epochs_in_several_calls_are_those_of_one(monkeypatch):
    policy = make_policy()
    algorithm = PPO(update=Ascent(learning_rate=3e-3, num_epochs=7, num_minibatches=3))
    batch = make_batch(policy)
    found = []
    for rows in (2**16, 70, 1):  # all, two and one in a call
        monkeypatch.setattr(update, "ROWS_PER_CALL", rows)
        own = twice(policy)[1]
        state = algorithm.update.start(own, seed=0)
        found.append((vector(own), fast_update(algorithm, own)(algorithm, own, batch, state), vector(own), state.num_updates))
    for other in found[1:]:
        assert other[1] == found[0][1] and torch.equal(other[2], found[0][2]) and other[3] == found[0][3] == 21


def test_twins_can_take_turns():
    policy = make_policy("gaussian")
    algorithm = PPO(update=SEVERAL)

    def alternately(first):
        own = twice(policy)[1]
        state = algorithm.update.start(own, seed=5)
        runs = [fast_update(algorithm, own), algorithm.update]
        for turn in range(4):
            algorithm.update.set_fraction(state, turn / 8)
            batch = make_batch(own, seed=turn)
            runs[(turn + first) % 2](algorithm, own, batch, state)
        return vector(own)

    assert close(alternately(0), alternately(1), atol=4e-6)


def test_the_schedule_reaches_the_kernel():
    policy = make_policy(normalize_value=False)  # a critic's units would move its last layer
    algorithm = PPO(update=Ascent(learning_rate=0.01))
    own = twice(policy)[1]
    state = algorithm.update.start(own, seed=0)
    state.learning_rate = 0.0
    fast_update(algorithm, own)(algorithm, own, make_batch(own), state)
    assert torch.equal(vector(own), vector(policy))
    assert float(state.moments[0][0].abs().max()) > 0


def test_both_refuse_a_ratio_that_is_not_one():
    policy = make_policy(normalize_value=False)
    batch = make_batch(policy)
    batch = replace(batch, behavior_log_prob=batch.behavior_log_prob - 0.1)
    before = vector(policy)
    for run in (fast_update(PPO(), policy), PPO().update):
        with pytest.raises(RunFault, match=r"ratio: expected 1 .* found exp\(±0.1\)"):
            run(PPO(), policy, batch, PPO().update.start(policy, seed=0))
    assert torch.equal(before, vector(policy))


@pytest.mark.parametrize("name", ["advantage", "returns", "parameter"])
def test_both_name_what_diverged(name):
    algorithm = PPO(update=Ascent(num_minibatches=4))
    found = []
    for way in ("compiled", "readable"):
        policy = make_policy()
        batch = make_batch(policy, masked=0.0, zero_weight=0.0)
        state = algorithm.update.start(policy, seed=0)
        if name == "parameter":
            with torch.no_grad():
                policy.critic[0].weight[0, 0] = torch.nan
        else:
            getattr(batch, name)[20] = torch.nan
        run = fast_update(algorithm, policy) if way == "compiled" else algorithm.update
        state.skipped = MAX_SKIPPED - 1
        with pytest.raises(Diverged) as info:
            run(algorithm, policy, batch, state)
        found.append(str(info.value))
    assert found[0] == found[1]
    assert ("network.critic.0.weight" if name == "parameter" else name) in found[0]


def test_a_gradient_that_is_not_finite_is_not_applied():
    """The readable twin notices at its next objective; the compiled one before it spoils the parameters."""
    policy = make_policy(normalize_value=False)
    batch = make_batch(policy, masked=0.0, zero_weight=0.0)
    batch = replace(batch, inputs={**batch.inputs, "observation": batch.inputs["observation"].clone()})
    batch.inputs["observation"][0, 0] = 1e38  # tanh hides it from the objective, not from the gradient
    batch.advantage.mul_(1e5)
    algorithm = PPO(update=Ascent(max_grad_norm=None))
    state = algorithm.update.start(policy, seed=0)
    with torch.no_grad():
        batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob)
        policy.actor[0].weight.mul_(1e-38)
        batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob)
    before = vector(policy)
    assert fast_update(algorithm, policy)(algorithm, policy, batch, state)["skipped_steps"] == 1.0
    assert torch.equal(before, vector(policy))


@pytest.mark.parametrize("broken", ["objective", "gradient"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_both_leave_out_the_same_steps(broken, epochs):
    """The largest minibatch numbers of both twins go on where they were, and the generator with them."""
    algorithm, found = PPO(update=Ascent(num_epochs=epochs, num_minibatches=5, max_grad_norm=None, target_kl=None)), []
    for way in ("compiled", "readable"):
        policy = make_policy(normalize_value=False)
        batch = make_batch(policy, masked=0.0, zero_weight=0.0)
        batch.advantage[20] = torch.nan if broken == "objective" else 3e38
        state = algorithm.update.start(policy, seed=0)
        run = fast_update(algorithm, policy) if way == "compiled" else algorithm.update
        metrics = run(algorithm, policy, batch, state)
        found.append((vector(policy), metrics, state.generator.get_state(), state.skipped))
        assert metrics["skipped_steps"] == epochs and metrics["num_minibatches"] == 4 * epochs == state.num_updates
    (ours, our_metrics, *rest), (theirs, their_metrics, *others) = found
    assert torch.allclose(ours, theirs, atol=2e-6)
    assert our_metrics.keys() == their_metrics.keys()
    assert torch.equal(rest[0], others[0]) and rest[1] == others[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: replace(batch, inputs={**batch.inputs, "more": batch.mask}),
        lambda batch: replace(batch, advantage=batch.advantage.double()),
        lambda batch: replace(batch, inputs={**batch.inputs, "observation": batch.inputs["observation"].double()}),
        lambda batch: replace(batch, sampler_log_prob=batch.behavior_log_prob),
        lambda batch: replace(batch, returns=None),
    ],
)
def test_a_batch_it_does_not_know_goes_to_the_readable_twin(change, monkeypatch):
    policy = make_policy()
    algorithm = PPO(value_clip_range=0.2)
    seen = []
    monkeypatch.setattr(Ascent, "__call__", lambda *arguments: seen.append(arguments) or {})
    run = fast_update(algorithm, policy)
    assert run(algorithm, policy, change(make_batch(policy)), algorithm.update.start(policy, seed=0)) == {}
    assert len(seen) == 1


def test_an_action_that_does_not_exist_is_left_to_torch_to_refuse():
    policy = make_policy()
    batch = make_batch(policy)
    batch.inputs["action"][3] = 99
    with pytest.raises(RuntimeError):
        fast_update(PPO(), policy)(PPO(), policy, batch, PPO().update.start(policy, seed=0))


def test_parameters_that_have_moved_are_found_again():
    policy = make_policy()
    algorithm = PPO(update=SEVERAL)
    own, other = twice(policy)
    states = [algorithm.update.start(p, seed=5) for p in (own, other)]
    run = fast_update(algorithm, own)
    batches = [make_batch(policy, seed=k) for k in range(2)]
    run(algorithm, own, batches[0], states[0])
    algorithm.update(algorithm, other, batches[0], states[1])
    states[0] = algorithm.update.start(own, seed=6)  # a new buffer
    states[1] = algorithm.update.start(other, seed=6)
    batch = make_batch(own, seed=1)
    run(algorithm, own, batch, states[0])
    algorithm.update(algorithm, other, batch, states[1])
    assert close(vector(own), vector(other), atol=4e-6)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("algorithm", [PPO(), TRPO()], ids=["ppo", "trpo"])
def test_the_rounding_of_a_narrow_policy_is_no_mismatch(algorithm, fast):
    """With σ = e^log_std the last digit of an action of size 1 moves log π by some 3 · 1.2e-7 / σ."""

    def step(log_std, away):
        policy = make_policy("gaussian", log_std=log_std)
        with torch.no_grad():
            policy.log_std.fill_(log_std)
        batch = make_batch(policy, (150,))
        moved = away * torch.where(torch.arange(150) % 2 == 0, 1.0, -1.0)
        batch = replace(batch, behavior_log_prob=batch.behavior_log_prob + moved.where(batch.mask, 0.0))
        update = fast_update(algorithm, policy) if fast else algorithm.update
        update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
        return policy

    before = make_policy("gaussian", log_std=-10.0)
    assert not torch.equal(vector(step(-10.0, 0.008)), vector(before))
    with pytest.raises(RunFault, match=r"found exp\(±0\.\d+\); the policy must sample and score with the same distribution"):
        step(-3.0, 0.008)  # a mismatch
    with pytest.raises(RunFault, match=r"same distribution"):
        step(-10.0, 1.0)
    with pytest.raises(RunFault, match=r"which is rounding: the last digit of an action moves log π by up to .* raise entropy_coef"):
        step(-15.0, 0.5)
