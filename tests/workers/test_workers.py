"""Prompts shared among workers on Ray: the same results, whoever ends in the middle."""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import run, write_small

import nemo_prune
from nemo_prune.audit import strength
from nemo_prune.audit.strength import Chase, Effort, Style
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError, OptionError, WorkerError
from nemo_prune.options import Options
from nemo_prune.scoring import opening, workers
from nemo_prune.scoring.engine import Cost
from nemo_prune.scoring.journal import Journal
from nemo_prune.scoring.workers import (
    Opening,
    RayWorkers,
    Sent,
    check_workers,
    identity,
    sent,
    start_workers,
)
from nemo_prune.search.protocol import Outcome, Search, Tally

pytestmark = pytest.mark.slow

FOUND = Neuron("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 5)

QUICK = ["--seeds", "3", "--device", "cpu", "--tau", "0", "--gate", "0"]
SHARED = ["--workers", "2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all: it takes seconds to start. Ray needs a loopback device."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        one.listen()
        other.settimeout(2)
        try:
            other.connect(one.getsockname())
        except OSError:
            pytest.skip("the loopback device is down, without which Ray does not start")
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_STORE", 80 * 2**20)
        after = workers._connect(Options(workers=3), "cpu")
    assert dict(os.environ) == before, "the caller's environment is as it was"
    assert not (Path.home() / ".ray").exists() or os.environ.get("RAY_AUTH_MODE")
    yield
    after()


# ------------------------------------------------------------------------------- workers that idle


class Light:
    """A worker without a model, in a process without torch: an item is slept, ends it, or fails it."""

    def load(self, _opened: Any) -> str:
        return "weights"

    def work(self, work: str, items: Sequence[Any]) -> Iterator[Any]:
        for place, item in enumerate(items):
            if item == "end":
                os._exit(1)
            if item == "fail":
                raise ValueError("of the work")
            time.sleep(0.01)
            yield place, f"{work} {item}", (1, 0, 1), [f"did {item}"] if item == 3 else []
        yield None, None, (10, 1, 1), []


class Engineless:
    """As much of an engine as workers need."""

    def __init__(self) -> None:
        self.cost, self.notes, self.workers = Cost(), list[str](), None

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def light(cluster: None) -> Iterator[tuple[RayWorkers, Engineless]]:
    import ray
    import test_workers

    del cluster
    ray.cloudpickle.register_pickle_by_value(test_workers)
    actor = ray.remote(Light).options(num_cpus=1)
    engine = Engineless()
    shared = RayWorkers(2, actor.remote, None)  # type: ignore[arg-type]
    ray.cloudpickle.unregister_pickle_by_value(test_workers)
    shared.load()
    shared.serve(engine, "weights")  # type: ignore[arg-type]
    yield shared, engine
    shared.close()


def test_work_costs_and_notes_come_back_by_place(light: tuple[RayWorkers, Engineless]) -> None:
    shared, engine = light
    told: dict[int, str] = {}
    found = shared.each("item", list(range(9)), told.__setitem__, range(9))  # type: ignore[arg-type]
    assert found == told == {place: f"item {place}" for place in range(9)}
    groups = engine.cost.backward
    assert 2 <= groups <= 9
    assert engine.cost.forward == 9 + 10 * groups
    assert engine.notes == ["did 3"]
    blocks = shared.stream("in order", iter([[1, 2], [3], [], [4]]))  # type: ignore[arg-type]
    assert list(blocks) == [["in order 1", "in order 2"], ["in order 3"], [], ["in order 4"]]
    with pytest.raises(ValueError, match="of the work"):
        shared.each("item", ["fail"], told.__setitem__, [0])  # type: ignore[arg-type]


def test_a_prompt_that_ends_three_workers_is_named(light: tuple[RayWorkers, Engineless]) -> None:
    shared, _ = light
    told: dict[int, str] = {}
    with pytest.raises(WorkerError, match=r"prompt 14 ended 3 workers") as error:
        shared.each("item", [1, 2, "end", 4, 5, 6], told.__setitem__, range(12, 18))  # type: ignore[arg-type]
    assert "batch_size" in str(error.value)
    assert told.keys() == {0, 1, 3, 4, 5}, "those that were given with it are done all the same"


def test_what_is_missing_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "find_spec", lambda _name: None)
    check_workers(Options())
    with pytest.raises(OptionError, match=r"nemo-prune\[ray\]"):
        check_workers(Options(ray="auto"))
    model = write_small(tmp_path / "m.safetensors", side=16)
    prompts = tmp_path / "p.txt"
    prompts.write_text("a dog\n")
    for verb in (["localize", "-o", tmp_path / "out"], ["detect"], ["check"]):
        refused = run(*verb, model, "--prompts", prompts, "--device", "cpu", *SHARED)
        assert refused.exit_code == 2
        assert refused.stderr.splitlines()[-1].startswith("nemo-prune: --workers: workers run on Ray")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------- workers with the model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model") / "tiny.safetensors", side=16)


@pytest.fixture(scope="module")
def crew(cluster: None, model: Path) -> Iterator[RayWorkers]:
    """Two workers that load what each command asks for: for each to start some takes too long here."""
    del cluster
    made = start_workers([open_checkpoint(model)], Options(workers=2, device="cpu"))

    def started(checkpoints: Sequence[Checkpoint], options: Options) -> RayWorkers:
        import ray

        paths = tuple(checkpoint.path for checkpoint in checkpoints)
        made._load = ray.put(Opening(paths, sent(options), 1))
        made._idle.clear()
        made.load()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayWorkers, "close", lambda _self: None)
        patch.setattr(opening, "start_workers", started)
        yield made
    made.close()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"marker caption {number}\n" for number in range(5)))
    return path


def test_another_file_is_refused_by_name(crew: RayWorkers, model: Path, tmp_path: Path) -> None:
    other = write_small(tmp_path / "other.safetensors", side=16, seed=1)
    own = identity(open_checkpoint(model))
    crew.compare(model.absolute(), own)
    with pytest.raises(CheckpointError, match=rf"node {socket.gethostname()} has another file there"):
        crew.compare(other, own)
    with pytest.raises(CheckpointError, match=r"a worker cannot open it: .*missing"):
        crew.compare(tmp_path / "missing.safetensors", own)


@pytest.mark.usefixtures("crew")
def test_a_list_of_any_length_gives_the_same_table(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.scoring.streaming.PROMPTS_AT_ONCE", 2)
    told = []
    for name, more in (("alone.csv", []), ("shared.csv", SHARED)):
        table = tmp_path / name
        done = run("detect", model, "--prompts", prompts, *QUICK, "-o", table, "--json", *more)
        assert done.exit_code == 0, done.stderr
        told.append((table.read_bytes(), json.loads(done.stdout)["cost"]["samples"]))
    assert told[0] == told[1]


def test_the_manifest_is_the_same_though_a_worker_is_killed_in_the_middle(
    crew: RayWorkers, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches, probes and the union; the journal lies here."""
    given = ["localize", model, "--prompts", prompts, *QUICK, "--layers", "mid_block*"]
    alone = run(*given, "-o", tmp_path / "alone.json")
    expected = (tmp_path / "alone.json").read_bytes()
    assert "attribution" in expected.decode()
    import ray

    add, added = Journal.add, list[str]()

    def killing(self: Journal, key: str, value: Any) -> None:
        add(self, key, value)
        added.append(key)
        if len(added) == 1:
            ray.kill(crew.actors[0])

    actors = list(crew.actors)
    monkeypatch.setattr(Journal, "add", killing)
    shared = run(*given, "-o", tmp_path / "shared.json", *SHARED)
    assert shared.exit_code == alone.exit_code == 1, shared.stderr
    assert "2 workers share the prompts" in shared.stderr
    assert len(set(crew.actors) - set(actors)) == 1, "another one was started"
    assert sorted(added) == ["0", "1", "2", "3", "4"]
    assert (tmp_path / "shared.json").read_bytes() == expected


@pytest.mark.usefixtures("cluster")
def test_what_is_kept_is_got_once() -> None:
    import ray

    kept = Sent(ray.put([1, 2]))
    assert kept.get() == [1, 2]
    assert kept.get() is kept.get()


# ------------------------------------------------------------------- verbs that look at two models


def killing_at(crew: RayWorkers, patch: pytest.MonkeyPatch, work: str, results: int) -> list[str]:
    """Kill a worker at so many results of this kind of work; the kind of every result."""
    import ray

    each, told = RayWorkers.each, list[str]()

    def watched(
        self: RayWorkers, shared: Any, items: Sequence[Any], on_done: Any, numbers: Sequence[Any]
    ) -> Any:
        def heard(place: int, result: Any) -> None:
            on_done(place, result)
            told.append(type(shared).__name__)
            if told.count(work) == results and told[-1] == work:
                ray.kill(crew.actors[0])

        return each(self, shared, items, heard, numbers)

    patch.setattr(RayWorkers, "each", watched)
    return told


@pytest.fixture(scope="module")
def pruned(model: Path) -> Path:
    rows = [Neuron(open_checkpoint(model).value_layers[0].name, row) for row in range(4)]
    return write_model(open_checkpoint(model), rows, model.with_name("pruned.safetensors"), {}).path


def test_verify_gives_the_same_report_though_a_worker_is_killed_while_it_draws(
    crew: RayWorkers, model: Path, pruned: Path, prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "ordinary.txt").write_text("a boat\na hill\n")
    given = ["verify", model, pruned, "--prompts", prompts, *QUICK, "--images", "2",
             "--ordinary", tmp_path / "ordinary.txt", "--picture-steps", "2"]  # fmt: skip
    reports = []
    told = killing_at(crew, monkeypatch, "Drawing", 3)
    for name, more in (("alone", []), ("shared", SHARED)):
        report = tmp_path / f"{name}.json"
        done = run(*given, "--report", report, *more)
        assert done.exit_code == 1, done.stderr
        data = json.loads(report.read_text())
        assert data["prompts"][0]["pictures"]["consensus_after"]
        reports.append({key: data[key] for key in data.keys() - {"created", "seconds", "command"}})
    assert reports[0] == reports[1]
    assert told.count("Scoring") == 5 + 2
    assert told.count("Moving") == 2
    assert told.count("Drawing") == 2 * (5 + 2)


def settled(_ladder: object, _candidates: object, seeds: tuple[int, ...], tau: float) -> Search:
    """A search that finds one neuron, whatever the answer: to a random model nothing is removable."""
    before = yield from Tally().ask(frozenset(), seeds)
    return Outcome("localized", (FOUND,), before, seeds, {}, tau, None, 1, len(seeds), 1)


def test_an_audit_is_the_same(
    crew: RayWorkers, model: Path, pruned: Path, prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Words, embeddings, their controls, and pictures."""
    import ray

    def judge_all(_items: object) -> Iterator[tuple[int, None]]:
        from nemo_prune.audit import embeddings

        embeddings.LEAST_SCALE = -1.0
        yield 0, None

    for actor in crew.actors:
        ray.get(next(actor.work.options(num_returns="streaming").remote(judge_all, [0])))
    styles = (Style("ddim", 1, 7.0, 1, "blurry"), Style("dpm++ 2m", 1, 1.0, 1))
    chase = Chase((0, 1), batch=1, random=0, controls=1, traced=1, deep=False)
    monkeypatch.setitem(strength.EFFORTS, "quick", Effort(2, 2, 1, 2, styles, 1, chase))
    monkeypatch.setattr("nemo_prune.audit.embeddings.LEAST_SCALE", -1.0)
    monkeypatch.setattr("nemo_prune.localize.localize.auto_search", settled)
    monkeypatch.setattr("nemo_prune.audit.inputs.UNRELATED", 2)
    monkeypatch.setattr("nemo_prune.audit.neurons._ORDINARY", 2)
    monkeypatch.setattr("nemo_prune.audit.neurons.Locator._by_trajectory", lambda *_: (FOUND,))
    prompts.write_text("a memorized cat\na dog\n")
    told = killing_at(crew, monkeypatch, "no work", 1)
    reports = []
    for name, more in (("alone", []), ("shared", SHARED)):
        report = tmp_path / f"{name}.json"
        done = run("audit", model, pruned, "--prompts", prompts, "--strength", "quick", *QUICK,
                   "--report", report, *more)  # fmt: skip
        assert done.exit_code == 1, done.stderr
        data = json.loads(report.read_text())
        assert data["no_pictures"] is None
        assert data["prompts"][1]["embeddings"]["attacks"]
        reports.append({key: data[key] for key in data.keys() - {"created", "seconds"}})
    assert reports[0] == reports[1]
    assert told[:6] == [*["Trying"] * 2, *["Chasing"] * 2, *["Controlling"] * 2]
    assert told[-2:] == ["DrawingMore"] * 2


def untimed(data: Any) -> Any:
    """A comparison without what depends on the clock."""
    if isinstance(data, dict):
        timed = {"created", "command", "stages"}
        return {k: untimed(v) for k, v in data.items() if k not in timed and "seconds" not in k}
    return [untimed(one) for one in data] if isinstance(data, list) else data


def test_a_comparison_is_the_same(
    crew: RayWorkers, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that search a prompt, that build on others, that measure the model, that change words."""
    prompts.write_text("a memorized cat\na dog\na hat\n")
    (tmp_path / "ordinary.txt").write_text("a boat\na hill\n")
    given = ["compare", model, "--prompts", prompts, "--ordinary", tmp_path / "ordinary.txt", "--device",
             "cpu", "--tau", ".99", "--gate", ".99", "--images", "2", "--ordinary-images", "1",
             "--picture-steps", "1", "--methods", "nemo,nemo-union,random,wen,somepalli-1"]  # fmt: skip
    told = killing_at(crew, monkeypatch, "no work", 1)
    reports = []
    for name, more in (("alone", []), ("shared", SHARED)):
        report = tmp_path / f"{name}.json"
        done = run(*given, "--report", report, *more)
        assert done.exit_code == 0, done.stderr
        reports.append(untimed(json.loads(report.read_text())))
    assert not [row for row in reports[0]["table"] if row["errors"]]
    assert reports[0] == reports[1]
    assert told.count("Preparing") == 5 * (3 - 1), "the first prompt is prepared here"
    assert told.count("Drawing") == 6 * (3 + 2)
    assert told.count("Scoring") == 6 * 3


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_data_maps_the_scorer_over_batches(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An actor with the model; what comes is what this process gives."""
    import ray.data

    texts = [f"a {colour} {thing}" for colour in ("red", "blue", "grey") for thing in ("cat", "dog")]
    given: dict[str, Any] = {"seeds": 3, "tau": 0.0, "gate": 0.0, "device": "cpu"}
    with capfd.disabled():  # its progress
        rows = (
            ray.data.from_items([{"caption": text} for text in texts])
            .map_batches(
                nemo_prune.Scorer, fn_constructor_kwargs={"model": str(model), **given}, concurrency=1,
                batch_size=2,
            )
            .take_all()
        )  # fmt: skip
    alone = nemo_prune.detect(model, texts, **given).detections
    found = {row["caption"]: (row["score"], row["seeds"], row["memorized"]) for row in rows}
    assert found == {
        text: (one.score, one.seeds, one.memorized) for text, one in zip(texts, alone, strict=True)
    }
