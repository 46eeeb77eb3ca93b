"""Rewards: the convention, weights, items without a score, time limits, what breaks the convention, built-ins."""

import asyncio
import multiprocessing
import os
import re
import subprocess
import time
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope.errors import RunFault, UsageError
from upslope.language.calls import TrainerState
from upslope.language.checks import BUILTIN, builtin, text_of
from upslope.language.rewards import Part, Rewards
from upslope.language.tasks import task

QUICK = {"timeout": 0.05, "batch_timeout": 0.5}


def constant(value):
    return lambda *, completions, **_: [value] * len(completions)


def lengths(*, completions, **_):
    return [float(len(text)) for text in completions]


def run(rewards, completions, **columns):
    return rewards(prompts=["p"] * len(completions), completions=completions, **columns)


def message_of(error, rewards, completions, **columns):
    with pytest.raises(error) as caught:
        run(rewards, completions, **columns)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


# the convention


def test_the_score_is_the_weighted_sum():
    found = run(Rewards.of(lengths, constant(2), weights=[0.5, -1]), ["a", "bbb"])
    assert found.scores == [-1.5, -0.5]
    assert found.parts == {"lengths": [1.0, 3.0], "<lambda>": [2.0, 2.0]}
    assert (found.num_none, found.num_raised, found.num_timed_out, found.num_retried) == (0, 0, 0, 0)
    assert found.first_error == ""


def test_an_async_reward_is_awaited_even_where_a_loop_is_running():
    async def slow(*, completions, **_):
        await asyncio.sleep(0.001)
        return [len(text) for text in completions]

    class Judge:
        async def __call__(self, completions):
            return [1.0 for _ in completions]

    async def inside():
        return run(Rewards.of(slow, Judge()), ["a", "bb"])

    assert run(Rewards.of(slow, Judge()), ["a", "bb"]).scores == asyncio.run(inside()).scores == [2.0, 3.0]


def test_a_reward_is_told_what_it_has_parameters_for():
    def few(completions, level):
        return [float(value) for value in level]

    def everything(*, prompts, completions, **columns):
        assert prompts == ["p", "p"] and set(columns) == {"answer", "level"}
        return [0.0, 0.0]

    found = run(Rewards.of(few, everything, partial(few, level=[5, 5])), ["a", "b"], answer=["x", "y"], level=[1, 2])
    assert found.scores[0] == found.parts["few"][0] + found.parts["partial"][0]


@pytest.mark.parametrize(
    "values",
    [
        [True, False],
        (1, 0),
        np.array([1.0, 0.0], dtype=np.float32),
        torch.tensor([1.0, 0.0]),
        [np.float32(1), np.int64(0)],
        [torch.tensor(1.0), Fraction(0)],
        np.array([True, False]),
    ],
)
def test_numbers_of_every_kind_are_taken_and_true_is_one(values):
    scores = run(Rewards.of(lambda completions: values), ["a", "b"]).scores
    assert scores == [1.0, 0.0] and all(type(score) is float for score in scores)


def test_an_empty_batch_has_no_scores():
    assert run(Rewards.of(lengths), []).scores == []


def test_equal_names_are_numbered_and_rewards_pass_through():
    rewards = Rewards.of(constant(1), constant(2), constant(3), lengths)
    assert [part.name for part in rewards.parts] == ["<lambda>", "<lambda>#2", "<lambda>#3", "lengths"]
    assert Rewards.of(rewards) is rewards


def test_messages_reach_a_reward_as_messages():
    seen = []

    def reward(*, prompts, completions):
        seen.extend(completions)
        return [0.0] * len(prompts)

    prompts = ["text", [{"role": "user", "content": "chat"}]]
    Rewards.of(reward)(
        prompts=prompts, completions=["yes" if isinstance(prompt, str) else [{"role": "assistant", "content": "yes"}] for prompt in prompts]
    )
    assert seen == ["yes", [{"role": "assistant", "content": "yes"}]] and [text_of(item) for item in seen] == ["yes", "yes"]


# items without a score


def unsure(*, completions, **_):
    return [None if text == "?" else 1.0 for text in completions]


def test_a_reward_that_says_none_abstains_and_the_others_are_added():
    found = run(Rewards.of(unsure, lengths, weights=[1, 2]), ["?", "ab"])
    assert found.scores == [2.0, 5.0] and found.parts == {"unsure": [None, 1.0], "lengths": [1.0, 2.0]}
    assert (found.num_none, found.num_raised) == (1, 0)
    assert found.first_error == "reward unsure said None (item 1)"


def test_an_item_about_which_no_reward_speaks_has_no_score():
    found = run(Rewards.of(unsure, lambda completions: [None, 4.0], lengths, weights=[1, 1, 0]), ["?", "ab"])
    assert found.scores == [None, 5.0] and found.num_none == 2


def test_an_item_that_a_reward_failed_on_has_no_score_whatever_the_others_say():
    def fragile(*, completions):
        if "bad" in completions:
            raise ValueError
        return [1.0] * len(completions)

    assert run(Rewards.of(fragile, lengths), ["a", "bad"]).scores == [2.0, None]
    assert run(Rewards.of(fragile, lengths, weights=[0, 1]), ["a", "bad"]).scores == [1.0, 3.0]


def test_a_reward_of_weight_zero_is_logged_and_masks_nothing():
    found = run(Rewards.of(constant(None), lengths, weights=[0, 1]), ["a", "bb"])
    assert found.scores == [1.0, 2.0] and found.num_none == 2 and found.parts["<lambda>"] == [None, None]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, UsageError, KeyError])
def test_one_item_that_raises_does_not_lose_the_others(kind):
    calls = []

    def fragile(*, completions, **_):
        calls.append(list(completions))
        if "bad" in completions:
            raise kind("two\nlines")
        return [1.0] * len(completions)

    found = run(Rewards.of(fragile), ["a", "bad", "c"])
    assert found.scores == [1.0, None, 1.0] and calls == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert (found.num_raised, found.num_retried, found.num_timed_out) == (1, 1, 0)
    assert found.first_error.startswith(f"reward fragile raised {kind.__name__}: ") and "\n" not in found.first_error
    assert found.first_error.endswith("(item 2)")


class PanicException(BaseException):
    """As PyO3 makes one of a panic of Rust, in a tokenizer for one."""


@pytest.mark.parametrize("kind", [PanicException, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("in_subprocess", [False, True])
def test_what_is_no_exception_counts_as_raised_too(kind, in_subprocess):
    def fragile(*, completions):
        if "bad" in completions:
            raise kind("retry limit")
        return [1.0] * len(completions)

    found = run(Rewards.of(fragile, in_subprocess=in_subprocess), ["a", "bad"])
    assert found.scores == [1.0, None] and (found.num_raised, found.num_timed_out) == (1, 0)
    assert found.first_error == f"reward fragile raised {kind.__name__}: retry limit (item 2)"


def test_a_quick_reward_leaves_ctrl_c_alone_and_reports_a_panic():
    def quick(*, completions):
        raise PanicException if "bad" in completions else KeyboardInterrupt

    quick.no_timeout = True
    assert "raised PanicException" in message_of(RunFault, Rewards.of(quick), ["bad", "bad"])
    with pytest.raises(KeyboardInterrupt):
        run(Rewards.of(quick), ["a", "b"])


def test_every_argument_is_cut_to_the_item():
    def fragile(*, prompts, completions, answer):
        if len(prompts) > 1:
            raise ValueError
        return [float(completions[0] == answer[0])]

    assert run(Rewards.of(fragile), ["a", "b"], answer=["a", "c"]).scores == [1.0, 0.0]


def test_a_hanging_item_is_timed_out_and_the_others_keep_their_scores():
    def hangs(*, completions, **_):
        if "hang" in completions:
            time.sleep(0.6)
        return [1.0] * len(completions)

    started = time.monotonic()
    found = run(Rewards.of(hangs, timeout=0.05), ["a", "hang", "c"])
    assert found.scores == [1.0, None, 1.0] and found.num_timed_out == 1 and found.num_raised == 0
    assert found.first_error == "reward hangs took too long (item 2)"
    assert time.monotonic() - started < 0.5


def test_a_hanging_async_item_is_canceled():
    canceled = []

    async def hangs(*, completions, **_):
        try:
            await asyncio.sleep(5 if "hang" in completions else 0)
        except asyncio.CancelledError:
            canceled.append(list(completions))
            raise
        return [1.0] * len(completions)

    found = run(Rewards.of(hangs, **QUICK), ["hang", "b"])
    time.sleep(0.05)
    assert found.scores == [None, 1.0] and found.num_timed_out == 1
    assert canceled == [["hang", "b"], ["hang"]]


def test_a_reward_that_always_hangs_ends_in_one_line_and_in_time():
    started = time.monotonic()
    message = message_of(RunFault, Rewards.of(lambda completions: time.sleep(1), timeout=0.05, batch_timeout=0.15), ["a"] * 30)
    assert message == "none of 30 completions got a score: reward <lambda> took too long (item 1)"
    assert time.monotonic() - started < 0.8


def test_a_slow_batch_within_its_limits_is_not_timed_out():
    def slow(*, completions):
        time.sleep(0.12)
        return [1.0] * len(completions)

    assert run(Rewards.of(slow, timeout=0.05), ["a"] * 8).num_retried == 0
    assert run(Rewards.of(slow, timeout=None, batch_timeout=None), ["a"]).scores == [1.0]


def test_a_timeout_error_of_the_reward_s_own_counts_as_raised():
    async def judge(*, completions):
        raise TimeoutError("the judge does not answer")

    message = message_of(RunFault, Rewards.of(judge), ["a", "b"])
    assert "reward judge raised TimeoutError: the judge does not answer (item 1)" in message


@pytest.mark.parametrize(
    "reward, words",
    [
        (lambda completions: 1 / 0, "reward <lambda> raised ZeroDivisionError: division by zero (item 1)"),
        (lambda completions: [completions[5]], "raised IndexError"),
    ],
)
def test_no_score_at_all_is_a_fault_that_names_the_reward_and_the_first_error(reward, words):
    assert words in message_of(RunFault, Rewards.of(reward, lengths), ["a", "b"])


def test_rewards_that_all_abstain_leave_no_score():
    message = message_of(RunFault, Rewards.of(constant(None), constant(None)), ["a", "b"])
    assert message == "none of 2 completions got a score: reward <lambda> said None (item 1)"


# what a reward is told besides


def test_a_reward_is_told_ids_ends_and_the_state_of_training_where_it_asks():
    def asks(*, completions, completion_ids, finish_reason, trainer_state):
        assert completion_ids == [[1, 2], [3]] and finish_reason == ["stop", "length"]
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    def plain(*, prompts, completions):
        return [0.0] * len(completions)

    told = {"completion_ids": [[1, 2], [3]], "finish_reason": ["stop", "length"]}
    state = TrainerState(iteration=3, iterations=4)
    rewards = Rewards.of(asks, plain)
    rewards.check(())
    assert rewards(prompts=["p", "q"], completions=["a", "b"], trainer_state=state, **told).scores == [0.75, 0.75]
    assert "needs the column 'completion_ids'" in message_of(UsageError, rewards, ["a", "b"])
    assert run(Rewards.of(lambda completions, trainer_state: [trainer_state.fraction]), ["a"]).scores == [0.0]


def test_item_by_item_a_reward_is_told_the_item_s_own():
    def asks(*, completions, finish_reason, trainer_state):
        if len(completions) > 1:
            raise ValueError
        return [float(finish_reason == ["stop"]) + trainer_state.iteration]

    found = Rewards.of(asks)(
        prompts=["p"] * 2, completions=["a", "b"], finish_reason=["length", "stop"], trainer_state=TrainerState(iteration=5)
    )
    assert found.scores == [5.0, 6.0]


# in a process of their own


def backtracks(*, completions):
    return [float(re.search("(a+)+$", text) is not None) for text in completions]


@pytest.mark.parametrize("reward", [backtracks, builtin("regular-expression:(a+)+$")])
def test_a_regular_expression_that_backtracks_without_end_is_killed(reward):
    started = time.monotonic()
    found = run(Rewards.of(reward, timeout=0.3, batch_timeout=1.5, in_subprocess=True), ["aa", "a" * 60 + "b", "c"])
    assert found.scores == [1.0, None, 0.0] and (found.num_timed_out, found.num_retried, found.num_raised) == (1, 1, 0)
    assert time.monotonic() - started < 30 and not multiprocessing.active_children()


def test_what_a_process_of_its_own_answers_is_what_a_thread_answers():
    def odd(*, completions, level):
        return [None if text == "?" else np.float32(0.1) * n for text, n in zip(completions, level, strict=True)]

    async def later(*, completions):
        await asyncio.sleep(0)
        if "bad" in completions:
            raise ValueError("two\nlines")
        return [1 / 3] * len(completions)

    def nonsense(*, completions):
        return ["1.0"] * len(completions)

    data = {"completions": ["?", "bad", "c"], "level": [1, 2, 3]}
    here, there = (run(Rewards.of(odd, later, in_subprocess=apart), **data) for apart in (False, True))
    assert here == there and here.scores == [1 / 3, None, float(np.float32(0.1) * 3) + 1 / 3]
    words = "reward nonsense gave '1.0' of type str for item 1"
    assert words in message_of(RunFault, Rewards.of(nonsense, in_subprocess=True), ["a", "b"])


def test_a_process_that_dies_costs_its_item_only():
    def dies(*, completions):
        if "bad" in completions:
            os._exit(3)
        return [1.0] * len(completions)

    found = run(Rewards.of(dies, in_subprocess=True), ["a", "bad", "c"])
    assert found.scores == [1.0, None, 1.0] and found.num_raised == 1 and "its process ended" in found.first_error


def test_what_a_reward_started_is_killed_with_it(tmp_path):
    def starts(*, completions):
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(child.pid))
        time.sleep(60)

    message_of(RunFault, Rewards.of(starts, timeout=0.5, in_subprocess=True), ["a"])
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline


# what breaks the convention


@pytest.mark.parametrize(
    "result, words",
    [
        (None, "returned None: expected a list with a number or None for each of 2"),
        ("11", "returned '11' of type str"),
        (1.0, "returned 1.0 of type float"),
        ({"a": 1.0, "b": 0.0}, "of type dict"),
        (iter([1.0, 2.0]), "of type list_iterator"),
        (torch.tensor(1.0), "of type Tensor"),
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 values for 2 completions"),
        ([], "returned 0 values for 2 completions"),
        ([1.0, float("nan")], "gave nan for item 2: expected a finite number"),
        ([float("inf"), 1.0], "gave inf for item 1"),
        ([1.0, -(10**400)], "gave inf for item 2"),
        (torch.tensor([0.0, float("nan")]), "gave nan for item 2"),
        (["1.0", 1.0], "gave '1.0' of type str for item 1"),
        ([1.0, [2.0]], "gave [2.0] of type list for item 2"),
        (torch.zeros(2, 3), "of type list for item 1"),
        ([1.0, 1j], "gave 1j of type complex for item 2"),
        ([1.0, Decimal(1)], "of type Decimal for item 2"),
    ],
)
def test_a_result_that_is_not_one_number_per_item_is_a_fault(result, words):
    def mine(*, completions):
        return result

    message = message_of(RunFault, Rewards.of(mine), ["a", "b"])
    assert message.startswith("reward mine ") and words in message


def test_a_bad_result_in_the_item_by_item_pass_names_the_item():
    def mine(*, completions):
        if len(completions) > 1:
            raise ValueError
        return [1.0 if completions == ["a"] else float("nan")]

    assert "gave nan for item 2" in message_of(RunFault, Rewards.of(mine), ["a", "b"])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Rewards.of(), "expected one reward or more"),
        (lambda: Rewards.of("contains:a"), "expected a function, found 'contains:a' of type str"),
        (lambda: Rewards.of(lengths, weights=[1, 2]), "expected one for each of 1 rewards, found 2"),
        (lambda: Rewards.of(lengths, weights=[float("nan")]), "its weight is a finite number, found nan"),
        (lambda: Rewards.of(lengths, weights=["1"]), "its weight is a finite number, found '1'"),
        (lambda: Rewards.of(lengths, weights=[0]), "every weight is 0"),
        (lambda: Rewards.of(lengths, timeout=0), "timeout: expected seconds above 0"),
        (lambda: Rewards.of(lengths, batch_timeout=-1), "batch_timeout: expected seconds above 0"),
        (lambda: Rewards.of(lengths, timeout=float("inf")), "timeout: expected seconds above 0, or None"),
        (lambda: Rewards(parts=(Part(name="a", function=lengths), Part(name="a", function=lengths))), "two have the same name"),
    ],
)
def test_rewards_that_cannot_be_made(make, words):
    with pytest.raises(UsageError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_column_is_named_before_anything_is_called():
    def judge(*, prompts, completions, solution, hint=None):
        raise AssertionError("called")

    message = "reward judge needs the column 'solution', which the data does not have (columns: answer)"
    assert message_of(UsageError, Rewards.of(judge), ["a"], answer=["x"]) == message
    with pytest.raises(UsageError, match=r"exact-match needs the column 'answer'.*\(columns: none\)"):
        Rewards.of(builtin("exact-match")).check(())
    Rewards.of(judge, len).check(("solution", "obj"))


def test_columns_of_another_length_are_named():
    assert "answer: expected one entry for each of 2 completions, found 1" in message_of(
        UsageError, Rewards.of(lengths), ["a", "b"], answer=["x"]
    )


def test_every_built_in_reward_works_in_rewards_and_says_its_name():
    arguments = {"required": ":3", "optional": "", "none": ""}
    rewards = Rewards.of(*(builtin(name + arguments[wants]) for name, (_, wants) in BUILTIN.items()))
    found = run(rewards, ["3", "x"], answer=["3", "4"])
    assert None not in found.scores and {part.name.partition(":")[0] for part in rewards.parts} == set(BUILTIN)


def test_a_task_s_own_reward_works_in_rewards():
    made = task("addition")
    problems = made.held_out[:3]
    answers = [p.columns["answer"] for p in problems]
    rewards = Rewards.of(made.reward, builtin("max-length:2"), weights=[1, 0.5])
    rewards.check(made.columns)
    expected = [1.0 + 0.5 * (len(answer) <= 2) for answer in answers]
    assert rewards(prompts=[p.prompt for p in problems], completions=answers, answer=answers).scores == expected
