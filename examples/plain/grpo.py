"""GRPO in one file: PyTorch and a small Transformers model, offline.  python grpo.py [--iterations 40] [--seed 0]

A model made on the spot imitates right sums until it answers half of them, then learns from rewards alone. Read it from top to bottom:
model, sample, collect, update, loop. tests/test_plain.py holds it to ``upslope.GRPO``: ten updates later the parameters are the same.
Left out, and in the library: prompts of unlike lengths, a prompt computed once for its group, rows that end early, lower precision.
"""

import argparse
import copy
import random

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS = 48, 8, 4  # 8 completions of each of 48 prompts, at most 4 tokens long
NUM_MINIBATCHES, LEARNING_RATE, MAX_GRAD_NORM = 2, 1e-3, 1.0
CLIP_RANGE, KL_COEF = 0.2, 0.01

VOCABULARY = ["<end>", *"+0123456789="]
END = 0


def encode(text):
    return [VOCABULARY.index(character) for character in text]


def decode(ids):
    """The text before the end token."""
    return "".join(VOCABULARY[i] for i in (ids[: ids.index(END)] if END in ids else ids))


# --------------------------------------------------------------------------------------------------- task and model


def sums(seed):
    """Problems ``("12+34=", "46")`` to train on, and 512 others to judge by. All prompts have six tokens."""
    problems = [(f"{a}+{b}=", str(a + b)) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(problems)
    return problems[512:], problems[:512]


def reward(completion, answer):
    """1 for the right answer, 0 for everything else: it can be verified, and nothing need be known of how it is found."""
    return float(completion == answer)


def make_model(seed, hidden_size=80, num_layers=3, num_heads=5):
    """A Llama with fresh weights: 229,200 parameters."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 8 * hidden_size // 3 // 8 * 8, "num_hidden_layers": num_layers}
    heads = {"num_attention_heads": num_heads, "num_key_value_heads": num_heads, "initializer_range": 0.06}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), **sizes, **heads, eos_token_id=END, pad_token_id=END)).eval()


def log_probs(model, ids, num_tokens):
    """log π of the last tokens of each row, ``[rows, num_tokens]``: the logits before a token speak of it."""
    logits = model(ids[:, :-1], use_cache=False).logits[:, -num_tokens:]
    return logits.log_softmax(-1).gather(-1, ids[:, -num_tokens:, None]).squeeze(-1)


# ------------------------------------------------------------------------------------------------- sample and collect


@torch.no_grad()
def sample(model, prompts, generator=None):
    """A completion for each row ``[rows, P]`` of prompts: ids ``[rows, MAX_TOKENS]``, log π and mask alike; greedy without a generator."""
    uniform = None if generator is None else torch.rand(len(prompts), MAX_TOKENS, generator=generator, dtype=torch.float64)
    past, new, alive, rows = None, prompts, torch.ones(len(prompts), dtype=torch.bool), []
    for t in range(MAX_TOKENS):
        output = model(new, past_key_values=past, use_cache=True)
        past, log_p = output.past_key_values, output.logits[:, -1].log_softmax(-1)
        if uniform is None:
            token = log_p.argmax(-1)
        else:  # the token whose stretch of [0, 1) holds the uniform number
            token = (log_p.double().exp().cumsum(-1) <= uniform[:, t, None]).sum(-1).clamp(max=len(VOCABULARY) - 1)
        rows.append((token, log_p.gather(-1, token[:, None]).squeeze(-1), alive))
        new, alive = token[:, None], alive & (token != END)
    return tuple(torch.stack(column, 1) for column in zip(*rows, strict=True))


def collect(model, reference, problems, generator):
    """``NUM_PROMPTS`` groups: their rows of ids, what policy and reference said of each token, and how each row compares with its group."""
    chosen = [problems[i] for i in torch.randperm(len(problems), generator=generator)[:NUM_PROMPTS]]
    prompts = torch.tensor([encode(prompt) for prompt, _ in chosen]).repeat_interleave(GROUP_SIZE, 0)
    completions, old_log_prob, mask = sample(model, prompts, generator)
    answers = [answer for _, answer in chosen for _ in range(GROUP_SIZE)]
    scores = [reward(decode(ids), answer) for ids, answer in zip(completions.tolist(), answers, strict=True)]
    score = torch.tensor(scores).view(NUM_PROMPTS, GROUP_SIZE)
    advantage = (score - score.mean(1, keepdim=True)) / (score.std(1, keepdim=True) + 1e-6)
    ids = torch.cat([prompts, completions], 1)
    with torch.no_grad():
        reference_log_prob = log_probs(reference, ids, MAX_TOKENS)
    rows = {"ids": ids, "mask": mask, "old_log_prob": old_log_prob, "reference_log_prob": reference_log_prob, "advantage": advantage}
    return {name: x.reshape(NUM_PROMPTS, GROUP_SIZE, -1) for name, x in rows.items()}, score.mean().item()


# -------------------------------------------------------------------------------------------------------------- update


def update(model, optimizer, batch, generator):
    """One pass over the groups in shuffled minibatches, one gradient step each."""
    for part in torch.randperm(NUM_PROMPTS, generator=generator).tensor_split(NUM_MINIBATCHES):
        ids, mask, old_log_prob, reference_log_prob, advantage = (x[part].flatten(0, 1) for x in batch.values())
        log_prob = log_probs(model, ids, MAX_TOKENS)
        ratio = (log_prob - old_log_prob).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE) * advantage)
        to_reference = reference_log_prob - log_prob
        kl = to_reference.exp() - 1 - to_reference
        # every completion counts the same, and in it every token
        objective = ((surrogate - KL_COEF * kl).where(mask, 0.0).sum(1) / mask.sum(1)).mean()
        step(model, optimizer, -objective)


def step(model, optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()


def imitate(model, problems, seed, target=0.5):
    """Raise the likelihood of right answers until ``target`` of 256 problems are answered right: rewards must be found first."""
    optimizer, chooser, count = torch.optim.Adam(model.parameters(), eps=1e-5), random.Random(seed), 0
    while count % 10 or accuracy(model, problems[:256]) < target:
        count += 1
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1, count / 20)
        texts = [encode(prompt + answer) + [END] * (MAX_TOKENS - len(answer)) for prompt, answer in chooser.choices(problems, k=128)]
        step(model, optimizer, -log_probs(model, torch.tensor(texts), MAX_TOKENS).mean())


def accuracy(model, problems):
    """How many are answered right, greedily."""
    completions, *_ = sample(model, torch.tensor([encode(prompt) for prompt, _ in problems]))
    return sum(reward(decode(ids), answer) for ids, (_, answer) in zip(completions.tolist(), problems, strict=True)) / len(problems)


def grpo(model, problems, iterations, seed, report=print):
    """Collect, update, repeat; the learning rate falls to 0."""
    reference, optimizer = copy.deepcopy(model), torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, eps=1e-5)
    sampling, shuffling = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - iteration / iterations)
        batch, mean = collect(model, reference, problems, sampling)
        update(model, optimizer, batch, shuffling)
        if iteration % 5 == 0 or iteration + 1 == iterations:
            report(f"iteration {iteration + 1:>3}: mean reward {mean:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO in one file.")
    parser.add_argument("--iterations", type=int, default=40, help="of GRPO, after the imitation")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    arguments = parser.parse_args()
    train_problems, held_out = sums(arguments.seed)
    model = make_model(arguments.seed)
    imitate(model, train_problems, arguments.seed)
    print(f"after imitation {accuracy(model, held_out):.0%} of 512 held-out sums are right")
    grpo(model, train_problems, arguments.iterations, arguments.seed)
    print(f"after GRPO      {accuracy(model, held_out):.0%}")
