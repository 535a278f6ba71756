"""CLIP-GS: a splat's embedding in the space of its teacher.

B objects, N Gaussians, g patches of n Gaussians, D embedding.
"""

import logging

from torch import Tensor, nn
from torch.nn import functional as F

from clipgs.config import Encoder
from clipgs.encoder.tokenizer import Tokenizer
from clipgs.encoder.transformer import SIZES, PatchTransformer, Shape
from clipgs.splats.gaussians import Gaussians

log = logging.getLogger(__name__)


class ClipGS(nn.Module):
    """GS Tokenizer, transformer and projection (CLIP-GS, figure 3).

    Args:
        settings: the section `encoder` of the configuration.
        dim: D, of the teacher's space.
        shape: of the transformer; default: that of `encoder.size`.

    Attributes:
        first_logit_scale: the factor on cosines that the first weights were trained with, if they say so.
    """

    first_logit_scale: float | None = None

    def __init__(self, settings: Encoder, dim: int, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or SIZES[settings.size]
        self.tokenizer = Tokenizer(settings, shape.width)
        self.transformer = PatchTransformer(shape, dim, settings.drop_path, settings.patch_dropout)

    def forward(
        self,
        gaussians: Gaussians,  # [B, N, ...], from `groups.prepare`; with `count` [B] if objects differ in N
        neighbours: Tensor | None = None,  # [B, g, n], any integers; default: those of `groups.nearest`
    ) -> Tensor:  # [B, D], unit length, float32
        """Embeddings of a batch of prepared splats. Nothing waits for the device, and no shape depends on a value."""
        tokens, centres = self.tokenizer(gaussians, neighbours)
        return F.normalize(self.transformer(tokens, centres).float(), dim=-1)


def build(settings: Encoder, dim: int) -> ClipGS:
    """The encoder at the start of training: with the weights of `encoder.initialisation`.

    Raises:
        UsageError: `encoder.weights` is not set, its file does not exist, or has another size than `encoder.size`.
        ClipgsError: the file cannot be read, or has other weights.
    """
    from clipgs.encoder import pretrained

    if settings.initialisation == "none":
        return ClipGS(settings, dim)
    starts = {"uni3d": pretrained.uni3d_start, "eva02": pretrained.eva02_start, "points": pretrained.points_start}
    state, shape = starts[settings.initialisation](settings)
    model = ClipGS(settings, dim, shape)
    if (scale := state.pop("logit_scale", None)) is not None:
        model.first_logit_scale = float(scale)
    new = pretrained.start_from(model, state)
    log.info("encoder started from %s; new: %s", settings.initialisation, ", ".join(new) or "nothing")
    return model
