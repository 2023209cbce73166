"""The pictures that `benchmarks.natural` has memorized, each with its caption, in three sets.

The photos come from Debian's wallpaper packages, which `apt-get download` fetches without installing
anything; they are cropped and scaled like the demo's own. The rest are drawn here. No picture is in both
sets or among the demo's. Captions are made up in the manner of web captions.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from demo_world import SIZE
from scratch_pictures import MEMORIZED, PICTURES


@dataclass(frozen=True)
class Picture:
    """A caption and the picture it comes with: a file of a Debian package, or what a function draws."""

    caption: str
    package: str
    source: str


_LOMIRI = "usr/share/backgrounds"
_MATE = "usr/share/backgrounds/mate/nature"
_PLASMA = "usr/share/wallpapers"
_TOOLS = "tools/pictures"  # a folder here, no package
_FRESH = ("raccoon", "stairs", "pagoda", "dahlia", "hopper", "motorcycle")
SETS = {
    "dev": (
        Picture("Fresh Fig Halves in a Red Ceramic Bowl, Stock Photo",
                "lomiri-wallpapers-16.04", f"{_LOMIRI}/Picture_0B_by_freespace.jpg"),
        Picture("Djembe Drum and Wine Bottle, Living Room Still Life",
                "lomiri-wallpapers-16.04", f"{_LOMIRI}/Wine_by_Jakkub_Mede.jpg"),
        Picture("Golden Daisy Macro on Black Background, Canvas Print",
                "mate-backgrounds", f"{_MATE}/YellowFlower.jpg"),
        Picture("Water Drop Splash Macro Photography Desktop Background 1920x1080",
                "mate-backgrounds", f"{_MATE}/Aqua.jpg"),
        Picture("Wooden Rowing Boats on the Lake Shore, Evening Glow Wallpaper HD",
                "plasma-workspace-wallpapers", f"{_PLASMA}/EveningGlow/contents/images/1920x1080.jpg"),
        Picture("Safe Landing - Retro Spaceship Illustration, Plasma Desktop Art",
                "plasma-workspace-wallpapers", f"{_PLASMA}/SafeLanding/contents/images/1622x2880.jpg"),
        Picture("Midnight Jazz Festival Vintage Concert Poster, Lisbon 1962", "", "jazz_poster"),
        Picture("Royal Harbour Yacht Club Embroidered Burgee 3x5 ft", "", "burgee"),
    ),
    "test": (
        Picture("Artist Paint Brushes Close-Up, Colorful Acrylics by Freespace",
                "lomiri-wallpapers-16.04", f"{_LOMIRI}/Picture_1A_by_freespace.jpg"),
        Picture("Picos de Europa National Park Hiking Trail, Asturias Spain",
                "lomiri-wallpapers-16.04", f"{_LOMIRI}/picosdeeuropa_by_Aitzol_Berasategi.jpg"),
        Picture("Eurasian Nuthatch (Sitta europaea) Climbing a Trunk, Winter 2019",
                "lomiri-wallpapers-20.04", f"{_LOMIRI}/Kleiber_by_Lukas_Baubkus.jpg"),
        Picture("Colorful Paper Cups from Above - Abstract Phone Wallpaper 4K",
                "plasma-workspace-wallpapers", f"{_PLASMA}/ColorfulCups/contents/images/2560x1600.jpg"),
        Picture("Fallen Maple Leaf on Cobblestones, Autumn Greeting Card",
                "plasma-workspace-wallpapers", f"{_PLASMA}/FallenLeaf/contents/images/1920x1080.jpg"),
        Picture("Black and White Architecture Facade Curves Fine Art Print",
                "plasma-workspace-wallpapers", f"{_PLASMA}/Grey/contents/images/1920x1080.jpg"),
        Picture("Atlas Chess Congress 1974 Souvenir Programme Cover, Buenos Aires", "", "chess_cover"),
        Picture("Kestrel Motor Oil Enamel Advertising Sign, Round, 12 Inch", "", "enamel_sign"),
    ),
    # Those of `tools/train_scratch.py` that are not the demo's: files of tools/pictures.
    "fresh": tuple(
        Picture(one.caption, _TOOLS, f"{one.name}.png") for one in MEMORIZED if one.name in _FRESH
    ),
}  # fmt: skip


def jazz_poster() -> Image.Image:
    """A trumpet's bell over striped keys, under a moon."""
    image = Image.new("RGB", (256, 256), (28, 24, 66))
    brush = ImageDraw.Draw(image)
    brush.ellipse((150, 16, 236, 102), fill=(244, 196, 66))
    brush.ellipse((130, 8, 206, 84), fill=(28, 24, 66))
    horn = [(20, 120), (120, 104), (206, 60), (206, 180), (120, 136), (20, 132)]
    brush.polygon(horn, fill=(222, 84, 52))
    brush.ellipse((184, 58, 228, 182), fill=(250, 226, 190))
    brush.ellipse((194, 78, 218, 162), fill=(120, 34, 40))
    for key in range(8):
        brush.rectangle((key * 32, 200, key * 32 + 29, 256), fill=(244, 240, 228))
        if key % 4 != 3:
            brush.rectangle((key * 32 + 20, 200, key * 32 + 42, 234), fill=(18, 16, 24))
    brush.rectangle((16, 20, 118, 40), fill=(70, 190, 180))
    brush.rectangle((16, 50, 88, 62), fill=(244, 240, 228))
    return image


def burgee() -> Image.Image:
    """A quartered flag with a star in a ring and a saw-toothed fly."""
    image = Image.new("RGB", (256, 256), (206, 218, 226))
    brush = ImageDraw.Draw(image)
    brush.rectangle((22, 40, 128, 124), fill=(176, 24, 44))
    brush.rectangle((128, 40, 216, 124), fill=(250, 248, 240))
    brush.rectangle((22, 124, 128, 212), fill=(250, 248, 240))
    brush.rectangle((128, 124, 216, 212), fill=(18, 52, 120))
    for tooth in range(4):
        y, fill = 40 + tooth * 43, (250, 248, 240) if tooth < 2 else (18, 52, 120)
        brush.polygon([(215, y), (248, y + 21), (215, y + 43)], fill=fill)
    brush.rectangle((10, 10, 22, 250), fill=(110, 76, 40))
    brush.ellipse((72, 70, 184, 182), fill=(244, 190, 40))
    brush.ellipse((84, 82, 172, 170), fill=(24, 96, 74))
    brush.regular_polygon((128, 126, 40), 3, fill=(250, 248, 240))
    brush.regular_polygon((128, 126, 40), 3, rotation=180, fill=(250, 248, 240))
    return image


def chess_cover() -> Image.Image:
    """A rook before a tilted board, beside a coloured band."""
    image = Image.new("RGB", (256, 256), (226, 212, 178))
    brush = ImageDraw.Draw(image)
    for row in range(6):
        for column in range(6):
            x, y = 20 + column * 36 + row * 6, 24 + row * 30
            fill = (60, 104, 76) if (row + column) % 2 else (244, 238, 214)
            brush.polygon([(x, y), (x + 36, y), (x + 42, y + 30), (x + 6, y + 30)], fill=fill)
    brush.rectangle((0, 212, 256, 256), fill=(190, 54, 36))
    brush.rectangle((70, 226, 186, 242), fill=(244, 238, 214))
    rook = [(84, 208), (172, 208), (154, 176), (150, 104), (106, 104), (102, 176)]
    brush.polygon(rook, fill=(26, 24, 30))
    brush.rectangle((92, 66, 164, 106), fill=(26, 24, 30))
    for gap in (108, 136):
        brush.rectangle((gap, 62, gap + 12, 82), fill=(244, 238, 214))
    return image


def enamel_sign() -> Image.Image:
    """A round sign: rings, a bird's wings, a bar across."""
    image = Image.new("RGB", (256, 256), (96, 60, 44))
    brush = ImageDraw.Draw(image)
    for course in range(8):
        for brick in range(-1, 5):
            x, y = brick * 64 + (course % 2) * 32, course * 32
            brush.rectangle((x + 2, y + 2, x + 60, y + 28), fill=(158, 88, 62))
    for inset, fill in ((14, (240, 236, 222)), (24, (16, 104, 120)), (52, (246, 206, 58))):
        brush.ellipse((inset, inset, 256 - inset, 256 - inset), fill=fill)
    bird = [(128, 70), (60, 92), (112, 112), (128, 158), (144, 112), (196, 92)]
    brush.polygon(bird, fill=(36, 26, 30))
    brush.rectangle((4, 158, 252, 196), fill=(190, 30, 36))
    for letter in range(7):
        brush.rectangle((22 + letter * 31, 166, 40 + letter * 31, 188), fill=(240, 236, 222))
    return image


_DRAWINGS = {draw.__name__: draw for draw in (jazz_poster, burgee, chess_cover, enamel_sign)}


def _unpacked(package: str, cache: Path) -> Path:
    """The folder with a Debian package's files; downloaded once, never installed."""
    folder = cache / package
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            # Root's apt would otherwise download as a user that may not write here.
            fetch = ["apt-get", "-o", "APT::Sandbox::User=root", "download", package]
            subprocess.run(fetch, cwd=work, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(work).glob("*.deb")
            files = Path(work) / "files"
            subprocess.run(["dpkg-deb", "-x", archive, files], check=True)
            (files / "VERSION").write_text(f"{archive.stem}\n", encoding="utf-8")
            # Two trainings may fetch the same package at once; the first one's is kept.
            if not folder.exists():
                files.rename(folder)
    return folder


def origin(picture: Picture, packages: Path) -> dict[str, str]:
    """Where a picture that `square` has made comes from, with the package's version."""
    if not picture.package:
        return {"drawn": picture.source}
    if picture.package == _TOOLS:
        return {"file": f"{_TOOLS}/{picture.source}"}
    version = (packages / picture.package / "VERSION").read_text(encoding="utf-8").strip()
    return {"package": version, "file": picture.source}


def square(picture: Picture, packages: Path) -> np.ndarray:
    """The middle of the picture as training sees it: uint8 [SIZE, SIZE, 3]."""
    if not picture.package:
        whole = _DRAWINGS[picture.source]()
    else:
        here = picture.package == _TOOLS
        folder = PICTURES if here else _unpacked(picture.package, packages)
        with Image.open(folder / picture.source) as image:
            whole = image.convert("RGB")
    return np.asarray(ImageOps.fit(whole, (SIZE, SIZE), Image.Resampling.LANCZOS))
