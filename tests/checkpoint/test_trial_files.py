"""Files and folders as strangers hand them in: nothing unpruned is carried along, all is named."""

import io
import json
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
import rawfiles
from click.testing import CliRunner, Result
from folders import WEIGHTS, add_copy, pipeline, put, tree
from test_surgery import no_space

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.cli.main import main
from nemo_prune.errors import CheckpointError

PLAIN = f"unet/{WEIGHTS}"
FP16 = "unet/diffusion_pytorch_model.fp16.safetensors"
LINEAR = ("F32", (4, 4))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return pipeline(Path("m"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def add_tensor(path: Path, entry: rawfiles.Entry, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return rawfiles.write(path, [*rawfiles.unet(rawfiles.SD1, "diffusers", **options), entry])


# ------------------------------------------------- what may hold a copy, and is not understood


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("unet/weights", "unpruned")
    return made.getvalue()


def tarred() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("unet/weights"))
    return made.getvalue()


ARCHIVES = {
    "backup.zip": zipped(),
    "backup": zipped(),
    "old/notes.txt": zipped(),
    "backup.tar": tarred(),
    "old/backup": tarred(),
    "unet.tgz": b"\x1f\x8b",
    "unet_backup": b"BZh91AY&SY",
    "was": b"\xfd7zXZ\0",
    "was.dat": b"\x28\xb5\x2f\xfd",
    "old/it": b"Rar!\x1a\x07",
    "tf/variables.data-00000-of-00001": b"weights",
    "model.engine": b"weights",
    "old/unet.npz": b"weights",
    "old/pickled": b"\x80\x02}q",
    "unet.safetensors.bak": b"\2\1\0\0\0\0\0\0{",
}


@pytest.mark.parametrize("place", ARCHIVES)
def test_what_can_hold_a_copy_is_never_carried_along(model: Path, place: str) -> None:
    put(model / place, "").write_bytes(ARCHIVES[place])
    result = run("apply", model, "--neurons", "1:3", "-o", "out")
    assert result.exit_code == 2
    assert f"m: holds {place}, copies of the denoiser in a form that is not edited" in result.stderr
    assert not Path("out").exists()
    assert run("apply", model, "--neurons", "1:3", "-o", "out", "--drop-pickles").exit_code == 0
    assert tree(Path("out")).keys() == tree(model).keys() - {place}


def test_a_state_in_shards_of_torch_is_a_training_state(model: Path) -> None:
    for name in ("__0_0.distcp", ".metadata"):
        put(model / "pytorch_model_fsdp_0" / name, "").write_bytes(zipped())
    result = run("apply", model, "--neurons", "1:3", "-o", "out")
    assert result.exit_code == 2
    assert "and 1 more, the saved state of a training run" in result.stderr
    assert run("apply", model, "--neurons", "1:3", "-o", "out", "--drop-pickles").exit_code == 0
    assert not [place for place in tree(Path("out")) if "fsdp" in place]
    line = refusal(model / "pytorch_model_fsdp_0")
    assert "is the saved state of a training run (.metadata, __0_0.distcp), not a model" in line


@pytest.mark.parametrize("place", ["text_encoder/pytorch_model.bin", "vae/model.bin", "notes", "a.png"])
def test_other_components_and_what_begins_otherwise_are_copied(model: Path, place: str) -> None:
    put(model / place, "").write_bytes(zipped() if "/" in place else b"\x89PNG")
    assert run("apply", model, "--neurons", "1:3", "-o", "out").exit_code == 0
    assert tree(Path("out")).keys() == tree(model).keys()


# ------------------------------------------------- copies that are of another model


def test_a_variant_that_has_further_tensors_is_another_model(model: Path) -> None:
    add_tensor(model / FP16, ("time_embedding.cond_proj.weight", *LINEAR), dtype="F16")
    assert refusal(model) == (
        f"m/{FP16}: is another model than m/{PLAIN}, so one list of neurons cannot fit both "
        f"('time_embedding.cond_proj.weight' is in one of them alone); give a folder with one model"
    )


def test_a_variant_of_other_shapes_is_another_model(model: Path) -> None:
    add_copy(model / FP16, in_channels=9)
    assert "('conv_in.weight' is of two shapes); give a folder" in refusal(model)


@pytest.mark.parametrize(
    ("entry", "in_channels", "why"),
    [
        (("model.diffusion_model.time_embed.cond_proj.weight", *LINEAR), 4, "one of them is an LCM"),
        (("model.diffusion_model.time_embed.0.bias", *LINEAR), 9, "they take 4 and 9 channels"),
        (("model.diffusion_model.time_embed.0.bias", *LINEAR), 4, None),
    ],
)
def test_a_single_file_beside_the_components(
    model: Path, entry: rawfiles.Entry, in_channels: int, why: str | None
) -> None:
    rawfiles.write(
        model / "v1.safetensors", [*rawfiles.unet(rawfiles.SD1, in_channels=in_channels), entry]
    )
    if why is None:
        assert len(open_checkpoint(model).copies) == 2
    else:
        assert f"m/v1.safetensors: is another model than m/{PLAIN}" in refusal(model)
        assert f" ({why}); give a folder with one model" in refusal(model)


def test_marks_and_factors_make_no_other_model(model: Path) -> None:
    add_tensor(model / FP16, ("conv_in.scale_weight", "F32", ()), dtype="F8_E4M3")
    add_tensor(model / f"unet_ema/{WEIGHTS}", ("scaled_fp8", "F8_E4M3", (2,)))
    assert len(open_checkpoint(model).copies) == 3


# ------------------------------------------------- refusals name what it is


@pytest.mark.parametrize(
    ("place", "config", "entry", "words"),
    [
        (
            "transformer",
            "CogVideoXTransformer3DModel",
            "transformer_blocks.0.attn1.to_v.weight",
            "is a video",
        ),
        (
            "transformer",
            "LTXVideoTransformer3DModel",
            "transformer_blocks.0.attn2.to_v.weight",
            "is a video",
        ),
        (
            "transformer",
            "SomeTransformer",
            "blocks.0.weight",
            "is of the class SomeTransformer, without cross-",
        ),
        ("transformer", "", "patch_embed.text_proj.weight", "is a video model"),
        ("transformer", "", "context_refiner.0.attn.to_v.weight", "is a Lumina 2 model"),
        ("", "", "decoder.layers.2.conv.0.weight", "is a VAE alone"),
        ("", "", "vision_model.encoder.layers.0.self_attn.v_proj.weight", "is an image encoder alone"),
        ("", "", "body.0.in_conv.weight", "is a T2I-Adapter"),
        ("", "AutoencoderOther", "some.weight", "is of the class AutoencoderOther, without cross-"),
        ("", "", "llm.layers.0.self_attn.qkv_proj.weight", "is an OmniGen model"),
    ],
)
def test_a_foreign_model_is_told_by_its_config_or_tensors(
    tmp_path: Path, place: str, config: str, entry: str, words: str
) -> None:
    put(tmp_path / place / "config.json", {"_class_name": config} if config else {"architectures": 1})
    rawfiles.write(tmp_path / place / WEIGHTS, [(entry, *LINEAR)])
    for given in (tmp_path, tmp_path / place / WEIGHTS):
        assert f"{tmp_path / place / WEIGHTS}: {words}" in refusal(given)


def test_a_text_encoder_as_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "config.json", {"architectures": ["T5EncoderModel"]})
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    rawfiles.write(tmp_path / "model.safetensors", [(name, *LINEAR)])
    assert "model.safetensors: is a text encoder alone" in refusal(tmp_path)


def test_a_pipeline_without_a_denoiser_is_called_by_its_class(tmp_path: Path) -> None:
    put(tmp_path / "model_index.json", {"_class_name": "StableCascadeDecoderPipeline"})
    assert "is of the class StableCascadeDecoderPipeline, a folder without unet/ by its" in refusal(
        tmp_path
    )
    put(tmp_path / "model_index.json", {"_class_name": "APipeline", "unet": ["diffusers", "A"]})
    assert "is of the class APipeline, a folder without unet/; give a diffusers" in refusal(tmp_path)


def test_a_controlnet_beside_the_denoiser_is_to_be_moved(model: Path) -> None:
    add_tensor(model / "controlnet" / WEIGHTS, ("controlnet_cond_embedding.conv_in.weight", *LINEAR))
    assert "its value layers would stay unpruned; move controlnet/ out of m" in refusal(model)


def by_pictures(model: Path, kind: str, **more: list[str | None]) -> None:
    encoder = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    put(model / "model_index.json", {"_class_name": kind, "tokenizer": [None, None]} | encoder | more)


@pytest.mark.parametrize(
    "kind", ["PaintByExamplePipeline", "StableDiffusionImageVariationPipeline", "PipelineOfTomorrow"]
)
def test_a_model_that_pictures_steer_is_refused_by_what_its_index_lists(model: Path, kind: str) -> None:
    by_pictures(model, kind)
    for path in (model, model / "unet", model / PLAIN):
        assert f"{path}: is a model that is steered by pictures, not by text ({kind})" in refusal(path)
        assert run("inspect", path).exit_code == 2
    # A text encoder from elsewhere does not make it one of text.
    given = ("--prompts", put(model.parent / "p.txt", "a cat\n"), "--text-encoder", model)
    result = run("check", model, *given, "--tau", ".6", "--gate", ".7")
    assert result.exit_code == 2
    assert "steered by pictures" in result.stderr


def test_a_model_of_text_may_hold_an_image_encoder(model: Path) -> None:
    by_pictures(model, "StableDiffusionPipeline")  # an IP-Adapter's
    assert open_checkpoint(model).family == "sd1"
    by_pictures(model, "SomePipeline", tokenizer=["transformers", "CLIPTokenizer"])
    assert open_checkpoint(model).family == "sd1"


# ------------------------------------------------- inspect


@pytest.mark.parametrize(
    ("pipe", "entry", "kind"),
    [
        ("LatentConsistencyModelPipeline", ("time_embedding.cond_proj.weight", *LINEAR), "lcm"),
        (
            "StableDiffusionInstructPix2PixPipeline",
            ("time_embedding.weight", *LINEAR),
            "instruct-pix2pix",
        ),
        (
            "StableDiffusionGLIGENPipeline",
            ("mid_block.attentions.0.transformer_blocks.0.fuser.linear.weight", *LINEAR),
            "gligen",
        ),
        ("MarigoldDepthPipeline", ("conv_out.weight", "F32", (2, 5, 3, 3)), "draws from more than text"),
        ("StableDiffusionPipeline", ("conv_out.weight", "F32", (4, 5, 3, 3)), None),
        ("MVDreamPipeline", ("camera_embedding.linear_1.weight", *LINEAR), "multi-view"),
        ("BlipDiffusionPipeline", ("time_embedding.weight", *LINEAR), "blip-diffusion"),
        ("KolorsPipeline", ("encoder_hid_proj.weight", *LINEAR), "kolors"),
        ("StableDiffusionPipeline", ("time_embedding.weight", *LINEAR), None),
    ],
)
def test_inspect_names_the_kind(model: Path, pipe: str, entry: rawfiles.Entry, kind: str | None) -> None:
    put(model / "model_index.json", {"_class_name": pipe})
    add_tensor(model / PLAIN, entry)
    assert json.loads(run("inspect", model, "--json").stdout)["kind"] == kind
    assert f"family: sd1{f' ({kind})' if kind else ''}\n" in run("inspect", model).stdout


def test_inspect_tells_of_all_copies(model: Path) -> None:
    add_copy(model / f"unet_ema/{WEIGHTS}", dtype="F32")
    shown = run("inspect", model).stdout
    total = sum((model / place).stat().st_size for place in (PLAIN, f"unet_ema/{WEIGHTS}"))
    assert "dtypes: F16, F32\n" in shown
    assert f"bytes: {total}\n" in shown
    assert "unedited" not in shown
    copies = json.loads(run("inspect", model, "--json").stdout)["copies"]
    assert [copy["dtypes"] for copy in copies] == [["F16"], ["F32"]]


def test_hashes_fit_eighty_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    run("apply", rawfiles.sd1(Path("a.safetensors")), "--neurons", "1:3", "-o", "b.safetensors")
    shown = run("inspect", "b.safetensors", "--hash").stdout
    assert max(map(len, shown.splitlines())) <= 80
    told = json.loads(run("inspect", "b.safetensors", "--json").stdout)["provenance"]
    assert f"nemo_prune.source_sha256:\n  {told['nemo_prune.source_sha256']}\n" in shown


# ------------------------------------------------- apply, diff


def test_neurons_by_number_are_of_one_architecture(model: Path) -> None:
    rawfiles.sd1(Path("a.safetensors"))
    rawfiles.write(Path("xl.safetensors"), rawfiles.unet(rawfiles.SDXL, sdxl=True))
    result = run("apply", "a.safetensors", model, "xl.safetensors", "--neurons", "1:3", "-o", "out")
    assert result.exit_code == 2
    assert "xl.safetensors: is another architecture (sdxl, " in result.stderr
    assert "run them apart\n" in result.stderr
    assert not Path("out").exists()
    assert run("apply", "a.safetensors", model, "--neurons", "1:3", "-o", "out").exit_code == 0


def test_rows_that_were_zero_already_are_said(model: Path) -> None:
    assert "note" not in run("apply", model, "--neurons", "1:3", "-o", "one").stderr
    result = run("apply", "one", "--neurons", "1:3,1:2", "-o", "two", "--json")
    assert "note: 1 of 2 neurons were zero in one already\n" in result.stderr
    assert json.loads(result.stdout)["already_zero"] == 1


def test_a_name_that_other_programs_do_not_list(model: Path) -> None:
    rawfiles.sd1(Path("a.safetensors"))
    result = run("apply", "a.safetensors", "--neurons", "1:3", "-o", "plain", "--lora", "l")
    for name in ("plain", "l"):
        assert f"note: {name}: A1111, Forge and ComfyUI list only what ends in .safe" in result.stderr
    result = run("apply", model, "--neurons", "1:3", "-o", "p", "--lora", "m.safetensors")
    assert "note" not in result.stderr


@pytest.mark.usefixtures("model")
def test_what_comfyui_lists() -> None:
    result = run("apply", rawfiles.sd1(Path("a.safetensors")), "--neurons", "1:3", "-o", "x.sft")
    assert "note: x.sft: A1111 and Forge list only what ends in .safetensors" in result.stderr


@pytest.mark.parametrize("name", ["rows.pt", "rows.BIN", "rows.gguf", "rows.onnx", "rows.zip"])
@pytest.mark.usefixtures("model")
def test_names_of_other_formats_are_given_to_none(name: str) -> None:
    given = ["apply", rawfiles.sd1(Path("a.safetensors")), "--neurons", "1:3"]
    for options in (["-o", "o", "--undo", name], ["--lora", name], ["-o", name]):
        result = run(*given, *options)
        assert result.exit_code == 2
        assert f"{name}: has the name of " in result.stderr
    assert not Path("o").exists()
    assert not Path(name).exists()


def test_what_is_left_out_is_said(model: Path) -> None:
    put(model / "v1.ckpt", "a pickle")
    result = run("apply", model, "--neurons", "1:3", "-o", "o", "--drop-pickles")
    assert "note: --drop-pickles left out v1.ckpt\n" in result.stderr


def test_files_that_are_copied_instead_of_linked_are_said(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["apply", model, "--neurons", "1:3", "--link", "-o"]
    assert "note" not in run(*given, "linked").stderr
    monkeypatch.setattr(Path, "hardlink_to", no_space)
    assert "note: --link: 5 files lie on another disk or " in run(*given, "copied").stderr


@pytest.mark.usefixtures("model")
def test_a_full_disk_for_the_lora_leaves_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    rawfiles.sd1(Path("a.safetensors"))
    monkeypatch.setattr("nemo_prune.checkpoint.lora.write_at", no_space)
    given = ["-o", "o.safetensors", "--undo", "u.safetensors", "--lora", "l.safetensors"]
    result = run("apply", "a.safetensors", "--neurons", "1:3", *given)
    assert "l.safetensors: cannot be written (no space left" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["a.safetensors", "m"]


@pytest.mark.skipif(os.name == "nt", reason="no rights of others")
@pytest.mark.usefixtures("model")
def test_removed_rows_are_as_private_as_the_model() -> None:
    rawfiles.sd1(Path("a.safetensors")).chmod(0o600)
    assert run("apply", "a.safetensors", "--neurons", "1:3", "-o", "o", "--undo", "u", "--lora", "l")
    assert [Path(name).stat().st_mode & 0o777 for name in "ul"] == [0o600, 0o600]


@pytest.mark.parametrize("place", [FP16, PLAIN, "v1.safetensors"])
def test_an_unpruned_copy_beside_a_pruned_one_is_found(model: Path, place: str) -> None:
    add_copy(model / FP16)
    assert run("apply", model, "--neurons", "1:3", "-o", "o").exit_code == 0
    assert run("inspect", "o", "--strict").exit_code == 0
    Path("o", place).write_bytes((model / PLAIN).read_bytes())
    result = run("inspect", "o", "--strict")
    assert result.exit_code == 1
    assert "the metadata name row 3 of " in result.stdout


def test_a_pointer_of_git_lfs_is_no_manifest(model: Path) -> None:
    Path("n.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    result = run("apply", model, "--manifest", "n.json", "-o", "o")
    assert "n.json: is a git-lfs pointer, not the file itself; run `git lfs pull`" in result.stderr


def test_a_list_where_nobody_gives_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat on a mat in the sun\n")
    rawfiles.sd1(Path("a.safetensors"))
    for arguments in (
        ["diff", "a.safetensors", "p.txt"],
        ["apply", "p.txt", "--neurons", "1:3", "-o", "o"],
    ):
        assert run(*arguments).stderr == (
            "nemo-prune: p.txt: is text, not safetensors; download or copy it again\n"
        )


def test_a_motion_module_inside_a_model(tmp_path: Path) -> None:
    """AnimateDiff's, which would do what no prompt alone is scored with."""
    name = "model.diffusion_model.input_blocks.1.2.temporal_transformer.proj_in.weight"
    path = rawfiles.write(tmp_path / "m", [*rawfiles.unet(rawfiles.SD1), (name, "F32", (4, 4))])
    with pytest.raises(CheckpointError, match="is a video model"):
        open_checkpoint(path)


@pytest.mark.skipif(os.name == "nt", reason="rights are POSIX's")
@pytest.mark.parametrize(
    ("mode", "wanted"), [(0o600, 0o600), (0o640, 0o640), (0o666, 0o644), (0o444, 0o644)]
)
def test_a_pruned_copy_shows_nothing_to_more_people(tmp_path: Path, mode: int, wanted: int) -> None:
    path = rawfiles.sd1(tmp_path / "m.safetensors")
    root = pipeline(tmp_path / "model")
    for file in (path, *(file for file in root.rglob("*") if file.is_file())):
        file.chmod(mode)
    before = os.umask(0o022)
    try:
        for source, out in ((path, tmp_path / "o.safetensors"), (root, tmp_path / "out")):
            given = ["apply", str(source), "--neurons", "0:1", "-o", str(out)]
            assert CliRunner().invoke(main, given).exit_code == 0
            files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {wanted}
    finally:
        os.umask(before)
