"""Training steps in PyTorch, written as one would, as baselines for ours.

Each takes a stage's config and arrays (`ba_jax.plan.batch`, full rows and clips, so that nothing is
masked) and trains modules of the same sizes on them: transformers' Qwen2 and Whisper encoder, the
rest from `torch_counterparts` and below. Weights are random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.audio_utils import mel_filter_bank

from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.stages.base import Stage
from benchmarks import torch_counterparts as counterparts

Step = tuple[Callable[[], Any], int]
"""(call that trains a step and returns when it is done, number of trained parameters)."""


def tensors(tree: Any) -> Any:
    """A tree of arrays as tensors, ids as int64."""
    if isinstance(tree, Mapping):
        return {name: tensors(leaf) for name, leaf in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(tensors, tree))
    tensor = torch.from_numpy(np.ascontiguousarray(tree))
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def trainer(parameters: Iterable[nn.Parameter]) -> tuple[Callable[[Tensor], None], int]:
    """(function that takes a loss and updates the parameters by AdamW, their number of values)."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, betas=(0.9, 0.98), weight_decay=0.05)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return update, sum(parameter.numel() for parameter in trained)


def text(stage: Stage, arrays: Mapping[str, Any]) -> Step:
    """The language model on text."""
    model, ids_BL = counterparts.qwen2(stage.config.llm), tensors(arrays["ids_BL"])
    update, count = trainer(model.parameters())
    return lambda: update(model(input_ids=ids_BL, labels=ids_BL, use_cache=False).loss), count


def codes(stage: Stage, arrays: Mapping[str, Any]) -> Step:
    """The language model and the audio head on rows of text and codes, tables of text frozen."""
    c, arrays = stage.config, tensors(arrays)
    model = counterparts.qwen2(c.llm)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.requires_grad_(False)
    sizes, stride = c.audio_head.codebook_sizes, stage.settings.full_head_every
    head = counterparts.AudioHead(c.audio_head.width, c.audio_head.layers, sizes)
    for layer in head.transformer_layers:
        nn.init.normal_(layer.self_attention.in_proj_weight, std=0.02)
    update, count = trainer([*model.parameters(), *head.parameters()])
    ids_BL, codes_BLQ = arrays["ids_BL"], arrays["codes_BLQ"]
    is_audio_BL = ids_BL == c.tokens.audio_pad
    words_BL, frames_BL = (arrays[f"{kind}_target_BL"][:, 1:] for kind in ("text", "audio"))

    def run() -> None:
        spoken = [
            table(codes_BLQ[..., q].clamp(max=size))
            for q, (table, size) in enumerate(zip(head.audio_embed_layers, sizes, strict=True))
        ]
        x_BLD = torch.where(
            is_audio_BL[..., None], sum(spoken), model.get_input_embeddings()(ids_BL)
        )
        hidden_BLD = model.model(inputs_embeds=x_BLD, use_cache=False).last_hidden_state[:, :-1]
        loss = F.cross_entropy(model.lm_head(hidden_BLD[words_BL]), ids_BL[:, 1:][words_BL])
        hidden_ND, codes_NQ = hidden_BLD[frames_BL], codes_BLQ[:, 1:][frames_BL]
        x_N1D = hidden_ND[:, None]
        for layer in head.transformer_layers:
            w1, w2 = layer.weights()
            r = layer.layernorm2(x_N1D + layer.self_attention(layer.layernorm1(x_N1D)))
            x_N1D = r + F.linear(F.gelu(F.linear(r, w1[:, 0])), w2[:, 0])
        first = head.heads[0](head.headnorm(x_N1D[:, 0]))
        loss = loss + F.cross_entropy(first, codes_NQ[:, 0]) / len(sizes)
        logits = head.logits(hidden_ND[::stride], codes_NQ[::stride])
        for q in range(1, len(sizes)):
            loss = loss + F.cross_entropy(logits[q], codes_NQ[::stride, q]) / len(sizes)
        update(loss)

    return run, count


# --- tokenizer and flow -------------------------------------------------------------------------


class Bridge(nn.Module):
    """Pooling, residual quantisation with straight-through gradients, projection."""

    def __init__(self, config: BaichuanAudioConfig):
        super().__init__()
        c = config.vq_bridge
        self.pooling, wide = c.pooling, c.code_width
        self.gate, self.up, self.down = (nn.Linear(wide, wide, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(wide)
        self.proj = nn.Linear(wide, c.decoder_width or c.width)
        self.tables = [torch.randn(size, wide) for size in c.codebook_sizes]

    def features(self, x_BTD: Tensor) -> Tensor:
        """Pooled features (B, N, E)."""
        x_BTD = F.pad(x_BTD, (0, 0, 0, -x_BTD.shape[1] % self.pooling))
        x = x_BTD.reshape(x_BTD.shape[0], -1, self.pooling * x_BTD.shape[2])
        return self.norm(self.down(F.silu(self.gate(x)) * self.up(x)) + x)

    def quantize(self, z_BNE: Tensor, train: bool) -> Tensor:
        """Quantised features; in training sampled, and the codebooks follow by moving averages."""
        residual = z_BNE.detach().reshape(-1, z_BNE.shape[-1])
        total = torch.zeros_like(residual)
        for table in self.tables:
            distance = table.square().sum(-1) - 2 * residual @ table.T
            if train:
                distance = distance - 0.01 * torch.empty_like(distance).exponential_().log().neg()
            codes = distance.argmin(-1)
            if train:
                member = F.one_hot(codes, len(table)).to(table.dtype)
                mean = member.T @ residual / member.sum(0).clamp(min=1)[:, None]
                table.lerp_(mean, 0.03)
            total, residual = total + table[codes], residual - table[codes]
        total = total.view_as(z_BNE)
        return z_BNE + (total - z_BNE).detach()


class AudioDecoder(nn.Module):
    """Upsample, causal transformer, upsample, refine: (hidden, coarse mel, refined mel)."""

    def __init__(self, config: BaichuanAudioConfig):
        super().__init__()
        c = config.audio_decoder
        first, second = c.upsample_rates
        self.cut = [max(0, c.kernel_size - rate) for rate in c.upsample_rates]
        self.up1 = nn.ConvTranspose1d(c.width, c.width, c.kernel_size, first)
        self.up2 = nn.ConvTranspose1d(c.width, c.mel_bins, c.kernel_size, second)
        self.norm1, self.norm2 = nn.GroupNorm(1, c.width), nn.GroupNorm(1, c.mel_bins)
        self.layers = nn.ModuleList(
            counterparts.UNetTransformer(c.width, c.heads, c.width // c.heads)
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.width)
        refine: list[nn.Module] = []
        for before, channels in itertools.pairwise((c.mel_bins, *c.refine_channels)):
            conv = nn.Conv1d(before, channels, 5, padding=2)
            refine += [conv, nn.GroupNorm(1, channels), nn.Mish()]
        self.refine = nn.Sequential(*refine, nn.Conv1d(c.refine_channels[-1], c.mel_bins, 1))

    def forward(self, x_BND: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        def upsample(up: nn.Module, norm: nn.Module, x_BCT: Tensor, cut: int) -> Tensor:
            x_BCT = norm(up(x_BCT))
            return x_BCT[..., : x_BCT.shape[-1] - cut]

        x = upsample(self.up1, self.norm1, x_BND.transpose(1, 2), self.cut[0]).transpose(1, 2)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for layer in self.layers:
            x = layer(x, causal)
        x = self.norm(x)
        coarse = upsample(self.up2, self.norm2, x.transpose(1, 2), self.cut[1])
        resized = F.interpolate(coarse, size=frames, mode="nearest")
        refined = resized + self.refine(resized)
        return x, coarse.transpose(1, 2), refined.transpose(1, 2)


def mel_loss(mel_BTM: Tensor, target_BTM: Tensor) -> Tensor:
    """L1 and L2 of a mel."""
    return F.l1_loss(mel_BTM, target_BTM) + F.mse_loss(mel_BTM, target_BTM)


def tokenizer(stage: Stage, arrays: Mapping[str, Any]) -> Step:
    """Encoder, quantiser and decoder, with the frozen language model's loss."""
    c, arrays = stage.config, tensors(arrays)
    buckets, rows = arrays["audio"], arrays["rows"]
    mels = [bucket["mel"].flatten(0, 1).transpose(1, 2) for bucket in buckets]
    mels = [F.pad(mel, (0, mel.shape[-1] % 2)).contiguous() for mel in mels]
    encoder = counterparts.whisper_encoder(c.audio_encoder, max(mel.shape[-1] for mel in mels))
    bridge, decoder = Bridge(c), AudioDecoder(c)
    model = counterparts.qwen2(c.llm).requires_grad_(False)
    projection = nn.Linear(c.vq_bridge.code_width, c.llm.width)
    encoder.embed_positions.requires_grad_(False)
    modules = (encoder, bridge, decoder, projection)
    update, count = trainer(p for module in modules for p in module.parameters())
    targets_BL = rows["text_target"][:, 1:]

    def run() -> None:
        x_BLD = model.get_input_embeddings()(rows["ids"]).clone()
        loss = torch.zeros(())
        for bucket, mel in zip(buckets, mels, strict=True):
            # Shorter clips are padded to the length that the class demands.
            mel = F.pad(mel, (0, mels[-1].shape[-1] - mel.shape[-1]))
            z = bridge.features(encoder(mel).last_hidden_state)
            q = bridge.quantize(z, train=True)
            target = bucket["target"].flatten(0, 1)
            coarse_target = bucket["coarse_target"].flatten(0, 1)
            _, coarse, refined = decoder(bridge.proj(q), target.shape[1])
            loss = loss + mel_loss(refined, target)
            frames = min(coarse.shape[1], coarse_target.shape[1])
            loss = loss + 0.5 * mel_loss(coarse[:, :frames], coarse_target[:, :frames])
            loss = loss + 0.25 * F.mse_loss(z, q.detach())
            frames = projection(q).unflatten(0, bucket["starts"].shape)
            for row, chunk in bucket["codes"].nonzero():
                start, size = bucket["starts"][row, chunk], bucket["codes"][row, chunk]
                x_BLD[row, start : start + size] = frames[row, chunk, :size]
        hidden_BLD = model.model(inputs_embeds=x_BLD, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden_BLD[targets_BL])
        update(loss + F.cross_entropy(logits, rows["ids"][:, 1:][targets_BL]))

    return run, count


class FlowPrenet(nn.Module):
    """Features to mu."""

    def __init__(self, config: BaichuanAudioConfig):
        super().__init__()
        c = config.flow_prenet
        self.mlp = nn.Sequential(
            nn.Linear(c.in_width, 4 * c.width), nn.SiLU(), nn.Linear(4 * c.width, c.width)
        )
        self.layers = nn.ModuleList(
            counterparts.UNetTransformer(c.width, c.heads, c.width // c.heads)
            for _ in range(c.layers)
        )
        self.norm = counterparts.RMSNorm(c.width)
        self.out = nn.Linear(c.width, c.mel_bins, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        causal = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).tril()
        x = self.mlp(x_BTD)
        for layer in self.layers:
            x = layer(x, causal)
        return self.out(self.norm(x))


def flow(stage: Stage, arrays: Mapping[str, Any]) -> Step:
    """Prenet, U-Net and audio decoder on stored codes."""
    c, arrays = stage.config, tensors(arrays)
    bridge, decoder = Bridge(c), AudioDecoder(c)
    u = c.flow_unet
    prenet = FlowPrenet(c)
    unet = counterparts.FlowUNet(
        u.mel_bins, u.channels, u.mid_blocks, u.blocks, u.heads, u.head_dim
    )
    trained = (bridge.proj, decoder, prenet, unet)
    update, count = trainer(p for module in trained for p in module.parameters())
    target, refined_target = arrays["mel_BTM"], arrays["refined_mel_BTM"]
    coarse_target = arrays["coarse_mel_BTM"]

    def run() -> None:
        codes = arrays["codes_BNQ"].unbind(-1)
        q = sum(table[code_BN] for table, code_BN in zip(bridge.tables, codes, strict=True))
        hidden, coarse, refined = decoder(bridge.proj(q), refined_target.shape[1])
        frames = min(coarse.shape[1], coarse_target.shape[1])
        loss = mel_loss(coarse[:, :frames], coarse_target[:, :frames])
        loss = loss + mel_loss(refined, refined_target)
        mu = prenet(hidden)
        frames = min(mu.shape[1], target.shape[1])
        mu, mel = mu[:, :frames], target[:, :frames]
        loss = loss + F.l1_loss(mu, mel)
        noise, t_B = torch.randn_like(mel), torch.rand(len(mel))
        t = t_B[:, None, None]
        point = (1 - (1 - 1e-6) * t) * noise + t * mel
        lengths_B = torch.full((len(mel),), frames)
        velocity = unet(point.transpose(1, 2), mu.transpose(1, 2), t_B, lengths_B)
        update(loss + 0.2 * F.mse_loss(velocity.transpose(1, 2), mel - (1 - 1e-6) * noise))

    return run, count


# --- vocoder ------------------------------------------------------------------------------------


class Judge(nn.Module):
    """Multi-period and multi-resolution discriminators: feature maps of each, the score last."""

    def __init__(self, config: Any):
        super().__init__()
        self.config, width = config, config.resolution_channels

        def period() -> nn.ModuleList:
            widths = (1, *config.period_channels)
            last = len(widths) - 2
            convs = [
                nn.Conv2d(a, b, (5, 1), (1 if i == last else 3, 1), (2, 0))
                for i, (a, b) in enumerate(itertools.pairwise(widths))
            ]
            convs.append(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))
            return nn.ModuleList(map(weight_norm, convs))

        def band() -> nn.ModuleList:
            convs = [nn.Conv2d(2, width, (3, 9), (1, 1), (1, 4))]
            convs += [nn.Conv2d(width, width, (3, 9), (1, 2), (1, 4)) for _ in range(3)]
            convs.append(nn.Conv2d(width, width, (3, 3), padding=(1, 1)))
            return nn.ModuleList(map(weight_norm, convs))

        def resolution() -> nn.ModuleList:
            post = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))
            return nn.ModuleList([*(band() for _ in config.bands), post])

        self.periods = nn.ModuleList(period() for _ in config.periods)
        self.resolutions = nn.ModuleList(resolution() for _ in config.fft_sizes)

    def forward(self, wave_BS: Tensor) -> list[list[Tensor]]:
        maps = []
        for period, convs in zip(self.config.periods, self.periods, strict=True):
            x = F.pad(wave_BS[:, None], (0, -wave_BS.shape[1] % period), mode="reflect")
            x, features = x.unflatten(-1, (-1, period)), []
            for conv in convs[:-1]:
                x = F.leaky_relu(conv(x), 0.1)
                features.append(x)
            maps.append([*features, convs[-1](x)])
        wave = wave_BS - wave_BS.mean(1, keepdim=True)
        wave = 0.8 * wave / (wave.abs().amax(1, keepdim=True) + 1e-9)
        for size, bands in zip(self.config.fft_sizes, self.resolutions, strict=True):
            window = torch.hann_window(size)
            spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)
            image = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
            features, judged = [], []
            for (low, high), convs in zip(self.config.bands, bands[:-1], strict=True):
                x = image[..., int(low * image.shape[-1]) : int(high * image.shape[-1])]
                for i, conv in enumerate(convs):
                    x = F.leaky_relu(conv(x), 0.1)
                    if i:
                        features.append(x)
                judged.append(x)
            maps.append([*features, bands[-1](torch.cat(judged, -1))])
        return maps


def vocoder(stage: Stage, arrays: Mapping[str, Any]) -> Step:
    """Generator and discriminators, in two updates as usual."""
    c, arrays = stage.config.vocoder, tensors(arrays)
    generator = counterparts.Vocoder(c.mel_bins, c.base_channels, c.f0_channels)
    for module in generator.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight_norm(module)
    judge = Judge(stage.settings.discriminators)
    update, count = trainer(generator.parameters())
    update_judge, more = trainer(judge.parameters())
    mel_BCT, real_BS = arrays["mel_BTM"].transpose(1, 2), arrays["wave_BS"]
    batch, samples = real_BS.shape
    harmonics = generator.m_source.harmonics
    scales = []
    for g in stage.settings.geometries:
        bank = mel_filter_bank(g.n_fft // 2 + 1, g.n_mels, 0.0, g.f_max, g.sample_rate)
        scales.append((g.n_fft, g.hop, torch.hann_window(g.n_fft), torch.tensor(bank).float()))

    def log_mels(wave_BS: Tensor) -> list[Tensor]:
        mels = []
        for n_fft, hop, window, bank in scales:
            spectrum = torch.stft(wave_BS, n_fft, hop, window=window, return_complex=True)
            power = torch.view_as_real(spectrum).square().sum(-1) + 1e-9
            mels.append((bank.T @ power.sqrt()).clamp(min=1e-5).log())
        return mels

    def run() -> None:
        f0_BT = generator.f0_predictor(mel_BCT)
        phase = 2 * math.pi * torch.rand(batch, harmonics, 1)
        source = generator.source(f0_BT, phase, torch.randn(batch, harmonics, samples))
        wave_BS = generator.decode(mel_BCT, source)
        on_real, on_fake = judge(real_BS), judge(wave_BS.detach())
        update_judge(
            sum(
                (real[-1] - 1).square().mean() + fake[-1].square().mean()
                for real, fake in zip(on_real, on_fake, strict=True)
            )
        )
        judge.requires_grad_(False)
        loss = F.l1_loss(f0_BT, arrays["f0_BT"]) / 100
        for ours, theirs in zip(log_mels(wave_BS), log_mels(real_BS), strict=True):
            loss = loss + 15 * F.l1_loss(ours, theirs)
        for real, fake in zip(on_real, judge(wave_BS), strict=True):
            loss = loss + (fake[-1] - 1).square().mean()
            for a, b in zip(real, fake, strict=True):
                loss = loss + 2 * F.l1_loss(b, a.detach())
        update(loss)
        judge.requires_grad_(True)

    return run, count + more


STEPS = {"text": text, "codes": codes, "tokenizer": tokenizer, "flow": flow, "vocoder": vocoder}
