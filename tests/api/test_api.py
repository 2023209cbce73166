"""The Python API: what it returns, that it is lazy, and that it changes nothing else."""

import json
import logging
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers.hooks import apply_layerwise_casting
from test_privacy import SEALED, alone

import nemo_prune
from nemo_prune import NemoPruneError, Neuron
from nemo_prune.api import OptionFields
from nemo_prune.arguments import texts_of
from nemo_prune.checkpoint.inspect import inspection
from nemo_prune.checkpoint.manifest import PromptRecord, to_json
from nemo_prune.checkpoint.neurons import short_name
from nemo_prune.errors import CheckpointError, ManifestError, OptionError
from nemo_prune.model import hub
from nemo_prune.model.loading import load_pipeline
from nemo_prune.options import Options, Silent
from nemo_prune.report.verify import Report
from nemo_prune.scoring.similarity import ms_ssim, noise_difference

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
PROMPTS = ["a red fox", "two boats"]
ORDINARY = [f"caption number {n}" for n in range(30)]
# One layer, a calibration of 30 captions and no trajectories: the smallest whole run there is.
QUICK: dict[str, Any] = {
    "seeds": 3, "tau": 0.0, "gate": 0.0, "cache": False, "layers": "down_blocks.0.attentions.0*",
    "search": "gradient-free", "confirm": "none", "rounds": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_small(tmp_path_factory.mktemp("api") / "tiny.safetensors", side=16)


def load(model: Path) -> Any:
    checkpoint = nemo_prune.open_checkpoint(model)
    return load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def pipe(model: Path) -> Any:
    return load(model)


@pytest.fixture
def live(pipe: Any) -> Iterator[Any]:
    """A live pipeline as people have it: training modes and gradients of all kinds."""
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    pipe.unet.conv_in.weight.requires_grad_(True)
    yield pipe
    pipe.unet.eval().requires_grad_(False)


def state(pipeline: Any) -> tuple[Any, ...]:
    modules = [(name, module.training, len(module._forward_hooks))
               for part in (pipeline.unet, pipeline.text_encoder)
               for name, module in part.named_modules()]  # fmt: skip
    weights = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    gradients = [name for name, weight in pipeline.unet.named_parameters() if weight.requires_grad]
    return modules, gradients, weights


def same_state(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return before[:2] == after[:2] and all(
        torch.equal(before[2][name], after[2][name]) for name in before[2]
    )


# ------------------------------------------------------------------------------------ lazy, typed


def test_importing_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, time; started = time.perf_counter(); import nemo_prune; "
        "spent = time.perf_counter() - started; nemo_prune.open_checkpoint; nemo_prune.read_manifest; "
        "print(spent, 'torch' in sys.modules)"
    )
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()
             for _ in range(3)]  # fmt: skip
    assert {loaded for _, loaded in found} == {b"False"}
    assert min(float(spent) for spent, _ in found) < 0.05


def test_every_name_is_there_and_has_its_documentation() -> None:
    assert set(nemo_prune.__all__) <= set(dir(nemo_prune))
    for name in nemo_prune.__all__:
        assert getattr(nemo_prune, name).__doc__
    with pytest.raises(AttributeError, match="prune_everything"):
        nemo_prune.prune_everything  # noqa: B018


def test_localize_is_a_function_whatever_was_imported_before() -> None:
    import nemo_prune.localize.localize as module
    from nemo_prune import localize
    from nemo_prune.api import localize as documented

    assert callable(localize)
    assert callable(nemo_prune.localize)
    assert module.FRESH_SEEDS
    import inspect

    assert inspect.signature(nemo_prune.localize) == inspect.signature(documented)


def test_keyword_arguments_are_the_fields_of_options() -> None:
    assert set(typing.get_type_hints(OptionFields)) == {field.name for field in fields(Options)}
    # Paths may be given as text, all others are of the same type.
    ours, theirs = typing.get_type_hints(OptionFields), typing.get_type_hints(Options)
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == {"calibration", "config", "device", "text_encoder"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"criterion": "nonsense"}, "criterion nonsense"),
        ({"search": "fast"}, "search fast"),
        ({"confirm": "yes"}, "confirm yes"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seeds": 1}, "seeds"),
        ({"seeds": "4"}, "seeds '4': is a str; give a whole number"),
        ({"steps": 50.0}, "steps 50.0: is a float; give a whole number"),
        ({"seed": None}, "seed None: is a NoneType"),
        ({"tau": "0.5"}, "tau '0.5': is a str; give a number"),
        ({"calibration": b"c"}, "calibration: is a bytes; give a path, as text or a pathlib.Path"),
        ({"text_encoder": 3}, "text_encoder: is a int; give a path"),
    ],
)
def test_options_that_there_are_not(model: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        nemo_prune.detect(model, PROMPTS, **given)


def test_a_mistyped_option_is_a_type_error(model: Path) -> None:
    with pytest.raises(TypeError, match="sedes"):
        nemo_prune.detect(model, PROMPTS, sedes=3)  # type: ignore[call-arg]


def test_prompts_are_a_list(model: Path) -> None:
    for prompts in ("a red fox", []):
        with pytest.raises(OptionError, match="prompts: give"):
            nemo_prune.detect(model, prompts)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a cat", "a dog", None], r"entry 2 \(from 0\) is missing; leave such out"),
        (["a cat", float("nan")], r"entry 1 \(from 0\) is missing"),
        (["a cat", b"a dog"], r"entry 1 \(from 0\) is a bytes"),
        ([{"caption": "a cat"}], r"entry 0 \(from 0\) is a dict"),
    ],
)
def test_the_entry_that_is_no_text_is_named(model: Path, given: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"prompts: give a list of texts, not one whose {words}"):
        nemo_prune.detect(model, given)


@pytest.mark.parametrize("given", [Path("p.txt"), "p.txt", {"caption": ["a"]}, [1, 2], 7])
def test_what_is_no_list_of_texts_is_said(model: Path, given: Any) -> None:
    for name in ("prompts", "calibration_prompts"):
        with pytest.raises(OptionError, match=f"{name}: give a list of texts, not .*read_prompts reads"):
            nemo_prune.detect(model, **{"prompts": ["a"], name: given})


class _Table:
    """As pandas and polars have it: its own iterator gives the names of the columns."""

    columns = ("caption", "url")

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize("given", [_Table(), np.array([["a", "b"]]), np.array(["a"])[:, None]])
def test_a_table_is_no_list_of_texts(model: Path, given: Any) -> None:
    """Its columns' names were scored."""
    for name in ("prompts", "calibration_prompts"):
        with pytest.raises(
            OptionError, match=f"{name}: give a list of texts, not a .*one column, such as"
        ):
            nemo_prune.detect(model, **{"prompts": ["a"], name: given})
    assert texts_of(np.array(["a", "b"]), "prompts") == ("a", "b")
    assert texts_of((one for one in "ab"), "prompts") == ("a", "b")


def test_a_frame_of_pandas(model: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"caption": ["a cat"]})
    with pytest.raises(OptionError, match="not a DataFrame of columns"):
        nemo_prune.detect(model, frame)
    with pytest.raises(OptionError, match="not a DataFrame of columns"):
        nemo_prune.localize(model, frame[["caption"]])
    assert texts_of(frame["caption"], "prompts") == ("a cat",)


def test_what_gives_its_keys(model: Path) -> None:
    class Lazy:
        def keys(self) -> Any:
            return iter(("caption",))

        __iter__ = keys

    with pytest.raises(OptionError, match="give a list of texts, not a mapping of them"):
        nemo_prune.detect(model, Lazy())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.CSV", "p.csv.gz"])
def test_an_open_table_is_none_either(model: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.write_text("caption,url\na cat,u\n")
    with place.open() as file, pytest.raises(OptionError, match="give the path to nemo_prune"):
        nemo_prune.detect(model, file)
    place.rename(tmp_path / "p.txt")
    with (tmp_path / "p.txt").open() as file:
        assert len(texts_of(file, "prompts")) == 2


@pytest.mark.parametrize("given", [[], {}, {0: []}, ()])
def test_no_neurons_are_no_copy(model: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(OptionError, match="neurons: there are none, so nothing would change"):
        nemo_prune.apply(model, given, tmp_path / "o.safetensors")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "given",
    [[(0, True)], {0: [False, True]}, {0: np.array([False, True])}, {0: torch.tensor([False, True])}],
)
def test_a_mask_is_no_list_of_rows(model: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(OptionError, match="a row is a number, not True or False; of a mask"):
        nemo_prune.apply(model, given, tmp_path / "o.safetensors")


@pytest.mark.parametrize(
    "given",
    [
        [Neuron(LAYER, 1)], [(LAYER, 1)], [(0, 1)], [Neuron("0", 1)],
        [Neuron(short_name(LAYER), 1)], [{"layer": LAYER, "row": 1}], {LAYER: [1]}, {0: (1,)},
    ],
)  # fmt: skip
def test_neurons_in_all_their_forms(model: Path, tmp_path: Path, given: Any) -> None:
    nemo_prune.apply(model, given, tmp_path / "o.safetensors")
    layers = inspection(nemo_prune.open_checkpoint(tmp_path / "o.safetensors"))["value_layers"]
    assert [(one["name"], one["zeroed"]) for one in layers if one["zeroed"]] == [(LAYER, [1])]


def test_a_manifest_by_its_path(model: Path, tmp_path: Path) -> None:
    manifest = nemo_prune.Manifest("0", {"path": "m", "sha256": "0" * 64}, {}, (), (Neuron(LAYER, 1),))
    nemo_prune.write_manifest(manifest, tmp_path / "m.json")
    for number, place in enumerate((tmp_path / "m.json", str(tmp_path / "m.json"))):
        written = nemo_prune.apply(model, place, tmp_path / f"{number}.safetensors")
        assert written.neurons == 1
    with pytest.raises(OptionError, match="'3:41' is none; layer:row is how the command line has them"):
        nemo_prune.apply(model, "3:41", tmp_path / "o.safetensors")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([3], OptionError, r"neurons: give a manifest, or Neuron\(layer, row\) of each; a layer is its"),
        ([(LAYER, "1")], OptionError, "neurons: give a manifest"),
        ({"format": "x", "neurons": []}, OptionError, "neurons: give a manifest"),
        (None, OptionError, "neurons: give a manifest"),
        (
            [("mid", 1)],
            ManifestError,
            "has no value layer .mid.*; give its name, .* from 0",
        ),
        ([(99, 1)], ManifestError, "has no value layer .99.*; give its name"),
        (
            [(LAYER.replace("down_blocks.0", "up_blocks.9"), 1)],
            ManifestError,
            "are those of another model",
        ),
    ],
)
def test_what_names_no_neurons_is_said(
    model: Path, tmp_path: Path, given: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        nemo_prune.apply(model, given, tmp_path / "o.safetensors")


# ----------------------------------------------------------------------------------- the measure


def test_memorization_scores_are_the_best_pairs() -> None:
    noise = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = nemo_prune.memorization_scores(noise)
    assert scores.shape == (2, 3)
    scaled = [noise_difference(one, torch.zeros_like(one)) for one in noise]
    for found, one in zip(scores, scaled, strict=True):
        for seed in range(3):
            others = [o for o in range(3) if o != seed]
            best = max(float(ms_ssim(one[[seed]], one[[other]])) for other in others)
            assert float(found[seed]) == pytest.approx(best, abs=1e-5)
    assert torch.equal(scores, nemo_prune.memorization_scores(torch.stack(scaled))), "scaled already"
    same = noise[0, :1].expand(2, -1, -1, -1)
    assert nemo_prune.memorization_scores(same).tolist() == [1.0, 1.0]


def test_memorization_scores_need_two_seeds_of_some_size() -> None:
    for shape in [(1, 4, 16, 16), (4, 16, 16), (2, 4, 8, 8)]:
        with pytest.raises(ValueError, match=r"at least 2 seeds|smaller than the window") as caught:
            nemo_prune.memorization_scores(torch.rand(shape))
        assert isinstance(caught.value, OptionError)
    for given in (np.zeros((2, 4, 16, 16)), [[0.0]], torch.zeros(2, 4, 16, 16, dtype=torch.int32)):
        with pytest.raises(OptionError, match="give a torch tensor of floats"):
            nemo_prune.memorization_scores(given)  # type: ignore[arg-type]


def test_masked_takes_a_pipeline_too(pipe: Any) -> None:
    before = len(pipe.unet.get_submodule(LAYER)._forward_hooks)
    with nemo_prune.masked(pipe, [(LAYER, 1)]):
        assert len(pipe.unet.get_submodule(LAYER)._forward_hooks) == before + 1
    with (
        pytest.raises(OptionError, match="a str has no UNet; give"),
        nemo_prune.masked("m", []),
    ):
        pass


def test_a_card_has_no_name_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"card\.docx: is written as Markdown"):
        Report({}).save_card(tmp_path / "card.docx")
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------------------------ in batches


class NAType:
    """As pandas' missing value, of which nobody can say whether it equals itself."""

    def __ne__(self, _other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def test_batches_are_scored_as_a_list_is(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, Any] = {"seeds": 3, "tau": 0.0, "gate": 0.0, "device": "cpu"}
    alone = nemo_prune.detect(model, PROMPTS, **given).detections
    scorer = nemo_prune.Scorer(model, column="text", **given)
    long = "a word " * 100
    texts = np.array([PROMPTS[1], None, f" {PROMPTS[0]}", " ", PROMPTS[1], float("nan"), long], object)
    found = scorer({"text": texts, "id": np.arange(7)})
    for row, one in ((0, alone[1]), (2, alone[0]), (4, alone[1])):
        assert (found["score"][row], found["seeds"][row]) == (one.score, one.seeds)
        assert abs(found["noise_norm"][row] - one.noise_norm) < 1e-5
        assert found["memorized"][row] == one.memorized
    assert found["seeds"].tolist()[:6] == [2, 0, 2, 0, 2, 0]
    assert np.isnan(found["score"]).tolist() == [False, True, False, True, False, True, False]
    assert found["truncated"].tolist() == [False] * 6 + [True]
    assert (found["id"] == np.arange(7)).all()
    # Ray's threads go on in the process of a test that is over.
    said = [record for record in caplog.records if not record.name.startswith("ray.")]
    assert not said, "transformers would say that a caption is long"
    assert list(scorer({"text": np.array([""])})["seeds"]) == [0]
    assert list(scorer({"text": [NAType(), np.float32("nan")]})["seeds"]) == [0, 0]
    for batch, message in [
        ({"caption": texts}, "no column text, but caption"),
        ({"text": np.array([3])}, "int64 under text where text should be"),
        ({"text": texts, "score": texts}, "score already; rename"),
    ]:
        with pytest.raises(NemoPruneError, match=message):
            scorer(batch)

    class Table:  # as pyarrow has it
        column_names = ("text",)

        def __iter__(self) -> Any:
            return iter([["a secret"]])

    for other in (Table(), [{"text": "a secret"}]):
        with pytest.raises(NemoPruneError, match="give a dict of columns or a pandas") as caught:
            scorer(other)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
    with pytest.raises(NemoPruneError, match="workers, ray: whoever gives the batches"):
        nemo_prune.Scorer(model, workers=2)
    # As a pool of processes sends it.
    there = pickle.loads(pickle.dumps(scorer))({"text": np.array([PROMPTS[0]])})
    assert there["score"][0] == alone[0].score


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0:1,3:2", "str '0:1,3:2' is none; layer:row is how the command line has them"),
        (["0:1"], "str '0:1' is none; layer:row is how the command line has them"),
        ([(0, 1), (0, 25.0)], r"tuple '\(0, 25.0\)' is none"),
        ({0: [1], 3: 2}, r"tuple '\(3, 2\)' is none"),
        (7, "int '7' is none"),
    ],
)
def test_what_names_no_neurons_is_shown(model: Path, tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"neurons: give a manifest, .*; {words}"):
        nemo_prune.apply(model, given, tmp_path / "o.safetensors")


def test_one_neuron_is_a_list_of_one(model: Path, tmp_path: Path) -> None:
    layer = nemo_prune.open_checkpoint(model).value_layers[0].name
    assert nemo_prune.apply(model, nemo_prune.Neuron(layer, 1), tmp_path / "o").rows_zeroed == 1


def test_slips_in_options(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="batchsize: there is no such option; batch_size is one"):
        nemo_prune.detect(model, PROMPTS, batchsize=3)  # type: ignore[call-arg]
    with pytest.raises(NemoPruneError, match="xyzzy: there is no such option; there are seeds, seed"):
        nemo_prune.detect(model, PROMPTS, xyzzy=3)  # type: ignore[call-arg]
    monkeypatch.setenv("HOME", str(model.parent))
    monkeypatch.setenv("USERPROFILE", str(model.parent))
    assert nemo_prune.open_checkpoint(f"~/{model.name}").path == model


# ----------------------------------------------------------------------------- a file from end to end


def test_a_file_from_end_to_end(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, PROMPTS[0]]))
    assert nemo_prune.read_prompts(str(tmp_path / "prompts.txt")) == tuple(PROMPTS)
    checkpoint = nemo_prune.open_checkpoint(str(model))
    found = nemo_prune.detect(checkpoint, PROMPTS, seeds=3, tau=0.0, gate=0.0)
    assert [one.memorized for one in found.detections] == [True, True]
    assert found.thresholds.tau == 0.0
    assert all(one.noise_norm > 0 for one in found.detections)

    manifest = nemo_prune.localize(checkpoint, PROMPTS, calibration_prompts=ORDINARY, **QUICK)
    assert manifest.source["path"] == model.name
    assert len(manifest.prompts) == 2

    clean = tmp_path / "clean.safetensors"
    wanted = [Neuron(LAYER, 3), Neuron(LAYER, 5)]
    written = nemo_prune.apply(str(model), wanted, str(clean), undo=str(tmp_path / "rows"), hashed=True)
    assert written.neurons == 2
    assert written.sha256 is not None
    with pytest.raises(NemoPruneError, match="exists"):
        nemo_prune.apply(model, wanted, clean)

    report = nemo_prune.verify(
        model, clean, PROMPTS, ordinary=ORDINARY[:2], images=0, seeds=3, tau=0.0, gate=0.0
    )
    assert report.data["neurons"] == 2
    assert report.data["options"]["ordinary_from"] == "the caller"
    report.save(str(tmp_path / "r.json"))
    report.save(tmp_path / "r.html")
    assert json.loads((tmp_path / "r.json").read_text())["prompts"] == report.data["prompts"]


def test_a_manifests_thresholds_go_into_the_file(model: Path, tmp_path: Path) -> None:
    manifest = nemo_prune.Manifest(
        "0", {"path": "m", "sha256": "0" * 64}, {"tau": 0.25, "gate": 0.5, "timestep": 700},
        neurons=(Neuron(LAYER, 1),),
    )  # fmt: skip
    nemo_prune.write_manifest(manifest, tmp_path / "m.json")
    read = nemo_prune.read_manifest(tmp_path / "m.json")
    nemo_prune.apply(model, read, tmp_path / "clean.safetensors")
    metadata = nemo_prune.open_checkpoint(tmp_path / "clean.safetensors").metadata
    assert metadata["nemo_prune.tau"] == "0.25"
    report = nemo_prune.verify(model, tmp_path / "clean.safetensors", PROMPTS, ordinary=[], images=0,
                               seeds=3)  # fmt: skip
    assert report.data["options"]["tau"] == 0.25
    assert report.data["options"]["timestep"] == 700


def test_the_neurons_that_matter_most(model: Path, tmp_path: Path) -> None:
    attribution = {Neuron(LAYER, row): float(row) for row in range(3)}
    record = PromptRecord(0, "suppressed", 0.9, 0.1, tuple(attribution), attribution=attribution)
    manifest = nemo_prune.Manifest("0", {"path": "m", "sha256": "0" * 64}, {}, (record,), record.neurons)
    assert nemo_prune.apply(model, manifest, tmp_path / "one.safetensors", top=1).neurons == 1
    zeroed = inspection(nemo_prune.open_checkpoint(tmp_path / "one.safetensors"))["value_layers"]
    assert [layer["zeroed"] for layer in zeroed if layer["zeroed"]] == [[2]]
    with pytest.raises(OptionError, match="top: goes with a manifest"):
        nemo_prune.apply(model, manifest.neurons, tmp_path / "two.safetensors", top=1)


def test_a_manifest_for_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    other = nemo_prune.Manifest("0", {"path": "m", "sha256": "0" * 64}, {}, (), (Neuron(LAYER, 9999),))
    with pytest.raises(ManifestError, match="the manifest: was made for"):
        nemo_prune.apply(model, other, tmp_path / "out.safetensors")


def test_what_is_no_path_is_said(tmp_path: Path) -> None:
    for call in (nemo_prune.open_checkpoint, nemo_prune.read_prompts):
        with pytest.raises(OptionError, match=r"path: is a bytes; give a path, as text or a pathlib"):
            call(b"m.safetensors")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="path: is a list; give one path; call it for each"):
        nemo_prune.read_prompts(["a.txt", "b.txt"])  # type: ignore[arg-type]
    for place in (tmp_path, tmp_path / "mem*.txt"):
        with pytest.raises(OptionError, match="is a folder or a pattern, and one list is read"):
            nemo_prune.read_prompts(place)
    with pytest.raises(OptionError, match="model: is a bytes"):
        nemo_prune.detect(b"m.safetensors", PROMPTS)


def test_a_device_of_torch_is_taken(model: Path) -> None:
    given: dict[str, Any] = {"seeds": 2, "tau": 0.0, "gate": 0.0, "timestep": 900}
    ours = nemo_prune.detect(model, PROMPTS, device=torch.device("cpu"), **given)
    theirs = nemo_prune.detect(model, PROMPTS, device="cpu", **given)
    assert ours.detections == theirs.detections


# --------------------------------------------------------------------------------- live pipelines


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_live_pipeline_scores_as_its_file(family: str, tmp_path: Path) -> None:
    path = tiny.write_small(tmp_path / "m.safetensors", side=16, family=family)
    given: dict[str, Any] = {"seeds": 3, "tau": 0.0, "gate": 0.0, "timestep": 900}
    of_file = nemo_prune.detect(path, PROMPTS, device="cpu", **given)
    of_pipe = nemo_prune.detect(load(path), PROMPTS, **given)
    # Its layers are left as they are, so that the last digit may differ (`model/steady.py`).
    for one, other in zip(of_pipe.detections, of_file.detections, strict=True):
        assert replace(one, noise_norm=0.0) == replace(other, noise_norm=0.0)
        assert one.noise_norm == pytest.approx(other.noise_norm, rel=1e-5)
    assert str(of_pipe.checkpoint) == "live pipeline"


def test_localizing_a_live_pipeline_leaves_it_as_it_was(live: Any, model: Path) -> None:
    before = state(live)
    of_pipe = nemo_prune.localize(live, PROMPTS, calibration_prompts=ORDINARY, **QUICK)
    assert same_state(before, state(live))
    of_file = nemo_prune.localize(model, PROMPTS, calibration_prompts=ORDINARY, device="cpu", **QUICK)
    assert of_pipe.neurons == of_file.neurons
    assert of_pipe.source["path"] == "live pipeline"
    assert of_pipe.source["sha256"] != of_file.source["sha256"]
    again = nemo_prune.localize(live, PROMPTS, calibration_prompts=ORDINARY, **QUICK)
    assert to_json(again) == to_json(of_pipe), "the hash is that of the weights"


def test_a_live_pipeline_is_left_alone_on_errors(live: Any) -> None:
    before = state(live)
    with pytest.raises(OptionError, match="timestep"):
        nemo_prune.detect(live, PROMPTS, timestep=5000)
    assert same_state(before, state(live))


def test_what_changes_a_live_unets_forward_is_noted(live: Any) -> None:
    given: dict[str, Any] = {"seeds": 3, "tau": 0.0, "gate": 0.0, "timestep": 900}

    def notes() -> list[str]:
        told: list[str] = []
        progress = Silent()
        progress.note = told.append  # type: ignore[method-assign]
        nemo_prune.detect(live, PROMPTS, progress=progress, **given)
        return [line for line in told if "is scored as it is set" in line]

    assert not notes()
    live.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert "FreeU is on" in notes()[0]
    live.disable_freeu()
    assert not notes()
    block = live.unet.mid_block
    block.forward = block.forward
    assert "replaced the forward of its mid_block" in notes()[0]
    del block.forward


def test_what_is_no_pipeline_is_refused(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="int is no text-to-image pipeline"):
        nemo_prune.detect(3, PROMPTS)
    with pytest.raises(OptionError, match="device: says how a file is loaded"):
        nemo_prune.detect(live, PROMPTS, device="cpu")
    monkeypatch.setattr(live.unet, "_compiled_call_impl", object())
    with pytest.raises(CheckpointError, match="compiled"):
        nemo_prune.detect(live, PROMPTS)
    with pytest.raises(CheckpointError, match="compiled"), nemo_prune.masked(live.unet, []):
        pass


def test_fused_projections_are_refused(model: Path) -> None:
    pipe = load(model)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(CheckpointError, match="fused"), nemo_prune.masked(pipe.unet, []):
        pass


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_each_pass_replaces_are_refused_before_anything(
    model: Path, frozen: bool, part: str
) -> None:
    pipe = load(model)
    getattr(pipe, part).requires_grad_(not frozen)
    apply_layerwise_casting(getattr(pipe, part), torch.float8_e4m3fn, torch.float32)
    weights = [*getattr(pipe, part).parameters()]
    before = [(one.requires_grad, one.dtype, one.is_inference()) for one in weights]
    for call in (nemo_prune.detect, nemo_prune.localize):
        with pytest.raises(NemoPruneError, match=r"live pipeline: .*\(enable_layerwise_casting\)"):
            call(pipe, PROMPTS, seeds=2, tau=0.0, gate=0.0)
    now = [*getattr(pipe, part).parameters()]
    assert [one is other for one, other in zip(now, weights, strict=True)] == [True] * len(weights)
    assert [(one.requires_grad, one.dtype, one.is_inference()) for one in now] == before


def test_weights_that_no_gradient_passes_are_refused(model: Path) -> None:
    with torch.inference_mode():
        pipe = load(model)
        pipe.unet.requires_grad_(True)
    with pytest.raises(NemoPruneError, match=r"made under torch\.inference_mode"):
        nemo_prune.detect(pipe, PROMPTS, seeds=2, tau=0.0, gate=0.0)
    assert all(one.requires_grad for one in pipe.unet.parameters())


# ---------------------------------------------------------------------------------------- masked


def draw(pipeline: Any) -> Any:
    return pipeline(
        "a photo of a cat!", num_inference_steps=2, guidance_scale=7.0, output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip


def test_masked_draws_what_the_written_file_draws(pipe: Any, model: Path, tmp_path: Path) -> None:
    neurons = [Neuron(LAYER, row) for row in range(8)]
    nemo_prune.apply(model, neurons, tmp_path / "clean.safetensors")
    whole = draw(pipe)
    with nemo_prune.masked(pipe.unet, neurons):
        masked = draw(pipe)
    assert (masked == draw(load(tmp_path / "clean.safetensors"))).all()
    assert (masked != whole).any()
    assert (draw(pipe) == whole).all(), "both halves of guidance are as before"


def test_masked_is_undone_on_any_exit(pipe: Any) -> None:
    before = state(pipe)
    layer = pipe.unet.get_submodule(LAYER)
    with (
        pytest.raises(ValueError, match=r"Linear.*1 hook"),
        nemo_prune.masked(pipe.unet, [Neuron(LAYER, 3)]),
    ):
        raise ValueError(f"Linear, {len(layer._forward_hooks)} hook")
    for bad in (Neuron(LAYER, 10**6), Neuron("no.such.layer", 0)):
        with pytest.raises(ManifestError), nemo_prune.masked(pipe.unet, [Neuron(LAYER, 3), bad]):
            pass
    assert same_state(before, state(pipe))


def test_masked_twice_adds_up(pipe: Any) -> None:
    layer = pipe.unet.get_submodule(LAYER)
    text = torch.ones(1, 77, layer.in_features)
    with (
        nemo_prune.masked(pipe.unet, [Neuron(LAYER, 3)]),
        nemo_prune.masked(pipe.unet, [Neuron(LAYER, 4)]),
    ):
        assert not layer(text)[..., 3:5].any()
    with nemo_prune.masked(pipe.unet.half(), [Neuron(LAYER, 3)]):
        pipe.unet.float()
        assert not layer(text)[..., 3].any(), "converted inside the with"


# ----------------------------------------------------------------------------- nothing global changes


def verbosity() -> list[Any]:
    libraries = (hub._transformers.logging, hub._diffusers.logging)
    levels = [logging.getLogger(name).level for name in ("transformers", "diffusers", "")]
    return [levels, *((one.get_verbosity(), one.is_progress_bar_enabled()) for one in libraries)]


@pytest.fixture
def loud() -> Iterator[None]:
    """Both libraries at levels that are not their defaults."""
    libraries = (hub._transformers.logging, hub._diffusers.logging)
    before = [one.get_verbosity() for one in libraries]
    for one in libraries:
        one.set_verbosity_info()
    yield
    for one, level in zip(libraries, before, strict=True):
        one.set_verbosity(level)


@pytest.mark.usefixtures("loud")
def test_settings_of_the_process_are_as_before(model: Path, pipe: Any, tmp_path: Path) -> None:
    before = dict(os.environ), verbosity(), torch.get_num_threads(), torch.initial_seed()
    random = torch.get_rng_state()
    nemo_prune.detect(model, PROMPTS, seeds=3, tau=0.0, gate=0.0)
    with nemo_prune.masked(pipe.unet, [Neuron(LAYER, 3)]):
        nemo_prune.detect(pipe, PROMPTS, seeds=3, tau=0.0, gate=0.0)
    nemo_prune.localize(model, PROMPTS, calibration_prompts=ORDINARY, **QUICK)
    nemo_prune.apply(model, [Neuron(LAYER, 3)], tmp_path / "clean.safetensors")
    nemo_prune.verify(model, tmp_path / "clean.safetensors", PROMPTS, ordinary=ORDINARY[:1], images=1,
                      ordinary_images=0, picture_steps=1, seeds=3, tau=0.0, gate=0.0)  # fmt: skip
    with pytest.raises(CheckpointError):
        nemo_prune.detect(tmp_path / "none.safetensors", PROMPTS)
    assert before == (dict(os.environ), verbosity(), torch.get_num_threads(), torch.initial_seed())
    assert torch.equal(random, torch.get_rng_state())


NO_SOCKETS = """
import os, socket

socket.has_ipv6 = False  # urllib3 asks for a socket at import to find that out

def refuse(*args, **kwargs):
    print("network access attempted", file=sys.stderr, flush=True)
    os._exit(9)  # nothing can catch this

socket.socket = type("Refused", (socket.socket,), {"__init__": refuse})
socket.getaddrinfo = socket.create_connection = refuse
"""


def test_no_network_and_no_setting_without_the_command_line(model: Path, tmp_path: Path) -> None:
    """A process of its own, without the variables that the command line sets: none is needed.

    Loading a model says nothing at all.
    """
    code = (
        SEALED.partition("from nemo_prune")[0]
        + NO_SOCKETS
        + f"""
from pathlib import Path
before = dict(os.environ)
import torch
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.model import loading
found = recognize(Path({str(model)!r}))
options = {{"device": torch.device("cpu"), "dtype": torch.float32}}
assert loading.load_model(found, **options).encode(["a cat"]).shape == (1, 77, 64)
loading.load_pipeline(found, **options)
print("loaded", file=sys.stderr)
import nemo_prune
nemo_prune.detect({str(model)!r}, {PROMPTS!r}, seeds=3, tau=0.0, gate=0.0, device="cpu")
nemo_prune.apply({str(model)!r}, [nemo_prune.Neuron({LAYER!r}, 3)],
                 {str(tmp_path / "clean.safetensors")!r})
nemo_prune.verify({str(model)!r}, {str(tmp_path / "clean.safetensors")!r}, {PROMPTS!r}, ordinary=[],
                  images=1, picture_steps=1, seeds=3, tau=0.0, gate=0.0, device="cpu")
import huggingface_hub.constants
assert not huggingface_hub.constants.HF_HUB_OFFLINE, "later downloads still work"
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
"""
    )
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("HF_", "TRANSFORMERS_", "DIFFUSERS_", "DISABLE_TEL"))}  # fmt: skip
    done = subprocess.run([*alone(), sys.executable, "-c", code], capture_output=True, env=clean)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    assert done.stderr.splitlines()[0] == b"loaded"
