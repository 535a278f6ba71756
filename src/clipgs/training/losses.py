"""The two losses of CLIP-GS: the text loss, and the Image Voting Loss (paper, section 4.2, eq. 3 and 4); and another.

Rows of all arguments have unit length. `logit_scale` is the factor on the cosines (1 / temperature), not its logarithm.
With several processes the arguments are the gathered ones, so the denominators cover the whole batch.
"""

from typing import Literal

import torch
from torch import Tensor

ScoreNorm = Literal["none", "mean_one", "softmax", "uniform"]
OverViews = Literal["mean", "sum"]


def text_loss(
    shape: Tensor,  # [B, D]
    text: Tensor,  # [B, D]
    logit_scale: Tensor | float,
    *,
    captions: Tensor | None = None,  # [B] integers, equal where two captions are the same text
) -> Tensor:
    """L_text: the symmetric contrastive loss, mean over objects and both directions (paper, eq. 3).

    With `captions`, objects of the same caption are no negatives: the denominator leaves them out. Without `captions`,
    all other objects are negatives, as in the paper.
    """
    logits = logit_scale * shape @ text.T  # [B, B]
    if captions is not None:
        same = captions[:, None] == captions[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
    return _both_ways(logits[None]).mean() / 2


def image_voting_loss(
    shape: Tensor,  # [B, D]
    images: Tensor,  # [B, K, D], K views of each object
    scores: Tensor,  # [B, K], cos(text, image)
    logit_scale: Tensor | float,
    *,
    score_norm: ScoreNorm = "none",
    over_views: OverViews = "mean",
) -> Tensor:
    """L_img = 1 / (2 B K) sum_bk S_bk (CE_b(G I_k^T) + CE_b(I_k G^T)), the Image Voting Loss (paper, eq. 4).

    I_k has the k-th sampled view of every object. So the negatives of a view are one view of each other object, and
    never another view of its own object. `votes` computes S from the scores by `score_norm`. The paper's equation has
    no 1 / K; `over_views` "sum" leaves it out, and then the image loss weighs K times as much.
    """
    logits = logit_scale * torch.einsum("bd,jkd->kbj", shape, images)  # [K, B, B]
    loss = (votes(scores, score_norm).T * _both_ways(logits)).mean() / 2
    return loss * len(logits) if over_views == "sum" else loss


def multi_positive_loss(
    shape: Tensor,  # [B, D]
    images: Tensor,  # [B, K, D], K views of each object
    logit_scale: Tensor | float,
) -> Tensor:
    """All views of an object as positives of one softmax (L_out of Khosla et al., 2020, equation 2), both ways.

    The negatives of an object are all views of all others, and those of a view all other objects. Not of the paper.
    """
    logits = logit_scale * torch.einsum("bd,jkd->bjk", shape, images)  # [B, B, K]
    own = logits.diagonal(dim1=0, dim2=1).T  # [B, K]
    to_images = logits.flatten(1).logsumexp(dim=1)[:, None] - own
    to_shapes = logits.logsumexp(dim=0) - own
    return (to_images + to_shapes).mean() / 2


def votes(
    scores: Tensor,  # [B, K], cos(text, image)
    score_norm: ScoreNorm,
) -> Tensor:  # [B, K]
    """The weight S of each view.

    none: the cosine, with negative ones as 0. mean_one: that divided by its mean over the object's views, so that all
    objects have the same weight. softmax: K times the softmax over the object's views, which has mean 1 too. uniform: 1
    for every view, whatever its score.
    """
    if score_norm == "uniform":
        return torch.ones_like(scores)
    if score_norm == "softmax":
        return scores.shape[1] * scores.softmax(dim=1)
    weights = scores.clamp(min=0)
    if score_norm == "none":
        return weights
    return weights / weights.mean(dim=1, keepdim=True).clamp(min=1e-8)  # all zero stays all zero


def _both_ways(
    logits: Tensor,  # [K, B, B], an object's own entry on the diagonal
) -> Tensor:  # [K, B]
    """Cross entropy of each row and of each column, summed."""
    own = logits.diagonal(dim1=1, dim2=2)
    return logits.logsumexp(dim=2) + logits.logsumexp(dim=1) - 2 * own
