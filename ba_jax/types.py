"""Containers that pass between data, models and steps, and the legend of shape suffixes.

Shape suffixes, the same in every file:
  B batch            T frames of a mel or of 50 Hz features      N audio frames at 12.5 Hz
  Q codebooks (8)    L text / LLM positions                      S waveform samples
  D width            F feed-forward width                        V vocabulary
  H attention heads  K key/value heads                           C channels
  P cache capacity   M mel bins
So `mel_BTM` is a batch of mels, time before bins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # numpy.ndarray or jax.Array: this module must not import jax


class AudioBatch(NamedTuple):
    """Padded log-mel features of a batch of clips.

    Attributes:
      mel_BTM: log-mel, float32, time before bins; what lies past a length is ignored.
      lengths_B: valid mel frames of each clip, int32.
    """

    mel_BTM: Array
    lengths_B: Array


class TokenBatch(NamedTuple):
    """Packed or padded rows of interleaved text and audio for the language model.

    Attributes:
      ids_BL: token ids; `audio_pad` where an audio frame stands.
      codes_BLQ: audio codes at the `audio_pad` positions, ignored elsewhere.
      positions_BL: RoPE positions, restarting with each example.
      segments_BL: 0 for padding, otherwise the number of the example in its row: attention stays
        inside a segment.
    """

    ids_BL: Array
    codes_BLQ: Array
    positions_BL: Array
    segments_BL: Array
