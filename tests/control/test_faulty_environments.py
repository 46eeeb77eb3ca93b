"""A zoo of environments with one fault each: in this process and in another, what is wrong is said in the same one line."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope import RunFault, UsageError, control

BYTES = spaces.Box(0, 255, (2,), np.uint8)
DICT = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,)))


class Odd(gymnasium.Env):
    """Zeros, reward 1, five steps; keywords exchange what it is and what it answers."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space: Any = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, **changes: Any) -> None:
        self.changes, self.time = changes, 0
        for name in ("observation_space", "action_space", "metadata"):
            if name in changes:
                setattr(self, name, changes[name])

    def part(self, name: str, usual: Any) -> Any:
        found = self.changes.get(name, usual)
        if isinstance(found, BaseException):
            raise found
        return found

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        first = self.part("first", self.part("observation", np.zeros(3, np.float32)))
        return self.part("reset", (first, self.part("first_info", {})))

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.part(
            "step",
            (
                self.part("observation", np.zeros(3, np.float32)),
                self.part("reward", 1.0),
                self.part("terminated", self.time == 5),
                self.part("truncated", False),
                self.part("info", {}),
            ),
        )


GYM = "observation, reward, terminated, truncated, info"
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"observation_space": None}, "env 'Odd': its observation_space is None, expected a space of gymnasium.spaces"),
    ({"action_space": 4}, "env 'Odd': its action_space is 4, expected a space of gymnasium.spaces"),
    ({"metadata": None}, "env 'Odd': its metadata is None, expected a dict"),
    ({"reset": None}, ", reset: it returned None, expected (observation, info)"),
    ({"reset": np.zeros(3)}, ", reset: it returned ndarray of shape (3,) and dtype float64 (the old Gym's interface), expected"),
    ({"reset": (1, {}, 2)}, ", reset: it returned a tuple of 3, expected (observation, info)"),
    ({"reset": KeyError("map")}, " raised KeyError in reset: 'map' (test_faulty_environments.py, line"),
    ({"first_info": None}, ", reset: info is None (NoneType), expected a dict"),
    ({"step": None}, f", step: it returned None, expected ({GYM})"),
    ({"step": (0, 1.0, False, {})}, f", step: it returned 4 values (the old Gym's interface), expected 5: {GYM}"),
    ({"step": (0, 1.0, False, False, {}, 1)}, f", step: it returned 6 values, expected 5: {GYM}"),
    ({"step": StopIteration()}, " raised StopIteration in step: no message"),
    ({"step": MemoryError("full")}, " raised MemoryError in step: full"),
    ({"step": SystemExit(3)}, " raised SystemExit in step: 3"),
    ({"step": ValueError("not enough values to unpack (expected 5, got 4)")}, f"; step returns {GYM}, and reset (observation, info)"),
    ({"reward": "much"}, ", step: reward is 'much' (str), expected a number"),
    ({"reward": None}, ", step: reward is None (NoneType), expected a number"),
    ({"reward": {"win": 1}}, ", step: reward is {'win': 1} (dict), expected a number"),
    ({"reward": 1j}, ", step: reward is 1j (complex), expected a number"),
    ({"reward": [1.0]}, ", step: reward is an array of shape (1,), expected a number; return float(reward.item())"),
    ({"reward": np.ones((2, 1))}, ", step: reward is an array of shape (2, 1), expected a number"),
    ({"reward": np.nan}, ", step: reward is not finite: nan in environment 0"),
    ({"terminated": None}, ", step: terminated is None (NoneType), expected True or False"),
    ({"terminated": 2}, ", step: terminated is 2 (int), expected True or False"),
    ({"truncated": "no"}, ", step: truncated is 'no' (str), expected True or False"),
    ({"truncated": np.array([False])}, ", step: truncated is array([False]) (ndarray), expected True or False"),
    ({"info": []}, ", step: info is [] (list), expected a dict"),
    ({"observation": np.zeros(2, np.float32)}, ", reset: observation has shape (2,), observation_space says (3,)"),
    ({"observation": np.array(["a", "b", "c"])}, ", reset: observation has dtype <U1, observation_space says float32"),
    ({"observation": np.full(3, np.inf, np.float32)}, ", reset: observation is not finite: inf in environment 0, index [0]"),
    ({"observation_space": DICT, "observation": {"a": 1}}, ", reset: observation should be a dict with the keys ['a', 'b'], found a"),
    ({"observation_space": DICT, "observation": 1}, ", reset: observation should be a dict with the keys ['a', 'b'], found"),
    (
        {"observation_space": DICT, "observation": {"a": 1, "b": np.zeros(2, np.float32), "c": 3}},
        ", reset: observation should be a dict with the keys ['a', 'b'], found a dict with the keys ['a', 'b', 'c']",
    ),
    ({"observation_space": spaces.Discrete(4), "observation": 1.5}, ", reset: observation has dtype float64, observation_space says int64"),
    ({"observation_space": spaces.MultiBinary(2), "observation": np.int8([0, 7])}, ", reset: observation is outside MultiBinary(2): 7"),
    ({"observation_space": BYTES, "observation": np.array([-1, 300])}, ", reset: observation has dtype int64, observation_space says"),
]  # fmt: skip


@pytest.mark.parametrize("changes, message", FAULTS, ids=[f"{number} {next(iter(c))}" for number, (c, _) in enumerate(FAULTS)])
def test_every_fault_is_the_same_line_here_and_in_another_process(changes: dict[str, Any], message: str):
    said: list[str] = []
    for vectorization in ("sync", "async"):
        with (
            pytest.raises((RunFault, UsageError)) as caught,
            control.make(Odd, 2, vectorization=vectorization, env_kwargs=changes) as envs,  # pyright: ignore[reportArgumentType]
        ):
            envs.reset()
            envs.step(np.zeros(2, np.int64))
        said.append(str(caught.value))
    for line in said:
        assert message in line and "\n" not in line and line.startswith(("environment 'Odd'", "env 'Odd'"))
    assert said[0].split(" in environment")[0] == said[1].split(" in environment")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": np.float32(1)},
        {"reward": np.array(1.0)},
        {"reward": True},
        {"terminated": np.bool_(False), "truncated": 0},
        {"observation": [0.0, 0.0, 0.0]},
        {"observation": np.zeros(3)},
        {"step": [np.zeros(3, np.float32), 1, False, False, {}]},
        {"info": {"anything": print, 3: object()}},
    ],
    ids=" ".join,
)
def test_what_can_be_meant_is_taken(changes: dict[str, Any]):
    for vectorization in ("sync", "async"):
        with control.make(Odd, 2, vectorization=vectorization, env_kwargs=changes) as envs:  # pyright: ignore[reportArgumentType]
            envs.reset()
            step = envs.step(np.zeros(2, np.int64))
        assert step.reward.tolist() == [1, 1] and not step.terminated.any()


class Careless(Odd):
    """It changes PyTorch for the whole process ``where`` it is called."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.change("constructor")

    def change(self, where: str) -> None:
        if where == self.where:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)

    def reset(self, **options: Any) -> Any:
        self.change("reset")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.change("step")
        return super().step(action)


@pytest.mark.parametrize("where", ["constructor", "reset", "step"])
def test_what_an_environment_changes_of_pytorch_is_changed_back(where: str):
    try:
        with control.make(lambda: Careless(where), 2, vectorization="sync") as envs:
            envs.reset()
            envs.step(np.zeros(2, np.int64))
            assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
