"""The frozen teacher: any CLIP of open_clip, loaded so that its file of weights cannot run code.

The paper uses an EVA-CLIP (section 4) and does not say which. Here `teacher.name` and `teacher.pretrained` name it. The
default is Uni3D's teacher, because the encoder starts from Uni3D's weights.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from clipgs.config import SMALL_TEACHER, Config
from clipgs.core.devices import choose_device
from clipgs.core.errors import ClipgsError, describe_error
from clipgs.core.files import check
from clipgs.teacher.names import LOCAL_DIR, PREPROCESS, SMALL_FILES, VOCABULARY, in_words
from clipgs.teacher.weights import Opened, open_model

log = logging.getLogger(__name__)

_CPU_BATCH = 64  # images; fixed, because the last bit of a sum may depend on it
_CHARACTERS_A_TOKEN = 64  # no token of the vocabulary is longer


class Teacher:
    """A frozen CLIP, which embeds images and texts as vectors of unit length.

    Attributes:
        name: of the open_clip model.
        pretrained: the tag, or the name of the file of weights.
        weights_sha256: hash of the file of weights.
        dim: D, the length of the vectors.
        preprocessing: how pictures are prepared.
        model: open_clip's model in evaluation mode, on `device`; its input images have the type `dtype`.
        pixels: width and height of its input images.
        batch: images or texts per batch.
    """

    def __init__(self, opened: Opened, *, batch: int) -> None:
        self.model, self.tokenizer = opened.model, opened.tokenizer
        self.name, self.pretrained, self.weights_sha256 = opened.name, opened.pretrained, opened.sha256
        self.dtype, self._cast, self._tokens = opened.dtype, opened.autocast, opened.tokens
        self.batch = batch
        self.device = next(self.model.parameters()).device
        self.preprocessing = PreprocessCfg(**open_clip.get_model_preprocess_cfg(self.model))
        _, height, width = self.preprocessing.input_size
        self.pixels = height
        self._square = height == width
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) * 255
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        self.dim = self._tried()

    def _tried(self) -> int:
        """Encodes a text and a picture, so that what fails does so before the first object; the vectors' length."""
        try:
            text = self.encode_texts(["a"])
            image = self.encode_images(np.full((1, self.pixels, self.pixels, 3), 128, np.uint8))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
            cannot = "cannot encode a text and a picture"
            raise ClipgsError(f"teacher {self.name} {cannot} in {self.precision}: {describe_error(error)}") from None
        if text.shape != image.shape:
            lengths = f"{text.shape[-1]} and {image.shape[-1]}"
            raise ClipgsError(f"teacher {self.name}: its texts and pictures have vectors of {lengths} numbers")
        return text.shape[-1]

    @property
    def about(self) -> dict[str, str]:
        """What tells its features from those of others, as their metadata have it."""
        return {
            "teacher": self.name,
            "pretrained": self.pretrained,
            "weights_sha256": self.weights_sha256,
            "preprocess": in_words({name: getattr(self.preprocessing, name) for name in PREPROCESS}),
            "tokenizer": self._tokens,
        }

    @property
    def precision(self) -> str:
        """What it computes in."""
        return str(self._cast or self.dtype).removeprefix("torch.")

    def encode_images(
        self,
        images: Tensor | np.ndarray,  # [n, H, W, 3] uint8, on any device
    ) -> Tensor:
        """[n, D] float32 of unit length, on the teacher's device; does not wait for a GPU.

        The device resizes and normalises the images as open_clip's own preprocessing does.
        """
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images if images.flags.writeable else images.copy())
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"images must be [n, H, W, 3] uint8, not {list(images.shape)} {images.dtype}")
        return self._in_batches(lambda part: self.model.encode_image(self.preprocess(part)), images)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """[n, D] float32 of unit length, on the teacher's device. Texts are cut at the length of the context.

        Raises:
            ClipgsError: a text is empty.
        """
        for place, text in enumerate(texts):
            if not text.strip():
                raise ClipgsError(f"text {place + 1} of {len(texts)} is empty; leave it out or give it words")
        ids = self.tokens(texts)
        words = getattr(getattr(self.model, "text", self.model), "vocab_size", 0)
        if words and ids.numel() and int(ids.max()) >= words:
            raise ClipgsError(
                f"teacher {self.name}: its tokenizer has a token {int(ids.max())}, and the model knows {words}; "
                "the tokenizer is another model's"
            )
        return self._in_batches(self.model.encode_text, ids)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """[n, L] int64 tokens, cut at the context's length L."""
        return tokens(self.tokenizer, texts)

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Places of the texts that are longer than the context."""
        return cut(self.tokenizer, texts)

    def preprocess(
        self,
        images: Tensor,  # [n, H, W, 3] uint8
    ) -> Tensor:
        """[n, 3, pixels, pixels] of the model's type, on its device: resized and normalised."""
        _, height, width, _ = images.shape
        # Cropped, squashed or padded, as the model's settings say; on a CPU Pillow is exact, and faster.
        if self.device.type == "cpu" or not (self._square and height == width):
            transform = image_transform_v2(self.preprocessing, is_train=False)
            pictures = [transform(Image.fromarray(image)) for image in images.cpu().numpy()]
            return torch.stack(pictures).to(self.device, self.dtype)
        values = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        if height != self.pixels:
            mode = "bilinear" if self.preprocessing.interpolation == "bilinear" else "bicubic"
            # As Pillow: the width and then the height, and each time the numbers become bytes.
            for size in ((height, self.pixels), (self.pixels, self.pixels)):
                values = F.interpolate(values, size, mode=mode, antialias=True).add_(0.5).floor_().clamp_(0, 255)
        return values.sub_(self._mean).div_(self._std).to(self.dtype)

    @torch.no_grad()
    def _in_batches(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        parts, start = [], 0
        while start < len(inputs):
            part = inputs[start : start + self.batch].to(self.device, non_blocking=True)
            try:
                with torch.autocast(self.device.type, self._cast, enabled=self._cast is not None):
                    encoded = encode(part)
                parts.append(F.normalize(encoded.float(), dim=-1))
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise ClipgsError(f"teacher {self.name}: one image does not fit into the GPU's memory") from None
                self.batch = max(1, min(self.batch, len(part)) // 2)
                torch.cuda.empty_cache()
                log.warning("the batch does not fit into the GPU's memory; continuing with batches of %d", self.batch)
                continue
            start += len(part)
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)


def load(config: Config) -> Teacher:
    """The configured teacher. `train` means the small teacher, which must have been trained.

    Raises:
        UsageError: open_clip has no such model or tag, there is no such file, or its preprocessing is not known.
        ClipgsError: the weights cannot be downloaded, belong to another model, or their file holds more than tensors.
    """
    settings, device = config.teacher, choose_device(config.device)
    precision = settings.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    if small := settings.name == "train":
        for file in small_files(config):
            if file.name != VOCABULARY or file.exists():  # a teacher of 0.1 knows all words
                check(file)
        settings = settings.model_copy(update={"name": LOCAL_DIR + str(config.output_path / "teacher")})
    opened = open_model(settings, precision=precision, device=device, key="teacher")
    if small:
        opened = opened._replace(name=SMALL_TEACHER)
    return Teacher(opened, batch=settings.batch if device == "cuda" else _CPU_BATCH)


def small_files(config: Config) -> list[Path]:
    """The small teacher's files, in a folder that open_clip loads as `local-dir:`: description, weights, vocabulary."""
    return [config.output_path / "teacher" / name for name in SMALL_FILES]


def tokens(tokenizer: Any, texts: Sequence[str], more: int = 0) -> Tensor:
    """[n, L + more] int64 tokens, cut at the context's length L."""
    length = tokenizer.context_length + more
    if not texts:
        return torch.zeros(0, length, dtype=torch.long)
    if isinstance(tokenizer, SimpleTokenizer):  # whose time grows with the square of the text's length
        texts = [text[: length * _CHARACTERS_A_TOKEN] for text in texts]
    return tokenizer([*texts], context_length=length)


def cut(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Places of the texts that are longer than the tokenizer's context."""
    if not texts:
        return []
    if isinstance(tokenizer, SimpleTokenizer):
        return tokens(tokenizer, texts, more=1)[:, -1].nonzero()[:, 0].tolist()
    special = tokenizer.tokenizer_mode != "clips"  # which adds start, end and class by itself
    room = tokenizer.context_length - (0 if special else 3)
    rows = tokenizer.tokenizer(
        [tokenizer.clean_fn(text) for text in texts],
        add_special_tokens=special,
        truncation=True,
        max_length=room + 1,
    )
    return [place for place, ids in enumerate(rows.input_ids) if len(ids) > room]
