"""Where the operating system lacks what POSIX has, the verbs on files work all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rawfiles
from folders import pipeline, put, tree

# Modules and names that Windows, or an older kernel, does not have.
POOR = """
import errno, os, sys
import fcntl
real = os.fsync
def fsync(file):
    # Windows flushes only what is open for writing.
    if fcntl.fcntl(file, fcntl.F_GETFL) & 3 == os.O_RDONLY: raise OSError(errno.EBADF, "closed")
    real(file)
os.fsync = fsync
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("copy_file_range posix_fadvise posix_fallocate sendfile splice statvfs pread pwrite "
             "preadv pwritev fstatvfs fchmod fchown chown lchown fork getuid mkfifo mknod link sync "
             "sched_getaffinity killpg getpgid O_DIRECT O_DIRECTORY O_CLOEXEC O_SYNC RWF_NOWAIT "
             "POSIX_FADV_DONTNEED POSIX_FADV_WILLNEED").split():
    if hasattr(os, name): delattr(os, name)
del errno.EDQUOT
def no_folders(path, *arguments, real=os.open, **options):
    if os.path.isdir(path): raise PermissionError(errno.EACCES, "Permission denied")
    return real(path, *arguments, **options)
os.open = no_folders
from nemo_prune.cli.main import main
main(sys.argv[1:])
"""


def run(*arguments: object) -> None:
    command = [sys.executable, "-S", "-c", POOR, *map(str, arguments)]
    # Without `site`, as that imports what reads `os` before the names are gone.
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="is such a system")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_verbs_without_what_posix_has(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        model = rawfiles.sd1(tmp_path / "m.safetensors", metadata={"format": "pt"})
    else:
        model = pipeline(tmp_path / "m")
        put(model / "README.md", "a card")
    out, undo, back = (tmp_path / name for name in ("o", "u", "back"))
    run("inspect", model)
    run("apply", model, "--neurons", "0:1,6:3", "-o", out, "--undo", undo)
    run("inspect", out, "--strict", "--hash")
    run("diff", out, out)
    run("restore", out, "--undo", undo, "-o", back)
    if kind == "file":
        run("apply", model, "--neurons", "0:1", "-o", out, "--overwrite")
        assert back.read_bytes() == model.read_bytes()
    else:
        run("apply", model, "--neurons", "0:1", "-o", tmp_path / "linked", "--link")
        assert tree(back) == tree(model)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
