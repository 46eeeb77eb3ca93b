"""A language run that stops goes on from its state to the bit: order of prompts, samples, what is remembered of a reference."""

from pathlib import Path

import pytest

from upslope import DPO, GRPO, PPO, SFT, Ascent, language
from upslope.run.checkpoints import read_checkpoint, write_checkpoint
from upslope.run.train import RunState, train
from upslope.run.verify import differences

PROMPTS = [f"{a}+{b}=" for a in range(3) for b in range(3)]


def short(*, completions: list[str], **_: object) -> list[float]:
    return [-float(len(text)) for text in completions]


def parts(method: str):
    policy = language.tiny(seed=0, value_head=method == "ppo")
    reference = language.tiny(seed=1)
    if method in ("grpo", "ppo"):
        collect = language.Completions(PROMPTS, short, group_size=2, num_prompts=2, max_tokens=4, reference=reference, seed=3)
        return (GRPO(kl_coef=0.1) if method == "grpo" else PPO(reference_kl_coef=0.1)), policy, collect
    if method == "sft":
        collect = language.demonstrations(policy, [(prompt, "1") for prompt in PROMPTS], batch_size=2, seed=3)
        return SFT(update=Ascent(learning_rate=1e-3)), policy, collect
    pairs = [language.Pair(prompt=prompt, chosen="1", rejected="22") for prompt in PROMPTS]
    return DPO(), policy, language.preference_pairs(policy, pairs, batch_size=2, reference=reference, seed=3)


@pytest.mark.parametrize("method", ["grpo", "ppo", "sft", "dpo"])
def test_a_run_goes_on_to_the_bit(method: str, tmp_path: Path):
    paths = []

    def stop(state: RunState) -> bool:
        paths.append(write_checkpoint(tmp_path, state.iteration, state.state_dict()))
        return state.iteration == 3

    whole = train(*parts(method), iterations=7, seed=2)
    train(*parts(method), iterations=7, seed=2, callbacks=stop)
    resumed = train(*parts(method), iterations=7, seed=2, start=read_checkpoint(paths[-1]))
    assert differences(whole.state_dict(), resumed.state_dict()) == []
