"""The two PointBERTs that CLIP-GS is compared with: ULIP-2's and OpenShape's.

B objects, P points, g patches of n points, W channels of the transformer, D embedding.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipgs.encoder.groups import farthest_points, nearest, take
from clipgs.encoder.tokenizer import PointEncoder


class _Layer(nn.Module):
    """A pre-norm transformer layer with GELU; `inner` is the width of the queries, keys and values of all heads."""

    def __init__(self, width: int, heads: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T, W]
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))


class Ulip2(nn.Module):
    """ULIP-2's PointBERT over coloured points, with its projection (Xue et al., 2024)."""

    def __init__(self, width: int, depth: int, heads: int, features: int, dim: int, groups: int, group_size: int):
        super().__init__()
        self.groups, self.group_size = groups, group_size
        self.encoder = PointEncoder(features=features)
        self.reduce_dim = nn.Linear(features, width)
        self.cls_token, self.cls_pos = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = nn.ModuleList(_Layer(width, heads, width, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pc_projection = nn.Parameter(torch.zeros(2 * width, dim))

    def forward(
        self,
        xyz: Tensor,  # [B, P, 3]
        rgb: Tensor,  # [B, P, 3] in [0, 1]
    ) -> Tensor:  # [B, D], of any length
        centres = take(xyz, farthest_points(xyz, self.groups))
        rows = nearest(xyz, centres, self.group_size)
        patches = torch.cat([take(xyz, rows) - centres[:, :, None], take(rgb, rows)], dim=-1)
        tokens = self.reduce_dim(self.encoder(patches))
        first = self.cls_token.expand(len(xyz), -1, -1)
        position = torch.cat([self.cls_pos.expand(len(xyz), -1, -1), self.pos_embed(centres)], dim=1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens + position)
        tokens = self.norm(tokens)
        return torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1) @ self.pc_projection


class OpenShapeSize(NamedTuple):
    """Patches of one of OpenShape's scalings, which a checkpoint does not contain."""

    groups: int
    radius: float
    group_size: int


# By width, depth, hidden width of the feed-forward part, and width of the set abstraction.
OPENSHAPE_SIZES = {
    (256, 6, 1024, 96): OpenShapeSize(64, 0.4, 256),
    (512, 6, 1024, 128): OpenShapeSize(64, 0.4, 256),
    (512, 12, 1024, 128): OpenShapeSize(128, 0.35, 128),
    (512, 12, 1536, 256): OpenShapeSize(384, 0.2, 64),
    (768, 12, 2304, 256): OpenShapeSize(512, 0.2, 64),
    (768, 24, 3072, 256): OpenShapeSize(512, 0.2, 64),
}
OPENSHAPE_HEAD = 64  # channels


class _SetAbstraction(nn.Module):
    def __init__(self, channels: int, features: int, size: OpenShapeSize) -> None:
        super().__init__()
        self.size = size
        widths = (channels, 64, 64, features)
        self.mlp_convs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])

    def forward(self, xyz: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:  # [B, g, 3], [B, g, features]
        centres = take(xyz, farthest_points(xyz, self.size.groups))
        rows = in_ball(xyz, centres, self.size.radius, self.size.group_size)
        patches = torch.cat([take(xyz, rows) - centres[:, :, None], take(values, rows)], dim=-1)
        for linear, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            hidden = linear(patches)
            patches = F.relu(norm(hidden.flatten(0, 2))).view(hidden.shape)
        return centres, patches.amax(2)


@torch.no_grad()
def in_ball(
    xyz: Tensor,  # [B, P, 3]
    centres: Tensor,  # [B, g, 3]
    radius: float,
    size: int,
) -> Tensor:  # [B, g, n] int64
    """The first n rows within the radius of each centre; the first one repeats if there are fewer (PointNet++)."""
    rows = torch.arange(xyz.shape[1], device=xyz.device)
    far = (centres[:, :, None] - xyz[:, None]).square().sum(-1) > radius**2
    chosen = rows.expand(far.shape).masked_fill(far, len(rows)).topk(min(size, len(rows)), largest=False).values
    chosen = F.pad(chosen, (0, size - chosen.shape[2]), value=len(rows))
    return torch.where(chosen == len(rows), chosen[..., :1], chosen)


class OpenShape(nn.Module):
    """OpenShape's PointBERT (Liu et al., 2023). It was trained on positions with y and z exchanged."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        features: int,
        channels: int,
        dim: int,
        size: OpenShapeSize,
    ) -> None:
        super().__init__()
        self.sa = _SetAbstraction(channels, features, size)
        self.lift = nn.Sequential(nn.Linear(features + 3, width), nn.LayerNorm(width))
        self.cls_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(_Layer(width, heads, heads * OPENSHAPE_HEAD, hidden) for _ in range(depth))
        self.proj = nn.Linear(width, dim)

    def forward(
        self,
        xyz: Tensor,  # [B, P, 3]
        rgb: Tensor,  # [B, P, 3] in [0, 1]
    ) -> Tensor:  # [B, D], of any length
        centres, features = self.sa(xyz, torch.cat([xyz, rgb], dim=-1))
        tokens = self.lift(torch.cat([centres, features], dim=-1))
        tokens = torch.cat([self.cls_token.expand(len(xyz), 1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.proj(tokens[:, 0])
