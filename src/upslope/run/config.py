"""One run from its settings to a run folder, in any world: what ``upslope train`` does, as a frozen dataclass.

>>> run = RunConfig.of("ppo", "CartPole-v1", until_return=475).run()   # doctest: +SKIP
>>> run.summary["return_mean"], run.policy.act(observation)            # doctest: +SKIP
>>> RunConfig.of("grpo", model="tiny", task="addition").run()          # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from upslope.errors import UsageError, require
from upslope.run.control_settings import EnvSettings, PolicySettings, RunSettings
from upslope.run.folder import Output
from upslope.run.language_settings import LanguageRunSettings, ModelSettings, TaskSettings
from upslope.run.load import Run, check_format, named_environment, read_json
from upslope.run.methods import Needs, algorithm_named, check_method, family_of, made, name_of, relative, start_of
from upslope.run.settings import check_imports_nothing, check_kinds, check_names, flat_config, plain_value, replaced, settings_of, to_json

if TYPE_CHECKING:
    from upslope.run.loggers import GivenLogger
    from upslope.run.session import Session
    from upslope.run.train import Callback
    from upslope.run.world import World


@dataclass(frozen=True)
class WorldParts:
    """A world's dataclasses of settings besides the algorithm's and the collector's, and the class that brings it to life."""

    policy: type
    problem: type
    settings: type
    problem_key: str
    path: str  # module:Class, which loads the world's packages, so it is imported when it is first needed

    @property
    def alive(self) -> type[World[Any]]:
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


WORLDS = {
    "control": WorldParts(PolicySettings, EnvSettings, RunSettings, "env", "upslope.run.control:Control"),
    "language": WorldParts(ModelSettings, TaskSettings, LanguageRunSettings, "task", "upslope.run.language:Language"),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result; :meth:`run` carries it out.

    What is left out is what the method and its world start from. An environment's id says which world it is, unless ``world`` does.
    """

    algorithm: Any
    env_id: str | None = None
    collector: Any = None
    policy: Any = None
    problem: Any = None
    """the environment's settings, or the task's"""
    settings: Any = None
    name: str = ""
    """the method's name on the command line, or ``module:Class``"""
    world: str = ""

    def __post_init__(self) -> None:
        world = self.world or ("language" if self.env_id is None else "control")
        name = self.name or name_of(self.algorithm)
        check_method(self.algorithm, name)
        parts = WORLDS[world]
        filled: dict[str, Any] = {"world": world, "name": name, "settings": self.settings or parts.settings()}
        filled |= {"policy": self.policy or parts.policy(), "problem": self.problem or parts.problem()}
        filled["collector"] = self.collector or start_of(name, self.algorithm, world).collector
        for key, value in filled.items():
            object.__setattr__(self, key, value)

    @classmethod
    def of(cls, algorithm: Any, env_id: str | None = None, **settings: Any) -> Self:
        """A method on a task: defaults, then the task's preset, then ``settings`` by their flat names.

        Args:
            algorithm: a shipped one by name, a user's as ``module:Class``, a class; an algorithm is taken as it is.
            env_id: the environment; without one a language model is trained.

        Raises:
            UsageError: an unknown algorithm or setting (with the nearest name), or a value that is not allowed.
        """
        world = "language" if env_id is None else "control"
        config = cls.started(algorithm, world, env_id)
        preset = WORLDS[world].alive.preset(config, settings) | relative(config.name)
        if not isinstance(algorithm, str | type):
            preset = {name: value for name, value in preset.items() if name not in settings_of(algorithm)}
        return config.replaced_where_known(preset).replaced(settings)

    @classmethod
    def started(cls, algorithm: Any, world: str, env_id: str | None = None) -> Self:
        """A method with what it starts from in a world, before any preset."""
        named = isinstance(algorithm, str)
        found = algorithm_named(algorithm, world) if named else made(algorithm, getattr(algorithm, "__name__", type(algorithm).__name__))
        config = cls(algorithm=found, env_id=env_id, name=algorithm if named else "", world=world)
        if not isinstance(algorithm, str | type):  # it is taken as it is
            return config
        return config.replaced_where_known(start_of(config.name, config.algorithm, world).settings)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, algorithm: Any = None, env_id: str | None = None, **settings: Any) -> Self:
        """The run that a ``config.json`` records, with ``settings`` changed.

        Raises:
            UsageError: the file names a ``module:name`` that ``algorithm``, ``env_id`` or ``settings`` do not name again.
        """
        world, name = config["world"], config["algorithm"]["name"]
        if algorithm is None and ":" in name:
            why = "a module is never imported because a file says so"
            raise UsageError(
                f"algorithm: the configuration names {name}, and {why}; say --algorithm {name} (in Python algorithm={name!r}) to import it"
            )
        if world == "control":
            env_id = named_environment(config["env_id"], env_id, "env_id=")
        left = {key: value for key, value in recorded_settings(config).items() if key not in settings}
        check_imports_nothing(left, "the configuration", WORLDS[world].alive.imports)
        started = cls.started(algorithm or name, world, env_id)
        check_kinds(left, settings_of(*started.parts()))
        return started.replaced(left).replaced(settings)

    @property
    def family(self) -> str:
        """The shipped method whose presets are started from; the method's name where there is none."""
        return family_of(self.algorithm) or self.name

    @property
    def needs(self) -> Needs:
        """What the algorithm asks of the run."""
        return Needs.of(self.algorithm)

    def parts(self) -> tuple[Any, ...]:
        """The dataclasses whose fields are the settings."""
        return self.algorithm, self.collector, self.policy, self.problem, self.settings

    def replaced(self, values: Mapping[str, Any]) -> Self:
        """A copy with settings changed by their flat names; functions may be given by name, tuples as lists."""
        known = settings_of(*self.parts())
        check_names(values, known)
        if values.get("features") in ("network", "linear"):  # which know no limits: those of the preset go
            values = {"feature_low": None, "feature_high": None, **values}
        clean = {name: plain_value(value, known[name].owner, name) for name, value in values.items()}
        try:
            algorithm, collector, policy, problem, settings = (replaced(part, clean) for part in self.parts())
        except TypeError as error:  # a check compared a text with a number
            raise UsageError(f"settings: a value of {', '.join(clean)} has the wrong type ({error})") from error
        return replace(self, algorithm=algorithm, collector=collector, policy=policy, problem=problem, settings=settings)

    def replaced_where_known(self, values: Mapping[str, Any]) -> Self:
        """The same with those of the values that are settings of this run."""
        known = settings_of(*self.parts())
        return self.replaced({name: value for name, value in values.items() if name in known})

    def config(self) -> dict[str, Any]:
        """Everything as JSON values, for ``config.json``."""
        config: dict[str, Any] = {"world": self.world, **({} if self.env_id is None else {"env_id": self.env_id})}
        config["algorithm"] = {"name": self.name, **to_json(self.algorithm)}
        config |= {"needs": to_json(self.needs)} if ":" in self.name else {}  # what cannot be asked without importing it
        config |= {"collector": to_json(self.collector), "policy": to_json(self.policy)}
        return config | {WORLDS[self.world].problem_key: to_json(self.problem), "settings": to_json(self.settings)}

    def settled(self) -> Self:
        """As it is recorded: with what follows from other settings where it was left open."""
        return cast(Self, WORLDS[self.world].alive.settled(self))

    def prepare(self, stopped: Path | None = None) -> World[Any]:
        """The living parts of the run, of one that goes on with the folder ``stopped``.

        Raises:
            UsageError: whatever cannot work before the first step.
        """
        return WORLDS[self.world].alive.prepare(self, stopped)

    def session(
        self,
        output: Output | None = None,
        callbacks: Callback | Iterable[Callback] = (),
        loggers: Iterable[GivenLogger] = (),
        *,
        resumed: str | Path | None = None,
    ) -> Session:
        """The run in progress (:class:`~upslope.run.session.Session`), not begun; or the stopped one in the folder ``resumed``.

        That one goes on from its newest checkpoint as if nothing had happened.

        Raises:
            UsageError: the stopped run left no checkpoint, none that is whole, or has made all of its steps.
        """
        from upslope.run.session import Session  # loads PyTorch, which no help page needs

        return Session(self, output or Output(), callbacks, loggers, resumed)

    def run(
        self, output: Output | None = None, *, callbacks: Callback | Iterable[Callback] = (), loggers: Iterable[GivenLogger] = ()
    ) -> Run:
        """Train, evaluate, write the run folder; returns it loaded.

        Args:
            output: where the folder is, and what is printed.
            callbacks: one or several, called after each iteration with the run's state; a true answer ends the run. What one with
                ``state_dict()`` and ``load_state_dict()`` remembers is in the checkpoints; loggers likewise.
            loggers: each is called with the row of each iteration and closed at the end; a class is made with ``(folder, config)``.

        Raises:
            UsageError: before anything was written.
            RunFault: while running; the folder holds everything up to the last iteration.
        """
        return self.session(output, callbacks, loggers).run()


# ------------------------------------------------------------------------------------------------------------- configs


def recorded_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat settings of a run's ``config.json``; one written before a choice was there chose what was then done."""
    policy = config.get("policy")
    before = {"scale_actions": False, "image": "bytes"} if isinstance(policy, Mapping) and config.get("world") == "control" else {}
    return before | flat_config(config)


def read_config(path: Path) -> dict[str, Any]:
    """Flat settings from a JSON file: a run's ``config.json``, the folder that holds one, or an object of settings."""
    file = path / "config.json" if path.is_dir() else path
    require(file.exists(), f"config: there is no file {file}")
    config = read_json(file)
    if "format_version" in config:
        check_format(file, config)
    return recorded_settings(config)
