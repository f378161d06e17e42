"""Images out of rows: encoded files, or numbers. Never trusting the file: few formats, and a cap on pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from whence.tasks.base import RowProblem

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_PIXELS = 64 * 2**20
MOST_BYTES = 64 * 2**20
THUMBNAIL, COLOURS = 72, 128  # pixels of its longer side, and how many colours: a few KB


def read_image(value: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool]:
    """One image as C x H x W numbers from -1 to 1, and whether it was resized.

    Args:
        value: ``{"bytes": ...}`` as parquet files and image folders hold it; or nested lists, H x W, H x W x C or
            C x H x W: whole numbers from 0 to 255, or fractions from 0 to 1.
        shape: C, H, W that the model takes. An image of another size is scaled until it covers H x W, then cut in the
            middle, as trainers do.

    Raises:
        RowProblem: no image, a format that is not read, too many pixels, or numbers out of range.
    """
    picture = _decoded(value, shape[0]) if isinstance(value, Mapping) else _from_numbers(value, shape[0])
    channels, height, width = shape
    resized = picture.size != (width, height)
    if resized:
        picture = _covering(picture, width, height)
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1) / 127.5 - 1.0, resized


def _decoded(value: Mapping[str, Any], channels: int) -> Image.Image:
    data = value.get("bytes")
    if not isinstance(data, bytes):
        raise RowProblem("no_image", "the image is only named, its bytes are not there")
    if len(data) > MOST_BYTES:
        raise RowProblem("image_too_large", f"{len(data):,} bytes")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise RowProblem("image_too_large", f"{picture.width} x {picture.height} pixels")
        return picture.convert("L" if channels == 1 else "RGB")
    except RowProblem:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RowProblem("bad_image", f"not a readable {', '.join(FORMATS)}: {str(error)[:100]}") from error


def _from_numbers(value: Any, channels: int) -> Image.Image:
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise RowProblem("bad_image", "lists of different lengths") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[-1] != channels and pixels.shape[0] == channels:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] != channels or pixels.dtype.kind not in "uif" or not pixels.size:
        raise RowProblem("bad_image", f"an image of shape {pixels.shape}; wanted H x W x {channels} numbers")
    top = 1.0 if pixels.dtype.kind == "f" else 255
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > top:
        raise RowProblem("bad_image", "numbers out of range; wanted whole ones from 0 to 255 or fractions from 0 to 1")
    scaled = np.round(pixels * (255 / top)).astype(np.uint8)
    return Image.fromarray(scaled[..., 0] if channels == 1 else scaled)


def _covering(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, by name; links are not followed."""
    found = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.is_symlink()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def image_fields(folder: Path, path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an image folder: the file's bytes, its sub-folder as label, and what ``metadata.jsonl`` says of it."""
    name = path.relative_to(folder).as_posix()
    parent = path.parent.relative_to(folder).as_posix()
    label = {} if parent == "." else {"label": parent.rpartition("/")[2]}
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    return {"id": name, **label, **said, "image": {"bytes": data, "path": name}}


def caption_of(fields: Mapping[str, Any]) -> str:
    """The words that belong to an image, "" when there are none."""
    for name in ("text", "caption", "prompt"):
        if isinstance(fields.get(name), str):
            return fields[name]
    return ""


def shown(fields: Mapping[str, Any]) -> str:
    """What stands for an image in a list of texts."""
    caption, label, value = caption_of(fields), fields.get("label"), fields.get("image")
    named = value.get("path") if isinstance(value, Mapping) else None
    what = [caption, "" if caption or label is None else f"label {label}", str(named) if named else _size(value)]
    return " · ".join(part for part in what if part)


def thumbnail(fields: Mapping[str, Any]) -> bytes:
    """A small PNG of a row's image, drawn anew so that nothing of the file itself is kept; empty when it has none."""
    value = fields.get("image")
    if value is None:
        return b""
    try:
        picture = _decoded(value, 3) if isinstance(value, Mapping) else _from_numbers(value, _channels(value))
    except RowProblem:
        return b""
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    if picture.mode == "RGB" and picture.getcolors(COLOURS) is None:
        picture = picture.quantize(COLOURS)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _channels(value: Any) -> int:
    """Of an image given as numbers: 3 when one of the outer axes says so."""
    try:
        shape = np.shape(value)
    except ValueError:
        return 1
    return 3 if len(shape) == 3 and 3 in (shape[0], shape[2]) else 1


def _size(value: Any) -> str:
    rows = value if isinstance(value, Sequence) else ()
    return f"image of {len(rows)} x {len(rows[0]) if rows and isinstance(rows[0], Sequence) else 0}"
