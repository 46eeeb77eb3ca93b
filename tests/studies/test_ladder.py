"""``upslope ladder``: the page and its numbers, what is kept after Ctrl-C, and what cannot be asked for."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Command, good
from upslope import tabular
from upslope.cli import train
from upslope.errors import Diverged
from upslope.run.config import RunConfig
from upslope.studies import ladder, ladder_page, ladder_runs
from upslope.studies.ladder_rungs import RUNGS, TASKS, settings_for

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Every tag with its attributes; an end tag that closes nothing, or something else, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small ladder."""
    folder = tmp_path_factory.mktemp("ladder") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "bandit", replace(TASKS["bandit"], episodes=512))
        lines: list[str] = []
        ladder.ladder("bandit", budget=200, seeds=2, out=folder, say=lines.append)
    assert len(lines) == 1 + len(RUNGS) and all(rung.name in line for rung, line in zip(RUNGS, lines[1:], strict=True))
    return folder


def test_the_page_stands_alone_and_holds_every_curve(climbed: Path) -> None:
    text = (climbed / "index.html").read_text()
    page = Page(text)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2 + len(RUNGS)  # a wide picture, a narrow one, and a card for each
    strokes = [re.findall(r"stroke: var\(--r(\d)\); stroke-width: 2;", part) for part in text.split("<svg")[1:]]
    assert strokes == [[*map(str, range(9))]] * 2 + [[str(i)] for i in range(9)]
    assert "#23272e" not in text.partition("<svg")[2] and "nan" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object"} and not re.search(r"url\([^#]", text)
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    assert [a["href"] for tag, a in page.tags if tag == "link"] == ["data:,"]
    with Image.open(climbed / "ladder.png") as picture:
        assert picture.size == (1500, 930)


def test_the_pictures_hold_the_numbers(climbed: Path) -> None:
    found = json.loads((climbed / "ladder.json").read_text())
    floor = TASKS["bandit"].floor
    axes = ladder_page.picture(found, (10.0, 5.0), range(9), title="t", named=True).axes[0]
    for line, rung in zip(axes.get_lines(), found["rungs"], strict=False):
        assert (
            line.get_xdata().tolist() == found["steps"] and line.get_ydata().tolist() == np.maximum(rung["curve"]["mean"], floor).tolist()
        )
    assert [note.get_text() for note in axes.texts] == [*(rung["name"] for rung in found["rungs"]), "best: 5.6"]
    one = ladder_page.picture(found, (4.0, 3.0), [4]).axes[0]
    assert [line.get_ydata().tolist() for line in one.get_lines()[:2]] == [
        np.maximum(found["rungs"][i]["curve"]["mean"], floor).tolist() for i in (3, 4)
    ]
    assert one.get_ylim() == axes.get_ylim() and not one.texts and one.get_title("left") == ""


def test_names_are_escaped(climbed: Path) -> None:
    found = json.loads((climbed / "ladder.json").read_text())
    for rung in found["rungs"]:
        rung["name"] = rung["command"] = "<script>alert(1)</script>&"
    found["versions"] = {"<b>": "<i>"}
    text = ladder_page.page(found, climbed)
    assert "<script" not in text
    assert "&lt;b&gt; &lt;i&gt;</footer>" in text and text.count("&lt;script&gt;") > 3 * len(RUNGS)
    Page(text)


def test_every_link_leads_to_a_file_that_holds_what_it_names(climbed: Path) -> None:
    links = [a["href"] or "" for tag, a in Page((climbed / "index.html").read_text()).tags if tag == "a"]
    assert len(links) == 2 * len(RUNGS)
    for link in links:
        address = urlparse(link)
        file = (climbed / unquote(address.path)).resolve()
        assert address.scheme == "" and file.is_file() and file.is_relative_to(ROOT)
        if address.fragment:
            assert f"def {address.fragment.removeprefix(':~:text=def%20')}(" in file.read_text()
    assert ladder_page.link("tests/no_such.py::test_x", climbed) == {"text": "tests/no_such.py :: test_x"}


def test_the_numbers(climbed: Path) -> None:
    found = json.loads((climbed / "ladder.json").read_text())
    assert found["status"] == "finished" and [rung["key"] for rung in found["rungs"]] == [rung.key for rung in RUNGS]
    by_key = {rung["key"]: rung for rung in found["rungs"]}
    for rung in found["rungs"]:
        curve = np.array([rung["curve"][name] for name in ("low", "mean", "high")])
        assert curve.shape == (3, ladder.POINTS) and (np.diff(curve, axis=0) >= -1e-12).all()
        assert np.allclose(np.mean(rung["curve"]["each"], 0), curve[1], atol=1e-12)
        assert rung["seconds"]["median"] > 0 and min(TASKS["bandit"].floor, 2.9) <= rung["final"]["mean"] <= 5.6
    for one, other in (("reinforce", "to-go"), ("actor-critic", "traces")):  # one decision: nothing to go, nothing to trace
        assert by_key[one]["curve"] == by_key[other]["curve"]
        assert all(by_key[one]["gradient"][name] == by_key[other]["gradient"][name] for name in ("variance", "bias", "cosine"))
    # the same episodes and critic: one decision's TD error, its generalized advantage and return − V are one number
    same = [by_key[key]["gradient"]["variance"] for key in ("baseline", "actor-critic", "trpo", "ppo")]
    assert np.ptp(same) < 1e-5 * same[0]  # float32
    assert not any(by_key[key]["gradient"]["biased"] for key in ("reinforce", "baseline", "rloo"))
    assert by_key["reinforce"]["gradient"]["variance"] > 10 * by_key["baseline"]["gradient"]["variance"]


def test_options_and_the_free_folder(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "bandit", replace(TASKS["bandit"], episodes=16))
    monkeypatch.setattr(ladder, "RUNGS", RUNGS[2:3])
    words = ("ladder", "bandit", "--budget", "100", "--seeds", "1")
    out = good(cli(*words)).out
    assert out.count("\n") == 3 and "Baseline" in out and "runs/ladder-bandit/index.html" in out
    found = json.loads(good(cli(*words, "--json")).out)
    assert found["folder"] == "runs/ladder-bandit-2" and len(found["rungs"]) == 1
    assert good(cli(*words, "--quiet")).out == ""


@pytest.mark.parametrize(
    "end, code, status", [(KeyboardInterrupt(), 130, "interrupted"), (Diverged("diverged: advantage is not finite"), 1, "failed")]
)
def test_finished_rungs_are_kept(end: BaseException, code: int, status: str, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the ladder: Ctrl-C, or a rung that fails."""
    real = ladder.climb

    def ends(task: Any, rung: Any, *rest: Any) -> Any:
        if rung.key == "baseline":
            raise end
        return real(task, rung, *rest)

    monkeypatch.setattr(ladder, "climb", ends)
    monkeypatch.setitem(TASKS, "bandit", replace(TASKS["bandit"], episodes=16))
    answer = cli("ladder", "bandit", "--budget", "100", "--seeds", "1", "--out", "here")
    assert answer.code == code and answer.err == ("" if code == 130 else f"upslope: {end}\n")
    found = json.loads(Path("here/ladder.json").read_text())
    assert found["status"] == status and [rung["key"] for rung in found["rungs"]] == ["reinforce", "to-go"]
    text = Path("here/index.html").read_text()
    Page(text)
    assert answer.out.count("picture: ladder.png") == (code == 130)
    assert "2 of 9 rungs are finished" in text and Path("here/ladder.png").exists()


def test_only_what_was_written_is_named(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the noise is measured, before the first rung."""

    def ends(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "noises", ends)
    answer = cli("ladder", "bandit", "--budget", "100", "--seeds", "1", "--out", "here")
    assert answer.code == 130 and answer.err == "" and "page: here/index.html · numbers: ladder.json" in answer.out
    assert sorted(path.name for path in Path("here").iterdir()) == ["index.html", "ladder.json"]


@pytest.mark.parametrize("task", TASKS)
def test_the_shown_command_is_the_run(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[Any] = []
    monkeypatch.setattr(train, "run", lambda config, output: typed.append(config) or 0)
    for rung in RUNGS:
        words = shlex.split(ladder.command(TASKS[task], rung, 1234))
        assert words[:2] == ["upslope", "train"] and train.main(words[2:]) == 0
        settings = {**settings_for(TASKS[task], rung), "total_steps": 1234}
        assert typed[-1] == RunConfig.of(rung.algorithm, TASKS[task].env_id, **settings)


def test_tasks_begin_where_they_say() -> None:
    """The corridor at p(right) = 0.05, worth 2 (p − 2) / (p (1 − p)); the bandit level."""
    policy, p = ladder_runs.measured_policy(TASKS["corridor"]), 0.05
    mdp = ladder_runs.problem_of(TASKS["corridor"])
    table = ladder_runs.table_of(mdp, policy)
    assert table[:, 1].tolist() == pytest.approx([p] * 4, rel=1e-6)  # float32 preferences
    assert ladder_runs.exact_return(mdp, policy) == pytest.approx(2.0 * (p - 2.0) / (p * (1.0 - p)), rel=1e-5)  # likewise
    policy = ladder_runs.measured_policy(TASKS["bandit"])
    mdp = ladder_runs.problem_of(TASKS["bandit"])
    assert ladder_runs.exact_return(mdp, policy) == pytest.approx(np.mean(TASKS["bandit"].shared["env_kwargs"]["means"]))


def test_the_corridor_tells_bias_from_noise() -> None:
    """One value w for states that look alike: δ is −1 on the way and −1 − w at the end, so one step's gradient is −w ∇log π(right)."""
    task, p = replace(TASKS["corridor"], episodes=128), 0.05
    _, found = ladder_runs.noises(task, [rung for rung in RUNGS if rung.key in ("baseline", "actor-critic")])
    mdp, table = tabular.short_corridor(), [[1.0 - p, p]] * 4
    w = (tabular.exact.on_policy_distribution(mdp, table, 1.0) * tabular.exact.value(mdp, table, 1.0)).sum().item()
    slope = (2.0 * p * (1.0 - p) - 2.0 * (p - 2.0) * (1.0 - 2.0 * p)) / (p * (1.0 - p))  # dJ/dp · p (1 − p): of the preference of right
    one_step = found["actor-critic"]
    assert abs(one_step["bias"] - abs(-w * (1.0 - p) / slope - 1.0)) < 0.05  # w is fitted on 64 episodes
    assert one_step["biased"] == (one_step["bias"] > one_step["bias_by_chance"])
    assert not found["baseline"]["biased"]
    assert one_step["relative_variance"] < 0.1 * found["baseline"]["relative_variance"]


def test_a_curve_at_equal_distances() -> None:
    steps, returns = np.array([0.0, 10.0, 15.0, 600.0, 900.0]), np.array([np.nan, 1.0, 3.0, 8.0, 99.0])
    curve = ladder_runs.resampled(steps, returns, 600)
    assert curve[0] == 1.0 and curve[1] == 3.0 and curve[-1] == 8.0  # ends at 10, 20 and 600; what came after the budget is cut
    assert curve[30] == pytest.approx(3.0 + 5.0 * (310.0 - 15.0) / 585.0)
    assert np.isnan(ladder_runs.resampled(steps[:1], returns[:1], 600)).all()


def test_a_page_without_a_finished_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in an installation without the tests that it names."""
    monkeypatch.setattr(ladder_page, "link", lambda path, folder: {"text": path})
    task, nothing = TASKS["CartPole-v1"], ladder.Climb(np.full(ladder.POINTS, np.nan), 1.0)
    rung = ladder.found_on(task, RUNGS[0], [nothing, nothing], {"relative_variance": None}, 100)
    found = {"task": task.name, "budget": 100, "seeds": 2, "gradient": {"episodes": 9, "steps": 90}, "versions": {}}
    found |= {"steps": ladder.grid(100).tolist(), "rungs": [rung]}
    text = ladder_page.page(found, tmp_path)
    Page(text)
    assert "nan" not in text and "Ends at – [–, –]" in text
    assert [text.get_text() for text in ladder_page.picture(found, (10.0, 6.0), [0]).axes[0].texts] == ["nothing to draw: no finite value"]


def test_words_follow_the_numbers() -> None:
    def rung(mean: float, low: float, high: float, noise: float | None, **gradient: Any) -> dict[str, Any]:
        final = {"mean": mean, "low": low, "high": high}
        return {"final": final, "gradient": {"relative_variance": noise, **gradient}, "seconds": {"median": 2.0}}

    found = {"gradient": {"episodes": 60}}
    better = ladder_page.compare_rungs(rung(5.0, 4.0, 6.0, 10.0), rung(1.0, 0.5, 1.5, 40.0), found)
    assert better == (
        "Ends at 5 [4, 6], the rung before at 1: more; gradient noise 10, 0.25 × that of the rung before; 2.00 s, 1 × the time."
    )
    assert ": less;" in ladder_page.compare_rungs(rung(1.0, 0.5, 1.5, 1.0), rung(5.0, 4.0, 6.0, 1.0), found)
    assert "the intervals overlap" in ladder_page.compare_rungs(rung(1.0, 0.5, 4.5, 1.0), rung(5.0, 4.0, 6.0, 1.0), found)
    assert "does not stand out of its noise in 60 episodes" in ladder_page.compare_rungs(rung(1.0, 0.5, 1.5, None), None, found)
    known = {"bias": 0.25, "bias_by_chance": 0.125, "cosine": 0.9}
    assert ladder_page.bias(rung(0.0, 0.0, 0.0, 1.0), False) == ""
    assert ladder_page.bias(rung(0.0, 0.0, 0.0, 1.0, biased=True, **known), False).startswith("Biased here: its mean is off by 0.25 of")
    assert ladder_page.bias(rung(0.0, 0.0, 0.0, 1.0, biased=False, **known), False).startswith("No bias to be seen")
    assert "cosine to the exact one is 0.9" in ladder_page.bias(rung(0.0, 0.0, 0.0, 1.0, biased=True, **known), True)
    assert ladder_page.few_digits(-11.656) == "−11.66" and ladder_page.few_digits(math.nan) == "–"


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "ladder: expected TASK, one of bandit, corridor, CartPole-v1"),
        (["cartpole"], "unknown task 'cartpole': did you mean 'CartPole-v1'?"),
        (["coridor"], "unknown task 'coridor': did you mean 'corridor'?"),
        (["Pendulum-v1"], "unknown task 'Pendulum-v1': "),
        (["bandit", "corridor"], "unexpected 'corridor'"),
        (["bandit", "--budget", "0"], "--budget: expected 100 to 1000000000000 environment steps, found 0"),
        (["bandit", "--budget", "99999999999999999999"], "--budget: expected an integer of at most 1e+15, found '9999"),
        ([""], "unknown task '': choose one of"),
        (["bandit", "--budget", "lots"], "--budget: expected an integer, found 'lots'"),
        (["bandit", "--seeds", "0"], "--seeds: expected an integer from 1 to 1000, found 0"),
        (["bandit", "--seeds", "1001"], "--seeds: expected an integer from 1 to 1000, found 1001"),
        (["bandit", "--out", "full"], "--out: full exists and is not empty"),
        (["bandit", "--out", "full/file"], "--out: full/file is a file, not a folder"),
        (["bandit", "--steps", "3"], "unknown flag '--steps'"),
    ],
)
def test_bad_input(cli: Command, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    answer = cli("ladder", *words)
    assert answer.code == 2 and answer.out == "" and answer.err.startswith(f"upslope: {message}") and answer.err.count("\n") == 1
    assert not Path("runs").exists()


def test_help_names_every_task(cli: Command) -> None:
    out = good(cli("ladder", "--help")).out
    assert all(name in out for name in TASKS) and "--budget" in out


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (Debian: apt-get install chromium)")
def test_a_browser_draws_every_curve_without_a_word(climbed: Path, tmp_path: Path) -> None:
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    options = [*quiet.split(), "--disable-sync", f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    found = subprocess.run(["chromium", *options, (climbed / "index.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and "CONSOLE" not in found.stderr
    assert len(re.findall(r"<svg", found.stdout)) == 2 + len(RUNGS)
    assert len(re.findall(r'<path d="M[\d. L\n-]+"[^>]*stroke: var\(--r\d\); stroke-width: 2;', found.stdout)) == 3 * len(RUNGS)
