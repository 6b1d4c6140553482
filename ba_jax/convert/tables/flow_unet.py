"""Table of the flow U-Net."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow
from ba_jax.convert.tables import parts
from ba_jax.models.flow_unet import FlowUNetConfig

PREFIX = "audio_tokenizer.audio_flow_matching_decoder.conditional_decoder"


def rows(config: FlowUNetConfig, prefix: str = PREFIX) -> list[WeightRow]:
    """Return the rows: a down stage, `mid_blocks` middle stages (stacked) and an up stage."""
    middle = (("stage", config.mid_blocks),)
    return [
        *parts.linear(f"{prefix}.time_mlp.linear_1", "flow_unet/time_in"),
        *parts.linear(f"{prefix}.time_mlp.linear_2", "flow_unet/time_out"),
        *_stage(config, f"{prefix}.down_blocks.0", "flow_unet/down"),
        *parts.conv(f"{prefix}.down_blocks.0.2", "flow_unet/down_conv"),
        *_stage(config, f"{prefix}.mid_blocks.{{stage}}", "flow_unet/middle", middle),
        *_stage(config, f"{prefix}.up_blocks.0", "flow_unet/up"),
        *parts.conv(f"{prefix}.up_blocks.0.2", "flow_unet/up_conv"),
        *_block(f"{prefix}.final_block", "flow_unet/final"),
        *parts.conv(f"{prefix}.final_proj", "flow_unet/out"),
    ]


def _block(source: str, target: str, stack: parts.Stack = ()) -> list[WeightRow]:
    return [
        *parts.conv(f"{source}.block.0", f"{target}/conv", stack=stack),
        *parts.norm(f"{source}.block.2", f"{target}/norm", stack=stack),
    ]


def _stage(
    config: FlowUNetConfig, source: str, target: str, stack: parts.Stack = ()
) -> list[WeightRow]:
    resnet, s = f"{target}/resnet", f"{source}.1.{{layer}}"
    t, deep = f"{target}/layers", (*stack, ("layer", config.blocks))
    return [
        *_block(f"{source}.0.block1", f"{resnet}/block1", stack),
        *_block(f"{source}.0.block2", f"{resnet}/block2", stack),
        *parts.linear(f"{source}.0.mlp.1", f"{resnet}/time", stack=stack),
        *parts.conv(f"{source}.0.res_conv", f"{resnet}/shortcut", stack=stack),
        *parts.norm(f"{s}.norm1", f"{t}/attention_norm", stack=deep),
        *parts.linear(f"{s}.attn1.to_q", f"{t}/query", bias=False, stack=deep),
        *parts.linear(f"{s}.attn1.to_k", f"{t}/key", bias=False, stack=deep),
        *parts.linear(f"{s}.attn1.to_v", f"{t}/value", bias=False, stack=deep),
        *parts.linear(f"{s}.attn1.to_out.0", f"{t}/out", stack=deep),
        *parts.norm(f"{s}.norm3", f"{t}/ffn_norm", stack=deep),
        *parts.linear(f"{s}.ff.net.0.proj", f"{t}/ffn_in", stack=deep),
        *parts.linear(f"{s}.ff.net.2", f"{t}/ffn_out", stack=deep),
    ]
