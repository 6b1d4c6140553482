"""Table of the vocoder: `hift.pt` of CosyVoice 2, with weight norm as weight_g and weight_v.

The gains of weight normalisation keep their axes of size 1, so that every layout is a permutation.
"""

from __future__ import annotations

from collections.abc import Mapping

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.vocoder_config import VocoderConfig


def _weight_norm(source: str, target: str, layout: str = parts.CONV) -> list[WeightRow]:
    return [
        row(f"{source}.weight_v", f"{target}/kernel_v", layout),
        row(f"{source}.weight_g", f"{target}/kernel_g", layout),
        row(f"{source}.bias", f"{target}/bias"),
    ]


def _plain(source: str, target: str, layout: str) -> list[WeightRow]:
    return [
        row(f"{source}.weight", f"{target}/kernel", layout),
        row(f"{source}.bias", f"{target}/bias"),
    ]


def _resblock(source: str, target: str, dilations: int) -> list[WeightRow]:
    rows = []
    for i in range(dilations):
        for side in (1, 2):
            rows += _weight_norm(f"{source}.convs{side}.{i}", f"{target}/convs{side}_{i}")
            rows.append(
                row(
                    f"{source}.activations{side}.{i}.alpha",
                    f"{target}/activations{side}_{i}/alpha",
                )
            )
    return rows


def rows(config: VocoderConfig) -> list[WeightRow]:
    """Return the rows, in the order of the signal."""
    root = "params/vocoder"
    table = []
    for i in range(config.f0_layers):  # activations take the odd places of the reference's list
        table += _weight_norm(f"f0_predictor.condnet.{2 * i}", f"{root}/f0_predictor/conv_{i}")
    classifier = "f0_predictor/classifier"
    table += _plain("f0_predictor.classifier", f"{root}/{classifier}", parts.LINEAR)
    table += _plain("m_source.l_linear", f"{root}/source_mixer", parts.LINEAR)
    table += _weight_norm("conv_pre", f"{root}/conv_pre")
    dilations = len(config.dilations)
    for i in range(config.stages):
        table += _weight_norm(f"ups.{i}", f"{root}/ups_{i}", parts.CONV_TRANSPOSE)
        table += _plain(f"source_downs.{i}", f"{root}/source_downs_{i}", parts.CONV)
        table += _resblock(f"source_resblocks.{i}", f"{root}/source_resblocks_{i}", dilations)
    for i in range(config.stages * len(config.resblock_kernels)):
        table += _resblock(f"resblocks.{i}", f"{root}/resblocks_{i}", dilations)
    return table + _weight_norm("conv_post", f"{root}/conv_post")


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> VocoderConfig:
    """Infer the config of a checkpoint from the shapes of its tensors, by canonical name.

    Shapes show widths, mel bins and the number of harmonics; rates and kernel sizes are those of
    the release (applying the rows fails if shapes contradict them).

    Raises:
      ValueError: naming the tensor that is missing or has the wrong shape.
    """

    def shape(name: str, axes: str) -> tuple[int, ...]:
        if name not in shapes:
            raise ValueError(f"vocoder checkpoint: no tensor {name!r}; expected shape {axes}")
        sizes = tuple(shapes[name])
        if len(sizes) != axes.count(",") + 1:
            raise ValueError(f"vocoder checkpoint: {name!r} has shape {sizes}; expected {axes}")
        return sizes

    base_channels, mel_bins, _ = shape("conv_pre.weight_v", "(base_channels, mel_bins, 7)")
    name, axes = "f0_predictor.condnet.0.weight_v", "(f0_channels, mel_bins, 3)"
    f0_channels, f0_bins, _ = shape(name, axes)
    if f0_bins != mel_bins:
        raise ValueError(
            f"vocoder checkpoint: {name!r} reads {f0_bins} mel bins; expected {mel_bins}, as"
            " 'conv_pre.weight_v'"
        )
    _, sines = shape("m_source.l_linear.weight", "(1, harmonics + 1)")
    try:
        return VocoderConfig(
            base_channels=base_channels,
            f0_channels=f0_channels,
            mel_bins=mel_bins,
            harmonics=sines - 1,
        )
    except ValueError as error:
        raise ValueError(f"vocoder checkpoint: {error}") from error
