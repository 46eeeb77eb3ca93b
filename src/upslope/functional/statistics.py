"""Centering and scaling of advantages, and three diagnostics.

Standard deviations are the sample's (divided by n − 1). Where there is nothing to compare, fewer than two entries or no
spread among them, an advantage is exactly 0; :func:`has_spread` tells those cases apart so that they can be counted.
All functions raise ValueError when shapes differ.
"""

import torch
from torch import Tensor

from upslope.functional.recursion import zero_masked
from upslope.functional.shapes import check_shapes


def has_spread(x: Tensor, mask: Tensor | None = None, *, dim: int | None = None) -> Tensor:
    """Whether the unmasked entries of ``x`` differ: over everything (a 0-d bool) or along ``dim``.

    False for fewer than two and where ``max − min ≤ 1e-6 · max(1, |mean|)``; NaN and infinity must show. Source: FORMULAS section 3.
    """
    check_shapes("x", x.shape, mask=mask)
    axes = tuple(range(x.dim())) if dim is None else (dim,)
    if x.numel() == 0:
        return torch.zeros_like(x, dtype=torch.bool).any(axes)
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    spread = x.masked_fill(~mask, -torch.inf).amax(axes) - x.masked_fill(~mask, torch.inf).amin(axes)
    count, total = mask.sum(axes), x.masked_fill(~mask, 0.0).sum(axes)
    equal = (spread <= 1e-6 * (total / count).abs().clamp(min=1.0)) & spread.isfinite()
    return (count >= 2) & ~equal


def normalize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(x − mean) / std`` over all unmasked entries, ``[..., T]``; 0 where masked and where nothing spreads. FORMULAS section 3."""
    spread, count = has_spread(x, mask), x.numel() if mask is None else mask.sum()
    centered = zero_masked(x - zero_masked(x, mask).sum() / count, mask)
    std = (centered.square().sum() / (count - 1)).sqrt()
    return torch.where(spread, centered / std, 0.0)


def explained_variance(value: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """``1 − Var(R − V) / Var(R)``, 0-d: 1 is a perfect critic, 0 no better than a constant; NaN for equal returns. FORMULAS section 8."""
    check_shapes("value", value.shape, returns=returns, mask=mask)
    if mask is not None:
        value, returns = value[mask], returns[mask]
    unexplained, variance = ((x - x.mean()).square().mean() for x in (returns - value, returns))
    return torch.where(has_spread(returns), 1.0 - unexplained / variance, torch.nan)


def effective_sample_size(weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """How many equally weighted samples the importance weights are worth, 0-d: ``(Σw)² / Σw²``.

    ``weight`` has any shape. Equal weights give their number, one dominating weight gives 1, no weight at all 0.

    Source: Kong 1992; FORMULAS section 4.
    """
    check_shapes("weight", weight.shape, mask=mask)
    masked_weight = zero_masked(weight, mask)
    # divided by the largest first, so that neither square overflows
    scaled = masked_weight / masked_weight.abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
    return scaled.sum().square() / scaled.square().sum().clamp(min=torch.finfo(weight.dtype).tiny)


def group_relative(score: Tensor, mask: Tensor | None = None, *, scale: bool = True, eps: float = 1e-6) -> Tensor:
    """Scores compared within their group, ``[..., G]``: ``(r_i − mean) / (std + eps)``, or ``r_i − mean`` with ``scale=False``.

    ``mask [..., G]`` is False for members without a score: they are in no statistic and get 0, as do groups without spread. The mean
    contains r_i, which shrinks the expected gradient by (G − 1)/G. Source: Shao et al. 2024 (GRPO), section 4.1.2; Liu et al. 2025.
    """
    centered = _center(score, mask)
    if not scale or score.shape[-1] < 2:
        return centered
    if mask is None:
        return centered / (score.std(-1, keepdim=True) + eps)
    variance = centered.square().sum(-1, keepdim=True) / (mask.sum(-1, keepdim=True) - 1).clamp(min=1)
    return centered / (variance.sqrt() + eps)


def leave_one_out(score: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each score against the mean of the others in its group, ``[..., G]``: ``r_i − mean_{j≠i} r_j = G/(G−1) · (r_i − mean)``.

    ``mask [..., G]`` is False for members without a score: they are nobody's others and get 0, and G is the number that is left;
    a member that is left alone gets 0.

    Raises ValueError for groups of one: there is no other to compare with.

    Source: Ahmadian et al. 2024 (RLOO).
    """
    size = score.shape[-1]
    if size < 2:
        raise ValueError(f"score: leave_one_out needs groups of at least 2, found {size}")
    if mask is None:
        return _center(score) * (size / (size - 1))
    present = mask.sum(-1, keepdim=True).to(score.dtype)
    return _center(score, mask) * (present / (present - 1.0).clamp(min=1.0))


def batch_relative(score: Tensor, mask: Tensor | None = None) -> Tensor:
    """Centered within the group, scaled by the whole batch, ``[..., G]``: ``(r_i − mean_group) / std(all centered scores)``.

    ``mask [..., G]`` is False for members without a score: they are in no statistic and get 0. No spread anywhere gives zeros.

    Source: Hu 2025 (REINFORCE++), the variant with a group baseline.
    """
    centered = _center(score, mask)
    present = centered if mask is None else centered[mask]
    return centered if present.numel() < 2 else torch.where(has_spread(present), centered / present.std(), 0.0)


def _center(score: Tensor, mask: Tensor | None = None) -> Tensor:
    """``r − mean`` within each group, exactly 0 for groups without spread, where rounding would leave noise, and where masked."""
    spread = has_spread(score, mask, dim=-1).unsqueeze(-1)
    if mask is None:
        return torch.where(spread, score - score.mean(-1, keepdim=True), 0.0)
    mean = score.masked_fill(~mask, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(spread & mask, score - mean, 0.0)
