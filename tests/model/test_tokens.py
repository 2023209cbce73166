"""Tokens that are read once are those that the text encoders' tokenizers give."""

import pytest
import torch

from nemo_prune.model.denoiser import TOKENS, padded
from nemo_prune.model.tokenizer import load_tokenizer

TEXTS = ["", "a cat", "A Cat, asleep 🐈", "very " * 74 + "long", "very " * 75 + "long", "long " * 200]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_padded_tokens_are_the_tokenizers(pad: str) -> None:
    tokenizer = load_tokenizer(pad)
    wanted = tokenizer(
        TEXTS, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )["input_ids"]
    found = padded(tokenizer, tokenizer(TEXTS)["input_ids"])
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
