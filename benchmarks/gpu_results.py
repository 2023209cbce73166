"""What the GPU script measured: kept as JSON, shown as Markdown, taken up by a later run."""

import json
import platform
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

Row = dict[str, Any]


class Results:
    """What was measured so far, in DIR/gpu.json and DIR/gpu.md."""

    def __init__(self, folder: Path, about: Row) -> None:
        self.folder, self.about = folder, about
        self.parts: dict[str, Row] = {}
        kept = folder / "gpu.json"
        if kept.exists():
            told = json.loads(kept.read_text())
            if {**told["about"], "date": ""} == {**about, "date": ""}:
                self.parts = told["parts"]

    def save(self) -> None:
        text = json.dumps({"about": self.about, "parts": self.parts}, indent=1) + "\n"
        for name, content in (("gpu.json", text), ("gpu.md", self.markdown())):
            partial = self.folder / f"{name}.part"
            partial.write_text(content, encoding="utf-8")
            partial.replace(self.folder / name)

    def roofline(self) -> None:
        """Each denoiser row's share of the peak of its precision."""
        peaks = {row["precision"]: row["tflops"] for row in self.parts.get("peak", {}).get("rows", ())}
        for row in self.parts.get("denoiser", {}).get("rows", ()):
            if row.get("tflops") and peaks.get(row["precision"]):
                row["percent_of_peak"] = round(100 * row["tflops"] / peaks[row["precision"]], 1)

    def best(self) -> str | None:
        """The fastest choice whose error is no larger than the product's, at the largest batch."""
        rows = [row for row in self.parts.get("choices", {}).get("rows", ()) if "time_ratio" in row]
        if not rows:
            return None
        errors = {row["choice"]: row["error"] for row in rows if "error" in row}
        own = errors.get("as the product does", 0.0)
        safe = [row for row in rows if errors.get(row["choice"], 1.0) <= 1.5 * own]
        largest = max(row["batch"] for row in rows)
        fastest = min((r for r in safe if r["batch"] == largest), key=lambda r: r["time_ratio"])
        return (
            f"Fastest safe choice at batch {largest}: {fastest['choice']} "
            f"({fastest['time_ratio']} of the product's time)."
        )

    def markdown(self) -> str:
        about = self.about
        lines = [
            f"# {about['card']}",
            "",
            ", ".join(f"{k} {v}" for k, v in about.items() if k != "card"),
        ]
        for name, part in self.parts.items():
            state = "" if part["finished"] else ", not finished"
            lines += ["", f"## {name} ({part['seconds']} s{state})", ""]
            rows = [
                {k: v for k, v in row.items() if not isinstance(v, list | dict) and "\n" not in str(v)}
                for row in part["rows"]
            ]
            columns = list(dict.fromkeys(key for row in rows for key in row))
            if rows:
                lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
            lines += [
                "| " + " | ".join(str(row.get(c, "")).replace("|", "/") for c in columns) + " |"
                for row in rows
            ]
            lines += [
                f"- {key}: {value}"
                for row in part["rows"]
                for key, value in row.items()
                if isinstance(value, list | dict)
            ]
            if part.get("error"):
                lines += ["", f"Failed: {part['error'].strip().splitlines()[-1]}"]
            if name == "choices" and (best := self.best()):
                lines += ["", best]
        return "\n".join(lines) + "\n"


def about(device: torch.device, tiny: bool) -> Row:
    """The card and what runs on it."""
    found: Row = {"card": platform.processor() or platform.machine()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found = {"card": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    versions |= {"transformers": transformers.__version__, "python": platform.python_version()}
    return {
        **found, "device": device.type, **versions, "tiny": tiny,
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip
