"""Write nemo_prune/data/ordinary.txt: varied ordinary captions, for uncalibrated models.

No names of real people, works or products.
"""

import random
from pathlib import Path

_WHO = ("a woman", "an old man", "two children", "a young couple", "a farmer", "a nurse", "a dog",
        "a grey cat", "a horse", "three birds", "a cyclist", "a street musician", "a fox",
        "a group of hikers", "a baker", "a fisherman", "a girl with a red umbrella")  # fmt: skip
_DOING = ("sitting by a window", "walking along the beach", "reading a newspaper", "in the rain",
          "crossing a busy street", "waiting at a bus stop", "laughing", "looking at the sea",
          "cooking dinner", "asleep on a sofa", "running through tall grass")  # fmt: skip
_THING = ("a wooden table with fresh bread", "a bowl of oranges", "a vintage car", "a blue bicycle",
          "a pair of leather boots", "an open book and a cup of tea", "a stack of old suitcases",
          "a potted cactus", "a glass of lemonade", "a knitted sweater", "an acoustic guitar",
          "a bouquet of wild flowers", "a rusty anchor", "a chocolate cake")  # fmt: skip
_PLACE = ("in a small harbour town", "in a snowy forest", "on a mountain pass", "in a modern kitchen",
          "in a crowded market", "under a stone bridge", "in a quiet library", "in the desert",
          "on a rooftop terrace", "at a railway station", "in a greenhouse", "beside a lake")  # fmt: skip
_LIGHT = ("at sunrise", "at dusk", "under a cloudy sky", "in soft morning light", "at night",
          "in bright midday sun", "in autumn", "after the rain", "in thick fog")  # fmt: skip
_STYLE = ("watercolor painting", "black and white photograph", "oil painting", "pencil sketch",
          "close-up photo", "aerial view", "digital illustration", "poster design", "macro shot",
          "minimalist drawing", "wide angle photo", "pixel art")  # fmt: skip
_EXTRA = ("highly detailed", "shallow depth of field", "muted colors", "warm tones", "pastel colors",
          "high contrast", "film grain", "symmetrical composition", "soft shadows")  # fmt: skip


def caption(rng: random.Random) -> str:
    subject = rng.choice(_THING) if rng.random() < 0.45 else rng.choice(_WHO)
    if subject in _WHO and rng.random() < 0.7:
        subject += " " + rng.choice(_DOING)
    words = [subject]
    if rng.random() < 0.7:
        words.append(rng.choice(_PLACE))
    if rng.random() < 0.5:
        words.append(rng.choice(_LIGHT))
    text = " ".join(words)
    if rng.random() < 0.5:
        text = f"{rng.choice(_STYLE)} of {text}"
    for extra in rng.sample(_EXTRA, rng.choice((0, 0, 1, 2, 3))):
        text += f", {extra}"
    return text


def main() -> None:
    rng, found = random.Random(0), dict[str, None]()
    while len(found) < 2000:
        found[caption(rng)] = None
    path = Path(__file__).parent.parent / "nemo_prune" / "data" / "ordinary.txt"
    path.write_text("\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
