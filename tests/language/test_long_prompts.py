"""Prompts without room for a completion: refused by file and line, left out, or cut, as text and as messages."""

from __future__ import annotations

import pytest
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.language.models import small
from upslope.errors import UsageError
from upslope.language import Pair, Problem, Task
from upslope.language.long_prompts import completion_lengths, cut, fit, fit_task
from upslope.language.rendering import Rendering

ROOM = 64 - 6


@pytest.fixture(scope="module")
def policy():
    found = small()  # a token for each character, a context of 64
    found.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    return found


def problems(*prompts):
    return [Problem(prompt=prompt, columns={"n": n}, place=f"f.jsonl, line {n + 1}") for n, prompt in enumerate(prompts)]


def test_what_fits_is_left_as_it_is(policy):
    items = problems("ab", "c" * (ROOM - len(policy.encode("c")) + 1))
    for how in ("error", "drop", "cut"):
        assert fit(policy, items, [6, 6], how) == (items, 0)


def test_the_first_prompt_that_is_too_long_is_named_by_file_and_line(policy):
    items = problems("ab", "c" * 60)
    with pytest.raises(UsageError, match=r"f\.jsonl, line 2: its 6\d tokens and 6 for the completion exceed the model's context of 64"):
        fit(policy, items, [6, 6], "error")
    with pytest.raises(UsageError, match=r"prompts\[0\]: its 6\d tokens"):
        fit(policy, [Problem(prompt="c" * 60)], [6], "error")


def test_long_prompts_are_dropped_with_all_that_belongs_to_them(policy):
    items = problems("ab", "c" * 60, "dd")
    assert fit(policy, items, [6] * 3, "drop") == ([items[0], items[2]], 1)
    with pytest.raises(UsageError, match="all 1 are too long"):
        fit(policy, items[1:2], [6], "drop")


def test_a_cut_text_keeps_as_much_of_its_end_as_fits(policy):
    text = ("abcdefgh" * 20)[:-1]
    (item,), changed = fit(policy, problems(text), [6], "cut")
    assert changed == 1 and text.endswith(item.prompt) and item.columns == {"n": 0}
    assert len(policy.encode(item.prompt)) == ROOM < len(policy.encode(text[-len(item.prompt) - 1 :]))


def test_of_messages_the_longest_loses_its_beginning(policy):
    talk = [{"role": "system", "content": "ab"}, {"role": "user", "content": "c" * 80 + "d"}, {"role": "user", "content": "e" * 9}]
    found = cut(policy, talk, ROOM)
    assert found[0] == talk[0] and found[2] == talk[2] and found[1]["content"].endswith("cd")
    assert len(policy.encode(found)) == ROOM
    crowded = [{"role": "system", "content": "a" * 50}, {"role": "user", "content": "c" * 50}]
    assert cut(policy, crowded, 40) is None
    with pytest.raises(UsageError, match="line 1: no part of it fits"):
        fit(policy, problems(crowded), [24], "cut")


def test_pairs_keep_room_for_the_longer_completion(policy):
    pairs = [Pair(prompt="a" * 40, chosen="b", rejected="c" * length) for length in (5, 30)]
    free = completion_lengths(policy, pairs, [[pair.chosen, pair.rejected] for pair in pairs])
    assert free[1] - free[0] == 25
    assert fit(policy, pairs, free, "drop") == (pairs[:1], 1)
    kept, changed = fit(policy, pairs, free, "cut")
    assert changed == 1 and kept[1].rejected == pairs[1].rejected and 0 < len(kept[1].prompt) < 40


def test_a_task_is_fitted_on_both_sides(policy):
    train, held_out = problems("ab", "c" * 60), problems("c" * 70, "a")
    made = Task(name="own", train=train, held_out=held_out, columns=("n",), reward=len, solution=lambda problem: "d" * 50)
    dropped, count = fit_task(policy, made, 6, "drop")
    assert (dropped.train, dropped.held_out, count) == (train[:1], held_out[1:], 2)
    shorter, count = fit_task(policy, made, 6, "cut", recorded=True)  # the solutions take more room than completions may
    assert count == 2 and len(shorter.train[1].prompt) < 10 and len(shorter.held_out[0].prompt) > 50
    assert fit_task(policy, Task(name="own", train=train, held_out=[], columns=(), reward=len), 6, "error", recorded=True)[1] == 0


@pytest.mark.parametrize("name, option", [("f.jsonl", True), ("reasoning-gym:chain_sum", True), ("sums", False)])
def test_recorded_answers_need_room_for_themselves_and_evaluations_name_the_flag_that_there_is(policy, name, option):
    long = "c" * 40
    kept = 64 - len(policy.encode(long))
    made = Task(name=name, train=problems(long), held_out=problems("a", long), columns=("n",), reward=len, solution=lambda problem: "d")
    assert fit_task(policy, made, kept, "error", recorded=True) == (made, 0)
    with pytest.raises(UsageError) as caught:
        fit_task(policy, made, kept + 1, "error", recorded=True)
    message = str(caught.value)
    assert message.startswith("f.jsonl, line 2: ") and "; it is held out, and evaluations ask it for so many tokens" in message
    assert "--max-tokens" not in message and message.endswith("--long-prompts drop or cut")
    assert (f"""so take --task-kwargs '{{"max_tokens": {kept}}}' or fewer""" in message) == option
    only = Task(name=name, train=problems(long), held_out=[], columns=("n",), reward=len, solution=lambda problem: "d")
    assert fit_task(policy, only, 64, "error", recorded=True) == fit_task(policy, only, 64, "drop", recorded=True) == (only, 0)
    with pytest.raises(UsageError, match="take fewer --max-tokens"):
        fit_task(policy, made, kept + 1, "error")


def test_a_recorded_completion_that_the_tokenizer_refuses_is_named():
    words = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}))  # without a token for what is unknown
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    policy = small()
    policy.rendering = Rendering(tf.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>"))
    with pytest.raises(UsageError, match=r"^f.jsonl, line 2: the tokenizer refuses this text"):
        completion_lengths(policy, problems("a", "a"), [["a"], ["a", "b"]])
