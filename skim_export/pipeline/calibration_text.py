"""The text that a model is calibrated or tuned on: how much there is of it, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skim_export.calibration import self_generated, tokens_from_file
from skim_export.checkpoint import Model
from skim_export.tuning import HELD_OUT
from skim_export.work.resources import Resources
from skim_runtime.progress import Progress

__all__ = ["CalibrationText"]

SEQUENCES = 64
TUNING_SEQUENCES = HELD_OUT + 384
LENGTH = 256  # tokens of a sequence


@dataclass(frozen=True)
class CalibrationText:
    """A text to calibrate on; or a longer one, shuffled, to tune and calibrate on.

    Attributes:
        file: a text file; None if the model writes the text itself.
        seed: of what the model writes, and of the order of the sequences to tune on.
        tuning: whether it is to tune on.
    """

    file: Path | None
    seed: int
    tuning: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences, S, and tokens of each, T."""
        return TUNING_SEQUENCES if self.tuning else SEQUENCES, LENGTH

    def tokens(self, model: Model, *, resources: Resources, progress: Progress) -> npt.NDArray[np.int64]:
        """Its tokens, int64 `[S, T]`, which do not depend on the threads.

        Raises:
            UserError: the file is too short, cannot be read or holds tokens that the model hasn't; or the model is too
                large to write text.
        """
        if self.file is not None:
            tokens = tokens_from_file(model.checkpoint, self.file, *self.shape)
            model.check_tokens(np.unique(tokens), f"--calib {self.file}")
        else:
            seed = self.seed + self.tuning  # another text, so that methods can be compared on that of calibration
            tokens = self_generated(model, *self.shape, seed=seed, resources=resources, progress=progress)
        return np.random.default_rng(self.seed).permutation(tokens) if self.tuning else tokens
