"""The command `splat`: from mesh files to splats beside each other, each with a picture."""

import itertools
import logging
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from clipgs.catalog.sources.folder import FolderSource
from clipgs.config import Fit, check
from clipgs.core.errors import ClipgsError, ObjectError, UsageError, describe_error
from clipgs.core.files import whole
from clipgs.core.lists import counted
from clipgs.core.runner import Progress, Row
from clipgs.meshes import views
from clipgs.meshes.cameras import SHOWING_DIRECTION, showing
from clipgs.operate.checks import unwritable
from clipgs.splats.export import FORMATS, OF_SUFFIX, format_of, save
from clipgs.splats.from_mesh import FittedMesh, ToFit, fit_many, fit_one, settings
from clipgs.splats.read import is_splat
from clipgs.splats.render import render
from clipgs.triplets.contact_sheet import BACKGROUND, FAINT, FRAME, TEXT, box_of, font, wrap

log = logging.getLogger(__name__)

_FOLDER = Path("splats")  # of several splats, where the user names none
_SOFTWARE = "clipgs"  # in a picture: it may be written again
_HEAD_BYTES = 4096
_PIXELS, _GAP, _MARGIN, _HEADING = 224, 6, 20, 78
_X, _Y, _Z = SHOWING_DIRECTION
_DIRECTIONS = ((_X, _Y, _Z), (_Z, _Y, -_X), (-_X, _Y, -_Z), (-_Z, _Y, _X))  # quarter turns


class Target(NamedTuple):
    """Where the splat of one mesh goes, and what goes with it. Picklable."""

    mesh: str  # as the user named it
    file: Path
    kind: str  # of FORMATS
    picture: Path | None
    views: Path | None  # folder


def splat(options: Namespace) -> int:
    """Runs the command; returns its exit code: 1 if a mesh failed.

    Raises:
        UsageError: an argument is wrong; nothing is fitted then.
    """
    found = _found(options.meshes)
    several = len(options.meshes) > 1 or options.meshes[0].is_dir()
    targets = _targets([file for file, _ in found], options, several)
    given = {name: getattr(options, name) for name in ("gaussians", "steps", "pixels", "seed")}
    config = settings(options.preset, **given)
    jobs = [
        (ToFit(config, file, options.up_axis, root), target)
        for (file, root), target in zip(found, targets, strict=True)
    ]
    failed = 0
    for target, result in _several(jobs, options.threads) if len(jobs) > 1 else _one(*jobs[0]):
        with tqdm.external_write_mode():  # the bar steps aside
            if isinstance(result, str):
                failed += 1
                log.error("clipgs splat: %s: %s", target.mesh, result.removeprefix(f"{ObjectError.__name__}: "))
            else:
                sys.stdout.write(_line(target, result))
                sys.stdout.flush()
    if failed and several:
        log.error("clipgs splat: %d of %d meshes failed", failed, len(jobs))
    if failed < len(jobs):
        seconds = time.time() - psutil.Process().create_time()  # since the command was typed
        sys.stdout.write(f"{counted(len(jobs) - failed, 'splat')} in {seconds:.1f} s\n")
    return 1 if failed else 0


def _line(target: Target, row: Row) -> str:
    text = f"{target.file}: {row['psnr']:.1f} dB on held-out views, {row['gaussians']:,} Gaussians"
    if target.picture:
        text += f", picture {target.picture}"
    if row["note"]:
        text += f"; {row['note']}"
    least = Fit().min_psnr
    return text + (f"; a run of the workflow refuses less than {least:g} dB" if row["psnr"] < least else "") + "\n"


def _one(to_fit: ToFit, target: Target) -> Iterator[tuple[Target, Row | str]]:
    """In this process, with a bar over the steps."""
    progress = Progress("splat", to_fit.config.fit.steps, "step")
    try:
        result: Row | str = write(target, fit_one(to_fit, progress.step))
    except (ClipgsError, OSError):
        raise
    except Exception as error:
        result = describe_error(error)
    finally:
        progress.close(log_done=False)
    yield target, result


def _several(jobs: Sequence[tuple[ToFit, Target]], threads: int) -> Iterator[tuple[Target, Row | str]]:
    progress = Progress("splat", len(jobs))
    for index, result in fit_many(jobs, threads, write):
        progress.step(ok=not isinstance(result, str))
        yield jobs[index][1], result
    progress.close(log_done=False)


# --- what is asked for -----------------------------------------------------------------------------------------------


def _found(given: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """Each mesh file once, with the folder that the user named it by, if any. Splats in folders are no meshes."""
    found: dict[Path, tuple[Path, Path | None]] = {}
    for path in given:
        files: list[tuple[Path, Path | None]] = [(path, None)]
        if path.is_dir():
            source = FolderSource(check({"catalog": {"folder": {"path": str(path)}}}))
            files = [(path / locator, path) for locator in source.locators() if not is_splat(path / locator)]
            if not files:
                raise UsageError(f"{path} holds splats, and no mesh")
        for file, root in files:
            found.setdefault(file.resolve(), (file, root))
    return list(found.values())


def _targets(files: Sequence[Path], options: Namespace, several: bool) -> list[Target]:
    """Where each splat goes.

    Raises:
        UsageError: it cannot go there.
    """
    folder, name, kind = _place(options.to, options.format, len(files) if several else None)
    _writable(folder, "-o", made=name is None)
    if options.views_to:
        _writable(options.views_to, "--views-to", made=True)
    meshes = {file.resolve() for file in files}
    targets = []
    for file, own in zip(files, _names(files), strict=True):
        splat = folder / (name or own + FORMATS[kind][0])
        if splat.resolve() in meshes:
            raise UsageError(f"the splat would replace the mesh {splat}: name another file or folder by -o")
        if splat.is_dir() or (splat.exists() and kind != "splat" and not is_splat(splat)):
            raise UsageError(f"{splat} is there already, and is no splat: name another file or folder by -o")
        picture = _picture_of(splat) if options.picture else None
        drawn = options.views_to / own if options.views_to and several else options.views_to
        targets.append(Target(str(file), splat, kind, picture, drawn))
    return targets


def _place(given: str | None, format: str | None, meshes: int | None) -> tuple[Path, str | None, str]:
    """Folder, name (None: that of the mesh) and format of what is written.

    Args:
        given: by -o; a folder if it is one, ends with a slash or has no suffix.
        meshes: how many, where the user named several or a folder of them.
    """
    if given is None:
        return Path() if meshes is None else _FOLDER, None, format or "ply"
    path = Path(given)
    if path.is_dir() or given.endswith("/") or not path.suffix:
        return path, None, format or "ply"
    of_suffix = OF_SUFFIX.get(path.suffix.lower())
    if meshes is not None:
        if of_suffix:
            raise UsageError(f"{counted(meshes, 'splat')} cannot go into the one file {path}: name a folder by -o")
        return path, None, format or "ply"
    if format and of_suffix not in (None, format):
        raise UsageError(f"-o {path} and --format {format} contradict each other: leave one out")
    return path.parent, path.name, format or format_of(path)


def _writable(folder: Path, flag: str, *, made: bool) -> None:
    """Raises UsageError if files cannot be written into a folder; with `made` it is made in one that is there."""
    there = folder.absolute().parent if made and not folder.exists() else folder
    if not there.exists():
        raise UsageError(f"{flag}: there is no folder {there}: make it, or name another")
    if reason := unwritable(folder):
        raise UsageError(f"{flag}: {reason}: name another folder")


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each file, without a suffix: its own or, where files share it, also that of the format or folder."""
    ways: list[Callable[[Path], str]] = [
        lambda file: file.stem,
        lambda file: f"{file.stem}-{file.suffix[1:]}",
        lambda file: f"{file.absolute().parent.name}-{file.stem}",
        lambda file: f"{file.absolute().parent.name}-{file.stem}-{file.suffix[1:]}",
    ]
    named: dict[int, str] = {}
    for way in ways:
        taken = {name.casefold() for name in named.values()}  # some disks do not tell cases apart
        rest = {i: way(file) for i, file in enumerate(files) if i not in named}
        count = Counter(name.casefold() for name in rest.values())
        named |= {i: name for i, name in rest.items() if count[name.casefold()] == 1 and name.casefold() not in taken}
    for i, file in enumerate(files):
        taken = {name.casefold() for name in named.values()}
        tries = (f"{file.stem}-{number}" for number in itertools.count(1))
        named.setdefault(i, next(name for name in tries if name.casefold() not in taken))
    return [named[i] for i in range(len(files))]


def _picture_of(splat: Path) -> Path:
    """Where the picture beside a splat goes: never over a picture of another program, such as the mesh's texture."""
    beside = splat.with_suffix(".png")
    if beside.exists():
        with beside.open("rb") as file:
            if _SOFTWARE.encode() not in file.read(_HEAD_BYTES):
                return beside.with_stem(f"{beside.stem}-splat")
    return beside


# --- what is written -------------------------------------------------------------------------------------------------


def write(target: Target, fitted: FittedMesh) -> Row:
    """Writes the files of one splat. Returns its PSNR and the number of its Gaussians."""
    if target.views:
        for name, data in views.files(*(tensor.numpy() for tensor in vars(fitted.views).values())):
            with whole(target.views / name) as temporary:
                temporary.write_bytes(data)
    save(fitted.gaussians, target.file, target.kind)
    if target.picture:
        about = PngInfo()
        about.add_text("Software", _SOFTWARE)
        with whole(target.picture) as temporary:
            sheet(Path(target.mesh).name, fitted).save(temporary, "PNG", pnginfo=about)
    return {"psnr": fitted.psnr, "gaussians": len(fitted.gaussians), "note": fitted.note}


def sheet(title: str, fitted: FittedMesh) -> Image.Image:
    """The mesh from four sides, and its splat below."""
    chosen = [showing(fitted.views.viewmats.numpy(), direction) for direction in _DIRECTIONS]
    seen = fitted.views[chosen]
    rgba = seen.rgba.float() / 255
    meshes = ((rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]) * 255).round().byte()
    splats = render(fitted.gaussians, seen.viewmats, seen.Ks, rgba.shape[1])
    small, large = font(13), font(20, bold=True)
    step = _PIXELS + _GAP
    width, height = 2 * _MARGIN + len(chosen) * step - _GAP, _HEADING + 2 * step - _GAP + _MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, 16), "".join(wrap(title, large, width - 2 * _MARGIN, 1)), TEXT, large)
    text = f"Above the mesh, below its splat: {fitted.psnr:.1f} dB, {len(fitted.gaussians):,} Gaussians"
    draw.text((_MARGIN, 48), text, FAINT, small)
    for column, pair in enumerate(zip(meshes.numpy(), splats.numpy(), strict=True)):
        box, x = box_of(*pair), _MARGIN + column * step
        for y, picture in zip((_HEADING, _HEADING + step), pair, strict=True):
            shown = Image.fromarray(picture).resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC, box)
            canvas.paste(shown, (x, y))
            draw.rectangle((x, y, x + _PIXELS - 1, y + _PIXELS - 1), outline=FRAME)
    return canvas
