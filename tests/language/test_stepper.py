"""PPOStepper: the loop in somebody else's hands."""

from __future__ import annotations

import pytest
import torch

from upslope import PPO, Ascent, UsageError
from upslope.language import PPOStepper, tiny
from upslope.language.stepper import grouped

QUERY = "ab="


def share(policy, responses, letter="c"):
    return [float(letter in policy.decode(response)) for response in responses]


def test_the_rewarded_letter_is_said_more_often():
    policy = tiny("abc=", seed=0, value_head=True, hidden_size=32, num_layers=2, num_heads=2)
    ppo = PPOStepper(policy, kl_coef=0.0, seed=0)
    ppo.algorithm.update.start(policy, seed=0)
    ppo.state.learning_rate = 3e-3
    before = sum(share(policy, ppo.generate([QUERY] * 64, max_tokens=4))) / 64
    for _ in range(12):
        responses = ppo.generate([QUERY] * 32, max_tokens=4)
        metrics = ppo.step([QUERY] * 32, responses, share(policy, responses))
    after = sum(share(policy, ppo.generate([QUERY] * 64, max_tokens=4))) / 64
    assert after >= before + 0.2, (before, after)
    assert metrics.keys() >= {"reward", "approx_kl", "value_error", "explained_variance"}


def test_the_reference_stays_and_its_kl_starts_at_zero():
    policy = tiny("abc=", seed=0, value_head=True, hidden_size=32, num_layers=2, num_heads=2)
    ppo = PPOStepper(policy, kl_coef=0.1)
    assert ppo.reference is not None
    before = {name: p.clone() for name, p in ppo.reference.named_parameters()}
    responses = ppo.generate([QUERY, "ba="], max_tokens=4)
    first = ppo.step([QUERY, "ba="], responses, [1.0, 0.0])
    second = ppo.step([QUERY, "ba="], responses, [1.0, 0.0])
    assert first["reference_kl"] == pytest.approx(0.0, abs=1e-9) and second["reference_kl"] > 0
    assert all(torch.equal(before[name], p) for name, p in ppo.reference.named_parameters())


def test_equal_queries_share_their_prompt_and_keep_their_places():
    assert grouped([[1], [2], [1], [2]]) == ([[1], [2]], [0, 2, 1, 3], 2)
    assert grouped([[1], [2], [1]]) == ([[1], [2], [1]], [0, 1, 2], 1)
    policy = tiny("abc=", seed=0, value_head=True, hidden_size=32, num_layers=2, num_heads=2)
    queries = ["a=", "bb=", "a=", "bb="]
    together, apart = (PPOStepper(policy, kl_coef=0.0, seed=s) for s in (1, 1))
    responses = together.generate(queries, max_tokens=3)
    assert [len(r) <= 3 and len(r) > 0 for r in responses] == [True] * 4
    # in which order equal queries come cannot change a step, only rounding
    flipped = [1, 0, 3, 2]
    one = together.step(queries, responses, [1.0, 0.0, 0.5, 0.2])
    policy_again = tiny("abc=", seed=0, value_head=True, hidden_size=32, num_layers=2, num_heads=2)
    apart = PPOStepper(policy_again, kl_coef=0.0, seed=1)
    other = apart.step([queries[i] for i in flipped], [responses[i] for i in flipped], [[1.0, 0.0, 0.5, 0.2][i] for i in flipped])
    assert one["objective"] == pytest.approx(other["objective"], abs=1e-5)


def small(**options):
    policy = tiny("abc=", seed=0, value_head=True, hidden_size=32, num_layers=2, num_heads=2)
    return PPOStepper(policy, **options)


def test_responses_are_those_of_their_own_queries_and_every_call_samples_anew():
    """A query ends in what its response begins with: the policy is made to repeat its last letter."""
    ppo = small()
    ids = {letter: ppo.policy.encode(letter)[-1] for letter in "ab"}
    made = {}

    class Repeats:
        def sync(self, policy, version):
            made["version"] = version

        def generate(self, prompts, *, group_size, max_tokens, seed):
            made.setdefault("seeds", []).append(seed)
            last = torch.tensor([[[prompt[-1]]] * group_size for prompt in prompts])
            return Completions(completion_ids=last, length=torch.ones(last.shape[:2], dtype=torch.int64))

    class Completions:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    ppo.engine = Repeats()
    queries = ["ba", "ab", "ba", "ab"]
    assert ppo.generate(queries) == [[ids["a"]], [ids["b"]], [ids["a"]], [ids["b"]]]
    ppo.generate(queries)
    assert len(set(made["seeds"])) == 2 and made["version"] == 0
    ppo.step(queries, [[ids["a"]]] * 4, [1.0, 0.0, 0.0, 1.0])
    ppo.generate(queries)
    assert made["version"] == 1  # the engine is told that the weights are other ones


def test_what_a_step_makes_of_ends_and_of_the_penalty():
    """A response without a stop token was cut off, not ended; the KL's weight reaches the algorithm."""
    seen = []

    class Watched(PPO):
        def estimate(self, policy, rollout):
            seen.append(rollout)
            return super().estimate(policy, rollout)

    ppo = small(algorithm=Watched(update=Ascent(learning_rate=1e-3)), kl_coef=0.25)
    letter, end = ppo.policy.encode("a")[-1], min(ppo.policy.stop_ids)
    ppo.step([QUERY, "a="], [[letter, end], [letter, letter]], [1.0, 0.0])
    (rollout,) = seen
    assert rollout.terminated.flatten(0, -2).tolist() == [[False, True], [False, False]]
    assert rollout.truncated.flatten(0, -2).tolist() == [[False, False], [False, True]]
    assert ppo.algorithm.reference_kl_coef == 0.25


@pytest.mark.parametrize(
    "queries, responses, rewards, expected",
    [
        ([QUERY], [[3]], [1.0, 2.0], "found 1, 1 and 2"),
        ([], [], [], "found 0, 0 and 0"),
        ([QUERY], ["abc"], [1.0], r"responses\[0\]: expected token ids"),
        ([QUERY], [[]], [1.0], r"responses\[0\]: it is empty"),
        ([QUERY], [[3]], [float("nan")], r"rewards\[0\]: expected a finite number, found nan"),
        ([QUERY], [[3]], ["good"], r"rewards\[0\]: expected a finite number, found 'good'"),
    ],
)
def test_what_is_refused(queries, responses, rewards, expected):
    ppo = PPOStepper(tiny("abc=", value_head=True, hidden_size=16, num_layers=1, num_heads=1), kl_coef=0.0)
    with pytest.raises(UsageError, match=expected):
        ppo.step(queries, responses, rewards)


def test_a_critic_is_needed():
    with pytest.raises(UsageError, match="value_head=True"):
        PPOStepper(tiny("abc=", hidden_size=16, num_layers=1, num_heads=1))
