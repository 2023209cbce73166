"""The names of methods, what every method promises, and those that multiply outputs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from benches import ORDINARY, PROMPTS, make
from torch import nn

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import ENTRIES, chosen, methods
from nemo_prune.compare.rows import multiplied
from nemo_prune.compare.searched import searched
from nemo_prune.errors import OptionError
from nemo_prune.report.pictures import draw

ONE_OF_EACH = (
    "none", "nemo", "nemo-union", "random", "wen", "somepalli-4", "ren", "ffn-wanda", "keys", "conv",
    "gradient-free", "no-top-k", "no-refinement", "scale-minus-1",
)  # fmt: skip


def weights(bench: Bench) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in bench.loaded.unet.state_dict().items()}


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_names_and_groups_come_in_the_order_of_tables() -> None:
    assert chosen(["random", "none"]) == ["none", "random"]
    assert chosen(["all"]) == chosen(None) == list(ENTRIES)
    assert {"wen", "ren", "keys", "conv", "ffn-wanda", "somepalli-10"} <= set(chosen(["baselines"]))
    assert {"scale-minus-1", "blocks-mid", "threshold-low"} <= set(chosen(["ablations"]))
    assert "nemo" not in chosen(["ablations"])
    assert all(method.name == name for name, method in zip(ENTRIES, methods(), strict=True))


@pytest.mark.parametrize(("name", "near"), [("rndom", "random"), ("sompalli-4", "somepalli-4")])
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(OptionError, match=f"unknown; did you mean {near}"):
        chosen(["none", name])


def test_no_names_are_refused() -> None:
    with pytest.raises(OptionError, match="names none"):
        chosen([])


def test_names_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import nemo_prune.compare.methods as m; m.chosen(None)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_method_draws_from_a_state_that_went_through_json_and_leaves_the_model(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, hooked = weights(bench), hooks(bench.loaded.unet)
    (method,) = methods([name])
    prompt = None if method.whole_list else PROMPTS[0]
    if name != "none":
        monkeypatch.setitem(bench.kept, "norm target", (1.0, "made up"))
    spent = bench.samples
    state = method.prepare(bench, prompt)
    assert state["samples"] >= bench.samples - spent - state.get("calibrating", {}).get("samples", 0)
    assert state["seconds"] >= 0
    kept = json.loads(json.dumps(state, allow_nan=False))
    assert kept == state
    assert not any(word in json.dumps(state) for word in PROMPTS)
    pictures = method.draw(bench, ORDINARY[0], kept, [0, 1])
    assert pictures.shape == (2, 128, 128, 3)
    assert pictures.dtype == np.uint8
    assert hooks(bench.loaded.unet) == hooked
    after = bench.loaded.unet.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_the_unpruned_pictures_are_those_of_reports(bench: Bench) -> None:
    (none,) = methods(["none"])
    spent = bench.samples
    found = none.draw(bench, PROMPTS[0], none.prepare(bench, PROMPTS[0]), [0, 2])
    assert bench.samples - spent == 2 * 2 * bench.steps
    (wanted,) = draw(
        bench.pipeline, [PROMPTS[0]], bench.seeds([0, 2]), steps=bench.steps, guidance=bench.guidance
    )
    assert np.array_equal(found, np.stack(wanted))


def test_an_embedding_in_place_of_the_prompt_draws_the_same_and_noise_is_the_pipelines(
    bench: Bench,
) -> None:
    own = bench.texts(PROMPTS[0])["prompt_embeds"][0]
    assert np.array_equal(bench.draw(PROMPTS[0], [1]), bench.draw("another", [1], embedding=own))
    seen = []
    handle = bench.loaded.unet.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    bench.draw(PROMPTS[0], [1, 3])
    handle.remove()
    assert torch.equal(seen[0][:2], bench.noise([1, 3]))


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
def test_outputs_are_multiplied_as_if_the_weights_were(bench: Bench, factor: float) -> None:
    unet = bench.loaded.unet
    name = next(iter(bench.loaded.value_layers))
    convolution = "down_blocks.1.resnets.0.conv2"
    rows = {name: [1, 3], convolution: [0, 5]}
    with multiplied(unet, rows, factor):
        found = bench.draw(PROMPTS[0], [0])
    before = {part: unet.get_submodule(part).weight.data for part in rows}
    bias = unet.get_submodule(convolution).bias.data
    try:
        for part, places in rows.items():
            changed = before[part].clone()
            changed[places] *= factor
            unet.get_submodule(part).weight.data = changed
        unet.get_submodule(convolution).bias.data = bias.clone()
        unet.get_submodule(convolution).bias.data[rows[convolution]] *= factor
        wanted = bench.draw(PROMPTS[0], [0])
    finally:
        for part, data in before.items():
            unet.get_submodule(part).weight.data = data
        unet.get_submodule(convolution).bias.data = bias
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert np.abs(found.astype(int) - bench.draw(PROMPTS[0], [0])).max() > 1


def test_an_error_while_drawing_leaves_no_hooks(bench: Bench) -> None:
    hooked = hooks(bench.loaded.unet)
    with (
        pytest.raises(AttributeError),
        multiplied(bench.loaded.unet, {"mid_block.resnets.0.conv1": [0], "nowhere": [0]}, 0.0),
    ):
        pass
    assert hooks(bench.loaded.unet) == hooked


def test_random_neurons_are_as_many_in_each_layer_and_the_same_in_every_run(bench: Bench) -> None:
    first, second = list(bench.loaded.value_layers)[:2]
    key = "nemo", PROMPTS[1]
    bench.states[key] = {
        "samples": 7, "seconds": 1.0, "notes": [], "sets": [{first: [0, 9], second: [4]}], "factor": 0.0,
    }  # fmt: skip
    try:
        (method,) = methods(["random"])
        state = method.prepare(bench, PROMPTS[1])
        again = method.prepare(bench, PROMPTS[1])
        (scaled,) = methods(["scale-0.5"])
        half = scaled.prepare(bench, PROMPTS[1])
    finally:
        del bench.states[key]
    assert state["sets"] == again["sets"]
    assert len(state["sets"]) == 5
    assert len({json.dumps(one) for one in state["sets"]}) > 1
    for rows in state["sets"]:
        assert {name: len(set(found)) for name, found in rows.items()} == {first: 2, second: 1}
    assert half["factor"] == 0.5


def test_a_pictures_set_goes_by_its_number(bench: Bench) -> None:
    (method,) = methods(["conv"])
    state = {"sets": [{"conv_in": [place]} for place in range(3)], "factor": 0.0}
    together = method.draw(bench, PROMPTS[0], state, [1, 3, 5])
    apart = [method.draw(bench, PROMPTS[0], state, [number])[0] for number in (1, 3, 5)]
    assert np.abs(together.astype(int) - np.stack(apart)).max() <= 1
    with multiplied(bench.loaded.unet, {"conv_in": [2]}, 0.0):
        assert np.array_equal(bench.draw(PROMPTS[0], [5])[0], apart[2])


def test_half_the_channels_of_each_down_block(bench: Bench) -> None:
    (method,) = methods(["conv"])
    state = method.prepare(bench, PROMPTS[0])
    assert len(state["sets"]) == len(bench.loaded.unet.down_blocks)
    for block, rows in enumerate(state["sets"]):
        for name, found in rows.items():
            assert name.startswith(f"down_blocks.{block}.")
            assert len(set(found)) == bench.loaded.unet.get_submodule(name).out_channels // 2


def test_searches_of_one_prompt_each_share_what_is_ordinary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.localize.localize.UNRELATED", 2)
    path = tiny.write_small(tmp_path / "m.safetensors", side=16)
    bench = make(path, criterion="trajectory", confirm="trajectory", rounds=0, tau=0.0, gate=0.0)
    spent = [searched(bench, [prompt])["calibrating"]["samples"] for prompt in PROMPTS]
    assert spent[0] > 0 == spent[1]
