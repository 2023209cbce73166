"""The folder of a comparison: a journal of what is finished, and its pictures.

Beside the first report while it is at work, or where the user wants it kept:

    DIR/journal                    what methods found and took, and what pictures came to
    DIR/METHOD/ID-SEED.png         pictures of a prompt; ID as in DIR/prompts.csv
    DIR/METHOD/ordinary/ID-SEED.png
    DIR/prompts.csv                number, ID (and text, if prompts may be shown)

A prompt's ID is a hash of its text, so a longer list, or more methods, go on with what is there.
"""

import csv
import io
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from nemo_prune.compare.methods import UNPRUNED
from nemo_prune.errors import OutputError
from nemo_prune.files.atomic import check_new_folder, write_new
from nemo_prune.files.prompts import prompt_id
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.journal import Journal, refuse_live

JOURNAL = "journal"
_AGAINST_UNPRUNED = ("measured", "same", "drift", "score", "quality")


def check_work(folder: Path, resume: bool) -> None:
    """Refuse early a folder that could not be worked in; raises OutputError."""
    if resume and (folder / JOURNAL).is_file():
        return
    refuse_live(folder / JOURNAL)
    check_new_folder(folder)


class Work:
    """What is finished, by key, and pictures by method, prompt and seed. A context manager.

    Args:
        folder: new, or with `resume` one of an earlier run.
        run: what all results depend on, as `Journal.open` takes it.
        redo: methods whose earlier results count for nothing.

    Raises OutputError, also for another run's folder.
    """

    def __init__(
        self, folder: Path, run: Mapping[str, str], *, resume: bool, redo: Collection[str] = ()
    ) -> None:
        check_work(folder, resume)
        self.folder = folder
        try:
            folder.mkdir(exist_ok=resume)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
        self._journal = Journal.open(folder / JOURNAL, run, resume=resume)
        # What failed is tried again, and what was compared with pictures that are drawn again.
        self._found = {
            key: value
            for key, value in self._journal.entries.items()
            if key.split()[1] not in redo
            and not value.get("error")
            and not (UNPRUNED in redo and key.split()[0] in _AGAINST_UNPRUNED)
        }

    def __enter__(self) -> "Work":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def get(self, kind: str, method: str, *more: str) -> Any:
        """What was added, None if nothing was."""
        return self._found.get(" ".join((kind, method, *more)))

    def add(self, value: Any, kind: str, method: str, *more: str) -> None:
        """Keep a result, on the disk when this returns. No part of the key holds a space."""
        key = " ".join((kind, method, *more))
        self._journal.add(key, value)
        self._found[key] = value

    def save(self, pictures: Sequence[Picture], method: str, name: str) -> None:
        """Keep pictures, seed by seed; name: see `place`. Those of an earlier run are replaced."""
        for seed, picture in enumerate(pictures):
            path = self._path(method, name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Whole or not, it counts once the journal says so, which is flushed after it.
                Image.fromarray(picture).save(path, "PNG")
            except OSError as error:
                raise OutputError(f"{path}: cannot be written ({error.strerror}); free room") from None

    def load(self, method: str, name: str, count: int) -> list[Picture]:
        """What `save` kept. Raises OutputError where a picture was removed or damaged."""
        found = []
        for seed in range(count):
            path = self._path(method, name, seed)
            try:
                with Image.open(path) as image:
                    found.append(np.asarray(image.convert("RGB")))
            except (OSError, ValueError, SyntaxError) as error:
                reason = getattr(error, "strerror", None) or "is no picture"
                raise OutputError(
                    f"{path}: {reason}; an earlier run drew it, so remove {self.folder} and begin anew"
                ) from None
        return found

    def describe(self, prompts: Sequence[str], ordinary: Sequence[str], show: bool) -> None:
        """Write which ID is whose."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("list", "number", "id", *(("prompt",) if show else ())))
        for name, texts in (("prompts", prompts), ("ordinary", ordinary)):
            for number, one in enumerate(texts):
                writer.writerow((name, number, prompt_id(one), *((one,) if show else ())))
        content = text.getvalue().encode("utf-8", "backslashreplace")
        write_new(self.folder / "prompts.csv", content, overwrite=True)

    def remove(self) -> None:
        """Remove the folder, which was new when a run began with it."""
        self._journal.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, method: str, name: str, seed: int) -> Path:
        return self.folder / re.sub(r"[^\w.+=-]", "_", method) / f"{name}-{seed}.png"
