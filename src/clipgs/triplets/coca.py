"""Captions by CoCa of open_clip (Yu et al., TMLR 2022), by nucleus sampling (Holtzman et al., ICLR 2020).

open_clip's own `generate` needs transformers 4.55, for two filters of logits. The loop here needs no transformers, and
gives the same tokens from the same random numbers.
"""

from typing import Any

import torch
from torch import Tensor

START, END = 49406, 49407  # of open_clip's tokenizer
_MIN_TOKENS = 5  # before a caption may end, its start among them; open_clip's default


@torch.no_grad()
def sample(
    model: Any,
    images: Tensor,  # [n, 3, H, W], as the model wants them
    count: int,
    top_p: float,
    max_tokens: int,
) -> Tensor:
    """[n * count, L] int64: `count` captions of each image, filled up with the model's `pad_id` behind their ends.

    Equal to `model.generate(images.repeat_interleave(count, 0), generation_type="top_p", top_p=top_p,
    seq_len=max_tokens)`, but each image is encoded once, and a caption that has ended is not computed any more.

    Args:
        model: open_clip's CoCa, in evaluation mode.
        top_p: each token is one of the most likely ones that together just reach this probability.
        max_tokens: with start and end; a caption that reaches it is ended there. No more than the model's context.
    """
    latent, seen = (each.repeat_interleave(count, dim=0) for each in model._encode_image(images))
    tokens = torch.full((len(seen), 1), START, device=images.device)
    for length in range(2, max_tokens + 1):
        # `pad_id` is a word as well, the exclamation mark: it ends a caption as in open_clip.
        going = (tokens[:, -1] != END) & (tokens[:, -1] != model.pad_id)
        if not going.any():
            break
        following = torch.full_like(tokens[:, :1], model.pad_id)
        if length == max_tokens:
            following[going] = END
        else:
            inputs = {"image_latent": latent[going], "image_embs": seen[going], "output_labels": False}
            logits = model(None, tokens[going], **inputs)["logits"][:, -1]
            if length <= _MIN_TOKENS:
                logits[:, END] = -torch.inf
            following[going] = torch.multinomial(_nucleus(logits, top_p).softmax(dim=-1), 1)
        tokens = torch.cat((tokens, following), dim=1)
    return tokens


def _nucleus(
    logits: Tensor,  # [n, V]
    top_p: float,
) -> Tensor:
    """[n, V] logits, minus infinity where the token and all that are less likely have no more than 1 - `top_p`."""
    ordered, places = logits.sort(dim=-1)
    small = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    small[:, -1] = False  # the most likely stays whatever top_p is
    return logits.masked_fill(small.scatter(1, places, small), -torch.inf)
