"""Models and manifests that are not what a user takes them for: one clear line."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import folders
import pytest
import rawfiles
from click.testing import Result
from safetensors.torch import load_file, save_file
from test_cli_files import manifest, sha256
from test_surgery import DOWN
from tiny import config_folder, ldm, run, told_heads, write_tiny

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError, NemoPruneError, OptionError
from nemo_prune.model.configs import METADATA_KEY
from nemo_prune.model.hub import UNet2DConditionModel
from nemo_prune.model.live import describe
from nemo_prune.options import Options
from nemo_prune.report.inputs import check_inputs
from nemo_prune.scoring.opening import open_engine

BLOCK = "attentions.0.transformer_blocks.0"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return rawfiles.sd1(Path("m.safetensors"))


@pytest.mark.parametrize(
    ("start", "by"),
    [(b"Salted__", "openssl (openssl enc -d)"), (b"age-encryption.org/v1\n", "age (age -d)")],
)
def test_encrypted_files_are_to_be_decrypted(model: Path, start: bytes, by: str) -> None:
    Path("e").write_bytes(start + b"\x93\0" * 99)
    for arguments in (["restore", model, "--undo", "e", "-o", "o"], ["inspect", "e"]):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (
            2, f"nemo-prune: e: is encrypted by {by}; decrypt it\n"
        )  # fmt: skip


def taken(model: Path, path: Path) -> Iterator[Result]:
    """What apply, and diff, say of a manifest."""
    yield run("apply", model, "--manifest", path, "-o", "o")
    yield run("diff", model, model, "--expect", path)


def test_a_manifest_that_contradicts_itself(model: Path) -> None:
    path = manifest(Path("n.json"), [], prompts=[[(DOWN, 1)]])
    for result in taken(model, path):
        assert result.exit_code == 2
        assert "n.json: lists neurons of its prompts, and none to remove" in result.stderr


def test_a_pruned_copy_of_what_a_manifest_was_made_for_is_said(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 1)], sha256(model))
    assert "warning" not in run("apply", model, "--manifest", path, "-o", "o").stderr
    result = run("apply", "o", "--manifest", path, "-o", "p")
    assert "(other.safetensors), but by its metadata a pruned copy of it\n" in result.stderr


def test_layers_without_anything_are_said(model: Path) -> None:
    assert "wholly zero" not in run("inspect", model).stdout
    every = ",".join(f"0:{row}" for row in range(4))
    assert run("apply", model, "--neurons", every, "-o", "o").exit_code == 0
    assert "1 of 16 value layers are wholly zero: is the file complete?" in run("inspect", "o").stdout


def test_a_part_of_a_folder_names_the_folder(tmp_path: Path) -> None:
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    (tmp_path / "te").mkdir()
    part = rawfiles.write(tmp_path / "te" / "model.safetensors", [(name, "F32", (2, 2))])
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(part)
    assert str(caught.value).endswith(f", or the diffusers folder that it is a part of ({tmp_path})")


def test_a_manifest_of_nothing_is_said(model: Path) -> None:
    path = manifest(Path("n.json"), [], prompts=[[]])
    for result in taken(model, path):
        assert result.exit_code == 0
        assert "warning: n.json: holds no neurons: nothing is pruned\n" in result.stderr


def test_what_json_prints_is_no_manifest(model: Path) -> None:
    printed = {"version": "0", "source": {}, "prompts": [], "neurons": [], "cost": {}}
    Path("found.json").write_text(json.dumps(printed))
    for result in taken(model, Path("found.json")):
        assert result.exit_code == 2
        assert "found.json: is the result that a run prints, not its manifest" in result.stderr


@pytest.mark.parametrize("name", ["u.yaml", "u.json", "u.txt"])
def test_undo_files_by_the_name_of_text(model: Path, name: str) -> None:
    result = run("apply", model, "--neurons", "0:1", "-o", "o.safetensors", "--undo", name)
    assert f"{name}: has the name of another format" in result.stderr
    assert [*Path().iterdir()] == [model]
    Path(name).write_text("a: \u00e4\n")
    result = run("restore", model, "--undo", name, "-o", "o.safetensors")
    assert result.stderr == f"nemo-prune: {name}: is text, and nothing that --undo wrote; give that\n"


@pytest.mark.parametrize("name", ["adapter_config.json", "pytorch_lora_weights.safetensors"])
def test_a_folder_with_a_lora(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"holds a LoRA or the like \({name}\); merge it"):
        open_checkpoint(tmp_path)


def test_a_zip_archive_is_no_pickle(model: Path) -> None:
    Path("m.zip").write_bytes(b"PK\x03\x04" + b"x" * 100)
    assert "m.zip: is a zip archive; unpack it" in run("inspect", "m.zip").stderr
    assert "is a zip archive" in run("restore", model, "--undo", "m.zip", "-o", "o").stderr


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (
            "model_index.json",
            "is a DDUF archive, a zip of a diffusers folder; unpack it into a folder, and",
        ),
        ("model.safetensors", "is a zip archive; unpack it"),
        ("folder/", "is a zip archive; unpack it"),
        ("archive/data.pkl", "is a pickle checkpoint"),
    ],
)
def test_a_zip_archive_is_known_by_its_first_file(tmp_path: Path, first: str, words: str) -> None:
    path = tmp_path / "m.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(first, "" if first.endswith("/") else "{}" * 300)
        archive.writestr("unet/model.safetensors", "x" * 300)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="is a DDUF archive"):
        open_checkpoint(path.rename(tmp_path / "m.dduf"))


def test_the_text_of_a_link_is_no_list_of_prompts(model: Path) -> None:
    folder = folders.pipeline(Path("f"))
    weights, link = folder / "unet" / folders.WEIGHTS, "../../../blobs/" + "3a" * 32
    Path("p.txt").write_text("a cat\n")
    for content, words in (
        (link, "is the text of a link, not the file that it leads to; download it again"),
        ("no such thing here", "is text, not safetensors; download or copy it again"),
    ):
        weights.write_text(content)
        result = run("check", folder, "--prompts", "p.txt", "--tau", ".5", "--gate", ".5")
        assert result.exit_code == 2
        assert result.stderr.endswith(f"{weights}: {words}\n") or words in result.stderr
        assert "a list of prompts" not in result.stderr
    Path("n.json").write_text(f"../{link}\n")
    for result in taken(model, Path("n.json")):
        assert "n.json: is the text of a link" in result.stderr


def test_a_manifest_of_another_version_is_not_to_be_mended(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 1)])
    path.write_text(path.read_text().replace("nemo-prune-manifest/1", "nemo-prune-manifest/2"))
    for result in taken(model, path):
        assert result.exit_code == 2
        assert "is of another version, perhaps a later one: read it with that, or make" in result.stderr
        assert "mend" not in result.stderr


def test_top_says_how_to_choose_where_no_attribution_was_taken(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 1)])
    for search, words in (("auto", "or choose with --top-k or --neurons"), ("literal", "--search auto")):
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"options": told["options"] | {"search": search}}))
        result = run("apply", model, "--manifest", path, "--top", 1, "-o", "o")
        assert result.exit_code == 2
        assert "n.json: holds no attributions" in result.stderr
        assert words in result.stderr
        assert ("with --search auto" in result.stderr) == (search == "literal")


def test_a_layer_is_named_as_diff_names_it(model: Path) -> None:
    assert run("apply", model, "--neurons", f"{DOWN}:1", "-o", "o.safetensors").exit_code == 0
    told = run("diff", model, "o.safetensors").output
    name = next(word.strip(":,'") for word in told.split() if "to_v.weight" in word)
    for layer in (name, name.removesuffix(".weight")):
        result = run("apply", model, "--neurons", f"{layer}:1", "-o", "p.safetensors", "--overwrite")
        assert result.exit_code == 0, result.stderr
        assert Path("p.safetensors").read_bytes() == Path("o.safetensors").read_bytes()


def test_a_part_of_what_was_found_is_said(model: Path) -> None:
    path = manifest(
        Path("n.json"), [(DOWN, 1), (DOWN, 2)], prompts=[[(DOWN, 1), (DOWN, 2)], [(DOWN, 1)]]
    )
    result = run("apply", model, "--manifest", path, "--top-k", 1, "-o", "o")
    assert "note: 1 of the manifest's 2 neurons are left in" in result.stderr
    assert "nemo-prune verify" in result.stderr
    result = run("apply", model, "--manifest", path, "--top-k", 2, "-o", "o", "--overwrite")
    assert "left in" not in result.stderr


def test_neurons_that_no_prompt_of_a_manifest_needs_are_said(model: Path) -> None:
    neurons = [(DOWN, 1), (DOWN, 2), (DOWN, 3)]
    path = manifest(Path("n.json"), neurons, prompts=[[(DOWN, 1)], [(DOWN, 2)]])
    result = run("apply", model, "--manifest", path, "-o", "o")
    assert result.exit_code == 0
    assert "note: 1 of the manifest's 3 neurons are no prompt's\n" in result.stderr


def test_metadata_that_say_what_was_done_are_named_as_the_only_other_change(tmp_path: Path) -> None:
    model = rawfiles.sd1(tmp_path / "m.safetensors", metadata={"modelspec.hash_sha256": "0x0"})
    path = manifest(tmp_path / "n.json", [(DOWN, 1)])
    assert run("apply", model, "--manifest", path, "-o", tmp_path / "o").exit_code == 0
    result = run("diff", model, tmp_path / "o", "--expect", path)
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "as expected: 1 rows are zero, and nothing else was changed but metadata that say so "
        "(modelspec.hash_sha256, nemo_prune.*)\n"
    )


def test_a_manifest_of_a_run_that_was_stopped_is_said(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 1)], prompts=[[(DOWN, 1)], []])
    path.write_text(path.read_text().replace('"suppressed"', '"not confirmed"', 1))
    result = run("apply", model, "--manifest", path, "-o", "o")
    assert result.exit_code == 0
    assert "warning: n.json: is of a run that was stopped: 1 of its 2 prompts" in result.stderr


def test_a_row_that_the_model_lacks_names_the_manifest(model: Path) -> None:
    path = manifest(Path("n.json"), [(DOWN, 99)], model=open_checkpoint(model).kind)
    result = run("apply", model, "--manifest", path, "-o", "o")
    assert result.stderr.startswith(f"nemo-prune: n.json: does not fit {model} (")
    assert "another model" not in result.stderr
    result = run("diff", model, model, "--expect", path)
    assert (result.exit_code, result.stderr.partition(": m")[0]) == (2, "nemo-prune: n.json")
    good = manifest(Path("n.json"), [(DOWN, 1)])
    result = run("apply", model, "--manifest", good, "--top", 1, "-o", "o")
    assert result.stderr.startswith("nemo-prune: n.json: holds no attributions")


def test_a_lora_that_would_do_nothing(model: Path) -> None:
    assert run("apply", model, "--neurons", "0:1", "-o", "clean.safetensors").exit_code == 0
    result = run("apply", "clean.safetensors", "--neurons", "0:1", "--lora", "l.safetensors")
    assert result.exit_code == 2
    assert "are zero in clean.safetensors already, so there is no LoRA to write" in result.stderr
    assert not Path("l.safetensors").exists()


def test_what_only_goes_with_a_model_is_called_so(model: Path) -> None:
    assert (
        run("apply", model, "--neurons", "0:1", "-o", "c", "--undo", "u", "--lora", "l").exit_code == 0
    )
    for arguments in (["inspect", "u"], ["diff", model, "u"], ["diff", "u", model]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "nemo-prune: u: is what --undo kept, the rows removed from a model; give" in result.stderr
    result = run("diff", model, "l")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nemo-prune: l: is a LoRA (or the like), an addition to a model" in result.stderr
    assert run("diff", "l", "l").exit_code == 0


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["unet.down_blocks.0.a.attn2.to_v.weight", "vae.x"],
            "whose parts a program saved under its own",
        ),
        (["vision_model.x", "text_decoder.bert.x"], "is a captioner"),
        ([f"mid_block.{BLOCK}.attn2.to_v.weight_{end}" for end in ("g", "v")],
         r"are parametrized \(weight_norm\).*torch\.nn\.utils\.remove_weight_norm\(layer\)"),
        ([f"mid_block.{BLOCK}.attn2.to_v.weight_{end}" for end in ("orig", "u", "v")],
         r"torch\.nn\.utils\.remove_spectral_norm\(layer\)"),
        ([f"mid_block.{BLOCK}.attn2.to_v.weight_{end}" for end in ("orig", "mask")],
         r"prune masks .*torch\.nn\.utils\.prune\.remove\(layer, 'weight'\)"),
        ([f"model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight_{end}"
          for end in ("orig", "mask")], "prune masks"),
        ([f"down_blocks.0.{BLOCK}.attn2.to_v.parametrizations.weight.0._u"],
         r"are parametrized .*parametrize\.remove_parametrizations\(layer, 'weight'\)"),
        (["down_blocks.0.attentions.0.transformers.1.transformer_blocks.0.attn2.to_v.weight"],
         "has two transformers in each attention"),
        (["down_blocks.1.attentions.0.attn2.to_v.weight"], "the K blocks of the latent upscaler"),
        ([f"down_blocks.0.{BLOCK}.attn2.to_v.delta"], "is SVDiff's, differences"),
        (["params_ema.body.0.rdb1.conv1.weight"], "is an upscaler or face restorer"),
        (["id_adapter.latents", "id_adapter_attn_layers.0.id_to_v.weight"], "is a PuLID"),
        (["connector.perceiver_blocks.0.attn.in_proj_weight"], "is an ELLA"),
        (["320.0.linear.0.weight", "320.1.linear.2.weight"], "is a hypernetwork"),
        (["diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q::lora::0"], "is a LoRA"),
        (["prd_embedding", "proj_to_clip_embeddings.weight"], "is a prior"),
        (["brushnet_mid_block.weight", "conv_in_condition.weight"], "is a BrushNet"),
        (["id_encoder.x", "lora_weights.a.to_v_lora.down.weight"], "is a PhotoMaker"),
        (["blocks.0.attn.qkv_y.weight"], "is a video model"),
        (["net.blocks.0.cross_attn.v_proj.weight"], "is a Cosmos model"),
        (["cap_pad_token", "context_refiner.0.attention.to_v.weight"], "is a Z-Image model"),
    ],
)  # fmt: skip
def test_models_of_other_kinds(tmp_path: Path, names: list[str], words: str) -> None:
    path = rawfiles.write(tmp_path / "m.safetensors", [(name, "F32", (8, 8)) for name in names])
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_unet_that_takes_the_text_in_attn1_too(tmp_path: Path, layout: str) -> None:
    entries = rawfiles.unet(rawfiles.SD1, layout, "F16")
    values = [(name.replace("attn2", "attn1"), shape) for name, _, shape in entries if "to_v" in name]
    own, text = ([(name, "F16", (shape[0], columns or shape[0])) for name, shape in values]
                 for columns in (0, 5))  # fmt: skip
    queries = [(name.replace("to_v", "to_q"), *rest) for name, *rest in own]
    path = rawfiles.write(tmp_path / "m.safetensors", entries + queries + own)
    assert open_checkpoint(path).family == "sd1"
    path = rawfiles.write(tmp_path / "m.safetensors", entries + queries + own[:-1] + text[-1:])
    with pytest.raises(CheckpointError, match=r"the text in attn1 too \(only_cross_attention\), whose"):
        open_checkpoint(path)


@pytest.mark.parametrize("stated", [True, [True, True, False, False]])
def test_a_config_that_has_attn1_take_the_text(tmp_path: Path, stated: object) -> None:
    folders.pipeline(tmp_path / "f")
    config = tmp_path / "f" / "unet" / "config.json"
    config.write_text(json.dumps({"only_cross_attention": stated}))
    for path in (tmp_path / "f", tmp_path / "f" / "unet", tmp_path / "f" / "unet" / folders.WEIGHTS):
        with pytest.raises(CheckpointError, match="only_cross_attention"):
            open_checkpoint(path)
    config.write_text(json.dumps({"only_cross_attention": [False] * 4}))
    assert open_checkpoint(tmp_path / "f").family == "sd1"


def test_a_given_config_that_has_attn1_take_the_text(tmp_path: Path) -> None:
    """Where the text is as wide as the picture, no shape tells."""
    configs = config_folder(tmp_path / "configs")
    path = configs / "unet" / "config.json"
    narrow = {"block_out_channels": [64] * 4, "only_cross_attention": True, "attention_head_dim": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | narrow))
    unet = UNet2DConditionModel.from_config(json.loads(path.read_text()))
    with pytest.raises(CheckpointError, match="live pipeline: has a UNet that takes the text in attn1"):
        describe(unet)
    whole = write_tiny(tmp_path / "m.safetensors")
    text = {n: t for n, t in load_file(whole).items() if n.startswith("cond_stage")}
    save_file(ldm.unet_to_ldm(unet.state_dict()) | text, whole, told_heads())
    with pytest.raises(CheckpointError, match="only_cross_attention"):
        open_engine(open_checkpoint(whole), Options(config=configs, device="cpu"))


def test_convolutions_of_a_face_restorer_are_no_video(tmp_path: Path) -> None:
    name = "params_ema.stylegan_decoder.style_convs.0.modulated_conv.weight"
    path = rawfiles.write(tmp_path / "m.safetensors", [(name, "F32", (1, 2, 2, 3, 3))])
    with pytest.raises(CheckpointError, match="is an upscaler or face restorer"):
        open_checkpoint(path)


def test_an_audio_model_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    entries = rawfiles.unet(rawfiles.SD1, "diffusers", "F16")
    rawfiles.write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", entries)
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioLDMPipeline"}')
    with pytest.raises(CheckpointError, match=r"is an audio model \(AudioLDMPipeline\)"):
        open_checkpoint(tmp_path)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["check", "m.safetensors", "c.txt"], "check m.safetensors --prompts c.txt"),
        (["check", "m.safetensors", "n.safetensors", "c.csv.gz", "d.txt", "--tau", ".5"],
         "check m.safetensors n.safetensors --prompts c.csv.gz --prompts d.txt"),
        (["m.safetensors", "c.txt", "-o", "o.safetensors"], "prune m.safetensors --prompts c.txt"),
        (["localize", "m.safetensors", "c.jsonl", "-o", "n.json"],
         "localize m.safetensors --prompts c.jsonl"),
        (["detect", "m.safetensors", "c.txt"], "detect m.safetensors --prompts c.txt"),
        (["verify", "m.safetensors", "n.safetensors", "c.txt"],
         "verify m.safetensors n.safetensors --prompts c.txt"),
        (["audit", "m.safetensors", "n.safetensors", "c.txt"],
         "audit m.safetensors n.safetensors --prompts c.txt"),
        (["calibrate", "m.safetensors", "c.txt", "-o", "cal"],
         "calibrate m.safetensors --prompts c.txt"),
        (["c.txt"], "prune MODEL --prompts c.txt"),
    ],
)  # fmt: skip
def test_a_list_in_a_models_place_is_told(arguments: list[str], right: str) -> None:
    for name in ("c.txt", "d.txt", "c.jsonl", "c.csv.gz"):
        Path(name).write_text("a cat\n")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "a list by its name, not a model; a list of prompts, and each further one" in result.stderr
    assert result.stderr.endswith(f"nemo-prune {right}\n")
    assert run(*arguments, "--help").exit_code == 0


def _further_inputs(path: Path, scale: float) -> Path:
    """A UNet alone of 8 input channels, with the layer norms before its value layers at `scale`."""
    entries = rawfiles.unet(rawfiles.SD1, "diffusers", "F16", in_channels=8)
    norms = [n.replace("attn2.to_v", "norm2") for n, _, _ in entries if "to_v" in n]
    entries += [(name, "F16", (2,)) for name in norms] + [("conv_out.weight", "F16", (4, 4, 3, 3))]
    return rawfiles.write(path, entries, values=dict.fromkeys(norms, struct.pack("<2e", scale, -scale)))


def test_differences_to_a_model_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _further_inputs(Path("m.safetensors"), 0.01)
    Path("p.txt").write_text("a cat\n")
    for arguments in (
        ["apply", "m.safetensors", "--neurons", "0:1", "-o", "o.safetensors"],
        ["apply", "m.safetensors", "--neurons", "0:1", "--lora", "o.safetensors"],
        ["check", "m.safetensors", "--prompts", "p.txt", "--tau", ".5", "--gate", ".5"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "m.safetensors: holds differences to a model and no model" in result.stderr
        assert "its UNet takes 8 channels" in result.stderr
    assert not Path("o.safetensors").exists()
    assert (
        "family: sd1 (draws from more than text, differences to a model)"
        in run("inspect", "m.safetensors").output
    )


def test_further_input_channels_are_said_before_a_text_encoder_is_asked_for(tmp_path: Path) -> None:
    path = _further_inputs(tmp_path / "m.safetensors", 1.0)
    with pytest.raises(CheckpointError, match="takes 8 channels, so it draws from more than text"):
        open_engine(open_checkpoint(path), Options(device="cpu"))
    assert run("apply", path, "--neurons", "0:1", "-o", tmp_path / "o.safetensors").exit_code == 0


def test_packed_models_and_lists_are_called_so(model: Path) -> None:
    Path("g.safetensors").write_bytes(gzip.compress(model.read_bytes()))
    Path("p.txt").write_text("a cat on a mat in the sun\n")
    for name, words in (
        ("g.safetensors", "is compressed with gzip; unpack it"),
        ("p.txt", "is text, not safetensors; download or copy it again; a list of prompts, and each "
                  "further one, needs --prompts before it"),
    ):  # fmt: skip
        result = run("inspect", name)
        assert result.exit_code == 2
        assert f"nemo-prune: {name}: {words}" in result.stderr


def _zipped(member: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(member, b"x")
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.nemo", b"model_weights.ckpt".ljust(257, b"\0") + b"ustar\0" + bytes(300), "is a tar"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes them"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(99), "is a TensorFlow Lite model"),
        ("m.npz", _zipped("conv_in.weight.npy"), "holds arrays of NumPy"),
        ("m.keras", _zipped("metadata.json"), "is a model of Keras"),
        ("m.zipped", _zipped("archive/data.pkl"), "is a pickle checkpoint"),
        ("n.json", b'{\n  "format": "nemo-prune-manifest/1",\n', "is a manifest that this tool "
         "wrote, and no model; give the model, and this as --manifest"),
        ("r.json", b'{"format": "nemo-prune-report/1",', "is a report that this tool wrote, and no"),
        ("d.json", b'{"exit_code": 0, "models": []}', "is JSON, not a model: a program's result"),
    ],
)  # fmt: skip
def test_files_of_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    result = run("inspect", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"nemo-prune: {name}: {words}" in result.stderr


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["manifest.ocdbt", "_METADATA"], "is a checkpoint of Orbax (JAX) (manifest.ocdbt), which is"),
        (["latest_checkpointed_iteration.txt"], "is a checkpoint of Megatron"),
        (["unet_ema.pt"], "is a folder without unet/, and unet_ema.pt in it is not opened, as it"),
        (["unet/diffusion_flax_model.msgpack"], "is not opened (unet/diffusion_flax_model.msgpack), F"),
    ],
)  # fmt: skip
def test_folders_of_other_frameworks(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value)


def test_a_sidecar_that_says_v_and_stays_behind_is_said(model: Path) -> None:
    path = model.with_suffix(".yaml")
    for text, said in (("v", True), ("eps", False)):
        path.write_text(f'model: {{params: {{parameterization: "{text}"}}}}\n')
        for more in ([], ["--sidecars"]):
            result = run(
                "apply", model, "--neurons", "0:1", "-o", f"{text}{len(more)}.safetensors", *more
            )
            assert result.exit_code == 0
            assert ("note: m.yaml stays behind" in result.stderr) == (said and not more)


def test_a_schedule_that_is_none_of_theirs_is_said_by_inspect(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    entries = rawfiles.unet(rawfiles.SD1, "diffusers", "F16")
    rawfiles.write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", entries)
    (tmp_path / "scheduler").mkdir()
    text = '{"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}'
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    result = run("inspect", tmp_path)
    assert "unclear: " in result.stdout
    assert "was trained on another noise process (flow" in " ".join(result.stdout.split())


def test_foreign_text_encoders_are_said_by_inspect(model: Path) -> None:
    table = "cond_stage_model.roberta.embeddings.word_embeddings.weight"
    entries = [*rawfiles.unet(rawfiles.SD1), (table, "F32", (2, 2))]
    rawfiles.write(model, entries)
    assert "text encoder: True (of the kind roberta, which is not read" in run("inspect", model).stdout
    assert json.loads(run("inspect", model, "--json").stdout)["text_encoder_foreign"] == "roberta"


def test_metadata_beyond_what_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_prune.files.header.MAX_HEADER_BYTES", 100)
    assert "as of very large metadata (at most 100 are read)" in run("inspect", model).stderr


def test_heads_that_nothing_tells_are_not_guessed(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "untold", metadata={METADATA_KEY: "{}"})
    with pytest.raises(CheckpointError, match="nothing says how many attention heads its UNet has"):
        open_engine(open_checkpoint(path), Options(device="cpu"))


def test_a_model_is_not_judged_against_itself(model: Path) -> None:
    Path("copy.safetensors").write_bytes(model.read_bytes())
    for other in (model, Path("copy.safetensors")):
        with pytest.raises(NemoPruneError, match="or the same bytes; give the original"):
            check_inputs(open_checkpoint(model), open_checkpoint(other), ["a"], None)


def test_a_pruned_model_given_for_the_original(model: Path) -> None:
    assert run("apply", model, "--neurons", f"{DOWN}:3", "-o", "c.safetensors").exit_code == 0
    pruned = open_checkpoint(Path("c.safetensors"))
    with pytest.raises(OptionError, match="has rows of zeros that m"):
        check_inputs(pruned, open_checkpoint(model), ["a"], None)


def test_configs_with_a_byte_order_mark(tmp_path: Path) -> None:
    from nemo_prune.files.strict_json import read_object
    from nemo_prune.model.configs import read_config

    path = tmp_path / "unet" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"sample_size": 16}), encoding="utf-8-sig")
    assert read_object(path) == read_config(tmp_path, "unet") == {"sample_size": 16}
