"""The three ways a call can fail, and one helper that names the nearest valid choice.

``UsageError``: the caller asked for something that cannot be done; known before the first step (exit code 2).
``RunFault``: something outside the library went wrong while running, an environment that raises for one (exit code 1).
``Diverged``: the objective or the parameters stopped being finite (exit code 1).

Every message is one line that names the argument, what was found and what to do.
"""

import difflib
import importlib.util
import math
import traceback
from collections.abc import Iterable
from pathlib import Path


class UsageError(ValueError):
    """A request that cannot be carried out; the message says what to change."""


class RunFault(RuntimeError):
    """A fault while running; everything recorded up to the last whole iteration is kept."""


class Diverged(RunFault):
    """The objective, an advantage or a parameter is no longer finite; ``batch`` is where that was seen, if in one."""

    batch: object = None


class Signaled(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does: what it has started is ended, what is half written removed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def is_fault(error: BaseException) -> bool:
    """Whether code failed, and nobody asked to stop: an exception, or a panic of Rust, which PyO3 makes no ``Exception`` of."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def unknown(kind: str, name: str, choices: Iterable[str], hint_after: str = "") -> UsageError:
    """``unknown("algorithm", "pp0", ["ppo"])`` → "unknown algorithm 'pp0': did you mean 'ppo'?", and ``hint_after``."""
    names = sorted(choices)
    near = nearest(name, names)
    is_training = kind == "flag" and not {"--total-steps", "--iterations"}.isdisjoint(names) and "--trials" not in names
    if is_training and (instead := ABSENT.get(name.lower().strip("-").replace("_", "-"))) is not None:
        return UsageError(f"unknown {kind} {name!r}: {instead}{hint_after}")
    shown = names if len(names) <= 24 else [*names[:12], f"… ({len(names) - 12} more)"]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {', '.join(shown)}" if names else "there is none"
    if not near and kind == "flag" and len(names) > 24:
        hint = "--help lists them all"
    return UsageError(f"unknown {kind} {name!r}: {hint}{hint_after}")


NAMES_ELSEWHERE = {
    "activation": "activation-fn",
    "checkpoint-iterations": "save-freq save-steps checkpoint-freq checkpoint",
    "clip-range": "clip clip-coef clip-param clip-eps cliprange",
    "compute-dtype": "bf16 dtype precision",
    "entropy-coef": "ent-coef",
    "env-kwargs": "env-config env-args",
    "eval-episodes": "n-eval-episodes evaluation-episodes",
    "eval-every": "eval-freq eval-steps",
    "group-size": "num-generations n-samples-per-prompt samples-per-prompt rollout-n",
    "hidden-sizes": "net-arch hiddens fcnet-hiddens",
    "init": "load load-model pretrained trained-agent",
    "iterations": "max-steps total-steps",  # each is the budget of one world
    "kl-coef": "beta",
    "lora-rank": "lora-r",
    "max-grad-norm": "grad-clip gradient-clip max-gradient-norm",
    "max-tokens": "max-completion-length max-new-tokens max-response-length response-length",
    "micro-batch-size": "per-device-train-batch-size micro-train-batch-size",
    "model": "model-name model-name-or-path pretrain",
    "normalize-advantage": "norm-adv",
    "num-envs": "n-envs",
    "num-epochs": "n-epochs update-epochs num-ppo-epochs num-sgd-iter",
    "num-minibatches": "batch-size minibatch-size",
    "num-prompts": "train-batch-size generation-batch-size rollout-batch-size",
    "num-steps": "n-steps",
    "out": "log-dir logdir output-dir save-path save-dir run-dir",
    "play": "render capture-video record-video",
    "policy": "best",
    "resume": "resume-from resume-from-checkpoint continue",
    "reward": "reward-funcs reward-fn reward-function",
    "schedule": "anneal-lr lr-schedule lr-scheduler-type",
    "task": "dataset dataset-name train-file data",
    "tensorboard": "tensorboard-log tensorboard-dir tb",
    "total-steps": "n-timesteps timesteps total-timesteps iterations",
    "value-clip-range": "clip-range-vf clip-vloss vf-clip-param",
    "value-coef": "vf-coef",
    "vectorization": "vec-env-type",
    "wandb": "track wandb-project wandb-project-name report-to",
}
"""Setting → what other libraries, or older versions, call it."""
ELSEWHERE = {other: name for name, others in NAMES_ELSEWHERE.items() for other in others.split()}

INSTEAD = {
    "lstm recurrent gru rnn memory use-lstm frame-stack n-frames": "a policy sees one observation and remembers nothing; put the past into "
    "the observation, with gymnasium.wrappers.FrameStackObservation in a module:factory of yours for one",
    "vllm use-vllm vllm-mode engine": "completions are sampled by the engine inside; there is no other yet",
    "seeds num-seeds n-seeds": "a run has one seed; start one for each, for S in 1 2 3; do upslope train … --seed $S; done for one",
    "use-sde sde gsde": "exploration that depends on the state is not built in; --log-std says how large it is at the start",
    "optimize optimize-hyperparameters tune sweep": "`upslope sweep` searches for settings",
    "num-gpus gpus n-gpus nproc num-processes workers num-workers ddp fsdp deepspeed": "a run is one process on one --device",
    "load-in-4bit load-in-8bit quantization": "weights are kept in float32; --lora-rank N trains few of them",
    "policy policy-type": "the network follows from the spaces; --hidden-sizes, --features and --distribution change it",
    "verbose": "progress is shown, unless --quiet is given",
    "buffer-size": "there is no replay buffer: everything here learns from recordings that it uses once",
}
"""What other libraries have and we do not, and what there is instead."""
ABSENT = {name: text for names, text in INSTEAD.items() for name in names.split()}


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """The choices that may have been meant, empty where none is near: the same but for dashes, one that has another name elsewhere, an
    abbreviation (``lr``: learning rate), one or two of which it is a word (``gae``: gae lambda), or the one that is spelled most alike."""
    plain = {choice: choice.lower().strip("-").replace("_", "-") for choice in choices}
    wanted = name.lower().strip("-").replace("_", "-")
    same = [choice for choice, text in plain.items() if text in (wanted, ELSEWHERE.get(wanted))]
    initials = [choice for choice, text in plain.items() if len(wanted) > 1 and wanted == "".join(word[:1] for word in text.split("-"))]
    word = [choice for choice, text in plain.items() if len(wanted) > 2 and f"-{wanted}-" in f"-{text}-"]
    spelled = {cutoff: difflib.get_close_matches(wanted, plain.values(), n=1, cutoff=cutoff) for cutoff in (0.8, 0.6)}
    alike = spelled[0.8] or spelled[0.6]
    best = sorted((c for c, text in plain.items() if text in alike), key=lambda c: -difflib.SequenceMatcher(None, name, c).ratio())[:1]
    return same[:1] or initials[:2] or (best if spelled[0.8] else word if len(word) in (1, 2) else best)


def describe_error(error: BaseException) -> str:
    """The message of an exception in one line; one that is not ours is named and placed."""
    message = " ".join(str(error).split())
    if isinstance(error, UsageError | RunFault):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{where}"


def one_line(value: object, most: int) -> str:
    line = " ".join(str(value).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def first_line(error: BaseException, most: int = 300) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:most]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def is_kind(value: object, *kinds: type) -> bool:
    """``isinstance`` of what a caller gave, who may not have kept to the types that were asked for."""
    return isinstance(value, kinds)


def require_counts(owner: object, *names: str, least: int = 1, most: float = math.inf) -> None:
    """Raise :class:`UsageError` for the first of these attributes outside ``least`` to ``most``; one whose default is None may be None."""
    for name in names:
        value, optional = getattr(owner, name), getattr(type(owner), name, 0) is None
        or_none = " or none" if optional else ""
        high = f" and at most {most:,.0f}" if most < math.inf else ""
        require(value is None or least <= value <= most, f"{name}: expected an integer ≥ {least}{high}{or_none}, found {value}")


class MissingExtra(UsageError, ImportError):
    """A package that an optional feature needs is not installed."""


def missing_extra(package: str, extra: str) -> MissingExtra:
    return MissingExtra(f"this needs {package}, which is not installed: {install(f'upslope[{extra}]')}")


def require_packages(extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, extra)


def install(requirement: str) -> str:
    """The command that installs a requirement here: with the pip of this Python, and for a clone of this library into the clone.

    ``install("upslope[box2d]")`` → ``pip install -e '.[box2d]'`` in a clone, ``pip install 'upslope[box2d]'`` after ``pip install
    upslope``; ``.venv/bin/python -m pip install …`` where ``pip`` alone is another Python's.
    """
    import os
    import shutil
    import sys

    def shown(path: Path) -> str:
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

    python, pip, clone = Path(sys.executable), shutil.which("pip"), Path(__file__).parents[2]
    command = "pip" if pip is not None and os.path.samefile(Path(pip).parent, python.parent) else f"{shown(python)} -m pip"
    if requirement.startswith("upslope[") and (clone / "pyproject.toml").exists():
        return f"{command} install -e '{shown(clone)}{requirement.removeprefix('upslope')}'"
    return f"{command} install '{requirement}'"
