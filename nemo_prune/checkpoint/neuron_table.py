"""Which prompt needs which neuron, as a table for further work: CSV, a line for each such pair."""

import csv
import io
from pathlib import Path

from nemo_prune.checkpoint.manifest import Manifest, prompts_by_neuron
from nemo_prune.checkpoint.neurons import TABLE_COLUMNS
from nemo_prune.files.atomic import write_new


def write_neuron_table(manifest: Manifest, path: Path, overwrite: bool = False) -> None:
    """Write a header line and a line for each prompt and neuron of it, in the order of the manifest.

    prompt: its number. layer, row: as in the manifest. attribution, harm: what the neuron does for the
    memory and for ordinary prompts, empty where that was not measured. shared_by: the numbers of the
    other prompts that need it too, separated by spaces.

    Raises OutputError where the file cannot be written, or exists and `overwrite` is false.
    """
    wanted = prompts_by_neuron(manifest)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for record in manifest.prompts:
        for neuron in record.neurons:
            others = " ".join(str(index) for index in wanted[neuron] if index != record.index)
            weights = (record.attribution.get(neuron, ""), record.harm.get(neuron, ""))
            writer.writerow((record.index, neuron.layer, neuron.row, *weights, others))
    write_new(path, text.getvalue().encode("utf-8", "backslashreplace"), overwrite)
