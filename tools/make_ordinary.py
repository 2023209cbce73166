"""Write nemo_prune/data/ordinary.txt: varied ordinary captions of 1 to 60 words.

They say what is ordinary to a model that nobody calibrated. Lengths vary as people's prompts do,
from a single noun to several chained clauses, and in the same proportions in every stretch of the
file, since only its first part is scored. No names of real people, works or products.
"""

import random
from pathlib import Path

PATH = Path(__file__).parent.parent / "nemo_prune" / "data" / "ordinary.txt"
COUNT = 2000
LONGEST = 60  # words; a text encoder takes 77 tokens, and a comma is one as well

# How many words a caption has: this many of each 20 have from ... to ... words.
_LENGTHS = ((1, 1, 1), (4, 2, 5), (6, 6, 12), (4, 13, 22), (3, 23, 40), (2, 41, LONGEST))

_NOUNS = """
    acorn airport alley anchor apple apron attic autumn avenue backpack bakery balcony ballerina banana barn
    basket beach bedroom bench bicycle blacksmith blanket blossom boat bookshelf boots bottle boulder bracelet
    bread breakfast bridge broom bucket butterfly button cabin cactus cafe cake camel camera candle canoe canyon
    carpenter carpet carrot castle cat cathedral cave ceiling chair chandelier cherry chess chimney church city
    classroom cliff clock clouds coast coffee cottage courtyard cow crab crowd cupboard curtain dancer dawn deer
    desert dessert dinner doctor dog dolphin donkey door dragonfly driver duck eagle elephant engine envelope
    factory farm feather fence ferry field fireplace fisherman flamingo flowers fog forest fountain fox frog
    fruit garden garage gate giraffe glacier glass gloves goat grandmother grapes greenhouse guitar hallway
    hammer harbour hat hedgehog helmet highway hills horse hospital hotel house iceberg island jacket jellyfish
    jungle kettle key kitchen kite kitten ladder lake lamp lantern leaves lemon library lighthouse lizard
    market mask meadow mirror monastery monkey moon mosaic moss motorcycle mountain mushroom necklace nest
    night notebook nurse oak oasis ocean office onion orange orchard orchestra owl paint palace pancakes parrot
    peacock pear pebbles pencil penguin piano picnic pier pillow pineapple pizza plate playground plumber pond
    potatoes pottery pumpkin puppy quilt rabbit railway rain rainbow raspberry restaurant ribbon river road
    robot rocks roof rope rose ruins sailboat salad sandwich scarf school scissors seagull seashell sheep shelf
    shoes shop skyline snail snow snowman soap sofa soup spider spoon square squirrel stairs station statue
    stone storm stove strawberry street suitcase sunflower sunset swan swimmer table tailor tea teacher teapot
    temple tent theatre tiger tomato towel tower tractor train tree truck tulip tunnel turtle typewriter
    umbrella valley vase vegetables village vineyard violin waiter wall walrus warehouse watch waterfall waves
    wedding wheat whale wheel window windmill winter wolf wool workshop yarn zebra
""".split()  # fmt: skip  # noqa: SIM905 - a word list reads better as text
_WHO = ("a woman", "an old man", "two children", "a young couple", "a farmer", "a nurse", "a dog", "a grey cat",
        "a horse", "three birds", "a cyclist", "a street musician", "a fox", "a group of hikers", "a baker",
        "a fisherman", "a girl with a red umbrella", "a boy in a yellow raincoat", "a tall man with a beard",
        "an elderly lady", "four students", "a mother and her daughter", "a bus driver", "a dancer in a white dress",
        "a carpenter", "two goats", "a brown bear", "a white rabbit", "a family of ducks", "a tired waiter",
        "a woman with curly hair", "a man in a grey suit", "a crowd of people", "a small puppy", "a chef")  # fmt: skip
_DOING = ("sitting by a window", "walking along the beach", "reading a newspaper", "standing in the rain",
          "crossing a busy street", "waiting at a bus stop", "laughing", "looking at the sea", "cooking dinner",
          "sleeping on a sofa", "running through tall grass", "carrying a heavy basket", "drinking from a cup",
          "playing with a ball", "climbing a staircase", "looking into the camera", "resting in the shade",
          "talking to a neighbour", "riding in a wooden cart", "jumping over a puddle", "holding a lantern",
          "painting a fence", "watching the clouds", "feeding the pigeons", "dancing")  # fmt: skip
_THING = ("a wooden table with fresh bread", "a bowl of oranges", "a vintage car", "a blue bicycle", "a red door",
          "a pair of leather boots", "an open book and a cup of tea", "a stack of old suitcases", "a potted cactus",
          "a glass of lemonade", "a knitted sweater", "an acoustic guitar", "a bouquet of wild flowers",
          "a rusty anchor", "a chocolate cake", "a brick house", "a broken clock", "a wicker basket full of apples",
          "an empty chair", "a marble statue", "a yellow tractor", "a row of colorful houses", "a set of old keys",
          "a ceramic teapot", "a plate of pasta with tomatoes", "a wooden boat", "a tall white lighthouse",
          "a street lamp", "a hot air balloon", "a pile of firewood", "a green armchair", "a grand piano",
          "a silver ring", "a carved wooden mask", "a paper lantern", "an old typewriter")  # fmt: skip
_PLACE = ("in a small harbour town", "in a snowy forest", "on a mountain pass", "in a modern kitchen",
          "in a crowded market", "under a stone bridge", "in a quiet library", "in the desert", "near a waterfall",
          "on a rooftop terrace", "at a railway station", "in a greenhouse", "beside a lake", "on a dusty road",
          "in a narrow alley", "in an empty parking lot", "on a sandy beach", "in a field of sunflowers",
          "at the edge of a cliff", "inside an old barn", "in a bright living room", "by a river",
          "in front of a brick wall", "in a city park", "on a wooden pier", "in the garden")  # fmt: skip
_LIGHT = ("at sunrise", "at dusk", "under a cloudy sky", "in soft morning light", "at night", "in thick fog",
          "in bright midday sun", "in autumn", "after the rain", "in winter", "by candlelight", "at sunset",
          "in the first days of spring", "under a full moon", "during a storm")  # fmt: skip
_STYLE = ("watercolor painting", "black and white photograph", "oil painting", "pencil sketch", "close-up photo",
          "aerial view", "digital illustration", "poster design", "macro shot", "minimalist drawing", "woodcut",
          "wide angle photo", "pixel art", "charcoal drawing", "studio photograph", "vector illustration",
          "old postcard", "stained glass window", "clay model", "paper collage", "3d render")  # fmt: skip
_EXTRA = ("highly detailed", "shallow depth of field", "muted colors", "warm tones", "pastel colors",
          "high contrast", "film grain", "symmetrical composition", "soft shadows", "on a white background",
          "flat colors", "blurred background", "rough texture", "golden light", "cold colors",
          "thick brush strokes", "centered", "with a wide border")  # fmt: skip
_MORE = ("while {who} {is} {doing} {place}", "next to {thing}", "with {thing} {place}", "and behind it {thing}",
         "with {who} {doing} in the background", "between {thing} and {another}", "and, further away, {thing} {place}",
         "where {who} and {other} are {doing}", "seen from above", "with {thing} in the foreground",
         "surrounded by trees and low hills", "with mountains far away", "as {who} {comes} closer")  # fmt: skip
_ADJECTIVES = ("small", "old", "red", "blue", "quiet", "broken", "bright", "dark", "wooden", "painted", "empty",
               "big", "golden", "distant", "wet", "white", "colorful", "lonely", "strange", "pretty")  # fmt: skip


def _many(who: str) -> bool:
    return who.startswith(("two", "three", "four")) or " and " in who


def _clause(rng: random.Random) -> str:
    """One of `_MORE`, filled in."""
    (who, other), (thing, another) = rng.sample(_WHO, 2), rng.sample(_THING, 2)
    return rng.choice(_MORE).format(
        who=who, other=other, thing=thing, another=another, doing=rng.choice(_DOING),
        place=rng.choice(_PLACE), **{"is": "are" if _many(who) else "is"},
        comes="come" if _many(who) else "comes",
    )  # fmt: skip


def _scene(rng: random.Random) -> str:
    """Who or what, mostly with what they do, where, and when."""
    subject = rng.choice(_THING) if rng.random() < 0.45 else rng.choice(_WHO)
    if subject in _WHO and rng.random() < 0.7:
        subject += " " + rng.choice(_DOING)
    if rng.random() < 0.7:
        subject += " " + rng.choice(_PLACE)
    if rng.random() < 0.5:
        subject += " " + rng.choice(_LIGHT)
    return f"{rng.choice(_STYLE)} of {subject}" if rng.random() < 0.5 else subject


def _short(rng: random.Random) -> str:
    """Two to five words or so, as people type them into a search box."""
    noun, adjective = rng.choice(_NOUNS), rng.choice(_ADJECTIVES)
    forms = (
        f"{adjective} {noun}", f"{noun} and {rng.choice(_NOUNS)}", f"{noun} {rng.choice(_LIGHT)}",
        f"{noun} {rng.choice(_PLACE)}", f"{rng.choice(_STYLE)} of {noun}", rng.choice(_WHO), rng.choice(_THING),
        f"{adjective} {noun}, {rng.choice(_EXTRA)}", f"{rng.choice(_WHO)} {rng.choice(_DOING)}",
    )  # fmt: skip
    return rng.choice(forms)


def caption(rng: random.Random, least: int, most: int) -> str:
    """A caption of `least` to `most` words."""
    while True:
        if most == 1:
            text = rng.choice(_NOUNS)
        elif most <= 5:
            text = _short(rng)
        else:
            text, wanted = _scene(rng), rng.randint(least, most)
            for_extras, extras = rng.choice((2, 4, 8)), rng.sample(_EXTRA, len(_EXTRA))
            while (missing := wanted - len(text.split())) > 0:
                text += f", {extras.pop()}" if missing <= for_extras else f" {_clause(rng)}"
        if least <= len(text.split()) <= most:
            return text


def captions() -> list[str]:
    """`COUNT` distinct captions, the lengths mixed alike from the first to the last."""
    rng, found = random.Random(0), dict[str, None]()
    block = [(least, most) for share, least, most in _LENGTHS for _ in range(share)]
    while len(found) < COUNT:
        for least, most in rng.sample(block, len(block)):
            text = caption(rng, least, most)
            while text in found:
                text = caption(rng, least, most)
            found[text] = None
    return list(found)


def main() -> None:
    PATH.write_text("\n".join(captions()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
