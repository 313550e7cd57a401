"""From whatever was uploaded to JPEGs of ours: checked, decoded, turned upright, re-encoded, without its metadata."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageCms, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 40_000_000
MIN_SIDE = 64
FULL_SIDE, THUMB_SIDE = 1440, 480
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class BadImageError(ValueError):
    """What was uploaded is no photo we take; the message is for the person who sent it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """``files`` by size, each a JPEG; width and height of the full one, in pixels."""

    files: dict[str, bytes]
    width: int
    height: int


def prepare(upload: IO[bytes]) -> Prepared:
    """The photo in *upload*. Raises BadImageError."""
    data = upload.read()
    _check(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            opened.draft("RGB", (FULL_SIDE, FULL_SIDE))  # a large JPEG is decoded at half or a quarter of its size
            opened.load()
            image = _plain(ImageOps.exif_transpose(opened))
    except Exception as exc:  # decoders raise whatever they like
        raise BadImageError("This photo is damaged and cannot be read.") from exc
    image.thumbnail((FULL_SIDE, FULL_SIDE), Image.Resampling.LANCZOS)
    thumb = ImageOps.fit(image, (THUMB_SIDE, THUMB_SIDE), Image.Resampling.LANCZOS)
    return Prepared({"full": _jpeg(image), "thumb": _jpeg(thumb)}, image.width, image.height)


def _check(data: bytes) -> None:
    """Look at the header only: nothing is decoded that could be too large."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            opened.verify()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError("This photo has too many pixels. 40 million is the most we take.") from None
    except Exception as exc:
        raise BadImageError("This is not a photo we can read. Use a JPEG, PNG, WebP or GIF file.") from exc
    if width * height > MAX_PIXELS:
        raise BadImageError("This photo has too many pixels. 40 million is the most we take.")
    if min(width, height) < MIN_SIDE:
        raise BadImageError(f"This photo is too small. Each side needs at least {MIN_SIDE} pixels.")


def _plain(image: Image.Image) -> Image.Image:
    """*image* in sRGB, what is transparent on white, and without anything but its pixels."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in {"RGB", "CMYK", "L"}:
        try:
            srgb = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that makes no sense: the colours as they are
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    plain = Image.new("RGB", image.size)
    plain.paste(image.convert("RGB"))
    return plain


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=84, optimize=True, progressive=True)
    return out.getvalue()
