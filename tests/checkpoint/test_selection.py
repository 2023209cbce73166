"""Neurons by hand, the paper's result tables, and the most shared."""

import csv
import json

import pytest
import rawfiles
from rawfiles import SDXL, unet, write
from test_surgery import DOWN, MID, UP

from nemo_prune.checkpoint.manifest import Manifest, PromptRecord, read_manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.checkpoint.selection import (
    Choice,
    from_manifest,
    from_results,
    most_shared,
    parse_neurons,
    read_results,
)
from nemo_prune.errors import ManifestError, OptionError

FIELDS = ["Caption", "URL", "Initial Neurons", "Initial SSIM", "Refined Neurons", "Refined SSIM"]
NONE = "[[], [], [], [], [], [], []]"


@pytest.fixture
def checkpoint(tmp_path):
    return recognize(rawfiles.sd1(tmp_path / "m.safetensors"))


def table(path, *refined, caption='a "quoted"; caption\nof two lines'):
    """As the paper's code writes it: by the csv module, lists as Python spells them."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, delimiter=";")
        writer.writeheader()
        for neurons in refined:
            row = [caption, "http://x", [[1] * 60000, *[[]] * 6], 0.4, neurons, 0.3]
            writer.writerow(dict(zip(FIELDS, row, strict=True)))
    return path


# -------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("layer", ["6", MID, MID.removesuffix(".attn2.to_v"), " 6 "])
def test_layers_by_name_and_number(checkpoint, layer):
    assert parse_neurons(f"{layer}:7", checkpoint) == (Neuron(MID, 7),)


def test_the_order_of_the_network(checkpoint):
    for text in ("15:1\r\n6:0\r\n0:3\r\n0:2\r\n", "15:1  6 : 0\t0:3 ,\n0:2"):
        assert parse_neurons(text, checkpoint) == parse_neurons("15:1,6:0,0:3,0:2", checkpoint)
    assert parse_neurons("15:1, 6:0,0:3,0:2", checkpoint) == (
        Neuron(DOWN, 2), Neuron(DOWN, 3), Neuron(MID, 0), Neuron(UP, 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not layer:row"),
        ("3", "is not layer:row"),
        ("3:", "is not layer:row"),
        ("3:x", "is not layer:row"),
        ("3:-1", "is not layer:row"),
        ("3:²", "is not layer:row"),
        ("3:" + "9" * 5000, "is not layer:row"),
        ("0:1,", "is not layer:row"),
        (":1", "has no value layer ''"),
        ("16:1", "has no value layer '16'; .* from 0 to 15"),
        ("-1:1", "has no value layer '-1'"),
        ("mid\n:1", r"has no value layer 'mid'"),
        ("0:4", "has rows 0 to 3, not 4"),
        (f"0:1,{DOWN}:1", "row 1 of down_blocks.* named twice"),
    ],
)
def test_what_is_no_neuron(checkpoint, text, words):
    with pytest.raises(OptionError, match=words) as caught:
        parse_neurons(text, checkpoint)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------- result tables


def test_a_table_of_the_papers_code(tmp_path, checkpoint):
    path = table(
        tmp_path / "r.csv",
        [[3, 1, 3], [], [], [], [], [], [7]],
        [[]] * 7,
        [[1], [], [5], [], [], [], []],
    )
    third = checkpoint.value_layers[2].name
    want = ((Neuron(DOWN, 1), Neuron(DOWN, 3), Neuron(MID, 7)), (), (Neuron(DOWN, 1), Neuron(third, 5)))
    assert read_results(path, checkpoint) == want
    assert from_results(path, checkpoint) == Choice(
        (Neuron(DOWN, 1), Neuron(DOWN, 3), Neuron(third, 5), Neuron(MID, 7)), {"prompts": "3"}
    )
    assert from_results(path, checkpoint, 1) == Choice(
        (Neuron(DOWN, 1),), {"prompts": "3", "top_k": "1"}
    )


@pytest.mark.parametrize(
    ("refined", "words"),
    [
        ("[[1], []]", "prompt 2: lists neurons of 2 layers, but .* has 7"),
        ("[[4], [], [], [], [], [], []]", "prompt 2: down_blocks.0.* has rows 0 to 3, not 4"),
        ("[[-1], [], [], [], [], [], []]", "prompt 2: .* is not a list of lists"),
        ("[[1.0], [], [], [], [], [], []]", "is not a list of lists"),
        ("[[true], [], [], [], [], [], []]", "is not a list of lists"),
        ("[1, 2]", "is not a list of lists"),
        ("{}", "is not a list of lists"),
        ("", "is not a list of lists"),
        ("[" * 99999, "is not a list of lists"),
        ("[[" + "9" * 5000 + "]]", "is not a list of lists"),
    ],
)
def test_rows_that_are_not_results(tmp_path, checkpoint, refined, words):
    path = table(tmp_path / "r.csv", NONE, refined)
    with pytest.raises(ManifestError, match=words) as caught:
        read_results(path, checkpoint)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "caption" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "has no column 'Refined Neurons'"),
        (b"Caption,Neurons\n", "has no column"),
        (b"Caption,Refined Neurons\n", "names no neurons"),
        (b"Caption;Refined Neurons\nx\n", "prompt 1: .* is not a list"),
        (b'Caption;Refined Neurons\nx;"[[]\n', "is not a table"),
        (b"\xff\xfe", "not UTF-8"),
        (b"Caption;Refined Neurons\n", "names no neurons"),
        (f"Caption;Refined Neurons\nx;{NONE}\n".encode(), "names no neurons"),
    ],
)
def test_files_that_are_not_tables(tmp_path, checkpoint, content, words):
    path = tmp_path / "r.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=words) as caught:
        read_results(path, checkpoint)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_large_file_is_no_table(tmp_path, checkpoint, monkeypatch):
    with pytest.raises(ManifestError, match="cannot be read"):
        read_results(tmp_path, checkpoint)
    monkeypatch.setattr("nemo_prune.files.text.MAX_BYTES", 10)
    with pytest.raises(ManifestError, match="too large"):
        read_results(table(tmp_path / "r.csv"), checkpoint)


def test_all_prompts_at_fault_are_named_at_once(tmp_path, checkpoint):
    wrong = "[[4], [], [], [], [], [], []]"
    path = table(tmp_path / "r.csv", NONE, "[[1]]", NONE, wrong, "{}")
    with pytest.raises(ManifestError) as caught:
        read_results(path, checkpoint)
    text = str(caught.value)
    assert text.startswith(f"{path}: prompt 2: lists neurons of 1 layers")
    assert "; prompt 4: down_blocks.0.attentions.0.0 of " in text
    assert "; prompt 5: 'Refined Neurons' is not a list" in text
    assert "prompt 1:" not in text
    assert "\n" not in text
    with pytest.raises(ManifestError, match=r"prompt 20: .*; and 5 more$"):
        read_results(table(tmp_path / "many.csv", *["{}"] * 25), checkpoint)


def test_results_for_another_family(tmp_path):
    path = write(tmp_path / "xl.safetensors", [*unet(SDXL, sdxl=True), *rawfiles.XL_CLIPS])
    results = table(tmp_path / "r.csv", [[1], *[[]] * 6])
    with pytest.raises(ManifestError, match=r"7 layers, but .* has 34"):
        read_results(results, recognize(path))


# --------------------------------------------------------------------------------- most shared


def test_most_shared():
    a, b, c, d = Neuron(UP, 0), Neuron(MID, 1), Neuron(DOWN, 2), Neuron(DOWN, 10)
    groups = ((a, b), (a, c, c), (a, b), (c,), ())
    assert most_shared((a, b, c, d), groups, 1) == (a,)
    # b and c are shared alike: c comes first in the network, though c stands twice in one group.
    assert most_shared((a, b, c, d), groups, 2) == (c, a)
    assert most_shared((a, b, c, d), groups, 3) == (c, b, a)
    assert most_shared((a, b, c, d), groups, 99) == (c, d, b, a)
    assert most_shared((b, d), groups, 1) == (b,)


def test_from_a_manifest():
    record = PromptRecord(0, "suppressed", 0.7, 0.2, (Neuron(MID, 1),))
    neurons = (Neuron(DOWN, 0), Neuron(MID, 1))
    options = {"tau": 0.4, "criterion": "same-seed", "seeds": 3}
    manifest = Manifest("0", {"path": "m", "sha256": "5" * 64}, options, (record,), neurons)
    told = {"tau": "0.4", "criterion": "same-seed", "prompts": "1"}
    assert from_manifest(manifest) == Choice(neurons, told, "5" * 64)
    # Reviewed by hand: the first neuron is no prompt's, so the other is shared more.
    assert from_manifest(manifest, 1) == Choice(neurons[1:], {**told, "top_k": "1"}, "5" * 64)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_the_papers_table_as_other_programs_write_it_again(tmp_path, checkpoint, separator):
    count = len(checkpoint.select("down+mid"))
    path = tmp_path / "r.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["", "Caption", "Refined Neurons"])
        writer.writerow([0, "a, cat", json.dumps([[1, 2]] + [[]] * (count - 1))])
    ((first, second),) = read_results(path, checkpoint)
    assert (first.row, second.row) == (1, 2)


@pytest.mark.parametrize("head", ["prompt,layer,row,attribution", ';"prompt";"layer";"row"'])
def test_the_table_of_neurons_is_named_where_another_file_is_due(tmp_path, checkpoint, head):
    path = tmp_path / "n.csv"
    path.write_text(f"{head}\n0,x,1,,,\n")
    for read in (read_manifest, lambda path: read_results(path, checkpoint)):
        with pytest.raises(ManifestError, match=r"is the table of neurons that .* wrote, not the"):
            read(path)
    with pytest.raises(OptionError, match="is a file; give layer:row of each neuron"):
        parse_neurons(str(path), checkpoint)
