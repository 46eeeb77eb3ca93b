"""Direct preference optimization (Rafailov et al. 2023) and two other ways to count a margin.

    h(y) = Σ_t log π(y_t) − log π_ref(y_t)
    maximise mean over pairs of log σ(β (h(y_w) − h(y_l)))

Its optimum is that of the KL-regularized reward, ``π* ∝ π_ref e^{r/β}``, without a reward model and without sampling; it is not a policy
gradient. Nothing here samples: pairs ``[N, 2, T]`` come with the reference's log-probabilities.

Left out: the DPO family's many further margins (write one: ``DPO(preference=mine)``), and a reference that moves.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import reference_of
from upslope.algorithms.pairs import pair_batch, pair_metrics, pair_sum
from upslope.errors import UsageError, require
from upslope.records import Batch, Policy, Rollout
from upslope.updates import Ascent

Preference = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""``(log_prob, reference_log_prob, mask, beta) -> [...]``, from pairs ``[..., 2, T]``, to be maximized."""

PREFERENCES: dict[str, Preference] = {"sigmoid": F.sigmoid_preference, "ipo": F.ipo_preference, "hinge": F.hinge_preference}
"""The names that the command line knows."""


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Raise the likelihood of chosen completions over rejected ones, against a reference."""

    learns_from: ClassVar[str] = "pairs"
    needs_reference: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"preference": PREFERENCES}

    beta: float = 0.1
    """weight of the KL to the reference that the preferences are taken to regularize; the implicit reward is β h"""
    preference: Preference = F.sigmoid_preference
    """how a pair's margin counts: sigmoid (DPO), ipo or hinge"""
    label_smoothing: float = 0.0
    """share of labels that are taken to be wrong, below one half (sigmoid only)"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-6, max_grad_norm=1.0, eps=1e-8))
    """how parameters move"""

    def __post_init__(self) -> None:
        require(self.beta > 0, f"beta: expected a number > 0, found {self.beta}")
        require(0 <= self.label_smoothing < 0.5, f"label_smoothing: expected a number in [0, 0.5), found {self.label_smoothing}")
        message = "label_smoothing: it belongs to the sigmoid preference; leave it out or bind it to yours with functools.partial"
        require(self.label_smoothing == 0 or self.preference is F.sigmoid_preference, message)

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """The pairs, each with a weight of 1/N; nothing is estimated."""
        reference_of(rollout, "dpo")
        return pair_batch(rollout)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over pairs of the preference; reports implicit rewards, their margin, and how often the chosen one wins."""
        reference, log_prob = batch.need("reference_log_prob"), policy.evaluate(**batch.inputs).log_prob
        options = {} if self.label_smoothing == 0 else {"label_smoothing": self.label_smoothing}
        value = self.preference(log_prob, reference, batch.mask, self.beta, **options)
        if value.shape != log_prob.shape[:-2]:
            raise UsageError(f"preference: expected one value per pair, shape {tuple(log_prob.shape[:-2])}, found {tuple(value.shape)}")
        h = F.sequence_log_ratio(log_prob.detach(), reference, batch.mask)
        return pair_sum(value, batch), pair_metrics(self.beta * h)
