"""What :func:`upslope.testing.check_estimator` found, to be read by people and by programs."""

from dataclasses import asdict, dataclass, fields
from math import isfinite, isnan
from typing import Any, Self, cast

from torch import Tensor

from upslope.testing.contract import ContractError
from upslope.testing.known_mistakes import MISTAKES


@dataclass(frozen=True)
class Finding:
    """One mistake; ``by_design`` is the reason where it is made on purpose, ``numbers`` what was seen."""

    mistake: str
    numbers: str = ""
    by_design: str | None = None

    def __str__(self) -> str:
        text = f"{self.mistake}: {self.by_design or MISTAKES[self.mistake]}"
        return f"{text} ({self.numbers})" if self.numbers else text


@dataclass(frozen=True)
class EstimatorReport:
    """Expectation, bias, variance and the mistakes that an estimator has.

    ``bias`` and ``cosine`` are against each objective's exact gradient, after the estimator was divided by the ``scale`` that fits
    best: an average over steps is a fraction of ∇J and no less right. ``variance`` and ``mean_squared_error`` are in the same units,
    of one batch of ``batch_size`` episodes, the error against ``objective``, the nearest.
    """

    name: str
    objective: str
    gamma: float
    batch_size: int
    method: str
    scale: float
    expectation: Tensor
    gradient: dict[str, Tensor]
    bias: dict[str, float]
    cosine: dict[str, float]
    variance: float
    mean_squared_error: float
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    """what could not be looked at, each with its mistakes"""
    left_out: tuple[str, ...] = ()
    """what does not apply to this estimator, each with its mistakes and the reason"""

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The mistakes that were not made on purpose."""
        return tuple(f for f in self.findings if f.by_design is None)

    @property
    def mistake(self) -> str | None:
        """The first mistake's name."""
        return self.broken[0].mistake if self.broken else None

    @property
    def unbiased(self) -> bool:
        """Whether the expectation points along the nearest objective's gradient."""
        return self.bias[self.objective] <= 1e-7 and self.scale > 0

    @property
    def headline(self) -> str:
        """The verdict in short."""
        if self.broken:
            return "has the mistake: " + ", ".join(f.mistake for f in self.broken)
        meant = "".join(f", {f.mistake} by design" for f in self.findings)
        if self.not_checked:
            return f"no mistake found{meant}; not checked: " + ", ".join(self.not_checked)
        every = "none of the mistakes that could be made here" if self.left_out else "none of the known mistakes"
        return f"{every}{meant}" + ("" if self.unbiased else f"; biased by {size(self.bias[self.objective])}")

    def raise_for_mistake(self) -> Self:
        """The report itself, or :class:`ContractError` with the mistakes that were found."""
        if self.broken:
            raise ContractError(f"{self.name}: " + "; ".join(map(str, self.broken)), self.broken[0].mistake)
        return self

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields but for the exact gradients, and what the properties say."""
        said = {name: getattr(self, name) for name in ("mistake", "headline", "unbiased")}
        found = {f.name: json_value(getattr(self, f.name)) for f in fields(self) if f.name != "gradient"}
        return {**found, **said, "findings": [asdict(f) | {"meaning": MISTAKES[f.mistake]} for f in self.findings]}

    def __str__(self) -> str:
        bias = " · ".join(f"{name} {size(self.bias[name])} ({angle(self.cosine[name])})" for name in self.bias)
        found = f"{self.scale:.4g} × the gradient of the {self.objective}" + ("" if self.objective.endswith("reward") else " J")
        lines = [
            f"{self.name}, gamma = {self.gamma:g}: {self.headline}",
            f"  expectation  {self.method}; {'' if self.unbiased else 'nearest to '}{found}",
            f"  bias         {bias}",
            f"  variance     {self.variance:.4g} for a batch of {self.batch_size}, mean squared error {self.mean_squared_error:.4g}",
        ]
        lines += [f"  BROKEN       {f}" for f in self.broken]
        lines += [f"  by design    {f}" for f in self.findings if f.by_design is not None]
        lines += [f"  note         {note}" for note in self.notes]
        lines.append(f"  checked      {', '.join(self.checked)}")
        lines += [f"  not checked  {', '.join(self.not_checked)}"] if self.not_checked else []
        return "\n".join([*lines, *(f"  left out     {what}" for what in self.left_out)])


def angle(cosine: float) -> str:
    return "no direction" if isnan(cosine) else f"cosine {cosine:.6f}"


def json_value(value: Any) -> Any:
    """For JSON, which knows no tensors, no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: json_value(x) for name, x in cast("dict[str, Any]", value).items()}
    if isinstance(value, Tensor | tuple):
        return [json_value(x) for x in (value.numpy().tolist() if isinstance(value, Tensor) else cast("tuple[Any, ...]", value))]
    return None if isinstance(value, float) and not isfinite(value) else value


def size(bias: float) -> str:
    return "0" if bias < 1e-9 else f"{bias:.3g}"
