"""Malformed and unsupported models: each one typed exception that names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from reference import models, tiny
from reference.layers import Array
from reference.loading import load

from slicellm import _core

LLAMA = tiny.CASES["llama"]
MISSING = object()  # removes the key

FORMAT, UNSUPPORTED = _core.FormatError, _core.Unsupported


def refused(
    path: Path,
    kind: type[_core.Error],
    names: str,
    config: dict[str, Any],
    tensors: dict[str, Array],
) -> None:
    config = {key: value for key, value in config.items() if value is not MISSING}
    tiny.write_directory(path, config, tensors)
    with pytest.raises(_core.Error) as caught:
        load(path)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert names in message
    assert "\n" not in message and len(message) < 400, message
    assert ": got " in message and ", expected " in message


def scaling(**values: Any) -> dict[str, Any]:
    return {"rope_scaling": values}


LLAMA_CONFIGS: list[tuple[dict[str, Any], type[_core.Error], str]] = [
    ({"model_type": "mixtral"}, UNSUPPORTED, "model_type"),
    ({"model_type": "qwen2_moe"}, UNSUPPORTED, "model_type"),
    ({"model_type": "deepseek_v3"}, UNSUPPORTED, "model_type"),
    ({"model_type": "gpt2"}, UNSUPPORTED, "model_type"),
    ({"model_type": MISSING}, FORMAT, "model_type"),
    ({"model_type": ["llama"]}, UNSUPPORTED, "model_type"),
    ({"num_local_experts": 8}, UNSUPPORTED, "num_local_experts"),
    ({"model_type": "chatglm"}, FORMAT, "transformer."),
    ({"hidden_size": -1}, FORMAT, "hidden_size"),
    ({"hidden_size": 0}, FORMAT, "hidden_size"),
    ({"hidden_size": 10**12}, FORMAT, "hidden_size"),
    ({"hidden_size": 2**32 + 60}, FORMAT, "hidden_size"),
    ({"hidden_size": "sixty"}, FORMAT, "hidden_size"),
    ({"hidden_size": 60.5}, FORMAT, "hidden_size"),
    ({"hidden_size": 66}, FORMAT, "model.embed_tokens.weight"),
    ({"num_hidden_layers": -2}, FORMAT, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, FORMAT, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, FORMAT, "num_hidden_layers"),
    ({"num_hidden_layers": 3}, FORMAT, "model.layers.2."),
    ({"num_attention_heads": MISSING}, FORMAT, "num_attention_heads"),
    ({"num_attention_heads": 0}, FORMAT, "num_attention_heads"),
    ({"num_attention_heads": 2**31}, FORMAT, "num_attention_heads"),
    ({"num_attention_heads": 5}, FORMAT, "_proj.weight"),
    ({"num_key_value_heads": 2}, FORMAT, "num_key_value_heads"),
    ({"num_key_value_heads": -1}, FORMAT, "num_key_value_heads"),
    ({"num_key_value_heads": 3}, FORMAT, "k_proj.weight"),
    ({"head_dim": 15}, FORMAT, "head_dim"),
    ({"head_dim": -20}, FORMAT, "head_dim"),
    ({"head_dim": 10**6}, FORMAT, "head_dim"),
    ({"vocab_size": 50}, FORMAT, "model.embed_tokens.weight"),
    ({"vocab_size": 2**63}, FORMAT, "vocab_size"),
    ({"intermediate_size": 71}, FORMAT, "gate_proj.weight"),
    ({"intermediate_size": -71}, FORMAT, "intermediate_size"),
    ({"rms_norm_eps": -1e-5}, FORMAT, "rms_norm_eps"),
    ({"rms_norm_eps": 7}, FORMAT, "rms_norm_eps"),
    ({"rms_norm_eps": "tiny"}, FORMAT, "rms_norm_eps"),
    ({"rope_theta": 0}, FORMAT, "rope_theta"),
    ({"rope_theta": -10000.0}, FORMAT, "rope_theta"),
    ({"rope_theta": 1e300}, FORMAT, "rope_theta"),
    (scaling(rope_type="longrope", factor=2.0), UNSUPPORTED, "longrope"),
    (scaling(type="mrope"), UNSUPPORTED, "rope_scaling.type"),
    (scaling(rope_type="linear"), FORMAT, "rope_scaling.factor"),
    (scaling(rope_type="linear", factor=-4.0), FORMAT, "rope_scaling.factor"),
    (scaling(rope_type="dynamic", factor=1e30), FORMAT, "rope_scaling.factor"),
    (scaling(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0),
     FORMAT, "high_freq_factor"),
    (scaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=0),
     FORMAT, "original_max_position_embeddings"),
    (scaling(rope_type="yarn", factor=4.0, attention_factor=-1.0), FORMAT, "attention_factor"),
    ({"rope_scaling": "linear"}, FORMAT, "rope_scaling"),
    ({"rope_scaling": [2.0]}, FORMAT, "rope_scaling"),
    ({"rope_parameters": "{'rope_theta': {}}"}, FORMAT, "rope_parameters"),
    ({"rope_parameters": "{'rope_theta'}"}, FORMAT, "rope_parameters"),
    ({"rope_parameters": "{'rope_theta': -1}"}, FORMAT, "rope_parameters.rope_theta"),
    ({"partial_rotary_factor": 0.5}, UNSUPPORTED, "partial_rotary_factor"),
    ({"max_position_embeddings": -5}, FORMAT, "max_position_embeddings"),
    ({"max_position_embeddings": 2**40}, FORMAT, "max_position_embeddings"),
    ({"hidden_act": "gelu"}, UNSUPPORTED, "hidden_act"),
    ({"attention_bias": True}, FORMAT, "q_proj.bias"),
    ({"mlp_bias": True}, FORMAT, "gate_proj.bias"),
    ({"attention_bias": "perhaps"}, FORMAT, "attention_bias"),
    ({"sliding_window": -1}, FORMAT, "sliding_window"),
    ({"sliding_window": 0}, FORMAT, "sliding_window"),
    ({"eos_token_id": "two"}, FORMAT, "eos_token_id"),
    ({"eos_token_id": [2, -5]}, FORMAT, "eos_token_id"),
    ({"bos_token_id": 2**40}, FORMAT, "bos_token_id"),
    ({"model_type": "qwen2"}, FORMAT, "q_proj.bias"),
]  # fmt: skip


@pytest.mark.parametrize("changes, kind, names", LLAMA_CONFIGS)
def test_llama_configurations(
    changes: dict[str, Any], kind: type[_core.Error], names: str, tmp_path: Path
) -> None:
    refused(tmp_path, kind, names, {**LLAMA, **changes}, tiny.weights(LLAMA))


CHATGLM_CONFIGS: list[tuple[str, dict[str, Any], type[_core.Error], str]] = [
    ("chatglm1", {"num_attention_heads": 7}, FORMAT, "num_attention_heads"),
    ("chatglm1", {"num_attention_heads": 2}, FORMAT, "num_attention_heads"),
    ("chatglm1", {"position_encoding_2d": False}, UNSUPPORTED, "position_encoding_2d"),
    ("chatglm1", {"layernorm_epsilon": -1}, FORMAT, "layernorm_epsilon"),
    ("chatglm1", {"num_layers": 5}, FORMAT, "transformer.layers.2."),
    ("chatglm1", {"inner_hidden_size": 100}, FORMAT, "dense_h_to_4h.weight"),
    ("chatglm1", {"max_sequence_length": 0}, FORMAT, "max_sequence_length"),
    ("chatglm2", {"kv_channels": 10}, FORMAT, "kv_channels"),
    ("chatglm2", {"kv_channels": 40}, FORMAT, "query_key_value.weight"),
    ("chatglm2", {"multi_query_group_num": 3}, FORMAT, "multi_query_group_num"),
    ("chatglm2", {"multi_query_group_num": -2}, FORMAT, "multi_query_group_num"),
    ("chatglm2", {"multi_query_attention": False}, FORMAT, "query_key_value.weight"),
    ("chatglm2", {"rmsnorm": False}, UNSUPPORTED, "rmsnorm"),
    ("chatglm2", {"post_layer_norm": False}, UNSUPPORTED, "post_layer_norm"),
    ("chatglm2", {"apply_residual_connection_post_layernorm": True}, UNSUPPORTED, "residual"),
    ("chatglm2", {"rope_ratio": 0}, FORMAT, "rope_ratio"),
    ("chatglm2", {"seq_length": 10**18}, FORMAT, "seq_length"),
    ("chatglm2", {"add_bias_linear": True}, FORMAT, "dense.bias"),
    ("chatglm2", {"padded_vocab_size": 100}, FORMAT, "word_embeddings.weight"),
]


@pytest.mark.parametrize("family, changes, kind, names", CHATGLM_CONFIGS)
def test_chatglm_configurations(
    family: str, changes: dict[str, Any], kind: type[_core.Error], names: str, tmp_path: Path
) -> None:
    config = models.FAMILIES[family]
    refused(tmp_path, kind, names, {**config, **changes}, tiny.weights(config))


Q = "model.layers.1.self_attn.q_proj.weight"
TENSORS: list[tuple[str, Any, str]] = [
    (Q, lambda w: w.T[:, :59], Q),
    (Q, lambda w: w.reshape(-1), Q),
    (Q, lambda w: w.reshape(2, 30, 60), Q),
    (Q, lambda w: np.full_like(w, np.nan), Q),
    (Q, None, Q),
    ("model.norm.weight", lambda w: w[:-1], "model.norm.weight"),
    ("model.norm.weight", lambda w: w.reshape(1, -1), "model.norm.weight"),
    ("model.embed_tokens.weight", lambda w: w.reshape(-1), "model.embed_tokens.weight"),
    ("model.embed_tokens.weight", None, "model.embed_tokens.weight"),
    ("model.layers.0.mlp.up_proj.weight", lambda w: w[:-1], "up_proj.weight"),
    ("lm_head.weight", None, "lm_head.weight"),
    ("lm_head.weight", lambda w: w[:100], "lm_head.weight"),
]


@pytest.mark.parametrize("name, change, names", TENSORS)
def test_tensors(name: str, change: Any, names: str, tmp_path: Path) -> None:
    """Shapes that contradict the configuration, missing tensors, values that are not numbers."""
    tensors = tiny.weights(LLAMA)
    value = tensors.pop(name)
    if change:
        tensors[name] = np.ascontiguousarray(change(value))
    refused(tmp_path, FORMAT, names, LLAMA, tensors)


def test_bias_of_wrong_length(tmp_path: Path) -> None:
    config = tiny.CASES["qwen2"]
    tensors = tiny.weights(config)
    name = "model.layers.0.self_attn.k_proj.bias"
    tensors[name] = tensors[name][:-1]
    refused(tmp_path, FORMAT, name, config, tensors)


def flm(path: Path, config: dict[str, Any], tensors: dict[str, Array], **options: Any) -> Path:
    text = {key: str(value) for key, value in config.items()}
    return tiny_models.write_flm(path / "model.flm", text, [], tensors, **options)


def test_parts_of_different_dtypes_are_refused(tmp_path: Path) -> None:
    tensors = tiny.weights(LLAMA)
    tensors[Q] = tensors[Q].astype(np.float16)
    path = flm(tmp_path, LLAMA, tensors)
    with pytest.raises(_core.Unsupported, match=r"k_proj.weight: got float32, expected float16"):
        load(path)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("count, guess", [(64000, "baichuan"), (106072, "moss")])
def test_old_files_of_other_families(version: int, count: int, guess: str, tmp_path: Path) -> None:
    """Versions 0 and 1 name no model: it is guessed from the size of the vocabulary."""
    tokens = [(b"%x" % i, i, 0.0) for i in range(count)]
    weights = tiny.weights(tiny.CHATGLM1)
    path = tiny_models.write_flm(
        tmp_path / "old.flm", {}, tokens, weights, use_score=False, version=version
    )
    with pytest.raises(_core.Unsupported, match=f'model_type: got "{guess}"'):
        load(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    path = tiny.write_directory(tmp_path_factory.mktemp("llama"), LLAMA, tiny.weights(LLAMA))
    return load(path)


BAD_CALLS: list[tuple[list[int], Any, int, str]] = [
    ([], 0, 0, "ids"),
    ([-1], 0, 0, "ids"),
    ([tiny.VOCAB], 0, 0, "ids"),
    ([2**40], 0, 0, "ids"),
    ([1] * 65, 0, 0, "ids"),
    ([1, 2, 3], -1, 0, "chunk"),
    ([1, 2, 3], [1, 1], 0, "chunk"),
    ([1, 2, 3], [1, 1, 2], 0, "chunk"),
    ([1, 2, 3], [0, 3], 0, "chunk"),
    ([1, 2, 3], [], 0, "chunk"),
    ([1, 2, 3], [-(2**40), 3], 0, "chunk"),
    ([1, 2, 3], 0, -1, "prompt_len"),
    ([1, 2, 3], 0, 4, "prompt_len"),
]


@pytest.mark.parametrize("ids, chunk, prompt_len, field", BAD_CALLS)
def test_forward_arguments(
    llama: _core.Model, ids: list[int], chunk: Any, prompt_len: int, field: str
) -> None:
    with pytest.raises(_core.InvalidArgument) as caught:
        llama.forward(ids, chunk, prompt_len)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, kind, field",
    [
        ({"device": "cuda:99"}, UNSUPPORTED, "device"),
        ({"device": "gpu"}, _core.InvalidArgument, "device"),
        ({"device": "cuda:"}, _core.InvalidArgument, "device"),
        ({"device": "cuda:1x"}, _core.InvalidArgument, "device"),
        ({"device": "cuda:-1"}, _core.InvalidArgument, "device"),
        ({"dtype": "int3"}, _core.InvalidArgument, "dtype"),
        ({"dtype": "fp8"}, UNSUPPORTED, "dtype"),
        ({"activation": "int4"}, _core.InvalidArgument, "activation"),
        ({"kv_cache_dtype": "bfloat16"}, UNSUPPORTED, "kv_cache_dtype"),
        ({"threads": -1}, _core.InvalidArgument, "threads"),
        ({"isa": "mmx"}, _core.InvalidArgument, "isa"),
        ({"isa": "AVX2"}, _core.InvalidArgument, "isa"),
    ],
)
def test_load_options(
    llama: _core.Model, options: dict[str, Any], kind: type[_core.Error], field: str
) -> None:
    with pytest.raises(_core.Error) as caught:
        load(llama.file.path, **options)
    assert type(caught.value) is kind
    assert caught.value.field == field
