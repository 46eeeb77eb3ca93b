"""Folders that plain Transformers reads, adapters, precision, and what is wrong with a folder in one line."""

import json
import shutil

import pytest
import torch
import transformers as tf
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.language.models import TOKENIZER, model_of, plain, policy_of, small, texts
from upslope import GRPO, PPO, SFT, Ascent, train
from upslope.errors import RunFault, UsageError
from upslope.language import Completions, EmbeddedEngine, LanguagePolicy, demonstrations, pretrained
from upslope.language.tiny import character_tokenizer, tiny

FAMILIES = [
    "llama",
    "llama tied, one key for all heads",
    "mistral, window of 3",
    "qwen2",
    "qwen3",
    "gemma2, caps, window of 3",
    "gemma3, window of 3",
    "gpt2",
]
EXACT = {"compute_dtype": torch.float32}


def plainly(folder):
    """What anyone's script does."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def weights_of(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


# folders


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_policy_is_an_ordinary_folder(family, tmp_path):
    policy = policy_of(family)
    train(SFT(update=Ascent(learning_rate=1e-3)), policy, demonstrations(policy, [("ab", "cd"), ("e", "f")]), iterations=2)
    policy.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 11, 0, 30]])
    assert torch.equal(plainly(tmp_path)(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    again = LanguagePolicy.from_pretrained(tmp_path, temperature=0.5, **EXACT)
    inputs = texts([3, 1], [[2, 4], [1, 3]])
    policy.temperature = 0.5
    assert torch.equal(again.evaluate(**inputs).log_prob, policy.evaluate(**inputs).log_prob)
    assert again.temperature == 0.5 and all(p.dtype == torch.float32 and p.requires_grad for p in again.parameters())
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_readers_sample_with_the_temperature_that_was_trained(temperature, tmp_path):
    policy_of("llama", temperature=temperature).save_pretrained(tmp_path)
    found = tf.GenerationConfig.from_pretrained(tmp_path)
    assert (found.temperature, bool(found.do_sample)) == ((None if temperature == 1.0 else 0.5), temperature != 1.0)
    assert temperature == 1.0 or (found.top_k, found.top_p, found.min_p, found.repetition_penalty) == (0, 1.0, None, 1.0)
    if temperature != 1.0:  # trained on at 1
        LanguagePolicy.from_pretrained(tmp_path, temperature=1.0).save_pretrained(tmp_path / "later")
        assert tf.GenerationConfig.from_pretrained(tmp_path / "later").temperature == 1.0


def test_the_generation_settings_of_a_base_stay_where_nothing_was_trained_at_another_temperature(tmp_path):
    policy = policy_of("llama")
    policy.model.generation_config = tf.GenerationConfig(do_sample=True, temperature=0.6, top_k=0, top_p=0.95)
    policy.save_pretrained(tmp_path)
    found = tf.GenerationConfig.from_pretrained(tmp_path)
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 0, 0.95)


def test_its_tokenizer_is_an_ordinary_one(tmp_path):
    policy = policy_of("llama")
    policy.save_pretrained(tmp_path)
    tokenizer, again = AutoTokenizer.from_pretrained(tmp_path), LanguagePolicy.from_pretrained(tmp_path)
    for text in ("hello (1)", "", " a\n", "<unk>"):
        assert tokenizer(text)["input_ids"] == policy.encode(text) == again.encode(text)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0 and again.stop_ids == {0}


def test_a_folder_in_bfloat16_is_half_as_large_and_read_as_float32(tmp_path):
    policy = policy_of("llama")
    policy.save_pretrained(tmp_path / "full")
    policy.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    edit("config.json", lambda c: {**c, "dtype": "bfloat16"})(tmp_path / "half")  # as most folders say
    again = LanguagePolicy.from_pretrained(tmp_path / "half", **EXACT)
    rounded = {name: p.bfloat16().float() for name, p in policy.named_parameters()}
    assert all(p.dtype == torch.float32 and torch.equal(p, rounded[name]) for name, p in again.named_parameters())
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    policy = policy_of("llama tied, one key for all heads")
    train(SFT(update=Ascent(learning_rate=1e-2)), policy, demonstrations(policy, [("ab", "cd")]), iterations=2)
    policy.save_pretrained(tmp_path)
    again = LanguagePolicy.from_pretrained(tmp_path, **EXACT)
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
    assert torch.equal(again.model.lm_head.weight, policy.model.lm_head.weight)


def test_a_value_head_is_saved_beside_the_model(tmp_path):
    policy = small(noise=0.1, value_head=True)
    collect = Completions(["ab", "c"], lambda *, completions: [float(len(c)) for c in completions], group_size=4, max_tokens=4)
    train(PPO(update=Ascent(learning_rate=1e-2)), policy, collect, iterations=2)
    assert policy.body.value_head.weight.any()
    policy.save_pretrained(tmp_path)
    inputs = texts([3], [[2, 4]], vocabulary=10)
    again = LanguagePolicy.from_pretrained(tmp_path, value_head=True, **EXACT)
    assert torch.equal(again.score(**inputs), policy.score(**inputs))
    assert LanguagePolicy.from_pretrained(tmp_path, **EXACT).body.value_head is None
    plainly(tmp_path)  # which does not mind the file
    (tmp_path / pretrained.VALUE_HEAD).unlink()
    assert not LanguagePolicy.from_pretrained(tmp_path, value_head=True, **EXACT).score(**inputs).any()  # a critic begins at 0
    with pytest.raises(UsageError, match=r"has no value_head\.safetensors"):
        pretrained.load_value_head(again.body.value_head, tmp_path)


def test_loading_is_silent(tmp_path, capfd):
    small().save_pretrained(tmp_path)
    LanguagePolicy.from_pretrained(tmp_path)
    out, error = capfd.readouterr()
    assert out == error == ""


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((RunFault, UsageError)) as caught:
        small().save_pretrained(tmp_path / "file" / "below")
    assert "\n" not in str(caught.value)


# adapters


def test_training_with_adapters_moves_nothing_else(tmp_path):
    base = small(noise=0.1, value_head=True)
    base.save_pretrained(tmp_path / "base")
    policy = LanguagePolicy.from_pretrained(tmp_path / "base", lora_rank=4, value_head=True, **EXACT)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name or "value_head" in name for name in trained)
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) < 0.4 * sum(p.numel() for p in policy.parameters())
    inputs = texts([3, 1], [[2, 4], [1, 3]], vocabulary=10)
    assert torch.equal(policy.evaluate(**inputs).log_prob, base.evaluate(**inputs).log_prob)  # adapters begin at 0
    before, reference = weights_of(policy), policy.frozen()
    collect = Completions(
        ["ab", "c"], lambda *, completions: [float(len(c)) for c in completions], group_size=4, max_tokens=4, reference=reference
    )
    state = train(PPO(update=Ascent(learning_rate=1e-2), reference_kl_coef=0.01), policy, collect, iterations=2)
    assert state.metrics["reference_kl"] > 0
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= set(trained) and any("lora_A" in n for n in moved) and any("lora_B" in n for n in moved)
    # merged: a plain model that says the same
    policy.save_pretrained(tmp_path / "merged")
    model = plainly(tmp_path / "merged")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    log_prob, _ = plain(model, inputs)
    torch.testing.assert_close(log_prob, policy.evaluate(**inputs).log_prob, rtol=0, atol=1e-5)
    assert (log_prob - base.evaluate(**inputs).log_prob).abs().max() > 1e-3
    assert {name for name, _ in policy.named_parameters()} == set(before)  # saving changed nothing
    # or the adapters alone, for peft
    policy.save_pretrained(tmp_path / "adapters", merge=False)
    with pretrained.quiet():  # peft asks Transformers for a name that it deprecates
        stacked = PeftModel.from_pretrained(plainly(tmp_path / "base"), tmp_path / "adapters").eval()
    log_prob, _ = plain(stacked, inputs)
    torch.testing.assert_close(log_prob, policy.evaluate(**inputs).log_prob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama tied, one key for all heads", "gpt2", "qwen2"])
def test_adapters_sample_and_score_with_one_distribution(family, tmp_path):
    policy_of(family).save_pretrained(tmp_path)
    policy = LanguagePolicy.from_pretrained(tmp_path, lora_rank=2, temperature=0.8, **EXACT)
    train(SFT(update=Ascent(learning_rate=1e-2)), policy, demonstrations(policy, [("ab", "cd"), ("e", "f")]), iterations=2)
    assert not any(m.training for m in policy.model.modules())
    prompt = policy.encode("ab")
    found = EmbeddedEngine(policy).generate([prompt], group_size=4, max_tokens=5)
    own = policy.evaluate(
        prompt_ids=torch.tensor([prompt]),
        prompt_length=torch.tensor([2]),
        completion_ids=found.completion_ids,
        completion_length=found.length,
    )
    torch.testing.assert_close(own.log_prob.detach(), found.log_prob, rtol=0, atol=1e-5)
    state = train(
        GRPO(update=Ascent(learning_rate=1e-2)),
        policy,
        Completions(["ab"], lambda *, completions: [float(len(c)) for c in completions], group_size=8, max_tokens=4),
        iterations=1,
    )
    assert state.metrics["gradient_norm"] >= 0


def test_a_rank_below_one_is_refused(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="lora_rank: expected an integer ≥ 1 or none, found 0"):
        LanguagePolicy.from_pretrained(tmp_path, lora_rank=0)


# what is wrong with a folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sound"
    small().save_pretrained(folder)
    return folder


def edit(name, change):
    def make(folder):
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return make


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(folder):
    (folder / "model.safetensors").write_bytes(b"not a tensor" * 100)


def without_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def encoder_decoder(folder):
    sizes = {"vocab_size": 10, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    (folder / "config.json").write_text(json.dumps(tf.T5Config(**sizes).to_dict()))


def other_shapes(folder):
    edit("config.json", lambda c: {**c, "hidden_size": 64, "intermediate_size": 100})(folder)


def larger_tokenizer(folder):
    character_tokenizer().save_pretrained(folder)


def without_end(folder):
    edit("tokenizer_config.json", lambda c: {k: v for k, v in c.items() if k not in ("eos_token", "pad_token")})(folder)


DAMAGED = {
    "a folder without a config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "a config that is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
    "a config without a type": (lambda folder: (folder / "config.json").write_text("{}"), "cannot be loaded"),
    "more layers than there are weights": (
        edit("config.json", lambda c: {**c, "num_hidden_layers": 10_000_000}),
        "describes 10,000,000 layers",
    ),
    "an unknown type": (edit("config.json", lambda c: {**c, "model_type": "novel"}), "cannot be loaded"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    "half of the weights": (cut, "cannot be loaded"),
    "weights that are none": (garbage, "cannot be loaded"),
    "weights of other sizes": (other_shapes, "cannot be loaded"),
    "no tokenizer": (without_tokenizer, "its tokenizer cannot be loaded"),
    "a tokenizer that is not JSON": (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be loaded"),
    "a tokenizer without an end": (without_end, "tokenizer: it has no end-of-sequence token"),
    "a tokenizer of another model": (larger_tokenizer, "tokenizer: it has 83 tokens, the model 10; they do not belong together"),
    "an encoder": (encoder_decoder, "t5 has an encoder; expected a decoder-only model"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(name, sound, tmp_path, capfd):
    damage, expected = DAMAGED[name]
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(UsageError) as caught:
        LanguagePolicy.from_pretrained(folder)
    message = str(caught.value)
    assert expected in message and "\n" not in message and len(message) < 500, message
    assert message.startswith((f"model {folder}: ", "tokenizer: "))
    assert ("write the folder again" in message) == ("cannot be loaded" in message or "describes" in message)
    assert capfd.readouterr() == ("", "")


def test_names_of_folders_that_are_none(tmp_path):
    (tmp_path / "file.gguf").write_text("")
    for name, expected in {
        tmp_path / "nothing": "there is no such folder",
        "./nothing/at/all": "there is no such folder",
        tmp_path / "file.gguf": "this is a file; name its folder",
        tmp_path: "it has no config.json, so it is not the folder of a Transformers model",
    }.items():
        with pytest.raises(UsageError) as caught:
            LanguagePolicy.from_pretrained(name)
        assert str(caught.value) == f"model {name}: {expected}"


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    import time

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    started = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        LanguagePolicy.from_pretrained("somebody/some-model")
    message = str(caught.value)
    assert message.startswith("model somebody/some-model: there is no such folder here, and the hub does not give it (")
    assert "\n" not in message and time.perf_counter() - started < 60


def test_a_model_that_was_downloaded_is_read_without_a_network(sound, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("upslope.language.pretrained.is_cached", lambda name: True)
    with pytest.raises(UsageError, match="cannot be loaded") as caught:  # not in the cache, whatever that claims: no network is tried
        LanguagePolicy.from_pretrained("somebody/some-model")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_drawn_at_random(sound, tmp_path):
    """Transformers fills what a file lacks with fresh numbers and says so in its log, which nobody reads."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    tensors = load_file(folder / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"its weights lack {lost}") as caught:
        LanguagePolicy.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_code_inside_a_folder_is_never_run(sound, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    edit("config.json", lambda c: {**c, "model_type": "own", "auto_map": own})(folder)
    with pytest.raises(UsageError, match="cannot be loaded"):
        LanguagePolicy.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_messages_need_a_chat_template():
    with pytest.raises(
        UsageError, match="tokenizer: it has no chat template, so prompts cannot be lists of messages; give prompts as text"
    ):
        small().encode([{"role": "user", "content": "a"}])


def test_a_policy_needs_an_end_token():
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="tokenizer: it has no end-of-sequence token"):
        LanguagePolicy(model_of("llama"), tokenizer)


# the built-in model, text, precision


def test_texts_of_characters_come_back_as_they_were():
    text = "12 + 3 = (a, b)\nIt's <Z>!"
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text) and policy_of("llama").decode(ids) == text
    assert policy_of("llama").decode([*ids, 0]) == text
    assert TOKENIZER("ä")["input_ids"] == [1]


def test_the_built_in_model_is_the_same_for_a_seed():
    one, again, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
    before = torch.get_rng_state()
    tiny(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_size": 0}, "hidden_size: expected an integer ≥ 1, found 0"),
        ({"num_layers": 0}, "num_layers: expected an integer ≥ 1, found 0"),
        ({"context": 0}, "context: expected an integer ≥ 1, found 0"),
        ({"hidden_size": 30, "num_heads": 4}, r"hidden_size: expected a multiple of 2 · num_heads = 8, found 30"),
        ({"alphabet": ""}, "alphabet: expected at least one character, found none"),
        ({"temperature": 0}, "temperature: expected a number ≥ 0.01, found 0;"),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        tiny(**options)
