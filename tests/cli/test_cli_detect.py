"""detect, check and calibrate as a user runs them, on a tiny random checkpoint."""

import csv
import hashlib
import json
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import run, small_unet, write_small, write_tiny

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.prompts import bundled_captions
from nemo_prune.model.loading import load_model
from nemo_prune.scoring.calibration_file import fingerprint

SEEDS = ["--seeds", "3", "--device", "cpu"]
ORDINARY = [f"a photo of {i} {'cats' if i % 2 else 'red houses by the sea'}" for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detect")


def small(path: Path, seed: int = 0) -> Path:
    return write_small(path, side=16, seed=seed)


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return small(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def ordinary(folder: Path) -> Path:
    path = folder / "ordinary.txt"
    path.write_text("\n".join(ORDINARY))
    return path


@pytest.fixture(scope="module")
def calibrated(model: Path, ordinary: Path, folder: Path) -> dict[str, Any]:
    out = folder / "calibration.safetensors"
    result = run("calibrate", model, "--prompts", ordinary, "-o", out, "--json", "--no-cache", *SEEDS)
    assert result.exit_code == 0, result.output
    assert "30 prompts, 30 of them scored" in result.stderr
    assert "too few to see a rate of 0.01" in result.stderr
    assert "at least 99 prompts would be needed" in result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


@pytest.fixture
def calibration(calibrated: dict[str, Any]) -> Path:
    return Path(calibrated["output"]["path"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("caption,label\nmarker caption of a fox,1\na dog,0\nthe sea,0\n")
    return path


def test_calibrate_says_what_it_found(calibrated: dict[str, Any], calibration: Path) -> None:
    assert calibrated["samples"] == 3 * 31
    assert calibrated["tau"] <= calibrated["gates"][0]["value"]
    assert calibrated["gates"][0]["fpr"] == 0.01
    assert b"red houses" not in calibration.read_bytes()


def test_a_prompt_that_is_clear_early_has_a_lower_bound(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    prompts.write_text("a fox\n" + "very " * 80 + "long\n")
    options = ["--prompts", prompts, "--prompts-format", "txt", "--tau", "0", "--gate", "0"]
    result = run("detect", model, *options, "--csv", tmp_path / "t.csv", "--json", *SEEDS)
    for entry in json.loads(result.stdout)["prompts"]:
        assert (entry["seeds"], entry["lower_bound"], len(entry["seed_scores"])) == (2, True, 2)
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert {(row["lower_bound"], row["seed_2"]) for row in rows} == {("True", "")}
    assert "1 prompts are longer than 77 tokens and were truncated: the model sees" in result.stderr
    shown = " ".join(run("detect", model, *options, *SEEDS).stdout.split())
    assert "2 of 2 prompts were clear after fewer than 3 seeds: their scores are lower bounds" in shown


def test_detect_with_a_calibration(model: Path, calibrated: dict[str, Any], calibration: Path,
                                   prompts: Path, tmp_path: Path) -> None:  # fmt: skip
    table = tmp_path / "t.csv"
    result = run("detect", model, "--prompts", prompts, "--calibration", calibration, "--json",
                  "--csv", table, *SEEDS)  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["tau"] == calibrated["tau"]
    assert told["gate"] == calibrated["gates"][0]
    assert (told["tau_source"], told["scores_from"]) == ("calibration file", "file")
    assert told["cost"]["calibration_samples"] == 0
    assert told["cost"]["samples"] == 3 * (3 + 1)  # labelled: all seeds
    assert [entry["index"] for entry in told["prompts"]] == [0, 1, 2]
    assert set(told["evaluation"]) >= {"score", "noise_norm", "accuracy_at_tau"}
    assert told["evaluation"]["score"]["roc"][-1][:2] == [1, 1]
    assert "marker caption" not in result.output + table.read_text()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert {row["label"] for row in rows} == {"True", "False"}
    for row in rows:
        entry = told["prompts"][int(row["index"])]
        assert entry["seed_scores"] == [float(row[f"seed_{seed}"]) for seed in range(3)]
        assert max(entry["seed_scores"]) == entry["score"]
        assert (entry["lower_bound"], row["lower_bound"]) == (False, "False")
    assert {row["index"]: (row["file"], row["line"]) for row in rows} == {
        "0": (str(prompts), "2"), "1": (str(prompts), "3"), "2": (str(prompts), "4"),
    }  # fmt: skip
    again = run("detect", model, "--prompts", prompts, "--csv", table, "--tau", "0.9", *SEEDS)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_the_file_says_what_it_is_about(
    model: Path, calibrated: dict[str, Any], calibration: Path
) -> None:
    with safe_open(calibration, "pt") as file:
        entry = json.loads(file.metadata()["nemo_prune.calibration"])
        scores = sorted(file.get_tensor("paths")[:, -1].tolist())
    loaded = load_model(recognize(model), device=torch.device("cpu"), dtype=torch.float32)
    ordinary = {"prompts": 30, "sha256": hashlib.sha256(json.dumps(ORDINARY).encode()).hexdigest()}
    assert entry["about"] == {
        "fingerprint": fingerprint(loaded),
        "precision": "float32",
        "settings": {"text_encoder.layer_norm_eps": 1e-5},  # all else has its class's default
        "activations": ordinary,
        "scores": ordinary | {"seeds": 3, "seed": 0, "timestep": 961, "guidance": 0,
                              "similarity": "current", "latents": [4, 16, 16]},
    }  # fmt: skip
    tau = statistics.mean(scores) + statistics.stdev(scores)
    normal = statistics.NormalDist(statistics.mean(scores), statistics.stdev(scores))
    # Of 31 prompts that are alike 5 % are 1.55: the highest of 30 is exceeded by less than that.
    expected = {0.05: (scores[29], False), 0.1: (scores[27], False)} | {
        rate: (max(scores[29], normal.inv_cdf(1 - rate)), True) for rate in (0.01, 0.001, 0.02)
    }
    assert entry["thresholds"] == {name: calibrated[name] for name in ("tau", "gates")}
    assert calibrated["tau"] == pytest.approx(tau, abs=1e-4)
    assert [gate["fpr"] for gate in calibrated["gates"]] == [0.01, 0.001, 0.02, 0.05, 0.1]
    for gate in calibrated["gates"]:
        value, extrapolated = expected[gate["fpr"]]
        assert gate["value"] == pytest.approx(min(1, max(value, calibrated["tau"])), abs=1e-5)
        assert (gate["extrapolated"], gate["prompts"]) == (extrapolated, 30)


def test_a_calibration_needs_no_room_for_a_model(
    model: Path, ordinary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measured(Exception):
        pass

    def measure(*_: object) -> None:
        raise Measured

    monkeypatch.setattr("nemo_prune.scoring.calibrate.calibrate", measure)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=10**5))
    result = run("calibrate", model, "--prompts", ordinary, "-o", tmp_path / "c.safetensors")
    assert "Measured" in result.stderr  # it came that far
    (tmp_path / "linked.safetensors").symlink_to(ordinary)  # .txt is refused by its name
    for other in (model, tmp_path / "linked.safetensors"):
        refused = run("calibrate", model, "--prompts", ordinary, "-o", other, "--overwrite")
        assert refused.exit_code == 2
        assert "is read by this command" in refused.stderr


def test_calibrate_draws_a_sample_of_a_list_of_any_length(
    model: Path, ordinary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[str]] = []

    def measure(_checkpoint: Any, captions: list[str], *_more: Any) -> dict[str, Any]:
        taken.append(captions)
        return {"gates": [{"value": 0.5, "low": 0.4, "high": None, "fpr": 0.01}],
                "prompts": 30, "scored": 30, "tau": 0.4}  # fmt: skip

    monkeypatch.setattr("nemo_prune.scoring.calibrate.calibrate", measure)
    arguments = ("calibrate", model, "--prompts", ordinary, "-o", tmp_path / "c.safetensors")
    lines = ordinary.read_text().splitlines()
    result = run(*arguments, "--sample", "30", "--seed", "5")
    assert result.exit_code == 0, result.stderr
    assert len(taken[0]) == 30
    assert set(taken[0]) <= set(lines)
    assert f"30 of {len(lines)} distinct prompts, drawn by seed 5" in result.stderr
    monkeypatch.setattr("nemo_prune.files.streams.LONG", 10)
    assert run(*arguments).exit_code == 0
    assert list(taken[1]) == lines, "as many as there are"
    refused = run(*arguments, "--expect-prompts", "7")
    assert refused.exit_code == 2
    assert f"--expect-prompts 7, and {len(lines)} distinct prompts were read" in refused.stderr
    without = run("calibrate", model, "--sample", "30", "-o", tmp_path / "c.safetensors")
    assert without.exit_code == 2
    assert "--sample: needs the lists to draw from; give --prompts" in without.stderr


def test_calibrate_without_prompts_takes_the_bundled_captions(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = bundled_captions()[:40]
    monkeypatch.setattr("nemo_prune.scoring.ordinary.bundled_captions", lambda: some)
    out = tmp_path / "c.safetensors"
    result = run("calibrate", model, "-o", out, "--json", "--seeds", "2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompts"] == 40
    assert "note: measuring what is ordinary on bundled captions (--prompts FILE is" in result.stderr
    assert "published" not in result.stderr


def test_the_rate_chooses_the_gate(
    model: Path, calibrated: dict[str, Any], calibration: Path, prompts: Path
) -> None:
    options = ["--prompts", prompts, "--calibration", calibration, "--json", *SEEDS]
    for rate, gate, few in (("0.01", 0, True), ("0.02", 2, True), ("0.1", 4, False)):
        result = run("check", model, *options, "--fpr", rate)
        assert json.loads(result.stdout)["gate"] == calibrated["gates"][gate]
        assert (f"too few to see --fpr {rate}: the gate" in result.stderr) == few
    for rate in ("0", "1", "nan"):
        assert run("check", model, *options, "--fpr", rate).exit_code == 2


@pytest.mark.parametrize("name", ["--tau", "--gate"])
def test_a_threshold_that_is_no_number_is_refused(model: Path, prompts: Path, name: str) -> None:
    result = run("check", model, "--prompts", prompts, name, "nan")
    assert result.exit_code == 2
    assert f"Invalid value for '{name}': nan is no number" in result.stderr


def test_all_seeds_are_taken_if_asked_for(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "unlabelled.txt"
    prompts.write_text("\n".join(ORDINARY[:4]))
    options = ["--prompts", prompts, "--tau", "0", "--gate", "0", "--json", *SEEDS]
    early, every = (
        json.loads(run("detect", model, *options, *more).stdout) for more in ([], ["--all-seeds"])
    )
    assert {entry["seeds"] for entry in early["prompts"]} == {2}  # above the gate already
    assert {entry["seeds"] for entry in every["prompts"]} == {3}
    for one, other in zip(early["prompts"], every["prompts"], strict=True):
        assert one["score"] <= other["score"]


def test_detect_speaks_to_people_and_shows_prompts_if_asked(
    model: Path, calibration: Path, prompts: Path
) -> None:
    result = run("detect", model, "--prompts", prompts, "--calibration", calibration,
                  "--show-prompts", *SEEDS)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "marker caption" in result.stdout
    assert "AUROC" in result.stdout
    assert "of 3 prompts are memorized. Gate" in result.stdout


def test_check_passes_fails_and_leaves_reports(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markdown, junit = tmp_path / "summary.md", tmp_path / "junit.xml"
    markdown.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(markdown))
    passed = run("check", model, "--prompts", prompts, "--tau", "0.5", "--gate", "1", *SEEDS)
    assert passed.exit_code == 0, passed.output
    assert passed.stdout == ""
    failed = run("check", model, "--prompts", prompts, "--tau", "0", "--gate", "0", "--junit", junit,
                  *SEEDS)  # fmt: skip
    assert failed.exit_code == 1, failed.output
    assert len(failed.stdout.splitlines()) == 3
    assert "prompt 0 is memorized (score" in failed.stdout
    assert markdown.read_text().startswith("before\n### ✅")
    assert "3 of 3 prompts are memorized" in markdown.read_text()
    suites = ElementTree.parse(junit).getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("3", "3")
    assert len(suites.findall(".//testcase/failure")) == 3
    for text in (junit.read_text(), markdown.read_text(), failed.output):
        assert "marker caption" not in text
    again = run("check", model, "--prompts", prompts, "--tau", "1", "--gate", "1", "--junit", junit,
                 *SEEDS)  # fmt: skip
    assert again.exit_code == 0, again.output
    assert ElementTree.parse(junit).getroot().get("failures") == "0", "its own file of an earlier run"
    junit.write_text("<testsuites><testsuite name='unit tests'/></testsuites>")
    taken = run("check", model, "--prompts", prompts, "--tau", "0", "--junit", junit, *SEEDS)
    assert taken.exit_code == 2
    assert "exists already" in taken.stderr
    assert "unit tests" in junit.read_text()


def test_a_step_summary_that_cannot_be_written_does_not_hide_the_verdict(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "s.md"))
    result = run("check", model, "--prompts", prompts, "--tau", "0", "--gate", "0", "--json",
                  "--seeds", "2")  # fmt: skip
    assert result.exit_code == 1
    assert json.loads(result.stdout)["memorized"] == 3
    assert "warning" in result.stderr


def test_prune_leaves_alone_what_lies_below_the_gate(
    model: Path, calibration: Path, prompts: Path
) -> None:
    options = ["--prompts", prompts, "--calibration", calibration, "--dry-run", "--json", *SEEDS]
    result = run("prune", model, *options, "--tau", "0", "--gate", "1")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {entry["status"] for entry in told["prompts"]} == {"not memorized"}
    assert told["neurons"] == []
    assert told["gate"]["value"] == 1
    assert told["statistics_from"] == "file"
    assert told["cost"]["calibration_samples"] == 0


def test_the_cache_is_used_and_can_be_left_out(
    model: Path, ordinary: Path, prompts: Path, cache: Path
) -> None:
    options = ["--prompts", prompts, "--calibration-prompts", ordinary, "--json", *SEEDS]
    first, second, without = (
        json.loads(run("detect", model, *options, *more).stdout) for more in ([], [], ["--no-cache"])
    )
    assert [told["scores_from"] for told in (first, second, without)] == [
        "this run",
        "cache",
        "this run",
    ]
    assert second["cost"]["calibration_samples"] == 0 < first["cost"]["calibration_samples"]
    assert first["gate"] == second["gate"] == without["gate"]
    (entry,) = cache.iterdir()
    entry.write_bytes(b"damaged")
    assert json.loads(run("detect", model, *options).stdout)["scores_from"] == "this run"
    assert json.loads(run("detect", model, *options).stdout)["scores_from"] == "cache"


def test_lists_of_ordinary_prompts_share_a_cache_but_no_entry(
    model: Path, ordinary: Path, prompts: Path, tmp_path: Path, cache: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"{caption} behind a broken fence" for caption in ORDINARY))
    told = [
        json.loads(run("detect", model, "--prompts", prompts, "--calibration-prompts", file, "--json",
                       *SEEDS).stdout)
        for file in (ordinary, other, ordinary, other)
    ]  # fmt: skip
    assert [one["scores_from"] for one in told] == ["this run", "this run", "cache", "cache"]
    gates = [(one["tau"], one["gate"], one["noise_norm_gate"]) for one in told]
    assert gates[:2] == gates[2:]
    assert gates[0] != gates[1]
    assert len(list(cache.iterdir())) == 2


def test_prune_says_where_its_statistics_come_from(
    model: Path, ordinary: Path, prompts: Path, cache: Path
) -> None:
    options = ["--prompts", prompts, "--calibration-prompts", ordinary, "--tau", "1", "--gate", "1",
               "--dry-run", *SEEDS]  # fmt: skip
    for whence in ("this run", "cache"):
        result = run("prune", model, *options, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["statistics_from"] == whence
        assert f"ordinary activations from {whence}," in " ".join(result.stderr.split())
    assert len(list(cache.iterdir())) == 1


def test_a_calibration_of_another_model_or_setting_needs_force(
    model: Path, calibration: Path, prompts: Path, folder: Path
) -> None:
    other = small(folder / "other.safetensors", seed=1)
    options = ["--prompts", prompts, "--calibration", calibration]
    for arguments, reason in (
        ([other, *options, *SEEDS], "other weights"),
        ([model, *options, *SEEDS, "--timestep", "500"], "timestep 961 instead of 500"),
        ([model, *options, "--seeds", "4"], "3 seeds instead of 4"),
        ([model, *options, *SEEDS, "--precision", "bf16"], "precision float32 instead of bfloat16"),
    ):
        refused = run("detect", *arguments)
        assert refused.exit_code == 2, refused.output
        assert reason in refused.stderr
        assert "--force" in refused.stderr
    forced = run("detect", other, *options, *SEEDS, "--force", "--json")
    assert forced.exit_code == 0, forced.output
    assert "used all the same (other weights)" in forced.stderr


def test_fewer_seeds_than_the_calibration_are_fine(
    model: Path, calibration: Path, prompts: Path
) -> None:
    result = run("detect", model, "--prompts", prompts, "--calibration", calibration, "--json",
                  "--seeds", "2")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scores_from"] == "file"


def test_a_copy_with_other_metadata_takes_the_same_calibration(
    model: Path, calibration: Path, prompts: Path, tmp_path: Path
) -> None:
    copy = write_tiny(tmp_path / "copy.safetensors", layers=1, fewer=True, metadata={
        "nemo_prune.config": json.dumps({"unet": small_unet(16)}), "a note": "of somebody"})  # fmt: skip
    assert copy.read_bytes() != model.read_bytes()
    result = run("detect", copy, "--prompts", prompts, "--calibration", calibration, "--json", *SEEDS)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("verb", "extra", "message"),
    [
        ("detect", ["--prompts", "none.txt"], "no such file"),
        ("check", ["--prompts", "none.txt"], "no such file"),
        ("detect", ["--prompts", "odd.csv"], "line 2 has another word"),
        ("detect", ["--prompts", "both.csv"], "labels a prompt otherwise"),
        ("detect", ["--prompts", "p.txt", "--calibration", "none.safetensors"], "no such file"),
        ("detect", ["--prompts", "p.txt", "--calibration", "cut.safetensors"], "damaged"),
        ("detect", ["--prompts", "p.txt", "--calibration", "c.safetensors",
                    "--calibration-prompts", "p.txt"], "give one of them"),
        ("detect", ["--prompts", "p.txt", "--calibration-prompts", "p.txt"], "at least 30"),
        ("detect", ["--prompts", "p.txt", "--calibration-prompts", "p*.txt"], "at least 30"),
        ("detect", ["--prompts", "p.txt", "--tau", "0.5", "--gate", "0.4"], "lies below tau"),
        ("detect", ["--prompts", "p.txt", "--calibration", "c", "--csv", "c", "--overwrite"],
         "is read by this command"),
        ("check", ["--prompts", "odd.csv", "--calibration-prompts", "p.txt", "--junit", "p.txt",
                   "--overwrite"], "is read by this command"),
        ("check", ["--prompts", "p.txt", "--text-encoder", "c.safetensors", "--junit",
                   "c.safetensors", "--overwrite"], "is read by this command"),
        ("check", ["--prompts", "p.txt", "--junit", "nowhere/j.xml"], "does not exist"),
        ("calibrate", ["--prompts", "p.txt", "-o", "new.safetensors"], "at least 30"),
        ("calibrate", ["--prompts", "p.txt", "-o", "c.safetensors"], "exists already"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_exit_code_2(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str,
    extra: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a dog\n")
    Path("odd.csv").write_text("caption,label\na dog,perhaps\n")
    Path("both.csv").write_text("caption,memorized\na dog,1\na dog,0\n")
    shutil.copy(calibration, "c.safetensors")
    shutil.copy(calibration, "c")
    Path("cut.safetensors").write_bytes(calibration.read_bytes()[:500])
    there = sorted(tmp_path.iterdir())
    result = run(verb, model, *extra, *SEEDS)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("nemo-prune:")]) == 1
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("verb", ["detect", "check", "calibrate"])
def test_scores_that_are_no_numbers_are_no_verdict(
    model: Path, ordinary: Path, tmp_path: Path, verb: str
) -> None:
    tensors = load_file(model)
    tensors["model.diffusion_model.out.2.bias"][:] = torch.nan
    broken, out = tmp_path / "broken.safetensors", tmp_path / "c.safetensors"
    with safe_open(model, "pt") as file:
        save_file(tensors, broken, file.metadata())
    more = ["-o", out] if verb == "calibrate" else ["--tau", "0.4", "--gate", "0.5"]
    result = run(verb, broken, "--prompts", ordinary, "--seeds", "2", "--device", "cpu", *more)
    assert result.exit_code == 2, result.output
    assert f"nemo-prune: {broken}: the denoiser gave NaN or infinity" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("part", ["model.diffusion_model.", "cond_stage_model."])
def test_prompts_that_change_nothing_are_no_verdict(
    model: Path, prompts: Path, tmp_path: Path, part: str
) -> None:
    tensors = load_file(model)
    zeros = {name: value.mul_(0) for name, value in tensors.items() if name.startswith(part)}
    assert zeros
    broken = tmp_path / "broken.safetensors"
    with safe_open(model, "pt") as file:
        save_file(tensors, broken, file.metadata())
    result = run("check", broken, "--prompts", prompts, "--seeds", "2", "--device", "cpu",
                 "--tau", "0.4", "--gate", "0.5")  # fmt: skip
    assert result.exit_code == 2, result.output
    assert f"{broken}: no prompt changes what the denoiser predicts" in result.stderr


def test_a_gate_that_the_judged_prompts_set_is_refused(
    model: Path, ordinary: Path, tmp_path: Path
) -> None:
    result = run("check", model, "--prompts", ordinary, "--calibration-prompts", ordinary, *SEEDS)
    assert result.exit_code == 2, result.output
    assert "every prompt is also one of them" in result.stderr
    some = tmp_path / "some.txt"
    some.write_text(f"{ORDINARY[0]}\na caption of its own\n")
    given = ["--prompts", some, "--calibration-prompts", ordinary, "--json", *SEEDS]
    result = run("detect", model, *given)
    assert result.exit_code == 0, result.output
    assert "1 of 2 prompts are also among the calibration prompts" in result.stderr


@pytest.mark.parametrize("given", [("check", ""), ("check", "model", "--prompts", ""),
                                   ("apply", "model", "--neurons", "0:1", "-o", "")])  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(given: tuple[str, ...]) -> None:
    result = run(*given)
    assert result.exit_code == 2
    assert "is empty; give a path" in result.stderr


@pytest.mark.parametrize("verb", ["detect", "check", "calibrate"])
def test_help_has_an_example(verb: str) -> None:
    result = run(verb, "-h")
    assert result.exit_code == 0
    assert f"nemo-prune {verb} " in result.output
