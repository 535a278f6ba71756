"""The transformer of Uni3D: EVA-02's blocks over patch tokens, without rotary embedding; reads only the first token.

B objects, T tokens, W channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipgs.encoder.fused import gated_norm

NORM_EPS = 1e-6  # of EVA's layer norms


class Shape(NamedTuple):
    """The sizes of a `PatchTransformer`."""

    width: int
    depth: int
    heads: int
    hidden: int  # of the feed-forward part
    gated: bool  # SwiGLU, or GELU
    hidden_norm: bool  # whether it has an inner layer norm


# Uni3D's five sizes, which are those of timm's models in TIMM_NAMES (EVA-02, Fang et al. 2023; EVA, Fang et al. 2022).
SIZES = {
    "tiny": Shape(192, 12, 3, 512, gated=True, hidden_norm=False),
    "small": Shape(384, 12, 6, 1024, gated=True, hidden_norm=False),
    "base": Shape(768, 12, 12, 2048, gated=True, hidden_norm=True),
    "large": Shape(1024, 24, 16, 2730, gated=True, hidden_norm=True),
    "giant": Shape(1408, 40, 16, 6144, gated=False, hidden_norm=False),
}
TIMM_NAMES = {
    "tiny": "eva02_tiny_patch14_224",
    "small": "eva02_small_patch14_224",
    "base": "eva02_base_patch14_448",
    "large": "eva02_large_patch14_448",
    "giant": "eva_giant_patch14_560",
}


class Attention(nn.Module):
    """Self-attention as EVA's: without a bias on the keys, which would shift all scores of a query alike."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        tokens: Tensor,  # [B, T, W]
        first_only: bool = False,
    ) -> Tensor:  # [B, T, W], or [B, 1, W] for the first token only
        B, T, W = tokens.shape
        k_bias = torch.zeros_like(self.q_bias)
        if first_only:
            query, keys_values = self.qkv.weight.tensor_split([W])
            q = F.linear(tokens[:, :1], query, self.q_bias).view(B, 1, self.heads, -1)
            kv = F.linear(tokens, keys_values, torch.cat([k_bias, self.v_bias])).view(B, T, 2, self.heads, -1)
            k, v = kv.unbind(2)
        else:
            bias = torch.cat([self.q_bias, k_bias, self.v_bias])
            q, k, v = F.linear(tokens, self.qkv.weight, bias).view(B, T, 3, self.heads, -1).unbind(2)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(mixed.transpose(1, 2).reshape(B, -1, W))


class FeedForward(nn.Module):
    """SwiGLU with gate and value in one matrix (Shazeer, 2020), or GELU."""

    def __init__(self, width: int, hidden: int, gated: bool, hidden_norm: bool) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden)
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPS) if hidden_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:  # [..., W]
        hidden = self.fc1(tokens)
        if self.gated and isinstance(self.norm, nn.LayerNorm):
            return self.fc2(gated_norm(hidden, self.norm.weight, self.norm.bias, NORM_EPS))
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        return self.fc2(self.norm(hidden))


class Block(nn.Module):
    def __init__(self, shape: Shape, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.attn = Attention(shape.width, shape.heads)
        self.norm2 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.mlp = FeedForward(shape.width, shape.hidden, shape.gated, shape.hidden_norm)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, first_only: bool = False) -> Tensor:  # [B, T, W] or [B, 1, W]
        mixed = self.attn(self.norm1(tokens), first_only)
        tokens = (tokens[:, :1] if first_only else tokens) + self._drop(mixed)
        return tokens + self._drop(self.mlp(self.norm2(tokens)))

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth (Huang et al., 2016): in training, random objects skip the branch."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * (keep.to(branch.dtype) / (1 - self.drop_path))


class PatchTransformer(nn.Module):
    """An embedding from the tokens and centres of patches: class token, positions, blocks, projection."""

    def __init__(self, shape: Shape, dim: int, drop_path: float = 0.0, patch_dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.patch_dropout = shape, patch_dropout
        # Includes its position: a compiled backward pass would give two parameters that are only added one gradient
        # buffer, and clipping or accumulation would count it twice.
        self.class_token = nn.Parameter(torch.randn(shape.width))
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, shape.width))
        rates = [drop_path * block / max(shape.depth - 1, 1) for block in range(shape.depth)]
        self.blocks = nn.ModuleList(Block(shape, rate) for rate in rates)
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.embed = nn.Linear(shape.width, dim)
        self._initialise()

    def forward(
        self,
        patches: Tensor,  # [B, g, W]
        centres: Tensor,  # [B, g, 3]
    ) -> Tensor:  # [B, D], of any length
        tokens = patches + self.position(centres)
        if self.training and self.patch_dropout > 0:
            tokens = drop_patches(tokens, self.patch_dropout)
        first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        # Only the first token is read, so the last block needs only the keys and values of the others.
        return self.embed(self.norm(last(tokens, first_only=True)[:, 0]))

    def _initialise(self) -> None:
        """EVA's initialisation: small normal weights; those of each branch's last layer shrink with depth."""
        for layer, block in enumerate(self.blocks, start=1):
            for name, parameter in block.named_parameters():
                if parameter.ndim == 2:
                    nn.init.trunc_normal_(parameter, std=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
            assert isinstance(block, Block)  # a ModuleList does not keep the type of its modules
            with torch.no_grad():
                block.attn.proj.weight.div_(math.sqrt(2 * layer))
                block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


def drop_patches(
    patches: Tensor,  # [B, g, W]
    fraction: float,
) -> Tensor:  # [B, kept, W]
    """A random subset of the patches, drawn for each object (Li et al., FLIP, 2023)."""
    B, g, W = patches.shape
    kept = max(1, int(g * (1 - fraction)))
    chosen = torch.rand(B, g, device=patches.device).topk(kept, dim=1).indices
    return patches.gather(1, chosen[..., None].expand(-1, -1, W))
