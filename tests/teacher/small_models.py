"""Every model of open_clip, made small: the same flags, image sizes, contexts, pooling and tokenizers, but few layers.

Weights are at random. What the hub would give (a tokenizer, the settings of a text tower) is a tiny one of its class.
The features of open_clip's own code stand beside those of clipgs.
"""

import copy
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.factory import _MODEL_CONFIGS, merge_preprocess_dict
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.models.vitamin import VitCfg, VitConvCfg

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# Unlike every tag's, so that a name without tags must take what is stated.
STATED = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.4, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
TIMM_WIDTH = 128
SPREAD = 0.1  # the least mean distance between the pictures or texts of a model at random
VOCABULARY = 1024  # tokens of the tiny tokenizers, at the most
TEXTS = (
    "a red mug",
    "A chair with four legs, and a Seat of  woven straw!",
    "tree",
    "une chaise à côté d'une table; ein Stuhl & eine Lampe",
    "a small wooden boat with a white sail on a blue sea " * 12,
)
_CORPUS = (
    *TEXTS, "a car with black wheels and a red roof", "the lamp stands on a round table", "a green plant in a pot",
    "an old house with a door and two windows", "a toy plane made of metal", "a table, a chair and a mug of tea",
)  # fmt: skip
# Names by family, the first word that fits.
_FAMILIES = (
    ("nllb", "NLLB"), ("mt5", "mT5"), ("coca", "CoCa"), ("roberta", "RoBERTa"), ("SigLIP2", "SigLIP 2"),
    ("SigLIP", "SigLIP"), ("worldwide", "MetaCLIP 2"), ("CLIPA", "CLIPA"), ("PE-Core", "PE-Core"),
    ("MobileCLIP", "MobileCLIP"), ("ViTamin", "ViTamin"), ("EVA0", "EVA-CLIP"), ("convnext", "ConvNeXt"),
    ("RN", "ResNet"), ("swin", "other timm"), ("vit_", "other timm"), ("ViT", "ViT"),
)  # fmt: skip


class Small(NamedTuple):
    """A small model on the disk, and open_clip's own model and tokenizer."""

    name: str
    file: Path  # .safetensors
    folder: Path | None  # of the tokenizer and the text tower's settings; None where open_clip has its own
    architecture: dict[str, Any]  # as open_clip would list it: it names the hub's tokenizer and text tower
    model: Any
    tokenizer: Callable[[list[str]], torch.Tensor]


def family(name: str) -> str:
    """The family of a name of open_clip."""
    return next(called for word, called in _FAMILIES if word in name)


def preprocessings(name: str) -> dict[str, dict[str, Any]]:
    """Tag to mean, std, interpolation and resize mode, as open_clip has them."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    return {tag: preprocessing_of(get_pretrained_cfg(name, tag)) for tag in tags}


def preprocessing_of(stated: dict[str, Any]) -> dict[str, Any]:
    """The whole preprocessing of a tag, a folder or a user, with open_clip's defaults."""
    full = merge_preprocess_dict(asdict(PreprocessCfg()), stated)
    return {key: list(full[key]) if isinstance(full[key], tuple) else full[key] for key in PREPROCESSING}


def architecture(name: str) -> dict[str, Any]:
    """The settings of a model of open_clip with two layers, narrow where the width is free, and a small vocabulary."""
    made = copy.deepcopy(_MODEL_CONFIGS[name])
    seen, text = made["vision_cfg"], made["text_cfg"]
    if isinstance(seen.get("layers"), list):
        seen.update(layers=[1, 1, 1, 1], width=32)
    elif "timm_model_name" not in seen:
        seen.update(layers=2, width=2 * seen.get("head_width", 64))
    if seen.get("timm_proj") == "none":  # the tower's features are the model's
        made["embed_dim"] = TIMM_WIDTH
    for tower in (text, made.get("multimodal_cfg", {})):
        if "layers" in tower:
            tower["layers"] = 2
            tower.update(width=2 * tower["width"] // tower["heads"], heads=2)
            if tower.get("proj_type") == "none":
                tower["width"] = made["embed_dim"]
    if "hf_tokenizer_name" in text and "vocab_size" in text:
        text["vocab_size"] = VOCABULARY
    return made


@contextmanager
def registered(name: str, settings: dict[str, Any]) -> Iterator[None]:
    """open_clip knows the name by these settings, and builds small towers of timm."""
    own, known = timm.create_model, _MODEL_CONFIGS[name]

    def small(tower: str, **more: Any) -> Any:
        return own(tower, **{**more, **_smaller(tower)})

    timm.create_model = small
    _MODEL_CONFIGS[name] = copy.deepcopy(settings)
    try:
        yield
    finally:
        timm.create_model = own
        _MODEL_CONFIGS[name] = known


def _smaller(tower: str) -> dict[str, Any]:
    """What makes a tower of timm small, as far as its builder takes it."""
    if tower.startswith("convnext"):
        return {"depths": (1, 1, 1, 1), "dims": (32, 64, 96, 128)}
    if tower.startswith("swin"):  # the second block of a stage shifts its windows
        return {"depths": (2, 1, 1, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8)}
    if tower.startswith("fastvit"):
        return {"layers": (1,) * (5 if tower.endswith(("mci3", "mci4")) else 4)}
    if tower.startswith("vitamin"):
        convolutions = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
        stem = VitCfg((32, 64, TIMM_WIDTH), (1, 1, 1), stem_width=32, conv_cfg=convolutions, head_type="1d")
        return {"depth": 2, "embed_dim": TIMM_WIDTH, "num_heads": 2, "embed_cfg": stem}
    if "_mci_" in tower:  # its stem has a width of its own
        return {"depth": 2}
    return {"depth": 2, "embed_dim": TIMM_WIDTH, "num_heads": 2}


def make(name: str, folder: Path) -> Small:
    """Builds a small model by open_clip alone, with weights at random, and saves them as `FOLDER/weights.safetensors`.

    Call it, and everything that opens the model, within `registered(name, architecture(name))`.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = architecture(name)
    texts, files = settings["text_cfg"], None
    if "hf_tokenizer_name" in texts:
        files = folder / "tokenizer"
        write_tokenizer(texts["hf_tokenizer_name"], files)
        if "hf_model_name" in texts:
            _write_tower(texts["hf_model_name"], files)
    local = copy.deepcopy(settings)
    local["text_cfg"].update({key: str(files) for key in ("hf_tokenizer_name", "hf_model_name") if key in texts})
    with registered(name, local), torch.random.fork_rng([]):
        torch.manual_seed(zlib.crc32(name.encode()))
        model = open_clip.create_model(name, pretrained_text=False).eval()
        tokenizer = open_clip.get_tokenizer(name)
        if files:
            _as_the_file_says(tokenizer.tokenizer.backend_tokenizer, files / "tokenizer.json")
        _disturb(model, tokenizer(list(TEXTS)))
    file = folder / "weights.safetensors"
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, file)
    return Small(name, file, files, settings, model, tokenizer)


def save_folder(small: Small, folder: Path, preprocessing: dict[str, Any]) -> Path:
    """A folder that open_clip loads as `local-dir:`."""
    folder.mkdir(parents=True)
    described = {"model_cfg": small.architecture, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "open_clip_model.safetensors").symlink_to(small.file.resolve())
    for file in small.folder.iterdir() if small.folder else ():
        (folder / file.name).symlink_to(file.resolve())
    return folder


@torch.no_grad()
def _disturb(
    model: Any,
    tokens: torch.Tensor,  # [n, L]
) -> None:
    """No vector stays constant: a bias or a scale that is lost, or taken for another, must show."""
    noise = F.interpolate(torch.randn(4, 3, 8, 8), open_clip.model.to_2tuple(model.visual.image_size))
    for name, tensor in model.state_dict().items():
        if name.endswith("text_decoder.text_projection"):  # open_clip leaves it as the memory was
            torch.nn.init.normal_(tensor, std=0.02)
        elif tensor.is_floating_point() and tensor.numel() > 1 and tensor.min() == tensor.max():
            tensor += 0.05 * torch.randn_like(tensor)
    norms = [module for module in model.visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:  # with the statistics of a new model all pictures look the same
        norm.momentum = None
        norm.train()
    if norms:
        model.visual(noise)
    model.eval()
    _tell_apart(model.visual, lambda: model.encode_image(noise))
    text = model.text if hasattr(model, "text") else model.transformer
    _tell_apart(text, lambda: model.encode_text(tokens))


def _tell_apart(tower: Any, features: Callable[[], torch.Tensor]) -> None:
    """Scales a tower's matrices until its features lie apart: those that are all alike would agree with anything."""
    for _ in range(12):
        if spread(F.normalize(features(), dim=-1)) >= SPREAD:
            return
        for name, tensor in tower.named_parameters():
            if tensor.ndim > 1 and "embed" not in name:
                tensor *= 1.5
    raise AssertionError("the features of a model at random are all alike")


# --- features of open_clip's own code --------------------------------------------------------------------------------


def pictures(pixels: int) -> dict[str, np.ndarray]:
    """By name [4, H, W, 3] uint8: of the model's own size, larger, smaller, and not square; patches and slopes."""
    shapes = {"own": (pixels, pixels), "larger": (512, 512), "smaller": (96, 96), "wide": (200, 300)}
    return {name: np.stack([picture(seed, shape) for seed in range(4)]) for name, shape in shapes.items()}


def picture(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST)
    slopes = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(Image.blend(patches, slopes, 0.5))


@torch.no_grad()
def own_images(
    small: Small,
    images: np.ndarray,  # [n, H, W, 3] uint8
    preprocessing: dict[str, Any],
) -> torch.Tensor:
    """[n, D] of unit length, as open_clip's README does it: Pillow's pictures, through the tag's preprocessing."""
    transform = image_transform_v2(PreprocessCfg(size=small.model.visual.image_size, **preprocessing), is_train=False)
    batch = torch.stack([transform(Image.fromarray(image)) for image in images])
    return F.normalize(small.model.encode_image(batch), dim=-1)


@torch.no_grad()
def own_texts(small: Small, texts: Sequence[str] = TEXTS) -> torch.Tensor:
    """[n, D] of unit length."""
    return F.normalize(small.model.encode_text(small.tokenizer(list(texts))), dim=-1)


def spread(features: torch.Tensor) -> float:  # [n, D]
    """The mean distance between two of them."""
    return float(torch.pdist(features).mean())


def differences(small: Small, frozen: Any, preprocessing: dict[str, Any]) -> dict[str, Any]:
    """How far a teacher of clipgs is from open_clip's own model in float32.

    Returns:
        text: the largest difference of a number of a text's vector.
        pictures: by their shape, the largest distance of a picture from itself, as a share of the spread.
        cosine: the least of a text or picture to itself.
        found: the share of texts and pictures that are nearest to themselves.
        spread: the least of texts and pictures.
    """
    theirs, ours = own_texts(small), frozen.encode_texts(TEXTS).cpu()
    text = float((ours - theirs).abs().max())
    pairs, apart = [(ours, theirs)], {}
    for shape, images in pictures(open_clip.model.to_2tuple(small.model.visual.image_size)[0]).items():
        theirs, ours = own_images(small, images, preprocessing), frozen.encode_images(images).cpu()
        apart[shape] = float((ours - theirs).norm(dim=-1).max()) / spread(theirs)
        pairs.append((ours, theirs))
    return {
        "text": text,
        "pictures": apart,
        "cosine": min(float(F.cosine_similarity(*pair, dim=-1).min()) for pair in pairs),
        "found": float(torch.cat([nearest_to_itself(*pair) for pair in pairs]).float().mean()),
        "spread": min(spread(theirs) for _, theirs in pairs),
    }


def nearest_to_itself(
    ours: torch.Tensor,  # [n, D]
    theirs: torch.Tensor,  # [n, D]
) -> torch.Tensor:
    """[n] bool."""
    return (ours @ theirs.T).argmax(1) == torch.arange(len(ours))


# --- what the hub would give -----------------------------------------------------------------------------------------


def _as_the_file_says(backend: Any, file: Path) -> None:
    """From version 5 on, transformers builds tokenizers of some classes otherwise than the file that it reads."""
    from tokenizers import Tokenizer

    said = Tokenizer.from_file(str(file))
    backend.model, backend.normalizer, backend.pre_tokenizer = said.model, said.normalizer, said.pre_tokenizer


def write_tokenizer(name: str, folder: Path) -> None:
    """A tokenizer of the class that the hub has under a name, with a vocabulary of our few texts."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    def trained(
        model: Any, trainer: Any, normalizer: Any, words: Any, ends: tuple[str, str], decoder: Any
    ) -> Tokenizer:
        made = Tokenizer(model)
        made.normalizer, made.pre_tokenizer, made.decoder = normalizer, words, decoder
        made.train_from_iterator(_CORPUS, trainer)
        single = " ".join(part for part in (ends[0], "$A", ends[1]) if part)
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(end, made.token_to_id(end)) for end in ends if end]
        )
        return made

    space = pre_tokenizers.Metaspace()

    def pieces(special: list[str], ends: tuple[str, str]) -> Tokenizer:
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        return trained(models.Unigram(), trainer, normalizers.NFKC(), space, ends, decoders.Metaspace())

    def pairs(special: list[str], ends: tuple[str, str], words: Any, **more: Any) -> Tokenizer:
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False, **more)
        return trained(models.BPE(unk_token="<unk>"), trainer, normalizers.NFC(), words, ends, None)

    fairseq = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if "bert-base-uncased" in name:
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
        )
        made = transformers.BertTokenizerFast(
            tokenizer_object=trained(models.WordPiece(unk_token="[UNK]"), trainer, normalizers.BertNormalizer(),
                                     pre_tokenizers.BertPreTokenizer(), ("[CLS]", "[SEP]"), decoders.WordPiece())
        )  # fmt: skip
    elif "SigLIP2" in name:
        made = transformers.GemmaTokenizerFast(
            tokenizer_object=pairs(["<pad>", "<eos>", "<bos>", "<unk>"], ("", "<eos>"), space),
            padding_side="right", add_bos_token=False, add_eos_token=True,
        )  # fmt: skip
    elif "SigLIP" in name:
        made = transformers.T5TokenizerFast(
            tokenizer_object=pieces(["<pad>", "</s>", "<unk>"], ("", "</s>")), extra_ids=0, pad_token="</s>"
        )
    elif "mt5" in name:
        made = transformers.T5TokenizerFast(
            tokenizer_object=pieces(["<pad>", "</s>", "<unk>"], ("", "</s>")), extra_ids=0
        )
    elif "xlm" in name:
        made = transformers.XLMRobertaTokenizerFast(tokenizer_object=pieces(fairseq, ("<s>", "</s>")))
    elif "nllb" in name:
        made = transformers.NllbTokenizerFast(tokenizer_object=pairs(fairseq, ("<s>", "</s>"), space))
    else:
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made = transformers.RobertaTokenizerFast(
            tokenizer_object=pairs(fairseq, ("<s>", "</s>"), letters, initial_alphabet=alphabet)
        )
    assert len(made) <= VOCABULARY, (name, len(made))
    made.save_pretrained(folder)


def _write_tower(name: str, folder: Path) -> None:
    """The settings of a text tower of the class that the hub has under a name."""
    import transformers

    if "mt5" in name:
        settings: Any = transformers.MT5Config(
            vocab_size=VOCABULARY, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_decoder_layers=1, num_heads=2
        )
    elif "nllb" in name:
        settings = transformers.M2M100Config(
            vocab_size=VOCABULARY, d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        )  # fmt: skip
    else:
        kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
        settings = kind(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
            max_position_embeddings=514,
        )  # fmt: skip
    settings.save_pretrained(folder)
