"""The Python API: what `nemo_prune` offers to programs and notebooks.

    model = nemo_prune.open_checkpoint("model.safetensors")
    found = nemo_prune.detect(model, prompts)
    manifest = nemo_prune.localize(model, prompts)
    with nemo_prune.masked(pipe.unet, manifest.neurons):
        pipe(prompts[0])
    nemo_prune.apply(model, manifest, "clean.safetensors")
    report = nemo_prune.verify("model.safetensors", "clean.safetensors", prompts)
    report.save("report.html")

A model is a `Checkpoint` of `open_checkpoint`, the path of a `.safetensors` file or diffusers folder,
or, where nothing is written, a live diffusers pipeline. Further keyword arguments are the fields of
`Options`. Nothing global is changed, no network access is tried, and nothing is printed: give a
`Progress` to hear how far a long job is. Errors are `NemoPruneError`. torch is imported by the
functions that need it.
"""

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from nemo_prune.arguments import path_of, texts_of
from nemo_prune.checkpoint.apply import Written, write_model
from nemo_prune.checkpoint.checkpoint import Checkpoint, check_neurons
from nemo_prune.checkpoint.manifest import Manifest, read_manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint as _open_checkpoint
from nemo_prune.checkpoint.provenance import stated_settings
from nemo_prune.checkpoint.selection import check_fits, from_manifest, is_by_hand, named_neurons
from nemo_prune.errors import OptionError, option
from nemo_prune.files.prompts import read_prompts as _read_prompts
from nemo_prune.files.sidecars import find_sidecars
from nemo_prune.options import (
    Confirm,
    Criterion,
    Options,
    Progress,
    Reporting,
    SearchKind,
    Silent,
    TargetsMatch,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from nemo_prune.model.denoiser import LoadedModel
    from nemo_prune.report.verify import Report
    from nemo_prune.scoring.detection_run import Findings

AnyPath = str | PathLike[str]
Model = Checkpoint | AnyPath | Any
"""An opened checkpoint, a path, or a live diffusers pipeline."""
Neurons = (
    Iterable[Neuron | tuple[str | int, int] | Mapping[str, Any]] | Mapping[str | int, Iterable[int]]
)
"""Neurons one by one, or rows by layer; a layer is its name, whole or short, or its number."""


class OptionFields(TypedDict, total=False):
    """The fields of `Options` as keyword arguments; paths may be given as text."""

    seeds: int
    seed: int
    tau: float | None
    gate: float | None
    fpr: float
    calibration: AnyPath | None
    cache: bool
    force: bool
    steps: int
    timestep: int | None
    device: Any  # text as in Options, or a torch.device
    precision: str
    layers: str
    criterion: Criterion
    search: SearchKind
    as_published: bool
    confirm: Confirm
    batch_size: int | None
    rounds: int
    confirm_trajectories: int
    workers: int | None
    ray: str | None
    config: AnyPath | None
    prediction_type: Literal["epsilon", "v"] | None
    text_encoder: AnyPath | Sequence[AnyPath]


def open_checkpoint(path: AnyPath) -> Checkpoint:
    """What a model on disk is, from its headers and configs alone; loads no torch and no weights.

    Args:
        path: a `.safetensors` file or a diffusers folder.

    Returns:
        The checkpoint: its family, its value layers with their rows, its copies of the denoiser.

    Raises:
        CheckpointError: it is missing, damaged, or of a kind that the method does not apply to.
        OptionError: what is given is no path.
    """
    return _open_checkpoint(path_of(path, "path"))


def read_prompts(path: AnyPath) -> tuple[str, ...]:
    """The distinct prompts of a `.txt` (one a line), `.csv` or `.jsonl` file, in its order; no torch.

    Raises:
        PromptFileError: it is missing, empty, not UTF-8, or has no column caption, prompt or text.
        OptionError: what is given is no path, several, a folder or a pattern.
    """
    place = path_of(path, "path")
    if place.is_dir() or (glob.has_magic(str(place)) and not place.exists()):
        raise OptionError(
            f"{place}: is a folder or a pattern, and one list is read; read each of them (glob.glob)"
        )
    return _read_prompts(place).texts


def detect(
    model: Model,
    prompts: Sequence[str],
    *,
    calibration_prompts: Sequence[str] | None = None,
    all_seeds: bool = False,
    trajectories: bool = False,
    progress: Progress | None = None,
    **options: Unpack[OptionFields],
) -> "Findings":
    """Score prompts and decide by the gate which are memorized; nothing is searched.

    Args:
        model: a checkpoint, its path, or a live pipeline.
        prompts: at least one.
        calibration_prompts: ordinary prompts, at least 30, from which tau and the gate come; default:
            the published thresholds where they hold, else the bundled captions.
        all_seeds: take all seeds of every prompt, also of those that are clear after a few; then the
            scores can be compared with each other.
        trajectories: also draw a few guided steps of each prompt that the score leaves alone: one that
            draws the same picture from every seed is memorized too.
        progress: hears how far it is.
        options: fields of `Options`.

    Returns:
        `detections`, one a prompt in their order, each with `score` (MS-SSIM in [0, 1], at most 1),
        `noise_norm` (L2 norm, in units of the latents), `seeds` (how many were used) and `memorized`;
        and `thresholds` with `tau` and `gate.value`, in the unit of the scores.

    Raises:
        OptionError: no prompts, or options that cannot be honoured.
        CheckpointError: the model cannot be loaded, or gives NaN.
        CalibrationError: ordinary prompts that give no threshold, or a file for another model.
    """
    from nemo_prune.scoring.detection_run import find_memorized

    asked, texts = _options(options), _prompts(prompts)
    with _loaded(model, options) as (checkpoint, loaded):
        return find_memorized(
            checkpoint, texts, asked, progress or Silent(),
            calibration_prompts=_ordinary(calibration_prompts), early=not all_seeds,
            trajectories=trajectories, loaded=loaded,
        )  # fmt: skip


class Scorer:
    """`detect` for batches of captions, as Ray Data and other pipelines hand them out.

        captions.map_batches(
            nemo_prune.Scorer,
            fn_constructor_kwargs={"model": "model.safetensors", "calibration": "cal.safetensors"},
            concurrency=8,
            num_gpus=1,
            batch_size=256,
        )

    Each Scorer loads the model; one that is sent to another process loads it again there. Give a
    calibration file: else each also scores the ordinary prompts.

    Args:
        model: a checkpoint or its path.
        column: of the captions.
        calibration_prompts, all_seeds, options: as `detect` takes them.

    Raises:
        OptionError, CheckpointError, CalibrationError: as `detect` does.
    """

    def __init__(
        self,
        model: Checkpoint | AnyPath,
        *,
        column: str = "caption",
        calibration_prompts: Sequence[str] | None = None,
        all_seeds: bool = False,
        **options: Unpack[OptionFields],
    ) -> None:
        from nemo_prune.scoring.batches import Batches

        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
        ordinary = _ordinary(calibration_prompts)
        self._again = partial(
            Scorer,
            checkpoint,
            column=column,
            calibration_prompts=ordinary,
            all_seeds=all_seeds,
            **options,
        )
        self._batches = Batches(checkpoint, _options(options), ordinary, column, not all_seeds)

    def __reduce__(self) -> "tuple[Callable[[], Scorer], tuple[()]]":
        """It is sent as what it is made of: where it arrives, it loads the model again."""
        return self._again, ()

    def __call__(self, batch: Mapping[str, "NDArray[Any]"]) -> "dict[str, NDArray[Any]]":
        """Score a batch.

        Args:
            batch: column -> its values, `[n]` each, as Ray Data's batches are by default.

        Returns:
            The batch and, `[n]` each, "score" (float64, MS-SSIM in [0, 1]), "memorized" (bool),
            "noise_norm" (float64, L2 norm in units of the latents), "seeds" (int64, how many were used)
            and "truncated" (bool, whether the model sees only how the caption begins). A caption that
            is missing or blank has no score: NaN, of 0 seeds.

        Raises:
            PromptFileError: no such column, something in it that is not text, or one of the new columns
                is there already.
            CheckpointError: the model gives NaN, or no caption changes what it predicts.
        """
        return self._batches.scored(batch)


def localize(
    model: Model,
    prompts: Sequence[str],
    *,
    calibration_prompts: Sequence[str] | None = None,
    show_prompts: bool = False,
    progress: Progress | None = None,
    **options: Unpack[OptionFields],
) -> Manifest:
    """Find the neurons behind each prompt that the gate calls memorized ("Finding NeMo", section 3).

    Args:
        model: a checkpoint, its path, or a live pipeline, of which nothing is changed.
        prompts: at least one; the manifest's records are in their order.
        calibration_prompts: ordinary prompts, at least 30, for activation statistics and thresholds;
            default: the bundled captions, and the published thresholds where they hold.
        show_prompts: whether the manifest holds the prompts' texts.
        progress: hears how far it is.
        options: fields of `Options`.

    Returns:
        The manifest: `neurons`, the union to remove, and for each prompt its `status`, scores, own
        neurons and cost. Of a live pipeline the source's path is "live pipeline" and its hash is that of
        the weights as they lie in memory.

    Raises:
        OptionError: no prompts, or options that cannot be honoured.
        CheckpointError: the model cannot be loaded, or gives NaN.
        CalibrationError: ordinary prompts that give no statistics, or a file for another model.
        Interrupted: Ctrl-C; its `manifest` holds the prompts that were finished.
    """
    from nemo_prune.localize.localize import localize as run

    asked, texts = _options(options), _prompts(prompts)
    with _loaded(model, options) as (checkpoint, loaded):
        found = run(
            checkpoint, texts, asked, progress or Silent(),
            calibration_prompts=_ordinary(calibration_prompts), show_prompts=show_prompts, loaded=loaded,
        )  # fmt: skip
        found.engine.close()
        return found.manifest


@contextmanager
def masked(unet: Any, neurons: Neurons | Manifest) -> Iterator[None]:
    """Switch neurons off in a live UNet for as long as the `with` lasts; no weight is changed.

    The outputs of the neurons' value layers are multiplied by 0, for every sample of a batch, so in
    both halves of guidance. That is what a pruned file computes.

    Args:
        unet: a diffusers `UNet2DConditionModel` or `PixArtTransformer2DModel`, of any device and dtype,
            or the pipeline that has it.
        neurons: rows of its value layers, a manifest's or by hand as `apply` takes them; each once.

    Raises:
        OptionError: what names no neurons, or is no model in memory.
        CheckpointError: the UNet is compiled, its projections are fused, or it has no value layers.
        ManifestError: neurons that it does not have.
    """
    import torch

    from nemo_prune.model.live import describe

    if not hasattr(unet, "named_modules"):
        given, unet = unet, getattr(unet, "unet", None) or getattr(unet, "transformer", None)
        if not hasattr(unet, "named_modules"):
            raise OptionError(
                f"unet: a {type(given).__name__} has no UNet; give a diffusers pipeline of Stable "
                f"Diffusion, or its UNet"
            )
    live = describe(unet)
    chosen = named_neurons(neurons.neurons if isinstance(neurons, Manifest) else neurons, live)
    check_neurons(live, chosen)
    rows: dict[str, list[int]] = {}
    for neuron in chosen:
        rows.setdefault(neuron.layer, []).append(neuron.row)

    def hook(mask: "Tensor") -> Any:
        # The pipeline may be moved or converted inside the `with`.
        return lambda _module, _inputs, output: output * mask.to(output)

    handles = []
    try:
        for name, off in rows.items():
            layer = unet.get_submodule(name)
            mask = torch.ones(layer.out_features, dtype=torch.float32)
            mask[off] = 0
            handles.append(layer.register_forward_hook(hook(mask)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def apply(
    model: Checkpoint | AnyPath,
    neurons: Neurons | Manifest | AnyPath,
    output: AnyPath,
    *,
    top: int | None = None,
    overwrite: bool = False,
    undo: AnyPath | None = None,
    link: bool = False,
    drop_pickles: bool = False,
    hashed: bool = False,
    sidecars: bool = False,
) -> Written:
    """Write a copy of a model in which the neurons' rows are zero and nothing else differs; no torch.

    Args:
        model: a checkpoint or its path.
        neurons: a manifest or its path, whose thresholds then stand in the file's metadata, where
            `verify` reads them; or each neuron once: `Neuron(layer, row)`s, or rows by layer. A layer is
            its name, whole or short, or its number.
        top: of a manifest, only so many neurons, those with the largest attributions.
        output: the new file, or for a folder the new folder. It appears whole or not at all.
        overwrite: whether a file that exists may be replaced; a folder never is.
        undo: a new file or folder that keeps the removed rows, for `nemo-prune restore`.
        link: hard-link a folder's files that stay as they are.
        drop_pickles: leave out a folder's copies of the denoiser that cannot be edited.
        hashed: whether the output's SHA-256 is wanted.
        sidecars: of a file, also copy its configuration, descriptions and previews that lie beside it,
            under the output's name; none is ever replaced.

    Returns:
        Where it was written, its hash or None, the source's, and how many rows and bytes changed.

    Raises:
        OutputError: the output cannot be written, or exists.
        ManifestError: neurons that the model does not have, or named twice.
        CheckpointError: the source cannot be read, or holds copies that would stay unpruned.
        OptionError: an option that goes with a folder, a file, or a manifest alone; no neurons by hand.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    provenance: dict[str, str] = {}
    whence = Path("the manifest")
    if isinstance(neurons, str | PathLike):
        if is_by_hand(neurons) and not Path(neurons).exists():
            named_neurons(neurons, checkpoint)  # says what is due
        whence = path_of(neurons, option("neurons"))
        neurons = read_manifest(whence)
    if isinstance(neurons, Manifest):
        check_fits(neurons, whence, checkpoint)
        choice = from_manifest(neurons, top=top)
        chosen, provenance = choice.neurons, choice.provenance
    elif top is not None:
        raise OptionError(f"{option('top')}: goes with a manifest, which says what each neuron does")
    else:
        chosen = named_neurons(neurons, checkpoint)
        if not chosen:
            raise OptionError(f"{option('neurons')}: there are none, so nothing would change; name some")
    return write_model(
        checkpoint, chosen, path_of(output, "output"), provenance, overwrite=overwrite,
        undo=None if undo is None else path_of(undo, option("undo")), link=link,
        drop_pickles=drop_pickles, hashed=hashed,
        sidecars=find_sidecars(checkpoint.path, path_of(output, "output")) if sidecars else {},
    )  # fmt: skip


def verify(
    original: Checkpoint | AnyPath,
    pruned: Checkpoint | AnyPath,
    prompts: Sequence[str],
    *,
    manifest: Manifest | AnyPath | None = None,
    ordinary: Sequence[str] | None = None,
    targets: AnyPath | None = None,
    targets_match: TargetsMatch = "name",
    images: int = 4,
    ordinary_images: int = 2,
    picture_steps: int = 50,
    guidance: float = 7.0,
    sscd: AnyPath | None = None,
    clip: AnyPath | None = None,
    calibration_prompts: Sequence[str] | None = None,
    show_prompts: bool = False,
    progress: Progress | None = None,
    **options: Unpack[OptionFields],
) -> "Report":
    """Compare a pruned model with its original, on seeds that no search used.

    tau, the gate, the criterion and the timestep are the pruned file's own (its metadata), unless
    options say otherwise.

    Args:
        original, pruned: checkpoints or their paths.
        prompts: those that were pruned, in the order of the manifest.
        manifest: also score each prompt with its own neurons alone.
        ordinary: prompts to look for side effects with; default: the first bundled captions.
        targets: training pictures, a folder (named by prompt number or text) or a CSV.
        targets_match: of a folder, how its pictures are told: by "name", by "order" or, "alike", by
            which prompt's pictures, as the original draws them, each is most like.
        images, ordinary_images: pictures per memorized and ordinary prompt and model; 0: none.
        picture_steps: DDIM steps of a picture. guidance: its scale.
        sscd, clip: a local TorchScript file and a local folder, to compare pictures with.
        calibration_prompts: ordinary prompts to take the thresholds from instead.
        show_prompts: whether the report holds the prompts' texts.
        progress: hears how far it is.
        options: fields of `Options`.

    Returns:
        The report: `data` (plain JSON), `all_suppressed`, `save("r.html")` (.html, .md or .json) and
        `save_card("card.md")`.

    Raises:
        OptionError: options or a manifest that do not fit.
        CheckpointError: models that were not made from each other, or cannot be loaded.
        CalibrationError: as `detect`.
    """
    from nemo_prune.report.gallery import PictureSettings
    from nemo_prune.report.inputs import (
        VerifyInputs,
        as_pruned,
        bundled_ordinary,
        check_inputs,
        verify_thresholds,
    )
    from nemo_prune.report.likeness import open_likeness
    from nemo_prune.report.targets import Targets, find_targets
    from nemo_prune.report.verify import verify as run

    progress, texts = progress or Silent(), _prompts(prompts)
    before, after = (
        one if isinstance(one, Checkpoint) else open_checkpoint(one) for one in (original, pruned)
    )
    wanted = (
        manifest
        if manifest is None or isinstance(manifest, Manifest)
        else read_manifest(path_of(manifest, "manifest"))
    )
    check_inputs(before, after, texts, wanted)
    stated = stated_settings(after.metadata, after.path)
    for line in stated.ignored:
        progress.note(line)
    asked = as_pruned(_options(options), stated, options.keys())
    bundled, whence = bundled_ordinary()
    place = None if targets is None else path_of(targets, option("targets"))
    Reporting(targets=place, targets_match=targets_match, images=images)  # refuses what does not go
    told = Targets() if place is None else find_targets(place, texts, targets_match)
    ordinary_texts = bundled if ordinary is None else texts_of(ordinary, "ordinary")
    settings = PictureSettings(
        images, picture_steps, guidance, ordinary_images=ordinary_images, targets=told.pictures,
        targets_match=told.match, targets_left=told.left,
    )  # fmt: skip
    likeness = open_likeness(
        *(None if path is None else path_of(path, "sscd, clip") for path in (sscd, clip))
    )
    thresholds = verify_thresholds(before, asked, _ordinary(calibration_prompts), stated, progress)
    inputs = VerifyInputs(
        before, after, texts, ordinary_texts, asked, *thresholds,
        wanted, show_prompts, whence if ordinary is None else "the caller",
    )  # fmt: skip
    return run(inputs, likeness, settings, progress)


class _UnknownOption(OptionError, TypeError):
    """A keyword argument that there is not."""


class _NotScorable(OptionError, ValueError):
    """What has no memorization score."""


def memorization_scores(noise_differences: "Tensor", *, published: bool = False) -> "Tensor":
    """Each seed's memorization score: its best similarity with another seed ("Finding NeMo", 3.1).

    Args:
        noise_differences: `[..., seeds, c, h, w]`, predicted noise minus starting noise of each seed
            of a prompt, any floating dtype; at least 2 seeds, h and w at least 11. They are scaled to
            [0, 1] per seed and channel, which changes nothing about those that are so already.
        published: in the unit of the published thresholds, that of torchmetrics 1.3.2.

    Returns:
        float32 `[..., seeds]` on the same device, MS-SSIM of at most 1, without gradients; a prompt's
        score is its maximum over seeds, `.amax(-1)`. NaN where a difference holds NaN.

    Raises:
        OptionError: no tensor of floats, fewer than 2 seeds, or pictures that are too small; it is a
            ValueError too.
    """
    import torch

    from nemo_prune.scoring.criterion import best_pairs
    from nemo_prune.scoring.similarity import noise_difference

    if not (isinstance(noise_differences, torch.Tensor) and noise_differences.is_floating_point()):
        raise _NotScorable("noise_differences: give a torch tensor of floats, as torch.from_numpy(x)")
    if noise_differences.ndim < 4 or noise_differences.shape[-4] < 2:
        raise _NotScorable(
            f"noise differences [..., seeds, c, h, w] of at least 2 seeds are due, not "
            f"{list(noise_differences.shape)}"
        )
    *groups, seeds, channels, height, width = noise_differences.shape
    with torch.no_grad():
        flat = noise_differences.reshape(-1, channels, height, width)
        scaled = noise_difference(flat, torch.zeros_like(flat)).reshape(
            -1, seeds, channels, height, width
        )
        try:
            found = [best_pairs(dict(enumerate(one)), published=published) for one in scaled]
        except ValueError as error:
            raise _NotScorable(str(error)) from None
        scores = torch.tensor([[of[seed] for seed in range(seeds)] for of in found], dtype=torch.float32)
    return scores.reshape(*groups, seeds).to(noise_differences.device)


# ------------------------------------------------------------------------------------- arguments


def _prompts(prompts: Iterable[str]) -> tuple[str, ...]:
    """Raises OptionError for what is no list of texts, and for an empty one."""
    texts = texts_of(prompts, "prompts")
    if not texts:
        raise OptionError("prompts: give at least one")
    return texts


def _ordinary(prompts: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if prompts is None else texts_of(prompts, "calibration_prompts")


def _options(given: OptionFields) -> Options:
    """The options, with paths as such."""
    made: dict[str, Any] = dict(given)
    known = list(OptionFields.__annotations__)
    if unknown := [name for name in made if name not in known]:
        near = get_close_matches(unknown[0], known, 1)
        which = f"{near[0]} is one" if near else f"there are {', '.join(known)}"
        raise _UnknownOption(f"{unknown[0]}: there is no such option; {which}")
    for name in ("calibration", "config"):
        if made.get(name) is not None:
            made[name] = path_of(made[name], option(name))
    if type(made.get("device")).__module__ == "torch":  # a torch.device
        made["device"] = str(made["device"])
    sources = made.get("text_encoder", ())
    if isinstance(sources, str | PathLike) or not isinstance(sources, Iterable):
        sources = [sources]
    made["text_encoder"] = tuple(path_of(source, option("text_encoder")) for source in sources)
    return Options(**made)


@contextmanager
def _loaded(model: Model, given: OptionFields) -> "Iterator[tuple[Checkpoint, LoadedModel | None]]":
    """The model as a checkpoint, and as a loaded one where it is a live pipeline."""
    if isinstance(model, str | PathLike | bytes):
        model = _open_checkpoint(path_of(model, "model"))
    if isinstance(model, Checkpoint):
        yield model, None
        return
    from nemo_prune.model.live import opened

    for name in ("device", "precision", "config", "prediction_type", "text_encoder"):
        if name in given:
            raise OptionError(
                f"{option(name)}: says how a file is loaded, and a live pipeline is loaded already"
            )
    with opened(model) as (checkpoint, loaded):
        yield checkpoint, loaded
