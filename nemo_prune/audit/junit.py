"""An audit as a JUnit suite: a test case for each prompt, which fails if its picture came back."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as xml

from nemo_prune.audit.outcome import came_back, findings, verdict
from nemo_prune.files.prompts import prompt_id
from nemo_prune.report.junit import xml_text


def audit_suite(data: dict[str, Any], texts: Sequence[str]) -> xml.Element:
    """The suite of an audit; texts: of its prompts, from which their stable names come."""
    rows, model = data["prompts"], data["pruned"]["path"]
    failures = sum(map(came_back, rows))
    counts = {"tests": str(len(rows)), "failures": str(failures), "errors": "0"}
    named = {"name": xml_text(f"nemo-prune audit {model}"), "time": str(data["seconds"])}
    suite = xml.Element("testsuite", named | counts)
    properties = xml.SubElement(suite, "properties")
    known = {"version": data["version"], "verdict": verdict(data), **data["options"]}
    for name, value in known.items():
        xml.SubElement(properties, "property", {"name": name, "value": xml_text(str(value))})
    lines = iter(findings(data))
    for entry, text in zip(rows, texts, strict=True):
        name = f"prompt {prompt_id(text)}" + (f": {entry['text']}" if "text" in entry else "")
        case = {"classname": xml_text(f"audit {model}"), "name": xml_text(name)}
        if "file" in entry:
            case |= {"file": xml_text(entry["file"]), "line": str(entry["line"])}
        element = xml.SubElement(suite, "testcase", case)
        if came_back(entry):
            line = xml_text(next(lines))
            xml.SubElement(element, "failure", {"type": "came back", "message": line}).text = line
        elif not entry["memorized"]:
            xml.SubElement(element, "skipped", {"message": "not memorized by the original"})
    return suite
