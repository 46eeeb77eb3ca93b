"""Small tokenizers of every kind, each with a chat template of the kind it has in the wild."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CORPUS = [
    "12+34=46", "The answer is 46.", "hi there", "Hello world", "You are kind.", "say it again and again", "User: Assistant: ### End",
    "[INST] [/INST] user assistant system model <think> </think>",
]  # fmt: skip
LETTERS = sorted({*"".join(CORPUS), *"abcdefghijklmnopqrstuvwxyz\n<>|/_#:[]", " "})

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
THINKING = (
    WITH_SYSTEM + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ASK = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + ASK
WORDS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n### End\n' }}{% endfor %}" + ASK
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
    "{% else %}{{ '<|assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('must begin with a system message') }}{% endif %}" + CHATML
ALWAYS_ASKS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


@dataclass(frozen=True)
class Kind:
    """A tokenizer; what ends its turns and its texts; whether it ends every text itself; the tokens it puts before every text.

    ``opens`` is what its template puts into a prompt and not into a turn that was said; ``system``: it takes a system message.
    """

    tokenizer: Any
    turn: str | None
    text: str | None
    ends_texts: bool = False
    begins: int = 0
    system: bool = True
    opens: str = ""


def wrapped(tokenizer: Tokenizer, template: str, *specials: str | AddedToken, **named: Any) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([*specials, *(v for v in named.values() if isinstance(v, str))])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    made.chat_template = template
    return made


def surround(tokenizer: Tokenizer, before: str = "", behind: str = "") -> None:
    tokenizer.add_special_tokens([t for t in (before, behind) if t])
    named = [(t, tokenizer.token_to_id(t)) for t in dict.fromkeys((before, behind)) if t]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{before} $A {behind}".strip(), special_tokens=named)


def bytes_tokenizer(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def metaspace_tokenizer(scheme: str, model: str = "bpe") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>") if model == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    alphabet = ["▁", *(c for c in LETTERS if c != " ")]
    if model == "bpe":
        trainer: Any = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False)
    else:
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama 2 and Gemma are written: blanks become ▁ before anything else, no parts, bytes for what is unknown."""
    parts = ["▁The", "▁answer", "▁is", "46", "=4", "▁wor", "ld", "▁hi", "ag"]
    letters = ["▁", *(c for c in LETTERS if c != " "), *"Thansweriodlg"]
    vocabulary = dict.fromkeys(["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *letters])
    merges: list[tuple[str, str]] = []
    for part in parts:
        for n in range(1, len(part)):
            if (part[:n], part[n]) not in merges:
                merges.append((part[:n], part[n]))
            vocabulary |= {part[: n + 1]: None}
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    return Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))


def llama2() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    surround(tokenizer, "<s>")
    return wrapped(tokenizer, LLAMA2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    surround(tokenizer, "<bos>")
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return wrapped(tokenizer, GEMMA, "<start_of_turn>", "<end_of_turn>", **named)


def words() -> PreTrainedTokenizerFast:
    """Whole words and single characters; what is in no list is unknown. A special token swallows the line feed behind it."""
    known = "12 34 46 The answer answers is hi there Hello world say it again are kind and"
    found = dict.fromkeys(["<unk>", *known.split(), *LETTERS])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(found)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s|[^\w\s]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    asked = [AddedToken(f"<|{role}|>", rstrip=True, special=True) for role in ("user", "assistant", "system")]
    return wrapped(tokenizer, PHI3, *asked, "<|end|>", eos_token="<|endoftext|>", unk_token="<unk>")


def characters(template: str, *specials: str, **named: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<unk>", *LETTERS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrapped(tokenizer, template, *specials, **named)


def byte_level(template: str, *specials: str, before: str = "", behind: str = "", **named: str) -> PreTrainedTokenizerFast:
    tokenizer = bytes_tokenizer()
    if before or behind:
        surround(tokenizer, before, behind)
    return wrapped(tokenizer, template, *specials, **named)


def metaspace(scheme: str, template: str, *specials: str, model: str = "bpe", before: str = "", **named: str) -> PreTrainedTokenizerFast:
    tokenizer = metaspace_tokenizer(scheme, model)
    if before:
        surround(tokenizer, before)
    return wrapped(tokenizer, template, *specials, **named)


def by_t5() -> ByT5Tokenizer:
    """In Python, without the places of its tokens; it ends every text."""
    made = ByT5Tokenizer(extra_ids=0, additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    made.chat_template = CHATML
    return made


IM = ("<|im_start|>", "<|im_end|>")
HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
EOT = "<|endoftext|>"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

KINDS: dict[str, Any] = {
    "bytes, ChatML, eos is another": lambda: Kind(byte_level(CHATML, *IM, eos_token=EOT, unk_token=EOT), "<|im_end|>", EOT),
    "bytes with BOS, Llama 3": lambda: Kind(
        byte_level(LLAMA3, *HEADER, before="<|bos|>", bos_token="<|bos|>", eos_token="<|eos|>"), "<|eot_id|>", "<|eos|>", begins=1
    ),
    "metaspace first, Mistral": lambda: Kind(
        metaspace("first", MISTRAL, "[INST]", "[/INST]", before="<s>", **S), "</s>", "</s>", begins=1, system=False
    ),
    "metaspace always, Mistral": lambda: Kind(metaspace("always", MISTRAL, before="<s>", **S), "</s>", "</s>", begins=1, system=False),
    "metaspace never, Zephyr": lambda: Kind(metaspace("never", ZEPHYR, *ROLES, **S), "</s>", "</s>"),
    "SentencePiece, Llama 2": lambda: Kind(llama2(), "</s>", "</s>", begins=1, system=False),
    "SentencePiece, Gemma": lambda: Kind(gemma(), "<end_of_turn>", "<eos>", begins=1),
    "words, Phi 3": lambda: Kind(words(), "<|end|>", EOT),
    "no eos": lambda: Kind(characters(CHATML, *IM, unk_token="<unk>"), "<|im_end|>", None),
    "pad is eos, a template without an end": lambda: Kind(
        characters(PLAIN, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"), None, "<eos>"
    ),
    "bytes, BOS and EOS around every text": lambda: Kind(
        byte_level(CHATML, *IM, before="<s>", behind="</s>", bos_token="<s>", eos_token="</s>"),
        "<|im_end|>",
        "</s>",
        ends_texts=True,
        begins=1,
    ),
    "bytes, default system and a place to think": lambda: Kind(
        byte_level(THINKING, *IM, "<think>", "</think>", eos_token="<|im_end|>", pad_token=EOT), "<|im_end|>", "<|im_end|>"
    ),
    "unigram, an end in words": lambda: Kind(metaspace("always", WORDS, model="unigram", **S), None, "</s>"),
    "bos is eos, never asks for a turn": lambda: Kind(
        byte_level(ALWAYS_ASKS, *IM, before=EOT, bos_token=EOT, eos_token=EOT, unk_token=EOT), "<|im_end|>", EOT, begins=1
    ),
    "bytes, R1 opens a thought": lambda: Kind(
        byte_level(R1, *ROLES, "<think>", "</think>", before="<s>", bos_token="<s>", eos_token="</s>"),
        "</s>",
        "</s>",
        begins=1,
        system=False,
        opens="<think>\n",
    ),
    "in Python, ends every text": lambda: Kind(by_t5(), "<|im_end|>", "</s>", ends_texts=True),
}


@cache
def kind(name: str) -> Kind:
    return KINDS[name]()
