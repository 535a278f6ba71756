"""What queries are read by: the teacher of a run, loaded while the page can already be used."""

import hashlib
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from clipgs.core.errors import ClipgsError, UsageError

if TYPE_CHECKING:
    from clipgs.teacher.model import Teacher

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_MEGAPIXELS = 50  # of a picture to search with: 150 MB of memory
_KEPT = 64  # vectors of the last queries
_PIXELS = 1024  # a larger picture is shrunk; teachers see 512 at the most
# What Pillow raises for bytes that are no picture, or one too large.
_NO_PICTURE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Reader:
    """Turns texts and pictures into vectors. Loading starts at once in a thread, and the first query waits for it.

    Attributes:
        state: `loading`, `ready`, or why no query can be read.
    """

    def __init__(self, run: Path, dim: int) -> None:
        self.state = "loading"
        self._run, self._dim = run, dim
        self._teacher: Teacher
        self._lock = threading.Lock()  # the teacher encodes one query at a time
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._loaded = threading.Event()
        threading.Thread(target=self._load, name="teacher", daemon=True).start()

    def _load(self) -> None:
        try:
            from clipgs.encoder.trained import load_teacher

            self._teacher = load_teacher(self._run)
            if self._teacher.dim != self._dim:
                raise ClipgsError(f"the teacher's vectors have {self._teacher.dim} numbers, the run's {self._dim}")
            self.state = "ready"
        except Exception as error:  # the page says it, and browsing goes on
            self.state = str(error) or type(error).__name__
            log.warning("serve: no search by text or picture: %s", self.state)
        finally:
            self._loaded.set()

    def text(self, query: str) -> np.ndarray:
        """[D] float32 of unit length.

        Raises:
            UsageError: the text is empty.
            ClipgsError: the teacher cannot be loaded.
        """
        if not query.strip():
            raise UsageError("the query is empty")
        return self._vector(f"text {query}", lambda: self._teacher.encode_texts([query]))

    def picture(self, data: bytes) -> np.ndarray:
        """[D] float32 of unit length, of the bytes of a picture.

        Raises:
            UsageError: the bytes are no picture, or it is too large.
            ClipgsError: the teacher cannot be loaded.
        """
        from clipgs.report.search import square

        image = decoded(data)
        digest = hashlib.sha256(data).hexdigest()
        return self._vector(f"picture {digest}", lambda: self._teacher.encode_images(square(image)))

    def _vector(self, key: str, encode: Callable[[], Any]) -> np.ndarray:
        self._loaded.wait()
        if self.state != "ready":
            raise ClipgsError(self.state)
        with self._lock:
            if key not in self._known:
                self._known[key] = encode()[0].float().cpu().numpy()
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]


def decoded(data: bytes) -> np.ndarray:
    """The picture in some bytes, upright, over white, as [H, W, 3] uint8.

    Raises:
        UsageError: the bytes are no picture, or it has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
                raise UsageError(f"the picture has more than {MAX_MEGAPIXELS} megapixels")
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        upright.thumbnail((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
        return np.asarray(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))
    except _NO_PICTURE as error:
        raise UsageError(f"this is not a picture that can be read ({error})") from None
