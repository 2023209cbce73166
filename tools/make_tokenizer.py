"""Build nemo_prune/data/tokenizer from CLIP's published merge list.

    python tools/make_tokenizer.py PATH/TO/bpe_simple_vocab_16e6.txt.gz

The list ships (MIT, OpenAI) in the PyPI packages openai-clip and open-clip-torch. The vocabulary
follows from it: 256 byte symbols, the same 256 ending a word, one entry per merge, start and end.
The result has the file names that transformers' `CLIPTokenizer.from_pretrained` looks for.
"""

import argparse
import gzip
import hashlib
import json
from pathlib import Path

SOURCE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
VOCABULARY = 49_408
START, END = "<|startoftext|>", "<|endoftext|>"
DESTINATION = Path(__file__).resolve().parent.parent / "nemo_prune" / "data" / "tokenizer"


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for byte values, in the order in which CLIP numbers them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # Bytes that do not print are moved, in order, to the code points from 256 on.
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(len(others))]


def build(source: Path, destination: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    raw = source.read_bytes()
    if hashlib.sha256(raw).hexdigest() != SOURCE_SHA256:
        raise SystemExit(f"{source}: not the published bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(raw).decode("utf-8").split("\n")
    # The list is longer than CLIP's vocabulary: the rest of it was never used.
    merges = lines[1 : VOCABULARY - 2 - 2 * 256 + 1]
    symbols = byte_symbols()
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(merge.split()) for merge in merges),
        START,
        END,
    ]
    if len(tokens) != VOCABULARY or len(set(tokens)) != VOCABULARY:
        raise SystemExit(f"{source}: gives {len(set(tokens))} tokens instead of {VOCABULARY}")

    destination.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    files = {
        "vocab.json": json.dumps({token: n for n, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in files.items():
        (destination / name).write_text(text + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--destination", type=Path, default=DESTINATION)
    options = parser.parse_args()
    build(options.source, options.destination)


if __name__ == "__main__":
    main()
