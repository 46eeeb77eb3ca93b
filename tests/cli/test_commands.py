"""What is done with a finished run: evaluate, play, plot, act, start from it, repeat it; and runs from Python."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from tests.cli.conftest import SHORT, TRAIN, Command, good
from upslope import PPO, Run, UsageError
from upslope.control.evaluate import EvaluationResult, Played
from upslope.run.config import RunConfig
from upslope.run.control_settings import EpisodesSettings, PolicySettings, RunSettings, StepsSettings
from upslope.run.curve import names
from upslope.run.folder import Output

# ----------------------------------------------------------------------------------------------- evaluate, play, plot


def test_evaluate_prints_one_object(cli: Command, trained: Path):
    out = good(cli("evaluate", trained, "--episodes", "3", "--seed", "5", "--json")).out
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert answer.keys() == {
        "return_mean", "return_std", "return_interval", "length_mean", "reward_per_step", "episodes", "episodes_ended", "returns",
        "ended", "policy", "iteration", "total_steps", "planned_steps", "finished",
    }  # fmt: skip
    assert answer["episodes"] == answer["episodes_ended"] == 3 and answer["return_mean"] == answer["length_mean"]
    assert (answer["policy"], answer["planned_steps"], answer["finished"]) == ("final", 128, True) and answer["total_steps"] >= 128
    assert good(cli("evaluate", trained, "--episodes", "3", "--seed", "5", "--json")).out == out
    words = good(cli("evaluate", trained, "--episodes", "3", "--policy", "best", "--sample")).out
    assert "3 fresh episodes" in words and "95 % interval" in words and "best policy after " in words and " of 128 steps" in words


def test_evaluate_matches_a_plain_loop(cli: Command, trained: Path):
    policy = Run.load(trained).policy
    returns = []
    for seed in range(100, 103):
        env = gymnasium.make("CartPole-v1")
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = policy.act(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    answer = json.loads(good(cli("evaluate", trained, "--episodes", "3", "--json")).out)
    assert answer["returns"] == returns and answer["ended"] == [True] * 3
    assert answer["return_mean"] == pytest.approx(np.mean(returns), rel=1e-12)
    assert answer["return_std"] == pytest.approx(np.std(returns, ddof=1), rel=1e-9)


def test_one_episode_has_no_interval(cli: Command, trained: Path):
    assert json.loads(good(cli("evaluate", trained, "--episodes", "1", "--json")).out)["return_interval"] == [None, None]
    assert "(one episode has no interval)" in good(cli("evaluate", trained, "--episodes", "1")).out


def test_equal_returns_are_no_certainty(cli: Command, trained: Path):
    """Of episodes that all returned the same a resampled interval has no width: nothing is said of one."""
    out = good(cli("evaluate", trained, "--episodes", "3", "--env-kwargs", '{"sutton_barto_reward": true}')).out
    assert "return -1.00 in each of them" in out and "interval" not in out


def test_other_arguments_of_the_environment_for_evaluate_and_play(cli: Command, trained: Path):
    """``sutton_barto_reward`` pays −1 for the fall and nothing else."""
    pytest.importorskip("pygame")
    other = ("--env-kwargs", '{"sutton_barto_reward": true}')
    assert json.loads(good(cli("evaluate", trained, "--episodes", "2", *other, "--json")).out)["returns"] == [-1.0, -1.0]
    assert "return -1.0" in good(cli("play", trained, "--out", "other.gif", *other)).out
    assert json.loads(good(cli("evaluate", trained, "--episodes", "2", "--json")).out)["return_mean"] > 5
    answer = cli("evaluate", trained, "--env-kwargs", '{"gravty": 1}')
    assert answer.code == 2 and "cannot be made with env_kwargs {'gravty': 1}" in answer.err


def test_play_writes_an_animation(cli: Command, trained: Path):
    pytest.importorskip("pygame")
    out = good(cli("play", trained, "--out", "deep/cart.gif", "--max-steps", "30", "--episodes", "2")).out
    assert "wrote deep/cart.gif" in out
    assert "final policy after " in out
    words = out.splitlines()[0].partition(" (cut off")[0].replace(",", "").split()
    returns = [float(word) for word in words[words.index("return") + 1 :]]
    assert sum(returns) == int(words[2]) - len(returns)  # one frame more than steps in each episode, a reward of 1 for each step
    with Image.open("deep/cart.gif") as picture:
        frames = getattr(picture, "n_frames", 1)
        assert picture.size == (480, 349) and 5 <= frames <= 16  # 50 frames per second, thinned to 25
        first = np.asarray(picture.convert("L"))
        picture.seek(frames - 1)
        assert (first < 50).sum() > 100  # the cart is black on white
        last = np.asarray(picture.convert("L"))
        assert (first[:320] != last[:320]).any() and (first[325:] != last[325:]).any()  # the cart, and the line with step and return
        assert picture.info["duration"] % 10 == 0
    assert [p.name for p in Path("deep").iterdir()] == ["cart.gif"]


def test_train_can_play(cli: Command):
    pytest.importorskip("pygame")
    out = good(cli(*TRAIN, "--total-steps", "32", "--play")).out
    assert "play.gif" in out and Path("runs/ppo-CartPole-v1-0/play.gif").exists()


def test_mp4_through_ffmpeg(cli: Command, trained: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for ffmpeg receives exactly the frames; a failing one is reported in one line."""
    pytest.importorskip("pygame")
    Path("bin").mkdir()
    program = Path("bin/ffmpeg")
    program.write_text('#!/bin/sh\nfor last; do :; done\ncat > "$last"\necho "$@" > arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}{os.pathsep}{os.defpath}")
    out = good(cli("play", trained, "--out", "cart.mp4", "--max-steps", "5")).out
    assert "5 frames" in out and "(cut off after 4 steps)" in out
    assert Path("cart.mp4").stat().st_size == 5 * 600 * 436 * 3
    assert "-s 600x436 -r 50" in Path("arguments").read_text()
    program.write_text("#!/bin/sh\ncat > /dev/null\necho no space >&2\nexit 1\n")
    answer = cli("play", trained, "--out", "cart.mp4", "--max-steps", "5")
    assert answer.code == 1 and "ffmpeg could not write cart.mp4: no space" in answer.err


def test_plot_compares_runs(cli: Command, trained: Path):
    other = Path(shutil.copytree(trained, "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"env_id": "Other-v0"}))
    out = good(cli("plot", trained, trained, other, "--out", "pictures/all.png")).out
    assert out == "wrote pictures/all.png (2 runs)\n"  # the same folder twice is one run, not two seeds
    with Image.open("pictures/all.png") as picture:
        assert picture.size == (1260, 1500)  # one panel per environment


def test_plot_averages_seeds_and_never_settings(cli: Command, trained: Path):
    def changed(name: str, **settings: object) -> Path:
        folder = Path(shutil.copytree(trained, name))
        config = json.loads((folder / "config.json").read_text())
        config["settings"] |= {"seed": settings.pop("seed", 0), "eval_every": settings.pop("eval_every", None)}
        config["algorithm"]["update"] |= settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    folders = [changed("a", seed=1), changed("b", seed=2, eval_every=64), changed("c", learning_rate=0.25)]
    runs = [Run.load(folder) for folder in folders]
    assert names(runs[:2]) == ["PPO", "PPO"]
    rate = runs[0].config["algorithm"]["update"]["learning_rate"]
    assert names(runs) == [f"PPO, learning_rate {rate:g}"] * 2 + ["PPO, learning_rate 0.25"]
    out = good(cli("plot", *folders)).out
    assert out == "wrote comparison.png (3 runs)\n"
    keys = ("learning_rate", "num_epochs", "num_minibatches", "max_grad_norm", "eps")
    others = [changed(str(i), **{name: 2 if name == odd else 1 for name in keys}) for i, odd in enumerate(("nothing", *keys))]
    first, *later, last = names([Run.load(folder) for folder in others])
    assert first == "PPO, learning_rate 1, num_epochs 1, num_minibatches 1, max_grad_norm 1 …" and last == f"{first} (2)"
    assert later == [first.replace(f"{name} 1", f"{name} 2") for name in keys[:-1]]
    # what only one of two mappings holds is a difference, too
    for name, value in (("d", {}), ("e", {"sutton_barto_reward": True}), ("f", {"sutton_barto_reward": True, "level": 2})):
        config = json.loads((changed(name) / "config.json").read_text())
        config["env"]["env_kwargs"] = value
        Path(name, "config.json").write_text(json.dumps(config))
    plain, other, more = names([Run.load(folder) for folder in ("d", "e", "f")])
    assert (plain, other) == ("PPO, env_kwargs none", "PPO, env_kwargs sutton_barto_reward=True")
    assert more == "PPO, env_kwargs sutton_barto_reward=True level=2"
    # one seed is one seed, however often it was run
    again = Path(shutil.copytree("a", "again"))
    answer = cli("plot", "a", again, "b")
    assert answer.out == "wrote comparison.png (2 runs)\n" and "again: same settings and seed as" in answer.err


def test_plot_leaves_out_what_is_no_run_but_a_report(cli: Command, trained: Path):
    report = Path("reproduce-sb-13.1")
    report.mkdir()
    (report / "verdict.json").write_text("{}")
    answer = cli("plot", trained, report)
    assert answer.out == "wrote comparison.png (1 run)\n" and answer.err.endswith("reproduce-sb-13.1: a report, which is drawn alone\n")
    answer = cli("plot", report)
    assert answer.code == 2 and "it has no config.json" in answer.err
    without = Path(shutil.copytree(trained, "without"))
    (without / "metrics.jsonl").write_text('{"total_steps": 5}\n')
    answer = cli("plot", trained, report, without)
    assert answer.out == "wrote comparison.png (1 run)\n" and "without: no episode ended in its training, and its metrics" in answer.err
    assert cli("plot", without).code == cli("plot", without, report).code == 2
    assert "holds neither a reward per step nor evaluations" in cli("plot", without).err
    (without / "metrics.jsonl").write_text("")
    assert "without: its metrics.jsonl is empty, for it ended before" in cli("plot", without).err
    Path("picture.png").touch()
    assert cli("plot", trained, "picture.png").code == 2  # a slip is not passed over


def test_where_no_episode_ended_plot_shows_what_there_is(cli: Command, trained: Path, monkeypatch: pytest.MonkeyPatch):
    from upslope.run import curve

    drawn: list[tuple[str, list[float]]] = []
    draw = curve.draw

    def seen(panels: Any) -> Any:
        drawn.extend((panel.y_label, [float(y) for y in panel.lines[0].y]) for panel in panels)
        return draw(panels)

    monkeypatch.setattr(curve, "draw", seen)
    endless, watched = (Path(shutil.copytree(trained, name)) for name in ("endless", "watched"))
    rows = [{"total_steps": 10.0 * i, "reward_per_step": 2.0} for i in range(1, 4)]
    (endless / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (watched / "metrics.jsonl").write_text("".join(json.dumps({"total_steps": 10 * i, "evaluation_return": 7.0}) + "\n" for i in (1, 2)))
    for folder in (endless, watched):
        assert cli("plot", folder).out == "wrote comparison.png (1 run)\n"
    assert [axis.partition(" (")[0] for axis, _ in drawn] == ["reward per step", "return in evaluations"]
    assert [values for _, values in drawn] == [[2.0] * 3, [7.0] * 2]
    answer = cli("plot", trained, endless)  # beside a run whose episodes ended, returns are compared
    assert answer.out == "wrote comparison.png (1 run)\n" and "endless: no episode ended in its training, as in other runs" in answer.err
    assert drawn[-1][0].startswith("episode return")


# -------------------------------------------------------------------------------------- in Python, --init, --config


def test_a_loaded_policy_acts(trained: Path):
    policy = Run.load(trained).policy
    single = np.array([0.1, 0.2, -0.1, 0.0], np.float32)
    action, state = policy.act(single)
    assert action in (0, 1) and state is None
    batch, _ = policy.act(np.stack([single] * 3), greedy=True, action_mask=np.array([[1, 1], [1, 0], [0, 1]]))
    assert batch.shape == (3,) and batch[0] == action and batch[1:].tolist() == [0, 1]
    assert not any(p.requires_grad for p in policy.parameters())


def test_init_starts_from_a_saved_policy(cli: Command, trained: Path):
    flags = [*TRAIN, "--total-steps", "32", "--learning-rate", "0", "--out"]
    good(cli(*flags, "same", "--init", trained, "--quiet"))
    assert weights("same") == weights(trained)
    good(cli(*flags, "fresh", "--quiet"))
    assert weights("fresh") != weights(trained)


def weights(run: str | Path) -> dict[str, list[float]]:
    """The numbers of a saved policy; the file also says how far it is."""
    state = load((Path(run) / "policy.safetensors").read_bytes())
    return {name: tensor.flatten().tolist() for name, tensor in state.items()}


def test_init_brings_its_shape(cli: Command):
    good(
        cli(
            *TRAIN,
            "--total-steps",
            "32",
            "--hidden-sizes",
            "8",
            "--activation",
            "relu",
            "--normalize-observation",
            "--out",
            "small",
            "--quiet",
        )
    )
    good(cli(*TRAIN, "--total-steps", "32", "--init", "small", "--out", "next", "--quiet"))
    policy = Run.load("next").config["policy"]
    assert (policy["hidden_sizes"], policy["activation"], policy["normalize_observation"]) == ([8], "relu", True)
    counts = [Run.load(out).policy.observation_normalizer.moments.count for out in ("small", "next")]
    assert 0 < counts[0] < counts[1]  # the moments go on from where they were


def test_config_repeats_a_run(cli: Command, trained: Path):
    good(cli("train", "ppo", "CartPole-v1", "--config", trained, "--out", "again", "--quiet"))
    assert Path("again/policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()
    Path("flat.json").write_text('{"gamma": 0.9, "clip_range": [0.1, 0.3], "hidden_sizes": [16], "fast": false, "surrogate": "clipped"}')
    good(cli(*TRAIN, "--config", "flat.json", "--gamma", "0.8", "--total-steps", "32", "--out", "flat", "--quiet"))
    config = Run.load("flat").config
    assert config["algorithm"]["gamma"] == 0.8 and config["algorithm"]["clip_range"] == [0.1, 0.3]
    assert config["policy"]["hidden_sizes"] == [16]


def test_a_run_in_python(tmp_path: Path):
    small = RunConfig.of("ppo", "CartPole-v1", num_envs=2, num_steps=16, num_minibatches=2, num_epochs=1, total_steps=32, eval_episodes=2)
    run = small.run(Output(out=tmp_path / "run", quiet=True))
    assert run.summary is not None and run.summary["episodes"] == 2 and run.env_id == "CartPole-v1"
    assert Run.load(run.path).config == json.loads((run.path / "config.json").read_text())
    by_hand = RunConfig(
        env_id="CartPole-v1",
        algorithm=PPO(gamma=0.9),
        collector=StepsSettings(num_envs=2, num_steps=16),
        policy=PolicySettings(hidden_sizes=(8,)),
        settings=RunSettings(total_steps=32, eval_episodes=1),
    ).run(Output(out=tmp_path / "second", quiet=True))
    assert by_hand.summary is not None and 32 <= by_hand.summary["total_steps"] < 64


def test_settings_by_name_in_python():
    with pytest.raises(UsageError, match="unknown setting 'num_env': did you mean 'num_envs'"):
        RunConfig.of("ppo", "CartPole-v1", num_env=3)
    with pytest.raises(UsageError, match="wrong type"):
        RunConfig.of("ppo", "CartPole-v1", num_envs="3")
    with pytest.raises(UsageError, match="did you mean 'ppo'"):
        RunConfig.of("pp", "CartPole-v1")
    assert isinstance(RunConfig.of("reinforce", "CartPole-v1").collector, EpisodesSettings)


def test_every_preset_names_real_settings():
    from upslope.control.presets import FAMILIES, PRESETS

    for env_id, by_algorithm in {**PRESETS, **{f"{name}Pong-v5": item for name, item in FAMILIES.items()}}.items():
        for algorithm in by_algorithm:
            run = RunConfig.of(algorithm, env_id)
            from upslope.run.control_make import check_minibatches

            check_minibatches(run.algorithm, run.collector)
    assert RunConfig.of("ppo", "CartPole").algorithm.update.learning_rate == 3e-3  # without its version


def test_until_return_ends_after_two_good_evaluations(cli: Command, monkeypatch: pytest.MonkeyPatch):
    means = iter([500.0, 400.0, 480.0, 475.0, 1.0])

    seen: list[dict[str, Any]] = []

    class Scripted:
        native, steps, cut_after = False, 0, 0

        def __call__(self, policy: Any, episodes: int | None = None) -> EvaluationResult:
            seen.append({name: tensor.clone() for name, tensor in policy.state_dict().items()})
            return EvaluationResult.of([Played(next(means), 1, ended=True)])

        def state_dict(self) -> dict[str, Any]:
            """Nothing is remembered."""
            return {}

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr("upslope.run.control.Control.make_evaluator", lambda self: Scripted())
    good(cli(*TRAIN, "--until-return", "475", "--eval-every", "64", "--total-steps", "2000", "--out", "run", "--quiet"))
    run = Run.load("run")
    rows = [row["evaluation_return"] for row in run.metrics() if "evaluation_return" in row]
    assert rows == [500.0, 400.0, 480.0, 475.0]
    # the last number is the final policy's own: whether the run is solved was decided by the two before it
    assert run.summary is not None and run.summary["solved"] is True and run.summary["return_mean"] == 1.0
    assert run.summary["best_return"] == 500.0
    for policy, expected in ((run.best_policy, seen[0]), (run.policy, seen[-1])):
        assert all((tensor == expected[name]).all() for name, tensor in policy.state_dict().items())
    assert any((seen[0][name] != seen[-1][name]).any() for name in seen[0])


def test_evaluations_come_every_2048_steps():
    for settings in ({"until_return": 475.0}, {"until_solved": True}):
        prepared = RunConfig.of("ppo", "CartPole-v1", **settings).prepare()
        assert prepared.config.settings.eval_every == 2048
        prepared.close()


def test_loggers_get_every_row(cli: Command, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for Weights & Biases: what it is opened with, what it is told, that it is closed."""
    logged: list[tuple[dict[str, float], int]] = []
    opened: dict[str, Any] = {}
    closed: list[bool] = []
    online = SimpleNamespace(log=lambda row, step: logged.append((row, step)), finish=lambda: closed.append(True))
    fake = SimpleNamespace(init=lambda **given: opened.update(given) or online, Settings=lambda **given: given)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("upslope.run.session.check_loggers", lambda names: None)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    good(cli(*TRAIN, "--total-steps", "64", "--wandb", "--out", "run", "--quiet"))
    rows = Run.load("run").metrics()
    assert [step for _, step in logged] == [row["total_steps"] for row in rows] and closed == [True]
    assert logged[0][0]["approx_kl"] == rows[0]["approx_kl"] and "total_steps" not in logged[0][0]
    assert (opened["mode"], opened["config"]["env_id"]) == ("offline", "CartPole-v1") and Path(opened["dir"]) == Path("run").resolve()


def test_mlflow_gets_every_row(cli: Command, monkeypatch: pytest.MonkeyPatch):
    told: dict[str, list[Any]] = {"param": [], "metric": [], "ended": []}
    client = SimpleNamespace(
        get_experiment_by_name=lambda name: SimpleNamespace(experiment_id=f"number of {name}"),
        create_run=lambda number, run_name: SimpleNamespace(info=SimpleNamespace(run_id=(number, run_name))),
        log_param=lambda *given: told["param"].append(given),
        log_metric=lambda *given, step: told["metric"].append((*given, step)),
        set_terminated=told["ended"].append,
    )
    places: list[str] = []
    tracking = SimpleNamespace(MlflowClient=lambda tracking_uri: places.append(tracking_uri) or client)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(tracking=tracking))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.setattr("upslope.run.session.check_loggers", lambda names: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    good(cli(*TRAIN, "--total-steps", "64", "--mlflow", "--out", "run", "--quiet"))
    identity = ("number of upslope", "run")
    assert places == [f"sqlite:///{Path('run/mlflow.db').resolve()}"] and told["ended"] == [identity]
    assert (identity, "algorithm.gamma", "0.99") in told["param"] and (identity, "env_id", "CartPole-v1") in told["param"]
    rows = Run.load("run").metrics()
    assert [(value, step) for _, name, value, step in told["metric"] if name == "approx_kl"] == [
        (row["approx_kl"], row["total_steps"]) for row in rows
    ]


def test_tensorboard_files(cli: Command):
    pytest.importorskip("tensorboard")
    good(cli(*TRAIN, "--total-steps", "32", "--tensorboard", "--out", "run", "--quiet"))
    assert list(Path("run/tensorboard").glob("events.*"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("run/tensorboard")
    events.Reload()
    found = {tag: event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    row = Run.load("run").metrics()[-1]
    assert found["update/learning_rate"] == pytest.approx(row["learning_rate"]) and found["update/approx_kl"] == pytest.approx(
        row["approx_kl"]
    )
    assert {"rollout/episode_return", "time/train_seconds", "update/entropy", "update/value_error"} <= found.keys()
    assert {tag.partition("/")[0] for tag in found} <= {"rollout", "update", "time", "evaluation"}


def test_rows_say_with_which_rate_and_spread_an_iteration_learned(cli: Command):
    settings = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--total-steps", "96", "--quiet", "--out", "run"]
    good(cli("train", "ppo", "Pendulum-v1", *settings, "--learning-rate", "0.01", "--schedule", "linear", "--log-std", "-1"))
    rates, spreads = zip(*((row["learning_rate"], row["action_std"]) for row in Run.load("run").metrics()), strict=True)
    assert rates == pytest.approx([0.01, 0.01 * (1 - 1 / 3), 0.01 * (1 - 2 / 3)], rel=0.05)
    assert spreads == pytest.approx([np.exp(-1.0)] * len(spreads), rel=0.05) and len(set(spreads)) == len(spreads)


def test_reinforce_and_a2c_run(cli: Command):
    good(
        cli(
            "train", "reinforce", "CartPole-v1", "--num-envs", "2", "--total-steps", "60", "--eval-episodes", "1", "--no-fast", "--out", "r"
        )
    )
    good(cli("train", "a2c", "Pendulum-v1", "--num-envs", "2", "--total-steps", "60", "--eval-episodes", "1", "--no-fast", "--out", "a"))
    assert Run.load("r").config["collector"] == {"num_envs": 2, "num_episodes": None}
    assert Run.load("a").summary["solved"] is False  # type: ignore[index]


def test_reward_scale_changes_what_is_learned_not_what_is_told(cli: Command):
    for out, scale in (("a", "1"), ("b", "100")):
        flags = ["--num-envs", "1", "--num-steps", "400", "--num-minibatches", "1", "--total-steps", "400", "--no-normalize-value"]
        good(cli("train", "ppo", "Pendulum-v1", *SHORT, *flags, "--reward-scale", scale, "--out", out, "--quiet"))
    a, b = (Run.load(out).metrics()[0] for out in ("a", "b"))
    assert a["episode_return"] == b["episode_return"] and a["value_error"] != b["value_error"]
