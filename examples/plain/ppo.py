"""PPO in one file: PyTorch and Gymnasium, nothing else.  python ppo.py [--env CartPole-v1] [--steps 40000] [--seed 0]

Read it from top to bottom: networks, collect, advantages, update, loop. It takes any environment with a vector as observation and
discrete actions. tests/test_plain.py holds it to ``upslope.PPO``: the same seed gives the same parameters after ten updates.
Left out, and in the library: other spaces, normalization, a critic in normalized units, speed.
"""

import argparse
import math

import gymnasium as gym
import torch
from torch import nn

NUM_ENVS, NUM_STEPS = 8, 32  # a batch is 8 · 32 steps
NUM_EPOCHS, NUM_MINIBATCHES = 10, 4  # and is used for 40 gradient steps
LEARNING_RATE, MAX_GRAD_NORM = 3e-3, 0.5
GAMMA, GAE_LAMBDA = 0.99, 0.95
CLIP_RANGE, VALUE_COEF, ENTROPY_COEF, TARGET_KL = 0.2, 0.25, 0.0, 0.03


# ------------------------------------------------------------------------------------------------------------ networks


def mlp(sizes, output_gain, generator):
    """Linear, tanh, …, linear; orthogonal weights (gain √2 in hidden layers), zero biases."""
    layers = []
    for i in range(len(sizes) - 1):
        last = i == len(sizes) - 2
        layer = nn.Linear(sizes[i], sizes[i + 1])
        nn.init.orthogonal_(layer.weight, output_gain if last else math.sqrt(2), generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class Policy(nn.Module):
    """The actor gives a logit for each action, the critic the value of a state."""

    def __init__(self, num_inputs, num_actions, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.actor = mlp([num_inputs, 64, 64, num_actions], 0.01, generator)  # nearly uniform at first
        self.critic = mlp([num_inputs, 64, 64, 1], 1.0, generator)

    def value(self, observation):
        return self.critic(observation).squeeze(-1)

    def log_probs(self, observation):
        return self.actor(observation).log_softmax(-1)


# ------------------------------------------------------------------------------------------------------------- collect


class Collector:
    """Plays ``NUM_STEPS`` steps in every environment at each call, going on where the last call stopped."""

    def __init__(self, envs, seed):
        self.envs, self.generator = envs, torch.Generator().manual_seed(seed)
        self.observation, _ = envs.reset(seed=seed)
        self.ended = torch.zeros(envs.num_envs, dtype=torch.bool)
        self.running, self.returns = torch.zeros(envs.num_envs), []  # of the running episodes, of the finished ones

    @torch.no_grad()
    def __call__(self, policy):
        rows = []
        for _ in range(NUM_STEPS):
            observation = torch.as_tensor(self.observation, dtype=torch.float32)
            log_probs = policy.log_probs(observation)
            uniform = torch.rand(len(observation), 1, generator=self.generator)
            # the action whose stretch of [0, 1) holds the uniform number
            action = (log_probs.exp().cumsum(-1) <= uniform).sum(-1).clamp(max=log_probs.shape[-1] - 1)
            log_prob = log_probs.gather(-1, action[:, None]).squeeze(-1)
            # after an end Gymnasium ignores the next action and resets instead: that row is no step of the problem
            real = ~self.ended
            self.observation, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            reward, terminated, truncated = (torch.as_tensor(x) for x in (reward, terminated, truncated))
            self.ended = (terminated | truncated) & real
            self.running += torch.where(real, reward, 0.0)
            self.returns += self.running[self.ended].tolist()
            self.running[self.ended] = 0.0
            rows.append((observation, action, log_prob, reward.float(), terminated & real, self.ended, real))
        observation, action, log_prob, reward, terminated, ended, real = (torch.stack(column, 1) for column in zip(*rows, strict=True))
        # the observation after every real step is its true successor, so one pass gives V(s) and V(s')
        final = torch.as_tensor(self.observation, dtype=torch.float32)
        values = policy.value(torch.cat([observation, final[:, None]], 1))
        value, next_value = values[:, :-1], values[:, 1:]
        advantage = gae(reward, value, next_value, terminated, ended)
        batch = {"observation": observation, "action": action, "log_prob": log_prob, "advantage": advantage, "returns": advantage + value}
        return {name: tensor[real] for name, tensor in batch.items()}  # [N, T, …] → [steps, …]


def gae(reward, value, next_value, terminated, ended):
    """Generalized advantage estimation, ``[N, T]``: Â_t = δ_t + γλ Â_{t+1}, δ_t = r_t + γ V(s_{t+1}) − V(s_t).

    Where an episode terminated V(s_{t+1}) is 0, and Â_{t+1} of the next episode does not count.
    """
    delta = reward + GAMMA * torch.where(terminated, 0.0, next_value) - value
    advantage, following = torch.zeros_like(delta), torch.zeros(len(delta))
    for t in reversed(range(delta.shape[1])):
        following = delta[:, t] + GAMMA * GAE_LAMBDA * torch.where(ended[:, t], 0.0, following)
        advantage[:, t] = following
    return advantage


# -------------------------------------------------------------------------------------------------------------- update


def update(policy, optimizer, batch, generator):
    """``NUM_EPOCHS`` passes over the batch in shuffled minibatches, one gradient step each."""
    count = len(batch["action"])
    batch["advantage"] = (batch["advantage"] - batch["advantage"].mean()) / batch["advantage"].std()
    for _ in range(NUM_EPOCHS):
        for part in torch.randperm(count, generator=generator).tensor_split(NUM_MINIBATCHES):
            observation, action, old_log_prob, advantage, returns = (tensor[part] for tensor in batch.values())
            log_probs = policy.log_probs(observation)
            log_ratio = log_probs.gather(-1, action[:, None]).squeeze(-1) - old_log_prob
            ratio = log_ratio.exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE) * advantage)
            value_error = (policy.value(observation) - returns) ** 2
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            objective = (surrogate - VALUE_COEF * value_error + ENTROPY_COEF * entropy).mean()
            if (ratio - 1 - log_ratio).mean() > TARGET_KL:  # an estimate of KL(π_old‖π)
                return
            optimizer.zero_grad()
            (-objective).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
            optimizer.step()


def train(env="CartPole-v1", steps=40_000, seed=0, report=print):
    """Collect, update, repeat; the learning rate falls to 0. Returns the policy."""
    envs = gym.make_vec(env, num_envs=NUM_ENVS)
    policy = Policy(envs.single_observation_space.shape[0], int(envs.single_action_space.n), seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE, eps=1e-5)
    collect, generator = Collector(envs, seed), torch.Generator().manual_seed(seed)
    iterations = math.ceil(steps / (NUM_ENVS * NUM_STEPS))
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - iteration / iterations)
        update(policy, optimizer, collect(policy), generator)
        if (iteration + 1) % 20 == 0 or iteration + 1 == iterations:
            recent = collect.returns[-20:]
            mean = sum(recent) / max(1, len(recent))
            report(f"{(iteration + 1) * NUM_ENVS * NUM_STEPS:>7,} steps: the last {len(recent)} episodes returned {mean:.1f}")
    envs.close()
    return policy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="PPO in one file.")
    parser.add_argument("--env", default="CartPole-v1", help="name of a Gymnasium environment")
    parser.add_argument("--steps", type=int, default=40_000, help="steps of the environments, all together")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    train(**vars(parser.parse_args()))
