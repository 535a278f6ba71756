"""Search: the splats nearest to a text or a picture, with their scores and a sheet of their renders."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from clipgs.catalog.records import PICTURE_SUFFIXES
from clipgs.core.errors import ClipgsError, UsageError, snakemake
from clipgs.core.files import sha256_of, whole
from clipgs.encoder import MODEL
from clipgs.encoder.trained import load
from clipgs.evaluation.embeddings import Embeddings, embed, read_embeddings
from clipgs.splats.pictures import from_image
from clipgs.triplets.contact_sheet import BACKGROUND, FAINT, FRAME, TEXT, font, wrap
from clipgs.triplets.dataset import TripletDataset, best_render

log = logging.getLogger(__name__)

_PIXELS, _GAP, _LINE, _LINES, _COLUMNS = 200, 16, 17, 3, 5


class Found(NamedTuple):
    """An object near a query."""

    uid: str
    score: float  # cosine
    caption: str
    picture: np.ndarray  # [H, W, 3] uint8, render of the splat


def search(
    query: str,
    run: Path,
    *,
    k: int = 5,
    triplets: Path | None = None,
    picture: Path | None = None,
    device: str = "auto",
) -> list[Found]:
    """The k objects nearest to a text, or to the picture in a file, by the encoder of a run.

    The run's evaluation has embeddings of the splats. If they are of other weights or objects, all splats are encoded
    again.

    Args:
        query: a text, or the path of a PNG, JPEG or WebP file.
        run: folder of a finished run.
        triplets: the folder to search; default: `triplets/` of the run's output.
        picture: path of a PNG to write, which shows the query and the objects found.

    Raises:
        UsageError: the query is empty, or its picture cannot be read.
        ClipgsError: the run is not finished, or there are no triplets.
    """
    if not query.strip():
        raise UsageError("the query is empty: give a text or an image file")
    image = _read_image(Path(query)) if query.lower().endswith(PICTURE_SUFFIXES) else None
    output = run.resolve().parent.parent
    folder = triplets or output / "triplets"
    encoder = load(run, None if device == "auto" else device)
    dataset = TripletDataset(folder)
    known = _known(output / "evaluation" / run.resolve().name / "embeddings.safetensors", run, dataset.uids.tolist())
    if known is None:
        log.info("search: encoding %d splats; `%s` keeps their embeddings", len(dataset), snakemake("evaluate"))
        known = embed(run, folder, encoder=encoder)
    if not known.uids:
        raise ClipgsError(f"{folder} has no triplets; make them with: {snakemake('triplets')}")
    log.info("search: loading %s, which reads the query", encoder.notes["teacher"]["teacher"])
    asked = query if image is None else encoder.encode_images(square(image))[0]
    place = {str(uid): i for i, uid in enumerate(dataset.uids)}
    found = []
    for uid, score in encoder.search(asked, k, gallery=(known.uids, torch.from_numpy(known.shapes))):
        members = dataset.members(place[uid])
        found.append(Found(uid, score, members[f"{uid}.txt"].decode(), _shown(uid, members)))
    if picture is not None:
        with whole(picture) as temporary:
            sheet(query, image, found).save(temporary, "PNG")
    return found


def _known(file: Path, run: Path, uids: Sequence[str]) -> Embeddings | None:
    """The embeddings in the file, if they are of this model and these objects."""
    if not file.exists():
        return None
    known = read_embeddings(file)
    same = known.metadata["model_sha256"] == sha256_of(run / MODEL)
    return known if same and known.uids == sorted(uids) else None


def _shown(uid: str, members: dict[str, bytes]) -> np.ndarray:
    return from_image(best_render(uid, members))


def _read_image(path: Path) -> np.ndarray:
    try:
        return from_image(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's for a file that is no picture
        raise UsageError(f"{path} cannot be read as a picture ({error})") from None


def read_picture(path: Path) -> torch.Tensor:
    """[1, S, S, 3] uint8: the picture in a file, as `TrainedEncoder.encode_images` takes it.

    Raises:
        UsageError: it cannot be read as a picture.
    """
    return square(_read_image(path))


def square(image: np.ndarray) -> torch.Tensor:
    """[1, S, S, 3] uint8: the picture in the middle of a white square, as the teacher saw renders."""
    missing = [max(image.shape[:2]) - side for side in image.shape[:2]]
    square = np.pad(image, [*((gap // 2, gap - gap // 2) for gap in missing), (0, 0)], constant_values=255)
    return torch.from_numpy(square)[None]


def sheet(query: str, image: np.ndarray | None, found: Sequence[Found]) -> Image.Image:
    """Draws the query and the objects found, with scores and captions."""
    small, large = font(13), font(20, bold=True)
    cells = [(one.picture, f"{one.score:.3f}", one.caption) for one in found]
    if image is not None:
        cells = [(image, "query", Path(query).name), *cells]
    columns = min(_COLUMNS + (image is not None), max(1, len(cells)))
    width = max(420, _GAP + columns * (_PIXELS + _GAP))
    cell_height = _PIXELS + (_LINES + 1) * _LINE + _GAP
    top = 52
    canvas = Image.new("RGB", (width, top + -(-len(cells) // columns) * cell_height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    title = query if image is None else f"Nearest to {Path(query).name}"
    draw.text((_GAP, 14), "".join(wrap(title, large, width - 2 * _GAP, 1)), TEXT, large)
    for i, (picture, score, caption) in enumerate(cells):
        x, y = _GAP + (i % columns) * (_PIXELS + _GAP), top + (i // columns) * cell_height
        shrunk = Image.fromarray(picture)
        shrunk.thumbnail((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
        factor = _PIXELS / max(shrunk.size)  # above 1 for a smaller picture
        fitted = shrunk.resize([round(side * factor) for side in shrunk.size])
        canvas.paste(fitted, (x + (_PIXELS - fitted.width) // 2, y + (_PIXELS - fitted.height) // 2))
        draw.rectangle((x, y, x + _PIXELS - 1, y + _PIXELS - 1), outline=FRAME)
        draw.text((x, y + _PIXELS + 4), score, FAINT, small)
        for line, text in enumerate(wrap(caption, small, _PIXELS, _LINES)):
            draw.text((x, y + _PIXELS + 4 + (line + 1) * _LINE), text, TEXT, small)
    return canvas
