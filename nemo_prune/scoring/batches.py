"""Scores of batches of captions, for programs that read and share out their own data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.errors import OptionError, PromptFileError, option
from nemo_prune.options import Options, Silent
from nemo_prune.scoring.detect import Screened, Screening
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.workers import wants_workers

Columns = dict[str, NDArray[Any]]
_NOTHING = (float("nan"), False, float("nan"), 0, False)
_NAMES = {
    "score": np.float64, "memorized": np.bool_, "noise_norm": np.float64, "seeds": np.int64,
    "truncated": np.bool_,
}  # fmt: skip


def _is_missing(given: Any) -> bool:
    """Whether it is None, NaN, or pandas' NA, of which nobody can say whether it equals itself."""
    try:
        return given is None or bool(given != given)
    except (TypeError, ValueError):
        return type(given).__name__ == "NAType"


class Batches:
    """Screens batches as `detect` screens a list; the model is loaded once.

    early: False takes all seeds of every caption.

    Raises OptionError, CheckpointError, CalibrationError.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: Options, calibration_prompts: Sequence[str] | None,
        column: str, early: bool,
    ) -> None:  # fmt: skip
        if wants_workers(options):
            raise OptionError(
                f"{option('workers')}, {option('ray')}: whoever gives the batches shares them out, so "
                f"leave these out"
            )
        engine = open_engine(checkpoint, options, Silent())
        thresholds = Ordinary(engine, checkpoint, options, calibration_prompts, Silent()).thresholds
        gate = self._gate = thresholds.gate.value
        self._column, self._most = column, engine.model.max_tokens
        self._tokens = engine.model.token_reader()
        self._screening = Screening(
            engine, range(options.seeds), gate if early else None, thresholds.margins
        )

    def scored(self, batch: Mapping[str, Any]) -> Columns:
        """The batch with the columns of `_NAMES`; equal captions of a batch are scored once.

        Raises:
            PromptFileError: no dict or DataFrame of columns, no column of that name, something in it
                that is not text, or a column that would be replaced.
            CheckpointError: no caption so far changes what the denoiser predicts, or it gives NaN.
        """
        # What else has columns answers neither `in` nor `**`; in its words its texts would stand.
        if not (isinstance(batch, Mapping) or (hasattr(batch, "columns") and hasattr(batch, "keys"))):
            raise PromptFileError(
                f"a batch is a {type(batch).__name__}; give a dict of columns or a pandas DataFrame "
                f"(Ray's batch_format='numpy' or 'pandas')"
            )
        if self._column not in batch:
            raise PromptFileError(
                f"a batch has no column {self._column}, but {', '.join(map(str, batch))}; "
                f"name one with {option('column')}"
            )
        if taken := [name for name in _NAMES if name in batch]:
            raise PromptFileError(f"a batch has columns {', '.join(taken)} already; rename them")
        captions = [self._caption(one) for one in batch[self._column]]
        texts = list(dict.fromkeys(one for one in captions if one))
        known = dict(zip(texts, self._rows(texts), strict=True)) if texts else {}
        rows = [known[one] if one else _NOTHING for one in captions]
        made: Columns = {name: np.array([row[n] for row in rows], kind) for n, (name, kind) in
                 enumerate(_NAMES.items())}  # fmt: skip
        return {**batch, **made}

    def _caption(self, given: Any) -> str:
        if _is_missing(given):
            return ""
        if not isinstance(given, str):
            raise PromptFileError(
                f"a batch has {type(given).__name__} under {self._column} where text should be"
            )
        return given.strip()

    def _rows(self, texts: Sequence[str]) -> list[tuple[float, bool, float, int, bool]]:
        tokens = self._tokens(texts)
        found: dict[int, tuple[Screened, float]] = dict(self._screening.some(texts, tokens))
        for _, norm in found.values():
            self._screening.saw(norm)
        self._screening.check_effect()
        return [
            (one.path[-1], one.path[-1] > self._gate, norm, len(one.scores), len(ids) > self._most)
            for ids, (one, norm) in zip(tokens.ids, (found[n] for n in range(len(texts))), strict=True)
        ]
