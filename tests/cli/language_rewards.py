"""Rewards for the language commands' tests: good ones and every kind of bad one."""

import time

not_a_function = 3


def ones(*, prompts, completions):
    return [float(len(completion) % 2) for completion in completions]


def raises(*, prompts, completions):
    raise RuntimeError("the judge is on strike")


def hangs(*, prompts, completions):
    time.sleep(1.0)
    return [1.0] * len(completions)


def too_few(*, prompts, completions):
    return [1.0]


def not_a_number(*, prompts, completions):
    return [float("nan")] * len(completions)


def words(*, prompts, completions):
    return ["good"] * len(completions)


def nothing(*, prompts, completions):
    return 1.0


def never(*, prompts, completions):
    return [None] * len(completions)


def needs_color(*, prompts, completions, color):
    return [1.0] * len(completions)
