"""The comparison: every method on every prompt, drawn, then measured, and what it took.

    found = compare(CompareInputs(...), Silent(), Path("work"))
    found.data["table"]

Two stages, each resumable: first every method searches and draws, on one loaded model; then pictures are
measured from the disk, so that other measures (SSCD, CLIP) can be had later without drawing again.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, model_sha256
from nemo_prune.compare.bench import Bench
from nemo_prune.compare.drawing import EnoughError, Within, first_step
from nemo_prune.compare.methods import UNPRUNED, Method, State
from nemo_prune.compare.metrics import measure, measure_same, reference_of
from nemo_prune.compare.quality import Extractor, real_picture
from nemo_prune.compare.table import quality_rows, table_rows
from nemo_prune.compare.tasks import TOLD, Drawing, Preparing, Scoring, line, prepared
from nemo_prune.compare.work import Work
from nemo_prune.errors import CheckpointError
from nemo_prune.files.hashing import file_sha256
from nemo_prune.files.prompts import prompt_id, prompts_hash, told_of
from nemo_prune.options import Options, Progress
from nemo_prune.report.gallery import inlined
from nemo_prune.report.likeness import Described, Likeness
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import open_target
from nemo_prune.scoring.drift import changes, recorded
from nemo_prune.scoring.journal import fingerprint_of_run
from nemo_prune.scoring.sharing import Kept, kept, share

FORMAT = "nemo-prune-compare/1"
REFERENCE = "reference"
"""The unpruned model's pictures of ordinary prompts from other noises, that distances are taken to."""
_OTHER_NOISES = "the unpruned model's from other noises"
_DRIFT_PROMPTS = 8  # ordinary ones, a noise each
_CHUNK = 4  # prompts for each worker whose pictures are on their way at once
_SHOWN, _SHOWN_SEEDS = 12, 2  # prompts whose pictures a report shows, and pictures of each and method


@dataclass(frozen=True)
class CompareInputs:
    """What is compared, on what.

    Attributes:
        prompts: memorized captions. kinds: of each "verbatim", "template" or None, if the list says so.
        ordinary: ordinary captions, for side effects.
        methods: in the order of the table; the first is the unpruned model.
        targets: prompt number -> training picture.
        extractors: see `quality`. real: pictures that ordinary ones are compared with; without any
            those of the unpruned model from other noises.
        images, ordinary_images: pictures of a prompt and method. steps, guidance: how they are drawn.
        shown: as many prompts have their pictures in the report.
        places: of each prompt, the file and the line where it stands, if that is known.
    """

    checkpoint: Checkpoint
    prompts: Sequence[str]
    ordinary: Sequence[str]
    ordinary_from: str
    options: Options
    methods: Sequence[Method]
    likeness: Likeness
    kinds: Sequence[str | None] = ()
    targets: Mapping[int, Path] = field(default_factory=dict)
    extractors: Sequence[Extractor] = ()
    real: Sequence[Path] = ()
    images: int = 4
    ordinary_images: int = 2
    steps: int = 50
    guidance: float = 7.0
    shown: int = _SHOWN
    show_prompts: bool = False
    places: Sequence[tuple[str, int]] = ()
    calibration_prompts: Sequence[str] | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        data: plain JSON, the same for the same models, options and seeds but for times.
        album: pictures for HTML, as data URIs: prompt number -> method or "target" -> pictures.
    """

    data: dict[str, Any]
    album: dict[int, dict[str, list[str]]] = field(default_factory=dict)


def compare(
    inputs: CompareInputs,
    progress: Progress,
    folder: Path,
    *,
    keep: bool = False,
    resume: bool = False,
    redo: Collection[str] = (),
) -> Comparison:
    """Run every method on every prompt; measure; bring together.

    Args:
        folder: for what is finished; removed at the end unless it is to be kept.
        resume: go on with what an earlier run left there. redo: but not of these methods.

    Raises:
        CheckpointError, CalibrationError: a model that cannot be loaded or draws nothing.
        OptionError: a training picture that cannot be read.
        OutputError: a folder that cannot be worked in, or is another run's.
    """
    started = time.monotonic()
    source = model_sha256(inputs.checkpoint)
    run = fingerprint_of_run(source, (), inputs.ordinary, _settings(inputs))
    with Work(folder, run, resume=resume, redo=redo) as work:
        work.describe(inputs.prompts, inputs.ordinary, inputs.show_prompts)
        job = _Job(inputs, work, progress)
        job.draw()
        job.measure()
        data = job.collect()
        data = {
            "format": FORMAT,
            "version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "model": {"path": inputs.checkpoint.path.name, "sha256": source},
            **data,
        }
        album = job.album()
        if not keep:
            work.remove()
    return Comparison(data, album)


class _Job:
    """One comparison while it is at work."""

    def __init__(self, inputs: CompareInputs, work: Work, progress: Progress) -> None:
        self.inputs, self.work, self.progress = inputs, work, progress
        self.ids = [prompt_id(text) for text in inputs.prompts]
        self.ordinary_ids = [prompt_id(text) for text in inputs.ordinary]
        self.list_id = prompts_hash(inputs.prompts)[:12]
        self.likeness_id = _short(inputs.likeness.used)
        self.targets = {index: file_sha256(path) for index, path in inputs.targets.items()}
        self.failed: dict[str, str] = {}  # method -> why it did not run at all
        self.references: list[dict[str, Tensor]] = []  # of drift
        self.differences: dict[str, dict[int, Tensor]] = {}  # the unpruned model's, of prompts
        self._begun: set[str] = set()  # methods that were prepared for a prompt
        self._sent: tuple[str, Kept[Bench]] | None = None
        self._features: dict[str, Tensor] = {}  # of the pictures that others are compared with

    # ------------------------------------------------------------------------------------- keys

    def scope(self, method: Method, index: int) -> str:
        """What a method's state is of: the whole list, or a prompt."""
        return self.list_id if method.whole_list else self.ids[index]

    def lender(self, place: int) -> int:
        """The memorized prompt whose state an ordinary one is drawn with: each in turn."""
        return place % len(self.ids)

    def left(self, method: Method) -> tuple[list[int], list[int], bool]:
        """Prompts and ordinary prompts that are still to be drawn, and whether more is unknown."""
        memorized = [
            index
            for index, name in enumerate(self.ids)
            if self.work.get("drawn", method.name, self.scope(method, index), name) is None
        ]
        ordinary = [
            place
            for place, name in enumerate(self.ordinary_ids)
            if self.work.get("ordinary", method.name, self.scope(method, self.lender(place)), name)
            is None
        ]
        if not self.inputs.ordinary_images:
            ordinary = []
        drift = bool(self.inputs.ordinary) and method.name != UNPRUNED
        drift &= self.work.get("drift", method.name, self.list_id) is None
        scores = any(self._score(method, index) is None for index in range(len(self.ids)))
        return memorized, ordinary, drift or scores

    @property
    def reference_left(self) -> list[int]:
        """Ordinary prompts whose pictures from other noises are still to be drawn."""
        if not self.inputs.extractors or self.inputs.real or not self.inputs.ordinary_images:
            return []
        return [
            place
            for place, name in enumerate(self.ordinary_ids)
            if self.work.get("ordinary", REFERENCE, "-", name) is None
        ]

    # ------------------------------------------------------------------------------------- draw

    def draw(self) -> None:
        """Every method's search and pictures, as far as they are not there."""
        inputs, progress = self.inputs, self.progress
        left = {method.name: self.left(method) for method in inputs.methods}
        images, ordinary_images = inputs.images, inputs.ordinary_images
        todo = sum(len(one) * images + len(two) * ordinary_images for one, two, _ in left.values())
        todo += len(self.reference_left) * ordinary_images
        if not todo and not any(more for _, _, more in left.values()):
            return
        everything = images * len(self.ids) + ordinary_images * len(self.ordinary_ids)
        done = max(0, everything * len(inputs.methods) - todo)
        progress.stage("loading the model", 1, "file")
        within = Within(progress)
        bench = Bench(
            inputs.checkpoint, inputs.prompts, inputs.ordinary, inputs.options, steps=inputs.steps,
            guidance=inputs.guidance, calibration_prompts=inputs.calibration_prompts, progress=within,
        )  # fmt: skip
        progress.advance()
        progress.note(
            f"{len(inputs.methods)} methods, {len(self.ids)} memorized and {len(self.ordinary_ids)} "
            f"ordinary prompts: {todo:,} pictures of {inputs.steps} steps, and what each method searches"
        )
        progress.stage("comparing methods", todo + done, "pictures", done)
        within.began = True
        with closing(bench):
            self._run(bench, within, left)

    def _run(
        self, bench: Bench, within: Within, left: Mapping[str, tuple[list[int], list[int], bool]]
    ) -> None:
        """Every method's search and pictures, on the model that is loaded."""
        inputs, progress = self.inputs, self.progress
        images, ordinary_images = inputs.images, inputs.ordinary_images
        at_once = 1 if bench.workers is None else _CHUNK * bench.workers.count
        for method in inputs.methods:
            within.label = method.name
            memorized, ordinary, more = left[method.name]
            if method.unet_only and bench.loaded.is_transformer:
                self.failed[method.name] = "is not defined for transformers"
                progress.advance(len(memorized) * images + len(ordinary) * ordinary_images)
                continue
            for some in _chunks(memorized, at_once):
                within.detail(f"prompt {some[0]}")
                self._memorized(bench, method, some)
            if memorized and all(self._error(method, index) for index in range(len(self.ids))):
                why = self._error(method, 0)
                if method.name == UNPRUNED:
                    raise CheckpointError(why or "")
                self.failed[method.name] = why or ""
                progress.note(f"{method.name} did not run: {why}")
                progress.advance(len(ordinary) * ordinary_images)
                continue
            for some in _chunks(ordinary, at_once):
                within.detail(f"ordinary prompt {some[0]}")
                self._ordinary(bench, method, some)
            if method.name == UNPRUNED:
                for some in _chunks(self.reference_left, at_once):
                    self._reference(bench, method, some)
            if more:
                within.detail("scores and drift")
                self._scores(bench, method)
                self._drift(bench, method)

    def _state(self, bench: Bench, method: Method, index: int) -> State:
        """What the method found; from the journal, or by searching now."""
        text = None if method.whole_list else self.inputs.prompts[index]
        state = self._found(method, index)
        if state is None:
            state = prepared(bench, method, text)
            self.work.add(state, "state", method.name, self.scope(method, index))
        bench.states[method.name, text] = state
        return state

    def _find(self, bench: Bench, method: Method, indices: Sequence[int]) -> dict[int, str]:
        """`_state` of prompts; those that have none, with the reason."""
        failed: dict[int, str] = {}
        left = [index for index in indices if self._found(method, index) is None]
        # One for all, or the first: what that measures of the model itself is measured here, once.
        if left and (method.whole_list or (bench.workers and method.name not in self._begun)):
            self._begun.add(method.name)
            for index in left if method.whole_list else left[:1]:
                try:
                    self._state(bench, method, index)
                except TOLD as error:
                    failed[index] = line(error)
            left = [] if method.whole_list else left[1:]
        texts = [self.inputs.prompts[index] for index in left]
        known = [{name: s for (name, of), s in bench.states.items() if of == text} for text in texts]

        def on_done(place: int, found: tuple[State | str, dict[str, State]]) -> None:
            state, others = found
            bench.states.update({(name, texts[place]): one for name, one in others.items()})
            if isinstance(state, str):
                failed[left[place]] = state
            else:
                self.work.add(state, "state", method.name, self.scope(method, left[place]))

        if left:
            preparing = Preparing(self._kept(bench, method), method)
            share(bench.workers, preparing, list(zip(texts, known, strict=True)), on_done, left)
        return failed

    def _kept(self, bench: Bench, method: Method) -> Kept[Bench]:
        """The bench for workers, once for a method: with all that was measured of the model by then."""
        if self._sent is None or self._sent[0] != method.name:
            self._sent = method.name, kept(bench.workers, bench)
        return self._sent[1]

    def _found(self, method: Method, index: int) -> State | None:
        found: State | None = self.work.get("state", method.name, self.scope(method, index))
        return found

    def _error(self, method: Method, index: int) -> str | None:
        found = self.work.get("drawn", method.name, self.scope(method, index), self.ids[index])
        return found.get("error") if found else None

    def _memorized(self, bench: Bench, method: Method, indices: Sequence[int]) -> None:
        """Search and draw prompts."""
        failed, images = self._find(bench, method, indices), self.inputs.images

        def on_done(index: int, taken: dict[str, Any]) -> None:
            self.work.add(taken, "drawn", method.name, self.scope(method, index), self.ids[index])
            self.progress.advance(images)

        for index, why in failed.items():
            on_done(index, {"error": why})
        drawn = {
            index: (self.inputs.prompts[index], self._state(bench, method, index), self.ids[index])
            for index in indices if index not in failed
        }  # fmt: skip
        # One method may fail where others do not: the table says so, and why.
        self._draw(bench, method, drawn, images, on_done, tolerant=True)

    def _draw(
        self, bench: Bench, method: Method, wanted: Mapping[int, tuple[str, State, str]], count: int,
        on_done: Callable[[int, dict[str, Any]], None], *, first: int = 0, kept_as: str | None = None,
        tolerant: bool = False,
    ) -> None:  # fmt: skip
        """Draw and keep pictures of (text, state, name) each, by number; what they took to `on_done`."""
        numbers = list(wanted)

        def saved(place: int, found: tuple[dict[str, Any], Sequence[Picture]]) -> None:
            taken, pictures = found
            if pictures:
                self.work.save(pictures, kept_as or method.name, wanted[numbers[place]][2])
            on_done(numbers[place], taken)

        if wanted:
            seeds = range(first, first + count)
            drawing = Drawing(self._kept(bench, method), method, seeds, tolerant)
            items = [(text, state) for text, state, _ in wanted.values()]
            share(bench.workers, drawing, items, saved, numbers)

    def _ordinary(self, bench: Bench, method: Method, places: Sequence[int]) -> None:
        count, wanted = self.inputs.ordinary_images, dict[int, tuple[str, State, str]]()

        def on_done(place: int, taken: dict[str, Any]) -> None:
            scope = self.scope(method, self.lender(place))
            self.work.add(taken, "ordinary", method.name, scope, self.ordinary_ids[place])
            self.progress.advance(count)

        for place in places:
            index = self.lender(place)
            error = self._error(method, index)
            if error is not None:
                on_done(place, {"error": error})
                continue
            name = f"ordinary/{self.ordinary_ids[place]}"
            wanted[place] = self.inputs.ordinary[place], self._state(bench, method, index), name
        self._draw(bench, method, wanted, count, on_done)

    def _reference(self, bench: Bench, method: Method, places: Sequence[int]) -> None:
        count, state = self.inputs.ordinary_images, self._state(bench, method, 0)

        def on_done(place: int, taken: dict[str, Any]) -> None:
            self.work.add(taken, "ordinary", REFERENCE, "-", self.ordinary_ids[place])
            self.progress.advance(count)

        wanted = {
            place: (self.inputs.ordinary[place], state, f"ordinary/{self.ordinary_ids[place]}")
            for place in places
        }
        self._draw(bench, method, wanted, count, on_done, first=count, kept_as=REFERENCE)

    def _scores(self, bench: Bench, method: Method) -> None:
        """The memorization score of each prompt with what the method found switched off."""
        left = [
            index for index in range(len(self.ids))
            if not self._error(method, index) and self._score(method, index) is None
        ]  # fmt: skip
        items = [(self.inputs.prompts[index], self._state(bench, method, index)) for index in left]

        def on_done(place: int, score: float | None) -> None:
            index = left[place]
            key = "score", method.name, self.scope(method, index), self.ids[index]
            self.work.add({"score": score}, *key)

        if left:
            scoring = Scoring(self._kept(bench, method), method, self.differences)
            share(bench.workers, scoring, items, on_done, left)

    def _score(self, method: Method, index: int) -> dict[str, float | None] | None:
        found: dict[str, float | None] | None = self.work.get(
            "score", method.name, self.scope(method, index), self.ids[index]
        )
        return found

    def _drift(self, bench: Bench, method: Method) -> None:
        """How far cross-attention outputs move at the first step, as `drift` measures it."""
        if method.name == UNPRUNED or not self.inputs.ordinary:
            return
        places = range(min(_DRIFT_PROMPTS, len(self.ordinary_ids)))
        if not self.references:
            unpruned = self.inputs.methods[0]
            state = self._state(bench, unpruned, 0)
            self.references = [self._outputs(bench, unpruned, state, place) for place in places]
        moved: list[float] = []
        for place, before in zip(places, self.references, strict=True):
            index = self.lender(place)
            if self._error(method, index):
                continue
            after = self._outputs(bench, method, self._state(bench, method, index), place)
            there = {
                layer: output
                for layer, output in before.items()
                if layer in after and after[layer].shape == output.shape
            }
            moved += changes(there, after).values()
        found = round(sum(moved) / len(moved), 5) if moved else None
        self.work.add({"drift": found, "prompts": len(places)}, "drift", method.name, self.list_id)

    def _outputs(self, bench: Bench, method: Method, state: State, place: int) -> dict[str, Tensor]:
        """Cross-attention outputs of an ordinary prompt's first step, of the sample with the prompt."""
        unet = bench.loaded.unet
        with recorded(unet) as found, first_step(unet), suppress(EnoughError):
            method.draw(bench, self.inputs.ordinary[place], state, [0])
        half = 2 if bench.guided else 1
        return {name: output[-(len(output) // half) :].cpu() for name, output in found.items()}

    # ---------------------------------------------------------------------------------- measure

    def measure(self) -> None:
        """Every picture against what it is compared with, prompt by prompt."""
        inputs = self.inputs
        todo = [
            (index, [m for m in self.running(index) if self.measured(m, index) is None])
            for index in range(len(self.ids))
        ]
        ordinary = [
            (place, [m for m in inputs.methods if self._to_compare(m, place)])
            for place in range(len(self.ordinary_ids))
        ]
        both = [*todo, *ordinary]
        total = sum(len(some) for _, some in both)
        if total:
            self.progress.stage("comparing pictures", total, "rows")
            unrelated = self._unrelated() if any(some for _, some in todo) else []
        for index, some in todo:
            if some:
                self._measure(index, some, unrelated)
        for place, some in ordinary:
            if some:
                name, text = self.ordinary_ids[place], inputs.ordinary[place]
                old = self.work.load(UNPRUNED, f"ordinary/{name}", inputs.ordinary_images)
                for method in some:
                    new = self.work.load(method.name, f"ordinary/{name}", inputs.ordinary_images)
                    found = measure_same(inputs.likeness, text, new, old)
                    self.work.add(found, *self._ordinary_key(method, place))
                    self.progress.advance()

    def running(self, index: int) -> list[Method]:
        """The methods that drew a prompt."""
        return [
            method
            for method in self.inputs.methods
            if method.name not in self.failed and self._error(method, index) is None
        ]

    def measured(self, method: Method, index: int) -> dict[str, Any] | None:
        """What the pictures of a method and prompt came to."""
        found: dict[str, Any] | None = self.work.get(*self._key(method, index))
        return found

    def _key(self, method: Method, index: int) -> tuple[str, str, str, str, str]:
        against = _short([self.likeness_id, self.targets.get(index)])
        return "measured", method.name, self.scope(method, index), self.ids[index], against

    def _ordinary_key(self, method: Method, place: int) -> tuple[str, str, str, str, str]:
        scope = self.scope(method, self.lender(place))
        return "same", method.name, scope, self.ordinary_ids[place], self.likeness_id

    def _drew(self, method: Method, place: int) -> bool:
        scope, name = self.scope(method, self.lender(place)), self.ordinary_ids[place]
        found = self.work.get("ordinary", method.name, scope, name)
        return bool(found) and not found.get("error")

    def _to_compare(self, method: Method, place: int) -> bool:
        return self._drew(method, place) and self.work.get(*self._ordinary_key(method, place)) is None

    def _unrelated(self) -> list[Described]:
        """The unpruned model's pictures of ordinary prompts, one each, at most twelve."""
        none = self.inputs.methods[0]
        some = [p for p in range(len(self.ordinary_ids)) if self._drew(none, p)][:12]
        return [
            self.inputs.likeness.describe(
                self.work.load(UNPRUNED, f"ordinary/{self.ordinary_ids[place]}", 1)[0]
            )
            for place in some
        ]

    def _measure(self, index: int, some: Sequence[Method], unrelated: Sequence[Described]) -> None:
        inputs, name = self.inputs, self.ids[index]
        unpruned = self.work.load(UNPRUNED, name, inputs.images)
        target = inputs.targets.get(index)
        reference = reference_of(inputs.likeness, unpruned, target, unrelated)
        for method in some:
            pictures = self.work.load(method.name, name, inputs.images)
            found = measure(inputs.likeness, inputs.prompts[index], pictures, reference)
            self.work.add(found, *self._key(method, index))
            self.progress.advance()

    # ---------------------------------------------------------------------------------- collect

    def collect(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        inputs = self.inputs
        prompts = []
        for index, name in enumerate(self.ids):
            entry: dict[str, Any] = {"index": index, "id": name}
            if inputs.kinds and inputs.kinds[index]:
                entry["kind"] = inputs.kinds[index]
            entry |= told_of(index, inputs.prompts, inputs.places, inputs.show_prompts)
            entry["methods"] = {m.name: self._cell(m, index) for m in inputs.methods}
            prompts.append(entry)
        methods = [
            {"name": m.name, "title": m.title, "source": m.source, "whole_list": m.whole_list,
             "failed": self.failed.get(m.name)}
            for m in inputs.methods
        ]  # fmt: skip
        return {
            "options": _settings(inputs)
            | {
                "ordinary_from": inputs.ordinary_from,
                "ordinary_prompts": len(self.ordinary_ids),
                "compared_with": "real pictures" if inputs.real else _OTHER_NOISES,
            },
            "measures": inputs.likeness.used,
            "extractors": [one.used for one in inputs.extractors],
            "methods": methods,
            "table": table_rows(methods, prompts),
            "quality": quality_rows(methods, [self._side_effects(m) for m in inputs.methods]),
            "prompts": prompts,
        }  # fmt: skip

    def _cell(self, method: Method, index: int) -> dict[str, Any]:
        """What a method found, took and drew for a prompt."""
        error = self.failed.get(method.name) or self._error(method, index)
        if error is not None:
            return {"error": error}
        state = self.work.get("state", method.name, self.scope(method, index))
        drawn = self.work.get("drawn", method.name, self.scope(method, index), self.ids[index])
        found = {
            "samples": state.get("samples", 0),
            "seconds": state["seconds"],
            "stages": state.get("stages", {}),
            "notes": state.get("notes", []),
            "draw_seconds": drawn["seconds"],
            "draw_samples": drawn["samples"],
            **(self._score(method, index) or {}),
            **(self.measured(method, index) or {}),
        }
        if state.get("sets"):
            counts = [sum(map(len, rows.values())) for rows in state["sets"]]
            found["neurons"] = round(sum(counts) / len(counts))
        return found

    def _side_effects(self, method: Method) -> dict[str, Any]:
        """What a method does to ordinary prompts."""
        drift = self.work.get("drift", method.name, self.list_id) or {}
        places = [p for p in range(len(self.ordinary_ids)) if self._drew(method, p)]
        same = [self.work.get(*self._ordinary_key(method, place)) for place in places]
        return {
            "drift": 0.0 if method.name == UNPRUNED else drift.get("drift"),
            "same": [one for one in same if one],
            "quality": self._quality(method, places),
        }

    def _quality(self, method: Method, places: Sequence[int]) -> dict[str, float]:
        inputs, found = self.inputs, dict[str, float]()
        for extractor in inputs.extractors:
            whole = len(places) == len(self.ordinary_ids) and len(places) * inputs.ordinary_images > 1
            if not whole:
                continue
            used = _short([extractor.used, [[str(p), p.stat().st_size] for p in inputs.real]])
            known = self.work.get("quality", method.name, self.list_id, used)
            if known is None:
                against = self._reference_features(extractor, used)
                self.progress.stage(f"{extractor.name} features: {method.name}", None, "pictures")
                features = extractor.features(self._ordinary_pictures(method.name))
                known = extractor.distances(features, against)
                self.work.add(known, "quality", method.name, self.list_id, used)
            found |= known
        return found

    def _reference_features(self, extractor: Extractor, used: str) -> Tensor:
        """Features of the pictures that all are compared with, once for all methods."""
        if used not in self._features:
            pictures: Iterator[Picture]
            if self.inputs.real:
                pictures = (real_picture(path) for path in self.inputs.real)
            else:
                pictures = self._ordinary_pictures(REFERENCE)
            self.progress.stage(f"{extractor.name} features: reference", None, "pictures")
            self._features[used] = extractor.features(pictures)
        return self._features[used]

    def _ordinary_pictures(self, method: str) -> Iterator[Picture]:
        for name in self.ordinary_ids:
            for picture in self.work.load(method, f"ordinary/{name}", self.inputs.ordinary_images):
                yield picture
                self.progress.advance()

    def album(self) -> dict[int, dict[str, list[str]]]:
        """Pictures of some prompts for a page, as many of each kind."""
        kinds: dict[str | None, list[int]] = {}
        for index in range(len(self.ids)):
            kinds.setdefault(self.inputs.kinds[index] if self.inputs.kinds else None, []).append(index)
        each = max(1, self.inputs.shown // len(kinds))
        chosen = sorted(index for indices in kinds.values() for index in indices[:each])
        found: dict[int, dict[str, list[str]]] = {}
        for index in chosen[: self.inputs.shown]:
            row: dict[str, list[str]] = {}
            count = min(_SHOWN_SEEDS, self.inputs.images)
            for method in self.running(index):
                pictures = self.work.load(method.name, self.ids[index], count)
                row[method.name] = [inlined(picture) for picture in pictures]
            if index in self.inputs.targets:
                row["target"] = [inlined(open_target(self.inputs.targets[index], 256, 256))]
            found[index] = row
        return found


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _short(value: Any) -> str:
    return sha256(repr(value).encode(errors="surrogatepass")).hexdigest()[:12]


def _settings(inputs: CompareInputs) -> dict[str, Any]:
    """All that a picture depends on but for its method and prompt."""
    options = inputs.options
    return {
        "images": inputs.images,
        "ordinary_images": inputs.ordinary_images,
        "picture_steps": inputs.steps,
        "guidance": inputs.guidance,
        "seed": options.seed,
        "seeds": options.seeds,
        "steps": options.steps,
        "timestep": options.timestep,
        "tau": options.tau,
        "gate": options.gate,
        "fpr": options.fpr,
        "calibration": options.calibration.name if options.calibration else None,
        "calibration_prompts": prompts_hash(inputs.calibration_prompts or ()),
        "precision": options.precision,
        "device": options.device,
    }
