"""Model sizes: the only place that defines them.

    --config=configs/models.py:SIZE

  size          values  description
  nano          24 M    trains on two CPU cores in minutes
  nano_whisper  53 M    nano with Whisper-base as its audio encoder: the demo
  tiny          2.4 M   sizes of the golden numbers in tests/data/tiny; random weights only
  1b5           3.1 B   the release's tokenizer and decoders around a Qwen2.5-1.5B
  7b            10.4 B  Baichuan-Audio as released

`python -m configs.models` counts the values by component (parameters, codebooks with their
statistics, stored buffers); nothing is allocated.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from ba_jax.config import ConfigError, expected
from ba_jax.vocab import CODEBOOK_SIZES, AudioTokens

TOKENS = tuple(field.name for field in dataclasses.fields(AudioTokens))


def get_config(size: str = "nano") -> ConfigDict:
    """Sizes of a model, keyed like `ba_jax.models.baichuan_audio.BaichuanAudioConfig`.

    Raises:
      ConfigError: an unknown size.
    """
    if size not in SIZES:
        raise ConfigError(f"model size {expected(size, sorted(SIZES))}")
    return ConfigDict(SIZES[size]())


def _model(
    *,
    encoder: dict,
    decoder: dict,
    codebook_sizes: tuple[int, ...],
    refine_channels: tuple[int, ...],
    prenet: dict,
    unet: dict,
    vocoder: dict,
    llm: dict,
    head_layers: int,
    tokens: dict,
    flow: dict | None = None,
) -> dict:
    """Join the components, with the widths and codebooks on which they must agree."""
    width = encoder["width"]
    decoder_width = decoder.get("width", width)
    return {
        "audio_encoder": {"mel_bins": 128, **encoder},
        "vq_bridge": {
            "width": width,
            "pooling": 4,
            "codebook_sizes": codebook_sizes,
            "decoder_width": None if decoder_width == width else decoder_width,
        },
        "audio_decoder": {
            "width": decoder_width,
            "mel_bins": 80,
            "refine_channels": refine_channels,
            **decoder,
        },
        "flow_prenet": {"in_width": decoder_width, "mel_bins": 80, **prenet},
        "flow_unet": {"mel_bins": 80, **unet},
        "vocoder": vocoder,
        "llm": llm,
        "audio_embed": {"width": llm["width"], "codebook_sizes": codebook_sizes},
        "audio_head": {
            "width": llm["width"],
            "layers": head_layers,
            "codebook_sizes": codebook_sizes,
        },
        "tokens": tokens,
        "flow_matching": flow or {},
    }


def _released(llm: dict) -> dict:
    """The release's tokenizer, flow decoder and vocoder around a language model."""
    return _model(
        encoder={"width": 1280, "layers": 32, "heads": 20, "ffn_width": 5120},
        decoder={"layers": 8, "heads": 20, "ffn_width": 5120},
        codebook_sizes=CODEBOOK_SIZES,
        refine_channels=(256,) * 4,
        prenet={"width": 512, "layers": 12, "heads": 8, "ffn_width": 2048},
        unet={"channels": 256, "blocks": 4, "mid_blocks": 12, "heads": 8, "head_dim": 64},
        vocoder={"base_channels": 512, "f0_channels": 512},
        llm=llm,
        head_layers=3,
        tokens=dataclasses.asdict(AudioTokens()),
    )


def _7b() -> dict:
    return _released(
        {
            "vocab_size": 152064,
            "width": 3584,
            "layers": 28,
            "heads": 28,
            "kv_heads": 4,
            "head_dim": 128,
            "ffn_width": 18944,
        }
    )


def _1b5() -> dict:
    return _released(
        {
            "vocab_size": 151936,
            "width": 1536,
            "layers": 28,
            "heads": 12,
            "kv_heads": 2,
            "head_dim": 128,
            "ffn_width": 8960,
            "tied_embeddings": True,
        }
    )


def _tiny() -> dict:
    return _model(
        encoder={"width": 32, "layers": 2, "heads": 4, "ffn_width": 64},
        decoder={"layers": 2, "heads": 4, "ffn_width": 64},
        codebook_sizes=(64, 32, 16, 8, 8, 8, 8, 8),
        refine_channels=(32,) * 4,
        prenet={"width": 32, "layers": 2, "heads": 4, "ffn_width": 64},
        unet={"channels": 32, "blocks": 2, "mid_blocks": 2, "heads": 2, "head_dim": 8},
        vocoder={"base_channels": 32, "f0_channels": 16},
        llm={
            "vocab_size": 600,
            "width": 128,
            "layers": 2,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 32,
            "ffn_width": 192,
        },
        head_layers=2,
        tokens=dict(zip(TOKENS, (574, 575, 576, 591, 595, 596, 597, 598, 599), strict=True)),
    )


def _nano() -> dict:
    return _nano_with({"width": 256, "layers": 4, "heads": 4, "ffn_width": 1024})


def _nano_whisper() -> dict:
    return _nano_with({"mel_bins": 80, "width": 512, "layers": 6, "heads": 8, "ffn_width": 2048})


def _nano_with(encoder: dict) -> dict:
    return _model(
        encoder=encoder,
        decoder={"width": 256, "layers": 2, "heads": 4, "ffn_width": 1024},
        codebook_sizes=(512, 256, 128, 64, 64, 64, 64, 64),
        refine_channels=(64,) * 4,
        prenet={"width": 128, "layers": 2, "heads": 4, "ffn_width": 512},
        unet={"channels": 64, "blocks": 1, "mid_blocks": 2, "heads": 4, "head_dim": 32},
        vocoder={"base_channels": 64, "f0_channels": 64},
        llm={
            "vocab_size": 2048,
            "width": 256,
            "layers": 4,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 64,
            "ffn_width": 768,
        },
        head_layers=2,
        # SentencePiece places added symbols right after <unk>, <s>, </s>.
        tokens={name: 3 + i for i, name in enumerate(TOKENS)},
        # 64 channels cannot carry the noise of 80 bins, and mu is nearly right.
        flow={"residual_std": 0.7},
    )


SIZES = {"nano": _nano, "nano_whisper": _nano_whisper, "tiny": _tiny, "1b5": _1b5, "7b": _7b}
ARGUMENTS = tuple(SIZES)


def main() -> None:
    """Print parameter counts by component."""
    from ba_jax import cli
    from ba_jax.config import from_mapping
    from ba_jax.models.baichuan_audio import BaichuanAudioConfig, parameter_counts

    cli.Parser("configs.models", main.__doc__).parse_args()
    for size in SIZES:
        counts = parameter_counts(from_mapping(BaichuanAudioConfig, get_config(size)))
        print(f"{size}: {sum(counts.values()):,} values")
        for name, count in counts.items():
            print(f"  {name:24s}{count:>16,}")


if __name__ == "__main__":
    main()
