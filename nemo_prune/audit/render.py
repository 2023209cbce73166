"""An audit as a page people can judge, or as JSON. Imports no torch.

The HTML is one file: styles and pictures are inlined, there is no script and nothing is fetched.
"""

import json
from pathlib import Path

from nemo_prune.audit import curves, outcome
from nemo_prune.audit.outcome import Data
from nemo_prune.audit.strength import THERE
from nemo_prune.checkpoint.statuses import GONE
from nemo_prune.errors import OptionError, option
from nemo_prune.files.atomic import write_new
from nemo_prune.report.render import from_template

_SUFFIXES = (".html", ".htm", ".json")


def check_audit_format(path: Path) -> None:
    """Raise OptionError for an audit whose name does not end in .html or .json."""
    if path.suffix.lower() not in _SUFFIXES:
        raise OptionError(
            f"{option('report')} {path}: an audit is written as .html or .json; name it so"
        )


def write_audit(data: Data, path: Path, overwrite: bool = False) -> None:
    """Write the audit as `path`'s suffix says; raises OptionError for another, OutputError."""
    check_audit_format(path)
    text = to_json(data) if path.suffix.lower() == ".json" else to_html(data)
    # Names that are not UTF-8 arrive as half surrogates, which no page can show.
    write_new(path, text.encode("utf-8", "replace"), overwrite)


def to_json(data: Data) -> str:
    """The data, with the sentence that the page begins with."""
    return json.dumps({**data, "verdict": outcome.verdict(data)}, indent=1, ensure_ascii=False) + "\n"


def to_html(data: Data) -> str:
    """The audit as one self-contained HTML page."""
    back = any(outcome.came_back(entry) for entry in data["prompts"])
    return from_template(
        "audit/audit.html.j2",
        {"score": lambda value: "–" if value is None else f"{value:.3f}"},
        data=data,
        verdict=outcome.verdict(data),
        back=back,
        findings=list(outcome.findings(data)),
        notes=outcome.notes(data),
        kinds=outcome.kinds(data),
        gone=GONE,
        there=THERE,
        successes=outcome.successes,
        near=outcome.near_pictures,
        drawn=outcome.pictures,
        silent=outcome.silent,
        attacks=outcome.attacks_of,
        unconfirmed=outcome.unconfirmed,
        chased=outcome.chased,
        control_lines=list(outcome.control_lines(data)),
        curve=lambda only=None: curves.svg(curves.lines(data, only)),
    )
