"""Table of the language model: the release packs q, k and v, Qwen2.5's own files do not."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.llm import LLMConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SOURCE, TARGET = "model.layers.{layer}", "llm/layers"


def rows(config: LLMConfig) -> list[WeightRow]:
    """Return the rows for the release's names, or, unpacked, for those of a Qwen2.5 folder."""
    stack = (("layer", config.layers),)
    table = [
        row(EMBEDDING, "params/llm/embedding"),
        *parts.norm("model.norm", "llm/norm", bias=False),
        *parts.norm(f"{SOURCE}.input_layernorm", f"{TARGET}/attention_norm", False, stack),
        *(_packed if config.qkv_packed else _separate)(config, stack),
        *parts.linear(f"{SOURCE}.self_attn.o_proj", f"{TARGET}/out", False, stack),
        *parts.norm(f"{SOURCE}.post_attention_layernorm", f"{TARGET}/ffn_norm", False, stack),
        *parts.linear(f"{SOURCE}.mlp.gate_proj", f"{TARGET}/gate", False, stack),
        *parts.linear(f"{SOURCE}.mlp.up_proj", f"{TARGET}/up", False, stack),
        *parts.linear(f"{SOURCE}.mlp.down_proj", f"{TARGET}/down", False, stack),
    ]
    if not config.tied_embeddings:
        table.append(row(HEAD, "params/llm/lm_head"))
    return table


def _packed(config: LLMConfig, stack: parts.Stack) -> list[WeightRow]:
    key_rows = config.kv_heads * config.head_dim
    split = (0, (config.heads * config.head_dim, key_rows, key_rows))

    def targets(leaf: str) -> tuple[str, ...]:
        return tuple(f"params/{TARGET}/{name}/{leaf}" for name in ("query", "key", "value"))

    source = f"{SOURCE}.self_attn.W_pack"
    table = [WeightRow(f"{source}.weight", targets("kernel"), parts.LINEAR, split, stack)]
    if config.qkv_bias:
        table.append(WeightRow(f"{source}.bias", targets("bias"), "", split, stack))
    return table


def _separate(config: LLMConfig, stack: parts.Stack) -> list[WeightRow]:
    return [
        r
        for name, short in (("query", "q"), ("key", "k"), ("value", "v"))
        for r in parts.linear(
            f"{SOURCE}.self_attn.{short}_proj", f"{TARGET}/{name}", config.qkv_bias, stack
        )
    ]
