"""What a run says of itself: each kind of failure is seen, and what only looks like one is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from tests.cli.conftest import Command, good
from upslope import Run
from upslope.control import MLPPolicy
from upslope.run.evaluations import Point
from upslope.run.health import RULES, WATCHED, findings, not_checked
from upslope.run.history import History
from upslope.run.watch import Watch


def points(*means: float, std: float = 10.0, every: int = 1000) -> list[Point]:
    return [Point(every * (i + 1), mean, std, 20) for i, mean in enumerate(means)]


def history(rows: list[dict[str, float]] | None = None, means: tuple[float, ...] = (20.0, 300.0, 480.0), **options: Any) -> History:
    found = points(*means, std=options.pop("std", 10.0), every=int(options.pop("every", 1000)))
    goal, dims, error = options.pop("goal", None), int(options.pop("action_dims", 0)), options.pop("error", None)
    return History(rows or [], found, found[-1], goal, dims, options, error)


def rows(**metrics: list[float]) -> list[dict[str, float]]:
    """Columns as rows."""
    return [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]


TENS, THOUSANDS = [10.0 * i for i in range(10)], [10_000.0 * i for i in range(10)]  # every tenth row is kept
ROOT = Path(__file__).parents[2]
FLAT = [-1230.0, -1180.0, -1250.0, -1210.0] * 10


def swing_up(*means: float, returns: list[float] = FLAT, std: float = 200.0, every: int = 30_000, goal: float | None = -200.0) -> History:
    """Pendulum, where a policy that does nothing has about −1,200."""
    found = points(*means, std=std, every=every)
    return History(rows(episode_return=returns), found, found[-1], goal, action_dims=1)


WELL = {
    "TD errors near 1": history(rows(td_error_squared=[4.0] * 40)),
    "no TD errors any more, of what was learned": history(rows(td_error_squared=[1.0] * 10 + [1e-9] * 30), goal=475.0),
    "the last is the best": history(),
    "little was gained, of much that was asked for": history(means=(9.0, 30.0, 9.0), goal=475.0),
    "much below the best of evaluations that began when most was learned": history(
        rows(episode_return=[10.0, 11.0, 12.0, 13.0, 12.0] + [19.0] * 20), means=(19.3, 19.9, 19.3), std=0.3
    ),
    "a little below the best": history(means=(20.0, 500.0, 440.0)),
    "far below, but at the goal": history(means=(20.0, 500.0, 380.0), goal=375.0),
    "noise about nothing learned": history(means=(-1210.0, -1150.0, -1180.0, -1230.0), std=200.0),
    "one large KL": history(rows(approx_kl=[0.02] * 50 + [2.0] + [0.02] * 50)),
    "a KL to a reference": history(rows(kl=[5.0] * 50, approx_kl=[0.01] * 50)),
    "certain, and good": history(rows(entropy=[0.69] * 10 + [0.001] * 40)),
    "certain, and good from the first evaluation on": history(
        rows(entropy=[0.69] * 10 + [0.001] * 40, reward_per_step=[0.5, 0.4] * 10 + [1.0] * 30), means=(1.0, 1.0), std=0.0
    ),
    "certain, and at the goal": history(rows(entropy=[0.69] * 10 + [0.001] * 40), means=(500.0, 500.0), goal=475.0),
    "less entropy of continuous actions": history(rows(entropy=[1.4] * 10 + [-0.8] * 40), action_dims=1),
    "the same of six": history(rows(entropy=[8.0] * 10 + [-6.0] * 40), action_dims=6),
    "equal groups at the top": history(rows(dead_groups=[0.2] * 20 + [1.0] * 20), means=(20.0, 500.0, 500.0)),
    "some groups": history(rows(dead_groups=[0.9] * 40), means=(0.1, 0.1)),
    "now and then no step": history(rows(accepted=[1.0, 0.0, 0.0, 1.0] * 10), means=(0.1, 0.1)),
    "no better, of few steps": swing_up(-1240.0, -1210.0, -1280.0, every=10_000),
    "no better, of few iterations": swing_up(-1240.0, -1210.0, -1280.0, returns=FLAT[:19]),
    "no better, of an unknown goal": swing_up(-1240.0, -1210.0, -1280.0, goal=None),
    "better in training": swing_up(-300.0, -320.0, -310.0, returns=[-1200.0, -1250.0, -1210.0, -800.0, -500.0] + [-330.0, -290.0] * 20),
    "better, and not at the goal": swing_up(-1240.0, -1000.0, -940.0),
    "at the goal from the first evaluation on": swing_up(-150.0, -160.0, -190.0),
    "perhaps a fourth of the way": swing_up(-1240.0, -1100.0, -960.0, std=600.0),
    "many steps clipped, yet not most": history(rows(clip_fraction=[0.4] * 40)),
    "a critic that explained something once": history(rows(explained_variance=[0.0] * 20 + [0.3] * 9 + [-1.0] * 20), means=(9.0, 9.0)),
    "a critic with nothing left to explain": history(
        rows(explained_variance=[-2.0] * 40, value_error=[0.1] * 5 + [1e-6] * 35, episode_return=[-200.0, -201.0] * 20),
        means=(-200.0, -200.0),
    ),
    "a critic with nothing to explain": history(rows(explained_variance=[0.0] * 40, episode_return=[8.0] * 39 + [9.0]), goal=400.0),
    "a gradient that grew with the returns": history(rows(gradient_norm=[0.1] * 10 + [500.0] * 30)),
    "weights that move little, and enough": history(rows(weight_change=[1e-4] * 40), means=(0.1, 0.1)),
    "a discount of many steps": history(rows(episode_length=[200.0] * 40), means=(9.0, 9.0), gamma=0.95),
    "a short discount, and learned": history(rows(episode_length=[200.0] * 40), gamma=0.5),
    "large rewards in units of their own": history(
        rows(reward_per_step=[1e6] * 40, value_error=[1.0] * 40), (9.0, 9.0), normalize_value=True
    ),
    "longer and better": history(rows(completion_length=[5.0] * 20 + [40.0] * 20, reward=[0.1, 0.2] * 10 + [0.8, 0.9] * 10), (0.1, 0.1)),
    "all of the data counts": history(rows(effective_sample_size=[900.0] * 10, total_steps=THOUSANDS, iteration=TENS)),
    "too short to say": history(rows(entropy=[0.69, 0.0], dead_groups=[1.0, 1.0], accepted=[0.0, 0.0]), means=(9.0, 9.0)),
    "no TD errors any more, for the policy is stuck": history(rows(td_error_squared=[5e3] + [1e-8] * 39), (20.0, 20.0, 20.0), goal=475.0),
}
ILL = {
    "TD errors in millions, until the policy was stuck": (
        history(rows(td_error_squared=[1e12] + [1e-8] * 39), means=(20.0, 20.0, 20.0), goal=475.0),
        "TD errors are about 1e+06 at first, and this method's steps are in the units of rewards; try --reward-scale 1e-06",
    ),
    "TD errors in millions": (
        history(rows(td_error_squared=[1e12] * 10)),
        "TD errors are about 1e+06, and this method's steps are in the units of rewards; try --reward-scale 1e-06",
    ),
    "TD errors of nothing learned in millionths": (
        history(rows(td_error_squared=[1e-12] * 40), means=(20.0, 20.0, 20.0), goal=475.0),
        "TD errors are about 1e-06, and this method's steps are in the units of rewards; try --reward-scale 1e+06",
    ),
    "far below the best": (
        history(means=(20.0, 500.0, 155.0), goal=475.0),
        "the final policy has 155, far below the 500 after 2,000 steps, which --policy best takes (the goal is 475)",
    ),
    "below what training began with": (
        History([], [Point(0, 0.6, 0.5, 256), Point(500, 0.2, 0.4, 256)], Point(500, 0.2, 0.4, 256)),
        "the final policy has 0.2, far below the 0.6 before training",
    ),
    "KL": (
        history(rows(approx_kl=[0.02] * 20 + [0.6, 0.01, 3.0, 200.0] * 5)),
        "by more than 0.3 nats of KL in 15 of 40 iterations on record (up to 200;",
    ),
    "KL that is no number": (history(rows(approx_kl=[0.01] * 20 + [float("nan")] * 5)), "nats of KL in 5 of 25 iterations"),
    "KL of a natural gradient": (history(rows(kl=[1.0] * 20, improvement=[0.1] * 20)), "nats of KL in 20 of 20 iterations"),
    "certain, and bad": (
        history(rows(entropy=[0.69] * 3 + [0.001] * 40, episode_return=[20.0, 25.0, 16.0] + [9.3, 9.4] * 20), means=(9.3, 9.4)),
        "the entropy fell from 0.69 to 0.001",
    ),
    "certain, which is why nothing was learned": (
        history(rows(entropy=[0.69] * 3 + [0.001] * 40), means=(9.3, 9.4), every=30_000, goal=475.0),
        "the entropy fell from 0.69 to 0.001",
    ),
    "noise": (history(rows(entropy=[1.4] * 10 + [9.0] * 40), action_dims=1), "the entropy of the actions rose from 1.40 to 9.00"),
    "frozen": (
        history(rows(entropy=[1.4] * 10 + [-7.0] * 40), means=(-1400.0, -1390.0), std=100.0, action_dims=1),
        "the entropy of the actions fell from 1.40 to -7.00",
    ),
    "dead groups": (
        history(rows(dead_groups=[0.3] + [1.0] * 40), means=(0.0, 0.0), std=0.0),
        "in the last 9 iterations the members of every",
    ),
    "nothing": (
        swing_up(-1240.0, -1090.0, -1280.0),
        "nothing was learned in 90,000 steps: the final policy has -1280, no better than the -1240 after 30,000 steps",
    ),
    "certain from the first update on": (
        history(rows(entropy=[0.02] * 3 + [0.001] * 40, episode_return=[20.0, 25.0, 16.0] + [9.3, 9.4] * 20), means=(9.3, 9.4)),
        "the entropy fell from 0.02 to 0.001",
    ),
    "clipped": (history(rows(clip_fraction=[0.1] * 10 + [0.8] * 10)), "80% of each batch ended outside the clip range"),
    "equal advantages": (history(rows(zero_spread=[0.0] + [1.0] * 20), means=(9.0, 9.0)), "all advantages of a batch are equal"),
    "equal returns": (history(rows(episode_return=[-200.0] * 20), means=(-200.0, -200.0)), "every episode of training returned -200"),
    "a dead critic": (
        history(rows(explained_variance=[-0.2, 0.01] * 20, episode_return=[9.0, 10.0] * 20), means=(9.0, 9.0)),
        "at its best the critic explained 1% of the variance",
    ),
    "a gradient that explodes": (
        history(rows(gradient_norm=[0.5] * 10 + [1e4] * 30), means=(9.0, 9.0)),
        "the gradient's norm grew from 0.5 to 1e+04",
    ),
    "steps that were skipped": (
        history([{"skipped_steps": 2.0, "gradient_norm": 1.0}, {"gradient_norm": 1.0}]),
        "2 gradient steps were not",
    ),
    "weights that stand still": (history(rows(weight_change=[1e-9] * 40), means=(0.1, 0.1)), "moved the weights by 4e-08 of their size"),
    "weights below their precision": (history(rows(weights_moved=[0.002] * 40), means=(0.1, 0.1)), "an update moved 0.2% of the weights"),
    "another policy's probabilities": (
        history(error="ratio: expected 1 on the first minibatch of an update, found exp(±0.5)"),
        "ratio: expected 1 on the first minibatch",
    ),
    "a sampler that thinks otherwise": (history(rows(mismatch=[0.4] * 10)), "differ by 0.4 nats"),
    "data of another policy": (
        history(rows(effective_sample_size=[3.0] * 10, total_steps=THOUSANDS, iteration=TENS)),
        "importance weights leave 0.30% of the steps with a say",
    ),
    "blind to the end": (history(rows(episode_length=[200.0] * 40), means=(9.0, 9.0), gamma=0.5), "credited with about 2 steps"),
    "rewards of millions": (
        history(rows(reward_per_step=[-1e6] * 40, value_error=[1e12] * 40), means=(9.0, 9.0), gamma=0.95, normalize_value=False),
        "discounted returns are about 2e+07",
    ),
    "longer for nothing": (
        history(rows(completion_length=[5.0] * 20 + [40.0] * 20, reward=[0.4, 0.5] * 20), means=(0.1, 0.1)),
        "completions grew from 5 to 40 tokens while the reward stayed at 0.45",
    ),
    "no step": (history(rows(accepted=[1.0] + [0.0] * 40), means=(9.0, 9.0)), "accepted no step in the last 9 iterations"),
}


@pytest.mark.parametrize("found", WELL.values(), ids=WELL.keys())
def test_what_went_well_is_not_complained_about(found: History):
    assert findings(found) == []


@pytest.mark.parametrize("found, words", ILL.values(), ids=ILL.keys())
def test_what_went_wrong_is_said_once_with_its_numbers_and_what_to_try(found: History, words: str):
    (said,) = map(str, findings(found))
    assert words in said and "; try " in said and "\n" not in said


def test_every_rule_is_seen_to_speak_and_names_what_it_reads():
    spoken = {finding.rule for found, _ in ILL.values() for finding in findings(found)}
    assert spoken == {rule.name for rule in RULES} - {"failed"}
    assert [finding.rule for finding in findings(history(error="RuntimeError: no"))] == ["failed"]
    assert {name for rule in RULES for name in rule.reads} <= set(WATCHED)
    assert "dead critic" in not_checked(history(rows(entropy=[0.5] * 10)))


def test_a_run_in_progress_is_not_told_of_what_only_its_end_can_say():
    lost = history(means=(20.0, 500.0, 155.0), goal=475.0)
    assert findings(lost) and not findings(lost, live=True)
    assert findings(history(rows(clip_fraction=[0.8] * 10)), live=True)


def test_the_way_of_the_weights_is_that_of_the_actor_since_it_was_last_asked():
    policy = MLPPolicy((spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)), seed=0, normalize_value=False)
    assert policy.critic is not None
    only_critic = {id(parameter) for parameter in policy.critic.parameters()}
    watch = Watch(policy)
    with torch.no_grad():
        for parameter in policy.critic.parameters():
            parameter.add_(5.0)
    assert watch.weight_change() == 0.0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.0 if id(parameter) in only_critic else 1.25)
    assert watch.weight_change() == pytest.approx(0.2) and watch.weight_change() == 0.0


def test_a_live_warning_is_said_once_and_not_again_after_going_on():
    watch, ill = Watch(torch.nn.Linear(2, 2)), history(rows(clip_fraction=[0.8] * 10))  # type: ignore[arg-type]
    assert watch.look(ill, fraction=0.1) == []
    assert len(watch.look(ill, fraction=0.3)) == 1
    later = Watch(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    later.load_state_dict(watch.state_dict())
    assert watch.look(ill, fraction=0.5) == [] == later.look(ill, fraction=0.5)


def test_the_doctor_finds_in_the_folder_what_the_run_said_at_its_end(cli: Command):
    """And nothing else, though it knows nothing but the files."""
    flags = ["--num-envs", "4", "--num-steps", "32", "--clip-range", "0.0001", "--target-kl", "none", "--learning-rate", "0.01"]
    out = good(cli("train", "ppo", "CartPole-v1", *flags, "--total-steps", "4000", "--eval-episodes", "5", "--out", "run")).out
    assert out.count("warning: ") >= 1 and "outside the clip range" in out
    summary = json.loads(Path("run/summary.json").read_text())
    answer = cli("doctor", "run")
    assert answer.code == 1 and "clip saturation: " in answer.out
    assert "for want of numbers: stale log-probabilities, dead groups" in answer.out
    answer = cli("doctor", "run", "--json")
    Path("runs/report").mkdir(parents=True)
    Path("runs/report/ladder.json").write_text("{}")
    assert "left out runs/report: a report" in cli("doctor", "runs/report", "run").err
    found = json.loads(answer.out)
    assert [f"{each['seen']}; {each['change']}" for each in found["findings"]] == summary["warnings"]
    Path("run/summary.json").unlink()  # as if it were still running
    assert "still running, or was killed" in cli("doctor", "run").out


@pytest.mark.parametrize(
    "found, put",
    [('"total_steps": 1', '"total_steps": 1e400'), ('"iterations": ', '"iterations": "many", "i": '), ('"goal": 475.0', '"goal": "all"')],
)
def test_numbers_that_are_none_are_damage(found: str, put: str, cli: Command, trained: Path):
    shutil.copytree(trained, "odd")
    for path in (Path("odd/summary.json"), Path("odd/config.json")):
        path.write_text(path.read_text().replace(found, put, 1))
    answer = cli("doctor", "odd")
    assert answer.code == 2 and answer.out == "" and answer.err.startswith("upslope: odd is damaged: its numbers are not"), answer


def test_what_is_not_finite_is_nothing_in_memory_and_on_disk(cli: Command):
    """FrozenLake's first returns are all equal, so the critic's explained variance is no number."""
    flags = [
        "--env-kwargs",
        '{"is_slippery": false}',
        "--num-envs",
        "2",
        "--num-episodes",
        "2",
        "--total-steps",
        "900",
        "--eval-episodes",
        "2",
    ]
    good(cli("train", "reinforce", "FrozenLake-v1", *flags, "--out", "run", "--quiet"))
    summary = json.loads(Path("run/summary.json").read_text())
    found = json.loads(cli("doctor", "run", "--json").out)["findings"]
    assert not any("nan" in words for words in summary["warnings"])
    assert [f"{each['seen']}; {each['change']}" for each in found] == summary["warnings"]


def test_a_run_at_its_goal_without_evaluations_on_the_way_is_well(cli: Command, monkeypatch: pytest.MonkeyPatch):
    """Its groups are all alike, as in any run that is perfect."""
    monkeypatch.setattr("upslope.run.control.known_goal", lambda *_, **__: 9.0)
    flags = ["--group-size", "2", "--num-groups", "1", "--total-steps", "400", "--eval-every", "0", "--eval-episodes", "2"]
    good(cli("train", "grpo", "faulty:walk", *flags, "--out", "run", "--quiet"))
    assert json.loads(Path("run/summary.json").read_text())["warnings"] == []
    assert cli("doctor", "run").code == 0


def test_the_doctor_has_nothing_to_say_of_a_run_that_is_well(cli: Command, trained: Path):
    answer = cli("doctor", trained, trained)
    assert answer.code == 0 and answer.out.count("nothing to complain of") == 2 and answer.err == ""


def test_a_goal_is_that_of_the_tasks_own_time_limit(cli: Command):
    """Acrobot counts as solved at -100, which every policy reaches that is stopped after 50 steps."""
    flags = ["--max-episode-steps", "50", "--total-steps", "256", "--num-envs", "2", "--num-steps", "16", "--num-minibatches", "1"]
    good(cli("train", "ppo", "Acrobot-v1", *flags, "--eval-episodes", "2", "--quiet", "--out", "run"))
    assert json.loads(Path("run/summary.json").read_text())["solved"] is None
    answer = cli("train", "ppo", "Acrobot-v1", *flags, "--until-solved")
    assert answer.code == 2 and "counts as solved at -100 in 500 steps, not in 50; say it with until_return" in answer.err


def test_a_run_that_stood_still_says_so_last(cli: Command, monkeypatch: pytest.MonkeyPatch):
    """The line search starts so far away that no try comes back into the region."""
    monkeypatch.setattr("upslope.updates.trust_region.longest", lambda max_kl, curvature: 1e6)
    flags = ["--num-envs", "2", "--num-steps", "16", "--num-value-minibatches", "1", "--total-steps", "320", "--eval-episodes", "2"]
    out = good(cli("train", "trpo", "CartPole-v1", *flags, "--num-value-epochs", "1", "--out", "run")).out
    summary = json.loads(Path("run/summary.json").read_text())
    assert any("accepted no step" in words for words in summary["warnings"]), summary
    assert out.rstrip().endswith(summary["warnings"][-1])


def test_a_run_that_is_well_says_nothing(trained: Path):
    assert Run.load(trained).summary["warnings"] == []  # type: ignore[index]


def test_dead_groups_of_environments_are_seen(cli: Command):
    good(
        cli(
            "train",
            "grpo",
            "faulty:walk",
            "--group-size",
            "2",
            "--num-groups",
            "2",
            "--total-steps",
            "400",
            "--eval-episodes",
            "2",
            "--quiet",
            "--out",
            "run",
        )
    )
    assert any("every group had the same score" in words for words in Run.load("run").summary["warnings"])  # type: ignore[index]


def test_the_page_quotes_what_was_measured():
    measured = json.loads((ROOT / "benchmarks" / "results" / "doctor.json").read_text(encoding="utf-8"))["found"]
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert f"**{measured['recall']}** sick runs" in page and f"**{measured['false_alarms']}** healthy runs" in page
    for kind, found in measured["by_kind"].items():
        assert f"| {kind} | {found} |" in page
    named = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert {rule.name for rule in RULES} - {"failed"} <= named
