"""Words that were added to a tokenizer are read as diffusers' pipelines read them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Told, ldm, tiny_tensors, told_heads, write_small

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.model.live import opened
from nemo_prune.model.loading import LoadedModel, load_model, load_pipeline
from nemo_prune.options import Options
from nemo_prune.scoring.notes import tokens_of
from nemo_prune.scoring.opening import open_engine

CPU = torch.device("cpu")
OPTIONS: Any = {"device": CPU, "dtype": torch.float32}
PROMPTS = [
    "<mem>", "a photo of <mem>, asleep", "<mem> and <mem>", "<one> cat", "a cat", "", "<mem>_1 alone",
    "<MEM>", "very " * 70 + "<mem>", "<memo>",
]  # fmt: skip


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With a textual inversion of five vectors in each text encoder, and one of a single vector."""
    path = write_small(tmp_path_factory.mktemp("ti") / "m.safetensors", family=request.param)
    made = load_pipeline(open_checkpoint(path), **OPTIONS)
    made.vae = None  # nothing is drawn
    lot = torch.Generator().manual_seed(1)
    for end in ("", "_2") if request.param == "sdxl" else ("",):
        width = getattr(made, f"text_encoder{end}").config.hidden_size
        # The models that a process loads share the bundled one.
        setattr(made, f"tokenizer{end}", copy.deepcopy(getattr(made, f"tokenizer{end}")))
        words = {"tokenizer": getattr(made, f"tokenizer{end}"),
                 "text_encoder": getattr(made, f"text_encoder{end}")}  # fmt: skip
        for word, shape in (("<mem>", (5, width)), ("<one>", (width,))):
            made.load_textual_inversion({word: torch.randn(shape, generator=lot)}, **words)
    return made


def diffusers_text(pipeline: Any, prompt: str) -> list[torch.Tensor]:
    found = pipeline.encode_prompt(
        prompt, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return [one for one in found if one is not None]


def same(pipeline: Any, model: LoadedModel) -> None:
    reader = model.token_reader()
    for tokens in (None, reader(PROMPTS)):
        text, pooled = model.encode_pooled(PROMPTS, tokens)
        for n, prompt in enumerate(PROMPTS):
            wanted = diffusers_text(pipeline, prompt)
            assert torch.allclose(text[n], wanted[0][0], atol=1e-5), prompt
            assert pooled is None or torch.allclose(pooled[n], wanted[1][0], atol=1e-5), prompt
    counts, notes = tokens_of(model, PROMPTS)
    assert counts[:6] == [7, 12, 13, 4, 4, 2]
    assert counts[8] == 77
    assert "hold words that were added to this model's tokenizer" in next(notes)
    assert not any("were added" in note for note in tokens_of(model, ["a cat"])[1])


def test_a_live_pipelines_own_words(pipeline: Any) -> None:
    with opened(pipeline) as (_, model):
        same(pipeline, model)


def test_a_folders_own_words(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    model = load_model(open_checkpoint(tmp_path / "model"), **OPTIONS)
    same(pipeline, model)


def test_a_text_encoder_whose_words_are_not_there(tmp_path: Path) -> None:
    """A file has no tokenizer, so what was added to it cannot be told from other words."""
    tensors = tiny_tensors("sd1")
    key = next(name for name in tensors if name.endswith("token_embedding.weight"))
    tensors[key] = torch.cat([tensors[key], tensors[key][:3]])
    write_small(tmp_path / "plain.safetensors")
    ldm.save_tensors(tmp_path / "grown.safetensors", tensors, told_heads(sample_size=32))
    for name, notes in (("plain", 0), ("grown", 1)):
        told = Told()
        open_engine(open_checkpoint(tmp_path / f"{name}.safetensors"), Options(device="cpu"), told)
        found = [note for note in told.notes if "3 words more than its tokenizer" in note]
        assert len(found) == notes
