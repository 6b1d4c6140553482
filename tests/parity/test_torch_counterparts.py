"""The benchmarks' PyTorch counterparts compute the reference's function (tiny golden values).

A ratio of times means nothing if the two sides compute different things.
"""

import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.audio_utils import mel_filter_bank

from benchmarks import torch_counterparts as counterparts

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
TINY = DATA / "tiny"
CONFIG = json.loads((TINY / "config.json").read_text())
SIZES = tuple(CONFIG["audio_config"]["vq_config"]["codebook_sizes"])
TOLERANCE = 1e-4  # of the golden's peak


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def golden():
    with np.load(TINY / "golden.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.fixture(scope="module")
def weights():
    shards = [load_file(path) for path in sorted(TINY.glob("*.safetensors"))]
    return {name: value.float() for shard in shards for name, value in shard.items()}


def under(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE):
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_residual_quantizer(golden, weights):
    bridge = under(weights, "audio_tokenizer.audio_bridge_model.")
    quantizer = counterparts.ResidualQuantizer(SIZES, 4 * CONFIG["audio_config"]["d_model"])
    quantizer.load_state_dict({k: v for k, v in bridge.items() if k.startswith("vq_list")})
    pairs = zip(golden["bridge_out"], golden["bridge_len"], strict=True)
    features = torch.cat([item[:length] for item, length in pairs])
    assert torch.equal(quantizer(features), golden["codes"].long())


@pytest.fixture(scope="module")
def audio_head(weights):
    layers = CONFIG["audio_config"]["audio_head_transformer_layers"]
    head = counterparts.AudioHead(CONFIG["hidden_size"], layers, SIZES)
    state = under(weights, "audio_head.")
    for name, value in under(weights, "model.audio_embed_layers.").items():
        state[f"audio_embed_layers.{name}"] = value
    head.load_state_dict(state)
    return head


def test_audio_head(golden, audio_head):
    logits = audio_head.logits(golden["mixed_last_hidden"], golden["head_tokens"].long())
    for i, actual in enumerate(logits):
        assert_close(actual, golden[f"head_logits_{i}"])


def test_cached_audio_head_gives_the_naive_codes(golden, audio_head):
    hidden = golden["mixed_last_hidden"]
    cached = audio_head.cached_frame(hidden, audio_head.slice_depths())
    assert torch.equal(cached, audio_head.naive_frame(hidden))


def test_flow_unet(golden, weights):
    flow = CONFIG["flow_matching_config"]
    unet = counterparts.FlowUNet(
        flow["in_channels"],
        flow["channels"][0],
        flow["num_mid_blocks"],
        flow["n_blocks"],
        flow["num_heads"],
        flow["attention_head_dim"],
    )
    prefix = "audio_tokenizer.audio_flow_matching_decoder.conditional_decoder."
    unet.load_state_dict(under(weights, prefix))
    lengths = golden["flow_len"]
    t = torch.full((len(lengths),), float(golden["estimator_t"].flatten()[0]))
    noise, mu = golden["flow_noise"], golden["flow_mu"].transpose(1, 2)
    mask = (torch.arange(noise.shape[-1])[None] < lengths[:, None])[:, None]
    assert_close(unet(noise, mu, t, lengths) * mask, golden["estimator_out"] * mask)


def test_vocoder(golden):
    sizes = json.loads((TINY / "vocoder_config.json").read_text())
    vocoder = counterparts.Vocoder(80, sizes["base_channels"], sizes["f0_channels"])
    state = torch.load(TINY / "hift.pt", weights_only=True)
    vocoder.load_state_dict(counterparts.fold_weight_norm(state))
    mel, phase = golden["voc_mel"], golden["voc_phase"]
    f0 = vocoder.f0_predictor(mel)
    source = vocoder.source(f0, phase, torch.zeros(mel.shape[0], 9, 480 * mel.shape[2]))
    assert_close(f0, golden["voc_f0"])
    assert_close(source, golden["voc_source"][:, 0])
    assert_close(vocoder.decode(mel, golden["voc_source"][:, 0]), golden["voc_wav"])


def test_front_end():
    with np.load(DATA / "frontend.npz") as file:
        data = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    filters = mel_filter_bank(201, 128, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    mel = counterparts.whisper_mel(
        data["wave16"].flatten(), torch.from_numpy(filters).float(), torch.hann_window(400)
    )
    assert_close(mel, data["whisper_mel"])
    wave, rate = data["wave"].flatten(), int(data["sample_rate"])
    for new_rate, name in ((16000, "wave16"), (24000, "wave24")):
        resampled = counterparts.sinc_resample(wave, rate, new_rate)
        assert_close(resampled, data[name].flatten())
