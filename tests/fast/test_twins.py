"""Which objects get which fast path, how the machine code is kept, and that everything works without LLVM."""

import builtins
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from tests.fast.cases import make_batch, make_policy
from upslope import A2C, PPO, REINFORCE, Ascent, control, train
from upslope.fast import native, plan
from upslope.fast.twins import fast_policy, fast_update
from upslope.fast.update import CompiledUpdate

pytest.importorskip("llvmlite")


def mine(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return log_prob * advantage


@dataclass(frozen=True, kw_only=True)
class OwnObjective(PPO):
    def objective(self, policy, batch):
        return super().objective(policy, batch)


@dataclass(frozen=True, kw_only=True)
class OwnEstimate(PPO):
    def estimate(self, policy, rollout):
        return super().estimate(policy, rollout)


@dataclass(frozen=True, kw_only=True)
class OwnUpdate(Ascent):
    def step(self, state, gradients):
        return super().step(state, gradients)


class OwnPolicy(control.MLPPolicy):
    pass


@pytest.mark.parametrize(
    "algorithm", [PPO(), A2C(), REINFORCE(), REINFORCE(baseline=False), OwnEstimate(), OwnObjective(), PPO(surrogate=mine)]
)
def test_objectives_are_compiled(algorithm):
    assert isinstance(fast_update(algorithm, make_policy()), CompiledUpdate)


def test_an_own_update_is_called_as_it_is():
    algorithm = PPO(update=OwnUpdate())
    assert fast_update(algorithm, make_policy()) is algorithm.update


def hooked():
    policy = make_policy()
    policy.actor[0].register_forward_hook(lambda *arguments: None)
    return policy


def replaced():
    policy = make_policy()
    policy.actor[1] = nn.GELU()
    return policy


def parametrized():
    policy = make_policy()
    nn.utils.parametrizations.weight_norm(policy.critic[0])
    return policy


def partly_frozen():
    policy = make_policy()
    policy.actor[0].weight.requires_grad_(False)
    return policy


def subclass():
    policy = make_policy()
    return OwnPolicy.for_envs((policy.observation_space, policy.action_space))


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        replaced,
        parametrized,
        subclass,
        lambda: make_policy(activation="sigmoid"),
        lambda: make_policy("gaussian", distribution="squashed"),
        lambda: make_policy("gaussian", distribution="beta"),
        lambda: make_policy("gaussian", state_dependent_std=True),
        lambda: make_policy().double(),
        lambda: nn.Linear(2, 2),
    ],
)
def test_policies_that_are_not_what_the_kernels_know(make):
    policy = make()
    assert plan.match_mlp_policy(policy) is None
    assert fast_policy(policy) is policy
    assert not isinstance(fast_update(PPO(), policy), CompiledUpdate)


def test_a_partly_frozen_policy_learns_in_its_readable_twin():
    policy = partly_frozen()
    algorithm = PPO()
    before = policy.actor[0].weight.clone()
    fast_update(algorithm, policy)(algorithm, policy, make_batch(policy), algorithm.update.start(policy, seed=0))
    assert torch.equal(before, policy.actor[0].weight)


def test_training_is_the_same_with_and_without_fast_paths():
    results = []
    for fast in (True, False):
        envs = control.make("CartPole-v1", num_envs=4, seed=0)
        policy = control.MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
        algorithm = PPO(update=Ascent(learning_rate=3e-3, num_epochs=2, num_minibatches=2))
        state = train(algorithm, policy, control.Steps(envs, num_steps=16, seed=0), iterations=3, seed=0, fast=fast)
        envs.close()
        results.append((torch.cat([p.detach().reshape(-1) for p in policy.parameters()]), state))
    (ours, our_state), (theirs, their_state) = results
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)  # three iterations of Adam; the actions drawn are the same ones:
    assert torch.equal(our_state.rollout.inputs["action"], their_state.rollout.inputs["action"])
    assert our_state.metrics.keys() == their_state.metrics.keys()


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """No library yet, and an empty folder to keep machine code in."""
    native.library.cache_clear()
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path / "cache")
    yield tmp_path / "cache"
    native.library.cache_clear()


def test_machine_code_is_kept_and_a_damaged_file_is_made_again(fresh_library, monkeypatch):
    assert native.library() is not None
    (file,) = fresh_library.iterdir()
    content = file.read_bytes()
    assert native.read_code(file) == content[native.DIGEST :]
    made = []
    monkeypatch.setattr(native, "machine_code", lambda *arguments: made.append(1) or content[native.DIGEST :])
    native.library.cache_clear()
    assert native.library() is not None and not made
    for damage in (content[:1000], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(damage)
        native.library.cache_clear()
        made.clear()
        assert native.library() is not None and made
        assert file.read_bytes() == content
    assert list(fresh_library.iterdir()) == [file], "nothing is left behind"


def test_a_folder_that_cannot_be_written_costs_only_time(fresh_library):
    fresh_library.write_text("a file where the folder should be")
    assert native.library() is not None


def test_the_name_of_the_file_changes_with_the_source():
    import llvmlite.binding as llvm

    assert native.fingerprint(llvm, b"a") == native.fingerprint(llvm, b"a") != native.fingerprint(llvm, b"b")


def test_every_module_that_the_kernels_are_made_of_is_in_the_fingerprint():
    from upslope.fast.translate import Module

    used = {function.__module__.rpartition(".")[2] for function in Module(*native.ENTRY_POINTS).signatures}
    assert used | set(native.TRANSLATOR) == set(native.SOURCES)


def test_without_llvm_everything_is_its_readable_twin(fresh_library, monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("llvmlite"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "llvmlite.binding")
    policy, algorithm = make_policy(), PPO()
    assert native.library() is None
    assert fast_policy(policy) is policy and fast_update(algorithm, policy) is algorithm.update


def test_a_processor_without_a_code_generator_is_served_by_torch(fresh_library, monkeypatch):
    def refuse(llvm):
        raise RuntimeError("Unable to find target for this triple")

    monkeypatch.setattr(native, "target_machine", refuse)
    assert native.library() is None


def test_an_algorithm_is_described_anew_at_each_update():
    """What a callback or a schedule replaces takes effect."""
    policy, algorithm = make_policy(), PPO(update=Ascent(learning_rate=0.01))
    run = fast_update(algorithm, policy)
    state = algorithm.update.start(policy, seed=0)
    batch = make_batch(policy)
    before = run(algorithm, policy, batch, state)["objective"]
    batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach().where(batch.mask, 0.0))
    other = replace(algorithm, value_coef=10.0)
    assert abs(run(other, policy, batch, state)["objective"] - before) > 0.1


def test_what_does_not_fit_the_kernels_takes_the_readable_path(monkeypatch):
    def parts(inputs):
        with torch.device("meta"):
            actor, critic = ((nn.Linear(inputs, 64), nn.Linear(64, outputs)) for outputs in (4, 1))
        return plan.MLPLayout(0, 0, actor, critic, None)

    assert plan.fits(parts(4)) and plan.fits(parts(20_000)) and not plan.fits(parts(200_000))  # a one-hot of 200,000 states
    policy, batch = make_policy(inputs=9), make_batch(make_policy(inputs=9))
    monkeypatch.setattr(plan, "MAX_SCRATCH", 1000)
    monkeypatch.setattr(plan, "Plan", None)
    assert fast_policy(policy) is policy
    algorithm = PPO()
    update = fast_update(algorithm, policy)
    assert not isinstance(update, CompiledUpdate)
    update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
