"""What `check` leaves behind for continuous integration: JUnit XML, and Markdown for GitHub."""

import re
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from nemo_prune.files.atomic import write_new

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SHOWN = 50  # rows of the Markdown table: GitHub stops at 1 MiB, people long before


def finding_line(entry: dict[str, Any], result: dict[str, Any], prompts: Path) -> str:
    """One line for one memorized prompt; with its text only if `entry` has it.

    One line whatever the text holds: a second one could be a command to the CI that reads the log.
    """
    text = f": {entry['text']}" if "text" in entry else ""
    score = f"score {entry['score']:.3f}, gate {result['gate']['value']:.3f}"
    why = f"is memorized ({score})"
    if entry.get("consistency") is not None:
        why = (
            f"draws the same picture from every seed (its trajectories are alike by "
            f"{entry['consistency']:.3f}, those of ordinary prompts by at most "
            f"{result['consistency_gate']:.3f}), though the score is low ({score})"
        )
    return _one_line(f"{prompts}: prompt {entry['index']} {why}{text}")


def write_junit(result: dict[str, Any], prompts: Path, path: Path, overwrite: bool) -> None:
    """A JUnit file: a test case a prompt, a failure where it is memorized.

    Raises OutputError where the file cannot be written, or exists and `overwrite` is false.
    """
    failures = [entry for entry in result["prompts"] if entry["memorized"]]
    counts = {"tests": str(len(result["prompts"])), "failures": str(len(failures)), "errors": "0"}
    suites = xml.Element("testsuites", counts)
    seconds = str(result["cost"]["seconds"])
    suite = xml.SubElement(suites, "testsuite", {"name": "nemo-prune check", "time": seconds, **counts})
    properties = xml.SubElement(suite, "properties")
    for name in ("version", "tau", "tau_source", "gate_source", "seeds", "timestep"):
        xml.SubElement(properties, "property", {"name": name, "value": str(result[name])})
    xml.SubElement(properties, "property", {"name": "gate", "value": str(result["gate"]["value"])})
    for entry in result["prompts"]:
        name = f"prompt {entry['index']}" + (f": {entry['text']}" if "text" in entry else "")
        case = {"classname": _xml_text(str(prompts)), "name": _xml_text(name)}
        element = xml.SubElement(suite, "testcase", case)
        if entry["memorized"]:
            line = _xml_text(finding_line(entry, result, prompts))
            xml.SubElement(element, "failure", {"type": "memorized", "message": line}).text = line
    xml.indent(suites)
    write_new(path, xml.tostring(suites, encoding="utf-8", xml_declaration=True), overwrite)


def append_step_summary(result: dict[str, Any], path: Path) -> str | None:
    """Append Markdown to `$GITHUB_STEP_SUMMARY`; what went wrong, as one line, if it could not be.

    No error: the verdict on the model is worth more than its table.
    """
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(markdown(result))
    except OSError as error:
        return f"{path}: the step summary could not be written ({error.strerror})"
    return None


def markdown(result: dict[str, Any]) -> str:
    """The verdict, and a table of the memorized prompts, highest score first."""
    found = sorted(
        (entry for entry in result["prompts"] if entry["memorized"]),
        key=lambda entry: (-entry["score"], entry["index"]),
    )
    mark = "❌" if found else "✅"
    lines = [
        f"### {mark} nemo-prune check: {len(found)} of {len(result['prompts'])} prompts are memorized",
        "",
        f"`{Path(result['source']['path']).name}`, gate {result['gate']['value']:.3f} "
        f"({result['gate_source']}), tau {result['tau']:.3f} ({result['tau_source']}), "
        f"{result['seeds']} seeds.",
        "",
    ]
    if found:
        shown = "text" in found[0]
        lines += [
            "| prompt | score | noise norm |" + (" text |" if shown else ""),
            "|---:|---:|---:|" + ("---|" if shown else ""),
        ]
        for entry in found[:_SHOWN]:
            row = f"| {entry['index']} | {entry['score']:.3f} | {entry['noise_norm']:.3f} |"
            lines.append(row + (f" {_cell(entry['text'])} |" if shown else ""))
        if len(found) > _SHOWN:
            lines += ["", f"... and {len(found) - _SHOWN} more."]
        lines.append("")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """The text without control characters, white space of any kind as single spaces."""
    printed = (" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join("".join(printed).split())


def _cell(text: str) -> str:
    """Text that stays text in a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", _one_line(text))


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("�", text)
