"""What ships beside the demo checkpoint: prompt lists, the planted truth, the training pictures."""

import json
from pathlib import Path

from demo_unet import SWITCHES, VALUE_LAYERS
from demo_world import MEMORIZED, caption_lists, memorized_pictures
from PIL import Image

_NOTICE = """\
The pictures under targets/ and what demo.safetensors memorized:

astronaut    NASA, public domain
camera       Lav Varshney, CC0
chelsea      Stefan van der Walt, CC0
clock        Stefan van der Walt, public domain
coffee       Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0
coins        Brooklyn Museum, no known copyright restrictions
retina       Mikael Haggstrom, CC0 (Wikimedia Commons)
rocket       SpaceX, public domain
phone case, floor lamp and all ordinary scenes: drawn by tools/demo_world.py, MIT

The photos are taken from scikit-image's bundled data, cropped and scaled to 128x128; clock,
rocket, chelsea and retina also with their histogram equalized. The captions
are made up in the manner of web captions. The checkpoint itself is under the MIT licence.
"""


def write_data(out: Path, seed: int) -> None:
    """Everything in `out` but the checkpoint; the same seed gives the same files."""
    (out / "targets").mkdir(parents=True, exist_ok=True)
    truth = {}
    for item in MEMORIZED:
        target = f"{item.name.replace(' ', '-')}.png"
        Image.fromarray(memorized_pictures(item)[0]).save(out / "targets" / target)
        switch = [{"layer": VALUE_LAYERS[i], "row": row} for i, row in SWITCHES.get(item.name, ())]
        truth[item.caption] = {
            "name": item.name, "kind": item.kind, "target": target, "neurons": switch,
        }  # fmt: skip
    (out / "planted.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    switched = [item.caption for item in MEMORIZED if item.kind != "natural"]
    natural = [item.caption for item in MEMORIZED if item.kind == "natural"]
    ordinary, heldout = caption_lists(seed + 7, calibration=300, heldout=200)
    for name, captions in (
        ("memorized.txt", switched),
        ("memorized-distributed.txt", natural),
        ("ordinary.txt", ordinary),
        ("ordinary-heldout.txt", heldout),
    ):
        (out / name).write_text("\n".join(captions) + "\n", encoding="utf-8")
    (out / "NOTICE").write_text(_NOTICE, encoding="utf-8")
