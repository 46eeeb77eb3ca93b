"""Runs that stop and go on: killed, interrupted, damaged, finished; and the command that tries it out."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from safetensors.torch import load, save

from tests.children import python
from tests.cli.conftest import SHORT, Answer, Command, good
from upslope import Run, RunFault, UsageError
from upslope.control.guard import Misbehaved
from upslope.run.checkpoints import STATE, checkpoints_in, newest, write_checkpoint
from upslope.run.config import RunConfig
from upslope.run.control import Control
from upslope.run.evaluations import Point, Points
from upslope.run.folder import Output, is_kept
from upslope.run.replay import Replay, replay
from upslope.run.resume import locked
from upslope.run.session import Session
from upslope.run.train import RunState
from upslope.run.verify import NOT_COMPARED, StopAt, differences, run_in_process, verify_resume
from upslope.updates.schedules import SCHEDULES

SMALL = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "num_epochs": 1, "hidden_sizes": (4,), "eval_episodes": 2}


def config(**settings) -> RunConfig:
    return RunConfig.of("ppo", "CartPole-v1", **{"total_steps": 320, "seed": 1, **SMALL, **settings})


def rows(path: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if not name.endswith(NOT_COMPARED)} for row in Run.load(path).metrics()]


def stopped(path: Path, iteration: int, **settings) -> RunConfig:
    """A run that was killed: what its folder holds when its process is gone behind an iteration."""
    chosen = config(**settings)
    chosen.run(Output(out=path, quiet=True), callbacks=[StopAt(iteration)])
    for name in ("summary.json", "curve.png"):
        (path / name).unlink()
    return chosen


def bad(answer: Answer) -> str:
    """The one line of an answer with exit code 2."""
    assert answer.code == 2 and answer.err.count("\n") == 1, answer
    return answer.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    config().run(Output(out=path, quiet=True))
    return path


# ------------------------------------------------------------------------------------------------------------------ going on


def test_a_killed_run_goes_on_to_the_bit_in_other_processes(tmp_path: Path):
    found = verify_resume(config(eval_every=64), tmp_path, iterations=6, kill_at=3)
    assert (found.differs, found.rows, found.resumed_at) == ([], 6, 3)
    assert found.tensors > 15


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_so_does_a_language_run_with_its_warm_start_and_its_reference(method: str, tmp_path: Path):
    settings = {"warm_start_iterations": 3, "iterations": 6, "eval_episodes": 2}
    settings |= {"kl_coef": 0.1, "group_size": 2, "num_prompts": 2, "max_tokens": 4} if method == "grpo" else {"batch_size": 2}
    chosen = RunConfig.of(method, model="tiny", task="addition", **settings)
    found = verify_resume(chosen, tmp_path, iterations=4, kill_at=2)
    assert (found.differs, found.rows, found.resumed_at) == ([], 4, 2)


def test_what_was_written_behind_the_checkpoint_is_computed_again(whole: Path, tmp_path: Path):
    chosen = stopped(tmp_path / "run", 4)
    (tmp_path / "run" / "best_policy.safetensors").unlink()  # of a last evaluation, which a run that is killed does not make
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "total_steps": 999}\n{"iteration": 6, "tot')
    chosen.session(Output(quiet=True), resumed=tmp_path / "run").run()
    assert rows(tmp_path / "run") == rows(whole)
    assert (tmp_path / "run" / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (whole, tmp_path / "run")]
    assert summaries[1].pop("resumed_at") == [4]
    measured = {"train_seconds", "wall_seconds", "steps_per_second"}
    assert {name: value for name, value in summaries[0].items() if name not in measured} == {
        name: value for name, value in summaries[1].items() if name not in measured
    }


def test_a_long_run_keeps_a_row_of_every_tenth_iteration_and_all_evaluations():
    assert [is_kept(i) for i in (1, 9_999, 10_001, 10_010, 100_010, 100_100)] == [True, True, False, True, False, True]
    assert sum(is_kept(i) for i in range(1, 1_000_001)) == 9_999 + 9_000 + 9_000 + 1


def test_where_not_every_row_is_kept_a_run_goes_on_all_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped between two rows: what follows is what an uninterrupted run writes, and a step that was not written plays again."""
    monkeypatch.setattr("upslope.run.session.is_kept", lambda iteration: iteration % 3 == 0)
    settings = {"eval_every": 100}
    config(**settings).run(Output(out=tmp_path / "thin", quiet=True))
    kept = [row["iteration"] for row in rows(tmp_path / "thin")]
    evaluated = [row["iteration"] for row in rows(tmp_path / "thin") if "evaluation_return" in row]
    assert evaluated and kept == sorted({*range(3, 11, 3), *evaluated}) and len(kept) < 10
    for last in (5, 6):
        run = tmp_path / f"stopped-{last}"
        stopped(run, last, **settings).session(Output(quiet=True), resumed=run).run()
        assert rows(run) == rows(tmp_path / "thin")
        summaries = [json.loads((path / "summary.json").read_text()) for path in (run, tmp_path / "thin")]
        assert len({(one["iterations"], one["total_steps"], one["return_mean"]) for one in summaries}) == 1
    assert 5 not in kept
    again = replay(Run.load(run), config(**settings), 5)
    assert not again.differs and "its row of metrics was not kept" in again.lines()[0]


def test_a_damaged_checkpoint_is_passed_over_and_named(whole: Path, tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    stopped(run, 4)
    newer = checkpoints_in(run)[0]
    (newer / STATE).write_bytes((newer / STATE).read_bytes().replace(b"1", b"2", 1))
    answer = good(cli("resume", run))
    assert "going on after iteration 1, step 32" in answer.out
    assert "iteration-00000004 is damaged: its files are not those that its manifest describes" in answer.out
    assert rows(run) == rows(whole)


def test_rows_that_are_lost_are_an_error(tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 4)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "rows are lost" in bad(cli("resume", tmp_path / "run"))


@pytest.mark.parametrize(
    "found, put",
    [
        ('"entropy": 0.6', '"entropy": 0.5'),
        ('"iteration": 4', '"iteration": 5'),
        ('"total_steps": 32', '"total_steps": {2'),
        (": ", ":\xff"),
    ],
)
def test_rows_that_are_not_those_of_the_checkpoint_are_an_error(found: str, put: str, tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 4)
    path = tmp_path / "run" / "metrics.jsonl"
    assert found in path.read_text()
    path.write_text(path.read_text().replace(found, put, 1), encoding="latin-1")
    assert "metrics.jsonl is damaged: " in bad(cli("resume", tmp_path / "run"))


def test_a_signal_leaves_a_checkpoint_of_its_iteration(tmp_path: Path):
    run, words = tmp_path / "run", ["-m", "upslope", "train", "ppo", "CartPole-v1", "--total-steps", "1e7", "--quiet", "--out"]
    with python([*words, run]) as process:
        limit = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    found = newest(run)
    assert found is not None
    assert found.state["run"]["iteration"] == Run.load(run).metrics()[-1]["iteration"]


# ------------------------------------------------------------------------------------------------------------- what cannot


def test_a_finished_run_goes_on_to_a_larger_budget_only(tmp_path: Path, cli: Command):
    config().run(Output(out=tmp_path / "run", quiet=True))
    done = len(rows(tmp_path / "run"))
    assert "of its 320 steps; --total-steps N goes on to a larger budget" in bad(cli("resume", tmp_path / "run"))
    good(cli("resume", tmp_path / "run", "--total-steps", "400"))
    assert len(rows(tmp_path / "run")) > done
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["total_steps"] == 400


def test_a_larger_budget_that_moves_the_learning_rate_says_so(tmp_path: Path, cli: Command):
    for schedule, words in (("linear", "% of its size, where it was at 0%"), ("constant", "")):
        run = tmp_path / schedule
        config(schedule=SCHEDULES[schedule]).run(Output(out=run, quiet=True))
        out = good(cli("resume", run, "--total-steps", "400")).out
        assert words in out and ("schedule spans the budget" in out) is bool(words)


def test_data_that_are_others_by_now_are_named(tmp_path: Path, cli: Command):
    data = Path("said.jsonl")
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(4)))
    flags = ["--model", "tiny", "--task", data, "--batch-size", "2", "--eval-episodes", "2"]
    good(cli("train", "sft", *flags, "--iterations", "2", "--out", "run"))
    assert "not to the bit" not in good(cli("resume", "run", "--iterations", "3")).out
    data.write_text(data.read_text().replace("3+1=", "5+1="))
    assert "not to the bit what it would have been: said.jsonl " in good(cli("resume", "run", "--iterations", "4")).out


def test_a_run_without_a_checkpoint_is_an_error(trained: Path, tmp_path: Path, cli: Command):
    assert "there is no such folder" in bad(cli("resume", "nowhere"))
    config().run(Output(out=tmp_path / "run", quiet=True))
    for path in checkpoints_in(tmp_path / "run"):
        path.rename(tmp_path / path.name)
    why = "this run is finished, and its folder has no checkpoint to go on from"
    assert bad(cli("resume", tmp_path / "run")).endswith(f"{why}\n")
    assert f"{why}; train anew for 640 steps" in bad(cli("resume", tmp_path / "run", "--total-steps", "640"))
    (tmp_path / "run" / "summary.json").unlink()  # as after a kill in the first iteration
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "stopped before its first iteration ended, so there is no checkpoint" in bad(cli("resume", tmp_path / "run"))


def test_two_processes_never_write_to_one_folder(tmp_path: Path):
    chosen = stopped(tmp_path / "run", 2)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another process is writing there"):
        chosen.session(Output(quiet=True), resumed=tmp_path / "run").run()
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only what is forked has the descriptors of its parent")
def test_what_a_run_leaves_behind_does_not_keep_its_folder_locked(tmp_path: Path):
    heard, tell = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.write(tell, b".")
            time.sleep(60)
            os._exit(0)
        os.read(heard, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_died_since_its_last_step_costs_a_checkpoint_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    state_dict, calls = Control.state_dict, []

    def once(self: Control):
        calls.append(self)
        if len(calls) == 3:
            raise Misbehaved(": worker 1 (of 2, from 0) ended by itself")
        return state_dict(self)

    monkeypatch.setattr(Control, "state_dict", once)
    found = config().run(Output(out=tmp_path / "run", checkpoint_every=0.0))
    assert found.summary is not None and found.summary["status"] == "finished" and len(found.summary["warnings"]) == 1
    assert "no checkpoint after iteration 3: : worker 1" in capsys.readouterr().out and newest(tmp_path / "run") is not None


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise RunFault("cannot write tensors.safetensors: No space left on device")

    monkeypatch.setattr("upslope.run.session.write_checkpoint", full)
    with pytest.raises(RunFault, match="No space left"):
        config().run(Output(out=tmp_path / "run", quiet=True))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_modules_are_named_again(tmp_path: Path, cli: Command):
    good(cli("train", "ppo", "faulty:walk", "--out", "own", "--total-steps", "64", "--num-envs", "1", "--num-steps", "16"))
    assert "to import that module, say --env faulty:walk" in bad(cli("resume", "own", "--total-steps", "128"))
    assert "not to the bit" not in good(cli("resume", "own", "--total-steps", "128", "--env", "faulty:walk")).out
    checkpoint = newest(Path("own"))
    assert checkpoint is not None and "faulty:walk" in checkpoint.state["surroundings"]  # what is in its file by now


def test_what_cannot_be_kept_is_said_once(tmp_path: Path, capsys):
    chosen = config()
    answers = []

    def forget(state) -> None:
        answers.append(state.iteration)
        state.collect.state_dict = lambda: {"inside": object()}

    chosen.run(Output(out=tmp_path / "run"), callbacks=[forget])
    said = "this run cannot be resumed: /run/collect/inside: builtins.object"
    assert capsys.readouterr().out.count(said) == 2  # when it is known, and at the end
    assert said in json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]


def test_a_callback_that_cannot_say_what_it_remembers_costs_no_training(tmp_path: Path, cli: Command):
    class Counter:
        def __call__(self, state) -> bool:
            return state.iteration == 3

        def state_dict(self):
            raise AttributeError("no 'missing'")

        def load_state_dict(self, state) -> None: ...

    config().run(Output(out=tmp_path / "run", quiet=True), callbacks=[Counter()])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (said,) = (line for line in summary["warnings"] if "resumed" in line)
    assert re.search(r"^this run cannot be resumed: \S+Counter\.state_dict\(\) raised AttributeError: no 'missing'", said)
    assert summary["iterations"] == 3 and said[:60] in bad(cli("resume", tmp_path / "run", "--total-steps", "640"))


def test_a_run_whose_goal_was_reached_is_evaluated_with_its_policy_and_no_other(tmp_path: Path, cli: Command):
    """Killed, or interrupted, in its last evaluation: no iteration is left, and what it has learned is."""
    run = tmp_path / "run"
    config(total_steps=60_000, until_return=10.0, eval_every=32).run(Output(out=run, quiet=True))
    before = (run / "policy.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    for left in ("killed", "interrupted"):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").unlink()
        if left == "interrupted":
            (run / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
        again = json.loads(json.dumps({**summary, "wall_seconds": 0}))
        good(cli("resume", run))
        now = json.loads((run / "summary.json").read_text())
        assert ((run / "policy.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before
        assert (now["return_mean"], now["solved"], now["status"]) == (again["return_mean"], True, "finished")


def test_a_folder_that_another_process_went_on_with_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A resume that starts while the run still goes, and is ready when it has ended, finds it ended; nothing is thrown back."""
    run = tmp_path / "run"
    chosen = stopped(run, 4)
    late = chosen.session(Output(quiet=True), resumed=run)
    chosen.session(Output(quiet=True), resumed=run).run()
    before = contents(run)
    with pytest.raises(UsageError, match=r"has made 3\d\d of its 320"):
        late.run()
    assert {name: data for name, data in contents(run).items() if name != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}
    other = tmp_path / "other"
    chosen = stopped(other, 4)
    late = chosen.session(Output(quiet=True), resumed=other)
    chosen.session(Output(quiet=True), resumed=other).run()
    (other / "summary.json").unlink()  # killed behind its last checkpoint
    late.run()
    assert rows(other) == rows(run) and json.loads((other / "summary.json").read_text())["resumed_at"][-1] == 11


def test_the_best_policy_stays_the_best_when_a_run_goes_on(tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    settings = {"eval_every": 64, "schedule": SCHEDULES["constant"]}
    config(**settings).run(Output(out=run, quiet=True))
    before, saved = json.loads((run / "summary.json").read_text()), (run / "best_policy.safetensors").read_bytes()
    evaluation = Run.load(run).written_with("best")["evaluation"]
    assert (evaluation["mean"], evaluation["total_steps"]) == (before["best_return"], before["best_total_steps"])
    good(cli("resume", run, "--total-steps", "384"))
    after = json.loads((run / "summary.json").read_text())
    assert after["best_return"] >= before["best_return"]
    assert ((run / "best_policy.safetensors").read_bytes() == saved) == (after["best_return"] == before["best_return"])
    evaluation = Run.load(run).written_with("best")["evaluation"]
    assert (evaluation["mean"], evaluation["total_steps"]) == (after["best_return"], after["best_total_steps"])


def test_a_budget_in_the_other_world_s_unit_is_refused(tmp_path: Path, cli: Command):
    config().run(Output(out=tmp_path / "run", quiet=True))
    message = "iterations: this run's budget is counted otherwise, found 50; name --total-steps instead"
    assert message in bad(cli("resume", tmp_path / "run", "--iterations", "50"))


def test_an_iteration_is_played_again_with_the_budget_that_it_had(tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    config().run(Output(out=run, quiet=True, checkpoint_iterations=1))
    good(cli("resume", run, "--total-steps", "640", "--checkpoint-iterations", "1"))
    assert json.loads((run / "config.json").read_text())["earlier_budgets"] == [[11, 320]]
    last = Run.load(run).metrics()[-1]["iteration"]
    for iteration in (4, 11, last):
        assert not replay(Run.load(run), config(total_steps=640), iteration).differs
    message = "iteration: no checkpoint is left between iteration 13 and 11, where the run's total_steps became 640 from 320"
    assert message in bad(cli("replay", run, "--iteration", "13"))


def test_budgets_that_a_run_had_are_remembered_whatever_stops_it(tmp_path: Path, cli: Command):
    """The first budget that an iteration had is its own: of several that were asked for at one checkpoint, too."""
    run = tmp_path / "run"
    stopped(run, 4, total_steps=640)
    for budget in ("960", "1280"):  # each is killed before its first checkpoint
        chosen = config(total_steps=int(budget))
        session = chosen.session(Output(quiet=True, checkpoint_every=0), resumed=run)
        session.callbacks = (lambda state: (_ for _ in ()).throw(KeyboardInterrupt()),)
        session._checkpoint = lambda: None
        session.run()
        (run / "summary.json").unlink()
    good(cli("resume", run))
    assert json.loads((run / "config.json").read_text())["earlier_budgets"][0] == [4, 640]
    assert not replay(Run.load(run), config(total_steps=1280), 3).differs


def test_a_smaller_budget_than_was_spent_is_refused(tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 4)
    assert "total_steps: this run has made 12" in bad(cli("resume", tmp_path / "run", "--total-steps", "64"))
    good(cli("resume", tmp_path / "run"))
    assert "total_steps: this run has made 3" in bad(cli("resume", tmp_path / "run", "--total-steps", "64"))  # nor of one at its end


@pytest.mark.parametrize("evaluation", [{"mean": "abc"}, {"total_steps": [1]}, {"mean": float("nan")}, None, "cut"])
def test_a_damaged_best_policy_is_said_and_the_next_takes_its_place(evaluation, tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    stopped(run, 6, eval_every=32)
    path = run / "best_policy.safetensors"
    tensors, known = load(path.read_bytes()), Run.load(run).written_with("best")
    changed = None if evaluation is None else {**known["evaluation"], **(evaluation if evaluation != "cut" else {})}
    path.write_bytes(save(tensors, {"upslope": json.dumps({**known, "evaluation": changed})}))
    if evaluation == "cut":
        path.write_bytes(path.read_bytes()[:100])
    answer = good(cli("resume", run))
    assert "best_policy.safetensors is damaged (" in answer.out and "takes its place" in answer.out
    assert json.loads((run / "summary.json").read_text())["best_return"] is not None


@pytest.mark.parametrize("part", ["seconds", "surroundings", "iteration", "steps", "mean"])
def test_states_that_cannot_be_are_damage(part: str, tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    stopped(run, 6, eval_every=32)
    state = newest(run).state
    if part == "seconds":
        state["seconds"] = "a"
    if part == "surroundings":
        state["surroundings"] = [1]
    if part == "iteration":
        state["run"]["iteration"] = 10**30
    if part == "steps":
        state["run"]["total_steps"] = -5
    if part == "mean":
        state["session"]["points"][0]["mean"] = "x"
    write_checkpoint(run, 6, state)
    before = contents(run)
    assert "is damaged: it holds no " in bad(cli("resume", run))
    assert contents(run) == before


WRONG = {
    "session.watch.before": [],
    "session.failures.in_a_row": "many",
    "run.generators.python": {},
    "run.generators.numpy": ["MT19937", [1], 0, 0, 0.0],
    "run.collect.envs._returns": [],
    "run.collect.envs.first_step": None,
    "world.evaluator.calls": "x",
    "world.schedule.longest": "x",
    "world.schedule.spent": None,
}
"""What a manifest that verifies may hold all the same: anybody can compute one."""


@pytest.mark.parametrize("place", WRONG)
def test_a_checkpoint_of_other_content_is_one_line_and_changes_nothing(place: str, tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    stopped(run, 6, eval_every=32)
    state = newest(run).state
    *way, last = place.split(".")
    inside = state
    for name in way:
        inside = inside[name]
    assert last in inside
    inside[last] = WRONG[place]
    write_checkpoint(run, 6, state)
    before = contents(run)
    said = bad(cli("resume", run))
    assert "its checkpoint is not one of such a run" in said or "it is the state of another run" in said
    assert contents(run) == before


def test_the_best_policy_is_not_lost_to_a_run_that_went_another_way():
    points = Points()
    points.later, points.kept = [Point(4000, 50.0, 0.0, 5), Point(5000, 100.0, 0.0, 5)], Point(5000, 200.0, 0.0, 5)
    assert not points.is_best(Point(7000, 150.0, 0.0, 5)) and points.is_best(Point(7000, 201.0, 0.0, 5))
    points.later.append(Point(8000, 120.0, 0.0, 5))
    assert [point.total_steps for point in points.until(None)] == [4000, 5000, 5000, 8000]
    points.later.insert(2, points.kept)
    assert len(points.known) == 4


def test_a_signal_while_the_end_is_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw = Control.draw

    def signalled(self: Control, *arguments) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        draw(self, *arguments)

    monkeypatch.setattr(Control, "draw", signalled)
    session = config().session(Output(out=tmp_path / "run", quiet=True))
    assert session.run().finished and session.exit_code == 0
    assert (tmp_path / "run" / "curve.png").exists()


def test_a_folder_that_an_environment_changed_to_may_be_gone(tmp_path: Path, cli: Command):
    """Nor is it asked for when environments for an evaluation are made, when the end is written or a run is resumed."""
    (tmp_path / "elsewhere.py").write_text(
        "import os, tempfile\nfrom faulty import walk\n"
        "def env():\n    found = walk()\n    step = found.step\n    found.step = lambda action: leave() or step(action)\n    return found\n"
        "def leave():\n    with tempfile.TemporaryDirectory() as folder:\n        os.chdir(folder)\n"
    )
    words = ["--total-steps", "96", "--eval-every", "32", "--out", "run", *SHORT]
    answer = cli("train", "ppo", "elsewhere:env", *words)
    assert answer.code == 0, answer
    assert f"{tmp_path / 'run'}" in answer.out
    os.chdir(tmp_path)
    assert cli("resume", "run", "--env", "elsewhere:env", "--total-steps", "128").code == 0
    os.chdir(tmp_path)
    assert Run.load("run").finished


def test_a_folder_is_where_it_was_whatever_an_environment_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Command):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    class Wanders(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

        def __init__(self):
            os.chdir(tmp_path / "elsewhere")

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 1.0, False, False, {}

    gymnasium.register("Wanders-v0", Wanders, max_episode_steps=9)
    try:
        chosen = RunConfig.of("ppo", "Wanders-v0", **{"total_steps": 320, **SMALL})
        chosen.run(Output(out=Path("run"), quiet=True), callbacks=[StopAt(4)])
        assert (tmp_path / "run" / "summary.json").exists()
        os.chdir(tmp_path)
        good(cli("resume", "run"))
    finally:
        del gymnasium.registry["Wanders-v0"]
    assert [row["iteration"] for row in Run.load(tmp_path / "run").metrics()] == list(range(1, 13))


def test_what_a_kill_leaves_before_the_first_file_is_no_run(tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".config.json.0123456789abcdef.partial").write_text("{")
    words = ["train", "ppo", "CartPole-v1", "--out", str(run), "--resume", "auto", "--total-steps", "64", "--num-envs", "2"]
    good(cli(*words, "--num-steps", "16", "--quiet"))
    assert not list(run.glob("*.partial")) and Run.load(run).finished


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resume_that_fails_changes_nothing(tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    config(total_steps=640).run(Output(out=run, quiet=True), callbacks=[StopAt(4)])
    before = contents(run)
    message = "env: this run's is CartPole-v1, and it cannot go on with another one, Acrobot-v1; name that one, or train anew"
    assert message in bad(cli("resume", run, "--env", "Acrobot-v1", "--total-steps", "1280"))
    assert contents(run) == before
    state = newest(run).state
    for name in ("session", "world", "files", "surroundings"):
        write_checkpoint(run, 4, {key: value for key, value in state.items() if key != name})
        before = contents(run)
        assert "checkpoint" in bad(cli("resume", run, "--total-steps", "1280")).replace("damaged", "checkpoint")
        assert contents(run) == before


def test_episodes_that_begin_anew_are_a_warning(tmp_path: Path, cli: Command):
    class Forgets(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.array([random.SystemRandom().random()], np.float32), {}

        def step(self, action):
            return np.array([random.SystemRandom().random()], np.float32), 1.0, False, False, {}

    gymnasium.register("Forgets-v0", Forgets, max_episode_steps=9)
    try:
        chosen = RunConfig.of("ppo", "Forgets-v0", **{"total_steps": 320, **SMALL})
        chosen.run(Output(out=tmp_path / "run", quiet=True), callbacks=[StopAt(4)])
        (tmp_path / "run" / "summary.json").unlink()
        answer = good(cli("resume", tmp_path / "run"))
    finally:
        del gymnasium.registry["Forgets-v0"]
    assert "cannot go on in the middle of its episodes, which begin anew" in answer.out
    assert "begin anew" in json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"][0]


def test_a_run_that_was_killed_in_its_last_evaluation_makes_it(whole: Path, tmp_path: Path, cli: Command):
    config().run(Output(out=tmp_path / "run", quiet=True))
    expected = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").unlink()
    good(cli("resume", tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (found["status"], found["return_mean"], found["iterations"]) == ("finished", expected["return_mean"], expected["iterations"])


def test_before_its_last_evaluation_a_run_has_saved_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluate_last = Control.evaluate_last

    def killed(world: Control, session: Session):
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        return evaluate_last(world, session)

    monkeypatch.setattr(Control, "evaluate_last", killed)
    config().run(Output(out=tmp_path / "run", quiet=True))
    assert Run.load(tmp_path / "killed").progress() == Run.load(tmp_path / "run").progress()


def test_halves_that_a_kill_has_left_are_removed(tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 3)
    left = [
        tmp_path / "run" / name for name in (".policy.safetensors.1f.partial", ".policy.2e.partial", "checkpoints/.iteration-4.3d.partial")
    ]
    left[0].write_bytes(b"half")
    for path in left[1:]:
        path.mkdir()
        (path / "half").write_bytes(b"half")
    good(cli("resume", tmp_path / "run"))
    assert not any(path.exists() for path in left)


def test_a_run_that_has_reached_its_goal_is_over(tmp_path: Path, cli: Command):
    config(until_return=1.0, eval_every=32).run(Output(out=tmp_path / "run", quiet=True))
    assert "ended at its goal" in bad(cli("resume", tmp_path / "run"))


def test_links_and_pipes_in_a_run_folder_are_refused(tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 3)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    assert "this is a link" in bad(cli("resume", tmp_path / "run"))
    assert contents(tmp_path / "elsewhere") == before
    (tmp_path / "run" / "checkpoints").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "run" / "checkpoints")
    lock = tmp_path / "run" / ".lock"
    lock.unlink()
    lock.symlink_to(tmp_path / "made")
    assert "cannot be opened" in bad(cli("resume", tmp_path / "run"))
    assert not (tmp_path / "made").exists()
    lock.unlink()
    os.mkfifo(lock)
    assert "this is no file" in bad(cli("resume", tmp_path / "run"))


# ------------------------------------------------------------------------------------------------------------ the commands


def test_verify_resume_says_what_differs_first(cli: Command):
    small = ["--num-envs", "2", "--num-steps", "16", "--total-steps", "400", "--eval-episodes", "2", "--stop-after", "3", "--kill-at", "1"]
    same = good(cli("verify-resume", "ppo", "CartPole-v1", *small))
    assert "killed behind iteration 1, resumed after iteration 1, compared after 3: 3 rows of metrics" in same.out
    assert "equal to the bit" in same.out
    assert "kill_at: expected 1 to 2" in bad(cli("verify-resume", "ppo", "CartPole-v1", *small[:-1], "3"))


class StartsAlike(StopAt):
    """Stops, and refuses where its process starts others in another way than the one that it was made in."""

    def __init__(self) -> None:
        super().__init__(1)
        self.expected = multiprocessing.get_start_method()

    def __call__(self, state: RunState) -> bool:
        if multiprocessing.get_start_method() != self.expected:
            raise RuntimeError(f"its processes would start by {multiprocessing.get_start_method()}")
        return super().__call__(state)


def test_processes_of_a_verified_run_start_as_those_of_any_run(tmp_path: Path):
    assert run_in_process("it", config(), tmp_path / "run", StartsAlike()) == 0


def test_a_replay_that_is_stopped_says_so(tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch):
    config(total_steps=96).run(Output(out=tmp_path / "run", quiet=True))
    monkeypatch.setattr(Replay, "begin", lambda self, state: signal.raise_signal(signal.SIGTERM))
    answer = cli("replay", "run", "--iteration", "2")
    assert (answer.code, answer.out, answer.err) == (143, "", "upslope: stopped\n")
    assert not list((tmp_path / "run").glob("replay*"))


def test_places_that_differ_are_named():
    a = {"run": {"x": [1, 2.0], "train_seconds": 3.0}, "only": None}
    b = {"run": {"x": [1, 2], "train_seconds": 4.0}, "other": None}
    assert differences(a, b) == ["/run/x/1", "/only", "/other"]


# ------------------------------------------------------------------------------------------------------- one command for a scheduler

AUTO = ["train", "ppo", "CartPole-v1", "--num-envs", "2", "--num-steps", "16", "--total-steps", "320", "--hidden-sizes", "4", "--seed", "1"]
AUTO += ["--num-minibatches", "2", "--num-epochs", "1", "--eval-episodes", "2", "--out", "run", "--resume", "auto"]


def test_the_same_command_begins_goes_on_and_is_done(whole: Path, tmp_path: Path, cli: Command):
    good(cli(*AUTO))
    assert rows(tmp_path / "run") == rows(whole)
    assert "of its 320 steps" in good(cli(*AUTO)).out
    shutil.rmtree(tmp_path / "run")
    stopped(tmp_path / "run", 4)
    assert "going on after iteration 4" in good(cli(*AUTO)).out
    assert rows(tmp_path / "run") == rows(whole)
    longer = ["400" if word == "320" else word for word in AUTO]
    good(cli(*longer))
    assert len(rows(tmp_path / "run")) > len(rows(whole))


def test_a_run_without_a_checkpoint_is_put_aside(whole: Path, tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with locked(tmp_path / "run"):
        assert "another process is writing there" in bad(cli(*AUTO))
    answer = good(cli(*AUTO))
    assert "run was stopped before its first checkpoint; it is run-stopped-1 now" in answer.out
    assert rows(tmp_path / "run") == rows(whole) and len(rows(tmp_path / "run-stopped-1")) == 2


@pytest.mark.parametrize(
    "earlier", [{"max_episode_steps": 30}, {"eval_every": 64}, {"until_return": 400.0}, {"target_kl": 0.01}, {"vectorization": "sync"}]
)
def test_auto_does_not_go_on_with_a_setting_that_is_left_out_now(earlier: dict, tmp_path: Path, cli: Command):
    """None and auto are values like others."""
    stopped(tmp_path / "run", 2, **earlier)
    (name,) = earlier
    now = ["--target-kl", "none"] if name == "target_kl" else []
    assert f"run holds another run, with {name} {earlier[name]!r}, here it is " in bad(cli(*AUTO, *now))


def test_auto_knows_what_a_run_fills_in_itself(tmp_path: Path, cli: Command):
    """How often a goal is looked for, and the shape of the policy that a run begins with, are not asked for and recorded."""
    stopped(tmp_path / "first", 6)
    begun = [*AUTO, "--until-return", "400", "--init", "first"]
    begun = [word for word in begun if word not in ("--hidden-sizes", "4")]
    stopped(tmp_path / "run", 3, until_return=400, init=tmp_path / "first")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["eval_every"] == 2048 and config["policy"]["hidden_sizes"] == [4]
    config["settings"]["init"] = "first"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "going on after iteration 3" in good(cli(*begun)).out


def test_a_run_goes_on_without_the_one_that_it_began_with(tmp_path: Path, cli: Command):
    first = tmp_path / "first"
    stopped(first, 6)
    config(init=first).run(Output(out=tmp_path / "whole", quiet=True))
    stopped(tmp_path / "run", 4, init=first)
    first.rename(tmp_path / "elsewhere")
    good(cli("resume", "run"))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert "again, from the checkpoint of iteration" in good(cli("replay", "run", "--iteration", "10")).out
    assert "init: run folder" in bad(cli("replay", "run", "--iteration", "1"))  # that one begins where it began


KINDS = {
    "algorithm.surrogate": -1, "algorithm.dual_clip": 2**70, "algorithm.gamma": float("nan"), "algorithm.update.schedule": 10**9,
    "algorithm.update.num_epochs": 1.5, "policy.features": True, "policy.activation": 0, "policy.hidden_sizes": 4,
    "settings.init": {"a": 1}, "settings.device": True, "settings.until_return": "x", "settings.fast": 2, "env.env_kwargs": [],
}  # fmt: skip


@pytest.mark.parametrize("place", KINDS)
def test_a_configuration_of_other_kinds_is_one_line(place: str, tmp_path: Path, cli: Command):
    run = tmp_path / "run"
    stopped(run, 2)
    found = json.loads((run / "config.json").read_text())
    *way, last = place.split(".")
    inside = found
    for name in way:
        inside = inside[name]
    assert last in inside
    inside[last] = KINDS[place]
    (run / "config.json").write_text(json.dumps(found))
    for command in (["resume"], ["replay", "--iteration", "1"]):
        assert last in bad(cli(command[0], run, *command[1:]))


def test_auto_does_not_take_another_run_for_this_one(tmp_path: Path, cli: Command):
    stopped(tmp_path / "run", 2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert "run holds another run, with learning_rate 0.003, here it is 0.1" in bad(cli(*AUTO, "--learning-rate", "0.1"))
    assert "run holds another run, with algorithm 'ppo', here it is 'a2c'" in bad(
        cli("train", "a2c", *AUTO[2:9], "--out", "run", "--resume", "auto")
    )
    assert "give --out" in bad(cli("train", "ppo", "CartPole-v1", "--resume", "auto"))
    assert "expected auto, found 'yes'" in bad(cli("train", "ppo", "CartPole-v1", "--resume", "yes"))
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    "words, kept", [(["--checkpoint-every", "0"], [11, 10]), (["--checkpoint-iterations", "4"], [11, 8]), ([], [11, 1])]
)
def test_checkpoints_come_as_often_as_is_asked_for(words: list[str], kept: list[int], tmp_path: Path, cli: Command):
    good(cli(*AUTO, *words))
    assert [int(path.name[-8:]) for path in checkpoints_in(tmp_path / "run")] == kept
    assert "checkpoint_every: expected seconds ≥ 0, found -1" in bad(cli("train", "ppo", "CartPole-v1", "--checkpoint-every", "-1"))


# ------------------------------------------------------------------------------------------------- callbacks and loggers


class Patience:
    """Ends the run with its seventh call; as a logger, it counts rows."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state) -> bool:
        self.calls += 1
        return self.calls == 7

    def state_dict(self) -> dict:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict) -> None:
        self.calls = state["calls"]


def killed_with(path: Path, callbacks: list, loggers: list) -> None:
    """Killed behind iteration 5, with a checkpoint behind 3."""
    config().run(Output(out=path, quiet=True, checkpoint_iterations=3), callbacks=callbacks, loggers=loggers)
    shutil.rmtree(path / "checkpoints" / "iteration-00000005")
    (path / "summary.json").unlink()


def test_callbacks_and_loggers_go_on_where_they_were(tmp_path: Path):
    run = tmp_path / "run"
    killed_with(run, [Patience(), StopAt(5)], [Patience()])
    callback, logger = Patience(), Patience()
    config().session(Output(quiet=True), [callback], [logger], resumed=run).run()
    assert (callback.calls, logger.calls, rows(run)[-1]["iteration"]) == (7, 7, 7)


@pytest.mark.parametrize("given", [0, 1])
def test_a_callback_that_is_not_given_again_is_a_warning(given: int, tmp_path: Path):
    run = tmp_path / "run"
    killed_with(run, [Patience(), Patience(), StopAt(5)], [])
    config().session(Output(quiet=True), [Patience()] * given, resumed=run).run()
    warnings = json.loads((run / "summary.json").read_text())["warnings"]
    assert [w for w in warnings if "Patience remembered is left behind: it is not given again" in w] == warnings[: 2 - given] != []


def test_a_callback_that_cannot_go_on_leaves_the_run_as_it_was(tmp_path: Path):
    class Broken(Patience):
        def load_state_dict(self, state: dict) -> None:
            raise KeyError("lost")

    run = tmp_path / "run"
    killed_with(run, [Broken(), StopAt(5)], [])
    before = contents(run)
    with pytest.raises(UsageError, match="Broken cannot go on where it was: KeyError"):
        config().session(Output(quiet=True), [Broken()], resumed=run).run()
    assert contents(run) == before
