"""Reading a run folder back: ``Run.load(dir)`` gives its settings, its numbers and its policy.

Nothing in a run folder is ever executed: JSON and safetensors only, and an environment or function recorded as
``module:name`` is not imported unless the caller names it again.
"""

import contextlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import upslope
from upslope.errors import UsageError, require
from upslope.files import survivor
from upslope.run.folder import FORMAT_VERSION
from upslope.run.methods import METHODS, Needs
from upslope.run.saving import progress_line

PROGRESS = "progress.json"
"""In the folder of a language model, how far it is; in the control world this stands in the header of the weights."""


MAX_JSON_BYTES, MAX_ROWS_BYTES, MAX_HEADER_BYTES = 1 << 26, 1 << 31, 1 << 24
"""What a file of settings, one of rows, and the header of tensors have at most."""


class NoCheckpoint(UsageError):
    """A run that was stopped before its first checkpoint."""


class AtItsEnd(UsageError):
    """A run that has made all of its steps, or reached its goal."""


@dataclass(frozen=True)
class Run:
    """A run folder on disk: ``config``, ``summary`` (None while it is still running or was killed), ``policy``."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a run folder; raises :class:`UsageError` where it is none, is damaged or comes from a newer version."""
        folder = Path(path)
        require(bool(str(path)), "run folder: expected a path, found ''")
        require(folder.exists(), f"run folder {folder}: there is no such folder")
        require(folder.is_dir(), f"run folder {folder}: this is a file; name the folder that holds config.json")
        config, summary = folder / "config.json", folder / "summary.json"
        require(config.exists(), f"run folder {folder}: it has no config.json, so it is not the folder of a run")
        found = read_json(config, versioned=True)
        check_config(config, found)
        return cls(folder, found, read_json(summary, versioned=True) if summary.exists() else None)

    @property
    def algorithm(self) -> str:
        """The algorithm's name, as on the command line."""
        return str(self.config["algorithm"]["name"])

    @property
    def needs(self) -> Needs:
        """What the algorithm asks of a run; of a user's class, which is not imported, what was recorded of it."""
        if self.algorithm in METHODS:
            return Needs.of(METHODS[self.algorithm].load())
        recorded: Any = self.config.get("needs")
        found = cast("dict[str, Any]", recorded) if isinstance(recorded, dict) else {}
        return Needs(**{item.name: found[item.name] for item in fields(Needs) if item.name in found})

    @property
    def world(self) -> str:
        """``control`` or ``language``."""
        return str(self.config["world"])

    @property
    def env_id(self) -> str:
        """The environment's id, as on the command line; in the language world the task."""
        return str(self.config["env_id"] if self.world == "control" else self.config["task"].get("task") or "recorded texts")

    def environment(self, given: str | None = None) -> str:
        """The environment's name; one that imports a module must be named by the caller, never by a file."""
        return named_environment(self.env_id, given, "--env ")

    @property
    def num_envs(self) -> int:
        """Environments that training played side by side."""
        collector = self.config["collector"]
        found = collector.get("num_envs", collector.get("group_size", 1) * collector.get("num_groups", 1))
        return found if isinstance(found, int) and found >= 1 else 1

    def env_options(self, name: str, env_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the environment was made with, where ``name`` is the run's, and what of ``env_kwargs`` is to be otherwise."""
        made: dict[str, Any] = self.config["env"] if name == self.env_id else {}
        return {"env_kwargs": {**made.get("env_kwargs", {}), **(env_kwargs or {})}, "max_episode_steps": made.get("max_episode_steps")}

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per iteration; a last line that was cut off while being written is left out."""
        path = self.path / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        text = read_text(path, MAX_ROWS_BYTES) if path.exists() else ""
        lines = text.split("\n") if text else []  # a complete file ends with a newline, so the last piece is empty
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                raise damaged(path, f"line {number} is not JSON") from error
            if not isinstance(row, dict):
                raise damaged(path, f"line {number} is not an object")
            rows.append(cast("dict[str, Any]", row))
            for name, value in rows[-1].items():
                if not isinstance(value, int | float | None):
                    raise damaged(path, f"line {number}: {name!r} is no number")
        return rows

    @cached_property
    def policy(self) -> Any:
        """The final policy, ready to act: ``run.policy.act(observation, greedy=True) -> (action, state)``."""
        return self._load_policy("policy")

    @cached_property
    def best_policy(self) -> Any:
        """The policy of the best evaluation, the final one included."""
        if not (self.path / "best_policy.safetensors").exists() and not survivor(self.path / "best_policy").is_dir():
            raise UsageError(f"run folder {self.path}: it has no best policy, for nothing was evaluated on the way; take the final one")
        return self._load_policy("best_policy")

    def chosen_policy(self, which: str) -> Any:
        """``final`` or ``best``."""
        return self.best_policy if stem(which) == "best_policy" else self.policy

    def progress(self, which: str = "final") -> dict[str, int] | None:
        """How far the saved policy is: ``iteration``, ``total_steps``, ``planned_steps`` or ``planned_iterations``; None if not known."""
        numbers = {key: value for key, value in self.written_with(which).items() if isinstance(value, int) and value >= 0}
        return numbers if {"iteration", "total_steps"} <= numbers.keys() else None

    @property
    def earlier_budgets(self) -> list[tuple[int, int]]:
        """Budgets that it had before the present one, each with the last iteration that it was for."""
        try:
            return [(int(last), int(budget)) for last, budget in self.config.get("earlier_budgets", [])]
        except (TypeError, ValueError) as error:
            raise damaged(self.path / "config.json", "'earlier_budgets' is no list of pairs of numbers") from error

    def written_with(self, which: str) -> dict[str, Any]:
        """What stands with a saved policy: how far it is, with the best one its evaluation."""
        if self.world == "control":
            return read_header(self.path / f"{stem(which)}.safetensors")
        path = survivor(self.path / stem(which)) / PROGRESS
        return read_json(path) if path.exists() else {}

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary is not None and self.summary.get("status") == "finished"

    def caution(self, which: str = "final") -> str:
        """What to know of a policy that is not the end of its run: ``policy after 12,288 of 100,000 steps (…)``; else ''."""
        progress = None if self.finished else self.progress(which)
        return "" if progress is None else self._progress_line(progress)

    def policy_words(self, which: str) -> str:
        """``final policy after 100,096 of 100,000 steps``; how the run ended, where it did not come to its end."""
        progress = self.progress(which)
        return f"{which} {'policy' if progress is None else self._progress_line(progress)}"

    def _progress_line(self, progress: dict[str, int]) -> str:
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(UsageError):  # the policy is well, whatever the rows are
            rows = self.metrics() if self.summary is None else []
        return progress_line(progress, self.summary, rows[-1] if rows else {})

    def _load_policy(self, name: str) -> Any:
        """What ``policy.json`` describes, with ``<name>.safetensors``, or the Transformers folder ``<name>``; not trained any more."""
        if self.world == "language":
            folder = survivor(self.path / name)
            for path in (folder, *folder.rglob("*")):
                check_inside(path, self.path)
            return language_policy(folder, self.config["policy"])
        path, weights = self.path / "policy.json", self.path / f"{name}.safetensors"
        description = read_json(path, versioned=True)
        require(weights.exists(), f"run folder {self.path}: it has no {weights.name}")
        check_inside(weights)
        check_network(path, description, weights.stat().st_size)
        from upslope.control.policy import policy_from_description  # loads Gymnasium

        del description["format_version"]
        try:
            policy = policy_from_description(description)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # UsageError is a ValueError
            raise damaged(path, f"it does not describe a policy ({error})") from error
        described = sum(tensor.numel() * tensor.element_size() for tensor in policy.state_dict().values())
        check_file_size(weights, 2 * described + MAX_HEADER_BYTES)  # tensors of another policy are named by load_state
        load_state(policy, read_safetensors(weights), weights)
        return policy.eval().requires_grad_(False)


def check_network(path: Path, description: dict[str, Any], size: int) -> None:
    """Refuse a network that is larger than the file of its weights, before memory is taken for it."""
    widths = description.get("hidden_sizes")
    if isinstance(widths, list) and all(type(width) is int for width in cast("list[Any]", widths)):
        described = 4 * sum(a * b for a, b in itertools.pairwise(cast("list[int]", widths)))
        if described > max(size, MAX_HEADER_BYTES):  # what is small is read, and named better
            raise damaged(path, f"it describes a network of {described:,} bytes or more, and its weights have {size:,}")


def language_policy(folder: Path, recorded: dict[str, Any]) -> Any:
    """A Transformers folder as a policy that is not trained any more, with the ``recorded`` temperature and precision of passes."""
    import torch

    has_head = (folder / "value_head.safetensors").exists()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(str(recorded.get("compute_dtype")))
    temperature = float(recorded.get("temperature", 1.0))
    policy = upslope.language.LanguagePolicy.from_pretrained(folder, temperature=temperature, value_head=has_head, compute_dtype=dtype)
    return policy.requires_grad_(False)


def stem(which: str) -> str:
    """The name of a policy's files: of the ``final`` one or the ``best``."""
    require(which in ("final", "best"), f"policy: expected 'final' or 'best', found {which!r}")
    return "best_policy" if which == "best" else "policy"


def is_model_folder(path: str | Path) -> bool:
    """Whether this is the folder of a Transformers model (a run's ``policy`` for one), not that of a run."""
    file = Path(path) / "config.json"
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        check_file_size(file, MAX_JSON_BYTES)
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(file, error) from error
    except UsageError:
        raise
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "model_type" in config and "world" not in config


IMPORTING = ("GymV21Environment", "GymV26Environment")
"""Registered environments that import the module which their keywords name."""


def named_environment(recorded: str, given: str | None, how: str) -> str:
    """The environment that the caller named, else the one that a file names, unless it imports a module."""
    if given is not None:
        return given
    if ":" in recorded or recorded.startswith(IMPORTING):
        raise UsageError(f"env: this run's environment is {recorded}; to import that module, say {how}{recorded}")
    return recorded


def load_state(policy: Any, state: dict[str, Any], path: Path) -> None:
    """Copy a state into a policy; raises :class:`UsageError` that names the first tensor which does not fit."""
    expected = policy.state_dict()
    for key in sorted(expected.keys() | state.keys()):
        found, wanted = ("nothing" if t is None else f"shape {list(t.shape)}" for t in (state.get(key), expected.get(key)))
        require(found == wanted, f"{path}: {key}: expected {wanted}, found {found}; it belongs to another policy")
        if state[key].is_floating_point() and not bool(state[key].isfinite().all()):
            raise damaged(path, f"{key} holds a number that is not finite")
    policy.load_state_dict(state)


def check_inside(path: Path, folder: Path | None = None) -> None:
    """Refuse what is no plain file of its folder: a link that leads out of it, a pipe that nobody writes into."""
    if not path.resolve().is_relative_to((folder or path.parent).resolve()):
        raise UsageError(f"{path}: this is a link that leads out of the folder, which is not followed; put the file itself there")
    if path.exists() and not (path.is_file() or (folder is not None and path.is_dir())):
        raise damaged(path, "not a file")


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file; raises :class:`UsageError` where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    require(path.exists(), f"run folder {path.parent}: it has no {path.name}")
    check_inside(path)
    try:
        return load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_header(path: Path) -> dict[str, Any]:
    """The JSON object under ``upslope`` in the header of a safetensors file; empty where there is none."""
    from safetensors import SafetensorError, safe_open

    check_inside(path)
    try:
        opened: Any = safe_open(path, framework="np")
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            found: Any = json.loads(metadata.get("upslope", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def check_file_size(path: Path, most: int) -> None:
    """Refuse a file that is larger than what it should hold, before memory is taken for it."""
    if path.exists() and (size := path.stat().st_size) > most:
        raise damaged(path, f"it has {size:,} bytes, expected at most {most:,}")


def read_text(path: Path, most: int = MAX_JSON_BYTES) -> str:
    """The text in a file of at most so many bytes; raises :class:`UsageError` that names the file."""
    try:
        check_inside(path)
        check_file_size(path, most)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"run folder {path.parent}: it has no {path.name}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: Path, *, versioned: bool = False) -> dict[str, Any]:
    """The JSON object in a file; raises :class:`UsageError` that names the file, also for a version that is missing or not known here."""
    text = read_text(path)
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise damaged(path, f"not JSON (line {error.lineno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise damaged(path, "not a JSON object")
    content = cast("dict[str, Any]", value)
    if versioned:
        check_format(path, content)
    return content


def check_config(path: Path, config: dict[str, Any]) -> None:
    """What everybody relies on: a name, an environment, and settings as objects."""
    algorithm, world = config.get("algorithm"), config.get("world")
    for name in ("algorithm", "task" if world == "language" else "env_id", "settings"):
        if name not in config:
            raise damaged(path, f"{name!r} is missing")
    if not isinstance(algorithm, dict) or not isinstance(cast("dict[str, Any]", algorithm).get("name"), str):
        raise damaged(path, "'algorithm' is not an object with a name")
    if world not in ("control", "language"):
        raise damaged(path, f"'world' is {world!r}, expected 'control' or 'language'")
    for name in ("collector", "policy", "env" if world == "control" else "task", "settings"):
        if not isinstance(config.get(name), dict):
            raise damaged(path, f"{name!r} is not an object")
    if world == "control" and not (isinstance(config["env_id"], str) and config["env_id"]):
        raise damaged(path, "'env_id' is not the name of an environment")
    if world == "control" and not isinstance(config["env"].get("env_kwargs"), dict):
        raise damaged(path, "'env_kwargs' is not an object")


def check_format(path: Path, content: dict[str, Any]) -> None:
    """Refuse what a newer version wrote, and what carries no version at all."""
    version = content.get("format_version")
    if not isinstance(version, int):
        raise damaged(path, "'format_version' is missing")
    if version > FORMAT_VERSION:
        raise UsageError(f"{path}: written by a newer upslope (format {version}, this one reads up to {FORMAT_VERSION}); upgrade upslope")


def unreadable(path: Path, error: OSError) -> UsageError:
    """A file that may be whole and that the system does not let us read."""
    return UsageError(f"{path} cannot be read: {error.strerror or error}")


def damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged: {' '.join(why.split())}")
