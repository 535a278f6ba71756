"""A trained encoder in Python: `clipgs.load`, and splats, texts and images as vectors of one space."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipgs import encoder
from clipgs.config import read
from clipgs.core.bundles import read_metadata
from clipgs.core.errors import ClipgsError
from clipgs.core.prefetch import Prefetch
from clipgs.core.processes import usable_cores
from clipgs.encoder import CONFIG, MODEL
from clipgs.encoder.groups import prepare
from clipgs.splats.gaussians import Gaussians
from clipgs.triplets.dataset import TripletDataset

if TYPE_CHECKING:
    from clipgs.teacher.model import Teacher

_ENCODE_BATCH = 16  # objects
_SEARCH_ROWS = 8192  # of a gallery in double precision at a time
_TIE = 1e-9  # cosines this close are equal


def load(run: str | Path, device: str | torch.device | None = None) -> "TrainedEncoder":
    """The encoder of a finished run, or of a published folder.

    Args:
        run: the folder with `model.safetensors` and `config.yaml`.
        device: where to compute; default: the GPU, where there is one.

    Raises:
        ClipgsError: a file is missing or damaged, or does not belong to the others.
    """
    return TrainedEncoder(Path(run), device)


class TrainedEncoder:
    """Splats and texts as vectors of one space."""

    def __init__(self, run: Path, device: str | torch.device | None = None) -> None:
        if not (run / MODEL).exists():
            raise ClipgsError(f"{run} has no {MODEL}; train the run first: snakemake train")
        self.run = run
        place = run if (run / "teacher").is_dir() else run.parent.parent  # a published folder brings a small teacher
        self.config = read(run / CONFIG).model_copy(update={"output": str(place)})
        self.notes = read_metadata(run / MODEL)
        tensors = load_file(run / MODEL)
        self.dim: int = self.notes["dim"]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = encoder.ClipGS(self.config.encoder, self.dim)
        try:
            self.model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ClipgsError(f"{run / MODEL} does not fit {run / CONFIG}: {shorten(first, 200)}") from None
        self.model.to(self.device).eval()
        self._teacher: Teacher | None = None
        self._galleries: dict[Path, tuple[list[str], Tensor]] = {}  # folder of triplets to uids and vectors

    def encode(self, splats: Gaussians | str | Path | Sequence[Gaussians | str | Path]) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, one row a splat.

        Args:
            splats: Gaussians [N, *] or a batch [B, N, *], the path of a PLY, or a list of either.
        """
        if isinstance(splats, Gaussians):
            splats = [splats] if splats.means.ndim == 2 else [splats[i] for i in range(len(splats))]
        elif isinstance(splats, str | Path):
            splats = [splats]

        def prepared(i: int) -> Gaussians:
            splat = splats[i]
            return prepare(splat if isinstance(splat, Gaussians) else Gaussians.load(splat), self.config.encoder)

        return self._through(prepared, len(splats))

    def encode_dataset(self, dataset: TripletDataset, done: Callable[[int], None] = lambda count: None) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, of the splats of packed triplets, in their order.

        Args:
            done: told the number of objects after each batch of them.
        """

        def prepared(i: int) -> Gaussians:
            return prepare(dataset.gaussians(i), self.config.encoder, str(dataset.uids[i]))

        return self._through(prepared, len(dataset), done)

    @torch.no_grad()
    def _through(
        self, prepared: Callable[[int], Gaussians], count: int, done: Callable[[int], None] = lambda count: None
    ) -> Tensor:  # [count, D]
        """Cleaning a splat and finding its centres takes longer than the encoder: threads do it ahead."""
        ahead, rows = iter(Prefetch(prepared, range(count), usable_cores())), []
        while some := list(islice(ahead, _ENCODE_BATCH)):
            rows.append(self.model(Gaussians.stack(some).to(self.device)).float().cpu())
            done(len(some))
        return torch.cat(rows) if rows else torch.empty(0, self.dim)

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, by the teacher that the run was trained with."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return torch.as_tensor(self._load_teacher().encode_texts(texts)).float().cpu()

    def encode_images(self, images: Tensor) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, of pictures [n, H, W, 3] uint8, by the teacher."""
        return torch.as_tensor(self._load_teacher().encode_images(images)).float().cpu()

    def _load_teacher(self) -> "Teacher":
        if self._teacher is None:
            from clipgs.teacher import model as teacher

            found = teacher.load(self.config)
            if found.weights_sha256 != self.notes["teacher"]["weights_sha256"]:
                trained = self.notes["teacher"]
                raise ClipgsError(
                    f"{self.run} was trained with {trained['teacher']} ({trained['pretrained']}), and the weights "
                    f"found for it are others; texts and splats would not lie in one space"
                )
            self._teacher = found
        return self._teacher

    def search(
        self,
        query: str | Tensor,
        k: int = 5,
        triplets: str | Path | None = None,
        *,
        gallery: tuple[Sequence[str], Tensor] | None = None,
    ) -> list[tuple[str, float]]:
        """The k objects nearest to a query: (uid, cosine), the nearest first; of equal ones the first of the gallery.

        Args:
            query: a text; or a vector [D], as `encode_images` gives it.
            triplets: the dataset to search, `triplets/` of an output; default: the one beside the run. Its objects are
                encoded at their first search.
            gallery: what to search instead: n uids and their vectors [n, D].
        """
        if gallery is None:
            folder = Path(triplets or self.run.parent.parent / "triplets")
            if folder not in self._galleries:
                dataset = TripletDataset(folder)
                self._galleries[folder] = (dataset.uids.tolist(), self.encode_dataset(dataset))
            gallery = self._galleries[folder]
        uids, shapes = gallery
        vector = self.encode_text(query)[0] if isinstance(query, str) else query
        cosines = torch.cat([_cosines(vector, rows) for rows in shapes.split(_SEARCH_ROWS)])
        order = (cosines / _TIE).round().argsort(descending=True, stable=True)[:k].tolist()
        return [(uids[i], float(cosines[i])) for i in order]


def _cosines(
    vector: Tensor,  # [D]
    rows: Tensor,  # [n, D]
) -> Tensor:  # [n] float64
    return torch.cosine_similarity(rows.double(), vector.double(), dim=1)
