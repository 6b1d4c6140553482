"""PyTorch counterparts of the components, as baselines for ours.

They are written from the model's description and for speed (fused attention, folded weight norm, no
`.item()` between kernels), but keep the reference's algorithm if that is measured: the naive audio
head, the log-mel padded to 30 s, the codebook norms computed in every call. Encoder and language
model are transformers' classes.

Parameters carry the names of the released checkpoints, so that the conversion tables of
`ba_jax.convert` fill both sides with the same weights. Shapes are torch's: channels before time.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.llm import LLMConfig

# --- transformers' -----------------------------------------------------------------------------


def qwen2(config: LLMConfig) -> Qwen2ForCausalLM:
    """Transformers' Qwen2 of the language model's sizes."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.ffn_width,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tied_embeddings,
            attn_implementation="sdpa",
        )
    )


def whisper_encoder(config: AudioEncoderConfig, frames: int) -> WhisperEncoder:
    """Transformers' Whisper encoder of the audio encoder's sizes for clips of some frames."""
    return WhisperEncoder(
        WhisperConfig(
            num_mel_bins=config.mel_bins,
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.ffn_width,
            max_source_positions=frames // 2,
            attn_implementation="sdpa",
        )
    )


# --- front end ----------------------------------------------------------------------------------


def whisper_mel(wave_S: Tensor, filters_FM: Tensor, window: Tensor, seconds: int = 30) -> Tensor:
    """Compute Whisper's log-mel (M, frames) of a 16 kHz clip, padded to 30 s first, then cut."""
    frames = min(seconds * 100, wave_S.shape[0] // 160 + 1)
    wave_S = F.pad(wave_S, (0, seconds * 16000 - wave_S.shape[0]))
    spectrum = torch.stft(wave_S, 400, 160, window=window, return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    log_mel = (filters_FM.T @ power).clamp(min=1e-10).log10()
    log_mel = torch.maximum(log_mel, log_mel.max() - 8.0)
    return ((log_mel + 4.0) / 4.0)[:, :frames]


def sinc_resample(wave_S: Tensor, rate: int, new_rate: int, width: int = 128) -> Tensor:
    """Resample by a windowed sinc (Hann, roll-off 0.99) as a strided convolution."""
    common = math.gcd(rate, new_rate)
    old, new = rate // common, new_rate // common
    base = min(old, new) * 0.99
    reach = math.ceil(width * old / base)
    offsets = torch.arange(-reach, reach + old, dtype=torch.float64)[None, :] / old
    times = (offsets - torch.arange(new, dtype=torch.float64)[:, None] / new) * base
    times = times.clamp(-width, width)
    window = torch.cos(times * math.pi / width / 2) ** 2
    kernel = (torch.sinc(times) * window * base / old).float()[:, None]
    padded = F.pad(wave_S[None, None], (reach, reach + old))
    out = F.conv1d(padded, kernel, stride=old).transpose(1, 2).reshape(-1)
    return out[: math.ceil(new * wave_S.shape[0] / old)]


# --- residual vector quantiser ------------------------------------------------------------------


class Codebook(nn.Module):
    """A codebook and its EMA statistics."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.embed = nn.Parameter(torch.randn(size, width))
        self.embed_avg = nn.Parameter(torch.zeros(size, width))
        self.cluster_size = nn.Parameter(torch.ones(size))

    def forward(self, x_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest rows and their codes, by Euclidean distance."""
        norms_N1 = (x_NE**2).sum(-1, keepdim=True)
        norms_V = (self.embed**2).sum(-1)
        distance = (norms_N1 + norms_V - 2 * x_NE @ self.embed.T).clamp(min=0).sqrt()
        codes_N = distance.argmin(-1)
        return self.embed[codes_N], codes_N


class ResidualQuantizer(nn.Module):
    """(N, E) features to (N, Q) codes."""

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__()
        self.vq_list = nn.ModuleList(
            nn.ModuleDict({"codebook": Codebook(size, width)}) for size in sizes
        )

    def forward(self, z_NE: Tensor) -> Tensor:
        codes = []
        for layer in self.vq_list:
            rows, codes_N = layer["codebook"](z_NE)
            z_NE = z_NE - rows
            codes.append(codes_N)
        return torch.stack(codes, -1)


# --- audio head ---------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """Root-mean-square norm, epsilon 1e-6."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class DepthAttention(nn.Module):
    """Packed multi-head attention over depth, heads of 128."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 128
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        batch, length, width = x_BLD.shape
        packed = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


class DepthLayer(nn.Module):
    """Attention over depth and a feed-forward with separate weights for each depth."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.width, self.depth = width, depth
        self.self_attention = DepthAttention(width)
        self.layernorm1 = RMSNorm(width)
        self.layernorm2 = RMSNorm(width)
        self.linear1 = nn.Linear(width * depth, 2 * width)
        self.linear2 = nn.Linear(2 * width * depth, width)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the feed-forward weights as views, (2 D, Q, D) and (D, Q, 2 D)."""
        w1 = self.linear1.weight.view(2 * self.width, self.depth, self.width)
        return w1, self.linear2.weight.view(self.width, self.depth, 2 * self.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Run all depths at once."""
        w1, w2 = self.weights()
        r = self.layernorm2(x_BLD + self.self_attention(self.layernorm1(x_BLD)))
        y = F.gelu(torch.einsum("bld,tld->blt", r, w1))
        return r + torch.einsum("blt,dlt->bld", y, w2)

    def depth_weights(self) -> list[tuple[Tensor, ...]]:
        """Return contiguous feed-forward weights of each depth."""
        return [tuple(w[:, i].contiguous() for w in self.weights()) for i in range(self.depth)]

    def step(self, x_B1D: Tensor, cache: list[Tensor], weights: tuple[Tensor, ...]) -> Tensor:
        """Run a depth, with the keys and values of the depths before it in `cache`."""
        r = self.layernorm2(x_B1D + self.self_attention(self.layernorm1(x_B1D), cache))
        return r + F.linear(F.gelu(F.linear(r, weights[0])), weights[1])


class AudioHead(nn.Module):
    """Depth transformer that predicts a frame's codes from the language model's hidden state."""

    def __init__(self, width: int, layers: int, sizes: tuple[int, ...]):
        super().__init__()
        self.sizes = sizes
        self.transformer_layers = nn.ModuleList(
            DepthLayer(width, len(sizes)) for _ in range(layers)
        )
        self.headnorm = RMSNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, size + 1) for size in sizes)
        self.audio_embed_layers = nn.ModuleList(nn.Embedding(size + 1, width) for size in sizes)

    def logits(self, hidden_BD: Tensor, codes_BQ: Tensor) -> list[Tensor]:
        """Compute teacher-forced logits of every depth."""
        rows = [embed(codes_BQ[:, i]) for i, embed in enumerate(list(self.audio_embed_layers)[:-1])]
        x = torch.cat([hidden_BD[:, None], torch.stack(rows, 1).cumsum(1)], 1)
        for layer in self.transformer_layers:
            x = layer(x)
        x = self.headnorm(x)
        return [head(x[:, i]) for i, head in enumerate(self.heads)]

    def pick(self, logits_BV: Tensor, depth: int) -> Tensor:
        """Pick the greedy code; only depth 0 may end the audio with its extra class."""
        return (logits_BV if depth == 0 else logits_BV[:, :-1]).argmax(-1)

    def naive_frame(self, hidden_BD: Tensor) -> Tensor:
        """Generate a greedy frame, running all depths and heads for each code."""
        codes_BQ = hidden_BD.new_zeros(hidden_BD.shape[0], len(self.sizes), dtype=torch.long)
        for i in range(len(self.sizes)):
            codes_BQ[:, i] = self.pick(self.logits(hidden_BD, codes_BQ)[i], i)
        return codes_BQ

    def slice_depths(self) -> list[list[tuple[Tensor, ...]]]:
        """Slice the per-layer, per-depth weights for `cached_frame`."""
        return [layer.depth_weights() for layer in self.transformer_layers]

    def cached_frame(self, hidden_BD: Tensor, weights: list[list[tuple[Tensor, ...]]]) -> Tensor:
        """Generate a greedy frame, running each depth once with cached keys and values."""
        caches: list[list[Tensor]] = [[] for _ in self.transformer_layers]
        total_B1D = hidden_BD[:, None]
        codes = []
        for i, (head, embed) in enumerate(zip(self.heads, self.audio_embed_layers, strict=True)):
            x = total_B1D
            for layer, cache, depths in zip(self.transformer_layers, caches, weights, strict=True):
                x = layer.step(x, cache, depths[i])
            codes.append(self.pick(head(self.headnorm(x[:, 0])), i))
            row_B1D = embed(codes[-1])[:, None]
            total_B1D = row_B1D if i == 0 else total_B1D + row_B1D
        return torch.stack(codes, -1)


# --- flow U-Net ---------------------------------------------------------------------------------


class CausalConv(nn.Conv1d):
    """Causal convolution."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        return super().forward(F.pad(x_BCT, (self.kernel_size[0] - 1, 0)))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, T)."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        return super().forward(x_BCT.transpose(1, 2)).transpose(1, 2)


class CausalBlock(nn.Module):
    """Causal convolution, LayerNorm over channels, Mish."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        # The norm has number 2 in checkpoints: a transpose is between it and the convolution.
        self.block = nn.Sequential(
            CausalConv(channels, out_channels, 3),
            nn.Identity(),
            ChannelNorm(out_channels),
            nn.Mish(),
        )

    def forward(self, x_BCT: Tensor, mask_B1T: Tensor) -> Tensor:
        return self.block(x_BCT * mask_B1T) * mask_B1T


class ResnetBlock(nn.Module):
    """Two causal blocks with the time embedding added between them."""

    def __init__(self, channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, out_channels))
        self.block1 = CausalBlock(channels, out_channels)
        self.block2 = CausalBlock(out_channels, out_channels)
        self.res_conv = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x_BCT: Tensor, mask_B1T: Tensor, time_BD: Tensor) -> Tensor:
        h = self.block1(x_BCT, mask_B1T) + self.mlp(time_BD)[:, :, None]
        return self.block2(h, mask_B1T) + self.res_conv(x_BCT * mask_B1T)


class UNetAttention(nn.Module):
    """Self-attention with projections wider than the channels."""

    def __init__(self, channels: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x_BTC: Tensor, mask_B1TT: Tensor) -> Tensor:
        batch, frames, _ = x_BTC.shape
        q, k, v = (
            project(x_BTC).view(batch, frames, self.heads, -1).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TT)
        return self.to_out[0](y.transpose(1, 2).reshape(batch, frames, -1))


class UNetTransformer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, channels: int, heads: int, head_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = UNetAttention(channels, heads, head_width)
        self.norm3 = nn.LayerNorm(channels)
        # The layers' names in checkpoints: net.0.proj and net.2.
        gelu = nn.Sequential(OrderedDict(proj=nn.Linear(channels, 4 * channels), gelu=nn.GELU()))
        net = nn.Sequential(gelu, nn.Identity(), nn.Linear(4 * channels, channels))
        self.ff = nn.Sequential(OrderedDict(net=net))

    def forward(self, x_BTC: Tensor, mask_B1TT: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attn1(self.norm1(x_BTC), mask_B1TT)
        return x_BTC + self.ff(self.norm3(x_BTC))


class FlowUNet(nn.Module):
    """Velocity estimator of the flow-matching decoder, block-causal over chunks of 100 frames."""

    chunk = 100

    def __init__(
        self,
        mel_bins: int = 80,
        channels: int = 256,
        mid_blocks: int = 12,
        transformers: int = 4,
        heads: int = 8,
        head_width: int = 64,
    ):
        super().__init__()
        self.time_width = 2 * mel_bins
        time_width = 4 * channels

        def stage(in_channels: int) -> list[nn.Module]:
            blocks = [UNetTransformer(channels, heads, head_width) for _ in range(transformers)]
            return [ResnetBlock(in_channels, channels, time_width), nn.ModuleList(blocks)]

        def ends(in_channels: int) -> nn.ModuleList:
            return nn.ModuleList([nn.ModuleList(stage(in_channels) + [CausalConv(*same, 3)])])

        same = (channels, channels)
        self.time_mlp = nn.Sequential(
            OrderedDict(
                linear_1=nn.Linear(self.time_width, time_width),
                silu=nn.SiLU(),
                linear_2=nn.Linear(time_width, time_width),
            )
        )
        self.down_blocks = ends(2 * mel_bins)
        self.mid_blocks = nn.ModuleList(nn.ModuleList(stage(channels)) for _ in range(mid_blocks))
        self.up_blocks = ends(2 * channels)
        self.final_block = CausalBlock(*same)
        self.final_proj = nn.Conv1d(channels, mel_bins, 1)

    def embed_time(self, t_B: Tensor) -> Tensor:
        """Embed 1000 t as sines and cosines."""
        half = self.time_width // 2
        step = math.log(10000) / (half - 1)
        angles = 1000 * t_B[:, None] * torch.exp(-step * torch.arange(half))[None]
        return torch.cat([angles.sin(), angles.cos()], -1)

    def forward(self, x_BCT: Tensor, mu_BCT: Tensor, t_B: Tensor, lengths_B: Tensor) -> Tensor:
        frames = torch.arange(x_BCT.shape[-1])
        valid_BT = frames[None] < lengths_B[:, None]
        mask_B1T = valid_BT[:, None].to(x_BCT.dtype)
        ahead_TT = frames[None, :] < (frames[:, None] // self.chunk + 1) * self.chunk
        mask_B1TT = (valid_BT[:, None] & ahead_TT[None])[:, None]
        time_BD = self.time_mlp(self.embed_time(t_B))

        def run(resnet: nn.Module, blocks: nn.ModuleList, x_BCT: Tensor) -> Tensor:
            x_BTC = resnet(x_BCT, mask_B1T, time_BD).transpose(1, 2).contiguous()
            for block in blocks:
                x_BTC = block(x_BTC, mask_B1TT)
            return x_BTC.transpose(1, 2).contiguous()

        resnet, blocks, after = self.down_blocks[0]
        skip = run(resnet, blocks, torch.cat([x_BCT, mu_BCT], 1))
        x = after(skip * mask_B1T)
        for resnet, blocks in self.mid_blocks:
            x = run(resnet, blocks, x)
        resnet, blocks, after = self.up_blocks[0]
        x = run(resnet, blocks, torch.cat([x, skip], 1))
        x = self.final_block(after(x * mask_B1T), mask_B1T)
        return self.final_proj(x * mask_B1T) * mask_B1T


# --- vocoder ------------------------------------------------------------------------------------


class Snake(nn.Module):
    """x + sin(a x)^2 / a."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCT: Tensor) -> Tensor:
        alpha = self.alpha[None, :, None]
        return x_BCT + torch.sin(alpha * x_BCT) ** 2 / (alpha + 1e-9)


class VocoderResBlock(nn.Module):
    """Three pairs of convolutions (the first dilated), Snake before each."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...] = (1, 3, 5)):
        super().__init__()

        def convs(dilations: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2)
                for d in dilations
            )

        self.convs1 = convs(dilations)
        self.convs2 = convs((1,) * len(dilations))
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x_BCT: Tensor) -> Tensor:
        pairs = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for act1, conv1, act2, conv2 in pairs:
            x_BCT = x_BCT + conv2(act2(conv1(act1(x_BCT))))
        return x_BCT


class F0Predictor(nn.Module):
    """Five convolutions with ELU, a linear, the absolute value."""

    def __init__(self, mel_bins: int, channels: int):
        super().__init__()
        stages: list[nn.Module] = []
        for i in range(5):
            stages += [nn.Conv1d(channels if i else mel_bins, channels, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel_BCT: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel_BCT).transpose(1, 2))[..., 0].abs()


class SineSource(nn.Module):
    """Nine harmonics of f0 and noise, merged into one source."""

    def __init__(self, rate: int = 24000, harmonics: int = 9):
        super().__init__()
        self.rate, self.harmonics = rate, harmonics
        self.l_linear = nn.Linear(harmonics, 1)

    def forward(self, f0_BS: Tensor, phase_BH1: Tensor, noise_BHS: Tensor) -> Tensor:
        order_H = torch.arange(1, self.harmonics + 1, dtype=f0_BS.dtype)
        cycles = (f0_BS[:, None] * order_H[None, :, None] / self.rate).cumsum(-1) % 1
        voiced = (f0_BS > 10)[:, None].to(f0_BS.dtype)
        sines = 0.1 * torch.sin(2 * math.pi * cycles + phase_BH1) * voiced
        sines = sines + (voiced * 0.003 + (1 - voiced) * 0.1 / 3) * noise_BHS
        return torch.tanh(self.l_linear(sines.transpose(1, 2)))[..., 0]


class Vocoder(nn.Module):
    """HiFT: neural source filter and iSTFT at 24 kHz; mel (B, 80, T) to waveform (B, 480 T)."""

    n_fft, hop = 16, 4
    rates, kernels = (8, 5, 3), (16, 11, 7)
    source_kernels, resblock_kernels = (7, 7, 11), (3, 7, 11)

    def __init__(self, mel_bins: int = 80, base_channels: int = 512, f0_channels: int = 512):
        super().__init__()
        bins = self.n_fft + 2
        widths = [base_channels // 2**i for i in range(4)]
        self.f0_predictor = F0Predictor(mel_bins, f0_channels)
        self.m_source = SineSource()
        self.conv_pre = nn.Conv1d(mel_bins, base_channels, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(widths[i], widths[i + 1], k, u, padding=(k - u) // 2)
            for i, (u, k) in enumerate(zip(self.rates, self.kernels, strict=True))
        )
        downs = (15, 3, 1)  # frames of the source's STFT per frame of each stage
        self.source_downs = nn.ModuleList(
            nn.Conv1d(bins, widths[i + 1], 1)
            if u == 1
            else nn.Conv1d(bins, widths[i + 1], 2 * u, u, padding=u // 2)
            for i, u in enumerate(downs)
        )
        self.source_resblocks = nn.ModuleList(
            VocoderResBlock(width, k)
            for width, k in zip(widths[1:], self.source_kernels, strict=True)
        )
        self.resblocks = nn.ModuleList(
            VocoderResBlock(width, k) for width in widths[1:] for k in self.resblock_kernels
        )
        self.conv_post = nn.Conv1d(widths[-1], bins, 7, padding=3)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def source(self, f0_BT: Tensor, phase_BH1: Tensor, noise_BHS: Tensor) -> Tensor:
        """Return the excitation (B, 480 T)."""
        upsample = math.prod(self.rates) * self.hop
        return self.m_source(f0_BT.repeat_interleave(upsample, 1), phase_BH1, noise_BHS)

    def decode(self, mel_BCT: Tensor, source_BS: Tensor) -> Tensor:
        """Return the waveform (B, 480 T) of a mel and its excitation."""
        spectrum = torch.stft(
            source_BS, self.n_fft, self.hop, window=self.window, return_complex=True
        )
        spectrum = torch.cat([spectrum.real, spectrum.imag], 1)
        x = self.conv_pre(mel_BCT)
        blocks = len(self.resblock_kernels)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            x = sum(block(x) for block in self.resblocks[i * blocks : (i + 1) * blocks]) / blocks
        x = self.conv_post(F.leaky_relu(x, 0.01))
        bins = self.n_fft // 2 + 1
        magnitude = torch.exp(x[:, :bins]).clamp(max=1e2)
        spectrum = torch.polar(magnitude, torch.sin(x[:, bins:]))
        wave = torch.istft(spectrum, self.n_fft, self.hop, window=self.window)
        return wave.clamp(-0.99, 0.99)

    def forward(self, mel_BCT: Tensor, phase_BH1: Tensor, noise_BHS: Tensor) -> Tensor:
        return self.decode(mel_BCT, self.source(self.f0_predictor(mel_BCT), phase_BH1, noise_BHS))


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace pairs `weight_g` and `weight_v` (in either naming) by the weights."""
    folded = {
        name.removeprefix("generator.")
        .replace("parametrizations.weight.original0", "weight_g")
        .replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in state.items()
    }
    for name in [name for name in folded if name.endswith("weight_g")]:
        g, v = folded.pop(name), folded.pop(name[:-1] + "v")
        norm = v.flatten(1).norm(dim=1)[:, None, None]
        folded[name[: -len("_g")]] = v * (g / norm)
    return folded
