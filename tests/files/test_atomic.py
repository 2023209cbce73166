import errno
import os
import pathlib
import stat
import subprocess
import sys
import threading
import zlib

import pytest

from nemo_prune.errors import OutputError
from nemo_prune.files import atomic
from nemo_prune.files.atomic import (
    check_output,
    check_place,
    lies_in,
    new_file,
    refuse_inputs,
    refuse_same,
    same_file,
)


def put(out, content=b"new", overwrite=False):
    with new_file(out, overwrite) as file:
        file.write(content)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    return path


# ------------------------------------------------------------------------------- early refusals


def test_a_free_name_is_fine(tmp_path, source):
    check_output(source, tmp_path / "out", overwrite=False)
    check_output(source, tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["model"]


def numbered(monkeypatch, number):
    """Let files have these numbers, as `number` gives them by path."""
    real = os.stat

    def lying(path, *arguments, **options):
        found = real(path, *arguments, **options)
        if isinstance(path, int):
            return found
        changed = [number(str(path)) if place == 1 else value for place, value in enumerate(found)]
        times = {f"st_{kind}_ns": getattr(found, f"st_{kind}_ns") for kind in ("atime", "mtime")}
        return os.stat_result(changed, times)

    monkeypatch.setattr(os, "stat", lying)


# None at all (exFAT on Windows), and new ones for each spelling (exFAT through FUSE).
@pytest.mark.parametrize("number", [lambda _: 0, lambda path: zlib.crc32(path.encode())])
def test_the_source_is_known_where_files_have_no_numbers(tmp_path, source, monkeypatch, number):
    """A second name of one file stands for the same name in other letters."""
    (tmp_path / "MODEL").hardlink_to(source)
    for name, content in (("Model", b"other!!"), ("other", b"weights"), ("mOdel", b"longer weights")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(1, source.stat().st_mtime_ns))
    os.utime(tmp_path / "other", ns=(1, 1))
    numbered(monkeypatch, number)
    assert same_file(tmp_path / "MODEL", source)
    for name in ("Model", "other", "mOdel", "nothing"):
        assert not same_file(tmp_path / name, source)
        check_output(source, tmp_path / name, overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is the model itself"):
            check_output(source, tmp_path / "MODEL", overwrite)
    with pytest.raises(OutputError, match="is read by this command"):
        refuse_inputs([tmp_path / "MODEL"], [source])
    assert source.read_bytes() == b"weights"


def test_folders_where_files_have_no_numbers(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    numbered(monkeypatch, lambda _: 0)
    assert same_file(tmp_path / "one", tmp_path / "two" / ".." / "one")
    assert not same_file(tmp_path / "one", tmp_path / "two")
    assert lies_in(tmp_path / "one" / "new", tmp_path / "one")
    assert not lies_in(tmp_path / "one" / "new", tmp_path / "two")
    assert not lies_in(tmp_path / "one", tmp_path / "one")


@pytest.mark.parametrize("overwrite", [False, True])
def test_refused_whatever_is_asked(tmp_path, source, overwrite):
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    for out, words in {
        source: "is the model itself",
        tmp_path / "folder" / ".." / "model": "is the model itself",
        tmp_path / "link": "is the model itself",
        tmp_path / "hard": "is the model itself",
        tmp_path / "folder": "is a folder",
        tmp_path / "to-folder": "is a folder",
        tmp_path / "pipe": "not a regular file",
        tmp_path.__class__("/dev/null"): "not a regular file",
        tmp_path.__class__("/dev/stdout"): "is a stream of a process",
        tmp_path.__class__("/dev/fd/1"): "is a stream of a process",
        tmp_path / "absent" / "out": "create it first",
        source / "out": "cannot be written",
        tmp_path / ("x" * 300): "cannot be written",
        tmp_path / "a\0b": "cannot be written",
    }.items():
        with pytest.raises(OutputError, match=words) as caught:
            check_output(source, out, overwrite)
        assert "\n" not in str(caught.value)
    assert source.read_bytes() == b"weights"


def test_what_a_command_reads_is_not_replaced(tmp_path, source):
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(source)
    folder.mkdir()
    (folder / "part").write_bytes(b"x")
    for out in (source, link, folder / "part"):
        with pytest.raises(OutputError, match="is read by this command"):
            refuse_inputs([tmp_path / "free", out], [None, source, folder])
    refuse_inputs([tmp_path / "free", folder / "report.html"], [source, folder, tmp_path / "nowhere"])


def test_two_outputs_are_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "hard").hardlink_to(tmp_path / "old")
    for one, other, words in (
        ("new", "new", "new: is to be written twice, as two outputs; give two names"),
        ("new", "./new", "two names"),
        ("new", "folder/../new", "two names"),
        ("new", tmp_path / "new", "two names"),
        ("new", "here/new", "two names"),
        ("new", "dangling", "two names"),
        ("new", "NEW", "two names"),
        ("\u00e4", "A\u0308", "two names"),
        ("straße", "STRASSE", "two names"),
        ("old", "link", "two names"),
        ("old", "hard", "two names"),
        ("new", "new/within", "new/within: lies in new or around it, and both are outputs"),
        ("here/new/within", "new", "lies in"),
    ):
        with pytest.raises(OutputError, match=words) as caught:
            refuse_same([None, *map(type(tmp_path), ("x", one, other))])
        assert "\n" not in str(caught.value)
    refuse_same([tmp_path / "a", None, tmp_path / "b", tmp_path / "folder" / "a", None])
    refuse_same([type(tmp_path)("a\0b"), tmp_path / "c"])


def test_what_exists_needs_overwrite(tmp_path, source):
    (tmp_path / "out").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("out", "dangling"):
        with pytest.raises(OutputError, match="exists already"):
            check_output(source, tmp_path / name, overwrite=False)
        check_output(source, tmp_path / name, overwrite=True)


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    # Root may write anywhere, so the question is answered for it.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_place(tmp_path / "out", overwrite=False)


@pytest.mark.parametrize("name", ["out.ckpt", "out.PT", "out.bin"])
def test_a_pickles_name_is_no_name_for_what_is_written(tmp_path, name):
    """Programs choose how to read a file by its name, this one too."""
    source = tmp_path / "source"
    source.touch()
    with pytest.raises(OutputError, match=r"has the name of a pickle.*end it in .safetensors"):
        check_output(source, tmp_path / name, overwrite=True)


def test_standard_output_takes_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="not written to standard output"):
        atomic.check_place(pathlib.Path("-"), overwrite=True)


def test_a_disk_without_room(tmp_path):
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(2**43)
    with pytest.raises(OutputError, match="but the disk has"):
        check_output(big, tmp_path / "out", overwrite=False)


# ----------------------------------------------------------------------------------- the writing


def test_the_file_gets_its_name_only_when_whole(tmp_path):
    out = tmp_path / "out"
    with new_file(out, False) as file:
        file.write(b"half")
        assert not out.exists()
        (temporary,) = names(tmp_path)
        assert temporary.startswith(f".out.{os.getpid()}-")
        file.write(b" whole")
    assert out.read_bytes() == b"half whole"
    assert names(tmp_path) == ["out"]


def test_overwriting_replaces_at_once(tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    with new_file(out, True) as file:
        file.write(b"new")
        assert out.read_bytes() == b"old"
    assert out.read_bytes() == b"new"


def test_overwriting_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    put(tmp_path / "link", overwrite=True)
    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


def test_mode(tmp_path):
    old = os.umask(0o022)
    try:
        put(tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o644


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, OutputError])
def test_an_error_leaves_nothing(tmp_path, kind):
    def fail():
        with new_file(tmp_path / "out", False) as file:
            file.write(b"half")
            raise kind

    with pytest.raises(kind):
        fail()
    assert names(tmp_path) == []


def test_a_full_disk_has_its_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left on the disk; free some"):
        put(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if calls[-1]:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put(tmp_path / "out")
    assert calls == [False, True]
    assert names(tmp_path) == ["out"]


# --------------------------------------------------------------------------- several at one time


def test_of_two_writers_one_wins(tmp_path):
    out = tmp_path / "out"
    writing = threading.Barrier(8)
    results = []

    def write(content):
        try:
            with new_file(out, False) as file:
                file.write(content)
                writing.wait(10)
            results.append(content)
        except OutputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=write, args=(b"%d" % i * 1000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [r for r in results if isinstance(r, bytes)]
    assert winners == [out.read_bytes()]
    assert all("by another process" in r for r in results if isinstance(r, str))
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("taken", [False, True])
def test_file_systems_without_hard_links(tmp_path, monkeypatch, taken):
    out = tmp_path / "out"

    def no_links(*_):
        if taken:
            out.write_bytes(b"theirs")
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    if taken:
        with pytest.raises(OutputError, match="by another process"):
            put(out)
        assert out.read_bytes() == b"theirs"
    else:
        put(out)
        assert out.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    killed = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from nemo_prune.files.atomic import new_file\n"
        "with new_file(Path(sys.argv[1]), False) as file:\n"
        "    file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for name in ("out", "other"):
        subprocess.run([sys.executable, "-c", killed, tmp_path / name], check=False)
    assert len(names(tmp_path)) == 2
    put(tmp_path / "out")
    left = names(tmp_path)
    assert len(left) == 2
    assert left[0].startswith(".other.")
    assert left[1] == "out"


def test_what_a_living_run_writes_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with new_file(out, False):
        (temporary,) = names(tmp_path)
        # As seen from another container: the process id is unknown, the lock is held all the same.
        monkeypatch.setattr(atomic, "_alive", lambda _: False)
        put(out)
        assert names(tmp_path) == [temporary, "out"]
        out.unlink()
    assert names(tmp_path) == ["out"]


def test_foreign_hidden_files_are_kept(tmp_path):
    kept = [".out.tmp", ".out.999999999-zzzzzzzz.tmp", "out.999999999-00000000.tmp"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".out.999999999999999999999-00000000.tmp").write_bytes(b"")
    put(tmp_path / "out")
    assert names(tmp_path) == sorted([*kept, "out"])


def test_long_names_have_room_for_the_hidden_one(tmp_path):
    out = tmp_path / ("ä" * 127)
    with new_file(out, False) as file:
        file.write(b"new")
        assert len(os.fsencode(names(tmp_path)[0])) < 255
    assert names(tmp_path) == [out.name]
