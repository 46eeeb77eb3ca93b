"""Tasks by name: generated ones and reasoning-gym; splits that never overlap; one clear line for what cannot be made."""

import subprocess
import sys

import pytest

from tests.language.data import prompts, scores
from upslope.errors import UsageError
from upslope.language.problems import prompt_key
from upslope.language.synthetic import pairs_from
from upslope.language.tasks import task

GENERATED = ["addition", "copy", "sums"]


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
    if name.startswith("reasoning-gym"):
        pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError) as caught:
        task(name, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pairs_put_the_right_completion_first(name):
    made = task(name)
    pairs = pairs_from(made, seed=1, count=100)
    right = {prompt_key(p.prompt): made.solution(p) for p in made.train}
    assert len(pairs) == 100 and all(pair.chosen == right[prompt_key(pair.prompt)] != pair.rejected for pair in pairs)
    assert pairs == pairs_from(made, seed=1, count=100) != pairs_from(made, seed=2, count=100)
    held_out = pairs_from(made, count=600, held_out=True)
    assert len(held_out) == 600 and {prompt_key(pair.prompt) for pair in held_out} == set(prompts(made.held_out))


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
    with pytest.raises(UsageError, match=r"pip install .*\[reasoning\]'"):
        task("reasoning-gym:leg_counting")
