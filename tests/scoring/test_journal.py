"""The journal: what was added comes back, a torn end is dropped, another run's is refused."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_prune.errors import OutputError
from nemo_prune.files.prompts import prompts_hash as list_hash
from nemo_prune.scoring.journal import Journal, journal_path, refuse_existing
from nemo_prune.scoring.table import Table

RUN = {"model": "a" * 64, "prompts": list_hash(["one", "two"]), "options": "{}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.json.journal"


def filled(path: Path, **entries: object) -> bytes:
    with Journal.open(path, RUN, resume=False) as journal:
        for key, value in entries.items():
            journal.add(key, value)
    return path.read_bytes()


def read(path: Path) -> dict[str, object]:
    with Journal.open(path, RUN, resume=True) as journal:
        return journal.entries


def test_what_was_added_comes_back(path: Path) -> None:
    filled(path, a=1, b=[0.1, None, "ü"], c={"d": 1e-300})
    assert read(path) == {"a": 1, "b": [0.1, None, "ü"], "c": {"d": 1e-300}}
    with Journal.open(path, RUN, resume=True) as journal:
        journal.add("a", 2)
        assert journal.entries["a"] == 2
    assert read(path)["a"] == 2
    assert len(path.read_bytes().splitlines()) == 5


def test_there_need_be_none_to_resume(path: Path) -> None:
    assert read(path) == {}
    assert read(path) == {}


def test_each_entry_is_on_the_disk_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes()))
    with Journal.open(path, RUN, resume=False) as journal:
        journal.add("a", 1)
        assert synced[-1].endswith(b'{"key": "a", "value": 1}\n')
        assert synced[-1] == path.read_bytes()


def test_cut_anywhere_the_whole_entries_stay(path: Path) -> None:
    content = filled(path, a=1, b="two\nlines", c=3)
    expected = [{}, {"a": 1}, {"a": 1, "b": "two\nlines"}, {"a": 1, "b": "two\nlines", "c": 3}]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert read(path) == expected[max(0, whole - 1)]
        with Journal.open(path, RUN, resume=True) as journal:
            journal.add("z", 0)
        assert read(path) == {**expected[max(0, whole - 1)], "z": 0}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_changes_nothing_but_the_end(path: Path, data: st.DataObject) -> None:
    path.unlink(missing_ok=True)
    content = bytearray(filled(path, a=1, b=2))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        # A damaged byte inside a value or key may still be JSON; nothing else may pass.
        assert len(read(path)) <= 2
    except OutputError:
        assert path.read_bytes() == content
        with pytest.raises(OutputError, match=r"^[^\n]*m\.json\.journal: [^\n]+$"):
            read(path)


@pytest.mark.parametrize("name", RUN)
def test_another_run_s_is_refused_and_kept(path: Path, name: str) -> None:
    content = filled(path, a=1)
    with pytest.raises(OutputError, match=f"a run with other {name};"):
        Journal.open(path, RUN | {name: "other"}, resume=True)
    assert path.read_bytes() == content


def test_a_run_that_goes_on_is_not_called_unfinished(path: Path) -> None:
    """Who follows the advice to remove the journal would end it."""
    with Journal.open(path, RUN, resume=False):
        for resume in (True, False):
            with pytest.raises(OutputError, match="another process is at work on it; wait until"):
                Journal.open(path, RUN, resume=resume)
        with pytest.raises(OutputError, match="another process is at work on it; wait until"):
            refuse_existing(path)
    with pytest.raises(OutputError, match="an earlier run was not finished"):
        refuse_existing(path)


def test_a_table_that_is_being_written(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv")
    table.check()
    with Journal.open(table.journal, RUN, resume=False):
        table.partial.touch()
        with pytest.raises(OutputError, match="another process is at work on it; wait until"):
            table.check()


def test_names_that_grow_too_long(tmp_path: Path) -> None:
    whole = tmp_path / ("x" * 251 + ".csv")
    for one in (lambda: journal_path(whole), Table(whole).check):
        with pytest.raises(OutputError, match=r"too long, with the \.(journal|partial) .*shorter name"):
            one()
    assert journal_path(whole.with_name("x" * 247)).name == "x" * 247 + ".journal"


def test_without_resume_nothing_is_written_over(path: Path) -> None:
    content = filled(path, a=1)
    words = "an earlier run was not finished; pass resume to go on, or remove that file"
    with pytest.raises(OutputError, match=words):
        Journal.open(path, RUN, resume=False)
    assert path.read_bytes() == content
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(OutputError, match=words):
        Journal.open(path, RUN, resume=False)


@pytest.mark.parametrize("content", [b"precious\n", b"precious", b"{}\n", b"[]\n", b"\n", b"\xff" * 99])
def test_other_files_are_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"not a journal|damaged"):
        Journal.open(path, RUN, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line", [b"oops", b"[]", b'{"key": 1, "value": 2}', b'{"key": "a"}', b"[" * 9999]
)
def test_a_damaged_line_in_the_middle(path: Path, line: bytes) -> None:
    content = filled(path, a=1)
    path.write_bytes(content + line + b"\n" + b'{"key": "b", "value": 2}\n')
    with pytest.raises(OutputError, match="line 3 is damaged; remove that file and start again"):
        read(path)


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "j", Path("/dev/full")):
        with pytest.raises(OutputError):
            Journal.open(place, RUN, resume=True)


def test_two_at_once(path: Path) -> None:
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom nemo_prune.scoring.journal import Journal\n"
        "from nemo_prune.errors import OutputError\n"
        "try: Journal.open(Path(sys.argv[1]), json.loads(sys.argv[2]), resume=True)\n"
        "except OutputError as error: print(error)\n"
    )
    with Journal.open(path, RUN, resume=False):
        command = [sys.executable, "-c", code, str(path), json.dumps(RUN)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "another process is at work" in done.stdout


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.open(path, RUN, resume=False) as journal:
        journal.add("a", 1)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            journal.add("b", 2)
        assert journal.entries == {"a": 1}


def test_names_and_hashes(tmp_path: Path) -> None:
    assert journal_path(tmp_path / "m.json").name == "m.json.journal"
    lists = [[], [""], ["ab"], ["a", "b"], ["b", "a"], ["", "ab"], ["ab", ""]]
    assert len({list_hash(texts) for texts in lists}) == len(lists)
    assert "marker" not in list_hash(["marker"])


def test_a_journal_of_another_build_is_called_so_and_kept(path: Path) -> None:
    """Builds of one version number wrote neurons in other ways."""
    header = json.dumps({"format": "nemo-prune-journal/1", **RUN})
    path.write_text(header + "\n")
    with pytest.raises(OutputError, match="journal of another build of this tool"):
        Journal.open(path, RUN, resume=True)
    assert path.read_text() == header + "\n"
