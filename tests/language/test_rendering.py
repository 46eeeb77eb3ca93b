"""Every sequence that is trained on or sampled from is what the model's own tokenizer and template give: kinds × prompts × methods."""

from __future__ import annotations

import io
import json
import pickle
import sys
import warnings

import pytest
import torch
import transformers as tf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.language.models import SIZES
from tests.language.tokenizers import CHATML, KINDS, NEEDS_SYSTEM, PLAIN, WORDS, Kind, byte_level, kind, metaspace, wrapped
from upslope import DPO, GRPO, KTO, SFT, Ascent, RewardModeling, train
from upslope.cli import chat
from upslope.cli.main import main
from upslope.errors import UsageError
from upslope.language import (
    Completions,
    EmbeddedEngine,
    Labeled,
    LanguagePolicy,
    Pair,
    PPOStepper,
    Problem,
    demonstrations,
    evaluate,
    labeled,
    preference_pairs,
)
from upslope.language.checks import exact_match
from upslope.language.evaluate import score_with
from upslope.language.problems import Task
from upslope.language.recorded import Recorded
from upslope.language.rendering import Rendering

ASKED = [{"role": "user", "content": "hi there"}]
LONGER = [*ASKED, {"role": "assistant", "content": "Hello world"}, {"role": "user", "content": "say it again"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "The answer"}]
PROMPTS = {"text": "12+34=", "chat": LONGER, "prefill": BEGUN}
SAID, OTHER = "46", "is 46 and 12"
AFTER = {"text": ("46", " is 46"), "chat": (SAID, OTHER), "prefill": (" is 46", ". hi there")}
FORMS = pytest.mark.parametrize("form", PROMPTS)
EVERY = pytest.mark.parametrize("name", KINDS)


def policy_of(tokenizer, **options):
    """A model of one layer over the tokenizer's vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {**SIZES, "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = tf.LlamaConfig(**{**sizes, "max_position_embeddings": 512, "eos_token_id": None, "pad_token_id": None})
        return LanguagePolicy(tf.LlamaForCausalLM(config), tokenizer, compute_dtype=torch.float32, **options)


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens if token is not None]


# what the tokenizer itself says, without a line of the library


def prompt_ids(found: Kind, prompt):
    """Of a prompt that is to be completed."""
    tokenizer = found.tokenizer
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        return ids[:-1] if found.ends_texts else ids
    asks = {"continue_final_message": True} if prompt[-1]["role"] == "assistant" else {"add_generation_prompt": True}
    return tokenizer.apply_chat_template(prompt, return_dict=True, **asks)["input_ids"]


def whole_ids(found: Kind, prompt, completion):
    """Of prompt and completion, the end included."""
    tokenizer = found.tokenizer
    if isinstance(prompt, str):
        ids = tokenizer(prompt + completion)["input_ids"]
        return ids if found.ends_texts else [*ids, *ids_of(tokenizer, found.text)]
    if found.opens and prompt[-1]["role"] != "assistant":
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return tokenizer(asked + completion + found.turn, add_special_tokens=False)["input_ids"]
    begun = prompt[-1]["content"] if prompt[-1]["role"] == "assistant" else None
    talk = [*prompt, {"role": "assistant", "content": completion}]
    talk = talk if begun is None else [*prompt[:-1], {"role": "assistant", "content": begun + completion}]
    ids = tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
    if found.turn is None:  # blanks at the end of the last turn are left off, and the end of texts ends it
        text = tokenizer.apply_chat_template(talk, tokenize=False).rstrip()
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], *ids_of(tokenizer, found.text)]
    (end,) = ids_of(tokenizer, found.turn)
    last = len(ids) - 1 - ids[::-1].index(end)
    assert tokenizer.decode(ids[last + 1 :]).replace(found.text or "", "").strip() == ""  # what follows is the next turn's
    return ids[: last + 1]


@EVERY
@FORMS
def test_prompts_and_rows_are_the_tokenizer_s_own(name, form):
    found, prompt = kind(name), PROMPTS[form]
    rendering = Rendering(found.tokenizer)
    assert rendering.prompts([prompt, "hi", prompt])[::2] == [prompt_ids(found, prompt)] * 2
    assert rendering.stop_ids == {*ids_of(found.tokenizer, found.turn, found.text)}
    if found.text is None and form == "text":
        with pytest.raises(UsageError, match=r"^data\[0\]: the tokenizer has no end-of-sequence token, .* set eos_token$"):
            rendering.rows([prompt], [[SAID]])
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "data.0. .and 1 more.: the chat template writes" if found.opens else "nothing")
        rows = rendering.rows([prompt], [AFTER[form]])[0]
    for row, completion in zip(rows, AFTER[form], strict=True):
        assert row.ids == whole_ids(found, prompt, completion)
        assert row.ids[: row.start] == prompt_ids(found, prompt) and row.seam == ""
        assert rendering.decode(row.ids[row.start :], prompt) == completion
        assert sum(i in rendering.stop_ids for i in row.ids[row.start :]) == 1 and row.ids[-1] in rendering.stop_ids


# every method


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reach an engine, as ids."""
    seen, generate = [], EmbeddedEngine.generate

    def spy(engine, prompts, **options):
        if hasattr(engine.policy, "tokenizer"):  # not the comparison of architectures
            seen.append([list(ids) for ids in prompts])
        return generate(engine, prompts, **options)

    monkeypatch.setattr(EmbeddedEngine, "generate", spy)
    return seen


def rows_of(inputs, mask=None):
    """Prompt and completion of each row without padding, and which of the completion's tokens count."""
    for b, n in enumerate(inputs["prompt_length"].tolist()):
        for g, length in enumerate(inputs["completion_length"][b].tolist()):
            counted = [True] * length if mask is None else mask[b, g, :length].tolist()
            yield inputs["prompt_ids"][b, :n].tolist(), inputs["completion_ids"][b, g, :length].tolist(), counted


@EVERY
@FORMS
def test_every_method_trains_and_asks_with_these_ids(name, form, asked, monkeypatch, capsys):
    found, prompt, (good, bad) = kind(name), PROMPTS[form], AFTER[form]
    policy = policy_of(found.tokenizer, value_head=True)
    alone, step = prompt_ids(found, prompt), Ascent(learning_rate=1e-3)
    tokens = []

    def reward(*, completions):
        tokens.append(completions)
        return [float(i) for i in range(len(completions))]

    collect = Completions([prompt], reward, group_size=3, max_tokens=3, num_prompts=1)
    rollout = collect(policy)
    assert asked.pop() == [alone]
    assert [p for p, _, _ in rows_of(rollout.inputs)] == [alone] * 3
    train(GRPO(update=step), policy, collect, iterations=1)

    task = Task(name="t", train=[], held_out=[Problem(prompt=prompt)], columns=(), reward=reward)
    evaluate(policy, task, max_tokens=2)
    assert asked.pop() == [alone]

    stepper = PPOStepper(policy, kl_coef=0.0)
    responses, seen = stepper.generate([prompt], max_tokens=3), []
    assert asked.pop() == [alone]
    monkeypatch.setattr(policy, "evaluate", spying(policy.evaluate, seen))
    stepper.step([prompt], responses, [1.0])
    assert next(rows_of(seen[0]))[:2] == (alone, responses[0])

    if found.text is None and form == "text":
        return
    whole = [whole_ids(found, prompt, text) for text in (good, bad)]
    reference = policy.frozen()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the chat template writes this completion" if found.opens else "nothing")
        data = {
            SFT: demonstrations(policy, [(prompt, good)]),
            DPO: preference_pairs(policy, [Pair(prompt=prompt, chosen=good, rejected=bad)], reference=reference),
            KTO: labeled(policy, [Labeled(prompt=prompt, completion=good, label=True)], reference=reference),
            RewardModeling: preference_pairs(policy, [Pair(prompt=prompt, chosen=good, rejected=bad)]),
        }
        for method, recorded in data.items():
            rows = list(rows_of(recorded(policy).inputs, recorded(policy).mask))
            assert [p + c for p, c, _ in rows] == whole[: len(rows)] and all(all(counted) for _, _, counted in rows), method
            assert all(p == alone for p, _, _ in rows)
            train(method(update=step), policy, recorded, iterations=1)
        scored = []
        monkeypatch.setattr(policy, "score", spying(policy.score, scored))
        said = [text if form == "text" else [{"role": "assistant", "content": text}] for text in (good, bad)]
        score_with(policy)(prompts=[prompt, prompt], completions=said)
        assert [p + c for p, c, _ in rows_of(scored[0])] == whole


def spying(function, seen):
    def call(**inputs):
        seen.append(inputs)
        return function(**inputs)

    return call


@EVERY
def test_chat_asks_with_the_template_s_ids(name, asked, monkeypatch, capsys):
    found = kind(name)
    policy = policy_of(found.tokenizer)
    answers, decode = [], policy.decode
    monkeypatch.setattr(policy, "decode", lambda ids, after: answers.append(decode(ids, after)) or answers[-1])
    monkeypatch.setattr(chat, "policy_of", lambda text: policy)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi there\nsay it again\n"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "prompt: the tokenizer has no token for")  # words that the model made up
        assert main(["chat", "model", "--max-tokens", "3"]) == 0
    talk = [{"role": "user", "content": "hi there"}]
    assert asked[0] == [prompt_ids(found, talk)]
    talk += [{"role": "assistant", "content": answers[0]}, {"role": "user", "content": "say it again"}]
    assert asked[1] == [prompt_ids(found, talk)] and len(asked) == len(answers) == 2


def test_chat_without_a_template_asks_with_the_text(asked, monkeypatch, capsys):
    found = kind("metaspace first, Mistral")
    monkeypatch.setattr(found.tokenizer, "chat_template", None)
    policy = policy_of(found.tokenizer)
    monkeypatch.setattr(chat, "policy_of", lambda text: policy)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi there\nHello\n"))
    assert main(["chat", "model", "--max-tokens", "2"]) == 0
    assert asked == [[found.tokenizer("hi there")["input_ids"]], [found.tokenizer("Hello")["input_ids"]]]


# ends


@pytest.mark.parametrize("stops, expected", [(None, {"<|im_end|>", "<|endoftext|>"}), (5, {"<|im_end|>", "<|endoftext|>", 5})])
def test_sampling_stops_at_the_end_of_a_turn_and_trains_it(stops, expected):
    """ChatML, whose end of a turn neither eos nor the generation settings name."""
    tokenizer = kind("bytes, ChatML, eos is another").tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.PhiForCausalLM(tf.PhiConfig(**{**SIZES, "vocab_size": len(tokenizer), "eos_token_id": None, "pad_token_id": None}))
    model.generation_config.eos_token_id = stops
    (end,) = ids_of(tokenizer, "<|im_end|>")
    with torch.no_grad():
        model.lm_head.bias[end] += 4.0
    policy = LanguagePolicy(model, tokenizer, compute_dtype=torch.float32)
    assert policy.stop_ids == {i if isinstance(i, int) else tokenizer.convert_tokens_to_ids(i) for i in expected}
    texts = []
    reward = lambda *, completions: [texts.append(c[0]["content"]) or 1.0 for c in completions]  # noqa: E731
    rollout = Completions([ASKED], reward, group_size=40, max_tokens=8, num_prompts=1)(policy)
    ids, length, ended = rollout.inputs["completion_ids"][0], rollout.inputs["completion_length"][0], rollout.terminated[0].any(-1)
    assert ended.any() and len(set(length.tolist())) > 2
    for row, n, done in zip(ids.tolist(), length.tolist(), ended.tolist(), strict=True):
        assert (row[n - 1] in policy.stop_ids) == done and not policy.stop_ids & {*row[: n - 1]}
    assert torch.equal(rollout.mask.sum(-1)[0], length) and not any("<|im_end|>" in text for text in texts)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|endoftext|>", "<|im_end|><|endoftext|>\n"])
def test_a_turn_that_is_ended_already_is_not_ended_again(end):
    found = kind("bytes, ChatML, eos is another")
    rendering = Rendering(found.tokenizer)
    (plain, ended), (begun, begun_ended) = rendering.rows([ASKED, BEGUN], [[SAID, SAID + end], [SAID, SAID + end]])
    assert plain == ended and begun == begun_ended
    ((text,),) = rendering.rows(["12+34="], [[SAID + end]])
    assert text.ids == found.tokenizer("12+34=46" + end.strip())["input_ids"]


def test_texts_that_bring_their_bos_or_their_eos_have_one():
    found = kind("bytes, BOS and EOS around every text")
    rendering = Rendering(found.tokenizer)
    assert rendering.prompts(["<s>12+34="]) == rendering.prompts(["12+34="])
    rows = [rows[0] for rows in rendering.rows(["12+34=", "<s>12+34=", "12+34="], [[SAID], [SAID], [SAID + "</s>"]])]
    assert rows[0] == rows[1] == rows[2]


def test_what_the_tokenizer_puts_behind_a_text_comes_before_the_end():
    tokenizer = byte_level(CHATML, behind="<sep>", eos_token="</s>")
    ((row,),) = Rendering(tokenizer).rows(["12+34="], [[SAID]])
    assert row.ids == [*tokenizer("12+34=46")["input_ids"], *ids_of(tokenizer, "</s>")] and row.ids[-2] == ids_of(tokenizer, "<sep>")[0]


def test_an_empty_turn_of_the_assistant_asks_for_it():
    for name in ("bytes, ChatML, eos is another", "bytes with BOS, Llama 3"):
        rendering = Rendering(kind(name).tokenizer)
        talk = [*ASKED, {"role": "assistant", "content": ""}]
        assert rendering.prompts([talk]) == rendering.prompts([ASKED])
        assert rendering.rows([talk], [[SAID]]) == rendering.rows([ASKED], [[SAID]])


TOOLS = CHATML.replace("m['content'] +", "m['content'] + (m.tool_calls | tojson if m.tool_calls else '') + (m.thought or '') +")


@pytest.mark.parametrize("content, more", [("", {"tool_calls": [{"f": 1}]}), ("ok", {"tool_calls": [{"f": 1}]}), ("", {"thought": "hm"})])
def test_a_last_message_that_holds_more_than_its_content_is_a_whole_turn(content, more):
    tokenizer = byte_level(TOOLS, "<|im_start|>", "<|im_end|>", eos_token="</s>")
    talk = [*ASKED, {"role": "assistant", "content": content, **more}]
    rendering = Rendering(tokenizer)
    assert rendering.prompts([talk]) == [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]]
    ((row,),) = rendering.rows([talk], [[SAID]])
    whole = tokenizer.apply_chat_template([*talk, {"role": "assistant", "content": SAID}], tokenize=False).rstrip()
    assert row.ids == tokenizer(whole)["input_ids"]
    assert rendering.prompts([[*ASKED, {"role": "assistant", "content": "", "tool_calls": None}]]) == rendering.prompts([ASKED])


def test_a_policy_can_be_copied_and_pickled():
    policy = policy_of(merging())
    again = pickle.loads(pickle.dumps(policy))
    assert again.encode("ab") == policy.frozen().encode("ab") == policy.encode("ab") and again.stop_ids == policy.stop_ids == {0}


def test_a_template_given_later_counts(monkeypatch):
    tokenizer = kind("bytes, ChatML, eos is another").tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", None)
    policy = policy_of(tokenizer)
    assert policy.stop_ids == {*ids_of(tokenizer, "<|endoftext|>")}
    for template, ends in (
        (CHATML, ["<|endoftext|>", "<|im_end|>"]),
        (PLAIN, ["<|endoftext|>"]),
        (CHATML, ["<|endoftext|>", "<|im_end|>"]),
    ):
        tokenizer.chat_template = template
        assert policy.stop_ids == {*ids_of(tokenizer, *ends)}


@pytest.mark.parametrize("closing, end", [("<note><|im_end|>\n", "<|im_end|>"), ("\n<note>", "<note>"), ("<note>\n", "<note>")])
def test_the_end_of_a_turn_is_its_first_special_token_or_else_its_first_added_one_that_is_no_blank(closing, end):
    tokenizer = byte_level(PLAIN.replace("'\n'", repr(closing)), "<|im_end|>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("<note>", normalized=False)])
    turn = Rendering(tokenizer).turn
    assert turn.end_id == ids_of(tokenizer, end)[0] and turn.end == closing[: closing.index(end) + len(end)]


@pytest.mark.parametrize("between, whole", [("", True), ("<note>", True), ("\n", False)])
def test_a_row_ends_with_all_special_tokens_up_to_the_tokenizer_s_end_and_sampling_at_the_first(between, whole):
    closing = f"<|im_end|>{between}</s>"
    tokenizer = byte_level(PLAIN.replace("'\n'", repr(closing)), "<|im_end|>", "<note>", eos_token="</s>")
    rendering = Rendering(tokenizer)
    (row,), (again,) = rendering.rows([ASKED] * 2, [["4"], [f"4{rendering.turn.end}"]])
    tokens = ids_of(tokenizer, "<|im_end|>", *([between] if between else []), "</s>") if whole else ids_of(tokenizer, "<|im_end|>")
    assert row.ids[-len(tokens) :] == tokens and row.ids == again.ids
    assert rendering.stop_ids == {*ids_of(tokenizer, "<|im_end|>", "</s>")}
    assert rendering.decode(row.ids[row.start :], ASKED) == "4"


SYSTEM = [{"role": "system", "content": "you are kind."}, *ASKED]
CHANGED = [CHATML.replace("m['content']", f"m['content'] | {change}") for change in ("lower", "upper", "capitalize", "title", "trim")]


@pytest.mark.parametrize("template", [NEEDS_SYSTEM, NEEDS_SYSTEM.replace("m['content']", "m['content'] | lower"), *CHANGED])
def test_the_end_of_a_turn_is_found_where_a_system_message_is_demanded_and_contents_are_changed(template):
    tokenizer = byte_level(template, "<|im_start|>", "<|im_end|>", eos_token="</s>")
    rendering = Rendering(tokenizer)
    assert rendering.stop_ids == {*ids_of(tokenizer, "<|im_end|>", "</s>")}
    ((row,),) = rendering.rows([SYSTEM], [["46"]])
    whole = tokenizer.apply_chat_template([*SYSTEM, {"role": "assistant", "content": "46"}], tokenize=False)
    assert row.ids == tokenizer(whole.rstrip(), add_special_tokens=False)["input_ids"] and tokenizer.decode(row.ids[-1:]) == "<|im_end|>"
    policy = policy_of(tokenizer)
    data = preference_pairs(policy, [Pair(prompt=SYSTEM, chosen="46", rejected="12")])
    assert [ids[-1:] for ids in data.completions[0]] == [ids_of(tokenizer, "<|im_end|>")] * 2


@pytest.mark.parametrize(
    "template", [CHATML.replace("m['content']", "m['content'] | length | string"), "{{ raise_exception('no') }}" + CHATML]
)
def test_an_end_of_a_turn_that_is_not_found_is_said_once(template):
    rendering = Rendering(byte_level(template, "<|im_start|>", "<|im_end|>", eos_token="</s>"))
    with pytest.warns(UserWarning, match=r"^chat template: how it ends a turn was not found, .* up to the tokenizer's end token") as caught:
        assert [rendering.stop_ids for _ in range(2)] == [{*ids_of(rendering.tokenizer, "</s>")}] * 2
    assert len(caught) == 1 and not rendering.turn.found


# seams


def merging(**options):
    """``ab`` and ``bc`` are tokens, blanks begin words."""
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, " ": 5, " a": 6, "bc": 7}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), (" ", "a"), ("b", "c")]))
    tokenizer.decoder = decoders.Fuse()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **options)


def test_a_token_across_the_boundary_is_the_completion_s_and_is_said():
    policy = policy_of(merging())
    with pytest.warns(UserWarning, match="cut into other tokens") as caught:
        data = demonstrations(policy, [("ca", "bc"), ("ca", "cb"), ("c ", "a")])
    (line,) = caught
    assert str(line.message).startswith(
        r"data[0] (and 1 more): the prompt's end is cut into other tokens once the completion follows ('ab')"
    )
    assert "\n" not in str(line.message)
    assert (data.prompts, data.completions) == ([[3], [3, 1], [3]], [[[4, 3, 0]], [[3, 2, 0]], [[6, 0]]])
    whole = [policy.tokenizer(text)["input_ids"] + [0] for text in ("cabc", "cacb", "c a")]
    assert [prompt + completion for prompt, (completion,) in zip(data.prompts, data.completions, strict=True)] == whole


def test_a_pair_of_which_one_joins_shares_what_is_equal_and_masks_the_prompt_s_rest():
    policy = policy_of(merging())
    with pytest.warns(UserWarning, match=r"data\[0\]: the prompt's end"):
        data = preference_pairs(policy, [Pair(prompt="ca", chosen="b", rejected="cc")], reference=policy.frozen())
    rollout = data(policy)
    assert list(rows_of(rollout.inputs, rollout.mask)) == [([3], [4, 0], [True, True]), ([3], [1, 3, 3, 0], [False, True, True, True])]
    assert rollout.terminated[0].tolist() == [[False, True, False, False], [False, False, False, True]]
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    torch.testing.assert_close(rollout.reference_log_prob, log_prob.where(rollout.mask, 0.0).detach(), rtol=0, atol=1e-5)
    assert rollout.reference_log_prob[0, 1, 0] == 0 and (rollout.reference_log_prob[0, 1, 1:] < 0).all()
    train(DPO(update=Ascent(learning_rate=1e-3)), policy, data, iterations=1)


def test_a_pair_that_is_cut_otherwise_before_the_completions_start_shares_what_is_equal():
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "bc": 5, "ab": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("b", "c"), ("a", "b")]))
    policy = policy_of(tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"))
    with pytest.warns(UserWarning, match="cut into other tokens"):
        rollout = preference_pairs(policy, [Pair(prompt="cab", chosen="c", rejected="d")])(policy)
    assert list(rows_of(rollout.inputs, rollout.mask)) == [([3], [1, 5, 0], [False, True, True]), ([3], [6, 4, 0], [False, True, True])]


def test_where_no_token_stands_before_the_completion_it_is_refused():
    policy = policy_of(merging())
    with pytest.raises(UsageError, match=r"^data\[0\]: its prompt has no token of its own"):
        demonstrations(policy, [("a", "b")])


def test_a_tokenizer_without_places_refuses_what_it_joins(monkeypatch):
    rendering = Rendering(kind("in Python, ends every text").tokenizer)
    assert not rendering.tokenizer.is_fast
    joining = lambda texts, **_: tf.BatchEncoding({"input_ids": [[len(text)] for text in texts]})  # noqa: E731
    monkeypatch.setattr(rendering, "tokenizer", joining)
    with pytest.raises(UsageError, match=r"^data\[0\]: the tokenizer joins prompt and completion .* part them at a blank$"):
        rendering._row("ab", [3], None, "abc", 2, [2], "data[0]")


def test_a_special_token_that_swallows_the_completion_s_blank_stays_the_prompt_s():
    found = kind("words, Phi 3")
    ((row,),) = Rendering(found.tokenizer).rows([ASKED], [[" is 46"]])
    assert row.ids == whole_ids(found, ASKED, " is 46") and row.ids[: row.start] == prompt_ids(found, ASKED) and row.seam == ""


# what has no answer


@pytest.mark.parametrize("name", ["words, Phi 3", "no eos", "unigram, an end in words"])
def test_unknown_characters_are_refused_with_their_place(name, tmp_path):
    rendering = Rendering(kind(name).tokenizer)
    with pytest.raises(
        UsageError, match=r"^here: the tokenizer has no token for '.*é.*', the model would see <unk> in its place; take it out"
    ):
        rendering.prompts(["12", "12é"], ["there", "here"])
    with pytest.raises(UsageError, match=r"^prompts\[0\]: the tokenizer has no token for"):
        rendering.prompts([[{"role": "user", "content": "hié"}]])
    with pytest.raises(UsageError, match=r"^data\[0\]: the tokenizer has no token for"):
        rendering.rows([ASKED], [["46é"]])
    assert rendering.unknown_id in rendering.prompts(["12<unk>"])[0]  # written out it is meant


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_an_unknown_token_that_only_the_model_knows_is_refused_too(model):
    tokenizer = metaspace("always", WORDS, model=model, bos_token="<s>", eos_token="</s>")
    rendering = Rendering(tokenizer)
    assert tokenizer.unk_token is None and rendering.unknown_id == tokenizer.convert_tokens_to_ids("<unk>")
    for ask in (lambda: rendering.prompts(["The é"]), lambda: rendering.rows(["The"], [[" é"]])):
        with pytest.raises(UsageError, match=r"the tokenizer has no token for '.*é', the model would see <unk> in its place"):
            ask()
    assert rendering.prompts(["hi there"]) == [tokenizer("hi there")["input_ids"]]


def test_unknown_characters_of_other_tokenizers():
    with pytest.raises(UsageError, match=r"the tokenizer has no token for 'é', the model would see nothing in its place; take it out$"):
        Rendering(merging()).prompts(["aéb"])
    assert Rendering(merging()).prompts(["a b<eos>"]) == [[1, 5, 2, 0]]
    rendering = Rendering(merging())
    rendering.refuses_unknown = False
    with pytest.warns(UserWarning, match="has no token for 'é'"):
        assert rendering.prompts(["aéc"]) == [[1, 3]]
    half = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "Ã": 2}, []))  # one of the two bytes of é
    half.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UsageError, match="has no token for 'é'"):
        Rendering(tf.PreTrainedTokenizerFast(tokenizer_object=half, eos_token="<eos>")).prompts(["aé"])
    list_of_words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))
    list_of_words.pre_tokenizer = pre_tokenizers.Whitespace()
    rendering = Rendering(wrapped(list_of_words, CHATML, eos_token="</s>"))
    with pytest.raises(UsageError, match=r"^prompts\[1\]: the tokenizer refuses this text \(WordLevel error"):
        rendering.prompts(["a b", "a c"])
    # where the unknown token is also the end of texts, bytes know every character, and an end is an end
    bytes_ = Rendering(kind("bytes, ChatML, eos is another").tokenizer)
    assert len(bytes_.prompts(["é<|endoftext|>"])[0]) == 3
    assert (
        Rendering(kind("SentencePiece, Llama 2").tokenizer).unknown_id
        not in Rendering(kind("SentencePiece, Llama 2").tokenizer).prompts(["é"])[0]
    )


def test_a_tokenizer_that_panics_is_one_line():
    """A regular expression that takes too long ends in Rust, and not in an Exception of Python."""
    backtracks = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    backtracks.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a|a|aa)+$"), "isolated")
    rendering = Rendering(tf.PreTrainedTokenizerFast(tokenizer_object=backtracks, eos_token="<unk>"))
    hard = "a" * 60 + "b"
    with pytest.raises(
        UsageError, match=r"^prompts\[1\]: the tokenizer refuses this text \(.*retry-limit-in-match over\); change them, or"
    ):
        rendering.prompts(["a", hard])
    with pytest.raises(UsageError, match=r"^data\[0\]: the tokenizer refuses this text"):
        rendering.rows(["a"], [[hard[1:]]])


@pytest.mark.parametrize("asked", [KeyboardInterrupt, SystemExit])
def test_who_asks_to_stop_while_texts_are_tokenized_is_heard(asked, monkeypatch):
    def stopping(*args, **options):
        raise asked

    rendering = Rendering(kind("words, Phi 3").tokenizer)
    monkeypatch.setattr(rendering, "tokenizer", stopping)
    with pytest.raises(asked):
        rendering._encodings(["12"], ["here"])


def test_what_the_template_refuses_names_the_row(tmp_path):
    policy = policy_of(kind("metaspace first, Mistral").tokenizer)
    system = [{"role": "system", "content": "You are kind."}, *ASKED]
    with pytest.raises(UsageError) as caught:
        policy.encode_all([ASKED, system])
    assert str(caught.value).startswith("prompts[1]: the model's chat template refuses these messages (Only user and assistant roles); ")
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": talk, "chosen": "46", "rejected": "12"} for talk in (ASKED, system)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    from upslope.language import read_pairs

    with pytest.raises(UsageError, match=rf"^{file}, line 2: the model's chat template refuses these messages"):
        preference_pairs(policy, read_pairs(file))
    with pytest.raises(UsageError, match=r"^item 2: the model's chat template refuses"):
        score_with(policy_of(policy.tokenizer, value_head=True))(prompts=[ASKED, system], completions=["46", "46"])


def test_a_turn_that_the_template_writes_otherwise_is_trained_word_for_word():
    found = kind("bytes, R1 opens a thought")
    policy = policy_of(found.tokenizer)
    with pytest.warns(UserWarning, match=r"^data\[1\]: the chat template writes this completion, once it is said, unlike what follows"):
        data = demonstrations(policy, [("12+34=", "46"), (ASKED, "so it is</think>46")])
    assert data.prompts[1] == prompt_ids(found, ASKED)
    assert found.tokenizer.decode(data.completions[1][0]) == "so it is</think>46</s>"


def test_no_end_at_all_is_refused():
    tokenizer = wrapped(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")), None, unk_token="<unk>")
    with pytest.raises(UsageError, match=r"^tokenizer: it has no end-of-sequence token, so no completion would ever end; set eos_token$"):
        policy_of(tokenizer)


def test_a_word_s_blank_survives_behind_a_prompt():
    for name in ("metaspace first, Mistral", "SentencePiece, Llama 2", "unigram, an end in words", "SentencePiece, Gemma"):
        rendering = Rendering(kind(name).tokenizer)
        ((row,),) = rendering.rows(["Hello"], [[" world"]])
        assert rendering.decode(row.ids[row.start :], "Hello") == " world"
        assert rendering.decode(row.ids[row.start :]).strip() == "world"


def test_recorded_takes_places_and_rewards_take_the_same_rows():
    policy = policy_of(kind("metaspace first, Mistral").tokenizer, value_head=True)
    with pytest.raises(UsageError, match=r"^file, line 7: expected a completion as a string"):
        Recorded(policy, [("12", [3], [0.0])], places=["file, line 7"])
    assert exact_match()(completions=["46"], answer=["46"]) == [1.0]
