"""What the fast twins of policies share: they stand in for a policy, and leave to it what they do not know."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


class PolicyProxy:
    """Whatever is asked of it that it does not have, the policy itself answers."""

    def __init__(self, policy: object) -> None:
        self.policy = cast(Any, policy)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by copy and pickle before there is a policy to answer
            raise AttributeError(name)
        return getattr(self.policy, name)

    def __call__(self, **inputs: Tensor) -> Any:
        """The policy's ``evaluate``, which nothing here makes faster."""
        return self.policy(**inputs)
