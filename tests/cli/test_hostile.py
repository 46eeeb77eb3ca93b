"""Files and folders of a stranger: nothing in them is ever executed, nothing is written but what was asked for.

Every case puts hostile files into the current folder and runs a command on them. Watched are a module ``evil`` that leaves a canary when
it is imported, ``os.system`` and ``subprocess``, and a folder of the user's beside the current one.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SHORT, Command
from tests.cli.test_bad_input import one_line

PPO = ["train", "ppo", "CartPole-v1", "--total-steps", "32", *SHORT]
TINY = ["--model", "tiny", "--task", "addition"]
Plant = Callable[[Path], None]


class Executed:
    """Pickled, it runs a command when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def settings(**values: Any) -> Plant:
    """A file of settings."""
    return lambda folder: (folder / "c.json").write_text(json.dumps(values)) and None


def changed(name: str, *keys: str, value: Any, then: Plant | None = None) -> Plant:
    """One value of a JSON file of the run changed."""

    def plant(folder: Path) -> None:
        path = folder / "stranger" / name
        content = json.loads(path.read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.write_text(json.dumps(content))
        if then is not None:
            then(folder)

    return plant


def replaced(name: str, content: bytes) -> Plant:
    return lambda folder: (folder / "stranger" / name).write_bytes(content) and None


def linked(name: str, to: str = "../home/secret") -> Plant:
    """A link out of the run in place of one of its files (or of one that it does not have)."""

    def plant(folder: Path) -> None:
        path = folder / "stranger" / name
        target = path.parent / to
        if path.is_dir():
            shutil.move(path, target)
        elif path.exists() and not target.exists():
            shutil.copy(path, target)
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    return plant


def pipe(name: str) -> Plant:
    """A pipe that nobody writes into."""

    def plant(folder: Path) -> None:
        (folder / "stranger" / name).unlink()
        os.mkfifo(folder / "stranger" / name)

    return plant


def sparse(name: str, size: int, start: bytes = b"") -> Plant:
    """A file that is large and takes no room: zeros behind its ``start``, or behind what it holds."""

    def plant(folder: Path) -> None:
        path = folder / "stranger" / name
        if start:
            path.write_bytes(start)
        os.truncate(path, size)

    return plant


def header(**tensors: Any) -> bytes:
    """The beginning of a safetensors file, without a tensor."""
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def in_its_place(name: str) -> Plant:
    """A folder with a file's name."""

    def plant(folder: Path) -> None:
        (folder / "stranger" / name).unlink()
        (folder / "stranger" / name).mkdir()

    return plant


def torch_file(name: str) -> Plant:
    return replaced(name, pickle.dumps(Executed()))


def config(algorithm: str, /, **values: Any) -> tuple[Plant, list[str]]:
    """A configuration for environments."""
    return settings(**values), ["train", algorithm, "CartPole-v1", "--config", "c.json"]


def text_config(algorithm: str, /, **values: Any) -> tuple[Plant, list[str]]:
    """A configuration for texts."""
    return settings(**values), ["train", algorithm, *TINY, "--config", "c.json"]


EVALUATE, PLAY = ["evaluate", "stranger", "--episodes", "1"], ["play", "stranger", "--out", "p.gif", "--max-steps", "3"]
RECORD, INIT = ["record", "stranger", "--steps", "8", "--out", "s.safetensors"], [*PPO, "--init", "stranger"]
RESUME = ["resume", "stranger", "--total-steps", "256"]
GYM = changed(
    "config.json",
    "env_id",
    value="GymV21Environment-v0",
    then=changed("config.json", "env", "env_kwargs", value={"env_id": "evil:E-v0"}),
)

CASES: dict[str, tuple[tuple[Plant, list[str]], str]] = {
    # settings that name what to import
    "surrogate": (config("ppo", surrogate="evil:f"), "say --surrogate evil:f to import it"),
    "surrogate of Python's": (config("ppo", surrogate="os:system"), "say --surrogate os:system"),
    "surrogate in a run's config": (config("ppo", algorithm={"name": "ppo", "surrogate": "evil:f"}), "--surrogate evil:f"),
    "schedule": (config("ppo", schedule="evil:f"), "say --schedule evil:f"),
    "schedule, nested": (config("ppo", algorithm={"update": {"schedule": "evil:f"}}), "say --schedule evil:f"),
    "returns": (config("reinforce", returns="evil:f"), "say --returns evil:f"),
    "estimator": (config("off-policy", estimator="evil:f"), "say --estimator evil:f"),
    "advantage": (config("grpo", advantage="evil:f"), "say --advantage evil:f"),
    "ratio": (config("rloo", ratio="evil:f"), "ratio"),
    "action values": (config("all-actions", q="evil:f"), "say --q evil:f"),
    "activation": (config("ppo", activation="evil:f"), "a module is never imported because a file says so"),
    "features": (config("ppo", features="evil:f"), "a module is never imported because a file says so"),
    "vectorization": (config("ppo", vectorization="evil:f"), "a module is never imported because a file says so"),
    "a dotted module": (config("ppo", surrogate="os.path:join"), "say --surrogate os.path:join"),
    "reward": (text_config("grpo", reward=["evil:f"]), "say --reward evil:f to import it"),
    "reward that runs a command": (text_config("grpo", reward=["subprocess:getoutput"]), "say --reward subprocess:getoutput"),
    "reward behind a built-in one": (text_config("grpo", reward=["contains:a=0.1", "evil:f=0.5"]), "--reward contains:a=0.1 evil:f=0.5"),
    "reward as a text": (text_config("grpo", reward="evil:f"), "say --reward evil:f"),
    "preference": (text_config("dpo", preference="evil:f"), "say --preference evil:f"),
    "device": (config("ppo", device="evil:f"), "device"),
    # runs whose environment or network is a name
    "environment, evaluate": ((changed("config.json", "env_id", value="evil:E-v0"), EVALUATE), "say --env evil:E-v0"),
    "environment, play": ((changed("config.json", "env_id", value="evil:make"), PLAY), "say --env evil:make"),
    "environment, record": ((changed("config.json", "env_id", value="evil:make"), RECORD), "say --env evil:make"),
    "an environment that imports another": ((GYM, EVALUATE), "say --env GymV21Environment-v0"),
    "keywords that are no keywords": (
        (changed("config.json", "env", "env_kwargs", value={"entry_point": "evil:E"}), EVALUATE),
        "cannot be made",
    ),
    "class of the policy": ((changed("policy.json", "class", value="evil:P"), EVALUATE), "unknown policy class"),
    "network of the policy": (
        (changed("policy.json", "class", value="ActorCritic", then=changed("policy.json", "network", value="evil:net")), INIT),
        "pass it as network=",
    ),
    "activation of the policy": ((changed("policy.json", "activation", value="evil:f"), EVALUATE), "unknown activation"),
    "dtype of a space": ((changed("policy.json", "observation_space", "dtype", value="evil"), EVALUATE), "does not describe a policy"),
    # files that are code, links, pipes
    "pickled policy": ((torch_file("policy.safetensors"), EVALUATE), "policy.safetensors is damaged"),
    "pickled policy to go on from": ((torch_file("policy.safetensors"), INIT), "policy.safetensors is damaged"),
    "pickled best policy": ((torch_file("best_policy.safetensors"), [*EVALUATE, "--policy", "best"]), "best_policy.safetensors is damaged"),
    "pickled description": ((torch_file("policy.json"), PLAY), "policy.json is damaged"),
    "pickled metrics": ((torch_file("metrics.jsonl"), ["plot", "stranger"]), "metrics.jsonl is damaged"),
    "pickled data": (
        (torch_file("data"), ["train", "off-policy", "CartPole-v1", "--data", "stranger/data"]),
        "is no safetensors file",
    ),
    "endless brackets": ((replaced("config.json", b"[" * 200_000), EVALUATE), "config.json is damaged"),
    "endless brackets in the metrics": ((replaced("metrics.jsonl", b"[" * 200_000 + b"\n{}\n"), ["plot", "stranger"]), "is damaged"),
    "config elsewhere": ((linked("config.json"), EVALUATE), "a link that leads out of the folder"),
    "policy elsewhere": ((linked("policy.safetensors"), EVALUATE), "a link that leads out of the folder"),
    "description elsewhere": ((linked("policy.json"), INIT), "a link that leads out of the folder"),
    "metrics elsewhere": ((linked("metrics.jsonl"), ["plot", "stranger"]), "a link that leads out of the folder"),
    "a pipe for metrics": ((pipe("metrics.jsonl"), ["plot", "stranger"]), "not a file"),
    "a pipe for a policy": ((pipe("policy.safetensors"), EVALUATE), "not a file"),
    "a header of a terabyte": (
        (replaced("policy.safetensors", (2**40).to_bytes(8, "little") + b"{}"), EVALUATE),
        "policy.safetensors is damaged",
    ),
    "a header that is no JSON": ((replaced("policy.safetensors", (9).to_bytes(8, "little") + b"[" * 9), EVALUATE), "is damaged"),
    "tensors larger than the file": (
        (replaced("policy.safetensors", header(x={"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]})), EVALUATE),
        "is damaged",
    ),
    "tensors that nobody asked for": ((sparse("policy.safetensors", 2**33), EVALUATE), "policy.safetensors is damaged: it has 8,589,934"),
    "a network larger than its weights": (
        (changed("policy.json", "hidden_sizes", value=[60_000, 60_000]), EVALUATE),
        "policy.json is damaged: it describes a network",
    ),
    "settings of eight gigabytes": ((sparse("config.json", 2**33, b"{}"), EVALUATE), "config.json is damaged: it has 8,589,934,592 bytes"),
    "a description of eight gigabytes": ((sparse("policy.json", 2**33, b"{}"), PLAY), "policy.json is damaged: it has 8,589,934,592 bytes"),
    "a device for metrics": ((linked("metrics.jsonl", "/dev/zero"), ["plot", "stranger"]), "a link that leads out of the folder"),
    "a device for a policy": ((linked("policy.safetensors", "/dev/zero"), EVALUATE), "a link that leads out of the folder"),
    "a folder for a policy": ((in_its_place("policy.safetensors"), EVALUATE), "not a file"),
    "checkpoints elsewhere": ((linked("checkpoints", "../home/checkpoints"), RESUME), "checkpoints: this is a link"),
    "a lock elsewhere": ((linked(".lock"), RESUME), "link"),
    "rows that are written elsewhere": ((linked("metrics.jsonl"), RESUME), "link"),
    "a pipe for settings": ((pipe("config.json"), EVALUATE), "not a file"),
}


def tree(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Content and link target of everything in a folder."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_symlink() or p.is_file()]
    large = {p for p in paths if p.is_file() and p.stat().st_size > 1 << 28}
    contents = {p: b"" if p in large or not p.is_file() else p.read_bytes() for p in paths}
    return {str(p): (contents[p], os.readlink(p) if p.is_symlink() else str(p.stat().st_size)) for p in paths}


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder with the module ``evil``, a ``home`` of the user's, and everything that runs commands out of order."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text("mine")
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    ran: list[str] = []
    for owner, name in ((os, "system"), (os, "popen"), (subprocess, "Popen"), (subprocess, "getoutput"), (subprocess, "run")):
        monkeypatch.setattr(owner, name, lambda *words, name=name, **_: ran.append(f"{name} {words}"))
    monkeypatch.setattr("sys.path", [*sys.path])
    yield tmp_path
    assert ran == []
    assert "evil" not in sys.modules and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("case, expected", CASES.values(), ids=CASES.keys())
def test_nothing_is_executed(cli: Command, watched: Path, trained: Path, case: tuple[Plant, list[str]], expected: str):
    plant, argv = case
    shutil.copytree(trained, watched / "stranger")
    plant(watched)
    before = tree(watched)
    answer = cli(*argv)
    assert answer.code == 2, answer
    assert expected in one_line(answer.err)
    assert tree(watched) == before


def test_what_the_caller_names_again_is_imported(cli: Command, tmp_path: Path):
    settings(surrogate="evil:f", num_envs=2)(tmp_path)
    answer = cli(*PPO, "--config", "c.json", "--surrogate", "faulty:ignoring")
    assert "evil" not in sys.modules
    assert answer.code == 2 and "surrogate: it does not depend on log_prob" in answer.err  # the flag's


def test_the_python_api_imports_nothing_either(watched: Path, trained: Path):
    from upslope import Run, UsageError
    from upslope.run.config import RunConfig

    config = json.loads(json.dumps(Run.load(trained).config))
    for path, value in ((("env_id",), "evil:E-v0"), (("algorithm", "surrogate"), "evil:f")):
        spoiled = json.loads(json.dumps(config))
        inner = spoiled if len(path) == 1 else spoiled[path[0]]
        inner[path[-1]] = value
        with pytest.raises(UsageError, match=f"say .*=?{value}"):
            RunConfig.from_config(spoiled)
    text = RunConfig.of("grpo", model="tiny", task="addition", reward=("contains:a",)).config()
    assert RunConfig.from_config(text).problem.reward == ("contains:a",)
    with pytest.raises(UsageError, match="names evil:f"):
        RunConfig.from_config({**text, "task": {**text["task"], "reward": ["evil:f"]}})


# --------------------------------------------------------------------------------------------------- writes through links


@pytest.mark.parametrize("planted", ["play.gif", ".play.gif.partial"])
def test_an_animation_is_not_written_through_a_link(cli: Command, watched: Path, trained: Path, planted: str):
    shutil.copytree(trained, watched / "stranger")
    (watched / "stranger" / planted).symlink_to("../home/secret")
    before = tree(watched / "home")
    answer = cli("play", "stranger", "--max-steps", "3")
    assert answer.code == 0, answer
    assert tree(watched / "home") == before
    assert (watched / "stranger" / "play.gif").read_bytes().startswith(b"GIF8")
    assert not (watched / "stranger" / "play.gif").is_symlink()


@pytest.mark.parametrize("planted", ["comparison.png", ".comparison.png.partial"])
def test_a_picture_is_not_written_through_a_link(cli: Command, watched: Path, trained: Path, planted: str):
    (watched / planted).symlink_to("home/secret")
    before = tree(watched / "home")
    assert cli("plot", trained).code == 0
    assert tree(watched / "home") == before


def test_a_folder_that_is_filled_keeps_what_it_holds_and_follows_no_link(tmp_path: Path):
    from upslope.files import filled_folder

    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    for folder in (target, elsewhere):
        folder.mkdir()
    (elsewhere / "victim").write_text("precious")
    (target / "config.json").symlink_to(elsewhere / "victim")
    (target / "templates").symlink_to(elsewhere)
    (target / "kept").write_text("mine")
    with filled_folder(target) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "templates").mkdir()
        (folder / "templates" / "a").write_text("a")
    assert {p.name for p in target.iterdir()} == {"config.json", "templates", "kept"}
    assert (target / "config.json").read_text() == "{}" and (target / "templates" / "a").read_text() == "a"
    assert [p.name for p in elsewhere.iterdir()] == ["victim"] and (elsewhere / "victim").read_text() == "precious"
    with pytest.raises(ValueError, match="midway"), filled_folder(tmp_path / "new") as folder:
        (folder / "config.json").write_text("{")
        raise ValueError("midway")
    assert not (tmp_path / "new").exists()


def test_a_model_is_not_written_through_a_link(tmp_path: Path, tiny_model: Path):
    from upslope.language import LanguagePolicy

    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
    LanguagePolicy.from_pretrained(tiny_model).save_pretrained(tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_files_are_whole_and_replace_links(tmp_path: Path):
    from upslope import RunFault, files

    (tmp_path / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("kept")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "kept").read_text() == "kept" and (tmp_path / "link").read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), files.whole_file(tmp_path / "link") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "link").read_bytes() == b"new"
    with files.whole_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("1")
    with files.whole_folder(tmp_path / "folder") as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "kept", "link"]  # nothing half-finished is left
    (tmp_path / "rows").symlink_to("kept")
    with pytest.raises(OSError):
        files.open_to_append(tmp_path / "rows")
    with pytest.raises(RunFault, match=r"cannot write .*nowhere.*No such file"):
        files.write_bytes(tmp_path / "nowhere" / "a", b"")


# -------------------------------------------------------------------------------------------------------- language models


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from upslope import language

    folder = tmp_path_factory.mktemp("model") / "tiny"
    language.tiny(seed=0).save_pretrained(folder)
    return folder


def merged(name: str, /, **values: Any) -> Plant:
    """Keys added to a JSON file of the model (which may not exist yet)."""

    def plant(folder: Path) -> None:
        path = folder / "stranger" / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}))

    return plant


def both(*plants: Plant) -> Plant:
    return lambda folder: [plant(folder) for plant in plants] and None


CODE = replaced("modeling_evil.py", b"import pathlib\npathlib.Path('executed').touch()\nclass Model: ...\nclass Config: ...\n")
AUTO = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model", "AutoTokenizer": ["modeling_evil.T", None]}
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch executed') }}"
ATTRIBUTES = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
ADAPTER = merged(
    "adapter_config.json", peft_type="LORA", base_model_name_or_path="stranger", megatron_config={"a": 1}, megatron_core="evil",
    target_modules=["q_proj"], r=2, auto_mapping={"parent_library": "evil", "base_model_class": "E"},
)  # fmt: skip

MODELS: dict[str, tuple[Plant, str | None]] = {
    "code of an unknown kind": (both(CODE, merged("config.json", model_type="evil", auto_map=AUTO)), "cannot be loaded"),
    "code of a known kind": (both(CODE, merged("config.json", auto_map=AUTO)), None),
    "code for the tokenizer": (both(CODE, merged("tokenizer_config.json", tokenizer_class="T", auto_map=AUTO)), "cannot be loaded"),
    "code to generate with": (merged("generation_config.json", custom_generate="evil:f"), None),
    "a kernel of the hub": (merged("config.json", attn_implementation="evil/kernel"), "names an attention kernel of the hub"),
    "a template that escapes": (merged("tokenizer_config.json", chat_template=ESCAPE), "is unsafe"),
    "a template that looks around": (merged("tokenizer_config.json", chat_template=ATTRIBUTES), "is unsafe"),
    "pickled weights": (
        both(torch_file("pytorch_model.bin"), lambda folder: (folder / "stranger" / "model.safetensors").unlink()),
        "cannot be loaded",
    ),
    "pickled weights beside plain ones": (torch_file("pytorch_model.bin"), None),
    "an adapter that imports": (ADAPTER, "cannot be loaded"),
    "a template without end": (merged("tokenizer_config.json", chat_template=ENDLESS), "chat template"),
    "a template of a terabyte": (merged("tokenizer_config.json", chat_template="{{ 'a' * 10**12 }}"), "chat template"),
    "weights that an index looks for elsewhere": (
        both(linked("model.safetensors"), merged("model.safetensors.index.json", weight_map={"a": "../home/secret"})),
        "cannot be loaded",
    ),
    "weights that are no weights, elsewhere": (linked("model.safetensors"), "cannot be loaded"),
    "pickled value head": (torch_file("value_head.safetensors"), None),
}


@pytest.mark.parametrize("plant, expected", MODELS.values(), ids=MODELS.keys())
def test_no_code_of_a_model_folder_is_run(
    cli: Command, watched: Path, tiny_model: Path, plant: Plant, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(tiny_model, watched / "stranger")
    plant(watched)
    before = tree(watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    answer = cli("chat", "stranger", "--greedy", "--max-tokens", "1")
    if expected is None:
        assert answer.code == 0, answer
    else:
        assert answer.code == 2 and expected in one_line(answer.err), answer
    assert tree(watched) == before


@pytest.mark.parametrize(
    "plant", [linked("policy", "../home/policy"), linked("policy/config.json", "../../home/secret"), None], ids=["folder", "file", "reward"]
)
def test_the_run_of_a_language_model(cli: Command, watched: Path, tiny_model: Path, plant: Plant | None):
    from upslope.run.config import RunConfig

    shutil.copytree(tiny_model, watched / "stranger" / "policy")
    settings = RunConfig.of("grpo", model="tiny", task="addition").config()
    if plant is None:
        settings["task"]["reward"] = ["evil:f"]
    (watched / "stranger" / "config.json").write_text(json.dumps({"format_version": 1, **settings}))
    if plant is not None:
        plant(watched)
    before = tree(watched)
    answer = cli("evaluate", "stranger", "--episodes", "1", "--max-tokens", "1")
    if plant is not None:
        assert answer.code == 2 and "a link that leads out of the folder" in one_line(answer.err), answer
    assert tree(watched) == before


# -------------------------------------------------------------------------------------------- modules of the current folder

SHADOWS = ("numpy", "torch", "gymnasium", "random", "json", "typing", "dataclasses", "tempfile", "inspect", "triton", "tensorboard")


@pytest.mark.parametrize("start", [["-m", "upslope"], ["-c", "from upslope.cli.main import entry; entry()"]], ids=["module", "script"])
def test_the_current_folder_comes_last(tmp_path: Path, start: list[str]):
    """A console script does not see the current folder (``-c`` sees it first, unless it is told not to)."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("import pathlib\npathlib.Path('executed').touch()\nraise ImportError('shadowed')\n")
    (tmp_path / "mine.py").write_text("import gymnasium\n\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n")
    safe = ["-P"] if start[0] == "-c" else []
    words = [
        "train",
        "ppo",
        "mine:make",
        "--total-steps",
        "16",
        "--num-envs",
        "1",
        "--num-steps",
        "16",
        "--num-minibatches",
        "1",
        "--quiet",
    ]
    done = subprocess.run([sys.executable, *safe, *start, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists() and (tmp_path / "runs" / "ppo-make-0" / "summary.json").exists()


def test_a_module_that_is_hidden_by_an_installed_one(cli: Command, tmp_path: Path):
    (tmp_path / "random.py").write_text("def make(): ...\n")
    answer = cli("train", "ppo", "random:make")
    assert answer.code == 2 and "random.py in the current folder has the name of a module of Python" in one_line(answer.err)
