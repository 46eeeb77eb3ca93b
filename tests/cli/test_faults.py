"""Faults while running: exit code 1, one line, and a folder that is valid up to the last whole iteration."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import SHORT, Answer, Command, good
from tests.cli.test_bad_input import one_line
from upslope import PPO, Ascent, Diverged, Run, RunConfig, RunFault
from upslope.run import process, saving
from upslope.run.folder import Output, RunFolder

FAULTS = {
    "step-raises": "raised RuntimeError in step: the motor is on fire",
    "exits": "raised SystemExit in step: 0",
    "later-reset-raises": "raised RuntimeError in",
    "step-nan": "observation is not finite",
    "later-reset-nan": "observation is not finite",
    "step-shape": "observation has shape",
    "step-dtype": "observation has dtype",
    "reward-nan": "reward is not finite: nan",
    "reward-inf": "reward is not finite: inf",
    "reward-text": "reward is 'one' (str), expected a number",
    "reward-array": "reward is an array of shape (1,), expected a number; return float(reward.item())",
    "four-values": "step: it returned 4 values (the old Gym's interface), expected 5: observation, reward, terminated, truncated, info",
    "ended-none": "step: terminated is None (NoneType), expected True or False",
    "info-list": "step: info is [] (list), expected a dict",
}


def train_on(cli: Command, fault: str, at: int, *flags: str) -> Answer:
    kwargs = json.dumps({"fault": fault, "at": at})
    return cli("train", "ppo", "faulty:walk", "--env-kwargs", kwargs, "--out", "run", "--total-steps", "1000", *SHORT, *flags)


def check_folder(iterations: int) -> Run:
    """Everything in the folder can be read, and speaks of as many iterations."""
    run = Run.load("run")
    assert run.summary is not None and run.summary["status"] == "failed"
    assert len(run.metrics()) == run.summary["iterations"] == iterations
    assert all(math.isfinite(p.sum()) for p in run.policy.parameters())
    run.policy.act(run.policy.observation_space.sample())
    assert not [p.name for p in Path("run").iterdir() if p.name.endswith(".partial")]
    assert Path("run/curve.png").exists()
    return run


@pytest.mark.parametrize("fault, expected", FAULTS.items())
def test_a_fault_of_the_environment(cli: Command, fault: str, expected: str):
    answer = train_on(cli, fault, at=40)  # iterations of 16 steps: the third one fails
    assert answer.code == 1, answer
    assert expected in one_line(answer.err)
    iterations = 0 if fault.startswith("later-reset") else 2
    run = check_folder(iterations)
    assert run.summary is not None and expected in run.summary["error"]


def test_a_fault_in_the_first_iteration(cli: Command):
    assert train_on(cli, "step-raises", at=1).code == 1
    check_folder(0)


def test_a_surrogate_that_raises(cli: Command):
    answer = cli("train", "ppo", "faulty:walk", "--surrogate", "faulty:raising", "--out", "run", *SHORT)
    assert answer.code == 1
    assert "NameError: name 'undefined_name' is not defined (faulty.py, line" in one_line(answer.err)
    check_folder(0)


def test_a_diverging_run_keeps_what_it_had_saved(cli: Command):
    flags = ["--learning-rate", "1e30", "--max-grad-norm", "none", "--normalize-reward"]
    answer = cli("train", "ppo", "CartPole-v1", "--out", "run", "--total-steps", "3000", *SHORT, *flags)
    assert answer.code == 1
    line = one_line(answer.err)
    assert (
        "diverged" in line
        and "lower the learning rate" in line
        and "normalize" not in line
        and any(word in line for word in ("step", "iteration"))
    )
    check_folder(len(Run.load("run").metrics()))


def test_spoiled_parameters_do_not_replace_the_saved_ones(cli: Command, monkeypatch: pytest.MonkeyPatch):
    def spoil(algorithm: object, policy: torch.nn.Module, collect: object, **_: object) -> None:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.fill_(math.nan)
        raise Diverged("diverged: actor.0.weight is not finite at gradient step 7; lower the learning rate")

    monkeypatch.setattr("upslope.run.session.train", spoil)
    answer = cli("train", "ppo", "CartPole-v1", "--out", "run", *SHORT)
    assert answer.code == 1 and "actor.0.weight is not finite at gradient step 7" in one_line(answer.err)
    check_folder(0)


def test_a_final_evaluation_that_fails(cli: Command):
    flags = ["--num-envs", "4", "--num-steps", "8", "--num-minibatches", "1", "--eval-episodes", "1", "--no-fast"]
    kwargs = '{"fault": "step-raises", "at": 9}'  # training plays 8 steps in each environment, evaluation 10
    answer = cli("train", "ppo", "faulty:walk", "--env-kwargs", kwargs, "--out", "run", "--total-steps", "32", *flags)
    assert answer.code == 0 and answer.err == ""  # the training went well
    run = Run.load("run")
    assert run.summary is not None and run.summary["status"] == "finished" and run.summary["return_mean"] is None
    assert "the final policy was not evaluated" in run.summary["warnings"][0] and "the motor is on fire" in run.summary["warnings"][0]
    assert answer.out.rstrip().endswith(f"warning: {run.summary['warnings'][0]}")


FAILS_ONCE = ["--num-envs", "1", "--num-steps", "8", "--num-minibatches", "1", "--eval-episodes", "2", "--no-fast", "--quiet"]
FAILS_ONCE += ["--env-kwargs", '{"fault": "step-raises", "at": 70}']  # an evaluator's fourth evaluation comes to it, training never


def test_an_evaluation_that_fails_does_not_end_the_training(cli: Command):
    """The next one is made in fresh environments, whose fourth evaluation fails again."""
    more = ["--total-steps", "60", "--eval-every", "8", "--until-return", "11"]
    good(cli("train", "ppo", "faulty:walk", "--out", "run", *FAILS_ONCE, *more))
    run = Run.load("run")
    assert run.summary is not None and run.summary["total_steps"] >= 60 and run.summary["evaluations"] == 7
    (warning,) = run.summary["warnings"]
    assert (
        warning.startswith("2 evaluations failed, the first after 37 steps: environment 'faulty:walk'")
        and "the motor is on fire" in warning
    )
    assert run.summary["return_mean"] == 10.0  # of the final policy, in fresh environments


def test_a_goal_is_found_after_an_evaluation_that_failed(cli: Command, monkeypatch: pytest.MonkeyPatch):
    """A return of 10 is what every evaluation finds: the second and the third of those that were made end the run."""
    from upslope.run.control import Control

    played, calls = Control._played, [0]

    def episodes(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] in (1, 3, 4):
            raise RunFault("no port")
        return played(*arguments)

    monkeypatch.setattr(Control, "_played", episodes)
    more = ["--total-steps", "200", "--eval-every", "8", "--until-return", "10"]
    good(cli("train", "ppo", "faulty:walk", "--out", "run", *FAILS_ONCE, *more))
    run = Run.load("run")
    assert run.summary is not None and run.summary["solved"] is True and run.summary["iterations"] == 6
    assert run.summary["warnings"] == ["3 evaluations failed, the first after 8 steps: no port"]


def test_evaluations_that_keep_failing_are_given_up(cli: Command):
    flags = [word for word in FAILS_ONCE if word != "--quiet"]
    flags[flags.index("--eval-episodes") + 1] = "8"  # the first comes to it
    more = ["--total-steps", "60", "--eval-every", "8", "--until-return", "11"]
    answer = good(cli("train", "ppo", "faulty:walk", "--out", "run", *flags, *more))
    run = Run.load("run")
    assert run.summary is not None and run.summary["evaluations"] == 0
    no_more = "no more are made after 3 in a row, so --until-return cannot end this run early: environment 'faulty:walk'"
    assert answer.out.count("failed, the next one is tried: environment 'faulty:walk'") == 2
    assert answer.out.count(f" steps failed, {no_more}") == 1
    assert run.summary["warnings"][0].startswith(f"3 evaluations failed, the first after 8 steps; {no_more}")
    assert "the final policy was not evaluated" in run.summary["warnings"][1]


# ------------------------------------------------------------------------------------------------------------- Ctrl-C


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int, times: int = 1, number: int = signal.SIGINT) -> None:
    """Press Ctrl-C (or send another signal) while the given step of a CartPole environment is played."""
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    step, calls = CartPoleEnv.step, [0]

    def pressed(self: CartPoleEnv, action: object) -> object:
        calls[0] += 1
        if calls[0] == at:
            for _ in range(times):
                signal.raise_signal(number)
        return step(self, action)

    monkeypatch.setattr(CartPoleEnv, "step", pressed)


def test_ctrl_c_ends_the_run_after_the_iteration(cli: Command, monkeypatch: pytest.MonkeyPatch):
    interrupting(monkeypatch, at=40)
    before = signal.getsignal(signal.SIGINT)
    answer = cli("train", "ppo", "CartPole-v1", "--out", "run", *SHORT)
    assert answer.code == 130 and answer.err == ""
    assert "stopping after this iteration" in answer.out and "stopped on request" in answer.out
    run = Run.load("run")
    assert run.summary is not None and run.summary["status"] == "interrupted"
    assert len(run.metrics()) == run.summary["iterations"] == 2  # 2 × 16 steps each: the fortieth is in the second
    run.policy.act(run.policy.observation_space.sample())
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_it_at_once(cli: Command, monkeypatch: pytest.MonkeyPatch):
    interrupting(monkeypatch, at=40, times=2)
    answer = cli("train", "ppo", "CartPole-v1", "--out", "run", *SHORT)
    assert answer.code == 130
    run = Run.load("run")
    assert run.summary is not None and run.summary["iterations"] == len(run.metrics()) == 1


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_scheduler_or_a_closed_terminal_ends_it_like_ctrl_c(cli: Command, monkeypatch: pytest.MonkeyPatch, name: str, code: int):
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # a runner of tests may have been started with nohup
    try:
        interrupting(monkeypatch, at=40, number=getattr(signal, name))
        assert cli("train", "ppo", "CartPole-v1", "--out", "run", *SHORT).code == code
        run = Run.load("run")
        assert run.summary is not None and run.summary["status"] == "interrupted" and run.summary["iterations"] == 2
        assert run.caution() == f"policy after {run.metrics()[-1]['total_steps']} of 100,000 steps (the run was interrupted)"
        answer = cli("evaluate", "run", "--episodes", "1")
        assert answer.code == 0 and run.caution() in answer.out
    finally:
        signal.signal(getattr(signal, name), before)


def test_under_nohup_a_closed_terminal_changes_nothing(cli: Command, monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupting(monkeypatch, at=40, number=signal.SIGHUP)
        assert cli("train", "ppo", "CartPole-v1", "--out", "run", "--total-steps", "128", *SHORT).code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name != "posix", reason="a close that hangs is interrupted the POSIX way")
@pytest.mark.filterwarnings("default")
def test_an_environment_that_never_closes_lets_the_command_end(cli: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "CLOSING", 0.5)
    import faulty

    monkeypatch.setattr(faulty.Walk, "close", lambda self: time.sleep(60), raising=False)
    started = time.monotonic()
    answer = cli("train", "ppo", "faulty:walk", "--total-steps", "32", "--vectorization", "sync", "--quiet", "--out", "run", *SHORT)
    assert answer.code == 0 and time.monotonic() - started < 30
    assert "raised TimeoutError in close: it did not come back within 0.5 s, and everything is saved" in answer.err
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


# --------------------------------------------------------------------------------------------------------- what is saved


class Clock:
    """``time.perf_counter`` by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(saving.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    "iteration, cost, saved",
    [
        (1.0, 0.0, [1, 11, 21, 31, 41]),  # ten seconds, counted to the end of the next iteration
        (6.0, 0.0, [1, 2, 3, 4, 5, 6, 7]),  # two iterations would be too much to lose
        (1.0, 0.2, [1, 20, 39]),  # a fifth of a second of saving in twenty
    ],
)
def test_when_a_policy_is_saved(monkeypatch: pytest.MonkeyPatch, iteration: float, cost: float, saved: list[int]):
    clock = Clock(monkeypatch)
    pace, found = saving.SavePace(every=10.0), []
    for number in range(1, 8 if iteration > 2 else 46):
        clock.now += iteration
        if pace.due():
            with pace.saving():
                clock.now += cost
            found.append(number)
    assert found == saved


def test_a_long_iteration_that_may_come_again_is_counted_with(monkeypatch: pytest.MonkeyPatch):
    """Nothing is older than ten seconds when one in seven iterations takes five seconds, saves included."""
    clock = Clock(monkeypatch)
    pace, saved_at, oldest = saving.SavePace(every=10.0), math.inf, 0.0
    for number in range(1, 60):
        clock.now += 1.0 if number % 7 else 5.0
        if pace.due():
            ended = clock.now
            with pace.saving():
                clock.now += 0.05
                oldest = max(oldest, clock.now - saved_at if number > 20 else 0.0)
            saved_at = ended
    assert 5.0 < oldest <= 10.0


def test_saved_after_the_first_iteration_and_with_its_steps(cli: Command, monkeypatch: pytest.MonkeyPatch):
    """What a killed process leaves behind, looked at from inside: the folder after the second iteration."""
    append = RunFolder.append

    def killed(self: RunFolder, name: str, rows: list[dict[str, float]]) -> None:
        append(self, name, rows)
        if rows[0]["iteration"] == 3:
            shutil.copytree(self.path, "killed")

    monkeypatch.setattr(RunFolder, "append", killed)
    assert cli("train", "ppo", "CartPole-v1", "--out", "run", "--total-steps", "128", *SHORT).code == 0
    run = Run.load("killed")
    assert run.summary is None and len(run.metrics()) == 3
    steps = int(run.metrics()[0]["total_steps"])
    assert run.progress() == {"iteration": 1, "total_steps": steps, "planned_steps": 128, "format_version": 1}
    last = int(run.metrics()[-1]["total_steps"])
    assert run.caution() == f"policy after {steps} of 128 steps (the run was killed after {last}, or is still going on)"
    assert run.caution() in cli("evaluate", "killed", "--episodes", "1").out
    for words in (("play", "--max-steps", "2", "--out", "p.gif"), ("record", "--steps", "8", "--num-envs", "1", "--out", "s.safetensors")):
        answer = cli(words[0], "killed", *words[1:])
        assert answer.code == 0 and answer.err == f"upslope: note: final {run.caution()}\n", answer
    whole = Run.load("run")
    assert whole.caution() == "" and whole.progress()["total_steps"] == whole.summary["total_steps"]  # type: ignore[index]
    said = cli("evaluate", "run", "--episodes", "1").out
    assert "final policy after " in said and "the run was" not in said


def test_killed_before_the_first_iteration(cli: Command, monkeypatch: pytest.MonkeyPatch):
    append = RunFolder.append
    monkeypatch.setattr(
        RunFolder, "append", lambda self, *rows: (Path("killed").exists() or shutil.copytree(self.path, "killed"), append(self, *rows))
    )
    cli("train", "ppo", "CartPole-v1", "--out", "run", "--total-steps", "32", *SHORT)
    assert Run.load("killed").caution() == "untrained policy (the run was killed, or is still going on before the first iteration ended)"


@pytest.mark.parametrize("fault", [RuntimeError("the third"), KeyboardInterrupt()])
def test_an_update_that_is_cut_short_is_not_saved_under_the_iteration_before(fault, tmp_path: Path):
    @dataclass(frozen=True, kw_only=True)
    class Cut(PPO):
        def objective(self, policy, batch):
            calls.append(1)
            if len(calls) == 4 * 3 - 1:  # of four minibatches in the third iteration the third
                raise fault
            return super().objective(policy, batch)

    def keep(state):
        kept[state.iteration] = {name: tensor.clone() for name, tensor in state.policy.state_dict().items()}

    calls: list[int] = []
    kept: dict[int, Any] = {}
    settings = {"num_envs": 2, "num_steps": 16, "total_steps": 320, "fast": False}
    config = RunConfig.of(Cut(update=Ascent(num_minibatches=4, target_kl=None)), "CartPole-v1", **settings)
    with contextlib.suppress(RuntimeError):
        config.run(Output(out=tmp_path / "run", quiet=True), callbacks=[keep])
    run = Run.load(tmp_path / "run")
    assert len(run.metrics()) == 2
    assert run.summary["status"] == ("interrupted" if isinstance(fault, KeyboardInterrupt) else "failed")
    saved = run.policy.state_dict()
    assert all(torch.equal(tensor, kept[run.progress()["iteration"]][name]) for name, tensor in saved.items())
