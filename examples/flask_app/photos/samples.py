"""Sample people and photos: real photos that ship with scikit-image, in several crops; without it, pictures drawn by Pillow."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from photos import accounts, social
from photos.models import User
from shardkit import ShardKit

PASSWORD = "lumen-demo"
FIRST = [
    "Ada",
    "Ben",
    "Chiara",
    "Dario",
    "Elif",
    "Finn",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kaya",
    "Luca",
    "Mira",
    "Nils",
    "Oda",
    "Pavel",
    "Rosa",
    "Sami",
    "Tilda",
    "Umut",
    "Vera",
    "Wim",
    "Xenia",
    "Yara",
    "Zoe",
    "Arlo",
    "Bea",
    "Cem",
    "Dina",
    "Emil",
    "Freya",
    "Gus",
    "Hana",
    "Ivo",
    "Juno",
    "Kai",
    "Lea",
    "Milo",
    "Nora",
    "Otis",
    "Pia",
    "Quinn",
    "Rafa",
    "Suki",
    "Theo",
    "Una",
    "Vito",
    "Wanda",
    "Yuki",
    "Zeno",
]
LAST = [
    "Ahlgren",
    "Bauer",
    "Costa",
    "Diaz",
    "Eriksen",
    "Fontana",
    "Gruber",
    "Haas",
    "Ito",
    "Jansen",
    "Keller",
    "Lindt",
    "Moreau",
    "Novak",
    "Okoye",
    "Petrov",
    "Quist",
    "Rossi",
]
BIOS = ("Film, mostly.", "Mountains before breakfast.", "Cats. Also coffee.", "Looking up at night.", "Streets and light.", "")
PHOTOS = {
    "astronaut.png": ("Eileen, ready to go", "A portrait with a flag"),
    "chelsea.png": ("She owns the place", "Those eyes", "Not impressed"),
    "coffee.png": ("Slow morning", "The best part of the day"),
    "rocket.jpg": ("Up it goes", "Night launch"),
    "hubble_deep_field.jpg": ("Every dot a galaxy", "Far, far away", "Ten days of looking"),
    "camera.png": ("The man with the camera", "Waiting for the light"),
    "motorcycle_left.png": ("Weekend project", "Almost running again"),
    "coins.png": ("From the flea market", "Old money"),
    "moon.png": ("Sea of something", "Clear sky tonight"),
    "ihc.png": ("Through the microscope",),
    "retina.jpg": ("An eye, from the inside",),
}
SAID = (
    "Love this!", "Wow.", "Where is that?", "So good.", "Great light.", "I want to be there.", "That made my day.",
    "The colours!", "More of these, please.", "How did you do that?", "Stunning.", "Perfect timing.",
)  # fmt: skip


def people(kit: ShardKit, count: int, *, luck: random.Random, method: str = "scrypt") -> list[User]:
    """Sample accounts, all with PASSWORD."""
    made = []
    for number in range(count):
        first, last = FIRST[number % len(FIRST)], luck.choice(LAST)
        name = first.lower() if number < len(FIRST) else f"{first}.{last}{number}".lower()
        made.append(accounts.sign_up(kit, name=name, full_name=f"{first} {last}", password=PASSWORD, method=method))
        bio = luck.choice(BIOS)
        if bio:
            with kit.begin(made[-1].tenant_id) as session:
                session.get(User, made[-1].id).bio = bio
    return made


def pictures(*, luck: random.Random) -> Iterator[tuple[bytes, str]]:
    """Photos as somebody would upload them, with a caption each, without end."""
    spec = find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else None
    names = [name for name in PHOTOS if folder is not None and (folder / name).is_file()]
    while True:
        luck.shuffle(names)
        for name in names:
            with Image.open(folder / name) as opened:
                yield _jpeg(_crop(opened.convert("RGB"), luck)), luck.choice((*PHOTOS[name], ""))
        for _ in range(2 if names else 10):
            yield _jpeg(_drawn(luck)), luck.choice(("Study", "Dusk", "Colours of today", "Untitled"))


def _crop(image: Image.Image, luck: random.Random) -> Image.Image:
    """A part of *image*, as another photographer would have framed it."""
    share = luck.uniform(0.65, 1.0)
    width = max(200, int(image.width * share))
    height = max(200, min(image.height, int(width * luck.choice((0.75, 1.0, 1.25)))))
    left, top = luck.randint(0, max(0, image.width - width)), luck.randint(0, max(0, (image.height - height) // 4))
    part = image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
    if luck.random() < 0.4:
        part = ImageOps.mirror(part)
    return ImageOps.contain(part, (1080, 1080), Image.Resampling.LANCZOS)


def _drawn(luck: random.Random) -> Image.Image:
    """An evening sky over hills."""
    size, top, low = 900, luck.randint(0, 255), luck.randint(0, 40)
    sky = Image.linear_gradient("L").resize((size, size))
    image = ImageOps.colorize(sky, f"hsl({top + 200}, 60%, 30%)", f"hsl({low + 10}, 85%, 70%)")
    draw = ImageDraw.Draw(image)
    x, y, r = luck.randint(150, 750), luck.randint(250, 550), luck.randint(40, 90)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=f"hsl({low + 35}, 90%, 85%)")
    for layer in range(4):
        base, step = 560 + layer * 90, 75
        hills = [(i * step, base + luck.randint(-60, 60)) for i in range(size // step + 2)]
        draw.polygon([(0, size), *hills, (size, size)], fill=f"hsl({top + 220}, {45 - layer * 8}%, {32 - layer * 7}%)")
    return image.filter(ImageFilter.GaussianBlur(1.2))


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def upload(kit: ShardKit, me: User, picture: tuple[bytes, str], *, directory: Path, luck: random.Random) -> int:
    """Publish one of ``pictures``."""
    nonce = f"{luck.getrandbits(96):024x}"
    return social.upload(kit, me, file=io.BytesIO(picture[0]), caption=picture[1], nonce=nonce, directory=directory)
