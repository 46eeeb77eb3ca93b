"""Steps that some policy took, in one safetensors file: what it holds, and the checks that everything read from one passes.

==============================  ==================================================================================================
``observation [N, T + 1, …]``   as the environment gave it, N rows side by side; the last one is what followed the row's last step.
                                Parts of a Dict or Tuple: ``observation['camera']``, ``observation[0]``
``action [N, T, …]``            as sampled, counted from 0 where discrete (see :mod:`upslope.control.heads`); with ``scaled`` a Gaussian's
                                is in units of its range, without in the environment's
``behavior_log_prob [N, T]``    log-probability of the action, in those units, under the policy that took it
``reward [N, T]``               as the environment gave it, unscaled
``terminated``, ``truncated``   ``[N, T]``, boolean
``mask [N, T]``                 False at reset steps; may be left out where there can be none, see below
``first_step [N]``              steps that each row's first episode had behind it; may be left out: 0
``successor [K, …]``            where an episode's end was followed by the next one's start, the observation between them, and
``successor_at [K, 2]``         its row and column; both may be left out
``action_mask [N, T + 1, n]``   legal actions, where the environment says them
==============================  ==================================================================================================

**Reset steps.** Where an environment is reset by a separate step (Gymnasium's NEXT_STEP), the column after an end is no decision: it
must be masked, or it would be learned from. Everywhere else the next episode's start stands in the next column and the end's
successor in ``successor``. So ``mask`` may be left out only if every end that has a column behind it is in ``successor_at``; and a
truncated step whose next column is a real one must be there in any case, for its value is that of its true successor.

The header holds one JSON object under ``upslope``: the format's version, the spaces, and what is known of the recording. Nothing in
a file is ever executed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from upslope import functional as F
from upslope.control import trees
from upslope.control.action_masks import ActionMasks
from upslope.control.heads import head_for
from upslope.control.spaces import space_from_json, space_to_json
from upslope.errors import UsageError, is_kind, require
from upslope.files import write_bytes

DATASET_VERSION = 2  # 2 says whether actions are scaled; before, they never were
STEPS = ("reward", "terminated", "truncated", "mask", "behavior_log_prob")  # the fields of shape [N, T]
AXES = {"observation": 2, "successor": 1}  # how many leading axes are not the observation's


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A recording by a behavior policy; see the module for the ``tensors``. Checked when it is made.

    ``head`` is the class of the head that drew the actions: for a Box it says what a stored action is; ``scaled``, in which units
    a Gaussian's is. ``about`` is free JSON.

    Raises:
        UsageError: fields are missing, disagree in length, or hold what no recording can.
    """

    tensors: Mapping[str, Tensor]
    observation_space: Space[Any]
    action_space: Space[Any]
    head: str | None = None
    scaled: bool = False
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            require(is_kind(tensor, Tensor), f"{name}: expected a tensor, found {type(tensor).__name__}")
        reward, masked = self.tensors.get("reward"), "mask" in self.tensors
        if reward is not None:
            defaults = {"mask": torch.ones(reward.shape, dtype=torch.bool), "first_step": torch.zeros(reward.shape[:1], dtype=torch.int64)}
            object.__setattr__(self, "tensors", {**defaults, **self.tensors})
        check_dataset(self)
        check_after_ends(self, masked=masked)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file; raises :class:`UsageError` that names it and says what is wrong, in one line."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise UsageError(f"data: there is no file {path}" if not path.exists() else f"data: {path} is a folder; name the file")
        try:
            opened: Any = safe_open(path, framework="pt")
            with opened as file:
                header: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            message = f"data: {path} is no safetensors file ({' '.join(str(error).split())}); `upslope record` writes one"
            raise UsageError(message) from error
        try:
            return cls.of(tensors, header)
        except UsageError as error:
            raise UsageError(f"data: {path}: {error}") from error

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Self:
        try:
            about = json.loads(header["upslope"])
            version, observation, action = about["format_version"], about.pop("observation_space"), about.pop("action_space")
        except (KeyError, TypeError, ValueError):
            message = "it is no data set, for its header has no 'upslope' with version and spaces; `upslope record` writes one"
            raise UsageError(message) from None
        if not isinstance(version, int) or version > DATASET_VERSION:
            raise UsageError(f"written by a newer upslope (format {version}, this one reads up to {DATASET_VERSION}); upgrade upslope")
        names = {"observation_space": space_from_json(observation), "action_space": space_from_json(action)}
        return cls(tensors=tensors, head=about.pop("head", None), scaled=about.pop("scaled", False) is True, about=about, **names)

    def save(self, path: str | Path) -> None:
        """Write the file under a temporary name and rename it; raises :class:`RunFault` where that fails."""
        from safetensors.torch import save

        path = Path(path)
        described = {"observation_space": space_to_json(self.observation_space), "action_space": space_to_json(self.action_space)}
        header = {**self.about, "format_version": DATASET_VERSION, **described, "head": self.head, "scaled": self.scaled}
        write_bytes(path, save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, {"upslope": json.dumps(header)}))

    @cached_property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.tensors["reward"].shape
        return rows, columns

    @property
    def num_steps(self) -> int:
        """Real decisions."""
        return int(self.tensors["mask"].sum())

    def episodes(self) -> tuple[int, float | None]:
        """How many episodes are in it from start to end, and their mean undiscounted return."""
        x = self.tensors
        returns = F.episode_returns(x["reward"].double(), x["terminated"], x["truncated"], 1.0, x["mask"])
        ended = (x["terminated"] | x["truncated"]) & x["mask"]
        first = (ended.long().cumsum(1) == 1) & ended & (x["first_step"] > 0).unsqueeze(1)  # those began before the recording
        found = returns[ended & ~first]
        return len(found), float(found.mean()) if len(found) else None

    def tree(self, name: str, rows: Tensor | None = None) -> Any:
        """``observation`` or ``successor`` (some rows of it) as a batch of the environment's, rows and columns along one axis."""
        some, last = slice(None) if rows is None else rows, AXES[name] - 1
        return trees.from_leaves(self.observation_space, lambda path: self.tensors[name + path][some].flatten(0, last).numpy())


# -------------------------------------------------------------------------------------------------------------- checks


def check_dataset(data: Dataset) -> None:
    tensors, paths = data.tensors, [path for path, _ in trees.leaf_spaces(data.observation_space)]
    needed = [*(f"observation{path}" for path in paths), "action", "behavior_log_prob", "reward", "terminated", "truncated"]
    if any(name.startswith("successor") for name in tensors):
        needed += [*(f"successor{path}" for path in paths), "successor_at"]
    if missing := [name for name in needed if name not in tensors]:
        raise UsageError(f"fields are missing: {', '.join(missing)}")
    check_columns(data)
    require(bool(tensors["mask"].any()), "mask: every step is masked, so there is nothing to learn from")
    check_numbers(data)
    try:
        F.check_masked_rows(*(tensors[name] for name in ("reward", "terminated", "truncated", "mask")))
        for name in ("observation", *(("successor",) if "successor_at" in tensors else ())):
            tree, count = data.tree(name), math.prod(tensors[f"{name}{paths[0]}"].shape[: AXES[name]])
            trees.as_arrays(tree, data.observation_space, count)
    except ValueError as error:
        raise UsageError(str(error).replace("in environment", "in row")) from error


def check_columns(data: Dataset) -> None:
    tensors = data.tensors
    lead = tuple(tensors["reward"].shape)
    require(len(lead) == 2, f"reward: expected shape [rows, steps], found {list(lead)}")
    rows, columns = lead
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(STEPS, lead)
    expected |= {"first_step": (rows,), "action": (*lead, *head_for(data.action_space).stored_shape)}
    count = len(tensors["successor_at"]) if "successor_at" in tensors else 0
    for path, space in trees.leaf_spaces(data.observation_space):
        expected[f"observation{path}"] = (rows, columns + 1, *(space.shape or ()))
        if count:
            expected[f"successor{path}"] = (count, *(space.shape or ()))
    expected |= {"successor_at": (count, 2)} if "successor_at" in tensors else {}
    if "action_mask" in tensors:
        expected["action_mask"] = (rows, columns + 1, ActionMasks(data.action_space, rows).num_choices)
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise UsageError(f"{name}: expected shape {list(shape)}, found {list(tensors[name].shape)} (rewards are {list(lead)})")
    for name in ("terminated", "truncated", "mask", "action_mask"):
        if name in tensors and tensors[name].dtype is not torch.bool:
            raise UsageError(f"{name}: expected dtype bool, found {str(tensors[name].dtype).removeprefix('torch.')}")


def check_numbers(data: Dataset) -> None:
    """No number is NaN or infinite, and every action is one that the behavior policy can have taken."""
    tensors, mask = data.tensors, data.tensors["mask"]
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        wrong = ~tensor.isfinite()
        if tensor.shape[:2] == mask.shape:
            wrong &= mask.reshape(*mask.shape, *[1] * (tensor.dim() - 2))
        if bool(wrong.any()):
            where = tuple(int(i) for i in wrong.nonzero()[0])
            hint = "; an action that was taken has a probability above 0" if name == "behavior_log_prob" else ""
            raise UsageError(f"{name}: expected finite numbers, found {float(tensor[where])} at index {list(where)}{hint}")
    if tensors["first_step"].is_floating_point() or bool((tensors["first_step"] < 0).any()):
        raise UsageError("first_step: expected integers ≥ 0, the steps that each row's first episode had behind it")
    if not isinstance(data.action_space, spaces.Box):
        largest = float(tensors["behavior_log_prob"][mask].max())
        require(not largest > 1e-4, f"behavior_log_prob: expected logarithms of probabilities, at most 0, found {largest:g}")
        check_actions(data)
    if "successor_at" in tensors:
        at, limit = tensors["successor_at"], torch.tensor(mask.shape)
        if at.is_floating_point() or bool(((at < 0) | (at >= limit)).any()):
            raise UsageError(f"successor_at: expected rows and columns within {list(mask.shape)}")
        ended = (tensors["terminated"] | tensors["truncated"])[tuple(at.long().T)]
        if not bool(ended.all()):
            raise UsageError(f"successor_at: no episode ended at row and column {list(map(int, at[~ended][0]))}")


def check_after_ends(data: Dataset, *, masked: bool) -> None:
    """The column after an end is a reset step, or the end's successor is kept; ``masked``: whether the recording itself said which."""
    x = data.tensors
    followed = (x["terminated"] | x["truncated"])[:, :-1] & x["mask"][:, 1:]
    if "successor_at" in x:
        row, column = x["successor_at"][x["successor_at"][:, 1] < followed.shape[1]].long().T
        followed[row, column] = False
    wrong = followed & x["truncated"][:, :-1] if masked else followed
    if bool(wrong.any()):
        row, column = map(int, wrong.nonzero()[0])
        where = f"the end at row {row}, column {column} is not in successor_at"
        if masked:
            raise UsageError(f"successor_at: {where}, so what the truncated step led to is missing")
        raise UsageError(f"mask: it is missing and {where}, so column {column + 1} may be a reset step; give mask, False at reset steps")


def check_actions(data: Dataset) -> None:
    """Discrete actions are counted from 0, within their space, and legal where there is a mask."""
    action, space = data.tensors["action"], data.action_space
    require(not action.is_floating_point(), f"action: expected integers for {space}, found {str(action.dtype).removeprefix('torch.')}")
    count: Any = space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", 2)
    wrong = (action < 0) | (action >= torch.as_tensor(np.asarray(count).reshape(-1) if action.dim() > 2 else count))
    wrong &= data.tensors["mask"].reshape(*data.shape, *[1] * (action.dim() - 2))
    if bool(wrong.any()):
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise UsageError(f"action: {int(action[where])} at index {list(where)} is outside {space}, counted from 0")
    if "action_mask" in data.tensors:
        choices = torch.as_tensor(np.asarray(count).reshape(-1))
        place = action.reshape(*data.shape, -1) * data.tensors["mask"].unsqueeze(-1) + choices.cumsum(0) - choices
        illegal = data.tensors["mask"] & ~data.tensors["action_mask"][:, :-1].gather(-1, place).all(-1)
        if bool(illegal.any()):
            row, column = map(int, illegal.nonzero()[0])
            raise UsageError(f"action: the one at row {row}, column {column} is not legal by its action_mask")
