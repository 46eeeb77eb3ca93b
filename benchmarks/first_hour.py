"""A new user's first hour: the commands of the README and of the help texts, one after the other in one folder, each with its exit code
and with what it has to say. What is long is made short by flags behind it, never by another command; the record keeps both.

python benchmarks/first_hour.py                       # some minutes; --only WORD runs those with the word in them, and writes nothing
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import FOLDER, ONE_THREAD, OUR_PACKAGES, OURS, RESULTS, Record, machine, ours_is_ready, versions

ROOT = FOLDER.parent
PROTOCOL = (
    "Every command runs in bash, in the order of the list, in one folder that holds the user's own files and nothing else at first; "
    "one thread, no terminal, output and errors read together. `command` stands word for word in what `source` names: the README, or what "
    "a command before it printed (its help, or `try next`); `ours` are mistakes and neighbors of printed commands. `shortened` is what was "
    "written behind it to keep it short. Right: the exit code is the one of "
    "the list, the words of the list are in the output, no traceback is, and a malformed command is refused in one line."
)
MY_MODULE = '''
import gymnasium
import numpy as np
from dataclasses import dataclass

from upslope import GRPO
from mine import estimator


class MyEnv(gymnasium.Env):
    """Walk to the right end of a line."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, level=1, render_mode=None):
        self.length, self.render_mode = 5 * level, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.steps = 0
        return self.seen(), {}

    def step(self, action):
        self.place += 2 * int(action) - 1
        self.steps += 1
        return self.seen(), float(self.place >= self.length), abs(self.place) >= self.length, self.steps >= 100, {}

    def seen(self):
        return np.array([self.place / self.length], np.float32)

    def render(self):
        frame = np.full((40, 40 * (2 * self.length + 1), 3), 255, np.uint8)
        frame[:, 40 * (self.place + self.length) :][:, :40] = 0
        return frame


gymnasium.register("MyEnv-v0", entry_point=MyEnv)


def make_env(level=1, render_mode=None):
    return MyEnv(level, render_mode)


@dataclass(frozen=True)
class MyGRPO(GRPO):
    kl_coef: float = 0.0


def score(*, prompts, completions, answer):
    return [float(right in completion) for right, completion in zip(answer, completions)]
'''
MYTASKS = """
from my_module import MyEnv


def make_maze():
    return MyEnv()
"""


def user_files(readme: str) -> dict[str, str]:
    """What the README's commands take for the user's own: `mine.py` as the README prints it, an environment, a reward, data."""
    mine = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "def estimator(" in block)
    sums = [(f"What is {a} + {a + 1}?", str(2 * a + 1)) for a in range(8)]
    problems = [{"prompt": prompt, "answer": answer} for prompt, answer in sums]
    pairs = [{"prompt": prompt, "chosen": f"It is {answer}.", "rejected": "It is hard to say."} for prompt, answer in sums]
    judged = [{"prompt": prompt, "completion": f"It is {answer}.", "label": n % 2 == 0} for n, (prompt, answer) in enumerate(sums)]
    rows = {"problems.jsonl": problems, "pairs.jsonl": pairs, "judged.jsonl": judged}
    data = {name: "".join(json.dumps(row) + "\n" for row in table) for name, table in rows.items()}
    return {"mine.py": mine, "my_module.py": MY_MODULE.lstrip(), "mytasks.py": MYTASKS.lstrip(), **data}


@dataclass(frozen=True)
class Step:
    """A command as it is printed, what keeps it short, words of its output (all of them), its exit code."""

    command: str
    shortened: str = ""
    says: Sequence[str] = ()
    code: int = 0

    @property
    def line(self) -> str:
        return f"{self.command} {self.shortened}".strip()


SMALL = "--num-prompts 2 --group-size 2 --max-tokens 16 --eval-episodes 2 --iterations 1"
"""Of a run of the real model."""
STEPS: tuple[Step, ...] = (
    # what there is
    Step("upslope --help", says=["Commands:", "upslope train ppo CartPole-v1"]),
    Step("upslope --version", says=["upslope "]),
    Step("upslope list", says=["LunarLander-v3", "reward-model"]),
    Step("upslope train --help", says=["upslope train ppo Pendulum-v1"]),
    Step("upslope evaluate --help", says=["upslope evaluate smollm2"]),
    Step("upslope check --help", says=["upslope check my_module:estimator"]),
    Step("upslope train ppo --help", says=["--learning-rate", "--clip-range"]),
    Step("upslope train ppo CartPole-v1 --help", says=["--hidden-sizes"]),
    Step("upslope train grpo --model tiny --help", says=["--warm-start"]),
    # one's own task
    Step("upslope train ppo LunarLander-v3 --until-solved --seed 1", "--total-steps 4000", ["try next:", "runs/ppo-LunarLander-v3-1"]),
    Step("upslope train ppo my_module:MyEnv-v0 --num-envs 16 --total-steps 500000", "--total-steps 4000", ["try next:"]),
    Step(
        """upslope train ppo my_module:make_env --env-kwargs '{"level": 2}' --hidden-sizes 128 128""", "--total-steps 4000", ["try next:"]
    ),
    Step("upslope train rloo CartPole-v1 --group-size 8 --num-groups 2", "--total-steps 2000", ["try next:"]),
    Step("upslope train ppo CartPole-v1 --until-return 475", says=["solved", "runs/ppo-CartPole-v1-0"]),
    Step("upslope train ppo Pendulum-v1 --seed 3 --out runs/pendulum", "--total-steps 4000", ["runs/pendulum"]),
    Step("""upslope train a2c LunarLander-v3 --env-kwargs '{"gravity": -8.0}' --total-steps 1e6""", "--total-steps 4000", ["try next:"]),
    Step("upslope train grpo CartPole-v1 --group-size 8 --num-groups 8", "--total-steps 2000", ["try next:"]),
    Step("upslope train reinforce mytasks:make_maze --num-envs 4", "--total-steps 2000", ["try next:"]),
    Step("upslope train reinforce upslope/ShortCorridor-v0", "--total-steps 2000", ["try next:"]),
    # what was learned
    Step("upslope resume runs/ppo-CartPole-v1-0", says=["ended at its goal"], code=2),
    Step("upslope verify-resume ppo my_module:make_env", says=["equal to the bit"]),
    Step("upslope train ppo CartPole-v1 --out runs/mine --resume auto", "--total-steps 2000", ["try next:"]),
    Step("upslope replay runs/ppo-CartPole-v1-0 --iteration 12", says=["equal to the bit"]),
    Step("upslope doctor runs/ppo-CartPole-v1-0", says=["nothing to complain of"]),
    Step("upslope evaluate runs/ppo-CartPole-v1-0 --episodes 100 --json", says=['"return_mean"', '"episodes": 100']),
    Step("upslope evaluate runs/ppo-CartPole-v1-0 --episodes 100", "--policy best", ["best policy"]),
    Step("upslope play runs/ppo-CartPole-v1-0 --out policy.gif", "--max-steps 50", ["wrote policy.gif"]),
    Step("upslope play runs/ppo-CartPole-v1-0 --out cart.gif", "--policy best --max-steps 50", ["wrote cart.gif"]),
    Step("upslope plot runs/* --out comparison.png", says=["comparison.png"]),
    Step("upslope play runs/ppo-make_env-0 --env my_module:make_env", says=["play.gif"]),
    Step("upslope play runs/reinforce-make_maze-0 --env mytasks:make_maze", says=["render_mode"], code=2),
    # other settings
    Step("upslope sweep --help", says=["--search NAME=SPACE"]),
    Step(
        "upslope sweep ppo CartPole-v1 --trials 50 --jobs 2 --out sweeps/cartpole",
        "--trials 2 --seeds 1 --total-steps 10000",
        ["best: trial", "judge it on", "sweeps/cartpole/best.json"],
    ),
    Step(
        "upslope sweep ppo CartPole-v1 --search learning_rate=1e-4:1e-2:log num_steps=32,64,128",
        "--trials 2 --seeds 1 --total-steps 10000",
        ["sweeps/ppo-CartPole-v1-0"],
    ),
    Step(
        "upslope train ppo CartPole-v1 --config sweeps/cartpole/best.json --until-solved --seed 100",
        says=["try next:", "runs/ppo-CartPole-v1-100"],
    ),
    # steps in a file
    Step("upslope record runs/ppo-CartPole-v1-0 --steps 50000 --num-envs 64 --out steps.safetensors", says=["steps.safetensors"]),
    Step("upslope record CartPole-v1 --random", "--out random.safetensors --steps 1000", ["random.safetensors"]),
    Step("upslope train off-policy CartPole-v1 --data steps.safetensors", says=["try next:"]),
    # estimators
    Step("upslope check mine:estimator", says=["missing discount weight"], code=1),
    Step("upslope check my_module:estimator", says=["BROKEN"], code=1),
    Step("upslope check my_module:MyGRPO --group --json", says=["{"]),
    Step(
        "upslope variance CartPole-v1 --estimators reinforce-to-go reinforce-to-go-baseline a2c:0 a2c:0.95 rloo",
        "--samples 16 --critic-samples 8",
        ["reinforce-to-go-baseline", "a2c:0.95"],
    ),
    Step("upslope variance upslope/ShortCorridor-v0 --gamma 1", "--samples 64", ["exact"]),
    # examples and figures
    Step("upslope ladder --help", says=["corridor"]),
    Step("upslope ladder bandit", "--seeds 1 --budget 400", ["ladder-bandit"]),
    Step("upslope reproduce sb-13.1", "--runs 20", ["within"]),
    Step("upslope train actor-critic CartPole-v1", "--total-steps 1000", ["try next:"]),
    Step(
        "upslope train actor-critic CartPole-v1 --features network --trace-decay 0 --value-trace-decay 0",
        "--total-steps 1000",
        ["try next:"],
    ),
    Step("upslope train actor-critic MountainCar-v0 --features tiles --num-tilings 16", "--total-steps 500", ["try next:"]),
    Step("upslope train sarsa FrozenLake-v1 --features linear", "--total-steps 500", ["try next:"]),
    # a language model
    Step(
        "upslope train grpo --model tiny --task addition",
        "--iterations 2 --warm-start-iterations 40",
        ["runs/grpo-addition-0", "try next:"],
    ),
    Step("upslope evaluate runs/grpo-addition-0 --task addition --json", says=['"accuracy"']),
    Step('echo "12+34=" | upslope chat runs/grpo-addition-0 --greedy'),
    Step("upslope model smollm2 --out smollm2", says=["smollm2"]),
    Step("upslope evaluate smollm2 --task sums --episodes 64", "--episodes 2", ["2"]),
    Step("upslope train grpo --model smollm2 --task sums", SMALL, ["runs/grpo-sums-0", "try next:"]),
    Step(
        "upslope train dapo --model smollm2 --task problems.jsonl --reward my_module:score --reward max-length:200=0.1",
        SMALL,
        ["runs/dapo-problems-0"],
    ),
    Step("upslope train dpo --model smollm2 --pairs pairs.jsonl", "--batch-size 4 --iterations 1", ["runs/dpo-pairs-0"]),
    Step("upslope export runs/grpo-sums-0 --out trained", "--bfloat16", ["trained"]),
    Step("upslope chat runs/grpo-sums-0", "--max-tokens 4 < /dev/null"),
    # the other methods for language models, on the tiny one
    Step("upslope train sft --model tiny --task addition", "--iterations 2", ["runs/sft-addition-0"]),
    Step("upslope evaluate runs/sft-addition-0", "--json", ['"accuracy"']),
    Step("upslope train dpo --model tiny --pairs pairs.jsonl", "--iterations 1 --batch-size 4 --out runs/dpo-tiny", ["runs/dpo-tiny"]),
    Step("upslope evaluate runs/dpo-tiny", "--pairs pairs.jsonl --json", ["{"]),
    Step("upslope train kto --model tiny --pairs judged.jsonl", "--iterations 1 --batch-size 4", ["runs/kto-judged-0"]),
    Step("upslope evaluate runs/kto-judged-0", "--pairs pairs.jsonl --json", ["{"]),
    Step("upslope train reward-model --model tiny --pairs pairs.jsonl", "--iterations 1 --batch-size 4", ["runs/reward-model-pairs-0"]),
    Step("upslope evaluate runs/reward-model-pairs-0", "--json", ["{"]),
    # what goes wrong
    Step("upslope train ppo CartPole-v1 --lr 0.001", says=["did you mean '--learning-rate'?"], code=2),
    Step("upslope train ppo CartPole-v1 --resume", says=["--resume"], code=2),
    Step("upslope train pp0 CartPole-v1", says=["unknown algorithm 'pp0': did you mean 'ppo'?"], code=2),
    Step("upslope train --out ppo a2c CartPole-v1", "--total-steps 1000 --quiet"),
    Step("upslope train ppo", says=["CartPole-v1"], code=2),
    Step("upslope train grpo --model tiny", says=["--task"], code=2),
    Step("upslope trian ppo CartPole-v1", says=["did you mean 'train'?"], code=2),
    Step("upslope train ppo CartPool-v1", says=["did you mean", "CartPole"], code=2),
    Step("upslope train ppo CartPole-v1 --total-steps many", says=["--total-steps"], code=2),
    Step("upslope evaluate runs/nothing", says=["runs/nothing"], code=2),
    Step("upslope train ppo nothing:MyEnv-v0", says=["nothing"], code=2),
)


def follow(output: str) -> list[str]:
    """The commands under "try next"; the reason stands behind several spaces."""
    _, found, rest = output.partition("try next:\n")
    return [line.strip().split("   ")[0] for line in rest.split("\n\n")[0].splitlines() if line.startswith("  ")] if found else []


def source(command: str, readme: str, printed: Sequence[tuple[str, str]]) -> str:
    """Where a user has a command from: it stands there whole, nothing but a remark behind it."""
    whole = re.compile(re.escape(command) + r"(?=`|:|,|\s*$|  )", re.MULTILINE)
    if whole.search(readme):
        return "README.md"
    return next((words for words, output in printed if whole.search(output)), "ours")


def judge(step: Step, code: int, output: str) -> str:
    """Right, or what is wrong."""
    if code != step.code:
        return f"exit code {code} instead of {step.code}"
    if "Traceback" in output:
        return "a traceback"
    missing = [words for words in step.says if words not in output]
    if missing:
        return f"does not say {missing[0]!r}"
    return "not one line" if code == 2 and output.strip().count("\n") else "right"


def run(step: Step, folder: Path) -> tuple[int, str]:
    """One command in bash, with the environment's programs in front."""
    env = {**os.environ, **ONE_THREAD, "PATH": f"{OURS}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-c", step.line], cwd=folder, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=900, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


SHORT_TRY_NEXT = {"evaluate": "--episodes 2", "play": "--max-steps 20", "train": "--quiet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="run the commands with this word in them only, and write nothing")
    parser.add_argument("--folder", type=Path, help="where (none: a temporary folder, deleted afterwards)")
    parser.add_argument("--out", type=Path, default=RESULTS / "first_hour.json")
    args = parser.parse_args()
    ours_is_ready()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        for name, text in user_files(readme).items():
            (folder / name).write_text(text, encoding="utf-8")
        records = hour(folder, readme, args.only)
    right = sum(record["verdict"] == "right" for record in records)
    print(f"{right} of {len(records)} right")
    if not args.only:
        found = {"upslope": versions(OURS / "python", OUR_PACKAGES)}
        head = {"benchmark": "first_hour", "date": datetime.date.today().isoformat(), "machine": machine(), "versions": found}
        sections = {"protocol": PROTOCOL, "summary": {"commands": len(records), "right": right}, "runs": records}
        args.out.write_text(json.dumps({**head, **sections}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(right != len(records))


def hour(folder: Path, readme: str, only: str | None) -> list[Record]:
    """Every command, then those that the runs offered under "try next" and that were not among them."""
    records, printed, queue = list[Record](), list[tuple[str, str]](), list(STEPS)
    seen = {step.command for step in STEPS}
    while queue:
        step = queue.pop(0)
        if only and only not in step.line:
            continue
        code, output = run(step, folder)
        verdict = judge(step, code, output)
        for command in follow(output):
            if command not in seen:
                seen.add(command)
                queue.append(Step(command, SHORT_TRY_NEXT.get(command.split()[1], "")))
        records.append({
            "command": step.command, "shortened": step.shortened, "source": source(step.command, readme, printed), "exit_code": code,
            "verdict": verdict,
        })  # fmt: skip
        printed.append((f"{'help' if '--help' in step.command else 'try next'}: {step.command}", output))
        print(f"{verdict:8} {code:3}  {step.line}", flush=True)
        if verdict != "right":
            print("    " + "\n    ".join(output.strip().splitlines()[-12:]), flush=True)
    return records


if __name__ == "__main__":
    main()
