import json
import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_prune.checkpoint.manifest import (
    FORMAT,
    Manifest,
    PromptRecord,
    read_manifest,
    to_json,
    write_manifest,
)
from nemo_prune.checkpoint.neuron_table import write_neuron_table
from nemo_prune.checkpoint.neurons import Neuron, network_order, union
from nemo_prune.errors import ManifestError, OutputError

DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
MID = "mid_block.attentions.0.transformer_blocks.{}.attn2.to_v"
UP = "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_v"
SHA = "0123456789abcdef" * 4

MANIFEST = Manifest(
    version="0.1.0",
    source={"path": "model.safetensors", "sha256": SHA},
    options={"tau": 0.428, "layers": "down+mid", "seeds": [1, 2], "guidance": None},
    prompts=(
        PromptRecord(0, "suppressed", 0.71, 0.2, (Neuron(DOWN, 5), Neuron(UP, 0)), 24),
        PromptRecord(1, "not memorized", 0.1, None),
        PromptRecord(2, "still memorized", 1, 0.5, (Neuron(DOWN, 5),), 300, True, 'a "cät"\n'),
    ),
    neurons=(Neuron(DOWN, 5), Neuron(UP, 0)),
)

TEXT = f"""{{
  "format": "nemo-prune-manifest/1",
  "version": "0.1.0",
  "source": {{"path": "model.safetensors", "sha256": "{SHA}"}},
  "options": {{"tau": 0.428, "layers": "down+mid", "seeds": [1, 2], "guidance": null}},
  "prompts": [
    {{"index": 0, "status": "suppressed", "score_before": 0.71, "score_after": 0.2, \
"samples": 24, "truncated": false,
     "neurons": [
       {{"layer": "{DOWN}", "row": 5}},
       {{"layer": "{UP}", "row": 0}}
     ]}},
    {{"index": 1, "status": "not memorized", "score_before": 0.1, "score_after": null, \
"samples": 0, "truncated": false,
     "neurons": []}},
    {{"index": 2, "status": "still memorized", "score_before": 1, "score_after": 0.5, \
"samples": 300, "truncated": true, "text": "a \\"cät\\"\\n",
     "neurons": [
       {{"layer": "{DOWN}", "row": 5}}
     ]}}
  ],
  "neurons": [
    {{"layer": "{DOWN}", "row": 5}},
    {{"layer": "{UP}", "row": 0}}
  ],
  "shared": [
    {{"layer": "{DOWN}", "row": 5, "prompts": [0, 2]}}
  ]
}}
"""


def test_written_text_is_fixed_and_read_back_equal(tmp_path):
    path = tmp_path / "neurons.json"
    write_manifest(MANIFEST, path)
    assert path.read_text(encoding="utf-8") == TEXT
    assert read_manifest(path) == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["neurons.json"]


def test_an_empty_manifest(tmp_path):
    empty = Manifest("0", {"path": "m", "sha256": SHA}, {})
    write_manifest(empty, tmp_path / "m.json")
    assert read_manifest(tmp_path / "m.json") == empty


neurons = st.lists(
    st.builds(Neuron, st.text(st.characters(codec="utf-8"), max_size=9), st.integers(0, 9)),
    unique=True,
    max_size=3,
).map(tuple)
scores = st.one_of(st.none(), st.floats(0, 1))
words = st.text(st.characters(codec="utf-8"), max_size=9)


@settings(max_examples=40, deadline=None)
@given(
    words,
    st.dictionaries(words, st.one_of(words, st.booleans(), st.floats(-9, 9), st.lists(words))),
    st.lists(
        st.builds(
            PromptRecord,
            st.integers(0, 99),
            words,
            scores,
            scores,
            neurons,
            st.integers(0, 99),
            st.booleans(),
            st.one_of(st.none(), words),
        ),
        max_size=3,
    ).map(tuple),
    neurons,
)
def test_any_manifest_survives(tmp_path_factory, version, options, prompts, found):
    path = tmp_path_factory.getbasetemp() / "any.json"
    found = found or union(*(record.neurons for record in prompts))  # else it contradicts itself
    manifest = Manifest(version, {"path": "m", "sha256": SHA}, options, prompts, found)
    write_manifest(manifest, path, overwrite=True)
    assert read_manifest(path) == manifest
    assert to_json(read_manifest(path)) == path.read_bytes().decode()


def test_reads_with_byte_order_mark_and_other_spacing(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(json.loads(TEXT), indent=7), encoding="utf-8-sig")
    assert read_manifest(path) == MANIFEST


def test_a_file_name_that_is_not_utf8_is_kept(tmp_path):
    manifest = Manifest("0", {"path": os.fsdecode(b"\xff.safetensors"), "sha256": SHA}, {})
    write_manifest(manifest, tmp_path / "m.json")
    assert os.fsencode(read_manifest(tmp_path / "m.json").source["path"]) == b"\xff.safetensors"


def test_union_is_in_network_order_without_duplicates():
    a = [Neuron(UP, 1), Neuron(MID.format(10), 0), Neuron(DOWN, 11)]
    b = [Neuron(MID.format(2), 0), Neuron(DOWN, 2), Neuron(UP, 1)]
    assert union(a, b) == (
        Neuron(DOWN, 2),
        Neuron(DOWN, 11),
        Neuron(MID.format(2), 0),
        Neuron(MID.format(10), 0),
        Neuron(UP, 1),
    )
    assert union() == ()


def test_network_order_puts_what_it_does_not_know_last():
    assert sorted(["transformer_blocks.3.x", UP, "up_blocks.10.x", DOWN], key=network_order) == [
        DOWN,
        UP,
        "up_blocks.10.x",
        "transformer_blocks.3.x",
    ]


def edited(**fields):
    return json.dumps(json.loads(TEXT) | fields)


def prompt(**fields):
    return edited(prompts=[json.loads(TEXT)["prompts"][1] | fields])


FAULTS = {
    "empty": ("", "not JSON"),
    "list": ("[]", "is not a manifest"),
    "other json": ('{"a": 1}', "is not a manifest"),
    "deep": ("[" * 100_000, "not JSON"),
    "nan": ('{"format": NaN}', "has NaN"),
    "twice": ('{"format": 1, "format": 2}', "twice in one object"),
    "future": (edited(format="nemo-prune-manifest/2"), f"this tool reads {FORMAT}"),
    "unknown key": (edited(nuerons=[]), "unknown key 'nuerons'"),
    "missing": (json.dumps({"format": FORMAT}), 'lacks "neurons"'),
    "version": (edited(version=1), '"version" in the manifest that is not a string'),
    "options": (edited(options=[]), '"options" in the manifest that is not an object'),
    "source": (edited(source={"path": "m"}), 'lacks "sha256"'),
    "source model": (edited(source={"path": "m", "sha256": SHA, "model": 3}), "is not a string"),
    "source number": (edited(source={"path": 1, "sha256": SHA}), "is not a string"),
    "hash": (edited(source={"path": "m", "sha256": "00"}), "64 lower-case"),
    "prompts": (edited(prompts={}), "is not a list"),
    "prompt": (edited(prompts=[1]), "prompts[0] that is not an object"),
    "prompt key": (prompt(x=1), "unknown key 'x' in prompts[0]"),
    "index": (prompt(index=-1), "negative index"),
    "index bool": (prompt(index=True), "not a whole number"),
    "samples": (prompt(samples=1.5), "not a whole number"),
    "truncated": (prompt(truncated=0), "not true or false"),
    "score": (prompt(score_before="high"), "neither a number nor null"),
    "score bool": (prompt(score_after=True), "neither a number nor null"),
    "score infinite": (
        prompt(score_after=1).replace('"score_after": 1', '"score_after": 1e999'),
        "neither a number nor null",
    ),
    "text": (prompt(text=None), "not a string"),
    "neuron": (edited(neurons=[[DOWN, 5]]), "neurons[0] that is not an object"),
    "neuron key": (edited(neurons=[{"layer": DOWN}]), 'lacks "row" in neurons[0]'),
    "row": (edited(neurons=[{"layer": DOWN, "row": -5}]), "negative row"),
    "row bool": (edited(neurons=[{"layer": DOWN, "row": True}]), "not a whole number"),
    "row twice": (
        edited(neurons=[{"layer": DOWN, "row": 5}] * 2),
        f"names row 5 of {DOWN!a} twice in neurons",
    ),
    "row large": (
        edited(neurons=[{"layer": DOWN, "row": 2**63}]),
        "a row in neurons[0] that no manifest could mean",
    ),
    "row huge": (TEXT.replace('"row": 5', '"row": ' + "9" * 5000), "not JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_line(tmp_path, name):
    text, words = FAULTS[name]
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_manifests(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(tmp_path / "absent.json")
    with pytest.raises(ManifestError, match="is a folder"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="regular"):
        read_manifest(tmp_path.__class__("/dev/zero"))
    (tmp_path / "latin").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(tmp_path / "latin")
    with (tmp_path / "model").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ManifestError, match="too many for a manifest"):
        read_manifest(tmp_path / "model")


def test_nothing_is_overwritten_silently(tmp_path):
    path = tmp_path / "m.json"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_manifest(MANIFEST, path)
    assert path.read_text() == "mine"
    write_manifest(MANIFEST, path, overwrite=True)
    assert read_manifest(path) == MANIFEST


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_manifest(MANIFEST, tmp_path / "m.json")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m.json").stat().st_mode) == 0o640


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    with pytest.raises(ManifestError):
        write_manifest(Manifest("0", {"path": "m", "sha256": "no"}, {}), tmp_path / "m.json")
    with pytest.raises(ManifestError, match="cannot hold"):
        write_manifest(
            Manifest("0", {"path": "m", "sha256": SHA}, {"tau": float("nan")}), tmp_path / "m.json"
        )
    assert list(tmp_path.iterdir()) == []


def test_what_prompts_share_is_said_again_for_readers(tmp_path):
    """It is derived: an edited manifest's own entry neither counts nor disturbs."""
    path = tmp_path / "m.json"
    edited = json.loads(TEXT)
    edited["shared"] = "whatever"
    path.write_text(json.dumps(edited))
    assert read_manifest(path) == MANIFEST
    alone = replace(MANIFEST, prompts=MANIFEST.prompts[:2])
    assert "shared" not in json.loads(to_json(alone))


def test_the_table_of_neurons(tmp_path):
    first = replace(
        MANIFEST.prompts[0],
        attribution={Neuron(DOWN, 5): 0.25, Neuron(UP, 0): 1e-7},
        harm={Neuron(DOWN, 5): 3.5},
    )
    path = tmp_path / "n.csv"
    write_neuron_table(replace(MANIFEST, prompts=(first, *MANIFEST.prompts[1:])), path)
    assert path.read_text() == (
        "prompt,layer,row,attribution,harm,shared_by\n"
        f"0,{DOWN},5,0.25,3.5,2\n0,{UP},0,1e-07,,\n2,{DOWN},5,,,0\n"
    )
    with pytest.raises(OutputError, match="exists already"):
        write_neuron_table(MANIFEST, path)
