"""The small teacher: a CLIP of open_clip, trained on the dataset's own renders, captions and categories.

It replaces EVA-CLIP on a machine without network and GPU, so that every stage runs everywhere. It knows only these
objects, so its results must not be compared with those of EVA-CLIP.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.transform import PreprocessCfg
from torch import Tensor

from clipgs.catalog.records import frozen_shards
from clipgs.config import SMALL_TEACHER, Config, SmallTeacher
from clipgs.core import workers
from clipgs.core.bundles import write_tensors
from clipgs.core.devices import choose_device
from clipgs.core.errors import ClipgsError
from clipgs.core.files import write_bytes
from clipgs.core.runner import Progress
from clipgs.core.seeds import seed_of
from clipgs.splats.pictures import read_resized
from clipgs.teacher.model import small_files
from clipgs.teacher.names import ARCHITECTURE
from clipgs.teacher.tokenizers import small_tokenizer, small_vocabulary
from clipgs.training import runs
from clipgs.triplets.captions import spoken
from clipgs.triplets.dataset import TripletDataset

_WARMUP_FRACTION = 0.05
_BETAS, _EPS = (0.9, 0.98), 1e-6  # of AdamW, as for CLIP (Radford et al., 2021, table 19)
_MAX_LOGIT_SCALE = math.log(100)  # CLIP's too
_FORMS = ("{}", "a {}", "a 3D model of a {}")  # the texts of a category
_VIEW_SCALE = 10.0  # of the cosines between images: 1 / temperature of SimCLR (Chen et al., 2020)
_ZOOM, _SHIFT = (0.85, 1.15), 0.1  # of an image: factors, and a fraction of its width
NORMALISED = PreprocessCfg.mean, PreprocessCfg.std  # of images in [0, 1]
_DECODE_MB, _DECODE_SECONDS = 1500, 300

CARD = """# A small teacher

A CLIP of about 3.5 million parameters, trained on the renders, captions and categories of {objects:,} objects of this
dataset's training split, and nothing else. It stands in for a large one, so that everything runs without network or
GPU. **Figures under it are not those of EVA-CLIP**: they say how well a splat is put into this small space. Zero-shot
is a choice among categories that it was taught.

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}", bpe_path="{folder}/{vocabulary}")
```
"""


def make(config: Config, threads: int) -> None:
    """Trains the small teacher on the training split's renders, captions and categories.

    Writes `teacher/`: open_clip_config.json, open_clip_model.safetensors, vocabulary.txt.gz, teacher.json (its training
    data) and README.md. On a CPU the same triplets, settings and number of threads give the same bytes.

    Raises:
        ClipgsError: there are no triplets to train on.
    """
    shards = runs.begun_shards(config, "teacher") or frozen_shards(config)
    runs.forget(config, "teacher")  # one that fails keeps no shards: new objects may be what it lacks
    dataset = TripletDataset(config.output_path / "triplets", "train", shards)
    settings = config.teacher.small
    chosen = sorted(range(len(dataset)), key=lambda i: hashlib.sha256(str(dataset.uids[i]).encode()).digest())
    chosen = sorted(chosen[: settings.max_objects])
    architecture = json.loads(ARCHITECTURE.read_text())
    images, texts, categories = read_pictures(dataset, chosen, architecture["vision_cfg"]["image_size"], threads)
    torch.set_num_threads(threads)
    seed, device = seed_of(config.seed, "teacher"), choose_device(config.device)
    model, loss = train(images, texts, categories, settings, seed, device)
    about = {
        "architecture": SMALL_TEACHER,
        "seed": config.seed,
        "settings": settings.model_dump(mode="json"),
        "shards": sorted({dataset.shard(i) for i in range(len(dataset))}),
        "objects": len(chosen),
        "captions": len(set(texts)),
        "categories": len(set(categories) - {None}),
        "loss": loss,
    }
    runs.begin(config, "teacher", shards)
    preprocessing = PreprocessCfg(size=architecture["vision_cfg"]["image_size"])
    kept = {name: getattr(preprocessing, name) for name in ("mean", "std", "interpolation", "resize_mode")}
    description, weights, vocabulary = small_files(config)
    write_tensors(weights, {name: tensor.cpu() for name, tensor in model.state_dict().items()})
    write_bytes(description, _json({"model_cfg": architecture, "preprocess_cfg": kept}))
    write_bytes(vocabulary, small_vocabulary(architecture["text_cfg"]["vocab_size"]))
    write_bytes(weights.with_name("teacher.json"), _json(about))
    card = CARD.format(objects=len(chosen), folder=weights.parent, vocabulary=vocabulary.name)
    write_bytes(weights.with_name("README.md"), card.encode())


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def read_pictures(
    dataset: TripletDataset, places: Sequence[int], pixels: int, threads: int
) -> tuple[Tensor, list[str], list[str | None]]:
    """Images [n, V, pixels, pixels, 3] uint8, captions and categories of the objects at these places.

    Raises:
        ClipgsError: an object's images cannot be read, or objects have different numbers of images.
    """
    texts: list[str] = []
    categories: list[str | None] = []

    def payloads() -> Iterator[tuple[list[bytes], int]]:
        for place in places:
            uid, members = dataset.uids[place], dataset.members(place)
            texts.append(members[f"{uid}.txt"].decode())
            categories.append(json.loads(members[f"{uid}.json"])["category"])
            yield [data for name, data in sorted(members.items()) if name.endswith(".webp")], pixels

    found: dict[int, np.ndarray] = {}
    progress = Progress("reading pictures", len(places))
    count = min(workers.usable_workers(threads, _DECODE_MB), max(1, len(places)))
    for index, result in workers.run(
        read_resized, payloads(), workers=count, timeout_seconds=_DECODE_SECONDS, memory_mb=_DECODE_MB
    ):
        if isinstance(result, workers.Failure):
            raise ClipgsError(f"the images of {dataset.uids[places[index]]} cannot be read: {result.error}")
        found[index] = result
        progress.step()
    progress.close()
    if len({len(pictures) for pictures in found.values()}) > 1:
        raise ClipgsError(f"{dataset.path}: objects have different numbers of images; pack all shards again")
    return torch.from_numpy(np.stack([found[i] for i in range(len(places))])), texts, categories


class _Texts(NamedTuple):
    """Distinct texts to draw batches from."""

    owners: list[list[int]]  # [T], the objects of each text
    share: np.ndarray  # [T], their fraction of all objects
    tokens: Tensor  # [T, forms, context]


def _texts(texts: Sequence[str | None], forms: Sequence[str], tokenizer: open_clip.SimpleTokenizer) -> _Texts:
    owners = defaultdict(list)
    for place, text in enumerate(texts):
        if text is not None:
            owners[text].append(place)
    counts = np.array([len(places) for places in owners.values()])
    written = [form.replace("{}", text) for text in owners for form in forms]
    return _Texts(list(owners.values()), counts / counts.sum(), tokenizer(written).view(len(owners), len(forms), -1))


def train(
    images: Tensor,  # [n, V, pixels, pixels, 3] uint8
    captions: Sequence[str],  # [n]
    categories: Sequence[str | None],  # [n]
    settings: SmallTeacher,
    seed: int,
    device: str,
) -> tuple[torch.nn.Module, float]:
    """The trained model, and its mean loss over the last tenth of the steps.

    The loss is open_clip's. A batch never has two objects with the same text, because they would be negatives of each
    other. A text is drawn as often as it has objects. Texts are captions, and in a fraction of the steps
    (`settings.category_steps`) categories, because a model of long captions alone does not know bare names. With
    `settings.view_weight` the same loss between two images of each of a second batch is added, as in SLIP (Mu et al.,
    2022): texts alone do not tell objects of one text apart.

    Raises:
        ClipgsError: there is only one caption, or the loss is not finite.
    """
    if len(set(captions)) < 2:
        raise ClipgsError(
            f"the small teacher learns to tell captions apart, and the split train has one ({captions[0]!r}); give the "
            "objects texts or categories of their own, or name another teacher.name"
        )
    architecture = json.loads(ARCHITECTURE.read_text())
    with torch.random.fork_rng(["cuda"] if device == "cuda" else []):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**architecture).to(device).train()
    draw = np.random.default_rng(seed)
    images = images.to(device)
    tokenizer = small_tokenizer()
    sources = [_texts(captions, ["{}"], tokenizer)]
    names = [name and spoken(name) for name in categories]
    if len(set(names) - {None}) > 1:
        sources.append(_texts(names, _FORMS, tokenizer))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, eps=_EPS)
    warmup = max(1, round(_WARMUP_FRACTION * settings.steps))
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in NORMALISED)
    contrast, losses = ClipLoss(), []

    def encoded(places: np.ndarray, views: np.ndarray) -> Tensor:
        """Features [B, D] of one image of each object, moved at random."""
        pixels = images[torch.from_numpy(places).to(device), torch.from_numpy(views).to(device)]
        pictures = moved((pixels.permute(0, 3, 1, 2).float() - mean) / std, draw)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return F.normalize(model.encode_image(pictures).float(), dim=-1)

    progress = Progress("teacher", settings.steps, "step")
    for step in range(settings.steps):
        rising, falling = (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(rising, falling)
        source = sources[-1 if draw.random() < settings.category_steps else 0]
        size = min(settings.batch, len(source.owners))
        texts = draw.choice(len(source.owners), size, replace=False, p=source.share)
        places = np.array([draw.choice(source.owners[text]) for text in texts])
        tokens = source.tokens[texts, draw.integers(0, source.tokens.shape[1], size)].to(device)
        image_features = encoded(places, draw.integers(0, images.shape[1], size))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            text_features = F.normalize(model.encode_text(tokens).float(), dim=-1)
        loss = contrast(image_features, text_features, model.logit_scale.exp())
        if settings.view_weight and images.shape[1] > 1:
            places = draw.choice(len(images), min(settings.batch, len(images)), replace=False)
            pairs = draw.permuted(np.tile(np.arange(images.shape[1]), (len(places), 1)), axis=1)[:, :2]
            features = encoded(np.tile(places, 2), pairs.T.ravel()).chunk(2)
            loss = loss + settings.view_weight * contrast(*features, _VIEW_SCALE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        losses.append(loss.detach())
        progress.step()
    progress.close()
    last = torch.stack(losses[-max(1, settings.steps // 10) :]).mean().item()
    if not math.isfinite(last):
        raise ClipgsError("the loss of the small teacher is not finite; lower teacher.small.learning_rate")
    return model.eval(), last


def moved(
    pictures: Tensor,  # [B, 3, H, W]
    draw: np.random.Generator,
) -> Tensor:
    """Scales, shifts and mirrors images at random; pixels from outside have the colour of the edge."""
    count = len(pictures)
    zoom = draw.uniform(*_ZOOM, count)
    transform = np.zeros((count, 2, 3), np.float32)
    transform[:, 0, 0] = zoom * draw.choice([-1, 1], count)
    transform[:, 1, 1] = zoom
    transform[:, :, 2] = draw.uniform(-2 * _SHIFT, 2 * _SHIFT, (count, 2))
    grid = F.affine_grid(torch.from_numpy(transform).to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
