"""JSONL files: problems, held-out parts, preference pairs, labels; every error names the file and the line."""

import json

import pytest

from tests.language.data import prompts, scores, write
from upslope.errors import UsageError
from upslope.language.jsonl import read_labeled, read_pairs
from upslope.language.recorded import completion_text, unpack_examples
from upslope.language.synthetic import pairs_from
from upslope.language.tasks import task


def test_a_file_becomes_a_task_with_a_held_out_tenth_and_a_check_of_answer(tmp_path):
    file = write(tmp_path / "sums.jsonl", *({"prompt": f"{n}+1=", "answer": n + 1, "level": n % 3} for n in range(50)))
    made = task(str(file), seed=4)
    assert len(made.train) == 45 and len(made.held_out) == 5 and made.columns == ("answer", "level")
    assert not set(prompts(made.train)) & set(prompts(made.held_out))
    assert made.train == task(str(file), seed=4).train != task(str(file), seed=5).train
    assert scores(made.reward, made.train[:1], [f"So it is {made.solution(made.train[0])}."]) == [1.0]
    assert scores(made.format, made.train[:2], ["So it is 1.", "no"]) == [1.0, 0.0]


def test_equal_prompts_stay_on_one_side(tmp_path):
    file = write(tmp_path / "same.jsonl", *({"prompt": f"p{n % 5}", "answer": str(n)} for n in range(50)))
    for seed in range(5):
        made = task(str(file), seed=seed, held_out_fraction=0.4)
        assert len(made.held_out) == 20 and not set(prompts(made.train)) & set(prompts(made.held_out))


@pytest.mark.parametrize("count, fraction, held_out", [(1, 0.1, 0), (2, 0.1, 1), (3, 0.99, 2), (10, 0, 0), (10, 0.3, 3)])
def test_how_many_are_held_out(tmp_path, count, fraction, held_out):
    file = write(tmp_path / "few.jsonl", *({"prompt": f"p{n}", "answer": "x"} for n in range(count)))
    assert len(task(str(file), held_out_fraction=fraction).held_out) == held_out


def test_held_out_problems_of_a_file_of_their_own(tmp_path):
    file = write(tmp_path / "a.jsonl", {"prompt": "p", "answer": "x"}, {"prompt": "q", "answer": "x"})
    write(tmp_path / "a.test.jsonl", {"prompt": "r", "answer": "y"})
    write(tmp_path / "b.jsonl", {"prompt": "s", "answer": "z", "level": 2})
    assert (prompts(task(str(file)).train), prompts(task(str(file)).held_out)) == (['"p"', '"q"'], ['"r"'])
    assert prompts(task(str(file), held_out=tmp_path / "b.jsonl").held_out) == ['"s"']


def test_messages_unicode_byte_order_mark_and_blank_lines(tmp_path):
    file = tmp_path / "chat.jsonl"
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Größe?"}]
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"prompt": messages, "answer": "ä"}, ensure_ascii=False).encode() + b"\r\n\n  \n")
    made = task(str(file))
    assert made.train[0].prompt == messages and made.held_out == []
    assert scores(made.correct, made.train, [[{"role": "assistant", "content": " <answer>ä</answer>"}]]) == [1.0]


def test_a_reward_of_ones_own_needs_no_answer_and_replaces_the_task_s(tmp_path):
    def reward(*, completions, level):
        return [0.5] * len(level)

    file = write(tmp_path / "free.jsonl", {"prompt": "p", "level": 1})
    made = task(str(file), reward=reward)
    assert (made.reward, made.correct, made.format, made.solution) == (reward, None, None, None)
    assert task("addition", reward=reward).reward is reward
    completion = write(tmp_path / "sft.jsonl", {"prompt": "p", "completion": "whole", "answer": "x"})
    assert task(str(completion)).solution(task(str(completion)).train[0]) == "whole"
    only = task(str(write(tmp_path / "only.jsonl", {"prompt": "p", "completion": "whole"})))
    assert (only.reward, only.correct, only.solution(only.train[0])) == (None, None, "whole")


PROMPT = '{"prompt": "p", "answer": "x"}'
BAD_LINES = [
    (["{"], "line 1: malformed JSON"),
    ([PROMPT, "", '{"prompt": "q",}'], "line 3: malformed JSON"),
    ([PROMPT, "[1]"], "line 2: expected an object"),
    (["null"], "line 1: expected an object"),
    (["[" * 100_000], "line 1: malformed JSON"),
    (['{"prompt": "p", "answer": ' + "9" * 5000 + "}"], "line 1: malformed JSON"),
    (['{"question": "p", "answer": "x"}'], "line 1: prompt is missing, found 'question', 'answer'"),
    (["{}"], "line 1: prompt is missing, found an empty object"),
    (['{"prompt": 3}'], "line 1: prompt is a string or a list of messages, found 3"),
    (['{"prompt": ""}'], "line 1: prompt is empty"),
    (['{"prompt": []}'], "line 1: prompt is an empty list"),
    (['{"prompt": ["hello"]}'], "line 1: message 1 of prompt is not an object"),
    (['{"prompt": [{"content": "c"}]}'], "line 1: message 1 of prompt needs a role"),
    (['{"prompt": [{"role": "user", "content": "c"}, {"role": "user"}]}'], "line 1: message 2 of prompt needs a content"),
    (['{"prompt": [{"role": "user", "content": 5}]}'], "needs a content that is a string, found 5"),
    ([PROMPT, '{"prompt": "q"}'], "line 2: column 'answer' is missing"),
    ([PROMPT, '{"prompt": "q", "answer": "x", "level": 1}'], "line 2: column 'level' is missing in"),
    ([PROMPT, '{"prompt": "q", "answer": null}'], "line 2: answer is a string or a number, found null"),
    (['{"prompt": "q", "answer": true}'], "line 1: answer is a string or a number, found true"),
    (['{"prompt": "q", "answer": " "}'], "line 1: answer is a string or a number"),
    ([PROMPT, '{"prompt": "q", "answer": NaN}'], "line 2: answer is a string or a number, found NaN"),
    (['{"prompt": "q", "answer": -Infinity}'], "line 1: answer is a string or a number, found -Infinity"),
    (['{"prompt": "q", "answer": 1e999}'], "line 1: answer is a string or a number, found Infinity"),
    (['{"prompt": "q", "answer": "x", "answer": "y"}'], "line 1: malformed JSON: 'answer' stands in one object twice"),
    (['{"prompt": [{"role": "user", "content": "a", "content": "b"}]}'], "line 1: malformed JSON: 'content' stands in one object twice"),
    (['{"prompt": "q"}'], "there is no column answer"),
    (['{"prompt": "q", "answer": "x", "completions": 1}'], "line 1: a column may not be called completions"),
    (['{"prompt": "q", "answer": "x", "self": 1}'], "line 1: a column may not be called self"),
    ([""], "is empty"),
    ([], "is empty"),
]


@pytest.mark.parametrize("lines, words", BAD_LINES)
def test_a_bad_file_names_file_and_line(tmp_path, lines, words):
    file = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(UsageError) as caught:
        task(str(file))
    message = str(caught.value)
    assert words in message and str(file) in message and "\n" not in message and len(message) < 400


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        task(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        task(str(tmp_path / "folder.jsonl"))
    with pytest.raises(UsageError, match="cannot be read"):
        task("a\0.jsonl")
    with pytest.raises(UsageError, match=r"ends in \.jsonl"):
        task(str(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(f"{PROMPT}\n".encode() + '{"prompt": "Größe"}\n'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.jsonl, line 2: not UTF-8 \(byte 15\)"):
        task(str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"held_out_fraction": 1.0}, "held_out_fraction is at least 0 and below 1"),
        ({"held_out_fraction": "0.1"}, "held_out_fraction"),
        ({"held_out": "none.jsonl"}, "no such file: none.jsonl"),
        ({"fraction": 0.1}, "unknown option of task"),
    ],
)
def test_bad_options_of_a_file(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        task(str(write(tmp_path / "a.jsonl", PROMPT)), **options)


@pytest.mark.parametrize(
    "line, words",
    [(PROMPT, "line 1: this prompt is also in"), ('{"prompt": "q"}', "column 'answer' is missing"), ("{", "line 1: malformed")],
)
def test_a_bad_held_out_file(tmp_path, line, words):
    file = write(tmp_path / "a.jsonl", PROMPT)
    write(tmp_path / "a.test.jsonl", line)
    with pytest.raises(UsageError) as caught:
        task(str(file))
    assert words in str(caught.value) and "a.test.jsonl" in str(caught.value)


# preference data


def test_pairs_and_labels_are_read_with_strings_or_messages(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    file = write(
        tmp_path / "pairs.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b", "source": 1},
        {"prompt": messages, "chosen": [{"role": "assistant", "content": "c"}], "rejected": "d"},
    )
    first, second = read_pairs(file)
    assert (first.prompt, first.chosen, first.rejected) == ("p", "a", "b")
    assert (second.prompt, second.chosen, second.rejected) == (messages, "c", "d")
    labels = write(
        tmp_path / "kto.jsonl", {"prompt": "p", "completion": "a", "label": True}, {"prompt": "p", "completion": "b", "label": False}
    )
    assert [(item.completion, item.label) for item in read_labeled(labels)] == [("a", True), ("b", False)]


CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize("key, value", [("tool_calls", [CALL]), ("reasoning_content", "hm"), ("weight", 0)])
def test_what_a_recorded_message_holds_besides_its_content_is_refused_wherever_it_is_trained_on(tmp_path, key, value):
    talk, none = [{"role": "user", "content": "q"}], {"tool_calls": None, "name": "", "parts": []}
    said = [{"role": "assistant", "content": "a", **none, key: value}]
    fine = {"prompt": talk, "chosen": "a", "rejected": "b", "completion": [{"role": "assistant", "content": "a", **none}], "label": True}
    file = write(tmp_path / "data.jsonl", fine, {**fine, "rejected": said, "completion": said})
    words = rf"^{file}, line 2: \w+ holds {key} besides its content, which is all that is trained on: write that into content"
    for read in (read_pairs, read_labeled):
        with pytest.raises(UsageError, match=words):
            read(file)
    made = task(str(write(tmp_path / "sft.jsonl", *({"prompt": talk, "completion": fine["completion"]},) * 2)), held_out_fraction=0)
    assert [made.solution(problem) for problem in made.train] == ["a", "a"]
    made = task(str(write(file, *({"prompt": talk, "completion": each} for each in (fine["completion"], said)))), held_out_fraction=0)
    with pytest.raises(UsageError, match=words):
        _ = [made.solution(problem) for problem in made.train]
    with pytest.raises(UsageError, match=rf"^here: completion holds {key} besides"):
        completion_text(said, "here")


@pytest.mark.parametrize("value", [None, {"text": "a"}, ["a"], True])
def test_a_completion_that_is_no_text_is_never_imitated_as_python_writes_it(tmp_path, value):
    made = task(str(write(tmp_path / "sft.jsonl", {"prompt": "p", "completion": value})))
    with pytest.raises(UsageError, match=r"sft\.jsonl, line 1: .*completion"):
        made.solution(made.train[0])


@pytest.mark.parametrize("name, value", [("system", "say no"), ("tools", [{"name": "f"}]), ("chat_template_kwargs", {"think": True})])
def test_what_other_libraries_read_beside_a_prompt_is_never_left_out_in_silence(tmp_path, name, value):
    fine = {"prompt": "p", "chosen": "a", "rejected": "b", "completion": "a", "label": True, "system": "", "tools": [], "source": 1}
    file = write(tmp_path / "data.jsonl", fine, {**fine, name: value})
    for read in (read_pairs, read_labeled):
        with pytest.raises(UsageError, match=rf"^{file}, line 2: {name} is not read, so the model would not see it: "):
            read(file)
    with pytest.raises(UsageError, match=rf"^data\[1\]: {name} is not read"):
        list(unpack_examples([fine, {**fine, name: value}], "prompt", "chosen", "rejected"))
    problems = write(tmp_path / "p.jsonl", {"prompt": "p", "answer": "a", name: value})
    with pytest.warns(UserWarning, match=rf"^{problems}: column {name} is for rewards only, the model does not see it; ") as caught:
        assert task(str(problems)).columns == ("answer", name)
    assert len(caught) == 1


USER, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_conversations_without_a_prompt_are_split_before_their_last_message(tmp_path):
    other = {"role": "assistant", "content": "b"}
    file = write(tmp_path / "implicit.jsonl", {"chosen": [USER, SAID, USER, SAID], "rejected": [USER, SAID, USER, other]})
    (pair,) = read_pairs(file)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER, SAID, USER], "a", "b")


@pytest.mark.parametrize(
    "read, line, words",
    [
        (read_pairs, {"chosen": "a", "rejected": "b"}, "prompt is missing, found 'chosen', 'rejected': put what was asked into prompt"),
        (read_pairs, {"chosen": "pa", "rejected": "pb"}, 'both begin with "p"; put what was asked into prompt, and only the answers into'),
        (read_pairs, {"chosen": [USER, SAID], "rejected": [SAID, SAID]}, "differ before their last message: put the messages that they"),
        (read_pairs, {"chosen": [SAID], "rejected": [USER]}, "differ before their last message"),
        (read_pairs, {"chosen": [USER, SAID], "rejected": "b"}, "prompt is missing"),
        (read_pairs, {"prompt": "p", "rejected": "b"}, "chosen is missing, found 'prompt', 'rejected'"),
        (read_pairs, {"prompt": "p", "chosen": "a"}, "rejected is missing"),
        (read_pairs, {"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
        (read_pairs, {"prompt": "p", "chosen": "", "rejected": "a"}, "chosen is empty"),
        (read_pairs, {"prompt": "p", "chosen": "a", "rejected": " \n"}, "rejected is empty"),
        (read_pairs, {"prompt": "p", "chosen": 1, "rejected": "a"}, "chosen is a string or one assistant message, found 1"),
        (read_pairs, {"prompt": "p", "chosen": [{"role": "user", "content": "a"}], "rejected": "a"}, "is one assistant message"),
        (read_pairs, "nothing", "malformed JSON"),
        (read_labeled, {"prompt": "p", "label": True}, "completion is missing"),
        (read_labeled, {"prompt": "p", "completion": "", "label": True}, "completion is empty"),
        (read_labeled, {"prompt": "p", "completion": "a"}, "label is missing"),
        (read_labeled, {"prompt": "p", "completion": "a", "label": 1}, "label is true or false, found 1"),
        (read_labeled, {"prompt": "p", "completion": "a", "label": "true"}, 'label is true or false, found "true"'),
    ],
)
def test_bad_preference_data_names_the_line(tmp_path, read, line, words):
    fine = {"prompt": "p", "chosen": "a", "rejected": "b", "completion": "a", "label": True}
    file = write(tmp_path / "data.jsonl", fine, line)
    with pytest.raises(UsageError) as caught:
        read(file)
    assert f"{file}, line 2: " in str(caught.value) and words in str(caught.value)


def test_rows_know_their_file_and_line(tmp_path):
    problems = write(tmp_path / "p.jsonl", *({"prompt": f"p{n}", "answer": "x"} for n in range(4)), "", {"prompt": "q", "answer": "y"})
    made = task(str(problems), held_out_fraction=0.2)
    found = {problem.prompt: problem.place for problem in [*made.train, *made.held_out]}
    assert found == {**{f"p{n}": f"{problems}, line {n + 1}" for n in range(4)}, "q": f"{problems}, line 6"}
    pairs = write(tmp_path / "d.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"})
    labels = write(tmp_path / "k.jsonl", {"prompt": "p", "completion": "a", "label": True})
    assert read_pairs(pairs)[0].place == f"{pairs}, line 1" and read_labeled(labels)[0].place == f"{labels}, line 1"


def test_pairs_need_answers_that_differ(tmp_path):
    same = task(str(write(tmp_path / "a.jsonl", PROMPT, '{"prompt": "q", "answer": "x"}')), held_out_fraction=0)
    with pytest.raises(UsageError, match="all 2 training problems have the same"):
        pairs_from(same)
    free = task(str(write(tmp_path / "b.jsonl", '{"prompt": "q"}')), reward=len)
    with pytest.raises(UsageError, match="this task has none"):
        pairs_from(free)
    with pytest.raises(UsageError, match="count: expected 1 or more"):
        pairs_from(task("copy"), count=0)
