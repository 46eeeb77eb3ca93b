"""``examples/plain``: the methods written out in one file each do what the library does, parameter by parameter."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from upslope import GRPO, PPO, Ascent, control, language, train

FOLDER = Path(__file__).parents[1] / "examples" / "plain"


def load(name):
    """A file of the folder as a module."""
    spec = importlib.util.spec_from_file_location(f"plain_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apart(first, second):
    """The largest difference between parameters."""
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


def tokenizer_of(vocabulary):
    """A tokenizer with these tokens, the first of which ends texts, the others being one character each."""
    words = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=vocabulary[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=vocabulary[0], pad_token=vocabulary[0])


@pytest.mark.parametrize("fast,target_kl", [(False, None), (True, None), (True, 0.005)])
def test_ppo(fast, target_kl, monkeypatch):
    """From one seed, each with its own environments, networks, actions and shuffles: ten updates later the parameters are the same."""
    plain = load("ppo")
    monkeypatch.setattr(plain, "TARGET_KL", float("inf") if target_kl is None else target_kl)
    monkeypatch.setattr(plain, "ENTROPY_COEF", 0.01)
    monkeypatch.setattr(plain, "NUM_EPOCHS", 4)  # ten, at this learning rate, would make a difference of 1e-6 one of 1e-3
    size = plain.NUM_ENVS * plain.NUM_STEPS
    found = plain.train(steps=10 * size, seed=3, report=lambda line: None)

    envs = control.make("CartPole-v1", num_envs=plain.NUM_ENVS, seed=3)
    policy = control.MLPPolicy.for_envs(envs, normalize_value=False, seed=3)
    start = [p.detach().clone() for p in policy.parameters()]
    update = Ascent(
        learning_rate=plain.LEARNING_RATE,
        schedule=lambda done: 1 - done,
        num_epochs=plain.NUM_EPOCHS,
        num_minibatches=plain.NUM_MINIBATCHES,
        max_grad_norm=plain.MAX_GRAD_NORM,
        target_kl=target_kl,
    )
    algorithm = PPO(
        gamma=plain.GAMMA,
        gae_lambda=plain.GAE_LAMBDA,
        clip_range=plain.CLIP_RANGE,
        value_coef=plain.VALUE_COEF,
        entropy_coef=plain.ENTROPY_COEF,
        update=update,
    )
    collect = control.Steps(envs, num_steps=plain.NUM_STEPS, seed=3)
    state = train(algorithm, policy, collect, iterations=10, seed=3, fast=fast)

    assert apart(found.parameters(), policy.parameters()) < 1e-5
    assert apart(start, policy.parameters()) > 0.1
    assert (state.metrics["num_minibatches"] < 16) == (target_kl is not None)


def test_grpo(monkeypatch):
    """From one seed, with the same random numbers for prompts and tokens: ten updates later the parameters are the same."""
    plain = load("grpo")
    monkeypatch.setattr(plain, "NUM_PROMPTS", 8)
    monkeypatch.setattr(plain, "CLIP_RANGE", 0.02)  # so that some ratios are clipped
    monkeypatch.setattr(plain, "KL_COEF", 0.5)
    problems, _ = plain.sums(3)

    def score(completion, answer):
        """Something that a fresh model finds: digits, and early ends."""
        return float(sum(character in answer for character in completion) - len(completion) / 3)

    monkeypatch.setattr(plain, "reward", score)
    small = {"hidden_size": 40, "num_layers": 2, "num_heads": 4}
    found = plain.make_model(3, **small)
    plain.grpo(found, problems, iterations=10, seed=3, report=lambda line: None)

    model = plain.make_model(3, **small)
    start = [p.detach().clone() for p in model.parameters()]
    policy = language.LanguagePolicy(model, tokenizer_of(plain.VOCABULARY), compute_dtype=torch.float32)
    collect = language.Completions(
        [language.Problem(prompt=prompt, columns={"answer": answer}) for prompt, answer in problems],
        lambda *, completions, answer, **_: [score(*pair) for pair in zip(completions, answer, strict=True)],
        num_prompts=plain.NUM_PROMPTS,
        group_size=plain.GROUP_SIZE,
        max_tokens=plain.MAX_TOKENS,
        reference=policy.frozen(),
    )
    sampling = torch.Generator().manual_seed(3)
    monkeypatch.setattr(collect.order, "take", lambda count: torch.randperm(len(problems), generator=sampling)[:count].tolist())
    monkeypatch.setattr(
        "upslope.language.engine.uniforms",
        lambda shape, seed, device: torch.rand(shape, generator=sampling, dtype=torch.float64),
    )
    update = Ascent(
        learning_rate=plain.LEARNING_RATE,
        schedule=lambda done: 1 - done,
        num_minibatches=plain.NUM_MINIBATCHES,
        max_grad_norm=plain.MAX_GRAD_NORM,
        target_kl=None,
        eps=1e-5,
    )
    algorithm = GRPO(clip_range=plain.CLIP_RANGE, kl_coef=plain.KL_COEF, update=update)
    clipped = []
    train(algorithm, policy, collect, iterations=10, seed=3, callbacks=lambda state: clipped.append(state.metrics["clip_fraction"]))

    assert apart(found.parameters(), policy.parameters()) < 1e-5
    assert apart(start, policy.parameters()) > 1e-3
    assert max(clipped) > 0
