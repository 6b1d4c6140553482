"""Rows that several tables share: PyTorch's layers and ours."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row

LINEAR = "o i -> i o"
CONV = "o i k -> k i o"
CONV_TRANSPOSE = "i o k -> k i o"

Stack = tuple[tuple[str, int], ...]


def linear(source: str, target: str, bias: bool = True, stack: Stack = ()) -> list[WeightRow]:
    """Return the rows of torch.nn.Linear and Dense."""
    rows = [row(f"{source}.weight", f"params/{target}/kernel", LINEAR, stack=stack)]
    if bias:
        rows.append(row(f"{source}.bias", f"params/{target}/bias", stack=stack))
    return rows


def conv(source: str, target: str, layout: str = CONV, stack: Stack = ()) -> list[WeightRow]:
    """Return the rows of torch.nn.Conv1d (or, with CONV_TRANSPOSE, ConvTranspose1d)."""
    return [
        row(f"{source}.weight", f"params/{target}/kernel", layout, stack=stack),
        row(f"{source}.bias", f"params/{target}/bias", stack=stack),
    ]


def norm(source: str, target: str, bias: bool = True, stack: Stack = ()) -> list[WeightRow]:
    """Return the rows of LayerNorm and GroupNorm, or with `bias=False` of RMSNorm."""
    rows = [row(f"{source}.weight", f"params/{target}/scale", stack=stack)]
    if bias:
        rows.append(row(f"{source}.bias", f"params/{target}/bias", stack=stack))
    return rows


def transformer(source: str, target: str, layers: int, rms: bool = False) -> list[WeightRow]:
    """Return the rows of a stack of Whisper layers and our scanned `TransformerLayer`s."""
    s, t, stack = f"{source}.{{layer}}", f"{target}/layers", (("layer", layers),)
    return [
        *norm(f"{s}.self_attn_layer_norm", f"{t}/attention_norm", not rms, stack),
        *linear(f"{s}.self_attn.q_proj", f"{t}/query", stack=stack),
        *linear(f"{s}.self_attn.k_proj", f"{t}/key", bias=False, stack=stack),
        *linear(f"{s}.self_attn.v_proj", f"{t}/value", stack=stack),
        *linear(f"{s}.self_attn.out_proj", f"{t}/out", stack=stack),
        *norm(f"{s}.final_layer_norm", f"{t}/ffn_norm", not rms, stack),
        *linear(f"{s}.fc1", f"{t}/ffn_in", stack=stack),
        *linear(f"{s}.fc2", f"{t}/ffn_out", stack=stack),
    ]
