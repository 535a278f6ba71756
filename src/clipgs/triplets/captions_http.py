"""Captions by a vision-language model on a server, of which the teacher chooses."""

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from clipgs.config import Config
from clipgs.core.errors import ObjectError, describe_error
from clipgs.core.runner import Results, Row, Task
from clipgs.splats.pictures import read_all
from clipgs.teacher import model as teacher
from clipgs.triplets.captions import clean
from clipgs.triplets.captions_written import chosen, defective, evenly
from clipgs.triplets.chat import Answer, Endpoint, Question

_MOST = 8000  # characters of an answer that are looked at: none has so long a caption
_SHOWN = 100  # characters of an answer in a message


def write_all(config: Config, tasks: list[Task]) -> Results:
    """Yields each task, whose payload are an object's pictures and their features, with its row or an error.

    Objects come as they are answered. The row has the candidates, and their scores where the teacher chooses.

    Raises:
        ClipgsError: as `Endpoint.ask`.
    """
    if not tasks:
        return
    settings = config.caption.http
    torch.set_num_threads(1)  # the number of threads changes the order of sums
    judge = teacher.load(config) if config.caption.teacher_chooses else None
    by = {"model": settings.model, "prompt": settings.prompt, "source": settings.model}
    if judge is not None:
        by["source"] = f"{settings.model}, chosen by the teacher"
    # The endpoint ends first: nobody waits for another try then, and answers that are on their way are kept.
    with _threads(settings.parallel) as pool, Endpoint(settings, config.cache_path / "answers") as endpoint:
        asked = {pool.submit(_texts, config, endpoint, task): task for task in tasks}
        for future in as_completed(asked):
            task, texts = asked.pop(future), future.result()
            if isinstance(texts, str):
                yield task, texts
            elif judge is None:
                row: Row = {"caption": texts[0], "candidates": texts}
                yield task, (row | by, [])
            else:
                yield task, (chosen(judge, texts, task.payload[1]) | by, [])


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="http")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _texts(config: Config, endpoint: Endpoint, task: Task) -> list[str] | str:
    """The different candidates of one object, or the reason why it has none."""
    settings = config.caption.http
    pictures, vectors = task.payload
    if config.caption.teacher_chooses and vectors is None:
        return "the teacher has no features of its pictures"
    try:
        images = read_all(pictures)
    except (OSError, ValueError, SyntaxError) as error:
        return describe_error(error)
    fit = images[[not defective(image) for image in images]]
    if not len(fit):
        return f"none of its {len(images)} pictures shows anything"
    seen = [_to_png(image) for image in evenly(fit, settings.views)]
    texts, reasons = [], []
    for number in range(settings.candidates):
        try:
            answer = endpoint.ask(Question(seen, number))
            texts.append(clean(caption_of(answer), config.caption.max_characters))
        except ObjectError as error:
            reasons.append(str(error))
    return list(dict.fromkeys(texts)) or f"{settings.model} wrote no caption: {reasons[0]}"


def _to_png(
    image: np.ndarray,  # [H, W, 3] uint8
) -> bytes:
    # Not WebP: llama.cpp does not read it.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


# --- what the model said, as a caption -------------------------------------------------------------------------------

# Thoughts are in tags; the first may stand in the server's template and not in the answer.
_OPEN, _CLOSE = (rf"(?:<{slash}(?:think|thinking|thought|reasoning)>|\u25c1{slash}think\u25b7)" for slash in ("", "/"))
_THOUGHTS = re.compile(rf".*{_CLOSE}|{_OPEN}.*", re.DOTALL | re.IGNORECASE)
_TOKENS = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<end_of_turn>")
_ITEM = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,2}[.)]|#{1,6}|>)\s+")
_EMPHASIS = re.compile(r"(\*\*|__|`+)(.+?)\1")
_LEANING = re.compile(r"(?<![\w*])\*([^*]+)\*(?![\w*])")
_LABEL = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)\b[!,.]*\s*)?"
    r"(?:here(?:['\u2019]s| is| are)\b[^:.]{0,80}|(?:(?:final|short) )?(?:caption|answer|description))\s*:\s*",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"(?:i'm (?:\w+ )?sorry|i am sorry|sorry, (?:but )?i|i can ?not|i can't|i(?: am|'m) (?:unable|not able)|"
    r"unfortunately, i|as an ai)\b",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "\u201e": "\u201c"}


def caption_of(answer: Answer) -> str:
    """The caption in an answer: its first paragraph without thoughts, markup, labels and quotes.

    An answer that was cut at `max_tokens` is cut back to its last whole sentence.

    Raises:
        ObjectError: it holds none.
    """
    if answer.refusal or answer.finish == "content_filter":
        raise ObjectError("it refused to answer")
    said = [*re.split(_CLOSE, answer.text, flags=re.IGNORECASE)][-1]  # after the thoughts
    text = _first_paragraph(_TOKENS.sub(" ", _THOUGHTS.sub("", said[:_MOST])))
    text = _LEANING.sub(r"\1", _EMPHASIS.sub(r"\2", text))
    text = _unquoted(_LABEL.sub("", text))
    if answer.finish == "length":
        sentences = re.match(r".*[.!?](?=\s|$)", text)
        if sentences is None:
            raise ObjectError("its answer was cut before a sentence ended; raise caption.http.max_tokens")
        text = sentences[0]
    if _REFUSES.match(text.replace("\u2019", "'")):
        raise ObjectError(f"it refused to answer ({text[:_SHOWN]})")
    if not any(character.isalnum() for character in text):
        raise ObjectError("its answer has no words")
    return text


def _first_paragraph(text: str) -> str:
    """Its lines as one. An item of a list is a paragraph, and a heading or a line that announces the next is none."""
    paragraphs: list[str] = [""]
    for line in text.splitlines():
        item = _ITEM.match(line)
        bare = _ITEM.sub("", line).strip()
        if not bare or bare.startswith("```"):
            paragraphs.append("")
        elif item:
            paragraphs += [f"{bare}:", ""] if "#" in item[0] else [bare]
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {bare}".strip()
    found = [paragraph for paragraph in paragraphs if paragraph]
    return next((one for one in found if not one.rstrip("*_ ").endswith(":")), found[0].rstrip(":") if found else "")


def _unquoted(text: str) -> str:
    text = text.strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text
