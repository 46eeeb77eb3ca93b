"""Every mistake that can be known before the first step: exit code 2, one line on stderr that says what to do, no folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from tests.cli.conftest import SHORT, Command
from upslope.cli.train import PAGES
from upslope.errors import ABSENT, NAMES_ELSEWHERE, install, nearest
from upslope.run.folder import FORMAT_VERSION
from upslope.run.methods import methods_in

PPO = ["train", "ppo", "CartPole-v1"]


def on(factory: str, *flags: str, algorithm: str = "ppo") -> list[str]:
    return ["train", algorithm, f"faulty:{factory}", *flags]


CASES: dict[str, tuple[list[str], str]] = {
    # commands
    "unknown command": (["trian"], "unknown command 'trian': did you mean 'train'?"),
    "unknown flag of upslope": (["--verison"], "did you mean '--version'?"),
    "nothing but flags": (["train", "--seed", "3"], "expected ALGORITHM ENV_ID"),
    "no environment": (["train", "ppo"], "expected ALGORITHM ENV_ID"),
    "one word too many": ([*PPO, "Pendulum-v1"], "found also 'Pendulum-v1'"),
    "a folder called like an algorithm": (
        ["train", "--out", "ppo", "a2c", "CartPole-v1", "--lr", "1"],
        "'--lr': did you mean '--learning-rate'",
    ),
    "and a slip besides": (["train", "--out", "reinforce", "ppo", "CartPole-v1", "--clip-rnge", ".2"], "did you mean '--clip-range'?"),
    "nothing but a folder called like an algorithm": (["train", "--out", "ppo"], "expected ALGORITHM ENV_ID"),
    "the same with a model": (["train", "--out", "ppo", "--model", "tiny"], "'ppo' is a flag's value here"),
    "a name of another library": ([*PPO, "--batch-size", "64"], "'--batch-size': did you mean '--num-minibatches'"),
    "another of them": ([*PPO, "--timesteps", "64"], "'--timesteps': did you mean '--total-steps'"),
    "an older name": (["evaluate", "run", "--best"], "'--best': did you mean '--policy'"),
    "a flag of a command that has none": (["list", "--foo"], "unknown flag '--foo': there is none"),
    "a batch of one": (
        [*PPO, "--num-envs", "1", "--num-steps", "1", "--num-minibatches", "1"],
        "num_steps: a batch of 1 transition has 1 advantage",
    ),
    "the other world's budget": (
        ["train", "grpo", "--model", "tiny", "--task", "addition", "--total-steps", "9"],
        "unknown flag '--total-steps': did you mean '--iterations'?",
    ),
    "and the other way round": ([*PPO, "--iterations", "9"], "unknown flag '--iterations': did you mean '--total-steps'?"),
    "a flag that resembles none": ([*PPO, "--warp"], "unknown flag '--warp': --help lists them all"),
    "a module that ends Python": (["train", "ppo", "exits_at_once:make"], "importing 'exits_at_once' ended Python (sys.exit)"),
    "list takes nothing": (["list", "ppo"], "unexpected 'ppo'"),
    # algorithms and environments
    "unknown algorithm": (["train", "pp0", "CartPole-v1"], "unknown algorithm 'pp0': did you mean 'ppo'?"),
    "algorithm after environment": (["train", "CartPole-v1", "ppo"], "unknown algorithm 'CartPole-v1'"),
    "misspelled environment": (["train", "ppo", "CartPol-v1"], "did you mean 'CartPole-v1'?"),
    "version that does not exist": (["train", "ppo", "CartPole-v9"], "the latest is 'CartPole-v1'"),
    "module that does not exist": (["train", "ppo", "nowhere:make"], "no module named 'nowhere'"),
    "module that fails": (["train", "ppo", "import_fails:make"], "wrong weather"),
    "misspelled factory": (on("wlak"), "did you mean 'walk'?"),
    "factory that raises": (on("broken"), "OSError: no such port"),
    "factory that exits": (on("quits"), "SystemExit: 0"),
    "module that exits": (["train", "ppo", "import_exits:make"], "importing 'import_exits' ended Python (sys.exit)"),
    "factory of something else": (on("not_an_environment"), "expected a gymnasium.Env"),
    "unknown keyword of the environment": ([*PPO, "--env-kwargs", '{"gravty": 3}'], "gravty"),
    "keywords that are not JSON": ([*PPO, "--env-kwargs", "{gravity: 3}"], "--env-kwargs: expected a JSON object"),
    "keywords that are a list": ([*PPO, "--env-kwargs", "[1]"], "--env-kwargs: expected a JSON object"),
    # methods that learn at every step, and linear policies
    "trace decay above 1": (["train", "actor-critic", "CartPole-v1", "--trace-decay", "1.5"], "trace_decay: expected a number in [0, 1]"),
    "four environments": (["train", "actor-critic", "CartPole-v1", "--num-envs", "4"], "num_envs: actor-critic learns at every step"),
    "a discount without episodes": (
        ["train", "continuing-actor-critic", "Pendulum-v1", "--gamma", "0.9"],
        "not of continuing-actor-critic",
    ),
    "action values of a Box": (["train", "sarsa", "Pendulum-v1"], "action values need a Discrete space"),
    "tiles without limits": ([*PPO, "--features", "tiles"], "number 1 of the observation has no limit; give 4 numbers with --feature-low"),
    "limits without tiles": ([*PPO, "--feature-low", "0"], "feature_low: --features network knows no limits; leave it out, or say"),
    "limits of linear features": ([*PPO, "--features", "linear", "--feature-high", "1"], "feature_high: --features linear knows no limits"),
    "hidden layers of a linear policy": ([*PPO, "--features", "linear", "--hidden-sizes", "8"], "hidden_sizes: linear policies have no"),
    "epsilon of a softmax": ([*PPO, "--epsilon", "0.1"], "epsilon: ppo learns no action values"),
    # spaces and first observations
    "text observations": (on("text_observation"), "not supported"),
    "sequence inside a dict": (on("sequence_observation"), "not supported"),
    "dict actions": (on("dict_action"), "not supported"),
    "squashed onto no bounds": (on("unbounded_action", "--distribution", "squashed"), "bounds"),
    "nothing to normalize": (on("discrete_observation", "--normalize-observation"), "normalize_observation"),
    "first observation is NaN": (on("walk", "--env-kwargs", '{"fault": "reset-nan"}'), "not finite"),
    "first observation has a wrong shape": (on("walk", "--env-kwargs", '{"fault": "reset-shape"}'), "shape"),
    "first observation has a wrong dtype": (on("walk", "--env-kwargs", '{"fault": "reset-dtype"}'), "reset"),
    "reset raises": (on("walk", "--env-kwargs", '{"fault": "reset-raises"}'), "the motor is on fire"),
    "reset without an info": (
        on("walk", "--env-kwargs", '{"fault": "reset-alone"}'),
        "reset: it returned ndarray of shape (3,) and dtype float32 (the old Gym's interface), expected (observation, info)",
    ),
    "no time for a step": (on("walk", "--step-timeout", "0"), "step_timeout: expected a number > 0 or none, found 0"),
    "no legal action": (on("walk", "--env-kwargs", '{"fault": "no-action"}'), "action"),
    # flags
    "misspelled flag": ([*PPO, "--lerning-rate", "1e-3"], "unknown flag '--lerning-rate': did you mean '--learning-rate'?"),
    "TRPO without a region": (["train", "trpo", "CartPole-v1", "--max-kl", "0"], "max_kl: expected a number > 0, found 0"),
    "TRPO with minibatches of two sizes": (
        ["train", "trpo", "CartPole-v1", "--num-envs", "2", "--num-steps", "5", "--num-value-minibatches", "3"],
        "num_value_minibatches: 3 does not divide 2 environments × 5 steps = 10 transitions; 2 does",
    ),
    "NPG with negative damping": (["train", "npg", "CartPole-v1", "--damping", "-1"], "damping: expected a number ≥ 0, found -1"),
    "flag of another algorithm": (
        ["train", "reinforce", "CartPole-v1", "--clip-range", "0.2"],
        "--clip-range: a setting of off-policy, ppo, grpo, rloo, not of reinforce",
    ),
    "flag with underscores": ([*PPO, "--num_envs", "4"], "did you mean '--num-envs'?"),
    "flag without its value": ([*PPO, "--seed"], "--seed: expected N, found nothing"),
    "flag followed by a flag": ([*PPO, "--num-envs", "--quiet"], "--num-envs: expected N, found nothing"),
    "switch with a value": ([*PPO, "--quiet=yes"], "--quiet: it takes no value"),
    "three clip ranges": ([*PPO, "--clip-range", "0.1", "0.2", "0.3"], "found also '0.3'"),
    "word for an integer": ([*PPO, "--num-envs", "eight"], "--num-envs: expected an integer, found 'eight'"),
    "fraction for an integer": ([*PPO, "--num-envs", "2.5"], "--num-envs: expected an integer, found '2.5'"),
    "NaN for a number": ([*PPO, "--learning-rate", "nan"], "--learning-rate: expected a number, found 'nan'"),
    "infinite goal": ([*PPO, "--until-return", "inf"], "--until-return: expected a number, found 'inf'"),
    "misspelled activation": ([*PPO, "--activation", "tanhh"], "did you mean 'tanh'?"),
    "misspelled distribution": ([*PPO, "--distribution", "gausian"], "did you mean 'gaussian'?"),
    "misspelled vectorization": ([*PPO, "--vectorization", "snyc"], "did you mean 'sync'?"),
    "misspelled surrogate": ([*PPO, "--surrogate", "cliped"], "did you mean 'clipped'?"),
    "misspelled schedule": ([*PPO, "--schedule", "liner"], "did you mean 'linear'?"),
    "misspelled return": (["train", "reinforce", "CartPole-v1", "--returns", "togo"], "did you mean 'to-go'?"),
    "surrogate from nowhere": ([*PPO, "--surrogate", "nowhere:mine"], "no module named 'nowhere'"),
    "surrogate that is a number": ([*PPO, "--surrogate", "faulty:number"], "expected a function"),
    # sizes and ranges
    "no environments": ([*PPO, "--num-envs", "0"], "num_envs: expected an integer from 1 to 65536, found 0"),
    "negative environments": ([*PPO, "--num-envs", "-4"], "num_envs: expected an integer from 1 to 65536, found -4"),
    "no steps": ([*PPO, "--num-steps", "0"], "num_steps: expected an integer ≥ 1"),
    "no epochs": ([*PPO, "--num-epochs", "0"], "num_epochs: expected an integer from 1 to 1000000"),
    "no minibatches": ([*PPO, "--num-minibatches", "0"], "num_minibatches: expected an integer ≥ 1"),
    "minibatches that do not divide": ([*PPO, "--num-minibatches", "7"], "num_minibatches: 7 does not divide 8 environments × 64 steps"),
    "fewer episodes than environments": (["train", "reinforce", "CartPole-v1", "--num-episodes", "3"], "num_episodes: expected"),
    "a group of one": (["train", "grpo", "CartPole-v1", "--group-size", "1"], "group_size: expected an integer ≥ 2, found 1"),
    "no groups": (["train", "rloo", "CartPole-v1", "--num-groups", "0"], "num_groups: expected an integer ≥ 1, found 0"),
    "more groups than anybody has": (
        ["train", "grpo", "CartPole-v1", "--num-groups", "10000"],
        "num_groups: 10000 groups of 8 are more than",
    ),
    "groups where there are none": ([*PPO, "--group-size", "8"], "--group-size: a setting of grpo, rloo, not of ppo"),
    "a reference that nobody has": (["train", "grpo", "CartPole-v1", "--kl-coef", "0.1"], "kl_coef: it needs a reference policy"),
    "no time limit to divide by": (on("walk", algorithm="rloo"), "average_over: 'constant' divides by the longest"),
    "neither an environment nor a model": (["train", "grpo"], "or: upslope train grpo --model tiny --task addition"),
    "an environment for what learns from texts": (["train", "dpo", "CartPole-v1"], "dpo: it learns from texts"),
    "no total steps": ([*PPO, "--total-steps", "0"], "total_steps: expected an integer ≥ 1"),
    "negative seed": ([*PPO, "--seed", "-1"], "seed: expected an integer from 0 to"),
    "a time-out that nothing can keep": (
        [*PPO, "--step-timeout", "5"],
        "cannot be interrupted (--vectorization auto); add --vectorization async",
    ),
    "no evaluation interval": ([*PPO, "--eval-every", "-1"], "eval_every: expected an integer ≥ 0"),
    "no evaluation episodes": ([*PPO, "--eval-episodes", "0"], "eval_episodes: expected an integer ≥ 1"),
    "empty layer": ([*PPO, "--hidden-sizes", "64", "0"], "hidden_sizes: expected integers from 1 to 65536, found 64 0"),
    "a layer as wide as a continent": ([*PPO, "--hidden-sizes", "1000000000"], "hidden_sizes: expected integers from 1 to 65536"),
    "endless epochs": ([*PPO, "--num-epochs", "99999999999999"], "num_epochs: expected an integer from 1 to 1000000"),
    "a seed beyond 32 bits": ([*PPO, "--seed", "9223372036854"], "seed: expected an integer from 0 to 4294967295"),
    "steps that fit nowhere": ([*PPO, "--num-steps", "1000000000"], "num_steps: 8 environments × 1000000000 steps are more than"),
    "several passes without a ratio": (["train", "a2c", "CartPole-v1", "--num-epochs", "4"], "num_epochs: this algorithm makes one pass"),
    "a spread without measure": ([*PPO, "--log-std", "1000"], "log_std: expected a number from -20 to 20"),
    "no folder at all": ([*PPO, "--out", ""], "--out: expected a path, found ''"),
    "not a number in JSON": ([*PPO, "--env-kwargs", '{"x": NaN}'], "--env-kwargs: expected a JSON object of finite numbers, found NaN"),
    "evaluate and not a word more": (["evaluate"], "evaluate: expected RUN"),
    "evaluate an empty name": (["evaluate", ""], "run folder: expected a path"),
    "plot and not a word more": (["plot"], "plot: expected RUN"),
    "play and not a word more": (["play"], "play: expected RUN"),
    "negative learning rate": ([*PPO, "--learning-rate", "-1e-3"], "learning_rate: expected a number ≥ 0"),
    "discount above one": ([*PPO, "--gamma", "1.5"], "gamma: expected a number in [0, 1], found 1.5"),
    "negative trace": ([*PPO, "--gae-lambda", "-0.1"], "gae_lambda: expected a number in [0, 1]"),
    "clip range above one": ([*PPO, "--clip-range", "2"], "clip_range: expected"),
    "negative entropy": ([*PPO, "--entropy-coef", "-1"], "entropy_coef: expected a number ≥ 0"),
    "dual clip below one": ([*PPO, "--dual-clip", "0.5"], "dual_clip: expected a number > 1"),
    "adaptive nothing": ([*PPO, "--adaptive-kl", "0.01"], "adaptive_kl"),
    "reward scaled away": ([*PPO, "--reward-scale", "0"], "reward_scale: expected a number > 0"),
    "no gradient": ([*PPO, "--max-grad-norm", "0"], "max_grad_norm: expected a number > 0 or none"),
    # devices, extras
    "device from nowhere": ([*PPO, "--device", "gpu"], "device: expected cpu, cuda"),
    "device without a driver": ([*PPO, "--device", "cuda:99"], "device: 'cuda:99' is not available"),
    # folders and files that are not there
    "evaluate nothing": (["evaluate", "--json"], "evaluate: expected RUN"),
    "evaluate two": (["evaluate", "a", "b"], "unexpected 'b'"),
    "evaluate what is not there": (["evaluate", "runs/none"], "there is no such folder"),
    "evaluate a folder that is no run": (["evaluate", "."], "it has no config.json"),
    "evaluate no episodes": (["evaluate", ".", "--episodes", "0"], "--episodes: expected an integer ≥ 1"),
    "evaluate an unknown flag": (["evaluate", ".", "--episode", "3"], "did you mean '--episodes'?"),
    "play nothing": (["play", "--out", "x.gif"], "play: expected RUN"),
    "play no steps": (["play", ".", "--max-steps", "0"], "--max-steps: expected an integer ≥ 1"),
    "plot nothing": (["plot", "--out", "x.png"], "plot: expected RUN"),
    "plot as text": (["plot", "runs", "--out", "x.txt"], "--out: expected a name that ends in .png, .svg or .pdf"),
    "plot what is not there": (["plot", "runs/none"], "there is no such folder"),
    "init from nothing": ([*PPO, "--init", "runs/none"], "there is no such folder"),
    "config from nothing": ([*PPO, "--config", "none.json"], "there is no file none.json"),
}


def one_line(text: str) -> str:
    """The only line on stderr."""
    assert text.startswith("upslope: "), text
    assert text.count("\n") == 1 and text.endswith("\n"), text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("argv, expected", CASES.values(), ids=CASES.keys())
def test_known_before_the_first_step(cli: Command, argv: list[str], expected: str):
    answer = cli(*argv)
    assert answer.code == 2, answer
    assert expected in one_line(answer.err)
    assert answer.out == ""
    assert not Path("runs").exists()


def test_there_are_enough_cases():
    assert len(CASES) >= 60


# ---------------------------------------------------------------------------------------------------- packages not there


@pytest.mark.parametrize(
    "package, flags, extra",
    [
        ("mujoco", ["HalfCheetah-v5"], "mujoco"),
        ("Box2D", ["LunarLander-v3"], "box2d"),
        ("ale_py", ["ALE/Pong-v5"], "atari"),
        ("envpool", ["CartPole-v1", "--vectorization", "envpool"], "envpool"),
    ],
)
def test_missing_packages_name_their_extra(cli: Command, monkeypatch: pytest.MonkeyPatch, package: str, flags: list[str], extra: str):
    for name in [m for m in sys.modules if m == package or m.startswith((f"{package}.", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    answer = cli("train", "ppo", *flags)
    assert answer.code == 2
    assert install(f"upslope[{extra}]") in one_line(answer.err)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_missing_loggers_name_their_extra(cli: Command, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    answer = cli(*PPO, f"--{name}")
    assert answer.code == 2
    assert install(f"upslope[{name}]") in one_line(answer.err)
    assert not Path("runs").exists()


WITHOUT_TRANSFORMERS = """
import sys
from importlib.machinery import PathFinder

class Bare:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ("transformers", "tokenizers") else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Bare() if finder is PathFinder else finder for finder in sys.meta_path]
from upslope.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [["train", "grpo", "--model", "tiny"], ["export", "run", "--out", "x"], ["chat", "run"], ["evaluate", "model", "--task", "copy"]],
)
def test_without_transformers_every_language_command_says_what_to_install(tmp_path: Path, words: list[str]):
    (tmp_path / "run").mkdir()
    config = {"format_version": 1, "world": "language", "algorithm": {"name": "grpo"}, "collector": {}, "policy": {}, "task": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "settings": {}}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    found = subprocess.run([sys.executable, "-c", WITHOUT_TRANSFORMERS, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stdout == ""
    assert re.search(r"this needs transformers, which is not installed: .*pip install .*\[language\]'$", found.stderr), found.stderr


# ------------------------------------------------------------------------------------------------------------ --out


def test_out_that_holds_something(cli: Command):
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("mine")
    answer = cli(*PPO, "--out", "taken")
    assert answer.code == 2 and "taken exists and is not empty" in one_line(answer.err)
    assert [p.name for p in Path("taken").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("out, expected", [("file", "file is a file"), ("file/run", "cannot be made in it")])
def test_out_that_is_a_file(cli: Command, out: str, expected: str):
    Path("file").write_text("mine")
    answer = cli(*PPO, "--out", out)
    assert answer.code == 2 and expected in one_line(answer.err)
    assert Path("file").read_text() == "mine"


def test_a_mistake_found_in_the_first_iteration_leaves_no_folder(cli: Command):
    answer = cli(*PPO, "--surrogate", "faulty:wrong_shape", "--out", "mine", *SHORT)
    assert answer.code == 2 and "surrogate: expected one value per step" in one_line(answer.err)
    assert not Path("mine").exists()


# ------------------------------------------------------------------------------------------------------------ --config


CONFIGS = {
    "unknown key": ({"lerning_rate": 1e-3}, "unknown key in settings.json: 'lerning_rate': did you mean 'learning_rate'?"),
    "unknown key of a part": ({"algorithm": {"name": "ppo", "gama": 0.9}}, "did you mean 'gamma'?"),
    "text for an integer": ({"num_envs": "eight"}, "--num-envs: expected an integer, found 'eight'"),
    "number for a switch": ({"fast": 1}, "fast: expected true or false, found 1"),
    "null where a number must be": ({"gamma": None}, "--gamma: expected a number, found 'none'"),
    "newer version": ({"format_version": FORMAT_VERSION + 1}, "written by a newer upslope"),
}


@pytest.mark.parametrize("content, expected", CONFIGS.values(), ids=CONFIGS.keys())
def test_config_files(cli: Command, content: dict[str, object], expected: str):
    Path("settings.json").write_text(json.dumps(content))
    answer = cli(*PPO, "--config", "settings.json")
    assert answer.code == 2 and expected in one_line(answer.err)
    assert not Path("runs").exists()


def test_config_that_is_not_json(cli: Command):
    Path("settings.json").write_text("num_envs = 3")
    answer = cli(*PPO, "--config", "settings.json")
    assert answer.code == 2 and "settings.json is damaged: not JSON" in one_line(answer.err)


# ------------------------------------------------------------------------------------------- run folders that are damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "remove"}))


def spoil(path: Path) -> None:
    tensors = load(path.read_bytes())
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path)


DAMAGE = {
    "config cut off": (lambda run: cut(run / "config.json"), "config.json is damaged: not JSON"),
    "config is a list": (lambda run: (run / "config.json").write_text("[]"), "config.json is damaged: not a JSON object"),
    "config is not text": (lambda run: (run / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is damaged"),
    "config without algorithm": (lambda run: edit(run / "config.json", algorithm="remove"), "'algorithm' is missing"),
    "config without version": (lambda run: edit(run / "config.json", format_version="remove"), "'format_version' is missing"),
    "config from a newer version": (lambda run: edit(run / "config.json", format_version=99), "written by a newer upslope (format 99"),
    "config of another world": (lambda run: edit(run / "config.json", world="mars"), "'world' is 'mars'"),
    "config with a bare algorithm": (lambda run: edit(run / "config.json", algorithm="ppo"), "'algorithm' is not an object"),
    "config with a bare env": (lambda run: edit(run / "config.json", env="x"), "'env' is not an object"),
    "config with a number for a name": (lambda run: edit(run / "config.json", env_id=3), "'env_id' is not the name"),
    "summary from a newer version": (lambda run: edit(run / "summary.json", format_version=99), "written by a newer upslope"),
    "weights that are not finite": (lambda run: spoil(run / "policy.safetensors"), "holds a number that is not finite"),
    "policy.json with a seed that is none": (lambda run: edit(run / "policy.json", seed=None), "policy.json is damaged"),
    "summary cut off": (lambda run: cut(run / "summary.json"), "summary.json is damaged"),
    "policy.json missing": (lambda run: (run / "policy.json").unlink(), "it has no policy.json"),
    "policy.json from a newer version": (lambda run: edit(run / "policy.json", format_version=99), "written by a newer upslope"),
    "policy.json of an unknown class": (lambda run: edit(run / "policy.json", **{"class": "MLPolicy"}), "did you mean 'MLPPolicy'?"),
    "policy.json without a space": (lambda run: edit(run / "policy.json", action_space="remove"), "policy.json is damaged"),
    "policy.json of another shape": (lambda run: edit(run / "policy.json", hidden_sizes=[32, 32]), "it belongs to another policy"),
    "weights missing": (lambda run: (run / "policy.safetensors").unlink(), "it has no policy.safetensors"),
    "weights cut off": (lambda run: cut(run / "policy.safetensors"), "policy.safetensors is damaged"),
    "weights are text": (lambda run: (run / "policy.safetensors").write_text("hello"), "policy.safetensors is damaged"),
}


@pytest.mark.parametrize("damage, expected", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_run_folders(cli: Command, copied: Path, damage: object, expected: str):
    damage(copied)  # type: ignore[operator]
    answer = cli("evaluate", copied, "--json")
    assert answer.code == 2 and expected in one_line(answer.err)
    assert answer.out == ""


def test_plot_names_the_damaged_line(cli: Command, copied: Path):
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    (copied / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    answer = cli("plot", copied)
    assert answer.code == 2 and "metrics.jsonl is damaged: line 2 is not JSON" in one_line(answer.err)
    assert not Path("comparison.png").exists()


def test_plot_names_the_line_with_a_wrong_type(cli: Command, copied: Path):
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    (copied / "metrics.jsonl").write_text("\n".join([lines[0], '{"total_steps": "many"}']) + "\n")
    answer = cli("plot", copied)
    assert answer.code == 2 and "metrics.jsonl is damaged: line 2: 'total_steps' is no number" in one_line(answer.err)


def test_evaluating_on_another_task(cli: Command, trained: Path):
    answer = cli("evaluate", trained, "--env", "Pendulum-v1")
    assert answer.code == 2 and "policy: it was made for observation_space" in one_line(answer.err)


def test_a_surrogate_that_ignores_the_policy(cli: Command):
    answer = cli(*PPO, "--surrogate", "faulty:ignoring", "--out", "mine", *SHORT)
    assert answer.code == 2 and "surrogate: it does not depend on log_prob" in one_line(answer.err)


def test_plot_without_an_episode(cli: Command, copied: Path):
    (copied / "metrics.jsonl").write_text("")
    answer = cli("plot", copied)
    assert answer.code == 2 and "its metrics.jsonl is empty" in one_line(answer.err)


def test_init_from_another_task(cli: Command, trained: Path):
    answer = cli("train", "ppo", "Pendulum-v1", "--init", trained)
    assert answer.code == 2 and "observation_space" in one_line(answer.err)
    assert not Path("runs").exists()


def test_init_and_a_shape(cli: Command, trained: Path):
    answer = cli(*PPO, "--init", trained, "--hidden-sizes", "32")
    assert answer.code == 2 and "leave out --hidden-sizes" in one_line(answer.err)


# -------------------------------------------------------------------------------------------------- playing and evaluating


def test_play_needs_a_known_type(cli: Command, trained: Path):
    assert "expected a name that ends in .gif or .mp4" in one_line(cli("play", trained, "--out", "a.avi").err)


def test_play_without_ffmpeg(cli: Command, trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    answer = cli("play", trained, "--out", "a.mp4")
    assert answer.code == 2 and "a.mp4 needs ffmpeg" in one_line(answer.err)


def test_play_what_cannot_render(cli: Command, trained: Path):
    answer = cli("play", trained, "--env", "faulty:no_frames", "--out", "a.gif")
    assert answer.code == 2 and "play: env 'faulty:no_frames' cannot be made" in one_line(answer.err)
    assert "what is to be recorded takes render_mode" in answer.err


def test_a_recorded_module_is_not_imported_unasked(cli: Command, copied: Path):
    edit(copied / "config.json", env_id="import_fails:make")
    for command in ("evaluate", "play"):
        answer = cli(command, copied)
        assert answer.code == 2 and "say --env import_fails:make" in one_line(answer.err)


FLAGS = ["--learning-rate", "--num-envs", "--num-epochs", "--num-steps", "--total-steps", "--gae-lambda", "--clip-range", "--eps", "--seed"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("--lr", ["--learning-rate"]),
        ("--num_envs", ["--num-envs"]),
        ("--n-envs", ["--num-envs"]),
        ("--envs", ["--num-envs"]),
        ("--gae", ["--gae-lambda"]),
        ("--steps", ["--num-steps", "--total-steps"]),
        ("--total-timesteps", ["--total-steps"]),
        ("--clip-rnge", ["--clip-range"]),
        ("--seeds", ["--seed"]),
        ("--resume", []),
        ("--wandb-project", []),
    ],
)
def test_what_was_probably_meant(name: str, expected: list[str]):
    assert nearest(name, FLAGS) == expected


@pytest.mark.parametrize(
    "name, said",
    [
        ("--lstm", "remembers nothing"),
        ("--recurrent", "remembers nothing"),
        ("--frame-stack", "FrameStackObservation"),
        ("--vllm", "sampled by the engine inside"),
        ("--seeds", "a run has one seed"),
        ("--use_sde", "--log-std"),
        ("--num-gpus", "one process"),
        ("--policy", "--hidden-sizes"),
        ("--wandb-project", "'--wandb'"),
        ("--net-arch", "'--hidden-sizes'"),
        ("--clip", "'--clip-range'"),
        ("--log-dir", "'--out'"),
        ("--checkpoint", "'--checkpoint-iterations'"),
        ("--anneal-lr", "'--schedule'"),
    ],
)
def test_what_other_libraries_call_it_or_have(cli: Command, name: str, said: str):
    answer = cli("train", "ppo", "CartPole-v1", name, "3")
    assert answer.code == 2 and said in one_line(answer.err)


def test_every_setting_with_names_elsewhere_is_one_of_ours():
    flags = [flag for page in PAGES.values() for name in methods_in(page.world) for flag in page.flags(name).values()]
    ours = {flag.name.replace("_", "-") for flag in [*flags, *(flag for page in PAGES.values() for flag in page.outputs)]}
    assert NAMES_ELSEWHERE.keys() - ours == {"policy"}  # which is `evaluate`'s
    assert not ours & ABSENT.keys()


@pytest.mark.parametrize(
    "pip, clone, requirement, command",
    [
        ("bin/pip", True, "upslope[box2d]", "pip install -e '.[box2d]'"),
        ("other/pip", True, "upslope[box2d]", "bin/python -m pip install -e '.[box2d]'"),
        (None, True, "upslope[box2d]", "bin/python -m pip install -e '.[box2d]'"),
        ("bin/pip", False, "upslope[box2d]", "pip install 'upslope[box2d]'"),
        ("bin/pip", True, "ale-py", "pip install 'ale-py'"),
    ],
)
def test_how_to_install_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: str | None, clone: bool, requirement: str, command: str
):
    """In a clone its own folder, elsewhere the package; always with the pip of the Python that runs."""
    for name in ("bin/pip", "other/pip", "src/upslope/errors.py", *(["pyproject.toml"] if clone else [])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr("shutil.which", lambda _: None if pip is None else str(tmp_path / pip))
    monkeypatch.setattr("upslope.errors.__file__", str(tmp_path / "src" / "upslope" / "errors.py"))
    assert install(requirement) == command


def test_a_time_out_that_nothing_can_keep_is_refused_wherever_it_is_said(cli: Command, tmp_path: Path):
    from upslope import RunConfig, UsageError

    file = tmp_path / "settings.json"
    for settings, refused in (
        ({"step_timeout": 5.0}, True),
        ({"step_timeout": 5.0, "vectorization": "sync"}, True),
        ({"step_timeout": 120.0}, False),  # as every run records it
        ({"step_timeout": None}, False),
        ({"step_timeout": 5.0, "vectorization": "async"}, False),
    ):
        file.write_text(json.dumps(settings))
        answer = cli(*PPO, "--config", file, "--total-steps", "0")
        assert answer.code == 2 and ("cannot be interrupted" if refused else "total_steps") in one_line(answer.err), settings
        if refused:
            with pytest.raises(UsageError, match="step_timeout: an environment in this process cannot be interrupted"):
                RunConfig.of("ppo", "CartPole-v1", **settings)
        else:
            RunConfig.of("ppo", "CartPole-v1", **settings)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["train", "reinforce", "CartPole-v1", "--num-episodes", "1e12"], "num_episodes: expected an integer ≥ 1 and at most 1,000,000"),
        (["train", "trpo", "CartPole-v1", "--num-cg-steps", "1e9"], "num_cg_steps: expected an integer ≥ 1 and at most 1,000,000"),
        ([*PPO, "--reward-scale", "1e-300"], "reward_scale: expected a number from 1e-15 to 1e+15, found 1e-300"),
        ([*PPO, "--max-restarts", "-1"], "max_restarts: expected an integer ≥ 0, found -1"),
        ([*PPO, "--surrogate", "faulty:walk"], "surrogate faulty:walk: it takes ("),
        ([*PPO, "--logger", "faulty:broken"], "logger faulty:broken: it takes () -> 'Walk', and is called with (row)"),
        ([*PPO, "--features", "a" * 5000], f"{'a' * 79}… (500"),
        ([*PPO, "--out", "a\0b"], "a null character"),
        (["play", "run", "--out", "file/a.gif"], "--out: the folder for file/a.gif cannot be made: a file is in the way"),
        (["plot", "run", "--out", "file/a.png"], "--out: the folder for file/a.png cannot be made: a file is in the way"),
        (["replay", "run", "--iteration", "1", "--out", "run"], "--out: run is a folder; name a file"),
        (["variance", "CartPole-v1", "--group-size", "-1"], "--group-size: expected an integer from 1 to"),
        (["verify-resume", "ppo", "Nowhere-v0"], "unknown environment 'Nowhere-v0'"),
        (["sweep", "ppo", "Nowhere-v0"], "unknown environment 'Nowhere-v0'"),
    ],
    ids=lambda words: " ".join(words[-2:])[:40] if isinstance(words, list) else None,
)
def test_nothing_is_left_of_what_cannot_be(cli: Command, trained: Path, words: list[str], expected: str):
    Path("file").write_text("mine")
    if "run" in words:
        shutil.copytree(trained, "run")
    before = sorted(Path().rglob("*"))
    answer = cli(*words)
    assert answer.code == 2 and expected in one_line(answer.err), answer
    assert sorted(Path().rglob("*")) == before


def test_what_may_not_be_read_is_not_called_damaged(cli: Command, copied: Path, monkeypatch: pytest.MonkeyPatch):
    read = Path.read_text

    def refuses(self: Path, *arguments: object, **options: object) -> str:
        if self.name == "config.json":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuses)
    answer = cli("resume", copied)
    assert answer.code == 2 and "config.json cannot be read: Permission denied" in one_line(answer.err), answer


def test_a_setting_that_a_policy_s_description_lacks(cli: Command, copied: Path):
    edit(copied / "policy.json", activation="remove")
    assert "'activation' is missing" in one_line(cli("evaluate", copied).err)
