"""Search for files that our parser accepts and the safetensors library does not, or reads otherwise.

    python -m benchmarks.fuzz_header SECONDS [SEED]

Uses atheris (coverage guided; `pip install atheris`) where it is installed, else plain mutation.
The first difference that is not documented in `nemo_prune/header.py` ends it with the input.
"""

import contextlib
import importlib.util
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

DELIBERATE = ("twice", "without exactly", "holds no", "begin with {", "at most", " entries, far")
"""Words of the refusals that the library does not share, as `nemo_prune/header.py` lists them."""


class Disagreement(Exception):
    """What the two make of one file."""


def compare(content: bytes, path: Path) -> None:
    """Write `content` to `path` and raise Disagreement unless the two agree about it."""
    from nemo_prune.errors import CheckpointError
    from nemo_prune.files.header import read_header

    path.write_bytes(content)
    theirs = None
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, "np") as file:
        theirs = sorted(file.keys()), file.metadata() or {}
    try:
        header = read_header(path)
    except CheckpointError as error:
        if theirs is not None and not any(words in str(error) for words in DELIBERATE):
            raise Disagreement(f"refused only here: {error}") from None
        return
    if theirs != (sorted(header.tensors), header.metadata):
        raise Disagreement(f"library: {theirs}; here: {sorted(header.tensors)}, {header.metadata}")


def seeds() -> list[bytes]:
    """A few sound files to start from."""
    one = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
    two = {"dtype": "F8_E4M3", "shape": [1, 3], "data_offsets": [4, 7]}
    headers: list[dict[str, object]] = [
        {"a": one},
        {"__metadata__": {"format": "pt"}, "b": two, "a": one},
        {"__metadata__": {"\u00fc\n": "\U0001f600"}, "a": {**one, "dtype": "F32", "shape": []}},
        {"e": {"dtype": "I64", "shape": [0, 5], "data_offsets": [0, 0]}},
    ]
    found = []
    for header in headers:
        text = json.dumps(header, separators=(",", ":")).encode()
        size = 7 if "b" in header else 0 if "e" in header else 4
        found.append(struct.pack("<Q", len(text)) + text + bytes(size))
    return found


TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"9", b"-", b".", b"e", b"\\u", b"null",
          b"true", b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F4"', b"\xff",
          b"18446744073709551615", b"18446744073709551616", b" ", b"\0", b"\xed\xa0\x80"]  # fmt: skip


def mutate(content: bytes, chance: random.Random) -> bytes:
    """`content` with a few pieces cut, put in or exchanged; its length mostly made right again."""
    header, data = bytearray(content[8:]), b""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = bytearray(content[8 : 8 + length]), content[8 + length :]
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(header) + 1)
        cut = chance.choice([0, 0, 1, 1, 2, chance.randrange(12)])
        piece = chance.choice([b"", chance.choice(TOKENS), bytes([chance.randrange(256)])])
        if chance.random() < 0.1:
            first = chance.randrange(len(header) + 1)
            piece = bytes(header[first : first + chance.randrange(60)])
        header[place : place + cut] = piece
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data) + 1)] + bytes(chance.randrange(3))
    wrong = chance.choice([-1, 1, 2**63]) if chance.random() < 0.05 else 0
    return struct.pack("<Q", max(0, len(header) + wrong)) + header + data


def plain(compare_: Callable[[bytes], None], seconds: float, seed: int) -> int:
    """Mutate and compare for so many seconds; how many files it took."""
    chance, pool, count = random.Random(seed), seeds(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutate(chance.choice(pool), chance)
        compare_(content)
        if len(pool) < 2000 and chance.random() < 0.01:
            pool.append(content)  # damage on damage
        count += 1
    return count


def main() -> None:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:  # noqa: PTH112
        path = Path(name) / "m.safetensors"

        def one(content: bytes) -> None:
            try:
                compare(bytes(content), path)
            except BaseException:
                print(f"the input: {bytes(content)!r}", file=sys.stderr)
                raise

        if importlib.util.find_spec("atheris") is None:
            count = plain(one, seconds, seed)
            print(f"{count} mutated files in {seconds:.0f} s, no difference but the documented ones")
            return
        import atheris

        with atheris.instrument_imports(include=["nemo_prune", "json"]):
            import nemo_prune.files.header  # noqa: F401
        folder = Path(name) / "corpus"
        folder.mkdir()
        for number, content in enumerate(seeds()):
            (folder / str(number)).write_bytes(content)
        options = [
            f"-max_total_time={seconds:.0f}",
            f"-seed={seed + 1}",
            "-max_len=1024",
            f"-artifact_prefix={name}/",
        ]
        atheris.Setup([sys.argv[0], *options, str(folder)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
