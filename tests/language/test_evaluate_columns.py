"""Columns of held-out problems never pass for what the policy said."""

from dataclasses import replace

import pytest

from upslope import language
from upslope.errors import UsageError
from upslope.language.calls import ALSO_KNOWN
from upslope.language.problems import Problem
from upslope.language.tasks import task


@pytest.mark.parametrize("name", [*ALSO_KNOWN])
def test_a_column_of_that_name_is_refused(name: str):
    problem = Problem(prompt="1+1=", columns={name: "zzzz"})
    chosen = replace(task("addition"), held_out=[problem])
    with pytest.raises(UsageError, match=f"a column may not be called {name}"):
        language.evaluate(language.tiny(), chosen)
