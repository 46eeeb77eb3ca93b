"""An environment of your own: any Gymnasium environment class will do; nothing is registered."""

import gymnasium as gym
import numpy as np

from upslope import PPO, Ascent, control, train


class Thermostat(gym.Env):
    """Keep a leaking room at 20 degrees: the action heats (1) or does not (0); 50 steps an episode."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.temperature, self.steps = float(self.np_random.uniform(10.0, 30.0)), 0
        return self._observation(), {}

    def step(self, action):
        self.temperature += 1.5 * float(action) - 0.05 * self.temperature
        self.steps += 1
        reward = -abs(self.temperature - 20.0) / 10.0
        return self._observation(), reward, False, self.steps == 50, {}

    def _observation(self):
        return np.array([np.clip((self.temperature - 20.0) / 15.0, -1.0, 1.0)], np.float32)


envs = control.make(Thermostat, num_envs=8, seed=0)
policy = control.MLPPolicy.for_envs(envs, seed=0)
before = control.evaluate(policy, Thermostat, episodes=20, seed=100).return_mean
train(PPO(update=Ascent(learning_rate=1e-3, num_epochs=10, num_minibatches=4)), policy, control.Steps(envs, num_steps=64), iterations=30)
after = control.evaluate(policy, Thermostat, episodes=20, seed=100).return_mean
print(f"greedy return before {before:.1f}, after {after:.1f}")
