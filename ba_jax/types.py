"""The legend of shape suffixes, the same in every file.

  B batch            T frames of a mel or of 50 Hz features      N audio frames at 12.5 Hz
  Q codebooks (8)    L text / LLM positions                      S waveform samples
  D width            F feed-forward width                        V vocabulary
  H attention heads  K key/value heads                           C channels
  P cache capacity   M mel bins
So `mel_BTM` is a batch of mels, time before bins.
"""
