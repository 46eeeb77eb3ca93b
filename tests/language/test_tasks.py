"""Tasks: generated ones, JSONL files, reasoning-gym; splits that never overlap; one clear line for bad input."""

import json
import subprocess
import sys

import pytest

from upslope.errors import UsageError
from upslope.language.problems import prompt_key
from upslope.language.tasks import columns_of, pairs_from, read_labeled, read_pairs, task

GENERATED = ["addition", "copy", "sums"]


def prompts(problems):
    return [prompt_key(problem.prompt) for problem in problems]


def scores(check, problems, completions):
    return check(prompts=[p.prompt for p in problems], completions=completions, **columns_of(problems))


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


# generated tasks


@pytest.mark.parametrize("name", GENERATED)
def test_held_out_problems_are_never_trained_on(name):
    made = task(name, seed=3)
    train, test = prompts(made.train), prompts(made.held_out)
    assert len(test) == 512
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert not set(train) & set(test)


@pytest.mark.parametrize("name", GENERATED)
def test_a_seed_gives_the_same_task_and_another_seed_another_split(name):
    first, again, other = task(name, seed=1), task(name, seed=1), task(name, seed=2)
    assert first.train == again.train and first.held_out == again.held_out
    assert set(prompts(first.held_out)) != set(prompts(other.held_out))


def test_a_task_is_the_same_in_another_process():
    code = "from upslope.language.tasks import task; t = task('copy', seed=5); print(t.train[0].prompt, t.held_out[0].prompt)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    made = task("copy", seed=5)
    assert found == [made.train[0].prompt, made.held_out[0].prompt]


def test_tasks_and_rewards_load_neither_torch_nor_transformers():
    code = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('upslope.language')\n"
        "package.__path__ = [importlib.util.find_spec('upslope').submodule_search_locations[0] + '/language']\n"
        "sys.modules['upslope.language'] = package\n"
        "import upslope.language.tasks, upslope.language.rewards\n"
        "print([name for name in ('torch', 'transformers', 'reasoning_gym') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", GENERATED)
def test_the_solution_is_right_well_formed_and_rewarded_and_another_is_not(name):
    made = task(name)
    problems = made.held_out[:20]
    right = [made.solution(problem) for problem in problems]
    for check in (made.reward, made.correct, made.format):
        assert scores(check, problems, right) == [1.0] * 20
        assert scores(check, problems, ["?!"] * 20) == [0.0] * 20
    wrong = [*right[1:], right[0]]
    expected = [float(a == b) for a, b in zip(right, wrong, strict=True)]
    assert scores(made.correct, problems, wrong) == expected
    assert name == "sums" or all(len(text) < made.max_tokens for text in right)  # one token a character, and one for the end


@pytest.mark.parametrize("name", ["addition", "copy"])
def test_the_alphabet_holds_every_character(name):
    made = task(name)
    used = {character for p in [*made.train, *made.held_out] for character in p.prompt + made.solution(p)}
    assert used <= set(made.alphabet) and len(set(made.alphabet)) == len(made.alphabet)


def test_addition_has_every_two_digit_sum_once_and_says_it_truly():
    made = task("addition")
    everything = [*made.train, *made.held_out]
    assert {p.prompt for p in everything} == {f"{a}+{b}=" for a in range(10, 100) for b in range(10, 100)}
    for problem in everything:
        a, b = problem.prompt.rstrip("=").split("+")
        assert problem.columns == {"answer": str(int(a) + int(b))}


@pytest.mark.parametrize(
    "options, total, held_out",
    [({"digits": 1}, 100, 20), ({"low": 0, "high": 1}, 4, 1), ({"low": 3, "high": 52}, 2500, 512), ({"digits": 9}, 16384, 512)],
)
def test_small_tasks_hold_out_a_fifth_and_huge_ones_take_a_part(options, total, held_out):
    made = task("addition", **options)
    assert (len(made.train) + len(made.held_out), len(made.held_out)) == (total, held_out)
    assert len(task("addition", **options, held_out=1).held_out) == 1


def test_copy_uses_the_alphabet_and_length_it_is_given():
    made = task("copy", length=2, alphabet="abca")
    assert {p.columns["answer"] for p in [*made.train, *made.held_out]} == {a + b for a in "abc" for b in "abc"}
    assert made.alphabet == "abc>" and made.max_tokens == 3


@pytest.mark.parametrize("style", ["messages", "text"])
def test_sums_show_one_example_that_is_not_a_problem(style):
    made = task("sums", style=style, held_out=64)
    assert len(made.train) + len(made.held_out) == 2499 and len(made.held_out) == 64
    for problem in [*made.train[:50], *made.held_out]:
        if style == "text":
            example, question = problem.prompt.removesuffix(" =").split("\n")
            assert example == "17 + 25 = <answer>42</answer>"
        else:
            assert [message["role"] for message in problem.prompt] == ["user", "assistant", "user"]
            assert problem.prompt[0]["content"] == "<question>17 + 25</question>" and problem.prompt[1]["content"] == "<answer>42</answer>"
            question = problem.prompt[2]["content"].removeprefix("<question>").removesuffix("</question>")
        assert question != "17 + 25" and str(sum(map(int, question.split(" + ")))) == problem.columns["answer"]


@pytest.mark.parametrize(
    "text, reward, correct, form",
    [
        ("<answer>{}</answer>", 1.0, 1.0, 1.0),
        ("It is <answer> {}\n</answer>.", 1.0, 1.0, 1.0),
        ("<answer>{}</answer>\n3 + 4 = <answer>7</answer>", 1.0, 1.0, 1.0),
        ("<answer>0</answer><answer>{}</answer>", 0.25, 0.0, 1.0),
        ("<answer>999</answer>", 0.25, 0.0, 1.0),
        ("{}", 0.0, 0.0, 0.0),
        ("<answer>{}", 0.0, 0.0, 0.0),
        ("<answer>what {} is</answer>", 0.0, 0.0, 0.0),
        ("</answer>{}<answer>", 0.0, 0.0, 0.0),
    ],
)
def test_sums_reward_form_and_correctness(text, reward, correct, form):
    made = task("sums", format_weight=0.25)
    problems = made.train[:1]
    completions = [[{"role": "assistant", "content": text.format(problems[0].columns["answer"])}]]
    assert scores(made.reward, problems, completions) == [reward]
    assert scores(made.correct, problems, completions) == [correct]
    assert scores(made.format, problems, completions) == [form]


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("adition", {}, "did you mean 'addition'"),
        ("", {}, "unknown task ''"),
        ("addition:2", {}, "unknown task 'addition:2'"),
        ("nowhere.json", {}, "unknown task 'nowhere.json'"),
        ("addition", {"digit": 3}, "did you mean 'digits'"),
        ("addition", {"digits": 0}, "digits is a whole number from 1 to 9, found 0"),
        ("addition", {"digits": 10}, "digits is a whole number"),
        ("addition", {"digits": "2"}, "found '2'"),
        ("addition", {"low": -1}, "low is a whole number"),
        ("addition", {"low": 5, "high": 5}, "high is a whole number from 6"),
        ("addition", {"held_out": 0}, "held_out: expected 1 to 8099"),
        ("addition", {"held_out": 8100}, "held_out: expected 1 to 8099"),
        ("addition", {"seed": "a"}, "seed is a whole number"),
        ("copy", {"length": 0}, "length is a whole number"),
        ("copy", {"alphabet": "aa"}, "2 or more characters"),
        ("copy", {"alphabet": "a b"}, "without blanks and >"),
        ("copy", {"alphabet": "ab", "length": 1}, "2 problems are too few"),
        ("sums", {"style": "chat"}, "style is messages or text"),
        ("sums", {"format_weight": 1.0}, "format_weight is at least 0 and below 1"),
        ("reasoning-gym:leg_count", {}, "did you mean 'leg_counting'"),
        ("reasoning-gym", {}, "unknown reasoning-gym task ''"),
        ("reasoning-gym:leg_counting", {"size": 1}, "size is 2 or more"),
        ("reasoning-gym:leg_counting", {"legs": 4}, "its settings were refused"),
        ("reasoning-gym:leg_counting", {"min_animals": 9, "max_animals": 2}, "its settings were refused"),
        ("reasoning-gym:leg_counting", {"size": 4, "style": "tags"}, "style is messages or text"),
    ],
)
def test_a_task_that_cannot_be_made_says_why_in_one_line(name, options, words):
    with pytest.raises(UsageError) as caught:
        task(name, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# JSONL


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


@pytest.mark.parametrize(
    "read, line, words",
    [
        (read_pairs, {"chosen": "a", "rejected": "b"}, "prompt is missing"),
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


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pairs_put_the_right_completion_first(name):
    made = task(name)
    pairs = pairs_from(made, seed=1, count=100)
    right = {prompt_key(p.prompt): made.solution(p) for p in made.train}
    assert len(pairs) == 100 and all(pair.chosen == right[prompt_key(pair.prompt)] != pair.rejected for pair in pairs)
    assert pairs == pairs_from(made, seed=1, count=100) != pairs_from(made, seed=2, count=100)
    held_out = pairs_from(made, count=600, held_out=True)
    assert len(held_out) == 600 and {prompt_key(pair.prompt) for pair in held_out} == set(prompts(made.held_out))


def test_pairs_need_answers_that_differ(tmp_path):
    same = task(str(write(tmp_path / "a.jsonl", PROMPT, '{"prompt": "q", "answer": "x"}')), held_out_fraction=0)
    with pytest.raises(UsageError, match="all have the same"):
        pairs_from(same)
    free = task(str(write(tmp_path / "b.jsonl", '{"prompt": "q"}')), reward=len)
    with pytest.raises(UsageError, match="this task has none"):
        pairs_from(free)
    with pytest.raises(UsageError, match="count: expected 1 or more"):
        pairs_from(task("copy"), count=0)


# reasoning-gym


def test_a_reasoning_gym_task_is_scored_by_its_own_check():
    pytest.importorskip("reasoning_gym")
    made = task("reasoning-gym:leg_counting", seed=1, size=40, max_animals=4)
    assert len(made.train) == 32 and len(made.held_out) == 8 and not set(prompts(made.train)) & set(prompts(made.held_out))
    assert made.train == task("reasoning-gym:leg_counting", seed=1, size=40, max_animals=4).train
    problems = made.held_out[:2]
    said = [made.solution(problems[0]), f"maybe {problems[1].columns['answer']}"]
    assert scores(made.reward, problems, said)[0] == 1.0 and 0 < scores(made.reward, problems, said)[1] < 1
    assert scores(made.correct, problems, said) == scores(made.format, problems, said) == [1.0, 0.0]


def test_an_answer_that_reasoning_gym_cannot_read_is_wrong():
    pytest.importorskip("reasoning_gym")
    made = task("reasoning-gym:prime_factorization", size=4, style="text", instruction="")
    assert scores(made.reward, made.train[:1], ["nonsense"]) == [0.0]


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match=r"pip install 'upslope\[reasoning\]'"):
        task("reasoning-gym:leg_counting")
