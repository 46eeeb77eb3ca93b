"""Helpers of the tests of tasks."""

import json

from upslope.language.problems import columns_of, prompt_key


def prompts(problems):
    return [prompt_key(problem.prompt) for problem in problems]


def scores(check, problems, completions):
    return check(prompts=[p.prompt for p in problems], completions=completions, **columns_of(problems))


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path
