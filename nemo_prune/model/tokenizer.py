"""CLIP's tokenizers: the bundled one, or one out of a folder. T5's, out of a folder."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_prune.errors import CheckpointError, option
from nemo_prune.model.configs import data_folder
from nemo_prune.model.hub import CLIPTokenizer, T5Tokenizer


@cache
def load_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer from the bundled vocabulary; SD2 and SDXL's second one pad with "!".

    Its 49,408 words are read once: all models that a process loads share the tokenizer.
    """
    return CLIPTokenizer.from_pretrained(
        data_folder("tokenizer"), pad_token=pad_token, local_files_only=True
    )


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; CheckpointError if there is none that can be read."""
    return _read(CLIPTokenizer, "CLIP", folder, f", or give another with {option('config')} DIR")


def read_t5_tokenizer(folder: Path) -> Any:
    """T5's tokenizer in a folder; CheckpointError if there is none that can be read."""
    if not (folder / "tokenizer.json").is_file():
        # Without a vocabulary transformers makes a tokenizer that knows no word, and says nothing.
        if not (folder / "spiece.model").is_file():
            raise CheckpointError(f"{folder}: holds neither tokenizer.json nor spiece.model; add one")
        for name, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
            if not _is_there(module):
                raise CheckpointError(
                    f"{folder}: holds T5's vocabulary as spiece.model alone, which is read with {name}; "
                    f"pip install sentencepiece protobuf"
                )
    return _read(T5Tokenizer, "T5", folder)


def added_words(tokenizer: Any) -> dict[str, int]:
    """The words that were added to a tokenizer, as textual inversions are, with their token's number."""
    special = set(tokenizer.all_special_tokens)
    return {word: n for word, n in tokenizer.added_tokens_encoder.items() if word not in special}


def with_all_vectors(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts as diffusers' pipelines hand them to the tokenizer (`maybe_convert_prompt`).

    A textual inversion of several vectors is several added words, `<x>`, `<x>_1`, ...; who writes the
    first of them means all. Where words contain each other, diffusers takes them in the order of a set;
    here it is that of the prompt.
    """
    known = added_words(tokenizer)
    whole = {}
    for word in known:
        parts = [word]
        while (part := f"{word}_{len(parts)}") in known:
            parts.append(part)
        if len(parts) > 1:
            whole[word] = " ".join(parts)
    if not whole:
        return list(prompts)
    found = []
    for prompt in prompts:
        for word in dict.fromkeys(tokenizer.tokenize(prompt)):
            if word in whole:
                prompt = prompt.replace(word, whole[word])
        found.append(prompt)
    return found


def _read(kind: Any, name: str, folder: Path, further: str = "") -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library behind it raises no other kind
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{folder}: cannot be read as {name}'s tokenizer ({reason}); download it again{further}"
        ) from None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
