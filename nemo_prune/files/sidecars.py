"""What programs keep beside a single-file model under its name, and a copy of it needs too.

    model.yaml                       its configuration (A1111, Forge)
    model.json, model.civitai.info,  what helpers for Civitai and managers of models know of it
    model.metadata.json, ...
    model.preview.png, model.jpg,    previews
    model.mp4, ...

Also with the whole name before the ending (`model.safetensors.json`). Told by a positive list: what
is not in it, such as a VAE or a checksum, does not belong to a copy with other bytes. The contents are
copied as they are, so a hash in them is the source's.
"""

import filecmp
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from nemo_prune.errors import OptionError, OutputError, option
from nemo_prune.files.atomic import check_place, new_file, same_file
from nemo_prune.files.trees import entries, start_of

_ENDINGS = re.compile(
    r"(ya?ml|json|info|html|txt|md"
    r"|(civitai|metadata|cm-info|swarm|rgthree-info|api_info)\.(json|info)|description\.txt"
    r"|(preview(\.\d+)?\.|cm-preview\.|swarmpreview\.|thumb\.|rgthree\.)?(png|jpe?g|webp|gif|avif|jxl|mp4|webm))",
    re.IGNORECASE,
)
_WEIGHTS = ".safetensors"


def find_sidecars(model: Path, out: Path, apart: Iterable[Path | None] = ()) -> dict[Path, Path]:
    """The sidecars of the file `model`, each with its place beside `out`, under the name of `out`.

    apart: files that a command reads, such as prompts: they are no sidecars, whatever their names.

    Raises OptionError for a folder, which is copied whole, CheckpointError if it cannot be listed.
    """
    if model.is_dir():
        raise OptionError(
            f"{option('sidecars')}: goes with a single file, and {model} is a folder, which is copied "
            f"with all that is in it"
        )
    read = [path for path in apart if path is not None]
    found = {}
    for path in entries(model.parent):
        # The whole name first: `model.safetensors.json` does not begin with the stem alone.
        for whole in (True, False):
            name, base = (unicodedata.normalize("NFC", n) for n in (path.name, _base(model, whole)))
            ending = name.removeprefix(f"{base}.")
            if ending != name and _ENDINGS.fullmatch(ending):
                if path.is_file() and not any(same_file(path, other) for other in read):
                    found[path] = out.with_name(f"{_base(out, whole)}.{ending}")
                break
    return found


def check_sidecars(sidecars: Mapping[Path, Path]) -> None:
    """Refuse early what could not be copied late; writes nothing.

    Raises CheckpointError for a file that cannot be read, OutputError for a place that is taken by
    anything but the same content, or cannot be written to.
    """
    for path, place in sidecars.items():
        start_of(path)
        if _differs(path, place):
            check_place(place, overwrite=True)
            raise OutputError(
                f"{place}: is another file than {path}, and sidecars are never replaced; move it away, "
                f"or leave out {option('sidecars')}"
            )
        if not place.exists():
            check_place(place, overwrite=False)


def copy_sidecars(sidecars: Mapping[Path, Path]) -> None:
    """Copy each to its place; what is there with the same content stays.

    Raises what `check_sidecars` raises, OutputError where the disk fails.
    """
    check_sidecars(sidecars)
    for path, place in sidecars.items():
        if not place.exists():
            with path.open("rb") as source, new_file(place, overwrite=False) as target:
                while block := source.read(1 << 20):
                    rest = memoryview(block)
                    while rest:
                        rest = rest[target.write(rest) :]


def _base(model: Path, whole: bool) -> str:
    return model.name if whole else model.name.removesuffix(_WEIGHTS)


def _differs(path: Path, place: Path) -> bool:
    """Whether something else than a copy of `path` is at `place`."""
    if not place.is_file():
        return place.exists() or place.is_symlink()
    return not filecmp.cmp(path, place, shallow=False)
