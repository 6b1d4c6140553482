"""What the stages that learn from clips of audio (`AudioBatch`) have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ba_jax.audio.mel import FLOW_MEL
from ba_jax.data.audio_batches import AudioBatch
from ba_jax.stages.base import Stage, StageError


class ClipStage(Stage):
    """A stage whose arrays hold "lengths_B", the frames of FLOW_MEL that each clip counts with."""

    def check_frames(self, lengths_B: np.ndarray, batch: AudioBatch) -> None:
        """Checks that there is something to learn from.

        Raises:
          StageError: no clip has a frame.
        """
        if not lengths_B.any():
            raise StageError(
                f"stage {self.name}: a batch of {len(lengths_B)} clips without a frame to learn"
                f" from; {int(np.sum(batch.skipped_B))} of them were damaged and skipped"
            )

    def amounts(self, arrays: Mapping[str, Any]) -> dict[str, float]:
        """Tokens are mel frames at 50 Hz."""
        lengths_B = np.asarray(arrays["lengths_B"])
        frames = float(lengths_B.sum())
        return {
            "tokens": frames,
            "audio_seconds": frames / FLOW_MEL.frame_rate,
            "examples": float((lengths_B > 0).sum()),
        }
