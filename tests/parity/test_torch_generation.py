"""The benchmark's PyTorch side generates what the reference does (tiny golden values)."""

import json
import pathlib

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.torch_generation import Conversation, SpeakingModel

TINY = pathlib.Path(__file__).resolve().parents[1] / "data" / "tiny"


def test_golden():
    config = json.loads((TINY / "config.json").read_text())
    audio = config["audio_config"]
    model = SpeakingModel(
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        inner=config["intermediate_size"],
        codebook_sizes=tuple(audio["vq_config"]["codebook_sizes"]),
        head_layers=audio["audio_head_transformer_layers"],
        audio_pad=audio["audio_pad_token_id"],
        rope_theta=config["rope_theta"],
    )
    shards = [load_file(path) for path in sorted(TINY.glob("*.safetensors"))]
    weights = {name: value.float() for shard in shards for name, value in shard.items()}
    model.load({k: v for k, v in weights.items() if not k.startswith("audio_tokenizer.")})
    with np.load(TINY / "golden.npz") as file:
        golden = {name: file[name] for name in file.files if name.startswith(("greedy", "mixed"))}
    ids = torch.from_numpy(golden["greedy_prompt"].astype(np.int64))
    heard = ids == audio["audio_pad_token_id"]
    codes = torch.zeros(len(ids), golden["mixed_codes"].shape[1], dtype=torch.long)
    codes[heard] = torch.from_numpy(golden["mixed_codes"][: int(heard.sum())].astype(np.int64))
    with torch.inference_mode():
        conversation = Conversation(model, ids, codes)
        text = conversation.write(len(golden["greedy_text"]))
        frames = conversation.speak(len(golden["greedy_audio"]), audio["audiogen_start_token_id"])
    np.testing.assert_array_equal(text, golden["greedy_text"])
    np.testing.assert_array_equal(frames, golden["greedy_audio"])
