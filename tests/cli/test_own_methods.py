"""Algorithms, loggers and callbacks of the user's own in runs with a folder: trained, recorded, made again where they are named again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SHORT, Command, good
from tests.cli.test_bad_input import one_line
from tests.cli.test_resume import bad
from upslope import PPO, Run, RunConfig, UsageError
from upslope.cli.flags import flags_of
from upslope.cli.resume import FUNCTIONS
from upslope.run.control_settings import EpisodesSettings, GroupedEpisodesSettings, StepsSettings
from upslope.run.folder import Output
from upslope.run.language_settings import RecordedSettings
from upslope.run.methods import METHODS, Needs, family_of, methods_in, name_of
from upslope.run.settings import settings_of

SMALL = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "num_epochs": 1, "total_steps": 64, "eval_episodes": 2}
GROUPS = ["--num-groups", "2", "--group-size", "3", "--total-steps", "1", "--eval-episodes", "2"]


def test_an_algorithm_of_ones_own_is_trained_recorded_and_made_again(cli: Command):
    out = good(cli("train", "own_methods:Bold", "CartPole-v1", "--bonus", "0.25", "--total-steps", "64", *SHORT)).out
    folder = Path("runs/Bold-CartPole-v1-0")
    assert out.startswith("Bold on CartPole-v1, seed 0") and "upslope train own_methods:Bold CartPole-v1 --help" in out
    run = Run.load(folder)
    assert run.algorithm == "own_methods:Bold" and run.config["algorithm"]["bonus"] == 0.25 and "bonus" in run.metrics()[0]
    assert run.config["algorithm"]["update"]["learning_rate"] == 3e-3  # PPO's preset, from which it comes
    good(cli("evaluate", folder, "--episodes", "1"))
    again = RunConfig.from_config(run.config, algorithm="own_methods:Bold")
    assert again.algorithm.bonus == 0.25 and again.config() == {
        k: v for k, v in run.config.items() if k not in ("format_version", "versions", "goal")
    }
    with pytest.raises(UsageError, match="names own_methods:Bold, and a module is never imported because a file says so"):
        RunConfig.from_config(run.config)
    good(cli("train", "own_methods:Bold", "CartPole-v1", "--config", folder, "--quiet", "--out", "again"))
    assert (folder / "policy.safetensors").read_bytes() == Path("again/policy.safetensors").read_bytes()


def test_its_settings_are_flags_with_help(cli: Command):
    page = good(cli("train", "own_methods:Bold", "CartPole-v1", "--help")).out
    page = " ".join(page.split())  # however wide the terminal is
    assert "Bold:" in page and "times the entropy, on top of the usual one (default 0.5)" in page and "default 0.003" in page
    answer = cli("train", "own_methods:Bold", "CartPole-v1", "--bonsu", "1")
    assert answer.code == 2 and "did you mean '--bonus'?" in one_line(answer.err)


@pytest.mark.parametrize("name, collector", [("Plain", StepsSettings), ("InGroups", GroupedEpisodesSettings), ("Bare", StepsSettings)])
def test_what_it_learns_from_decides_how_it_collects(cli: Command, name: str, collector: type):
    good(cli("train", f"own_methods:{name}", "CartPole-v1", *(GROUPS if name == "InGroups" else ["--total-steps", "64"]), "--out", "run"))
    config = RunConfig.from_config(Run.load("run").config, algorithm=f"own_methods:{name}")
    assert type(config.collector) is collector


def test_a_field_that_json_does_not_know_is_recorded_as_text(cli: Command):
    good(cli("train", "own_methods:Heavy", "CartPole-v1", "--total-steps", "64", "--eval-episodes", "1", "--out", "run", "--quiet"))
    assert Run.load("run").config["algorithm"]["table"] == "tensor([0., 0.])"


def test_of_language_models_too(cli: Command):
    pytest.importorskip("transformers")
    flags = ["--model", "tiny", "--task", "copy", "--iterations", "1", "--batch-size", "2", "--warm-start", "0", "--eval-episodes", "2"]
    good(cli("train", "own_methods:Preferring", *flags, "--out", "run", "--quiet"))
    run = Run.load("run")
    assert run.needs == Needs(learns_from="pairs", needs_reference=True) and run.summary is not None
    assert run.summary["held_out_pairs"] > 0
    good(cli("evaluate", "run", "--episodes", "2"))
    config = RunConfig.from_config(run.config, algorithm="own_methods:Preferring")
    assert isinstance(config.collector, RecordedSettings)


@pytest.mark.parametrize(
    "name, message",
    [
        ("Unfinished", "own_methods:Unfinished has no objective and no update; an algorithm has estimate, objective, update"),
        ("Loose", "own_methods:Loose is no dataclass"),
        ("Demanding", "own_methods:Demanding cannot be made without arguments"),
        ("Strange", "own_methods:Strange: it learns from dreams, which no environment gives"),
        ("Blod", "did you mean 'Bold'?"),
        ("Clashing", "seed: this setting is a field of both Clashing and RunSettings; rename one of them"),
    ],
)
def test_what_is_no_algorithm_is_said_before_anything(cli: Command, name: str, message: str):
    answer = cli("train", f"own_methods:{name}", "CartPole-v1")
    assert answer.code == 2 and message in one_line(answer.err) and not Path("runs").exists()


def test_a_file_that_names_an_algorithm_imports_nothing(cli: Command, trained: Path):
    config = json.loads((trained / "config.json").read_text())
    config["algorithm"]["name"] = "nowhere_to_be_found:Evil"
    with pytest.raises(UsageError, match="never imported because a file says so"):
        RunConfig.from_config(config)
    config["needs"] = {"learns_from": "pairs", "unknown": 1}
    run = Run(Path(), config, None)
    assert run.needs.learns_from == "pairs"


def test_callbacks_and_loggers_work_with_a_folder(tmp_path: Path):
    seen: list[int] = []
    rows: list[int] = []

    class Closing:
        ended = False

        def __call__(self, row: Any) -> None:
            rows.append(row["iteration"])

        def close(self) -> None:
            self.ended = True

    closing = Closing()
    run = RunConfig.of("ppo", "CartPole-v1", **{**SMALL, "total_steps": 10_000}).run(
        Output(out=tmp_path / "run", quiet=True),
        callbacks=[lambda state: seen.append(state.iteration), lambda state: state.iteration == 3],
        loggers=[closing, lambda row: rows.append(-row["iteration"])],
    )
    assert seen == [1, 2, 3] and rows == [1, -1, 2, -2, 3, -3] and closing.ended
    assert run.summary is not None and run.summary["iterations"] == 3 and run.summary["status"] == "finished"


def test_a_callback_may_come_alone(tmp_path: Path):
    """As for ``train``."""
    run = RunConfig.of("ppo", "CartPole-v1", **{**SMALL, "total_steps": 10_000}).run(
        Output(out=tmp_path / "run", quiet=True), callbacks=lambda state: state.iteration == 2
    )
    assert run.summary is not None and run.summary["iterations"] == 2


def test_a_logger_by_name(cli: Command):
    good(cli("train", "ppo", "CartPole-v1", "--total-steps", "64", *SHORT, "--logger", "own_methods:Notes", "--out", "run", "--quiet"))
    iterations = [str(row["iteration"]) for row in Run.load("run").metrics()]
    assert Path("run/notes.txt").read_text().split() == ["ppo", *iterations, "closed"]
    for name, message in {
        "own_methods:Refusing": "logger: own_methods:Refusing cannot be made with (folder, config): OSError: no paper left",
        "own_methods:nothing": "unknown name in module own_methods",
        "nowhere:Notes": "no module named 'nowhere'",
        "zzz": "this needs zzz",
    }.items():
        answer = cli("train", "ppo", "CartPole-v1", "--total-steps", "64", *SHORT, "--logger", name, "--out", "other")
        assert answer.code == 2 and message in one_line(answer.err) and not Path("other").exists(), answer


# ------------------------------------------------------------------------------------------------------------ the registry


def test_every_row_names_a_class_and_a_start():
    for name, method in METHODS.items():
        algorithm = method.load()()
        assert method.control is not None or method.language is not None, name
        assert family_of(algorithm) in METHODS and METHODS[name_of(algorithm)].path == method.path


def test_an_algorithm_is_taken_as_it_is():
    config = RunConfig.of(PPO(gamma=0.9), "CartPole-v1")
    assert config.algorithm == PPO(gamma=0.9) and config.name == "ppo" and config.collector.num_steps == 64  # the preset's
    assert isinstance(RunConfig(algorithm=METHODS["reinforce"].load()(), env_id="CartPole-v1").collector, EpisodesSettings)


def test_a_class_is_as_good_as_its_name():
    assert RunConfig.of(PPO, "CartPole-v1") == RunConfig.of("ppo", "CartPole-v1")


def test_every_method_of_a_world_has_its_settings():
    for name in methods_in("language"):
        pytest.importorskip("transformers")
        config = RunConfig.of(name, model="tiny", task="copy")
        again = RunConfig.from_config(config.config())
        assert again == config, name


@pytest.mark.parametrize("name", ["ppo", "sarsa", "grpo", "dpo"])
def test_a_configuration_from_before_there_was_one_class_of_them(name: str):
    """As version 0.1.0 wrote them for each world; a setting that came later has its default."""
    if name in ("grpo", "dpo"):
        pytest.importorskip("transformers")
    recorded = json.loads((Path(__file__).parent / "before" / f"{name}.json").read_text())
    config = RunConfig.from_config(recorded).config()
    if recorded["world"] == "language":
        assert config["settings"].pop("fast") is True
    else:
        assert config["env"].pop("max_restarts") == 3
    if name == "sarsa":
        assert config["algorithm"].pop("schedule") == "constant"
    assert config == {key: value for key, value in recorded.items() if key not in ("format_version", "versions", "goal")}


def test_a_run_with_functions_of_ones_own_goes_on_once_they_are_named_again(cli: Command) -> None:
    named = ["--schedule", "own_methods:halved", "--surrogate", "own_methods:ratio"]
    good(cli("train", "ppo", "CartPole-v1", "--total-steps", "64", *named, *SHORT, "--checkpoint-iterations", "1", "--out", "run"))
    for command in (["resume", "run", "--total-steps", "128"], ["replay", "run", "--iteration", "1"]):
        assert "surrogate" in bad(cli(*command)) and "say --s" in bad(cli(*command))
        assert "another one" in bad(cli(*command, "--schedule", "linear", "--surrogate", "own_methods:ratio"))
        good(cli(*command, *named))


def test_a_setting_that_may_be_a_function_can_be_named_again() -> None:
    """Of every method in every world: what ``train`` takes as module:function, ``resume`` and ``replay`` take too."""
    taken = set[str]()
    for world in ("control", "language"):
        for name in methods_in(world):
            for setting, flag in flags_of(settings_of(*RunConfig.started(name, world).parts())).items():
                taken |= {setting} if "module:function" in flag.kind.metavar else set()
    assert taken - {"reward"} == set(FUNCTIONS)
