"""Qwen2.5 and Whisper folders, written by transformers, against transformers' own output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ba_jax.checkpoints import arrays
from ba_jax.convert import sources
from ba_jax.convert.export import export_checkpoint
from ba_jax.convert.importer import import_checkpoint
from ba_jax.models.baichuan_audio import BaichuanAudio


def imported(folder, out):
    """Import a folder; return (model, variables in float32)."""
    import_checkpoint(folder, out, progress=False)
    _, config = sources.checkpoint_config(out)
    return BaichuanAudio(config), arrays.load_variables(out, dtype=jnp.float32)


def randomize(model: torch.nn.Module) -> None:
    """Add noise to all parameters, so that biases are not zero and norms not one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_logits(tmp_path, tied):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        rope_theta=1e6,
        tie_word_embeddings=tied,
    )
    reference = transformers.Qwen2ForCausalLM(config).eval()
    randomize(reference)
    reference.save_pretrained(tmp_path / "qwen")
    model, variables = imported(tmp_path / "qwen", tmp_path / "out")
    assert model.config.components == ("llm",)
    assert ("lm_head" in variables["params"]["llm"]) != tied
    ids = np.random.default_rng(0).integers(0, 300, (2, 11)).astype(np.int32)
    with torch.no_grad():
        want = reference(torch.tensor(ids, dtype=torch.long)).logits.numpy()

    @jax.jit
    def logits(variables, ids):
        def run(m, ids):
            x, _ = m.llm(m.llm.embed(ids))
            return m.llm.logits(x)

        return model.apply(variables, ids, method=run)

    got = np.asarray(logits(variables, ids))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    export_checkpoint(tmp_path / "out", tmp_path / "back", progress=False)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "qwen" / name).read_bytes()


def test_whisper_encoder(tmp_path):
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=100,
        num_mel_bins=80,
        d_model=64,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=96,
        max_source_positions=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    reference = transformers.WhisperForConditionalGeneration(config).eval()
    randomize(reference)  # the position table too: a stored float32 table is used as it is
    reference.save_pretrained(tmp_path / "whisper")
    model, variables = imported(tmp_path / "whisper", tmp_path / "out")
    assert model.config.components == ("audio_encoder",)
    mel = np.random.default_rng(0).normal(size=(2, 120, 80)).astype(np.float32)
    with torch.no_grad():
        want = reference.model.encoder(torch.tensor(mel).transpose(1, 2)).last_hidden_state
    want = want.numpy()
    got, lengths = jax.jit(
        lambda v, *a: model.apply(v, *a, method=lambda m, *a: m.audio_encoder(*a))
    )(variables, mel, np.array([120, 120], np.int32))
    assert lengths.tolist() == [60, 60]
    assert np.abs(np.asarray(got) - want).max() < 1e-5 * np.abs(want).max()
