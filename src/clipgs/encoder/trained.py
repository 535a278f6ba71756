"""A trained encoder in Python: `clipgs.load`, and splats, texts and images as vectors of one space."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgs import encoder
from clipgs.config import Config, read
from clipgs.core.bundles import read_metadata
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.prefetch import Prefetch
from clipgs.core.processes import usable_cores
from clipgs.encoder import CONFIG, MODEL, no_run
from clipgs.encoder.groups import prepare
from clipgs.encoder.pretrained import fill, read_state
from clipgs.splats.gaussians import Gaussians
from clipgs.teacher.names import LOCAL_DIR, place_of, shortened
from clipgs.triplets.dataset import TripletDataset

if TYPE_CHECKING:
    from clipgs.teacher.model import Teacher

log = logging.getLogger(__name__)

_ENCODE_BATCH = 16  # objects
_SEARCH_ROWS = 8192  # of a gallery that are in double precision at the same time
_TIE = 1e-9  # cosines are rounded to multiples of it


def load(
    run: str | Path, device: str | torch.device | None = None, *, teacher: str | Path | None = None
) -> "TrainedEncoder":
    """The encoder of a finished run, or of a published folder.

    Args:
        run: the folder with `model.safetensors` and `config.yaml`.
        device: default: the GPU, if there is one.
        teacher: where the teacher's file of weights or folder lies on this machine; default: where `config.yaml` says.

    Raises:
        ClipgsError: a file is missing or damaged, or does not fit the others.
    """
    return TrainedEncoder(Path(run), device, teacher)


class TrainedEncoder:
    """Encodes splats, texts and images into one space."""

    def __init__(self, run: Path, device: str | torch.device | None = None, teacher: str | Path | None = None) -> None:
        self.run = run
        self.config, self.notes = _described(run)
        if teacher is not None:
            if not Path(teacher).exists():
                raise ClipgsError(f"teacher = {teacher}: there is no such file or folder")
            where = {"name": f"{LOCAL_DIR}{teacher}"} if Path(teacher).is_dir() else {"pretrained": str(teacher)}
            there = self.config.teacher.model_copy(update=where)
            self.config = self.config.model_copy(update={"teacher": there})
        self.dim: int = self.notes["dim"]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = encoder.ClipGS(self.config.encoder, self.dim)
        self.model = fill(model, read_state(run / MODEL), f"{run / MODEL} does not fit {run / CONFIG}")
        self.model.to(self.device).eval()
        self._galleries: dict[Path, tuple[list[str], Tensor]] = {}  # folder of triplets to uids and vectors

    def encode(self, splats: Gaussians | str | Path | Sequence[Gaussians | str | Path]) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, one row a splat.

        Args:
            splats: Gaussians [N, ...] or a batch [B, N, ...], the path of a PLY, or a list of either.

        Raises:
            TypeError: it is none of these.
            ValueError, OSError: a file is no splat, or cannot be read.
            ObjectError: a splat cannot be encoded; the text names its file, or its place in the list.
        """
        if isinstance(splats, Gaussians) and splats.means.ndim > 2:
            splats = [splats[i] for i in range(len(splats))]
        takes = "encode takes Gaussians, the path of a PLY, or a list of them"
        listed = _listed(splats, (Gaussians, str, Path), takes)

        def prepared(i: int) -> Gaussians:
            splat = listed[i]
            if isinstance(splat, Gaussians):
                return prepare(splat, self.config.encoder, f"splat {i}" if len(listed) > 1 else "the splat")
            return prepare(Gaussians.load(splat), self.config.encoder, str(splat))

        return self._through(prepared, len(listed))

    def encode_dataset(self, dataset: TripletDataset, done: Callable[[int], None] = lambda count: None) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, of the splats of packed triplets, in their order.

        Args:
            done: called with the number of objects of each finished batch.
        """

        def prepared(i: int) -> Gaussians:
            return prepare(dataset.gaussians(i), self.config.encoder, str(dataset.uids[i]))

        return self._through(prepared, len(dataset), done)

    @torch.no_grad()
    def _through(
        self, prepared: Callable[[int], Gaussians], count: int, done: Callable[[int], None] = lambda count: None
    ) -> Tensor:  # [count, D]
        """Encodes prepared splats. Preparing takes longer than encoding, so threads prepare the next ones."""
        ahead, rows = iter(Prefetch(prepared, range(count), usable_cores())), []
        while some := list(islice(ahead, _ENCODE_BATCH)):
            rows.append(self.model(Gaussians.stack(some).to(self.device)).float().cpu())
            done(len(some))
        return torch.cat(rows) if rows else torch.empty(0, self.dim)

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, by the teacher that the run was trained with; one row for a str.

        Raises:
            TypeError: it is no text and no list of texts.
            ClipgsError: a text is empty, or the teacher is not here, or not that of the run.
        """
        listed = _listed(texts, (str,), "encode_text takes a text or a list of texts")
        vectors = self._teacher.encode_texts(listed)
        if cut := self._teacher.cut(listed):
            length, which = self._teacher.tokenizer.context_length, f"text {cut[0] + 1} of {len(listed)}"
            log.warning("%s is longer than the %d tokens that the teacher reads; the rest is ignored", which, length)
        return torch.as_tensor(vectors).float().cpu()

    def encode_images(self, images: Tensor) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, of images [n, H, W, 3] uint8, by the teacher."""
        return torch.as_tensor(self._teacher.encode_images(images)).float().cpu()

    @cached_property
    def _teacher(self) -> "Teacher":
        return _teacher_of(self.run, self.config, self.notes)

    def search(
        self,
        query: str | Tensor,
        k: int = 5,
        triplets: str | Path | None = None,
        *,
        gallery: tuple[Sequence[str], Tensor] | None = None,
    ) -> list[tuple[str, float]]:
        """The k objects nearest to a query: (uid, cosine), the nearest first; ties are in the order of the gallery.

        Args:
            query: a text, or a vector [D], such as a row of `encode_images`.
            triplets: the dataset to search, `triplets/` of an output; default: that of the run's output. The first
                search encodes its objects.
            gallery: n uids and their vectors [n, D], to search instead of a dataset.

        Raises:
            TypeError: the query is neither a text nor a vector.
            ClipgsError: the query is an empty text, or there are no triplets.
        """
        if not isinstance(query, str) and not (isinstance(query, Tensor) and query.ndim == 1):
            raise TypeError(f"search takes one text or one vector [D], not {_kind(query)}")
        # First: a teacher that is not here is found out before thousands of splats are encoded.
        vector = (self.encode_text(query)[0] if isinstance(query, str) else query).double()
        if gallery is None:
            folder = Path(triplets or self.run.parent.parent / "triplets")
            if folder not in self._galleries:
                dataset = TripletDataset(folder)
                self._galleries[folder] = (dataset.uids.tolist(), self.encode_dataset(dataset))
            gallery = self._galleries[folder]
        uids, shapes = gallery
        blocks = shapes.split(_SEARCH_ROWS)
        cosines = torch.cat([F.cosine_similarity(rows.double(), vector, dim=1) for rows in blocks])
        order = (cosines / _TIE).round().argsort(descending=True, stable=True)[:k].tolist()
        return [(uids[i], float(cosines[i])) for i in order]


def load_teacher(run: Path) -> "Teacher":
    """The teacher that a finished run was trained with, without the run's encoder.

    Raises:
        ClipgsError: the run is not finished, or the teacher's weights or settings are not those of the run.
    """
    return _teacher_of(run, *_described(run))


def _described(run: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a finished run, and the metadata of its weights."""
    if not (run / MODEL).exists():
        raise ClipgsError(no_run(run))
    output = run if (run / "teacher").is_dir() else run.parent.parent  # a published folder may have a small teacher
    return read(run / CONFIG).model_copy(update={"output": str(output)}), read_metadata(run / MODEL)


def _teacher_of(run: Path, config: Config, notes: dict[str, Any]) -> "Teacher":
    from clipgs.teacher import model

    trained, settings = notes["teacher"], config.teacher
    place = place_of(settings)
    if place is not None and not place.exists():
        raise ClipgsError(
            f"{run} was trained with {trained['teacher']} ({trained['pretrained']}), and {place.absolute()} "
            "does not exist; say where it lies now: clipgs.load(RUN, teacher=PLACE), or put a link to it there"
        )
    try:
        teacher = model.load(config)
    except UsageError as error:
        raise ClipgsError(f"{str(error).removeprefix('config: ')}; edit it in {run / CONFIG}") from None
    if teacher.weights_sha256 != trained["weights_sha256"]:
        raise ClipgsError(
            f"{run} was trained with {trained['teacher']} ({trained['pretrained']}), and the weights "
            "found for it are others; its texts and splats would be in different spaces"
        )
    if (prepared := teacher.about["preprocess"]) != trained.get("preprocess", prepared):
        raise ClipgsError(
            f"{run} was trained with pictures prepared as {trained['preprocess']}, and the teacher found for "
            f"it prepares them as {prepared}; set teacher.preprocess in {run / CONFIG}"
        )
    if (tokens := teacher.about["tokenizer"]) != (known := trained.get("tokenizer", tokens)):
        raise ClipgsError(
            f"{run} was trained with the tokenizer {shortened(known)}, and the teacher found for it has "
            f"{shortened(tokens)}; bring the tokenizer's files of the run"
        )
    return teacher


def _listed(given: Any, one: tuple[type, ...], takes: str) -> list[Any]:
    """One thing of these types, or several, as a list.

    Raises:
        TypeError: it is or holds something else; the text begins with `takes`.
    """
    try:
        listed = [given] if isinstance(given, one) else list(given)
    except TypeError:
        listed = [given]
    for value in listed:
        if not isinstance(value, one):
            raise TypeError(f"{takes}, not {_kind(value)}")
    return listed


def _kind(value: object) -> str:
    """The type of an argument, for an error; with the shape of a tensor."""
    return f"{type(value).__name__}{list(value.shape) if isinstance(value, Tensor) else ''}"
