"""Export beside what fastllm's own writers make: names, types, configuration, vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flm_bytes
import numpy as np
import pytest
import sentencepiece
from flm_bytes import FLOAT16, FLOAT32, INT4_GROUP, Array, FlmContent, bfloat16_bits

from slicellm import FormatError, Unsupported, _core, convert
from slicellm.tokenizer_files import TokenizerFiles, find_tokenizer
from slicellm.vocabulary import make_vocabulary, normalizer_flags

RNG = np.random.default_rng
LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-05,
    "sliding_window": None,
    "eos_token_id": 2,
    "architectures": ["LlamaForCausalLM"],
}


def llama_tensors(bias: bool = False, head: bool = True) -> dict[str, Array]:
    """One layer, hidden 8, heads of 2, inner 6; odd row counts where they may be."""
    rng = RNG(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (11, 8)}
    layer = "model.layers.0."
    for name, rows in (("q", 8), ("k", 4), ("v", 4)):
        shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, 8)
        if bias:
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
    shapes[f"{layer}self_attn.o_proj.weight"] = (8, 8)
    shapes |= {f"{layer}mlp.{name}_proj.weight": (7, 8) for name in ("gate", "up")}
    shapes[f"{layer}mlp.down_proj.weight"] = (8, 7)
    shapes |= {f"{layer}input_layernorm.weight": (8,), "model.norm.weight": (8,)}
    if head:
        shapes["lm_head.weight"] = (11, 8)
    return {
        name: rng.standard_normal(shape).astype(np.float16).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_directory(
    path: Path, tensors: dict[str, Array], config: dict[str, Any], dtype: str = "F16"
) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    as_bytes = {
        "F32": lambda a: a.tobytes(),
        "F16": lambda a: a.astype(np.float16).tobytes(),
        "BF16": lambda a: bfloat16_bits(a).tobytes(),
    }[dtype]
    entries = {name: (dtype, a.shape, as_bytes(a)) for name, a in tensors.items()}
    (path / "model.safetensors").write_bytes(flm_bytes.safetensors(entries))
    return path


def export_flm(source: Path, tmp_path: Path, dtype: str = "float16") -> FlmContent:
    path = tmp_path / "out.flm"
    convert.export(str(source), str(path), dtype, threads=2)
    return flm_bytes.read_flm(path)


# ---- names and types -----------------------------------------------------------------------------
def test_llama_keeps_names_and_types_are_fastllms(tmp_path: Path) -> None:
    """Linear layers change; embeddings keep their type; norms are float32."""
    tensors = llama_tensors()
    content = export_flm(write_directory(tmp_path / "in", tensors, LLAMA), tmp_path, "int4g3")
    assert list(content.weights) == list(tensors)
    for name, decoded in content.weights.items():
        if "norm" in name or "embed" in name:
            assert decoded.code == (FLOAT32 if "norm" in name else FLOAT16)
            np.testing.assert_array_equal(decoded.values, tensors[name])
        else:
            assert decoded.code == INT4_GROUP
            quantised = _core.Weight.from_numpy(name, tensors[name]).convert("int4g3")
            np.testing.assert_array_equal(decoded.values, quantised.decode())


def test_a_tensor_of_one_number_is_written_as_such(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "model.scale": np.array(2.5, np.float32)}
    content = export_flm(write_directory(tmp_path / "in", tensors, LLAMA), tmp_path)
    np.testing.assert_array_equal(content.weights["model.scale"].values, np.float32([2.5]))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_auto_is_float16_and_float_types_are_lossless(tmp_path: Path, dtype: str) -> None:
    tensors = llama_tensors()
    if dtype == "BF16":  # few enough bits for every type
        tensors = {n: (np.round(a * 4) / 4).astype(np.float32) for n, a in tensors.items()}
    content = export_flm(write_directory(tmp_path / "in", tensors, LLAMA, dtype), tmp_path, "auto")
    for name, decoded in content.weights.items():
        np.testing.assert_array_equal(decoded.values, tensors[name])
        if name.endswith("_proj.weight"):
            assert decoded.code == FLOAT16


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4", "int4g3"])
def test_qwen2_is_merged(tmp_path: Path, dtype: str) -> None:
    """fastllm loads Qwen2 from a .flm only with q, k, v and gate, up in one matrix each."""
    tensors = llama_tensors(bias=True)
    source = write_directory(tmp_path / "in", tensors, {**LLAMA, "model_type": "qwen2"})
    content = export_flm(source, tmp_path, dtype)
    attention, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."
    rest = [
        n for n in tensors if not any(f".{p}_proj." in n for p in ("q", "k", "v", "gate", "up"))
    ]
    merged = [
        f"{attention}mergeqkv.weight",
        f"{attention}mergeqkv.bias",
        f"{mlp}gateup_proj.weight",
    ]
    assert sorted(content.weights) == sorted(rest + merged)

    def stacked(prefix: str, parts: tuple[str, ...], end: str) -> Array:
        return np.concatenate([tensors[f"{prefix}{part}_proj.{end}"] for part in parts])

    for name, array in (
        (merged[0], stacked(attention, ("q", "k", "v"), "weight")),
        (merged[2], stacked(mlp, ("gate", "up"), "weight")),
    ):
        expected = _core.Weight.from_numpy(name, array).convert(dtype).decode()
        np.testing.assert_array_equal(content.weights[name].values, expected)
    bias = content.weights[merged[1]]
    assert bias.code == FLOAT32
    np.testing.assert_array_equal(bias.values, stacked(attention, ("q", "k", "v"), "bias"))


@pytest.mark.parametrize("dtype", ["auto", "int4g3"])
def test_merged_rows_are_split_again_for_a_directory(tmp_path: Path, dtype: str) -> None:
    """Seven rows of seven 4-bit codes: parts begin inside a byte."""
    tensors = llama_tensors(bias=True)
    source = write_directory(tmp_path / "in", tensors, {**LLAMA, "model_type": "qwen2"})
    convert.export(str(source), str(tmp_path / "merged.flm"), dtype)
    convert.export(str(tmp_path / "merged.flm"), str(tmp_path / "split"), "auto")
    convert.export(str(source), str(tmp_path / "direct"), dtype)
    split = flm_bytes.read_safetensors(tmp_path / "split" / "model.safetensors")
    direct = flm_bytes.read_safetensors(tmp_path / "direct" / "model.safetensors")
    assert sorted(split) == sorted(direct) == sorted(tensors)
    for name, decoded in direct.items():
        assert split[name].code == decoded.code
        np.testing.assert_array_equal(split[name].values, decoded.values)


def test_fastllms_merged_file_as_a_directory(fixtures: Path, tmp_path: Path) -> None:
    convert.export(str(fixtures / "llamacpp-float16.flm"), str(tmp_path), "auto")
    ours = flm_bytes.read_safetensors(tmp_path / "model.safetensors")
    theirs = flm_bytes.read_safetensors(fixtures / "export_llama-float16" / "model.safetensors")
    assert sorted(ours) == sorted(theirs)
    for name, decoded in theirs.items():
        np.testing.assert_array_equal(ours[name].values, decoded.values)


def test_merging_the_qwen2_fixture_gives_fastllms_own_names(fixtures: Path, tmp_path: Path) -> None:
    content = export_flm(fixtures / "qwen2-float16.flm", tmp_path, "auto")
    theirs = flm_bytes.read_flm(fixtures / "qwen2cpp-float16.flm")
    assert sorted(content.weights) == sorted(theirs.weights)
    for name, decoded in theirs.weights.items():
        assert content.weights[name].code == decoded.code
        np.testing.assert_array_equal(content.weights[name].values, decoded.values)


@pytest.mark.parametrize("name", ["chatglm1", "chatglm2", "llama"])
def test_other_families_keep_their_names(fixtures: Path, tmp_path: Path, name: str) -> None:
    source = flm_bytes.read_flm(fixtures / f"{name}-float16.flm")
    content = export_flm(fixtures / f"{name}-float16.flm", tmp_path, "int8")
    quantised = flm_bytes.read_flm(fixtures / f"{name}-int8.flm")  # by torch2flm
    assert list(content.weights) == list(source.weights)
    assert content.config == source.config and content.tokens == source.tokens
    for weight_name, decoded in quantised.weights.items():
        assert content.weights[weight_name].code == decoded.code


def test_a_tied_head_is_written_out(tmp_path: Path) -> None:
    """fastllm finds no head otherwise."""
    tensors = llama_tensors(head=False)
    source = write_directory(tmp_path / "in", tensors, {**LLAMA, "tie_word_embeddings": True})
    embedding = tensors["model.embed_tokens.weight"]
    expected = _core.Weight.from_numpy("w", embedding).convert("int8").decode()
    convert.export(str(source), str(tmp_path / "out"), "int8")
    directory = flm_bytes.read_safetensors(tmp_path / "out" / "model.safetensors")
    for weights in (export_flm(source, tmp_path, "int8").weights, directory):
        np.testing.assert_array_equal(weights["lm_head.weight"].values, expected)
        np.testing.assert_array_equal(weights["model.embed_tokens.weight"].values, embedding)


# ---- configuration -------------------------------------------------------------------------------
def test_config_of_a_flm(tmp_path: Path) -> None:
    config = {
        **LLAMA,
        "model_type": "mistral",
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_theta": 5000.0},
        "use_cache": True,
    }
    source = write_directory(tmp_path / "in", llama_tensors(), config)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 7], "do_sample": false}')
    assert export_flm(source, tmp_path).config == {
        "model_type": "llama",  # fastllm knows no mistral
        "num_attention_heads": "4",
        "num_key_value_heads": "2",
        "tie_word_embeddings": "False",
        "rms_norm_eps": "1e-05",
        "sliding_window": "None",
        "eos_token_id": "[2, 7]",
        "architectures": '["LlamaForCausalLM"]',
        "rope_scaling.rope_type": "linear",
        "rope_scaling.type": "linear",
        "rope_scaling.factor": "2.0",
        "rope_parameters.rope_theta": "5000.0",
        "rope_theta": "5000.0",
        "use_cache": "True",
        "do_sample": "False",
    }


def test_config_json_of_a_directory(fixtures: Path, tmp_path: Path) -> None:
    """A torch2flm file's text turns into the values that the model's config.json had."""
    convert.export(str(fixtures / "llama-float16.flm"), str(tmp_path), "auto")
    ours = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((fixtures / "export_llama-float16" / "config.json").read_text())
    assert {key: ours[key] for key in theirs} == theirs
    assert not [key for key in ours if key.startswith(("tokenizer_", "slicellm", "_"))]


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "gpt2", ""])
def test_other_families_are_refused(tmp_path: Path, model_type: str) -> None:
    source = write_directory(tmp_path / "in", llama_tensors(), {"model_type": model_type})
    with pytest.raises(Unsupported, match="model_type: got .*, expected llama, mistral, qwen2"):
        export_flm(source, tmp_path)
    assert not (tmp_path / "out.flm").exists()


def test_adapters_are_refused(tmp_path: Path) -> None:
    path = flm_bytes.Flm(adapters=[("lora", [])]).write(tmp_path / "in.flm")
    with pytest.raises(Unsupported, match="peft_size.*merged"):
        export_flm(path, tmp_path)


def test_nan_in_a_linear_layer_names_it(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.0.mlp.down_proj.weight"][3, 2] = np.nan
    source = write_directory(tmp_path / "in", tensors, LLAMA)
    with pytest.raises(FormatError, match="model.layers.0.mlp.down_proj.weight: got NaN"):
        export_flm(source, tmp_path, "int4")
    assert not (tmp_path / "out.flm").exists()


def test_progress_counts_bytes_read(tmp_path: Path) -> None:
    tensors = llama_tensors()
    source = write_directory(tmp_path / "in", tensors, LLAMA)
    seen: list[tuple[int, int]] = []
    convert.export(str(source), str(tmp_path / "o"), "int8", 1, lambda *at: seen.append(at))
    total = sum(2 * array.size for array in tensors.values())
    assert seen == sorted(seen) and len(seen) == len(tensors) and seen[-1] == (total, total)


# ---- tokenizers ----------------------------------------------------------------------------------
def test_sentencepiece_vocabulary_is_torch2flms(fixtures: Path, tmp_path: Path) -> None:
    content = export_flm(fixtures / "export_llama-float16", tmp_path)
    theirs = flm_bytes.read_flm(fixtures / "llama-float16.flm")
    assert content.tokens == theirs.tokens and content.specials == theirs.specials
    for key in ("tokenizer_add_dummy_prefix", "tokenizer_remove_extra_whitespaces"):
        assert content.config[key] == theirs.config[key]


def test_chatglm1_vocabulary_is_torch2flms(fixtures: Path) -> None:
    model = (fixtures / "sp_unigram.model").read_bytes()
    theirs = flm_bytes.read_flm(fixtures / "chatglm1-float16.flm")
    plain = make_vocabulary(
        TokenizerFiles("test", tokenizer_model=model, config={"num_image_tokens": 0}), "chatglm1"
    )
    assert plain.tokens == theirs.tokens
    shifted = make_vocabulary(TokenizerFiles("test", tokenizer_model=model), "chatglm1")
    assert shifted.tokens == [(text, i + 20000, score) for text, i, score in theirs.tokens]


def test_byte_level_vocabulary_is_torch2flms(fixtures: Path) -> None:
    theirs = flm_bytes.read_flm(fixtures / "qwen2-float16.flm")
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": "{{ m }}<|im_end|>",
    }
    text = (fixtures / "qwen2_tokenizer.json").read_text()
    files = TokenizerFiles("test", tokenizer_json=text, config=config)
    ours = make_vocabulary(files, "qwen2")
    assert ours.tokens == sorted(theirs.tokens, key=lambda token: token[1])
    assert ours.special_tokens[:3] == theirs.specials[:3]
    assert sorted(ours.special_tokens) == sorted(theirs.specials)
    assert ours.config["tokenizer_byte_as_char"] == theirs.config["tokenizer_byte_as_char"]
    assert ours.config["tokenizer_add_dummy_prefix"] == theirs.config["tokenizer_add_dummy_prefix"]


def test_unigram_json_keeps_scores_and_pairs_may_be_lists() -> None:
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["\u2581a", -2.5]]}}
    files = TokenizerFiles("test", tokenizer_json=json.dumps(unigram))
    assert make_vocabulary(files, "llama").tokens == [
        (b"<unk>", 0, 0.0),
        ("\u2581a".encode(), 1, -2.5),
    ]
    bpe = {
        "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        "added_tokens": [{"id": 3, "content": "<s>"}],
        "normalizer": {"normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
    }
    words = make_vocabulary(TokenizerFiles("test", tokenizer_json=json.dumps(bpe)), "llama")
    assert words.tokens == [(b"a", 0, 1.0), (b"b", 1, 1.0), (b"ab", 2, 0.0), (b"<s>", 3, 1.0)]
    assert words.config["tokenizer_add_dummy_prefix"] == "True"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"model": {"vocab": 3}}', "{", '{"model": {"vocab": {"a": null}}}']
)
def test_broken_tokenizer_json(text: str) -> None:
    with pytest.raises(FormatError, match="tokenizer.json: got another layout"):
        make_vocabulary(TokenizerFiles("test", tokenizer_json=text), "llama")


@pytest.mark.parametrize(
    "vocab, value",
    [
        ({"a": -1}, "id -1"),
        ({"a": 1 << 31}, "id 2147483648"),
        ({"\ud800": 1}, "half of a surrogate pair"),
        ([["a", float("inf")]], "score inf"),
    ],
)
def test_tokens_that_no_flm_can_hold(vocab: Any, value: str) -> None:
    files = TokenizerFiles("test", tokenizer_json=json.dumps({"model": {"vocab": vocab}}))
    with pytest.raises(FormatError, match=f"tokenizer of test: got .*{value}"):
        make_vocabulary(files, "llama")


@pytest.mark.parametrize("config", [{"num_image_tokens": "x"}, {"chat_template": "\udc00"}])
def test_broken_tokenizer_config(fixtures: Path, config: dict[str, Any]) -> None:
    model = (fixtures / "sp_unigram.model").read_bytes()
    files = TokenizerFiles("test", tokenizer_model=model, config=config)
    with pytest.raises(FormatError, match="num_image_tokens|surrogate"):
        make_vocabulary(files, "chatglm1")


def test_template_that_is_no_text(tmp_path: Path) -> None:
    source = write_directory(tmp_path / "in", llama_tensors(), LLAMA)
    (source / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="chat_template.jinja: got invalid UTF-8"):
        export_flm(source, tmp_path)


def test_broken_sentencepiece_model() -> None:
    with pytest.raises(FormatError, match="tokenizer.model of test"):
        make_vocabulary(TokenizerFiles("test", tokenizer_model=b"\x0a\xff"), "llama")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("remove", [True, False])
def test_normalizer_flags(tmp_path: Path, prefix: bool, remove: bool) -> None:
    """Trained by the library itself; a one-word vocabulary."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world hello world"]),
        model_prefix=str(tmp_path / "m"),
        vocab_size=13,
        hard_vocab_limit=False,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=remove,
        minloglevel=2,
    )
    flags = normalizer_flags((tmp_path / "m.model").read_bytes())
    assert flags == {"add_dummy_prefix": prefix, "remove_extra_whitespaces": remove}


def test_tokenizer_files_travel_through_a_flm(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "export_llama-float16"
    (tmp_path / "flm").mkdir()
    path = tmp_path / "flm" / "model.flm"
    convert.export(str(source), str(path), "int8")
    convert.export(str(path), str(tmp_path / "back"), "auto")
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert config == json.loads((source / "tokenizer_config.json").read_text())
    text = "the value of the object is 42"
    original = find_tokenizer(_core.open_model_file(str(source)))[0]
    embedded = find_tokenizer(_core.open_model_file(str(path)))[0]
    assert embedded.encode(text) == original.encode(text)


def test_directories_keep_their_side_files(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "export_llama-float16"
    convert.export(str(source), str(tmp_path), "int4g32")
    names = {p.name for p in source.iterdir()} - {"model.safetensors", "expected_fastllm.json"}
    assert {p.name for p in tmp_path.iterdir()} == names | {"model.safetensors"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()


def test_side_files_that_link_out_are_refused(tmp_path: Path) -> None:
    source = write_directory(tmp_path / "in", llama_tensors(), LLAMA)
    (source / "tokenizer_config.json").symlink_to("/etc/hostname")
    for output in ("out", "out.flm"):
        with pytest.raises(FormatError, match="tokenizer_config.json: got a link out"):
            convert.export(str(source), str(tmp_path / output), "int8")
        assert not (tmp_path / output).exists()
