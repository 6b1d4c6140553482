"""Cases of the components: our module and its PyTorch counterpart, same weights and inputs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from ba_jax.audio import resample, whisper_log_mel, whisper_log_mel_batch
from ba_jax.convert import engine
from ba_jax.convert.tables import audio_encoder as encoder_table
from ba_jax.convert.tables import llm as llm_table
from ba_jax.convert.tables import rows_for
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, variable_shapes
from ba_jax.models.flow_unet import FlowUNetConfig
from ba_jax.models.layers import sinusoids
from ba_jax.models.llm import LLMConfig, init_cache
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.models.vq_bridge import VQBridgeConfig
from ba_jax.tree import flatten, unflatten
from ba_jax.vocab import CODEBOOK_SIZES
from benchmarks import torch_counterparts as counterparts


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of all components in a run."""

    clip_seconds: int
    encoder: AudioEncoderConfig
    quantizer_width: int
    codebooks: tuple[int, ...]
    llm: LLMConfig
    prompt: int
    new_tokens: int
    head: AudioHeadConfig
    unet: FlowUNetConfig
    vocoder: VocoderConfig


SIZES = {
    # For the tests.
    "toy": Sizes(
        clip_seconds=1,
        encoder=AudioEncoderConfig(128, width=32, layers=2, heads=2, ffn_width=64),
        quantizer_width=32,
        codebooks=(64, 32, 16, 8),
        llm=LLMConfig(256, 64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn_width=96),
        prompt=8,
        new_tokens=4,
        head=AudioHeadConfig(128, layers=2, codebook_sizes=(64, 32, 16, 8)),
        unet=FlowUNetConfig(80, channels=32, blocks=2, mid_blocks=2, heads=2, head_dim=8),
        vocoder=VocoderConfig(base_channels=32, f0_channels=16),
    ),
    # U-Net, vocoder and codebooks of the released model; the rest scaled down for two cores.
    "medium": Sizes(
        clip_seconds=3,
        encoder=AudioEncoderConfig(128, width=512, layers=6, heads=8, ffn_width=2048),
        quantizer_width=2048,
        codebooks=CODEBOOK_SIZES,
        llm=LLMConfig(8192, 512, layers=4, heads=8, kv_heads=2, head_dim=64, ffn_width=2048),
        prompt=256,
        new_tokens=32,
        head=AudioHeadConfig(1024, layers=3, codebook_sizes=CODEBOOK_SIZES),
        unet=FlowUNetConfig(80, channels=256, blocks=4, mid_blocks=12, heads=8, head_dim=64),
        vocoder=VocoderConfig(base_channels=512, f0_channels=512),
    ),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row of the table: the time of candidate `baseline` over that of candidate `ours`."""

    label: str
    baseline: str
    ours: str
    aim: float | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """A component, ready to be timed.

    Attributes:
      sizes: the sizes in words.
      candidates: name -> call that returns when its result is complete.
      comparisons: rows of the table.
      difference: largest difference between the two sides' results over their peak; for codes and
        tokens the share that differs.
    """

    sizes: str
    candidates: Mapping[str, Callable[[], object]]
    comparisons: Sequence[Comparison]
    difference: float


# --- both sides, same weights -------------------------------------------------------------------


def draw_variables(config: BaichuanAudioConfig) -> dict:
    """Draw random variables of the components in `config`, scaled to keep activations near 1.

    NumPy draws them: compiling the models' initialisers would take longer than the benchmark.
    """
    random = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        name = path.rsplit("/", 1)[-1]
        if name in ("scale", "alpha") or name.startswith("cluster_size"):
            return jnp.ones(shape, jnp.float32)
        if name == "kernel_g":  # gains of a deep stack of residual blocks without norms
            return jnp.full(shape, 0.2, jnp.float32)
        if name == "positional_embedding":
            return jnp.asarray(sinusoids(*shape))
        values = random.standard_normal(shape, np.float32)
        values *= 0.02 if "bias" in name else shape[-2] ** -0.5
        return jnp.asarray(values)

    shapes = flatten(variable_shapes(config))
    return unflatten({path: draw(path, leaf.shape) for path, leaf in shapes.items()})


def torch_weights(variables: Mapping, rows: Sequence) -> dict[str, torch.Tensor]:
    """Convert our variables to the checkpoint's names with the conversion tables."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    weights = {}
    for name, parts in engine.expand(rows, variables).items():
        pieces = [part.to_source(flat[part.target][part.index]) for part in parts]
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, parts[0].axis)
        weights[name] = torch.from_numpy(np.ascontiguousarray(joined).copy())
    return weights


def select(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select the weights with a prefix, and remove it."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def load(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Load all parameters of a counterpart and freeze it."""
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def call_jitted(function: Callable, *arguments) -> Callable[[], object]:
    """Return a call of the jitted function that waits for its result."""
    jitted, arguments = jax.jit(function), jax.device_put(arguments)
    return lambda: jax.block_until_ready(jitted(*arguments))


def call_torch(function: Callable, *arguments) -> Callable[[], object]:
    """Return a call of the function in inference mode; arrays become tensors."""
    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
    return torch.inference_mode()(lambda: function(*tensors))


def difference(ours, theirs) -> float:
    """Largest difference over the peak of `theirs`; for integers the share that differs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise ValueError(f"the two sides disagree in shape: {ours.shape} and {theirs.shape}")
    if np.issubdtype(theirs.dtype, np.integer):
        return float(np.mean(ours != theirs))
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Draw standard normal inputs."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- the components -----------------------------------------------------------------------------


def front_end(sizes: Sizes) -> Case:
    """Compare Whisper's log-mel of a clip at 16 kHz."""
    wave = 0.1 * normal(0, sizes.clip_seconds * 16000)
    filters = mel_filter_bank(201, 128, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    window = torch.hann_window(400)
    reference = call_torch(counterparts.whisper_mel, wave, filters.astype(np.float32), window)
    in_jax = call_jitted(whisper_log_mel_batch, wave[None], np.array(wave.shape))
    expected = reference().T
    label = "mel front end, {} (reference pads to 30 s)"
    return Case(
        f"{sizes.clip_seconds} s at 16 kHz, 128 bins",
        {"torch": reference, "ours, NumPy": lambda: whisper_log_mel(wave), "ours, JAX": in_jax},
        [
            Comparison(label.format("NumPy"), "torch", "ours, NumPy", aim=8),
            Comparison(label.format("JAX"), "torch", "ours, JAX", aim=8),
        ],
        max(difference(mel, expected) for mel in (whisper_log_mel(wave), in_jax()[0][0])),
    )


def resampling(sizes: Sizes) -> Case:
    """Compare windowed-sinc resampling, which precedes the log-mel."""
    wave = 0.1 * normal(0, sizes.clip_seconds * 48000)
    reference = call_torch(counterparts.sinc_resample, wave, 48000, 16000)
    ours = functools.partial(resample, wave, 48000, 16000)
    return Case(
        f"{sizes.clip_seconds} s, 48 to 16 kHz",
        {"torch": reference, "ours": ours},
        [Comparison("resampling, NumPy", "torch", "ours")],
        difference(ours(), reference()),
    )


def encoder(sizes: Sizes) -> Case:
    """Compare the audio encoder with transformers' Whisper encoder."""
    frames = 100 * sizes.clip_seconds
    size = dataclasses.replace(sizes.encoder, max_positions=frames // 2)
    config = BaichuanAudioConfig(audio_encoder=size)
    variables = draw_variables(config)
    weights = torch_weights(variables, encoder_table.whisper_rows(size, "encoder"))
    module = load(counterparts.whisper_encoder(size, frames), select(weights, "encoder."))
    mel_BTM = normal(1, 1, frames, size.mel_bins)
    run = functools.partial(
        BaichuanAudio(config).apply, method=lambda m, *args: m.audio_encoder(*args)[0]
    )
    ours = call_jitted(run, variables, mel_BTM, np.array([frames]))
    mel_BMT = torch.from_numpy(mel_BTM).transpose(1, 2).contiguous()
    reference = call_torch(lambda: module(mel_BMT).last_hidden_state)
    return Case(
        f"{size.layers} layers, width {size.width}, {sizes.clip_seconds} s",
        {"torch": reference, "ours": ours},
        [Comparison("audio encoder (transformers' Whisper)", "torch", "ours", aim=0.7)],
        difference(ours(), reference()),
    )


def quantizer(sizes: Sizes) -> Case:
    """Compare residual quantization of pooled features."""
    width, frames = sizes.quantizer_width, 25 * sizes.clip_seconds // 2
    config = BaichuanAudioConfig(vq_bridge=VQBridgeConfig(width // 4, 4, sizes.codebooks))
    variables = draw_variables(config)
    weights = torch_weights(variables, rows_for(config))
    weights = select(weights, "audio_tokenizer.audio_bridge_model.")
    module = load(
        counterparts.ResidualQuantizer(sizes.codebooks, width),
        {name: value for name, value in weights.items() if name.startswith("vq_list.")},
    )
    z_BNE = normal(2, 1, frames, width)
    run = functools.partial(
        BaichuanAudio(config).apply,
        method=lambda m, *args: m.vq_bridge.quantize(*args).codes_BNQ,
    )
    # XLA drops the variables that quantization does not use.
    ours = call_jitted(run, variables, z_BNE, np.array([frames]))
    reference = call_torch(module, z_BNE[0])
    rows = f"{len(sizes.codebooks)} codebooks, {sum(sizes.codebooks)} rows of {width}"
    return Case(
        f"{rows}, {frames} frames",
        {"torch": reference, "ours": ours},
        [Comparison("residual quantiser", "torch", "ours")],
        difference(ours()[0], reference()),
    )


def llm(sizes: Sizes) -> Case:
    """Compare prefill and greedy decoding with a cache with transformers' Qwen2."""
    size = sizes.llm
    config = BaichuanAudioConfig(llm=size)
    variables = draw_variables(config)
    module = load(
        counterparts.qwen2(size),
        torch_weights(variables, llm_table.rows(dataclasses.replace(size, qkv_packed=False))),
    )
    ids_BL = np.random.default_rng(3).integers(0, size.vocab_size, (1, sizes.prompt))
    model = BaichuanAudio(config)
    capacity = sizes.prompt + sizes.new_tokens

    def step(m: BaichuanAudio, ids_BL, cache, fresh: bool):
        hidden, cache = m.hidden(ids_BL, cache=cache, fresh=fresh)
        return m.text_logits(hidden[:, -1]), cache

    def prefill(variables, ids_BL):
        cache = init_cache(size, ids_BL.shape[0], capacity, jnp.float32)
        return model.apply(variables, ids_BL, cache, True, method=step)

    def decode(variables, token_B, cache):
        def body(carry, _):
            token_B, cache = carry
            logits, cache = model.apply(variables, token_B[:, None], cache, False, method=step)
            token_B = jnp.argmax(logits, axis=-1)
            return (token_B, cache), token_B

        return jax.lax.scan(body, (token_B, cache), length=sizes.new_tokens)[1]

    our_prefill = call_jitted(prefill, variables, ids_BL)
    logits, cache = our_prefill()
    our_decode = call_jitted(decode, variables, jnp.argmax(logits, axis=-1), cache)

    prompt = torch.from_numpy(ids_BL)

    def torch_prefill():
        return module(prompt, use_cache=True, logits_to_keep=1)

    with torch.inference_mode():
        prefilled = torch_prefill()
    first = prefilled.logits[:, -1].argmax(-1)

    def torch_decode():
        cache, token, tokens = copy.deepcopy(prefilled.past_key_values), first, []
        for _ in range(sizes.new_tokens):
            logits = module(token[:, None], past_key_values=cache, use_cache=True).logits
            token = logits[:, -1].argmax(-1)
            tokens.append(token)
        return torch.stack(tokens)

    shape = f"{size.layers} layers, width {size.width}, vocabulary {size.vocab_size}"
    return Case(
        f"{shape}; prompt {sizes.prompt}, {sizes.new_tokens} new tokens",
        {
            "torch prefill": call_torch(torch_prefill),
            "our prefill": our_prefill,
            "torch decode": call_torch(torch_decode),
            "our decode": our_decode,
        },
        [
            Comparison("LLM prefill (transformers' Qwen2)", "torch prefill", "our prefill"),
            Comparison("LLM decode with cache", "torch decode", "our decode"),
        ],
        max(
            difference(logits, prefilled.logits[:, -1]),
            difference(our_decode(), call_torch(torch_decode)()),
        ),
    )


def head(sizes: Sizes) -> Case:
    """Compare a frame's codes, by the naive algorithm and with a cache over the depth."""
    size = sizes.head
    config = BaichuanAudioConfig(
        audio_head=size, audio_embed=AudioEmbedConfig(size.width, size.codebook_sizes)
    )
    variables = draw_variables(config)
    weights = torch_weights(variables, rows_for(config))
    state = select(weights, "audio_head.")
    for name, value in select(weights, "model.audio_embed_layers.").items():
        state[f"audio_embed_layers.{name}"] = value
    module = load(counterparts.AudioHead(size.width, size.layers, size.codebook_sizes), state)
    hidden = normal(4, 1, size.width)
    model = BaichuanAudio(config)

    def choose(q: int, logits_XV):
        return jnp.argmax(logits_XV if q == 0 else logits_XV[:, :-1], axis=-1)

    @jax.jit
    def predict_code(variables, hidden_XD, codes_XQ, q):
        logits = model.apply(variables, hidden_XD, codes_XQ, method="audio_logits")
        predicted = jnp.stack([choose(i, a) for i, a in enumerate(logits)], axis=-1)
        return codes_XQ.at[:, q].set(predicted[:, q])

    def naive():
        # A compiled pass over all depths for each code, so that none is optimised away.
        codes_XQ = jnp.zeros((1, size.depth), jnp.int32)
        for q in range(size.depth):
            codes_XQ = predict_code(variables, jnp.asarray(hidden), codes_XQ, q)
        return jax.block_until_ready(codes_XQ)

    cached = functools.partial(
        model.apply, method=lambda m, hidden_XD: m.generate_frame(hidden_XD, choose)
    )
    our_cached = call_jitted(cached, variables, hidden)
    torch_naive = call_torch(module.naive_frame, hidden)
    with torch.inference_mode():
        slices = module.slice_depths()
    torch_cached = call_torch(module.cached_frame, hidden, slices)
    expected = torch_naive()
    results = (our_cached(), naive(), torch_cached())
    evaluations = size.depth**2
    return Case(
        f"{size.layers} layers, width {size.width}, depth {size.depth}, batch 1",
        {
            "torch naive": torch_naive,
            "torch cached": torch_cached,
            "ours naive": naive,
            "ours cached": our_cached,
        },
        [
            Comparison(f"head, naive ({evaluations} depths)", "torch naive", "ours naive"),
            Comparison(f"head, cached ({size.depth} depths)", "torch cached", "ours cached"),
            Comparison("head, our cached / torch naive", "torch naive", "ours cached", aim=5),
            Comparison("head, our cached / our naive", "ours naive", "ours cached", aim=5),
        ],
        max(difference(codes, expected) for codes in results),
    )


def unet(sizes: Sizes) -> Case:
    """Compare a velocity estimate for the guided pair."""
    size = sizes.unet
    config = BaichuanAudioConfig(flow_unet=size)
    variables = draw_variables(config)
    prefix = "audio_tokenizer.audio_flow_matching_decoder.conditional_decoder."
    module = load(
        counterparts.FlowUNet(
            size.mel_bins, size.channels, size.mid_blocks, size.blocks, size.heads, size.head_dim
        ),
        select(torch_weights(variables, rows_for(config)), prefix),
    )
    frames = 50 * sizes.clip_seconds
    x_BTM, mu_BTM = normal(5, 2, frames, size.mel_bins), normal(6, 2, frames, size.mel_bins)
    t_B, lengths_B = np.full(2, 0.3, np.float32), np.full(2, frames)
    run = functools.partial(BaichuanAudio(config).apply, method=lambda m, *args: m.flow_unet(*args))
    ours = call_jitted(run, variables, x_BTM, mu_BTM, t_B, lengths_B)
    x_BMT, mu_BMT = (np.ascontiguousarray(a.transpose(0, 2, 1)) for a in (x_BTM, mu_BTM))
    reference = call_torch(module, x_BMT, mu_BMT, t_B, lengths_B)
    return Case(
        f"{size.channels} channels, {size.mid_blocks + 2} blocks, 2 x {frames} frames",
        {"torch": reference, "ours": ours},
        [Comparison("flow U-Net, one step", "torch", "ours", aim=1)],
        difference(ours(), reference().transpose(1, 2)),
    )


def vocoder(sizes: Sizes) -> Case:
    """Compare mel to waveform; both sides draw new noise in every call."""
    size = sizes.vocoder
    config = BaichuanAudioConfig(vocoder=size)
    variables = draw_variables(config)
    # A voiced pitch: random weights predict almost none.
    classifier = variables["params"]["vocoder"]["f0_predictor"]["classifier"]
    classifier["bias"] = classifier["bias"] + 120.0
    module = load(
        counterparts.Vocoder(size.mel_bins, size.base_channels, size.f0_channels),
        counterparts.fold_weight_norm(torch_weights(variables, rows_for(config))),
    )
    frames = 50 * sizes.clip_seconds
    samples, harmonics = frames * size.frame_samples, size.harmonics + 1
    mel_BTM, lengths_B = normal(7, 1, frames, size.mel_bins), np.array([frames])
    mel_BMT = torch.from_numpy(mel_BTM).transpose(1, 2).contiguous()

    def run(m: BaichuanAudio, mel_BTM, lengths_B, key):
        return (m.vocoder.f0(mel_BTM, lengths_B), *m.vocoder(mel_BTM, lengths_B, key))

    def draw_and_run():
        phase = (torch.rand(1, harmonics, 1) * 2 - 1) * torch.pi
        phase[:, 0] = 0
        return module(mel_BMT, phase, torch.randn(1, harmonics, samples))

    apply = functools.partial(BaichuanAudio(config).apply, method=run)
    ours = call_jitted(apply, variables, mel_BTM, lengths_B, jax.random.key(0))
    # Compared part by part, since the two sides draw different noise.
    f0, wave, source = ours()
    expected_f0 = call_torch(module.f0_predictor, mel_BMT)()
    expected_wave = call_torch(module.decode, mel_BMT, np.array(source)[..., 0])()
    return Case(
        f"{size.base_channels} channels, {sizes.clip_seconds} s",
        {"torch": call_torch(draw_and_run), "ours": ours},
        [Comparison("vocoder", "torch", "ours", aim=1)],
        max(difference(f0, expected_f0), difference(wave, expected_wave)),
    )


CASES: dict[str, Callable[[Sizes], Case]] = {
    "mel": front_end,
    "resample": resampling,
    "encoder": encoder,
    "rvq": quantizer,
    "llm": llm,
    "head": head,
    "unet": unet,
    "vocoder": vocoder,
}
