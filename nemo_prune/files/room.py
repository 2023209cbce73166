"""Whether a disk has room for what is to be written, asked before any of it is."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from nemo_prune.errors import OutputError


def check_room(out: Path, sources: Iterable[Path], more: Iterable[tuple[Path, int]] = ()) -> None:
    """Raise OutputError if there is no room for files as large as `sources` where `out` is to be.

    `more` are further places and the bytes that are to be written there; those on one disk add up.
    """
    with contextlib.suppress(OSError):
        wanted: dict[int, int] = {}
        for place, size in ((out, sum(Path(path).stat().st_size for path in sources)), *more):
            folder = place.absolute().parent
            disk = folder.stat().st_dev
            wanted[disk] = wanted.get(disk, 0) + size
            free = shutil.disk_usage(folder).free
            if wanted[disk] > free:
                raise OutputError(
                    # Rounded apart: a small file never "needs 0 MB but the disk has 0 MB left".
                    f"{place}: needs {-(-wanted[disk] // 10**6):,} MB but the disk has "
                    f"{free // 10**6:,} MB left; free some or choose another disk"
                )
