"""The assembly: Baichuan-Audio's components in one variable tree, and the passes through several.

Each component is optional: a model has those whose config is set. Its variables are
`{"params": {component: ...}, "codebook": {"vq_bridge": ...}, "buffers": {component: ...}}`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import flow_matching, layers
from ba_jax.models.audio_decoder import AudioDecoder, AudioDecoderConfig, AudioDecoderOutput
from ba_jax.models.audio_embed import AudioEmbed, AudioEmbedConfig
from ba_jax.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from ba_jax.models.audio_head import AudioHead, AudioHeadConfig
from ba_jax.models.flow_matching import FlowMatchingConfig
from ba_jax.models.flow_prenet import FlowPrenet, FlowPrenetConfig
from ba_jax.models.flow_unet import FlowUNet, FlowUNetConfig
from ba_jax.models.llm import LLM, KVCache, LLMConfig
from ba_jax.models.streaming import SCAN_AXES, Blocks, Pieces
from ba_jax.models.vocoder import Vocoder
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.models.vq_bridge import VQBridge, VQBridgeConfig
from ba_jax.vocab import COMPONENTS, AudioTokens


@dataclasses.dataclass(frozen=True)
class BaichuanAudioConfig:
    """Configs of the components; None leaves a component out."""

    audio_encoder: AudioEncoderConfig | None = None
    vq_bridge: VQBridgeConfig | None = None
    audio_decoder: AudioDecoderConfig | None = None
    flow_prenet: FlowPrenetConfig | None = None
    flow_unet: FlowUNetConfig | None = None
    vocoder: VocoderConfig | None = None
    llm: LLMConfig | None = None
    audio_embed: AudioEmbedConfig | None = None
    audio_head: AudioHeadConfig | None = None
    flow_matching: FlowMatchingConfig = FlowMatchingConfig()
    tokens: AudioTokens = AudioTokens()

    def __post_init__(self):
        for name in ("audio_encoder", "audio_decoder", "flow_prenet"):
            if (sizes := getattr(self, name)) and sizes.width % sizes.heads:
                raise ValueError(
                    f"{name}: heads = {sizes.heads} does not divide width = {sizes.width}"
                )

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components present, in the order of COMPONENTS."""
        return tuple(name for name in COMPONENTS if getattr(self, name) is not None)

    @property
    def heads(self) -> dict[str, tuple[int, int]]:
        """Component -> (query heads, key and value heads), for `sharding`."""
        heads = {}
        for name in ("audio_encoder", "audio_decoder", "flow_prenet", "flow_unet"):
            if config := getattr(self, name):
                heads[name] = (config.heads, config.heads)
        if self.llm:
            heads["llm"] = (self.llm.heads, self.llm.kv_heads)
        if self.audio_head:
            number = self.audio_head.width // self.audio_head.head_dim
            heads["audio_head"] = (number, number)
        return heads

    def only(self, *components: str) -> BaichuanAudioConfig:
        """This config with the named components alone."""
        return dataclasses.replace(
            self, **{name: None for name in COMPONENTS if name not in components}
        )


class BaichuanAudio(layers.Layer):
    """All components; call the methods through `apply(variables, ..., method=...)`.

    Attributes:
      config: configs of the components that the model has.
      dtype: compute type, float32 or bfloat16.
      param_dtype: type of initialised parameters.
      remat: policy of the scanned transformers, see `layers.REMAT_POLICIES`.
      scan: scan over layers instead of unrolling them.
      attention: implementation for the language model's packed rows, see `packed_attention`.
      quantization: kind of the products of the language model and the audio head, see `quantized`.
    """

    config: BaichuanAudioConfig
    remat: str = "none"
    scan: bool = True
    attention: str = "xla"
    quantization: str = "none"

    def setup(self):
        c = self.config
        deep = {**self.dtypes, "remat": self.remat, "scan": self.scan}
        if c.audio_encoder:
            self.audio_encoder = AudioEncoder(c.audio_encoder, **deep)
        if c.vq_bridge:
            self.vq_bridge = VQBridge(c.vq_bridge, **self.dtypes)
        if c.audio_decoder:
            self.audio_decoder = AudioDecoder(c.audio_decoder, **deep)
        if c.flow_prenet:
            self.flow_prenet = FlowPrenet(c.flow_prenet, **deep)
        if c.flow_unet:
            self.flow_unet = FlowUNet(c.flow_unet, **deep)
        if c.vocoder:
            self.vocoder = Vocoder(c.vocoder, **self.dtypes)
        if c.llm:
            options = {"attention": self.attention, "quantization": self.quantization}
            self.llm = LLM(c.llm, **deep, **options)
        if c.audio_embed:
            self.audio_embed = AudioEmbed(c.audio_embed, **self.dtypes)
        if c.audio_head:
            options = {"remat": self.remat, "quantization": self.quantization}
            self.audio_head = AudioHead(c.audio_head, **self.dtypes, **options)

    # Audio to codes and back

    def encode(
        self, mel_BTM: jax.Array, lengths_B: jax.Array, extent_B: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log-mel to codes_BNQ at 12.5 Hz and their lengths_B."""
        x, lengths_B = self.audio_encoder(mel_BTM, lengths_B, extent_B)
        z, lengths_B = self.vq_bridge.features(x, lengths_B)
        return self.vq_bridge.quantize(z, lengths_B).codes_BNQ, lengths_B

    def decode(
        self,
        codes_BNQ: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array | None = None,
        blocks: Blocks | None = None,
    ) -> AudioDecoderOutput:
        """Codes to 50 Hz features and mels; arguments as in `AudioDecoder`."""
        z = self.vq_bridge.dequantize(codes_BNQ, lengths_B)
        return self.audio_decoder(self.vq_bridge.project(z), lengths_B, extent_B, blocks)

    def decode_hidden(
        self, codes_BNQ: jax.Array, lengths_B: jax.Array, blocks: Blocks, pieces: Pieces
    ) -> tuple[jax.Array, jax.Array]:
        """Codes of pieces of segments to 50 Hz features, see `AudioDecoder.hidden`."""
        z = self.vq_bridge.project(self.vq_bridge.dequantize(codes_BNQ, lengths_B))
        return self.audio_decoder.hidden(z, lengths_B, lengths_B, blocks, pieces)

    def flow_decode(
        self,
        hidden_BTD: jax.Array,
        lengths_B: jax.Array,
        noise_BTM: jax.Array,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        blocks: Blocks | None = None,
        pieces: Pieces | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """50 Hz features to the vocoder's mel_BTM and its lengths_B, by guided Euler steps.

        Args:
          hidden_BTD, lengths_B: features, and how many are valid.
          noise_BTM: see `flow_matching.draw_noise`.
          steps, guidance: default to the config's.
          blocks: frames that a frame depends on; None: as in the reference.
          pieces: the frames are pieces of segments, see `streaming`.
        """
        flow = self.config.flow_matching
        steps = flow.steps if steps is None else steps
        guidance = flow.guidance if guidance is None else guidance
        mu, lengths_B = self.flow_prenet(hidden_BTD, lengths_B, None, blocks, pieces)
        if pieces is not None:
            copies = flow_matching.guidance_copies(guidance)
            pieces = jax.tree.map(lambda x_B: jnp.tile(x_B, copies), pieces)

        def step(unet: FlowUNet, x: jax.Array, time: tuple[jax.Array, jax.Array]):
            velocity = flow_matching.precondition(
                lambda *arrays: unet(*arrays, blocks, pieces), flow
            )
            return flow_matching.euler_step(velocity, x, time, mu, lengths_B, guidance), None

        # Lifted, so that each step of the flow has a cache of its own.
        scan = nn.scan(
            step,
            variable_broadcast="params",
            variable_axes=SCAN_AXES,
            check_constancy_invariants=False,
        )
        times = flow_matching.time_steps(steps, flow.schedule)
        mel, _ = scan(self.flow_unet, noise_BTM.astype(jnp.float32), times)
        return mel, lengths_B

    # Text and audio through the language model

    def embed(
        self,
        ids_BL: jax.Array,
        codes_BLQ: jax.Array | None,
        real_BL: jax.Array,
        codebooks: int | None = None,
    ) -> jax.Array:
        """Input embeddings (B, L, D): audio where the id is `audio_pad`, text elsewhere.

        Args:
          ids_BL: token ids; ignored where `real_BL` is false.
          codes_BLQ: codes at the audio positions, ignored elsewhere; None for text alone.
          real_BL: true at tokens that are not padding.
          codebooks: number of codebooks of a frame that are embedded; None: all.
        """
        ids_BL = jnp.where(real_BL, ids_BL, 0)
        text = self.llm.embed(ids_BL)
        if codes_BLQ is None:
            return text
        is_audio = (ids_BL == self.config.tokens.audio_pad)[:, :, None]
        audio = self.audio_embed(jnp.where(is_audio, codes_BLQ, 0), codebooks)
        return jnp.where(is_audio, audio, text)

    def hidden(
        self,
        ids_BL: jax.Array,
        codes_BLQ: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        cache: KVCache | None = None,
        *,
        fresh: bool = False,
        codebooks: int | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Normed hidden states of the language model; arguments as in `LLM` and `embed`."""
        if segments_BL is None:
            segments_BL = jnp.ones(ids_BL.shape, jnp.int32)
        x = self.embed(ids_BL, codes_BLQ, segments_BL > 0, codebooks)
        return self.llm(x, positions_BL, segments_BL, cache, fresh=fresh)

    def text_logits(self, hidden_XD: jax.Array) -> jax.Array:
        """Logits (..., V) over the text vocabulary, float32."""
        return self.llm.logits(hidden_XD)

    def audio_logits(
        self, hidden_XD: jax.Array, codes_XQ: jax.Array, depths: int | None = None
    ) -> list[jax.Array]:
        """Teacher-forced logits of the first `depths` codebooks (None: all) at X positions.

        Each position predicts a frame; see `AudioHead`.
        """
        return self.audio_head(hidden_XD, self.audio_embed.depths(codes_XQ), depths)

    def generate_frame(
        self, hidden_XD: jax.Array, choose: Callable[[int, jax.Array], jax.Array]
    ) -> jax.Array:
        """Codes (X, Q) of the next frame; `choose` as in `AudioHead.generate`."""
        return self.audio_head.generate(hidden_XD, self.audio_embed.code, choose)

    def initialize(self) -> None:
        """Use every parameter once, on inputs of the smallest valid size."""
        c = self.config
        one_B = jnp.ones((1,), jnp.int32)
        if c.audio_encoder:
            self.audio_encoder(jnp.zeros((1, 8, c.audio_encoder.mel_bins)), 8 * one_B)
        if c.vq_bridge:
            self.vq_bridge(jnp.zeros((1, c.vq_bridge.pooling, c.vq_bridge.width)), 4 * one_B)
        if c.audio_decoder:
            self.audio_decoder(jnp.zeros((1, 2, c.audio_decoder.width)), 2 * one_B)
        if c.flow_prenet:
            self.flow_prenet(jnp.zeros((1, 2, c.flow_prenet.in_width)), 2 * one_B)
        if c.flow_unet:
            mel = jnp.zeros((1, 2, c.flow_unet.mel_bins))
            self.flow_unet(mel, mel, jnp.zeros((1,)), 2 * one_B)
        if c.vocoder:
            self.vocoder(jnp.zeros((1, 2, c.vocoder.mel_bins)), 2 * one_B, jax.random.key(0))
        if c.llm:
            hidden, _ = self.llm(jnp.zeros((1, 1, c.llm.width)))
            self.llm.logits(self.llm.embed(jnp.zeros((1, 1), jnp.int32)) + hidden)
        if c.audio_embed:
            self.audio_embed(jnp.zeros((1, len(c.audio_embed.codebook_sizes)), jnp.int32))
        if c.audio_head:
            h = c.audio_head
            self.audio_head(jnp.zeros((1, h.width)), jnp.zeros((1, h.depth, h.width)))


def init_variables(
    config: BaichuanAudioConfig, key: jax.Array, param_dtype: layers.Dtype = jnp.float32
) -> dict[str, Any]:
    """Randomly initialised variables of all components."""
    model = BaichuanAudio(config, param_dtype=param_dtype)
    return model.init({"params": key}, method="initialize")


def variable_shapes(config: BaichuanAudioConfig) -> dict[str, Any]:
    """Shapes and types of all variables as ShapeDtypeStructs, without allocating them."""
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(config))  # a dict of the caller's own


@functools.cache
def _traced_shapes(config: BaichuanAudioConfig) -> dict[str, Any]:
    """Trace the initialization, which takes a second."""
    return jax.eval_shape(lambda key: init_variables(config, key), jax.random.key(0))


def parameter_counts(config: BaichuanAudioConfig) -> dict[str, int]:
    """Number of values of each component; codebooks and buffers as `collection/component`."""
    counts = {}
    for collection, components in variable_shapes(config).items():
        for name, tree in components.items():
            label = name if collection == "params" else f"{collection}/{name}"
            counts[label] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return counts


def select_variables(
    config: BaichuanAudioConfig, variables: Mapping[str, Any], components: Sequence[str]
) -> dict[str, Any]:
    """The variables of some components.

    Raises:
      ValueError: a model without one of them.
    """
    absent = [name for name in components if getattr(config, name) is None]
    if absent:
        raise ValueError(f"model without {absent}: expected {tuple(components)}")
    return {
        collection: {name: tree[name] for name in components if name in tree}
        for collection, tree in variables.items()
    }
