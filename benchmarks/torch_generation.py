"""Generation in PyTorch by the algorithm of the public demo, as a baseline for ours.

The reference's algorithm is kept: a request at a time; keys and values grow by concatenation, the
KV heads repeated in memory; the text head runs on every position of every pass, audio frames
included; all depths of the audio head and all its classifiers run for each code, 64 depth
evaluations for a frame of 8 codes; a clause is synthesized only when it is complete. The rest is
written for speed: fused attention, no `.item()`, no copy between devices, no logits processors
(both sides are greedy).

Parameters carry the names of the released checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_counterparts import AudioHead, RMSNorm


def rotate(x_BHLD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    """Apply rotary position embedding by halves."""
    first, second = x_BHLD.chunk(2, -1)
    return x_BHLD * cos_LD + torch.cat([-second, first], -1) * sin_LD


class Attention(nn.Module):
    """Grouped-query attention with q, k and v packed in one matrix."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int):
        super().__init__()
        self.split = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.head_dim, self.groups = head_dim, heads // kv_heads
        self.W_pack = nn.Linear(width, sum(self.split))
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x_BLD: Tensor, rope: tuple[Tensor, Tensor], cache: list[Tensor]) -> Tensor:
        batch, length, _ = x_BLD.shape
        q, k, v = (
            part.view(batch, length, -1, self.head_dim).transpose(1, 2)
            for part in self.W_pack(x_BLD).split(self.split, -1)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        fresh = not cache
        if not fresh:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        cache[:] = [k, v]
        k, v = (a.repeat_interleave(self.groups, 1) for a in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=fresh)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Layer(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, inner: int):
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = Attention(width, heads, kv_heads, head_dim)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )

    def forward(self, x_BLD: Tensor, rope: tuple[Tensor, Tensor], cache: list[Tensor]) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), rope, cache)
        y_BLD = self.post_attention_layernorm(x_BLD)
        y_BLF = F.silu(self.mlp["gate_proj"](y_BLD)) * self.mlp["up_proj"](y_BLD)
        return x_BLD + self.mlp["down_proj"](y_BLF)


class Conversation:
    """A request: its cache, and the last position's hidden state and logits."""

    def __init__(self, model: SpeakingModel, ids_L: Tensor, codes_LQ: Tensor):
        self.model = model
        self.caches: list[list[Tensor]] = [[] for _ in model.model["layers"]]
        self.position = 0
        self.read(ids_L[None], codes_LQ[None])

    def read(self, ids_BL: Tensor, codes_BLQ: Tensor | None = None) -> None:
        """Run a pass; codes are read at ids `audio_pad`."""
        self.hidden_BD, self.logits_BV = self.model(ids_BL, codes_BLQ, self.caches, self.position)
        self.position += ids_BL.shape[1]

    def write(self, count: int) -> Tensor:
        """Return (count,) greedy ids; the last id is read too."""
        ids = []
        for _ in range(count):
            ids.append(self.logits_BV.argmax(-1))
            self.read(ids[-1][:, None])
        return torch.cat(ids)

    def speak(self, count: int, audiogen_start: int) -> Tensor:
        """Return (count, Q) frames after `<audiogen_start>`, ignoring the end of audio."""
        self.read(torch.tensor([[audiogen_start]]))
        pad_11 = torch.tensor([[self.model.audio_pad]])
        frames = []
        for _ in range(count):
            frames.append(self.model.audio_head.naive_frame(self.hidden_BD))
            self.read(pad_11, frames[-1][:, None])
        return torch.cat(frames)


class SpeakingModel(nn.Module):
    """The language model with both heads."""

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        inner: int,
        codebook_sizes: tuple[int, ...],
        head_layers: int,
        audio_pad: int,
        rope_theta: float = 1e6,
    ):
        super().__init__()
        sizes = (width, heads, kv_heads, head_dim, inner)
        tables = [nn.Embedding(size + 1, width) for size in codebook_sizes]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocab, width),
                "layers": nn.ModuleList(Layer(*sizes) for _ in range(layers)),
                "norm": RMSNorm(width),
                "audio_embed_layers": nn.ModuleList(tables),
            }
        )
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.audio_head = AudioHead(width, head_layers, codebook_sizes)
        # Shared tables: the head feeds back the embeddings that the language model reads.
        self.audio_head.audio_embed_layers = self.model["audio_embed_layers"]
        self.audio_pad = audio_pad
        exponent = torch.arange(0, head_dim, 2).float() / head_dim
        self.register_buffer("frequencies", rope_theta**-exponent, persistent=False)

    def load(self, weights: dict[str, Tensor]) -> SpeakingModel:
        """Load all parameters from a checkpoint's weights and freeze them."""
        weights = dict(weights)
        for name in list(weights):
            if name.startswith("model.audio_embed_layers."):
                weights[f"audio_head.{name.removeprefix('model.')}"] = weights[name]
        self.load_state_dict(weights)
        return self.eval().requires_grad_(False)

    def forward(
        self,
        ids_BL: Tensor,
        codes_BLQ: Tensor | None,
        caches: list[list[Tensor]],
        position: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the last position's hidden state and text logits."""
        x_BLD = self.model["embed_tokens"](ids_BL)
        if codes_BLQ is not None:
            tables = self.model["audio_embed_layers"]
            audio = sum(table(codes_BLQ[..., q]) for q, table in enumerate(tables))
            x_BLD = torch.where((ids_BL == self.audio_pad)[..., None], audio, x_BLD)
        positions_L = torch.arange(position, position + ids_BL.shape[1])
        angles_LD = torch.outer(positions_L.float(), self.frequencies).repeat(1, 2)
        rope = (angles_LD.cos(), angles_LD.sin())
        for layer, cache in zip(self.model["layers"], caches, strict=True):
            x_BLD = layer(x_BLD, rope, cache)
        x_BLD = self.model["norm"](x_BLD)
        return x_BLD[:, -1], self.lm_head(x_BLD)[:, -1]
