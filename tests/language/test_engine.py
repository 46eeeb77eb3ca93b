"""The embedded engine: the distribution that it samples from, whatever the schedule; where completions end; what it refuses."""

import itertools
import math
import platform

import pytest
import torch

from tests.language.models import TOKENIZER, VOCABULARY, model_of, policy_of, small
from upslope.errors import UsageError
from upslope.language import EmbeddedEngine, LanguagePolicy, engine
from upslope.language.collect import padded
from upslope.language.engine import Decoding
from upslope.language.head import inverse_cdf, locate_in_cdf

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [5, 6, 7], [30, 31, 32, 33]]


def generated(policy, prompts=PROMPTS, width=64, **options):
    return EmbeddedEngine(policy, width=width).generate(prompts, **{"group_size": 3, "max_tokens": 8, **options})


def evaluated(policy, prompts, found):
    prompt_ids, prompt_length = padded(prompts)
    with torch.no_grad():
        return policy.evaluate(
            prompt_ids=prompt_ids, prompt_length=prompt_length, completion_ids=found.completion_ids, completion_length=found.length
        ).log_prob


def ending(policy, by=4.0):
    """The same policy, more likely to end a completion."""
    with torch.no_grad():
        policy.model.lm_head.bias[0] += by
    return policy


def with_ends(family="phi, biased head", **options):
    return ending(policy_of(family, **options), 2.5)


# the product with the last layer


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("laid_out", [True, False])
def test_a_product_with_a_matrix_laid_out_once_is_the_product(rows, laid_out, monkeypatch):
    monkeypatch.setattr(engine, "MIN_PACKED_ENTRIES", 1 if laid_out else 1 << 62)
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(300, 40, generator=generator, requires_grad=True), torch.randn(rows, 40, generator=generator)
    times = engine.Product(weight)
    assert (times.packed is not None) == (laid_out and platform.machine() == "x86_64" and torch.backends.mkldnn.is_available())
    torch.testing.assert_close(times(x), x @ weight.detach().t(), rtol=0, atol=1e-4)


def test_a_precision_without_a_kernel_is_multiplied_plainly(monkeypatch):
    monkeypatch.setattr(engine, "MIN_PACKED_ENTRIES", 1)
    weight, x = torch.randn(30, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    assert engine.packed(weight) is None
    torch.testing.assert_close(engine.Product(weight)(x), x @ weight.t(), rtol=0, atol=1e-12)

    def refuse(*_):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    assert engine.packed(weight.float()) is None


@pytest.mark.parametrize("rows", [1, 4, 33])
def test_a_product_in_bfloat16_is_the_exact_one_rounded_once(rows, monkeypatch):
    """With a kernel or without one: products are summed in float32 and rounded at the end."""
    monkeypatch.setattr(engine, "MIN_PACKED_ENTRIES", 1)
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(300, 77, generator=generator).bfloat16(), torch.randn(rows, 77, generator=generator).bfloat16()
    exact = x.double() @ weight.double().t()
    bound = exact.abs() * 2.0**-8 + (x.double().abs() @ weight.double().abs().t()) * 2.0**-20  # half a unit, and the sum's own rounding
    assert ((engine.Product(weight, rows)(x).double() - exact).abs() <= bound).all()


def test_what_is_sampled_with_a_last_layer_laid_out_is_what_is_scored(monkeypatch):
    plain = generated(policy := policy_of("llama"), seed=3)
    monkeypatch.setattr(engine, "MIN_PACKED_ENTRIES", 1)
    found = generated(policy, seed=3)
    assert torch.equal(found.completion_ids, plain.completion_ids)
    torch.testing.assert_close(evaluated(policy, PROMPTS, found), found.log_prob, rtol=0, atol=1e-5)


# the distribution


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "llama tied, one key for all heads",
        "mistral, window of 3",
        "qwen3",
        "gemma2, caps, window of 3",
        "gemma3, window of 3",
        "gpt2",
    ],
)
def test_log_probs_are_those_of_the_training_pass(family, temperature):
    policy = policy_of(family, temperature=temperature)
    found = generated(policy, seed=3)
    torch.testing.assert_close(evaluated(policy, PROMPTS, found), found.log_prob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["cohere", "granite", "phi, biased head"])
def test_scaled_and_biased_last_layers_too(family):
    policy = policy_of(family, temperature=0.8)
    found = generated(policy)
    torch.testing.assert_close(evaluated(policy, PROMPTS, found), found.log_prob, rtol=0, atol=1e-5)


def test_in_bfloat16_they_are_near():
    policy = policy_of("llama", compute_dtype=torch.bfloat16)
    found = generated(policy)
    difference = (evaluated(policy, PROMPTS, found) - found.log_prob).abs().max().item()
    assert difference < 0.1  # eight bits of mantissa, other orders of summing
    assert found.log_prob.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3, window of 3", "gemma2, caps, window of 3", "mistral, window of 3"])
def test_greedy_is_what_transformers_generates(family):
    policy = policy_of(family)
    policy.stop_ids = frozenset({-1})  # neither of the two ends early
    found = generated(policy, greedy=True, group_size=2, max_tokens=12, width=4)
    assert torch.equal(found.completion_ids[:, 0], found.completion_ids[:, 1])
    for prompt, ids in list(zip(PROMPTS, found.completion_ids[:, 0], strict=True))[:4]:
        theirs = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert theirs[0, len(prompt) :].tolist() == ids.tolist()


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_first_token_is_drawn_from_the_softmax(temperature):
    policy, draws = small("abcdef", noise=0.1, temperature=temperature), 4_000
    found = generated(policy, [[2, 3]], group_size=draws, max_tokens=1, width=draws, seed=7)
    p = (policy.model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].double() / temperature).softmax(-1).detach()
    counts = torch.bincount(found.completion_ids.flatten(), minlength=len(p)).double()
    assert chi_square(counts, draws * p) < 24.3  # the 0.999 quantile with 7 degrees of freedom
    assert draws * p.min() > 4 and p.max() > 2 * p.min()


def test_so_are_two_tokens_in_a_row():
    policy, draws = small("ab", noise=0.5), 4_000
    policy.stop_ids = frozenset({-1})
    found = generated(policy, [[2, 3]], group_size=draws, max_tokens=2, width=draws, seed=1)
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    log_p = policy.evaluate(
        prompt_ids=torch.tensor([[2, 3]]),
        prompt_length=torch.tensor([2]),
        completion_ids=pairs[None],
        completion_length=torch.full((1, 16), 2),
    ).log_prob.detach()
    counts = torch.bincount(found.completion_ids[0] @ torch.tensor([4, 1]), minlength=16).double()
    assert chi_square(counts, draws * log_p[0].sum(-1).exp().double()) < 37.7  # 0.999 quantile, 15 degrees of freedom


def test_sampled_log_probs_estimate_the_entropy():
    policy = small("abcdef", noise=0.3)
    found = generated(policy, [[2, 3]], group_size=4_000, max_tokens=1, width=4_000)
    log_p = policy.model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].log_softmax(-1)
    entropy, variance = -(log_p.exp() * log_p).sum(), (log_p.exp() * log_p.square()).sum() - (log_p.exp() * log_p).sum() ** 2
    assert abs(-found.log_prob.mean() - entropy) < 4 * (variance / 4_000).sqrt()


# the number in [0, 1) that becomes a token


def test_inverse_cdf_is_the_inverse_of_the_cumulative_sum():
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (2, 511, 512, 513, 1500):
        p = torch.rand(4, vocabulary, generator=generator).pow(3)
        p /= p.sum(-1, keepdim=True)
        uniform = torch.rand(4, generator=generator, dtype=torch.float64)
        token, total = inverse_cdf(p.log(), uniform), p.double().cumsum(-1)
        total = total / total[:, -1:]
        above, below = total.gather(1, token[:, None]).squeeze(1), (total - p).gather(1, token[:, None]).squeeze(1)
        assert (below - 1e-6 <= uniform).all() and (uniform <= above + 1e-6).all()


@pytest.mark.parametrize("vocabulary", [3, 512, 700, 1024, 49_152])
def test_impossible_tokens_are_never_chosen(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    one = 1.0 - 2.0**-53
    uniform = torch.tensor([0.0, 5e-324, 1e-17, 1e-9, 0.25, 0.5, 0.75, 1 - 1e-9, 1 - 1e-16, one], dtype=torch.float64)
    for seen in (1, 2, min(40, vocabulary - 1)):
        for _ in range(5):
            possible = torch.randperm(vocabulary, generator=generator)[:seen]
            log_p = torch.full((vocabulary,), -math.inf)
            log_p[possible] = torch.randn(seen, generator=generator).mul(5).log_softmax(-1)
            token = inverse_cdf(log_p.expand(len(uniform), -1), uniform)
            assert torch.isin(token, possible).all()
            assert token[0] == possible.min() and log_p[token[-1] + 1 :].double().exp().sum() < 1e-6  # the sum of p is 1 to float32


def test_the_whole_range_of_a_uniform_number_reaches_every_token():
    log_p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]).log()
    uniform = torch.tensor([0.0, 0.2499999, 0.25, 0.7499999, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(log_p.expand(6, -1), uniform).tolist() == [1, 1, 3, 3, 4, 4]
    spread = torch.full((1, 2000), 1 / 2000).log()
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert inverse_cdf(spread.expand(2000, -1), grid).tolist() == list(range(2000))


def test_shares_add_up_where_sums_round():
    mass = torch.tensor([[1e-30, 1.0, 1e-30], [0.0, 1e-38, 0.0]])
    index, left = locate_in_cdf(mass, torch.tensor([1 - 2.0**-53, 0.5], dtype=torch.float64))
    assert index.tolist() == [1, 1] and (left >= 0).all() and (left < 1).all()
    # every share in float64: more numbers than 0.1 has, none of them leads past the end
    shares = 1 - torch.arange(1, 200, dtype=torch.float64) * 2.0**-53
    index, _ = locate_in_cdf(torch.full((199, 10), 0.1), shares)
    assert index.max() == 9
    # even a share of 1 stays at the last entry that is possible
    index, left = locate_in_cdf(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.ones(2, dtype=torch.float64))
    assert index.tolist() == [1, 0] and (left < 1).all()


# the schedule cannot be seen


@pytest.mark.parametrize("width", [1, 3, 4, 7, 64])
def test_neither_width_nor_refill_changes_what_is_sampled(width):
    policy = with_ends()
    expected, found = generated(policy, width=9, max_tokens=12), generated(policy, width=width, max_tokens=12)
    assert torch.equal(found.completion_ids, expected.completion_ids) and torch.equal(found.length, expected.length)
    assert torch.equal(found.finished, expected.finished)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-5)
    assert len(set(expected.length.flatten().tolist())) > 4  # ragged, so rows were dropped and slots taken anew
    torch.testing.assert_close(evaluated(policy, PROMPTS, found), found.log_prob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3, window of 3", "gpt2"])
def test_nor_does_it_for_windows_and_places_that_are_learned(family):
    policy = policy_of(family)
    policy.stop_ids = frozenset(range(0, VOCABULARY, 6))  # ends in a sixth of the cases
    expected = generated(policy, max_tokens=12)
    for width in (3, 6):
        found = generated(policy, width=width, max_tokens=12)
        assert torch.equal(found.completion_ids, expected.completion_ids)
        torch.testing.assert_close(evaluated(policy, PROMPTS, found), found.log_prob, rtol=0, atol=1e-5)


def test_ended_rows_are_left_out_of_every_layer(monkeypatch):
    policy, seen = with_ends(), []
    run = LanguagePolicy.run
    monkeypatch.setattr(LanguagePolicy, "run", lambda self, row, weights: seen.append(len(row.ids)) or run(self, row, weights))
    found = generated(policy, max_tokens=20)
    prompts = sum(map(len, PROMPTS))
    assert seen[0] == prompts  # one prefill, once for each group
    assert sum(seen) == prompts + int((found.length - 1).sum())  # every later token was computed once
    assert seen[1:] == sorted(seen[1:], reverse=True)


def test_slots_that_are_done_take_the_next_prompts(monkeypatch):
    policy, fills = with_ends(), []
    fill = Decoding.fill

    def counted(self):
        before = self.next_prompt
        fill(self)
        fills.append(self.next_prompt - before)

    monkeypatch.setattr(Decoding, "fill", counted)
    generated(policy, width=6, max_tokens=20)
    assert fills[0] == 2 and sum(fills) == len(PROMPTS) and max(fills[1:]) >= 1


def test_a_prompt_says_the_same_beside_others_and_alone():
    policy = policy_of("llama")
    both, alone = generated(policy, greedy=True), generated(policy, [PROMPTS[2]], greedy=True)
    assert torch.equal(both.completion_ids[2], alone.completion_ids[0])


def test_a_seed_decides():
    policy = policy_of("llama")
    first, again, other = (generated(policy, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.completion_ids, again.completion_ids) and torch.equal(first.log_prob, again.log_prob)
    assert not torch.equal(first.completion_ids, other.completion_ids)
    assert not torch.equal(first.completion_ids[0], first.completion_ids[4])  # equal prompts, numbers of their own
    assert len({tuple(row) for row in first.completion_ids[0].tolist()}) == 3
    before = torch.get_rng_state()
    generated(policy)
    assert torch.equal(torch.get_rng_state(), before)


def test_sync_takes_the_present_weights_and_their_version():
    policy = policy_of("llama", compute_dtype=torch.bfloat16)
    sampler = EmbeddedEngine(policy)
    before = sampler.generate(PROMPTS, group_size=1, max_tokens=6, greedy=True)
    with torch.no_grad():
        policy.model.lm_head.weight += torch.randn(policy.model.lm_head.weight.shape, generator=torch.Generator().manual_seed(9))
    stale = sampler.generate(PROMPTS, group_size=1, max_tokens=6, greedy=True)
    assert torch.equal(before.completion_ids, stale.completion_ids) and before.policy_version == 0
    sampler.sync(policy, 5)
    fresh = sampler.generate(PROMPTS, group_size=1, max_tokens=6, greedy=True)
    assert fresh.policy_version == 5 and not torch.equal(fresh.completion_ids, before.completion_ids)


def test_nothing_of_the_model_is_left_changed():
    policy = policy_of("llama")
    weights, name = {k: v.clone() for k, v in policy.state_dict().items()}, policy.model.config._attn_implementation
    found = generated(policy)
    assert not found.log_prob.requires_grad and policy.model.config._attn_implementation == name
    assert all(torch.equal(v, weights[k]) for k, v in policy.state_dict().items())


# where completions end


def always(token):
    """A policy that says one token, whatever the text."""
    policy = policy_of("phi, biased head")
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
        policy.model.lm_head.bias.fill_(-50.0)
        policy.model.lm_head.bias[token] = 50.0
    return policy


def test_a_completion_without_an_end_is_cut():
    found = generated(always(7), max_tokens=5)
    assert found.length.tolist() == [[5, 5, 5]] * 6 and not found.finished.any() and (found.completion_ids == 7).all()
    assert found.finish_reason == [["length"] * 3] * 6


def test_an_end_as_the_first_token_counts_and_is_scored():
    policy = always(0)
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id == 0  # padding and end are one token
    found = generated(policy, max_tokens=5)
    assert found.length.tolist() == [[1, 1, 1]] * 6 and found.finished.all() and found.completion_ids.shape == (6, 3, 1)
    assert found.finish_reason == [["stop"] * 3] * 6
    torch.testing.assert_close(found.log_prob, torch.zeros(6, 3, 1), rtol=0, atol=1e-6)


def test_an_end_at_the_last_place_is_an_end():
    policy = policy_of("gpt2")
    free = generated(policy, PROMPTS[:1], group_size=1, max_tokens=4)
    *before, last = free.completion_ids[0, 0].tolist()
    assert last not in before and free.finish_reason == [["length"]]
    policy.stop_ids = frozenset({last})
    found = generated(policy, PROMPTS[:1], group_size=1, max_tokens=4)
    assert found.finish_reason == [["stop"]] and found.length.tolist() == [[4]]


def test_nothing_stands_behind_an_end():
    found = generated(with_ends(), max_tokens=12)
    behind = torch.arange(found.completion_ids.shape[-1]) >= found.length[..., None]
    assert behind.any() and not found.completion_ids[behind].any() and not found.log_prob[behind].any()
    last = found.completion_ids.gather(-1, found.length[..., None] - 1).squeeze(-1)
    assert torch.equal(last == 0, found.finished)
    inside = torch.arange(found.completion_ids.shape[-1]) < found.length[..., None] - 1
    assert (found.completion_ids[inside] != 0).all()
    assert found.completion_ids.shape[-1] == found.length.max()


def test_every_end_token_of_the_generation_settings_ends():
    model = model_of("gpt2")
    model.generation_config.eos_token_id = [11, 12]
    policy = LanguagePolicy(model, TOKENIZER, compute_dtype=torch.float32)
    assert policy.stop_ids == {0, 11, 12}
    model.generation_config.eos_token_id = None
    assert LanguagePolicy(model, TOKENIZER, compute_dtype=torch.float32).stop_ids == {0}


@pytest.mark.parametrize("group_size, max_tokens", [(1, 1), (1, 3), (4, 1)])
def test_the_smallest_sizes(group_size, max_tokens):
    found = generated(policy_of("llama"), [[5]], group_size=group_size, max_tokens=max_tokens, width=1)
    assert found.completion_ids.shape == (1, group_size, int(found.length.max())) and found.length.max() <= max_tokens


def test_a_context_is_used_to_its_end():
    policy = policy_of("gpt2")  # 64 places, each of them learned
    policy.stop_ids = frozenset({-1})
    prompt = [5 + i % 70 for i in range(60)]
    found = generated(policy, [prompt], max_tokens=4)
    assert found.length.tolist() == [[4, 4, 4]]
    torch.testing.assert_close(evaluated(policy, [prompt], found), found.log_prob, rtol=0, atol=1e-5)


# what is refused


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "prompts: expected at least one, found none"),
        ([[5], []], {}, "prompts[1]: it has no token"),
        ([[5] * 60], {"max_tokens": 5}, "prompts[0]: its 60 tokens and max_tokens 5 exceed the model's context of 64; shorten the prompt"),
        ([[5]], {"max_tokens": 0}, "max_tokens: expected an integer ≥ 1, found 0"),
        ([[5]], {"group_size": 0}, "group_size: expected an integer ≥ 1, found 0"),
        ([[5]], {"width": 0}, "width: expected an integer ≥ 1"),
    ],
)
def test_what_cannot_be_completed_is_refused_in_one_line(prompts, options, message):
    with pytest.raises(UsageError) as caught:
        generated(policy_of("gpt2"), prompts, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_engine_is_behind_two_calls():
    names = [name for name in vars(engine.Engine) if not name.startswith("_")]
    assert sorted(names) == ["generate", "sync"]
