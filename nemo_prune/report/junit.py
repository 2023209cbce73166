"""What `check` leaves behind for continuous integration: JUnit XML, and Markdown for GitHub."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from nemo_prune.files.atomic import write_new
from nemo_prune.files.lists import is_packed
from nemo_prune.files.prompts import prompt_id

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ROOT = "nemo-prune check"
_SUITE = f"{_ROOT} "
_LARGEST = 2**26  # bytes of an XML file that is looked into
_SHOWN = 50  # rows of the Markdown table: GitHub stops at 1 MiB, people long before


def finding_line(entry: dict[str, Any], result: dict[str, Any], named: bool = False) -> str:
    """One line for one memorized prompt, FILE:LINE first; with its text only if `entry` has it.

    One line whatever the text holds: a second one could be a command to the CI that reads the log.
    named: with the model, where there are several.
    """
    return one_line(f"{entry['file']}:{entry['line']}: {_finding(entry, result, named)}")


def annotation(entry: dict[str, Any], result: dict[str, Any], named: bool = False) -> str:
    """The command that makes GitHub show a finding at its line of the prompt file.

    named: as in `finding_line`. GitHub knows files by their paths in the workspace.
    """
    file = entry["file"]
    workspace = os.environ.get("GITHUB_WORKSPACE")
    # Without "..", which GitHub attaches to no file.
    path = Path(os.path.normpath(Path(file).absolute()))
    if workspace and path.is_relative_to(workspace):
        file = path.relative_to(workspace).as_posix()
    place, text = f"file={_escaped(file, ',:')}", _finding(entry, result, named)
    if is_packed(Path(entry["file"])):  # rows have numbers there
        text = f"row {entry['line']}: {text}"
    else:
        place += f",line={entry['line']}"
    return f"::error {place},title=memorized prompt::{_escaped(one_line(text))}"


def _finding(entry: dict[str, Any], result: dict[str, Any], named: bool) -> str:
    where = f" in {result['source']['path']}" if named else ""
    text = f": {entry['text']}" if "text" in entry else ""
    score = f"score {entry['score']:.3f}, gate {result['gate']['value']:.3f}"
    why = f"is memorized{where} ({score})"
    if entry.get("consistency") is not None:
        why = (
            f"draws the same picture from every seed{where} (its trajectories are alike by "
            f"{entry['consistency']:.3f}, those of ordinary prompts by at most "
            f"{result['consistency_gate']:.3f}), though the score is low ({score})"
        )
    return f"prompt {entry['index']} {why}{text}"


def write_junit(suites: Sequence[xml.Element], path: Path, overwrite: bool, name: str = _ROOT) -> None:
    """A JUnit file of the suites of one or several models; `name`: of what wrote it.

    Raises OutputError where the file cannot be written, or exists and `overwrite` is false.
    """
    counts = {
        key: str(sum(int(suite.get(key, "0")) for suite in suites))
        for key in ("tests", "failures", "errors")
    }
    root = xml.Element("testsuites", {"name": name} | counts)
    root.extend(suites)
    xml.indent(root)
    write_new(path, xml.tostring(root, encoding="utf-8", xml_declaration=True), overwrite)


def verdict_suite(result: dict[str, Any], texts: Sequence[str]) -> xml.Element:
    """The suite of one model: a test case a prompt, a failure where it is memorized.

    A case is known by the model, the list and the prompt (`prompt_id`), so that servers tell runs of
    two models apart, and follow a prompt whatever is added to its list.

    result: as `PromptList.locate` gives it. texts: of its prompts.
    """
    model, rows = result["source"]["path"], result["prompts"]
    failures = sum(entry["memorized"] for entry in rows)
    suite = _suite(model, len(rows), failures, 0, result["cost"]["seconds"])
    properties = xml.SubElement(suite, "properties")
    lists = " ".join(dict.fromkeys(entry["file"] for entry in rows))
    known = {"model": model, "prompts": lists, "gate": result["gate"]["value"]}
    of_stream = ("scored", "memorized") if "scored" in result else ()
    for name in ("version", "tau", "tau_source", "gate_source", "seeds", "timestep", "prompts_read",
                 "merged", "blank", *of_stream):  # fmt: skip
        known[name] = result[name]
    noted = [("note", note) for note in result.get("notes", ())]
    for name, value in (*known.items(), *noted):
        xml.SubElement(properties, "property", {"name": name, "value": xml_text(str(value))})
    for entry, prompt in zip(rows, texts, strict=True):
        name = f"prompt {prompt_id(prompt)}" + (f": {entry['text']}" if "text" in entry else "")
        case = {"classname": xml_text(f"{model} {entry['file']}"), "name": xml_text(name),
                "file": xml_text(entry["file"])}  # fmt: skip
        if not is_packed(Path(entry["file"])):
            case["line"] = str(entry["line"])
        element = xml.SubElement(suite, "testcase", case)
        if entry["memorized"]:
            line = xml_text(finding_line(entry, result))
            xml.SubElement(element, "failure", {"type": "memorized", "message": line}).text = line
        xml.SubElement(element, "system-out").text = (
            f"prompt {entry['index']}: score {entry['score']:.5f}, noise norm "
            f"{entry['noise_norm']:.5f}, {entry['seeds']} of {result['seeds']} seeds"
        )
    return suite


def error_suite(model: Path, message: str) -> xml.Element:
    """The suite of a model that `check` came to no verdict on, and why."""
    suite = _suite(str(model), 1, 0, 1, 0)
    case = {"classname": xml_text(str(model)), "name": "nemo-prune check"}
    element = xml.SubElement(suite, "testcase", case)
    line = xml_text(one_line(message))
    xml.SubElement(element, "error", {"type": "no verdict", "message": line}).text = line
    return suite


def is_own(path: Path) -> bool:
    """Whether `check` wrote the file at `path`, alone: all suites are its own, with nothing beside them.

    Told by the content: a file that others made, or merged from several, is theirs.
    """
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return False
        root = xml.parse(path).getroot()
    except (OSError, ValueError, LookupError, xml.ParseError):
        return False
    # Programs that merge files give the root a name of their own, or none.
    if root.tag != "testsuites" or root.get("name") != _ROOT or not len(root):
        return False
    cases = {element.tag for suite in root for element in suite}
    ours = all(one.tag == "testsuite" and one.get("name", "").startswith(_SUITE) for one in root)
    return ours and cases <= {"properties", "testcase"}


def _suite(model: str, tests: int, failures: int, errors: int, seconds: float) -> xml.Element:
    counts = {"tests": str(tests), "failures": str(failures), "errors": str(errors)}
    named = {"name": xml_text(f"{_SUITE}{model}"), "time": str(seconds)}
    return xml.Element("testsuite", named | counts)


def no_verdict(model: str, message: str) -> str:
    """Markdown that says that `check` came to no verdict, and why."""
    of = f"{_cell(model)}: " if model and not message.startswith(model) else ""
    return f"### ⚠️ nemo-prune check: no verdict\n\n{of}{_cell(message)}\n\n"


def append_step_summary(text: str, path: Path) -> str | None:
    """Append Markdown to `$GITHUB_STEP_SUMMARY`; what went wrong, as one line, if it could not be.

    No error: the verdict on the model is worth more than its table.
    """
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        return f"{path}: the step summary could not be written ({error.strerror})"
    return None


def markdown(result: dict[str, Any], named: bool = False) -> str:
    """The verdict, and a table of the memorized prompts, highest score first.

    named: with the model's whole path, where there are several.
    """
    found = sorted(
        (entry for entry in result["prompts"] if entry["memorized"]),
        key=lambda entry: (-entry["score"], entry["index"]),
    )
    mark, model = "❌" if found else "✅", result["source"]["path"]
    # Of a long list, "prompts" are the highest scores alone.
    scored, memorized = result.get("scored", len(result["prompts"])), result.get("memorized", len(found))
    lines = [
        f"### {mark} nemo-prune check: {memorized} of {scored} prompts are memorized",
        "",
        f"`{model if named else Path(model).name}`, gate {result['gate']['value']:.3f} "
        f"({result['gate_source']}), tau {result['tau']:.3f} ({result['tau_source']}), "
        f"{_seeds_text(result)}. Prompts: {result['prompts_read']} read, {result['merged']} repeated, "
        f"{result['blank']} blank.",
        "",
    ]
    if notes := result.get("notes"):
        lines += [*(f"- {_cell(note)}" for note in notes), ""]
    if found:
        if any(entry["seeds"] < result["seeds"] for entry in found):
            lines += [
                "Scores from fewer than all seeds are lower bounds, with no ranks among each other "
                "(`--all-seeds` takes all).",
                "",
            ]
        if cut := [str(entry["index"]) for entry in found if entry.get("truncated")]:
            lines += [
                f"Longer than the model reads, so scored by what they begin with: prompts "
                f"{', '.join(cut)}.",
                "",
            ]
        shown = "text" in found[0]
        lines += [
            "| prompt | line | score | noise norm | seeds |" + (" text |" if shown else ""),
            "|---:|---|---:|---:|---:|" + ("---|" if shown else ""),
        ]
        for entry in found[:_SHOWN]:
            row = (
                f"| {entry['index']} | {_cell(entry['file'])}:{entry['line']} | {entry['score']:.3f} "
                f"| {entry['noise_norm']:.3f} | {entry['seeds']} |"
            )
            lines.append(row + (f" {_cell(entry['text'])} |" if shown else ""))
        if len(found) > _SHOWN:
            lines += ["", f"... and {memorized - _SHOWN} more."]
        lines.append("")
    return "\n".join(lines) + "\n"


def _seeds_text(result: dict[str, Any]) -> str:
    """How many seeds the prompts really took: clear ones stop early."""
    used = result.get("seeds_used") or [entry["seeds"] for entry in result["prompts"]]
    few, many = min(used), max(used)
    return f"{few if few == many else f'{few} to {many}'} of {result['seeds']} seeds a prompt"


def _escaped(text: str, more: str = "") -> str:
    """Text in a command to GitHub; `more`: letters that end a property."""
    return re.sub(f"[%\r\n{more}]", lambda found: f"%{ord(found[0]):02X}", text)


def one_line(text: str) -> str:
    """The text without control characters, white space of any kind as single spaces."""
    printed = (" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join("".join(printed).split())


def _cell(text: str) -> str:
    """Text that stays text in a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", one_line(text))


def xml_text(text: str) -> str:
    """Text without what XML cannot hold."""
    return _NOT_XML.sub("�", text)
