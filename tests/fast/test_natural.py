"""The compiled fit of the critic against its readable twin inside TRPO and NPG."""

from dataclasses import replace

import pytest

from tests.fast.cases import close, make_batch, make_policy, twice, vector
from upslope import NPG, TRPO, Diverged, NaturalGradient, TrustRegion
from upslope.fast.twins import fast_update
from upslope.fast.update import CompiledNatural
from upslope.updates.state import MAX_SKIPPED
from upslope.updates.trust_region import NaturalStep

pytest.importorskip("llvmlite")
FIT = {"num_value_epochs": 3, "num_value_minibatches": 4, "value_learning_rate": 0.01}


@pytest.mark.parametrize("update", [TrustRegion(**FIT), NaturalGradient(**FIT)])
@pytest.mark.parametrize(
    "head, activation, unit, shape",
    [("categorical", "tanh", "step", (37,)), ("gaussian", "relu", "step", (5, 30)), ("categorical", "tanh", "sequence", (6, 20))],
)
def test_twins(update, head, activation, unit, shape):
    policy = make_policy(head, activation=activation)
    algorithm = (TRPO if isinstance(update, TrustRegion) else NPG)(update=update)
    batches = [make_batch(policy, shape, unit=unit, seed=0)]
    before, outcomes = vector(policy), []
    for compiled, own in zip((True, False), twice(policy), strict=True):
        state = update.start(own, seed=5)
        run = fast_update(algorithm, own) if compiled else update
        assert isinstance(run, CompiledNatural if compiled else NaturalStep)
        metrics = run(algorithm, own, batches[0], state)
        # and once more: the moments go on; the policy has moved, so its words are those of now
        again = replace(batches[0], behavior_log_prob=own.evaluate(**batches[0].inputs).log_prob.detach().where(batches[0].mask, 0.0))
        outcomes.append((own, state, metrics, run(algorithm, own, again, state)))
        assert not compiled or run.fit.plan is not None, "the kernel was never called"
    (ours, our_state, *our_metrics), (theirs, their_state, *their_metrics) = outcomes
    assert not close(vector(ours), before, atol=1e-3)
    assert close(vector(ours), vector(theirs), atol=4e-6)  # Adam divides a gradient by its own size, and with it the rounding near 0
    assert our_state.critic.num_updates == their_state.critic.num_updates == 24
    for one, other in zip(our_metrics, their_metrics, strict=True):
        assert one.keys() == other.keys() >= {"kl", "value_error"}
        assert all(close(one[name], other[name], atol=4e-6) for name in one)


def test_a_return_that_is_not_finite():
    policy = make_policy()
    batch = make_batch(policy, masked=0.0, zero_weight=0.0)
    batch = replace(batch, returns=batch.returns / 0)
    algorithm, messages = TRPO(), []
    for compiled, own in zip((True, False), twice(policy), strict=True):
        run = fast_update(algorithm, own) if compiled else algorithm.update
        state = algorithm.update.start(own, seed=0)
        state.skipped = MAX_SKIPPED - 1
        with pytest.raises(Diverged) as caught:
            run(algorithm, own, batch, state)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "returns is not finite" in messages[0]


def test_what_the_kernel_does_not_read_is_left_to_its_twin():
    policy = make_policy()
    batch = make_batch(policy)
    batch = replace(batch, returns=batch.returns.double())
    algorithm = TRPO()
    metrics = fast_update(algorithm, policy)(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
    assert metrics["accepted"] == 1 and metrics["value_error"] > 0
