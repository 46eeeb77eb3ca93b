"""Preferences as objectives, to be maximized: one value per pair or per sequence, from log-probabilities of whole completions.

``h = Σ_t (log π − log π_ref)_t`` over a sequence's unmasked steps. Pairs are ``[..., 2, T]``, index 0 chosen (w), index 1 rejected (l);
their values are ``[...]``. Masked steps add nothing and take no gradient, whatever they hold; ``mask=None`` means all True. Options
beyond the four arguments are keyword-only: bind them with ``functools.partial``. Shapes that differ raise ValueError.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from upslope.functional.divergences import kl_k1
from upslope.functional.shapes import check_shapes


def sequence_log_ratio(log_prob: Tensor, reference_log_prob: Tensor, mask: Tensor | None = None) -> Tensor:
    """``h = Σ_t (log π − log π_ref)_t``, ``[..., T]`` → ``[...]``; ``β h`` is the implicit reward. 0 for an empty row.

    Source: Rafailov et al. 2023 (DPO), eq. 5, up to a term of the prompt alone.
    """
    return kl_k1(log_prob, reference_log_prob, mask).sum(-1)


def sigmoid_preference(
    log_prob: Tensor, reference_log_prob: Tensor, mask: Tensor | None, beta: float, *, label_smoothing: float = 0.0
) -> Tensor:
    """``(1 − ε) log σ(x) + ε log σ(−x)`` with ``x = β (h_w − h_l)``, ``[..., 2, T]`` → ``[...]``; −log 2 where π = π_ref.

    ∇ is ``β σ(−x) [∇log π(y_w) − ∇log π(y_l)]`` at ε = 0, the share ε of labels that are taken to be wrong.

    Source: Rafailov et al. 2023 (DPO), eq. 7; Mitchell 2023 (conservative DPO) for ε.
    """
    x = beta * _margin(sequence_log_ratio(log_prob, reference_log_prob, mask))
    if label_smoothing == 0.0:
        return logsigmoid(x)
    return (1.0 - label_smoothing) * logsigmoid(x) + label_smoothing * logsigmoid(-x)


def ipo_preference(log_prob: Tensor, reference_log_prob: Tensor, mask: Tensor | None, beta: float) -> Tensor:
    """``−((h_w − h_l) − 1/(2β))²`` with h averaged over the sequence's steps, ``[..., 2, T]`` → ``[...]``.

    The margin has a goal instead of growing without end where labels are certain.

    Source: Azar et al. 2023 (IPO), eq. 17; the average over steps is that of its released implementations.
    """
    h = sequence_log_ratio(log_prob, reference_log_prob, mask)
    length = torch.full_like(h, log_prob.shape[-1]) if mask is None else mask.sum(-1).clamp(min=1)
    return -(_margin(h / length) - 1.0 / (2.0 * beta)).square()


def hinge_preference(log_prob: Tensor, reference_log_prob: Tensor, mask: Tensor | None, beta: float) -> Tensor:
    """``−max(0, 1 − β (h_w − h_l))``, ``[..., 2, T]`` → ``[...]``: nothing is gained beyond a margin of 1.

    Source: Zhao et al. 2023 (SLiC), eq. 1, on DPO's implicit rewards.
    """
    return -(1.0 - beta * _margin(sequence_log_ratio(log_prob, reference_log_prob, mask))).clamp(min=0.0)


def kto_value(
    log_prob: Tensor,
    reference_log_prob: Tensor,
    mask: Tensor | None,
    beta: float,
    *,
    desirable: Tensor,
    reference_point: Tensor,
    desirable_coef: float = 1.0,
    undesirable_coef: float = 1.0,
) -> Tensor:
    """``λ_D σ(β (h − z₀))`` where ``desirable``, else ``λ_U σ(β (z₀ − h))``; ``[..., T]`` → ``[...]``.

    ``desirable`` is bool, ``reference_point`` z₀ a KL estimate that takes no gradient; both ``[...]``.

    Source: Ethayarajh et al. 2024 (KTO), eq. 8.
    """
    h = sequence_log_ratio(log_prob, reference_log_prob, mask)
    check_shapes("log_prob without its last axis", h.shape, desirable=desirable, reference_point=reference_point)
    x = beta * (h - reference_point.detach())
    return torch.where(desirable, desirable_coef * x.sigmoid(), undesirable_coef * (-x).sigmoid())


def bradley_terry(score: Tensor) -> Tensor:
    """``log σ(r_w − r_l)``, the log-probability that the chosen one wins, ``[..., 2]`` → ``[...]``.

    Source: Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1.
    """
    return logsigmoid(_margin(score))


def _margin(x: Tensor) -> Tensor:
    if x.dim() == 0 or x.shape[-1] != 2:
        raise ValueError(f"pairs: expected two rows, chosen and rejected, found shape {tuple(x.shape)}")
    return x[..., 0] - x[..., 1]
