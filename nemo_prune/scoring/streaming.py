"""`detect` and `check` on lists of any length: scored as they are read, in constant memory.

Rows go to a table (`nemo_prune.scoring.table`) as prompts are finished, in the order of the lists;
beside it only the highest scores are kept. A fault far down in a list ends the run when all before it is
scored, and the result says that it is incomplete.
"""

import gc
import statistics
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, model_sha256
from nemo_prune.errors import NemoPruneError, PromptFileError, option
from nemo_prune.files.prompts import counted
from nemo_prune.files.streams import Block, Lists, Placed, PromptStream
from nemo_prune.model.denoiser import LoadedModel, Tokens
from nemo_prune.model.prediction import Prediction
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.detect import Screened, Screening
from nemo_prune.scoring.engine import PROMPTS_AT_ONCE, Engine
from nemo_prune.scoring.journal import fingerprint_of_run
from nemo_prune.scoring.notes import FEWEST
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.table import Rows, Streamed, Table
from nemo_prune.scoring.thresholds import Thresholds

_AHEAD = 4  # blocks that are read and tokenized while others are scored


def score_stream(
    engine: Engine,
    stream: PromptStream,
    screen: Screening,
    seeds: int,
    gate: float,
    found: Streamed,
    progress: Progress,
    *,
    show_prompts: bool = False,
    means: Sequence[float] = (),
    on_rows: Callable[[list[dict[str, Any]], Block], None] = lambda _rows, _block: None,
) -> None:
    """Score a stream into `found`; `on_rows` gets the rows of each block, in the order of the lists.

    means: the mean score of ordinary prompts after 2, 3, ... seeds.

    Raises PromptFileError for a fault in a list, when all before it is scored; CheckpointError.
    """
    most = engine.model.max_tokens
    began, before, told, share = time.monotonic(), found.scored, 0.0, stream.done_bytes
    first: list[int] | None = None
    with _ahead(stream, engine.model.token_reader()) as blocks, _unwatched():
        read: deque[tuple[Block, Tokens]] = deque()

        def groups() -> Iterator[list[tuple[list[str], Tokens]]]:
            for block, tokens in blocks:
                read.append((block, tokens))
                yield [([one.text for one in block.prompts], tokens)]

        for (screened,) in engine.stream(screen.tokenized, groups()):
            block, tokens = read.popleft()
            for _, norm in screened:
                screen.saw(norm)
            rows = [
                _row(block.prompts[place], one, norm, found.scored + place, gate, seeds,
                     len(tokens.ids[place]) > most, stream.labelled, show_prompts)
                for place, (one, norm) in enumerate(screened)
            ]  # fmt: skip
            if found.alike:
                first = first or tokens.ids[0][: most - 1]
                found.alike = all(one[: most - 1] == first for one in tokens.ids)
            _count(found, rows, block, means)
            on_rows(rows, block)
            progress.advance(len(rows))
            now = time.monotonic()
            if now - told >= 1:
                told, rate = now, (found.scored - before) / max(now - began, 1e-9)
                progress.pace(_pace(rate, now - began, share, block.done_bytes, stream.total_bytes))
    for line in stream.notes:
        progress.note(line)


def _row(
    placed: Placed, one: Screened, norm: float, index: int, gate: float, seeds: int, truncated: bool,
    labelled: bool, show_prompts: bool,
) -> dict[str, Any]:  # fmt: skip
    score, used = one.path[-1], one.scores
    row: dict[str, Any] = {
        "index": index,
        "memorized": score > gate,
        "score": score,
        "noise_norm": round(norm, 5),
        "seeds": len(used),
        "lower_bound": len(used) < seeds,
        "seed_scores": [used[seed] for seed in sorted(used)],
        "truncated": truncated,
    }
    if labelled:
        row["label"] = placed.label
    if show_prompts:
        row["text"] = placed.text
    row["file"], row["line"] = placed.file, placed.line
    return row


def _count(found: Streamed, rows: list[dict[str, Any]], block: Block, means: Sequence[float]) -> None:
    for row, placed in zip(rows, block.prompts, strict=True):
        found.memorized += row["memorized"]
        found.early += row["lower_bound"]
        found.truncated += row["truncated"]
        found.keep(row, placed.text)
    used = [row["seeds"] for row in rows]
    found.fewest = min(used) if not found.fewest else min(found.fewest, *used)
    found.most = max(found.most, *used)
    if means and not found.above:
        found.above = any(row["score"] >= means[row["seeds"] - 2] for row in rows)
    found.scored += len(rows)
    found.position = block.position


def _pace(rate: float, seconds: float, before: int, done: int, total: int | None) -> str:
    """A rate, and by the share of bytes that are read the time left."""
    text = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
    if not total:
        return text
    text += f", {100 * done / total:.1f} % read"
    if done > before:
        left = seconds / (done - before) * (total - done)
        text += f", {timedelta(seconds=round(left))} left"
    return text


@contextmanager
def _ahead(
    stream: PromptStream, prepare: Callable[[list[str]], Any]
) -> Iterator[Iterator[tuple[Block, Any]]]:
    """Blocks of a stream, read and prepared by another thread, a few ahead of who takes them."""
    ready: Queue[tuple[Block, Any] | BaseException | None] = Queue(_AHEAD)
    stopped = Event()

    def put(one: tuple[Block, Any] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(Full):
                ready.put(one, timeout=0.1)
                return

    def read() -> None:
        try:
            for block in stream.blocks(PROMPTS_AT_ONCE):
                put((block, prepare([one.text for one in block.prompts])))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # it is raised where the blocks are taken
            put(error)

    def taken() -> Iterator[tuple[Block, Any]]:
        while (one := ready.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one

    # A daemon: nothing ends a read of a pipe to which nobody writes any more.
    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join(1)


@contextmanager
def _unwatched() -> Iterator[None]:
    """No search for garbage among what is there already, a million objects of the libraries.

    A list goes by in millions of short-lived ones, so such searches come often.
    """
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


# --------------------------------------------------------------------------------------- the job


@dataclass(frozen=True)
class Screen:
    """What `screen_lists` found, and how; `streamed_summary` makes plain JSON of it."""

    checkpoint: Path
    found: Streamed
    thresholds: Thresholds
    norm_gate: float | None
    seeds: int
    timestep: int
    prediction: Prediction | None
    samples: int
    calibration_samples: int
    seconds: float


def screen_lists(
    checkpoint: Checkpoint,
    lists: Lists,
    options: Options,
    progress: Progress,
    *,
    calibration_prompts: Sequence[str] | None = None,
    early: bool = True,
    table: Table | None = None,
    show_prompts: bool = False,
    expected: int | None = None,
    on_memorized: Callable[[dict[str, Any]], None] = lambda _row: None,
    loaded: LoadedModel | None = None,
) -> Screen:
    """Score the prompts of lists as they are read; decide each by the gate.

    early: False uses all seeds of every prompt. on_memorized: told of each finding's row as it is made.
    expected: how many distinct prompts there must be. loaded: the model, where it is in memory already.

    Raises OptionError, CheckpointError, CalibrationError; OutputError for a table; Incomplete for what
    ends the run when prompts were scored already.
    """
    started = time.monotonic()
    progress.stage("loading the model", 1, "file")
    engine = open_engine(checkpoint, options, progress, loaded, workers=True)
    with closing(engine):
        return _screen(
            engine, checkpoint, lists, options, progress, calibration_prompts, early, table,
            show_prompts, expected, on_memorized, started,
        )  # fmt: skip


def _screen(
    engine: Engine, checkpoint: Checkpoint, lists: Lists, options: Options, progress: Progress,
    calibration_prompts: Sequence[str] | None, early: bool, table: Table | None, show_prompts: bool,
    expected: int | None, on_memorized: Callable[[dict[str, Any]], None], started: float,
) -> Screen:  # fmt: skip
    progress.advance()
    ordinary = Ordinary(engine, checkpoint, options, calibration_prompts, progress)
    thresholds, norm_gate = ordinary.thresholds, ordinary.norm_gate(options.fpr)
    if early and not thresholds.margins and thresholds.scores_from is None:
        progress.note(
            "no ordinary scores are known, so prompts that are not memorized take all seeds "
            "(nemo-prune calibrate mends that)"
        )
    calibration_samples = engine.cost.samples
    means: list[float] = []
    if thresholds.scores_from is not None:
        means = [statistics.fmean(of) for of in zip(*ordinary.scores[0].paths, strict=True)]
    found, keys = Streamed(), array("Q")
    rows: Rows | None = None
    if table is not None:
        settings = {
            **thresholds.as_json(), "margins": thresholds.margins, "early": early,
            "seeds": options.seeds, "seed": options.seed, "timestep": engine.timestep,
            "precision": engine.model.precision, "scored by": ordinary.scored_by,
            "texts": show_prompts, "format": lists.format, "column": lists.column,
            "labels": lists.labels,
        }  # fmt: skip
        run = fingerprint_of_run(
            model_sha256(checkpoint),
            [str(path) for path in lists.paths],
            calibration_prompts,
            settings,
        )
        rows = Rows(table, options.seeds, run, lists.paths)
        found, keys = rows.found, rows.keys
    stream = lists.stream(found.position, keys)
    if lists.labels:
        progress.note(
            "labels go to the table; AUROC and accuracy take scores of a list that is held in memory"
        )
    progress.stage("scoring", None, "prompts", done=found.scored)
    gate = thresholds.gate.value

    def on_rows(made: list[dict[str, Any]], block: Block) -> None:
        if rows is not None:
            rows.add(made, block)
        for row in made:
            if row["memorized"]:
                on_memorized(row)
        if expected is not None and found.scored > expected:
            raise _unexpected(lists.paths, expected, f"more, {found.scored} so far,")

    def result() -> Screen:
        return Screen(
            checkpoint.path, found, thresholds, norm_gate, options.seeds,
            engine.timestep, engine.model.prediction, engine.cost.samples - calibration_samples,
            calibration_samples, round(time.monotonic() - started, 1),
        )  # fmt: skip

    try:
        screen = Screening(engine, range(options.seeds), gate if early else None, thresholds.margins)
        score_stream(engine, stream, screen, options.seeds, gate, found, progress,
                     show_prompts=show_prompts, means=means, on_rows=on_rows)  # fmt: skip
        screen.check_effect()
        found.position = stream.position
        if expected is not None and found.scored != expected:
            raise _unexpected(lists.paths, expected, f"{found.scored} distinct prompts")
        if rows is not None:
            rows.finish(progress)
    except NemoPruneError as error:
        if not found.scored:
            raise
        raise Incomplete(error, result(), table) from None
    finally:
        if rows is not None:
            rows.close()
    for line in _notes(found, bool(means), engine.model.max_tokens):
        progress.note(line)
    return result()


class Incomplete(NemoPruneError):
    """A list that could not be scored to its end; `screen` is what was found before."""

    def __init__(self, error: NemoPruneError, screen: Screen, table: Table | None) -> None:
        where = ""
        if table is not None:
            where = f"; {table.partial} holds them, and {option('resume')} goes on from there"
        super().__init__(
            f"{error.message}. INCOMPLETE: only the {screen.found.scored} prompts before were scored, "
            f"{screen.found.memorized} of them memorized{where}"
        )
        self.screen = screen


def _unexpected(paths: Sequence[Path], expected: int, what: str) -> PromptFileError:
    names = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
    return PromptFileError(f"{names}: {option('expect_prompts')} {expected}, and {what} were read")


def _notes(found: Streamed, compared: bool, most: int) -> Iterator[str]:
    yield counted(found.scored, found.position.merged, found.position.blank)
    if found.truncated:
        yield (
            f"{found.truncated} prompts are longer than {most} tokens and were truncated: the model "
            f"sees, and the score is of, what they begin with"
        )
    if found.alike and found.scored > 1:
        yield f"all {found.scored} prompts are the same to the model, so they have one score"
    if compared and not found.above and found.scored >= FEWEST:
        yield (
            f"all {found.scored} prompts score below the mean of ordinary prompts: were both scored "
            f"with the same text encoder, and are the prompts captions in its language?"
        )


def streamed_summary(screen: Screen, complete: bool = True) -> dict[str, Any]:
    """As `summary`, for a stream: "prompts" holds the `TOP` highest scores alone.

    "scored": how many distinct prompts were scored, "clear_early": before all seeds. "complete": false
    where a fault ended the lists before their end.
    """
    found = screen.found
    return {
        "version": __version__,
        "source": {"path": str(screen.checkpoint)},
        "complete": complete,
        **screen.thresholds.as_json(),
        "scores_from": screen.thresholds.scores_from,
        "noise_norm_gate": screen.norm_gate,
        "consistency_gate": None,
        "seeds": screen.seeds,
        "timestep": screen.timestep,
        "prediction": screen.prediction.as_json() if screen.prediction else None,
        "scored": found.scored,
        "memorized": found.memorized,
        "clear_early": found.early,
        "seeds_used": [found.fewest, found.most],
        "prompts_read": found.position.read,
        "merged": found.position.merged,
        "blank": found.position.blank,
        "prompts": found.top,
        "evaluation": None,
        "cost": {
            "samples": screen.samples,
            "calibration_samples": screen.calibration_samples,
            "seconds": screen.seconds,
        },
    }
