import json
import subprocess
import sys
from importlib.resources import files

import pytest
import rawfiles
from rawfiles import CLIP, OPEN_CLIP, SD1, SD2, SDXL, VAE, XL_CLIPS, unet, value_names, write

from nemo_prune.checkpoint.families import FAMILIES, Family
from nemo_prune.checkpoint.neurons import short_name
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError, OptionError

END = ".transformer_blocks.0.attn2.to_v"
SD1_ORDER = [
    *(f"down_blocks.{b}.attentions.{a}{END}" for b in range(3) for a in range(2)),
    f"mid_block.attentions.0{END}",
    *(f"up_blocks.{b}.attentions.{a}{END}" for b in (1, 2, 3) for a in range(3)),
]


def put(tmp_path, entries, metadata=None, name="m.safetensors"):
    return write(tmp_path / name, entries, metadata)


def without(entries, *words):
    return [e for e in entries if not any(w in e[0] for w in words)]


def reshaped(entries, word, dtype=None, shape=None):
    return [(n, dtype or d, shape or s) if word in n else (n, d, s) for n, d, s in entries]


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        recognize(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


# ------------------------------------------------------------------------------- what is known


def test_sd1_single_file(tmp_path):
    checkpoint = recognize(rawfiles.sd1(tmp_path / "m.safetensors"))
    assert (checkpoint.family, checkpoint.layout) == ("sd1", "ldm")
    assert checkpoint.text_encoder
    assert checkpoint.vae
    assert not checkpoint.ema
    assert checkpoint.in_channels == 4
    assert checkpoint.prediction_type is None
    assert checkpoint.path == tmp_path / "m.safetensors"
    assert [v.name for v in checkpoint.value_layers] == SD1_ORDER
    assert [v.part for v in checkpoint.value_layers] == ["down"] * 6 + ["mid"] + ["up"] * 9
    assert [v.rows for v in checkpoint.value_layers] == [4, 4, 6, 6, 8, 8, 8] + [8] * 3 + [6] * 3 + [
        4
    ] * 3
    assert {v.columns for v in checkpoint.value_layers} == {5}
    first = checkpoint.value_layers[0]
    assert first.tensors == (f"model.diffusion_model.input_blocks.1.1{END}.weight",)
    assert first.biases == ()


@pytest.mark.parametrize("names", ["ldm", "diffusers"])
@pytest.mark.parametrize(
    ("family", "shape", "extra"),
    [("sd1", SD1, []), ("sd2", SD2, []), ("sdxl", SDXL, [])],
)
def test_both_namings_give_the_same_layers(tmp_path, names, family, shape, extra):
    entries = unet(shape, names, "F8_E4M3", sdxl=family == "sdxl") + extra
    checkpoint = recognize(put(tmp_path, entries))
    assert checkpoint.family == family
    assert checkpoint.layout == {"ldm": "unet-ldm", "diffusers": "unet-diffusers"}[names]
    assert not checkpoint.text_encoder
    want = [(own, rows, shape["columns"]) for _, own, rows in value_names(shape)]
    assert [(v.name, v.rows, v.columns) for v in checkpoint.value_layers] == want


def test_the_numbers_of_the_real_families(tmp_path):
    """Layers and rows of down + mid and of all, at the true widths (one column to stay small)."""
    sd = SD1 | {"widths": (320, 640, 1280, 1280), "columns": 1}
    xl = SDXL | {"widths": (320, 640, 1280), "columns": 1}
    for shape, sdxl, counts in [
        (sd, False, (7, 5760, 16, 12480)),
        (xl, True, (34, 40960, 70, 83200)),
    ]:
        checkpoint = recognize(put(tmp_path, unet(shape, dtype="F8_E4M3", sdxl=sdxl)))
        some, everything = checkpoint.select("down+mid"), checkpoint.select("all")
        assert (len(some), sum(v.rows for v in some)) == counts[:2]
        assert (len(everything), sum(v.rows for v in everything)) == counts[2:]


def test_layers_are_chosen_by_whole_and_by_short_names(tmp_path):
    checkpoint = recognize(put(tmp_path, unet(SD1)))
    for pattern in ("down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
                    "down_blocks.0.attentions.1.0", "*_blocks.0.attentions.1.*"):  # fmt: skip
        (layer,) = checkpoint.select(pattern)
        assert short_name(layer.name) == "down_blocks.0.attentions.1.0"
    with pytest.raises(OptionError, match=r"patterns such as down_blocks\.0\.attentions\.0\.\*$"):
        checkpoint.select("down_blocks.9.*")
    assert short_name("mid_block.attentions.0.transformer_blocks.0.attn2") == "mid_block.attentions.0.0"


def test_depth_ten_comes_after_two(tmp_path):
    deep = SDXL | {"depths": (0, 2, 12), "mid": 12}
    checkpoint = recognize(put(tmp_path, unet(deep, dtype="F8_E5M2", sdxl=True)))
    mid = [v.name for v in checkpoint.value_layers if v.part == "mid"]
    assert mid == [f"mid_block.attentions.0.transformer_blocks.{d}.attn2.to_v" for d in range(12)]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_blocks_of_other_lengths_are_told_by_their_samplers(tmp_path, layers):
    shape = SD1 | {"layers": layers}
    names = [
        [v.name for v in recognize(put(tmp_path, unet(shape, n))).value_layers]
        for n in ("ldm", "diffusers")
    ]
    assert names[0] == names[1] == [own for _, own, _ in value_names(shape)]


@pytest.mark.parametrize(
    ("shape", "extra", "family"),
    [
        (SD1 | {"columns": 64}, [CLIP], "sd1"),
        (SD1 | {"columns": 768}, [], "sd1"),
        (SD1 | {"columns": 64}, [OPEN_CLIP], "sd2"),
        (SD1 | {"columns": 1024}, [CLIP], "sd2"),
        (SDXL | {"columns": 64}, XL_CLIPS, "sdxl"),
    ],
)
def test_thinner_models_are_told_by_their_keys(tmp_path, shape, extra, family):
    assert recognize(put(tmp_path, unet(shape) + extra)).family == family


@pytest.mark.parametrize("names", ["ldm", "diffusers"])
@pytest.mark.parametrize(("proj_in", "family"), [((4, 4, 1, 1), "sd1"), ((4, 4), "sd2")])
def test_a_thin_unet_alone_is_told_by_its_projection(tmp_path, names, proj_in, family):
    entries = unet(SD1, names)
    stem = next(n for n, _, _ in entries if "to_v" in n).partition("transformer_blocks")[0]
    first = (
        "model.diffusion_model.input_blocks.1.1." if names == "ldm" else "down_blocks.0.attentions.0."
    )
    assert stem == first
    assert (
        recognize(put(tmp_path, [*entries, (first + "proj_in.weight", "F32", proj_in)])).family == family
    )


def test_inpainting_channels(tmp_path):
    for names in ("ldm", "diffusers"):
        assert recognize(put(tmp_path, unet(SD1, names, in_channels=9))).in_channels == 9


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.", ""])
def test_ldm_unets_under_other_prefixes(tmp_path, prefix):
    entries = [(n.replace("model.diffusion_model.", prefix), d, s) for n, d, s in unet(SD1)]
    checkpoint = recognize(put(tmp_path, entries))
    assert checkpoint.layout == "unet-ldm"
    assert [v.name for v in checkpoint.value_layers] == SD1_ORDER


@pytest.mark.parametrize("names", ["ldm", "diffusers"])
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "unet.", "module._orig_mod.unet.", "x."])
def test_names_that_a_wrapper_lengthened_are_read_as_what_they_are(tmp_path, names, wrapper):
    whole = [VAE, CLIP, *unet(SD1)] if names == "ldm" else unet(SD1, names)
    whole += rawfiles.ema(whole)
    marker = ("v_pred", "F32", (0,))
    plain = recognize(put(tmp_path, [*whole, marker]))
    checkpoint = recognize(put(tmp_path, [*[(wrapper + n, d, s) for n, d, s in whole], marker]))
    # torch.compile's alone needs no noting: it is taken out wherever it stands.
    assert (checkpoint.wrapper, plain.wrapper) == (wrapper if wrapper != "_orig_mod." else "", "")
    assert (checkpoint.layout, checkpoint.vae) == (plain.layout, plain.vae)
    assert checkpoint.prediction_type == "v_prediction"
    assert [v.name for v in checkpoint.value_layers] == SD1_ORDER
    for layer, own in zip(plain.value_layers, checkpoint.value_layers, strict=True):
        assert own.tensors == tuple(wrapper + key for key in layer.tensors)
    assert sum(len(v.tensors) for v in checkpoint.parts[0].value_layers) == 16 * (1 + plain.ema)


@pytest.mark.parametrize(
    "within",
    [
        "_orig_mod",
        "_checkpoint_wrapped_module",
        "_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod",
    ],
)
def test_parts_that_were_compiled_or_wrapped_alone(tmp_path, within):
    entries = [(n.replace(".0.attn2", f".0.{within}.attn2"), d, s) for n, d, s in unet(SD1)]
    checkpoint = recognize(put(tmp_path, [VAE, CLIP, *entries]))
    assert [v.name for v in checkpoint.value_layers] == SD1_ORDER
    assert within in checkpoint.value_layers[0].tensors[0]
    wrapped = [(f"base_model.model._{n}", d, s) for n, d, s in entries]
    wrapped = [(n.replace("model._", f"model.{within}."), d, s) for n, d, s in wrapped]
    assert [v.name for v in recognize(put(tmp_path, wrapped)).value_layers] == SD1_ORDER


def test_ema_twins_are_copies(tmp_path):
    checkpoint = recognize(rawfiles.sd1(tmp_path / "m.safetensors", with_ema=True, ema_dtype="F32"))
    assert checkpoint.ema
    assert all(len(v.tensors) == 2 for v in checkpoint.value_layers)
    by_name = {v.name: v for v in checkpoint.value_layers}
    assert by_name[f"down_blocks.0.attentions.0{END}"].tensors == (
        f"model.diffusion_model.input_blocks.1.1{END}.weight",
        "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn2to_vweight",
    )
    # 11.1 and 1.11 would be told apart even without dots: these belong to output block 11.
    assert by_name[f"up_blocks.3.attentions.2{END}"].tensors[1] == (
        "model_ema.diffusion_modeloutput_blocks111transformer_blocks0attn2to_vweight"
    )


def test_ema_twins_with_dots_are_copies_too(tmp_path):
    entries = unet(SD1)
    twins = [("model_ema." + n.removeprefix("model."), d, s) for n, d, s in entries]
    checkpoint = recognize(put(tmp_path, entries + twins))
    assert all(len(v.tensors) == 2 for v in checkpoint.value_layers)


def test_biases_and_scales(tmp_path):
    entries = unet(SD1, "diffusers")
    stem = f"mid_block.attentions.0{END}"
    entries += [(f"{stem}.bias", "F32", (8,)), (f"{stem}.scale_weight", "F32", ())]
    layers = {v.name: v for v in recognize(put(tmp_path, entries)).value_layers}
    assert layers[stem].biases == (f"{stem}.bias",)
    words = f"has the bias {stem}.bias of shape [7] where [8] is due; download or save it again"
    assert words in refusal(put(tmp_path, reshaped(entries, "to_v.bias", shape=(7,))))


@pytest.mark.parametrize(
    ("metadata", "marker", "kind"),
    [
        ({"modelspec.prediction_type": "epsilon"}, [], "epsilon"),
        ({"modelspec.prediction_type": "v"}, [], "v_prediction"),
        ({"modelspec.prediction_type": "V_Prediction"}, [], "v_prediction"),
        ({"modelspec.prediction_type": "rectified"}, [], None),
        ({}, ["v_pred"], "v_prediction"),
        ({}, ["v_pred", "ztsnr"], "v_prediction"),
        ({}, ["ztsnr"], None),
        ({"modelspec.prediction_type": "epsilon"}, ["v_pred"], "epsilon"),
        (None, [], None),
    ],
)
def test_prediction_type(tmp_path, metadata, marker, kind):
    entries = [*unet(SDXL, sdxl=True, dtype="F16"), *((m, "F32", (0,)) for m in marker)]
    assert recognize(put(tmp_path, entries, metadata)).prediction_type == kind


# ------------------------------------------------------------------------------------ selecting


def test_select(tmp_path):
    checkpoint = recognize(rawfiles.sd1(tmp_path / "m.safetensors"))

    def names(layers):
        return [v.name for v in checkpoint.select(layers)]

    assert names("down+mid") == SD1_ORDER[:7]
    assert names("mid + down") == SD1_ORDER[:7]
    assert names("up") == SD1_ORDER[7:]
    assert names("all") == SD1_ORDER
    assert names("up_blocks.3.*, down_blocks.0.attentions.1.*") == [SD1_ORDER[1], *SD1_ORDER[13:]]
    assert names("mid,*.attentions.0.*") == [n for n in SD1_ORDER if "attentions.0" in n or "mid" in n]
    assert names(SD1_ORDER[3]) == [SD1_ORDER[3]]
    for nothing in ("", "down+middle", "mid,", "down_blocks.9.*", "DOWN"):
        with pytest.raises(OptionError, match="no value layer matches"):
            names(nothing)


# ------------------------------------------------------------------------------------- refusals

LINEAR = ("F32", (4, 4))
LORA = (
    "is a LoRA (or the like), an addition to a model; give the checkpoint that it belongs to, with the "
    "LoRA merged"
)
VAE_ALONE, TEXT_ALONE = (
    f"is a {part} alone, which draws no picture by itself; give the checkpoint that it belongs to"
    for part in ("VAE", "text encoder")
)
CONTROLNET = "holds a ControlNet, not a text-to-image model alone; give the model it steers"
REFINER = "is the SDXL refiner, which only retouches what the base model drew; prune that"
JOINT = (
    "its attention joins text and picture in one stream, so no value layer sees the text alone and the "
    "method does not apply as it stands; use a Stable Diffusion 1, 2 or XL file"
)
PIXART = (
    "is a transformer with cross-attention: of these PixArt-alpha and -sigma are read, from diffusers "
    "folders, and the method was never tried on others (Sana, ...); give such a folder, or a Stable "
    "Diffusion 1, 2 or XL checkpoint"
)
NO_VALUES = (
    "is of an unknown family: it has no cross-attention value layers (attn2.to_v); give a Stable "
    "Diffusion 1, 2 or XL checkpoint"
)
STRAY = (
    "whose place in the network is unknown, so memorization could stay in it; remove it, or save the "
    "plain model"
)
PACKED = "where [neurons, text channels] is due; save the model unquantized and unpacked"
NO_FIRST = (
    "is incomplete: its UNet has no first convolution (model.diffusion_model.input_blocks.0.0.weight); "
    "download or save it again"
)
VIDEO = "is a video model, a family the method was never tried on; give an image model"
INJECTED = (
    "is a model with an adapter (a LoRA or the like) injected and not merged; merge the adapter first "
    "(diffusers: fuse_lora, then unload_lora_weights and save_pretrained)"
)
REFUSED = {
    "kohya lora": (
        [("lora_unet_down_blocks_0_attentions_0_attn2_to_v.lora_down.weight", *LINEAR)],
        LORA,
    ),
    "peft lora": ([(f"unet.mid_block.attentions.0{END}.lora_A.weight", *LINEAR)], LORA),
    "diffusers lora": (
        [("unet.mid_block.attn2.processor.to_v_lora.up.weight", *LINEAR)],
        LORA,
    ),
    "lycoris": ([("lora_te_text_model_encoder.hada_w1_a", *LINEAR)], LORA),
    "lora beside the weights": (
        [*unet(SD1, "diffusers"), ("mid_block.attentions.0.to_q.lora_A.default.weight", *LINEAR)],
        INJECTED,
    ),
    "injected adapter": (
        [
            *[(n.replace("to_v.w", "to_v.base_layer.w"), d, s) for n, d, s in unet(SD1, "diffusers")],
            (f"mid_block.attentions.0{END}.lora_A.default.weight", *LINEAR),
        ],
        INJECTED,
    ),
    "fused projections beside the value layers": (
        [
            *unet(SD1, "diffusers"),
            *[
                (n.replace("to_v.w", "to_kv.w"), d, s)
                for n, d, s in unet(SD1, "diffusers")
                if "to_v.w" in n
            ],
        ],
        "has fused projections",
    ),
    "compiled and plain": (
        unet(SD1, "diffusers") + [("_orig_mod." + n, d, s) for n, d, s in unet(SD1, "diffusers")],
        "holds tensors twice, with and without the names that a compiled or wrapped model has",
    ),
    "ip-adapter": (
        [("image_proj.proj.weight", *LINEAR), ("ip_adapter.1.to_k_ip.weight", *LINEAR)],
        "is an IP-Adapter, an addition to a model that lets pictures be prompts; give the checkpoint",
    ),
    "ip-adapter with a lora": (
        [("ip_adapter.1.to_v_ip.weight", *LINEAR), ("ip_adapter.0.to_k_lora.down.weight", *LINEAR)],
        "is an IP-Adapter, an addition to a model that lets pictures be prompts; give the checkpoint",
    ),
    "full difference": (
        [("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.diff", *LINEAR)],
        LORA,
    ),
    "quanto": (
        [(f"mid_block.attentions.0{END}.weight._data", *LINEAR)],
        "is quantized (optimum-quanto)",
    ),
    "custom diffusion": (
        [
            (
                f"mid_block.attentions.0{END.partition('.to_v')[0]}.processor.to_v_custom_diffusion.weight",
                *LINEAR,
            )
        ],
        "is of Custom Diffusion, an addition to a model; give the checkpoint that it belongs to",
    ),
    "hidream": (
        [("double_stream_blocks.0.block.attn1.to_v.weight", *LINEAR)],
        f"is a HiDream model: {JOINT}",
    ),
    "t2i-adapter": ([("adapter.body.0.resnets.0.block1.weight", *LINEAR)], "is a T2I-Adapter, an"),
    "original t2i-adapter": ([("body.0.in_conv.weight", *LINEAR)], "is a T2I-Adapter, an addition"),
    "controlnet-lllite": ([("lllite_unet_input_blocks.down.0.weight", *LINEAR)], CONTROLNET),
    "a1111 embedding": ([("emb_params", "F32", (4, 768))], "is an embedding (textual inversion), a"),
    "sdxl embedding": (
        [("clip_l", "F16", (2, 768)), ("clip_g", "F16", (2, 1280))],
        "is an embedding (textual inversion), a word for a model and not a model; give the checkpoint",
    ),
    "diffusers embedding": ([("<cat-toy>", "F32", (768,))], "is an embedding (textual inversion), a"),
    "embedding by its word": ([("sks", "F32", (1024,))], "is an embedding (textual inversion), a"),
    "no embedding": ([("sks", "F32", (77,))], NO_VALUES),
    "hunyuan-dit": (
        [("text_embedding_padding", *LINEAR), ("blocks.0.attn2.to_v.weight", *LINEAR)],
        "is a Hunyuan-DiT model, a transformer which the method was never tried on; give a",
    ),
    "original hunyuan-dit": ([("blocks.0.attn2.kv_proj.weight", *LINEAR)], "is a Hunyuan-DiT model"),
    "auraflow": (
        [("model.double_layers.0.attn.w1q.weight", *LINEAR)],
        f"is an AuraFlow model: {JOINT}",
    ),
    "diffusers auraflow": (
        [
            ("joint_transformer_blocks.0.attn.add_v_proj.weight", *LINEAR),
            ("single_transformer_blocks.0.attn.to_v.weight", *LINEAR),
        ],
        f"is an AuraFlow model: {JOINT}",
    ),
    "cascade": (
        [("clip_txt_pooled_mapper.weight", *LINEAR), ("down_blocks.0.0.depthwise.weight", *LINEAR)],
        "is a stage of Stable Cascade (Wuerstchen), whose attention takes text and picture together",
    ),
    "kandinsky": (
        [
            ("encoder_hid_proj.image_embeds.weight", *LINEAR),
            ("mid_block.attentions.0.add_v_proj.weight", *LINEAR),
        ],
        "is a Kandinsky model, which takes its text through added keys and values",
    ),
    "deepfloyd": (
        [
            ("encoder_hid_proj.weight", *LINEAR),
            ("add_embedding.pool.k_proj.weight", *LINEAR),
            ("mid_block.attentions.0.add_v_proj.weight", *LINEAR),
        ],
        "is a DeepFloyd IF model, which takes its text through added keys and values",
    ),
    "text-to-video unet": (
        [*unet(SD2, "diffusers"), ("mid_block.temp_convs.0.conv1.2.weight", *LINEAR)],
        VIDEO,
    ),
    "ltx video": (
        [("patchify_proj.weight", *LINEAR), ("transformer_blocks.0.attn2.to_v.weight", *LINEAR)],
        VIDEO,
    ),
    "wan video": (
        [("patch_embedding.weight", "F32", (4, 2, 1, 2, 2)), ("blocks.0.cross_attn.v.weight", *LINEAR)],
        VIDEO,
    ),
    "hunyuan video": (
        [
            ("double_blocks.0.img_attn.qkv.weight", *LINEAR),
            ("txt_in.individual_token_refiner.blocks.0.a.weight", *LINEAR),
        ],
        VIDEO,
    ),
    "ldm vae": ([VAE], VAE_ALONE),
    "bare vae": (
        [("decoder.conv_in.weight", *LINEAR), ("encoder.mid.block_1.norm1.weight", *LINEAR)],
        VAE_ALONE,
    ),
    "diffusers vae": (
        [("encoder.conv_in.weight", *LINEAR), ("encoder.down_blocks.0.resnets.0.a", *LINEAR)],
        VAE_ALONE,
    ),
    "clip": ([("text_model.embeddings.position_ids", "I64", (1, 77))], TEXT_ALONE),
    "ldm clip": ([CLIP], TEXT_ALONE),
    "t5": ([("encoder.block.0.layer.0.SelfAttention.q.weight", *LINEAR)], TEXT_ALONE),
    "ldm controlnet": (
        [("control_model." + n[22:], d, s) for n, d, s in unet(SD1)],
        CONTROLNET,
    ),
    "whole file with controlnet": (
        [*unet(SD1), CLIP, ("control_model.zero_convs.0.0.weight", *LINEAR)],
        CONTROLNET,
    ),
    "diffusers controlnet": (
        [*unet(SD1, "diffusers"), ("controlnet_cond_embedding.conv_in.weight", *LINEAR)],
        CONTROLNET,
    ),
    "refiner": (
        [
            *unet(SDXL | {"columns": 1280}, sdxl=True, dtype="F8_E4M3"),
            ("conditioner.embedders.0.model.ln_final.weight", "F32", (8,)),
        ],
        REFINER,
    ),
    "refiner unet": (unet(SDXL | {"columns": 1280}, "diffusers", "F16", sdxl=True), REFINER),
    "flux": (
        [("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", *LINEAR), VAE],
        f"is a Flux model: {JOINT}",
    ),
    "diffusers flux": (
        [
            ("single_transformer_blocks.0.attn.to_v.weight", *LINEAR),
            ("transformer_blocks.0.attn.add_v_proj.weight", *LINEAR),
        ],
        f"is a Flux model: {JOINT}",
    ),
    "sd3": (
        [("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", *LINEAR), VAE],
        f"is a Stable Diffusion 3 model: {JOINT}",
    ),
    "diffusers sd3": (
        [("transformer_blocks.0.attn.add_v_proj.weight", *LINEAR)],
        f"is a joint-attention transformer (Stable Diffusion 3, Flux): {JOINT}",
    ),
    "a whole unet with cloneofsimo's loras": (
        [(n.replace("to_v.weight", "to_v.linear.weight"), d, s) for n, d, s in unet(SD1, "diffusers")]
        + [(f"mid_block.attentions.0{END}.lora_down.weight", *LINEAR)],
        "is a model with an adapter (a LoRA or the like) injected and not merged; merge the adapter",
    ),
    "a whole unet with kohya's loras": (
        [
            (n.replace("to_v.weight", "to_v.org_module.weight"), d, s)
            for n, d, s in unet(SD1, "diffusers")
        ]
        + [(f"mid_block.attentions.0{END}.lora_down.weight", *LINEAR)],
        "is a model with an adapter (a LoRA or the like) injected and not merged; merge the adapter",
    ),
    "student and teacher": (
        [(f"{who}.{n}", d, s) for who in ("student", "teacher") for n, d, s in unet(SD1, "diffusers")],
        "holds 2 UNets ('student', 'teacher'), and nothing says which of them draws; save that one",
    ),
    "pixart": (
        [("transformer_blocks.0.attn2.to_v.weight", *LINEAR)],
        PIXART,
    ),
    "original pixart": (
        [("blocks.0.cross_attn.kv_linear.weight", *LINEAR)],
        PIXART,
    ),
    "unknown value layers": (
        [("stages.0.attn2.to_v.weight", *LINEAR)],
        "is of an unknown family: its value layers ('stages.0.attn2.to_v.weight', ...) do not lie as in "
        "Stable Diffusion 1, 2 or XL; give such a checkpoint",
    ),
    "unclip": (
        [*unet(SD2), ("model.diffusion_model.label_emb.0.0.weight", *LINEAR)],
        "is of an unknown family: it has SDXL's added conditions but attends to text in its first "
        "block (unCLIP?); give a Stable Diffusion 1, 2 or XL checkpoint",
    ),
    "upscaler": (
        [*unet(SD2, "diffusers"), ("class_embedding.weight", *LINEAR)],
        "is an upscaler or unCLIP model, which draws from more than text; not known",
    ),
    "video": (
        [
            *unet(SD2),
            ("model.diffusion_model.input_blocks.1.1.time_stack.0.attn2.to_v.weight", *LINEAR),
        ],
        VIDEO,
    ),
    "video by other names": (  # VideoCrafter's
        [
            *unet(SD2),
            ("model.diffusion_model.init_attn.0.norm.weight", *LINEAR),
            (f"model.diffusion_model.input_blocks.1.2{END}.weight", *LINEAR),
        ],
        VIDEO,
    ),
    "language model": ([("model.layers.0.self_attn.v_proj.weight", *LINEAR)], NO_VALUES),
    "unconditional unet": (
        [("time_embedding.linear_1.weight", *LINEAR), ("conv_in.weight", *LINEAR)],
        NO_VALUES,
    ),
    "unknown copy": (
        [*unet(SD1), ("ema.input_blocks.1.1.attn2.to_v.weight\n", *LINEAR)],
        STRAY,
    ),
    "a second unet": (
        unet(SD1) + unet(SD1, "diffusers"),
        STRAY,
    ),
    "leading zeros": (
        [*unet(SD1), (f"model.diffusion_model.input_blocks.01.1{END}.weight", *LINEAR)],
        STRAY,
    ),
    "rank 4": (
        reshaped(unet(SD1), "middle_block.1" + END, shape=(8, 5, 1, 1)),
        f"of shape [8, 5, 1, 1] {PACKED}",
    ),
    "rank 1": (reshaped(unet(SD1), "middle_block.1" + END, shape=(40,)), f"of shape [40] {PACKED}"),
    "no rows": (reshaped(unet(SD1), "middle_block.1" + END, shape=(0, 5)), f"of shape [0, 5] {PACKED}"),
    "two widths": (
        reshaped(unet(SD1), "middle_block.1" + END, shape=(8, 6)),
        "has value layers for text of different widths [5, 6], so it is of an unknown family; give a "
        "Stable Diffusion 1, 2 or XL checkpoint",
    ),
    "copies differ": (
        reshaped(unet(SD1) + rawfiles.ema(unet(SD1)), "modelmiddle_block1", shape=(8, 6)),
        "has copies of one value tensor in two shapes, [8, 5] and [8, 6] (model_ema.",
    ),
    NO_FIRST: (without(unet(SD1), "input_blocks.0.0"), NO_FIRST),
    "odd first convolution": (
        reshaped(unet(SD1), "input_blocks.0.0", shape=(4, 4)),
        NO_FIRST,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_has_its_sentence(tmp_path, name):
    entries, words = REFUSED[name]
    assert words in refusal(put(tmp_path, entries))


@pytest.mark.parametrize("dtype", ["F8_E8M0", "I8", "U8", "I64"])
def test_dtypes_whose_zero_bytes_are_not_zero(tmp_path, dtype):
    line = refusal(put(tmp_path, reshaped(unet(SD1), f"input_blocks.4.1{END}", dtype)))
    words = (
        f"in {dtype}, in which zero bytes do not mean zero: it is quantized; give the model from before"
    )
    assert words in line
    twin = unet(SD1) + reshaped(rawfiles.ema(unet(SD1)), "attn2to_vweight", dtype)
    assert "do not mean zero" in refusal(put(tmp_path, twin))


@pytest.mark.parametrize(
    ("dtype", "beside"), [("U8", "weight.absmax"), ("BF16", "weight.absmax"), ("I8", "SCB")]
)
def test_what_bitsandbytes_packed_is_called_quantized(tmp_path, dtype, beside):
    value = f"input_blocks.4.1{END}"
    entries = unet(SD1)
    name = next(name for name, *_ in entries if name.endswith(f"{value}.weight"))
    packed = [*reshaped(entries, value, dtype), (name.removesuffix("weight") + beside, "F32", (2,))]
    line = refusal(put(tmp_path, packed))
    assert "is quantized (bitsandbytes)" in line
    assert "give the model from before" in line


def test_sub_byte_values(tmp_path):
    entries = unet(SD1, dtype="F8_E4M3")
    path = put(tmp_path, entries)
    header, _, data = rawfiles.parse(path)
    name = f"model.diffusion_model.middle_block.1{END}.weight"
    header[name] |= {"dtype": "F4", "shape": [16, 5]}
    path.write_bytes(rawfiles.assemble(json.dumps(header), data))
    assert "in F4, in which" in refusal(path)


def test_one_shard_of_many(tmp_path):
    path = put(tmp_path, unet(SD1, "diffusers"), name="m-00001-of-00002.safetensors")
    assert "is one shard of a model in several files; give the folder that holds the whole" in refusal(
        path
    )


def test_header_faults_come_through(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "m.safetensors")


def test_no_torch_is_imported():
    code = (
        "import sys, nemo_prune.checkpoint.open, nemo_prune.checkpoint.manifest, "
        "nemo_prune.checkpoint.apply\n"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_family_is_added_in_one_place(tmp_path, monkeypatch):
    """A record is all that recognizing, its refusals and loading text encoders ask for."""
    record = Family(
        name="mine", configs="sd1", fits=lambda traits: traits.has("marker."), text_prefixes=("te.",),
        refuse=lambda traits: "is too thin" if traits.columns < 5 else None,
    )  # fmt: skip
    table = {"mine": record, **FAMILIES}
    monkeypatch.setattr("nemo_prune.checkpoint.recognize.FAMILIES", table)
    monkeypatch.setattr("nemo_prune.checkpoint.checkpoint.FAMILIES", table)
    marker = ("marker.weight", "F32", (1,))
    checkpoint = recognize(put(tmp_path, [*unet(SD1), marker]))
    assert (checkpoint.family, checkpoint.record) == ("mine", record)
    assert checkpoint.kind.startswith("mine, ")
    assert recognize(put(tmp_path, unet(SD1))).family == "sd1"
    thin = put(tmp_path, [*unet(SD1 | {"columns": 4}), marker])
    assert refusal(thin) == f"{thin}: is too thin"


def test_every_family_has_its_configs():
    for family in FAMILIES.values():
        assert (family.configs is None) == (family.name == "pixart")  # whose folders bring theirs
        assert (files("nemo_prune") / "data" / "configs" / (family.configs or "sd1") / "unet").is_dir()
        assert (family.published is None) == (family.name != "sd1")


def test_a_file_is_one_part(tmp_path):
    checkpoint = recognize(rawfiles.sd1(tmp_path / "m.safetensors", with_ema=True))
    (part,) = checkpoint.parts
    assert (part.path, part.value_layers) == (checkpoint.path, checkpoint.value_layers)
    assert checkpoint.files == (checkpoint.path,)
    assert not checkpoint.is_folder
