"""Workers on Ray: processes that hold the same model, on this machine or on a cluster.

The only module that knows Ray. An engine that has workers hands them work (`Engine.each`); what is
asked, and in which order answers count, is decided by whoever asks, so that the result is the same
whatever the number of workers. What ended with a worker is given to another one, each prompt by itself,
so that the one that ends them can be told.
"""

import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, model_sha256
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError, NemoPruneError, OptionError, WorkerError, option
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.engine import PROMPTS_AT_ONCE, Engine
from nemo_prune.scoring.sharing import Kept, Work, work_for_another

DEATHS = 3
"""How many workers a prompt may end before it is named."""
_STORE = 256 * 2**20  # bytes of shared memory for what is on its way; what is more goes to the disk
_AHEAD = 2  # groups of a stream for each worker, in work or waiting for their turn
_KEPT = 64  # values that a worker holds though they may not be needed again


def wants_workers(options: Options) -> bool:
    """Whether the prompts are to be shared among workers."""
    return options.workers is not None or options.ray is not None


def check_workers(options: Options) -> None:
    """Raise OptionError if workers are wanted and Ray is not installed; imports no Ray."""
    if wants_workers(options) and find_spec("ray") is None:
        name = "workers" if options.workers is not None else "ray"
        raise OptionError(
            f"{option(name)}: workers run on Ray, which is not installed; "
            f"pip install 'nemo-prune[ray]', or leave that option out"
        )


# ------------------------------------------------------------------------------------ the workers


@dataclass(frozen=True)
class Identity:
    """Which model a worker would open, and with what."""

    node: str
    sha256: str
    software: str


def identity(checkpoint: Checkpoint) -> Identity:
    """What this process would open."""
    software = f"nemo-prune {__version__}, torch {version('torch')}"
    return Identity(socket.gethostname(), model_sha256(checkpoint), software)


class Worker:
    """What runs in a worker's process."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def identity(self, path: Path) -> Identity | str:
        """Which model lies at `path` here; an error's message."""
        try:
            return identity(open_checkpoint(path))
        except NemoPruneError as error:
            return error.message

    def load(self, opened: Callable[[], Sequence[Engine]]) -> str:
        """Load the models; the fingerprint of their weights and settings."""
        self._engines = opened()
        for engine in self._engines:
            engine.note = self._notes.append
        work_for_another(*self._engines)
        return _fingerprint(self._engines)

    def _spent(self) -> tuple[int, int, int]:
        costs = [engine.cost for engine in self._engines]
        forward, backward = sum(one.forward for one in costs), sum(one.backward for one in costs)
        return forward, backward, sum(one.batches for one in costs)

    def work(
        self, work: Work, items: Sequence[Any]
    ) -> Iterator[tuple[int | None, Any, tuple[int, int, int], list[str]]]:
        """Of each item its place and result, what was spent since the last one, and notes.

        The last one has no place: what was spent after it.
        """
        spent = self._spent()

        def since() -> tuple[tuple[int, int, int], list[str]]:
            nonlocal spent
            before, spent = spent, self._spent()
            notes = list(self._notes)
            self._notes.clear()
            return (spent[0] - before[0], spent[1] - before[1], spent[2] - before[2]), notes

        for place, result in work(items):
            yield place, result, *since()
        yield None, None, *since()


@dataclass(frozen=True)
class Opening:
    """Opens the models in a worker as the options say."""

    paths: tuple[Path, ...]
    options: Options
    threads: int | None

    def __call__(self) -> list[Engine]:
        import torch

        from nemo_prune.scoring.opening import open_engine

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return [open_engine(open_checkpoint(path), self.options) for path in self.paths]


def _fingerprint(engines: Sequence[Engine]) -> str:
    from nemo_prune.model.settings import settings_of
    from nemo_prune.scoring.calibration_file import fingerprint

    models = [engine.model for engine in engines]
    return " ".join(f"{fingerprint(model)} {settings_of(model)}" for model in models)


@dataclass(frozen=True, eq=False)
class Sent:
    """A value in the cluster's memory, of which a process that asks often holds a copy."""

    reference: Any

    def get(self) -> Any:
        key = self.reference.hex()
        if key not in _held:
            import ray

            _held[key] = ray.get(self.reference)
            while len(_held) > _KEPT:
                _held.popitem(last=False)
        _held.move_to_end(key)
        return _held[key]


_held: OrderedDict[str, Any] = OrderedDict()

# ------------------------------------------------------------------------------------- who is asked


@dataclass(eq=False)
class _Task:
    """Items that a worker works on, by place; those that are not done."""

    items: dict[int, Any]
    actor: Any = None
    numbers: list[int] = field(default_factory=list)
    ended: bool = False
    died: bool = False

    def __post_init__(self) -> None:
        self.numbers = list(self.items)


class RayWorkers:
    """Workers on a Ray cluster that is connected; see `Workers` in the engine's module.

    Args:
        count: how many.
        start: makes an actor of `Worker`.
        load: what an actor opens.
        after: undoes what was started, when all have ended.

    Raises WorkerError for workers that end again and again, CheckpointError for one with another model.
    """

    def __init__(
        self, count: int, start: Callable[[], Any], load: Callable[[], Sequence[Engine]],
        after: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        import ray

        self.count = count
        self._ray, self._start, self._load, self._after = ray, start, ray.put(load), after
        self._engine: Engine | None = None
        self._fingerprint = ""
        self._failed = 0
        self.actors: list[Any] = [start() for _ in range(count)]
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, _Task] = {}

    def compare(self, path: Path, own: Identity) -> None:
        """Refuse nodes that have another model at `path`, or other software, before any loads it.

        Raises CheckpointError, one line that names them.
        """
        try:
            found = self._got(self._ray.get, [actor.identity.remote(path) for actor in self.actors])
        except _DiedError as error:
            raise WorkerError(
                f"a worker did not start ({error}); is nemo-prune installed on every node?"
            ) from None
        wrong: dict[str, None] = {}
        for one in found:
            if isinstance(one, str):
                wrong[f"a worker cannot open it: {one}"] = None
            elif one.sha256 != own.sha256:
                wrong[
                    f"node {one.node} has another file there (sha256 {one.sha256[:12]}..., here "
                    f"{own.sha256[:12]}...); copy this one to it"
                ] = None
            elif one.software != own.software:
                wrong[f"node {one.node} runs {one.software}, this one {own.software}"] = None
        if wrong:
            raise CheckpointError(f"{path}: {'; '.join(wrong)}")

    def load(self) -> None:
        """Begin to load the model everywhere."""
        self._starting = {actor.load.remote(self._load): actor for actor in self.actors}

    def serve(self, engine: Engine, fingerprint: str) -> None:
        """Work for `engine` when the model is loaded.

        Raises CheckpointError where its weights are others than `fingerprint` says.
        """
        self._engine, self._fingerprint = engine, fingerprint
        while self._starting:
            self._next()
        engine.workers = self

    # ---------------------------------------------------------------------------------------- work

    def keep(self, value: Any) -> Kept[Any]:
        return Sent(self._ray.put(value))

    def each(
        self, work: Work, items: Sequence[Any], on_done: Callable[[int, Any], None],
        numbers: Sequence[int | str],
    ) -> dict[int, Any]:  # fmt: skip
        """See `Engine.each`. Groups get smaller towards the end, so that all end together."""
        sent, found = self._ray.put(work), dict[int, Any]()
        waiting, alone = deque(range(len(items))), deque[int]()
        deaths: Counter[int] = Counter()
        fatal: list[int] = []
        while len(found) + len(fatal) < len(items):
            while self._idle and (alone or waiting):
                source, size = alone, 1
                if not alone:
                    source, size = waiting, math.ceil(len(waiting) / (2 * self.count))
                places = [source.popleft() for _ in range(min(size, PROMPTS_AT_ONCE))]
                self._give(sent, _Task({place: items[place] for place in places}))
            told = self._next()
            if told is None:
                continue
            task, done = told
            for place, result in done:
                found[place] = result
                on_done(place, result)
            if task.died:
                deaths.update(task.items.keys())
                for place in task.items:
                    (fatal if deaths[place] == DEATHS else alone).append(place)
        self._drain()
        if fatal:  # when all others are done, so that they need not be done again
            raise _given_up("prompt " + ", ".join(str(numbers[place]) for place in sorted(fatal)))
        return found

    def stream(self, work: Work, groups: Iterator[Sequence[Any]]) -> Iterator[list[Any]]:
        """See `Engine.stream`. A fault in `groups` is raised when all before it is given."""
        sent = self._ray.put(work)
        order: deque[int] = deque()
        lengths: dict[int, int] = {}
        found: dict[int, dict[int, Any]] = {}
        tasks: dict[_Task, int] = {}
        again: deque[tuple[int, dict[int, Any]]] = deque()
        deaths: Counter[int] = Counter()
        fault: NemoPruneError | None = None
        number, more = 0, True
        while True:
            while more and len(order) < _AHEAD * self.count:
                try:
                    items = next(groups)
                except StopIteration:
                    more = False
                except NemoPruneError as error:
                    more, fault = False, error
                else:
                    again.append((number, dict(enumerate(items))))
                    order.append(number)
                    lengths[number], found[number] = len(items), {}
                    number += 1
            while self._idle and again:
                group, left = again.popleft()
                task = _Task(left)
                tasks[task] = group
                self._give(sent, task)
            while order and len(found[order[0]]) == lengths[order[0]]:
                group = order.popleft()
                results = found.pop(group)
                yield [results[place] for place in range(lengths.pop(group))]
            if not more and not order:
                break
            if len(order) < _AHEAD * self.count and more:
                continue
            if (told := self._next()) is None:
                continue
            task, done = told
            group = tasks[task]
            if done:  # the last that is told of a group may come when it is given already
                found[group].update(done)
            if task.ended or task.died:
                del tasks[task]
            if task.died and task.items:
                deaths[group] += 1
                if deaths[group] == DEATHS:
                    raise _given_up(f"block {group}, of up to {PROMPTS_AT_ONCE} prompts,")
                again.appendleft((group, task.items))
        self._drain()
        if fault is not None:
            raise fault

    def _give(self, sent: Any, task: _Task) -> None:
        task.actor = self._idle.pop(0)
        call = task.actor.work.options(num_returns="streaming")
        self._running[call.remote(sent, list(task.items.values()))] = task

    def _drain(self) -> None:
        """Hear the last of all that runs: what was spent after the last result."""
        while self._running:
            self._next()

    def _next(self) -> tuple[_Task, list[tuple[int, Any]]] | None:
        """Wait until something is told: of a task what is done, None where a worker is ready."""
        (one,), _ = self._ray.wait([*self._starting, *self._running], num_returns=1)
        if one in self._starting:
            self._ready(one, self._starting.pop(one))
            return None
        task, generator = self._running[one], cast(Iterator[Any], one)
        try:
            place, result, spent, notes = self._got(lambda: self._ray.get(next(generator)))
        except StopIteration:
            del self._running[one]
            self._idle.append(task.actor)
            task.ended = True
            return task, []
        except _DiedError:
            del self._running[one]
            self._replace(task.actor)
            task.died = True
            return task, []
        assert self._engine is not None
        cost = self._engine.cost
        cost.forward, cost.backward = cost.forward + spent[0], cost.backward + spent[1]
        cost.batches += spent[2]
        for line in notes:
            self._engine.note(line)
        if place is None:
            return task, []
        number = task.numbers[place]
        del task.items[number]
        self._failed = 0
        # Of its own, since an array in Ray's memory would keep that from being used again.
        return task, [(number, deepcopy(result))]

    def _ready(self, reference: Any, actor: Any) -> None:
        try:
            found = self._got(self._ray.get, reference)
        except _DiedError:
            self._failed += 1
            if self._failed == DEATHS:
                raise WorkerError(
                    f"{DEATHS} workers ended while they opened the model, perhaps for want of memory; "
                    f"give fewer {option('workers')}"
                ) from None
            self._replace(actor)
            return
        if found != self._fingerprint:
            raise CheckpointError(
                "a worker has loaded other weights: a text encoder or config is another file on its "
                "node; copy those of this one to it"
            )
        self._idle.append(actor)

    def _replace(self, actor: Any) -> None:
        """Another worker in the place of one that ended."""
        self.actors.remove(actor)
        with suppress(Exception):
            self._ray.kill(actor)
        self.actors.append(self._start())
        self._starting[self.actors[-1].load.remote(self._load)] = self.actors[-1]

    def _got(self, get: Callable[..., Any], *arguments: Any) -> Any:
        """What Ray gives; the error of the work itself, or `_DiedError` for a worker that ended."""
        errors = self._ray.exceptions
        try:
            return get(*arguments)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except errors.RayError as error:
            raise _DiedError(str(error).partition("\n")[0]) from None

    def close(self) -> None:
        """End all workers, and what was started for them."""
        for actor in self.actors:
            with suppress(Exception):
                self._ray.kill(actor)
        self.actors.clear()
        self._after()


class _DiedError(Exception):
    """A worker ended before it had answered."""


def _given_up(what: str) -> WorkerError:
    return WorkerError(
        f"{what} ended {DEATHS} workers one after the other, perhaps for want of memory (of the machine "
        f"or the device); give a smaller {option('batch_size')}, or leave it out"
    )


# ------------------------------------------------------------------------------------------- Ray


def start_workers(checkpoints: Sequence[Checkpoint], options: Options) -> RayWorkers:
    """Connect to Ray, or start it on this machine; the workers then begin to load the models.

    Raises OptionError for a cluster that does not answer or has too little, CheckpointError for nodes
    with another file.
    """
    from nemo_prune.model.devices import pick_device

    check_workers(options)
    device = pick_device(options.device)
    after = _connect(options, device.type)
    try:
        import ray
        import torch

        cluster: Any = ray  # of which not all is typed
        there = cluster.cluster_resources()
        gpus, processors = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        on_gpu = device.type == "cuda"
        if options.workers is not None:
            count = options.workers
        else:
            count = gpus if on_gpu else sum(node["Alive"] for node in cluster.nodes())
        most, what = (gpus, "GPUs") if on_gpu else (processors, "processors")
        if not 0 < count <= most:
            raise OptionError(f"{option('workers')} {count}: there are {most} {what}")
        each = 1 if options.workers is not None or on_gpu else max(1, processors // count)
        resources = {"num_cpus": 0 if on_gpu else each, "num_gpus": int(on_gpu)}
        # On one machine they share the processors that this process would have used alone.
        threads = None if on_gpu else each
        if options.ray is None and not on_gpu:
            threads = max(1, torch.get_num_threads() // count)
        paths = tuple(one.path.absolute() for one in checkpoints)
        asked = sent(options)
        actor = ray.remote(Worker).options(
            **resources, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        workers = RayWorkers(count, actor.remote, Opening(paths, asked, threads), after)
    except BaseException:
        after()
        raise
    try:
        for path, checkpoint in zip(paths, checkpoints, strict=True):
            workers.compare(path, identity(checkpoint))
        workers.load()
    except BaseException:
        workers.close()
        raise
    return workers


def sent(options: Options) -> Options:
    """How another process loads a model: as this one does, and without workers of its own."""
    from nemo_prune.model.devices import pick_device, pick_dtype

    device = pick_device(options.device)
    return replace(
        options, workers=None, ray=None, calibration=None, device=device.type,
        precision=_named(pick_dtype(device, options.precision)),
        config=options.config and options.config.absolute(),
        text_encoder=tuple(one.absolute() for one in options.text_encoder),
    )  # fmt: skip


def open_workers(workers: RayWorkers, engines: Sequence[Engine], progress: Progress | None) -> None:
    """Wait until the workers have loaded the engines' models; they then work for the first of them."""
    for place, engine in enumerate(engines):
        engine.place = place
    workers.serve(engines[0], _fingerprint(engines))
    if progress is not None:
        progress.note(f"{workers.count} workers share the prompts")


def _named(dtype: Any) -> str:
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[str(dtype).removeprefix("torch.")]


def _connect(options: Options, device: str) -> Callable[[], None]:
    """Be connected to Ray; what undoes it. A program's own connection is used, and left as it is."""
    undo = ExitStack()
    after = undo.close

    with _unchanged():
        if options.ray is None:
            # For the cluster that is started here alone: no statistics are sent to Ray's makers, and
            # nobody else on the machine may give it work. How that is ensured Ray reads as it is
            # imported; a program that has done so has its own way.
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            if "ray" not in sys.modules:
                _token.append(secrets.token_hex(32))
            if _token:
                os.environ["RAY_AUTH_MODE"] = "token"
                os.environ["RAY_AUTH_TOKEN"] = _token[0]
        import ray
        from ray._private import worker as private

        if ray.is_initialized():
            return after
        # It would print on standard output that a worker ended, where only results belong.
        undo.callback(setattr, private, "_worker_logs_enabled", True)
        private._worker_logs_enabled = False
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if options.ray is None:
            folder = tempfile.mkdtemp(prefix="np-")  # short: sockets lie in it
            undo.callback(shutil.rmtree, folder, ignore_errors=True)  # when Ray has ended
            more: dict[str, Any] = {} if device == "cuda" else {"num_gpus": 0}
            quiet |= {
                "num_cpus": options.workers, "include_dashboard": False,
                "object_store_memory": _STORE, "_temp_dir": folder, **more,
                # They do the work of this process, so they yield to others as much as it does.
                "_system_config": {"worker_niceness": 0},
            }  # fmt: skip
        else:
            quiet["address"] = options.ray
        undo.callback(ray.shutdown)
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            after()
            what = " ".join(str(error).split())[:200] or type(error).__name__
            if options.ray is None:
                raise OptionError(
                    f"{option('workers')}: Ray cannot be started here ({what}); leave that option out"
                ) from None
            raise OptionError(
                f"{option('ray')} {options.ray}: no Ray cluster answers there ({what}); start one with "
                f"ray start --head, or give {option('workers')} alone"
            ) from None
        except BaseException:
            after()
            raise
        return after


_token: list[str] = []  # of the clusters that this process starts


@contextmanager
def _unchanged() -> Iterator[None]:
    """Variables of the environment, and what SIGTERM does, are afterwards as they were."""
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        with suppress(ValueError):  # not the main thread, where Ray has set nothing either
            signal.signal(signal.SIGTERM, handler)
