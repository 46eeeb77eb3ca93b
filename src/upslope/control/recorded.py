"""Recording what a policy does into a :class:`~upslope.control.dataset.Dataset`, and collecting rollouts from one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from upslope.control import trees
from upslope.control.dataset import Dataset
from upslope.control.envs import Envs
from upslope.control.heads import Gaussian, Head, head_for
from upslope.control.recording import COLUMNS, Player, Recording, Replaced, check_spaces, put_replaced
from upslope.control.spaces import Space, short, spaces_of
from upslope.errors import UsageError, is_kind, require
from upslope.records import Rollout, Sample, SamplingPolicy, State
from upslope.typed import from_numpy


class RandomPolicy:
    """Uniform over what the action space allows, and the action mask; a Box needs bounds on both sides."""

    def __init__(self, envs: Any) -> None:
        space: Space = spaces_of(envs)[1]
        self.head: Head = head_for(space)
        if isinstance(space, spaces.Box) and not space.is_bounded():
            raise UsageError(f"action space {short(space)}: without bounds there is no uniform distribution")

    def inputs(self, observation: Any, *, action_mask: Any = None, update: Any = False) -> dict[str, Tensor]:
        """The number of rows is all that it looks at; ``action_mask`` as the policies take it."""
        rows = len(next(trees.named_leaves(observation))[1])
        inputs = {"row": torch.zeros(rows, max(1, self.head.num_parameters))}
        return inputs if action_mask is None else {**inputs, "action_mask": from_numpy(np.asarray(action_mask, dtype=np.bool_))}

    def sample(self, inputs: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Sample:
        head, rows = self.head, inputs["row"]
        if isinstance(head, Gaussian):
            middle, half_range = head.units
            low, high = ((np.array(bound) - middle) / half_range for bound in (head.low, head.high))
            low, width = from_numpy(low).float(), from_numpy(high - low).float()
            action = low + width * torch.rand(len(rows), head.dim, generator=generator)
            return Sample(action=action, log_prob=(-width.log().sum()).expand(len(rows)))
        mask = inputs.get("action_mask")
        action = head.sample(rows, generator, mask)
        return Sample(action=action, log_prob=head.log_prob(rows, action, mask))


@torch.no_grad()
def record(
    envs: Envs, policy: SamplingPolicy | RandomPolicy, num_steps: int, *, seed: int = 0, about: Mapping[str, Any] | None = None
) -> Dataset:
    """Play ``num_steps`` steps of every environment from fresh starts and keep what was seen, done and got: one row an environment.

    The policy does not learn on the way; a policy with running moments should be :meth:`frozen`. ``about`` is written into the header.
    """
    require(is_kind(num_steps, int) and num_steps >= 1, f"num_steps: expected an integer ≥ 1, found {num_steps!r}")
    check_spaces(policy, envs)
    envs.reset()
    recording = Recording(Player(policy, envs), torch.Generator().manual_seed(seed), envs.first_step)
    observations, legal = [trees.tree_map(np.copy, envs.observation)], [envs.action_mask]
    for _ in range(num_steps):
        recording.steps.append(envs.step(recording.act())._replace(observation=None))
        observations.append(trees.tree_map(np.copy, envs.observation))
        legal.append(envs.action_mask)
    seen = [dict(trees.named_leaves(tree)) for tree in observations]
    tensors = {f"observation{path}": from_numpy(np.stack([parts[path] for parts in seen], 1)) for path in seen[0]}
    inputs, log_prob = recording.acted()
    tensors |= {"action": inputs["action"].cpu(), "behavior_log_prob": log_prob.cpu()}
    for name in COLUMNS:
        tensors[name] = from_numpy(np.stack([getattr(step, name) for step in recording.steps], 1))
    tensors["reward"] = tensors["reward"].float()
    tensors["first_step"] = from_numpy(recording.first_step)
    replaced = [(t, *step.successors) for t, step in enumerate(recording.steps) if step.successors is not None]
    if replaced:
        tensors["successor_at"] = torch.tensor([(int(index), t) for t, indices, _ in replaced for index in indices])
        parts = [dict(trees.named_leaves(after)) for *_, after in replaced]
        tensors |= {f"successor{path}": from_numpy(np.concatenate([part[path] for part in parts])) for path in parts[0]}
    if any(mask is not None for mask in legal):  # before the first one that was given, all was legal
        like = next(mask for mask in legal if mask is not None)
        tensors["action_mask"] = from_numpy(np.stack([np.ones_like(like) if mask is None else mask for mask in legal], 1))
    head = getattr(policy, "head", None)
    kind, scaled = type(head).__name__ if isinstance(head, Head) else None, getattr(head, "scaled", False)
    about = {"env_id": envs.env_id, "seed": seed, **(about or {})}
    made = {"observation_space": envs.observation_space, "action_space": envs.action_space}
    return Dataset(tensors=tensors, head=kind, scaled=scaled, about=about, **made)


class Recorded:
    """A collector that plays nothing: rollouts from a data set, all of its rows or ``num_rows`` of them, shuffled anew in each pass.

    The critic's values are the learner's, of each step's true successor. ``behavior_log_prob`` is that of whoever recorded, so
    an algorithm has to weigh the steps (:class:`~upslope.OffPolicyGradient`). Running moments of the observations are taken from the
    whole data set, once, where the policy has none yet.

    Raises:
        UsageError: the file is no data set, or does not fit the policy.
    """

    def __init__(self, data: Dataset | str | Path, *, num_rows: int | None = None, reward_scale: float = 1.0, seed: int = 0) -> None:
        require(is_kind(data, Dataset, str, Path), f"data: expected a Dataset or a path, found {type(data).__name__}")
        self.data = data if isinstance(data, Dataset) else Dataset.load(data)
        self.observation_space, rows = self.data.observation_space, self.data.shape[0]
        message = f"num_rows: expected an integer from 1 to {rows}, the data's rows, found {num_rows!r}"
        require(num_rows is None or (is_kind(num_rows, int) and 1 <= num_rows <= rows), message)
        scaled = is_kind(reward_scale, int, float) and 0.0 < reward_scale < float("inf")
        require(scaled, f"reward_scale: expected a number > 0, found {reward_scale!r}")
        require(is_kind(seed, int) and 0 <= seed < 2**32, f"seed: expected an integer from 0 to {2**32 - 1}, found {seed!r}")
        self.num_rows, self.reward_scale = num_rows or rows, reward_scale
        self.generator = torch.Generator().manual_seed(seed)
        self.left = torch.arange(0)

    def state_dict(self) -> State:
        return {"generator": self.generator.get_state(), "left": self.left}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"])
        self.left = state["left"]

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy) -> Rollout:
        self.check(policy)
        self._fill_moments(policy)
        data, rows, player = self.data, self._rows(), Player(policy, self)
        tensors = {name: tensor[rows] for name, tensor in data.tensors.items() if not name.startswith("successor")}
        shape = tensors["reward"].shape
        legal = None if (mask := tensors.get("action_mask")) is None else mask.flatten(0, 1).numpy()
        encoded = player.encode(data.tree("observation", rows), action_mask=legal)
        extended = {name: tensor.reshape(shape[0], shape[1] + 1, *tensor.shape[1:]) for name, tensor in encoded.items()}
        device = next(iter(extended.values())).device
        action, behavior_log_prob = (x.to(device) for x in self._in_units_of(policy, tensors["action"], tensors["behavior_log_prob"]))
        inputs = {name: tensor[:, :-1].contiguous() for name, tensor in extended.items()} | {"action": action}
        extended["action"] = torch.cat([action, action[:, -1:]], 1)
        values, replaced = player.value(extended), self._successors(player, rows, legal)
        value, next_value = (None, None) if values is None else (values[:, :-1].contiguous(), values[:, 1:].contiguous())
        if next_value is not None and replaced is not None:
            put_replaced(player, next_value, action, replaced)
        others: dict[str, Any] = {name: tensors[name].to(device) for name in ("terminated", "truncated", "mask", "first_step")}
        others |= {"inputs": inputs, "reward": tensors["reward"].to(device) * self.reward_scale}
        return Rollout(behavior_log_prob=behavior_log_prob, value=value, next_value=next_value, **others)

    def _in_units_of(self, policy: SamplingPolicy, action: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Recorded actions and their log-probabilities as the policy has them: a Gaussian's may be in other units than the policy's."""
        head, recorded = getattr(policy, "head", None), head_for(self.data.action_space)
        scaled = getattr(head, "scaled", False)
        ours = type(head) in (Gaussian, type(None)) and self.data.head in (None, Gaussian.__name__)
        if not isinstance(recorded, Gaussian) or not ours or scaled == self.data.scaled:
            return action, log_prob
        middle, half_range = recorded.units
        shift = float(np.log(half_range).sum())
        exact = action.double().numpy()
        changed, log_prob = ((exact - middle) / half_range, log_prob + shift) if scaled else (middle + half_range * exact, log_prob - shift)
        return from_numpy(changed).to(action.dtype), log_prob

    def _rows(self) -> Tensor:
        """The rows of this iteration; every row comes once before any comes again."""
        count = self.data.shape[0]
        if self.num_rows == count:
            return torch.arange(count)
        while len(self.left) < self.num_rows:
            self.left = torch.cat([self.left, torch.randperm(count, generator=self.generator)])
        rows, self.left = self.left[: self.num_rows], self.left[self.num_rows :]
        return rows

    def _successors(self, player: Player, rows: Tensor, legal: Any) -> Replaced | None:
        at = self.data.tensors.get("successor_at", torch.zeros(0, 2, dtype=torch.int64))
        here, which = (rows.unsqueeze(1) == at[:, 0]).nonzero(as_tuple=True)
        if len(which) == 0:
            return None
        mask = None if legal is None else np.ones((len(which), legal.shape[-1]), np.bool_)
        return (here, at[which, 1]), player.encode(self.data.tree("successor", which), action_mask=mask)

    def check(self, policy: SamplingPolicy) -> None:
        """Refuse a policy for other spaces or with other actions than the data's; raises :class:`UsageError`."""
        for kind in ("observation_space", "action_space"):
            made, here = getattr(policy, kind, None), getattr(self.data, kind)
            if isinstance(made, spaces.Space) and made != here:
                where = self.data.about.get("env_id", "an environment")
                raise UsageError(f"data: it was recorded in {where} with {kind} {short(here)}, the policy is for {short(made)}")
        head = getattr(policy, "head", None)
        if isinstance(head, Gaussian) and self.data.head not in (None, type(head).__name__):
            drawn = f"its actions were drawn by {self.data.head}, the policy draws by {type(head).__name__}"
            raise UsageError(f"data: {drawn}; take the same --distribution")
        if getattr(policy, "reward_normalizer", None) is not None:
            raise UsageError("normalize_reward: recorded rewards have no running scale; leave it off and say --reward-scale")

    def _fill_moments(self, policy: SamplingPolicy) -> None:
        normalizer = getattr(policy, "observation_normalizer", None)
        if normalizer is not None and float(normalizer.moments.count) == 0:
            Player(policy, self).encode(self.data.tree("observation"), update=True)
