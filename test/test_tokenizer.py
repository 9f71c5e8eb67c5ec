"""Tokenizers rebuilt from .flm vocabularies against the source tokenizers themselves."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiny_models
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from slicellm import FormatError, InvalidArgument, IoError, _core
from slicellm.tokenizer import FastTokenizer, SentencePieceTokenizer, Tokenizer
from slicellm.tokenizer_files import TokenizerFiles, find_tokenizer, make_tokenizer
from slicellm.tokenizer_rebuild import choose_pattern, find_merges, rebuild_tokenizer

# Qwen2's published pre-split pattern, written here once more on purpose.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Text that tokenizers stumble over: words of the vocabulary, runs of white space, emoji with
# joiners and variation selectors, CJK, combining marks, controls, what looks like a special token.
FRAGMENTS = st.sampled_from(
    [
        "the",
        " object",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u3000",
        "é",
        "e\u0301",
        "你好",
        "\U0001f642",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f",
        "'s",
        "'S",
        "'re",
        "123",
        "3.14",
        "<0x0A>",
        "<s>",
        "</s>",
        "\u2581",
        "\x00",
        "\x7f",
        "\ufffd",
        "Ａ",
        "ﬁ",
        "def ",
        "__init__(",
        "x = [",
        "]",
        "--------",
        "ــ",
        "\u202e",
        "½",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=12).map("".join),
)  # fmt: skip
many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def rebuilt(path: Path) -> Tokenizer:
    return find_tokenizer(_core.open_model_file(str(path)))[0]


@pytest.fixture(scope="module")
def probes(fixtures: Path) -> dict[str, dict[str, Any]]:
    data: dict[str, dict[str, Any]] = json.loads((fixtures / "tokenizer_probes.json").read_text())
    return data


@pytest.fixture(scope="module")
def bpe(fixtures: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(fixtures / "sp_bpe.model"))


@pytest.fixture(scope="module")
def unigram(fixtures: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(fixtures / "sp_unigram.model"))


# ---- the recorded probes -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("file", "probe"),
    [
        ("llama-float16", "llama-float16"),
        ("llama-int4g32", "llama-float16"),
        ("llamacpp-float16", "llamacpp-float16"),
        ("llamacpp-int8", "llamacpp-float16"),
        ("qwen2-float16", "qwen2(as llama)"),
        ("qwen2-int4", "qwen2(as llama)"),
        ("qwen2cpp-float16", "qwen2cpp-float16"),
    ],
)
def test_probes(fixtures: Path, probes: dict[str, Any], file: str, probe: str) -> None:
    tokenizer = rebuilt(fixtures / f"{file}.flm")
    assert "rebuilt" in tokenizer.source
    for text, recorded in probes[probe].items():
        assert tokenizer.encode(text) == recorded["reference"], text


def test_probes_of_chatglm1(fixtures: Path, probes: dict[str, Any]) -> None:
    """The recorded ids are sentencepiece's own; ChatGLM-6B writes a line end as <n> first."""
    tokenizer = rebuilt(fixtures / "chatglm1-float16.flm")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    for text, recorded in probes["chatglm1-float16"].items():
        assert tokenizer.sp.encode(text) == recorded["reference"], text
        if "\n" not in text:
            assert tokenizer.encode(text) == recorded["reference"], text


def test_chatglm1_prompt_ends_as_recorded(fixtures: Path, unigram: Any) -> None:
    """[gMASK] <sop> after the text, as fastllm does; its text ids are not sentencepiece's."""
    recorded = json.loads((fixtures / "chatglm1-float16.expected.json").read_text())
    tokenizer = rebuilt(fixtures / "chatglm1-float16.flm")
    assert recorded["prompt_ids"][-2:] == [5, 6]
    prompt = recorded["prompt"]
    assert tokenizer.encode_prompt(prompt) == [*unigram.encode(prompt), 5, 6]


# ---- random text against the source tokenizers ---------------------------------------------------
@many
@given(text=TEXTS)
def test_bpe_is_sentencepiece(fixtures: Path, bpe: Any, text: str) -> None:
    for name in ("llama-float16", "llamacpp-float16"):
        assert cached(fixtures / f"{name}.flm").encode(text) == bpe.encode(text)


@many
@given(text=TEXTS)
def test_unigram_is_sentencepiece(fixtures: Path, unigram: Any, text: str) -> None:
    text_as_chatglm = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    tokenizer = cached(fixtures / "chatglm1-float16.flm")
    assert tokenizer.encode(text) == unigram.encode(text_as_chatglm)


@many
@given(text=TEXTS)
def test_byte_level_is_qwen2(fixtures: Path, text: str) -> None:
    """The source tokenizer with Qwen2's own split and normaliser, which its file lacks."""
    reference = cached_reference(fixtures)
    for name in ("qwen2-float16", "qwen2cpp-float16"):
        tokenizer = cached(fixtures / f"{name}.flm")
        assert tokenizer.encode(text, parse_special=True) == reference.encode(text).ids


_cache: dict[Path, Any] = {}


def cached(path: Path) -> Tokenizer:
    if path not in _cache:
        _cache[path] = rebuilt(path)
    tokenizer: Tokenizer = _cache[path]
    return tokenizer


def cached_reference(fixtures: Path) -> Any:
    path = fixtures / "qwen2_tokenizer.json"
    if path not in _cache:
        reference = tokenizers.Tokenizer.from_file(str(path))
        reference.normalizer = normalizers.NFC()
        reference.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        _cache[path] = reference
    return _cache[path]


def test_merges_are_those_of_the_source(fixtures: Path) -> None:
    source = json.loads((fixtures / "qwen2_tokenizer.json").read_text())["model"]
    merges = [tuple(merge.split(" ")) for merge in source["merges"]]
    assert find_merges({a + b: rank for rank, (a, b) in enumerate(merges)}) == merges


@pytest.mark.parametrize("pattern", ["qwen2", "llama3", "gpt2"])
def test_pattern_is_chosen_by_the_vocabulary(pattern: str) -> None:
    only_under = {"qwen2": [], "llama3": ["123", "(self"], "gpt2": ["Ġ123", "2024"]}
    assert choose_pattern(["Ġthe", "ing", *only_under[pattern]], "qwen2") == pattern


# ---- bytes of tokens -----------------------------------------------------------------------------
@many
@given(text=TEXTS)
def test_token_bytes_are_the_text(tiny_llama: Path, text: str) -> None:
    """An identity-normalised byte-fallback vocabulary loses nothing but the space in front."""
    tokenizer = cached(tiny_llama)
    data = join_bytes(tokenizer, tokenizer.encode(text))
    assert data == ((" " + text) if text else "").replace("\u2581", " ").encode()


@many
@given(text=TEXTS)
def test_token_bytes_of_byte_level(fixtures: Path, text: str) -> None:
    tokenizer = cached(fixtures / "qwen2-float16.flm")
    data = join_bytes(tokenizer, tokenizer.encode(text))
    assert data == normalizers.NFC().normalize_str(text).encode()


@many
@given(text=TEXTS)
def test_token_bytes_after_sentencepiece_normalisation(fixtures: Path, text: str) -> None:
    tokenizer = cached(fixtures / "llama-float16.flm")
    normalize = sentencepiece.SentencePieceNormalizer(
        rule_name="nmt_nfkc", add_dummy_prefix=True, remove_extra_whitespaces=True,
        escape_whitespaces=False,
    )  # fmt: skip
    data = join_bytes(tokenizer, tokenizer.encode(text)).decode()
    assert data == normalize.normalize(text).replace("\u2581", " ")


def test_token_bytes_of_chatglm1(fixtures: Path) -> None:
    tokenizer = cached(fixtures / "chatglm1-float16.flm")
    ids = tokenizer.encode_prompt("the value\nof\tthe object")
    assert join_bytes(tokenizer, ids) == b" the value\nof\tthe object"
    assert tokenizer.decode(ids) == "the value\nof\tthe object"


def join_bytes(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    key = Path(f"bytes of {id(tokenizer)}")
    if key not in _cache:
        _cache[key] = tokenizer.token_bytes()
        assert len(_cache[key]) == tokenizer.size
    return b"".join(_cache[key][i] for i in ids)


# ---- where a tokenizer comes from ----------------------------------------------------------------
def test_directory_files(fixtures: Path, bpe: Any) -> None:
    """tokenizer.json comes first; it is Hugging Face's form of the same vocabulary."""
    directory = fixtures / "export_llama-int4"
    tokenizer = rebuilt(directory)
    assert isinstance(tokenizer, FastTokenizer)
    assert tokenizer.encode("the value of the object") == bpe.encode("the value of the object")
    assert tokenizer.encode_prompt("the value") == [1, *bpe.encode("the value")]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    text = "Hello, wörld \U0001f642\n  x"
    assert join_bytes(tokenizer, tokenizer.encode(text)) == (" " + text).encode()


def test_directory_with_sentencepiece_only(tiny_llama_dir: Path) -> None:
    tokenizer = rebuilt(tiny_llama_dir)
    model = (tiny_llama_dir / "tokenizer.model").read_bytes()
    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    text = "the value  of\nthe object \U0001f642"
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.encode(text) == source.encode(text)
    assert tokenizer.encode_prompt(text) == [1, *source.encode(text)]
    assert tokenizer.decode(tokenizer.encode_prompt(text)) == text


def test_files_beside_a_flm(tiny_llama: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    flm = Path(shutil.copy(tiny_llama, tmp_path))
    assert "rebuilt" in rebuilt(flm).source
    shutil.copy(tiny_llama_dir / "tokenizer.model", tmp_path)
    beside = rebuilt(flm)
    assert "rebuilt" not in beside.source
    assert beside.encode("the  value\n") == cached(tiny_llama).encode("the  value\n")


def test_files_of_another_model_beside_a_flm_are_not_taken(
    tiny_llama: Path, tmp_path: Path
) -> None:
    flm = Path(shutil.copy(tiny_llama, tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(tiny_models.train_sentencepiece(vocab=350))
    assert "rebuilt" in rebuilt(flm).source


def test_tokenizer_directory_given_by_the_user(tiny_llama: Path, tiny_llama_dir: Path) -> None:
    file = _core.open_model_file(str(tiny_llama))
    tokenizer, config = find_tokenizer(file, str(tiny_llama_dir))
    assert str(tiny_llama_dir) in tokenizer.source
    assert config["eos_token"] == "</s>"
    with pytest.raises(IoError, match="tokenizer: got .* expected a directory"):
        find_tokenizer(file, str(tiny_llama_dir / "nothing"))
    with pytest.raises(InvalidArgument, match="tokenizer.json, tokenizer.model or ice_text.model"):
        find_tokenizer(file, str(tiny_llama_dir.parent))


def embedded_flm(path: Path, **keys: str) -> Path:
    tokens = tiny_models.vocabulary(tiny_models.train_sentencepiece())
    config = tiny_models.llama_config(len(tokens))
    text = {key: str(value) for key, value in config.items()}
    return tiny_models.write_flm(path, {**text, **keys}, tokens, tiny_models.llama_weights(config))


def test_embedded_sentencepiece_model(tmp_path: Path) -> None:
    model = tiny_models.train_sentencepiece()
    key = {"slicellm.tokenizer_model": base64.b64encode(model).decode()}
    tokenizer = rebuilt(embedded_flm(tmp_path / "m.flm", **key))
    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert "rebuilt" not in tokenizer.source
    assert tokenizer.encode("the  value") == source.encode("the  value")


def test_embedded_tokenizer_json(fixtures: Path, tmp_path: Path) -> None:
    text = (fixtures / "qwen2_tokenizer.json").read_text()
    tokenizer = rebuilt(embedded_flm(tmp_path / "m.flm", **{"slicellm.tokenizer_json": text}))
    reference = tokenizers.Tokenizer.from_str(text)
    assert tokenizer.encode("x = ['THE']\n") == reference.encode("x = ['THE']\n").ids


@pytest.mark.parametrize(
    "key",
    [
        {"slicellm.tokenizer_model": "no base64!"},
        {"slicellm.tokenizer_model": base64.b64encode(b"no model").decode()},
        {"slicellm.tokenizer_json": "{"},
        {"slicellm.tokenizer_json": '{"model": {"type": "BPE"}}'},
        {"slicellm.tokenizer_config": "[]"},
    ],
)
def test_broken_embedded_files(tmp_path: Path, key: dict[str, str]) -> None:
    with pytest.raises(FormatError, match="expected") as caught:
        rebuilt(embedded_flm(tmp_path / "m.flm", **key))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f"),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"[" * 100_000),
    ],
)
def test_broken_files_of_a_directory(
    tiny_llama_dir: Path, tmp_path: Path, name: str, data: bytes
) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    (directory / name).write_bytes(data)
    with pytest.raises(FormatError, match="expected"):
        rebuilt(directory)


@pytest.mark.parametrize("key", ["2000000000", "9" * 5000, "-1", "one", "\u0663"])
def test_hostile_ids_of_added_tokens(tiny_llama_dir: Path, tmp_path: Path, key: str) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    path = directory / "tokenizer_config.json"
    added = {"added_tokens_decoder": {key: {"content": "<x>", "special": True}}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **added}))
    with pytest.raises(FormatError, match="added_tokens_decoder: got .*, expected ids from 0 to"):
        rebuilt(directory)


def test_hostile_ids_of_a_tokenizer_json() -> None:
    model = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    text = json.loads(tokenizers.Tokenizer(model).to_str())
    text["model"]["vocab"]["b"] = 2_000_000_000  # the library would take half a minute to write it
    with pytest.raises(FormatError, match="test: got token id 2000000000, expected at most"):
        FastTokenizer.from_json(json.dumps(text), "test")


@pytest.mark.parametrize("tokens", [2_000_000_000, -5])
def test_hostile_count_of_image_tokens(tmp_path: Path, tokens: int) -> None:
    model = tiny_models.train_sentencepiece()
    files = TokenizerFiles("test", None, model, {"num_image_tokens": tokens})
    file = _core.open_model_file(str(embedded_flm(tmp_path / "m.flm")))
    with pytest.raises(FormatError, match="got .*, expected"):
        make_tokenizer(files, "chatglm1", file)
    endless = TokenizerFiles("test", None, model, {"num_image_tokens": float("inf")})
    assert make_tokenizer(endless, "chatglm1", file).size < 1000


# ---- vocabularies that are none, and text that is none -------------------------------------------
def test_no_vocabulary(fixtures: Path) -> None:
    with pytest.raises(InvalidArgument, match="prompts as token ids work without"):
        rebuilt(fixtures / "chatglm2-float16.flm")


@pytest.mark.parametrize(
    ("family", "tokens", "scores"),
    [
        ("llama", [(b"<unk>", 0, 0.0), (b"a", 0, 0.0)], True),
        ("llama", [(b"<unk>", 0, 0.0), (b"a", -1, 0.0)], True),
        ("llama", [(b"<unk>", 0, 0.0), (b"a", 1 << 30, 0.0)], True),
        ("llama", [(b"a", 0, 0.0), (b"b", 1, 0.0)], True),
        ("chatglm1", [(b"<unk>", 0, 0.0), (b"a", 1, 0.0)], False),
        ("llama", [], True),
    ],
)
def test_hostile_vocabularies(family: str, tokens: list[Any], scores: bool) -> None:
    with pytest.raises((FormatError, InvalidArgument), match="expected"):
        rebuild_tokenizer(family, {}, tokens, scores)


def test_odd_vocabularies_still_work() -> None:
    """Missing ids, empty and repeated texts and broken UTF-8 become pieces that nothing uses."""
    tokens = [
        (b"<unk>", 0, 0.0), (b"\xff\xfe", 3, 0.0), (b"", 4, 0.0), (b"a", 5, -1.0), (b"a", 6, -2.0)
    ]  # fmt: skip
    tokenizer = rebuild_tokenizer("llama", {"tokenizer_add_dummy_prefix": "false"}, tokens, True)
    assert tokenizer.encode("aa") == [5, 5]
    assert tokenizer.token_bytes()[1:5] == [b""] * 4


def test_byte_level_vocabulary_without_its_bytes() -> None:
    config = {"tokenizer_byte_as_char": "True"}
    with pytest.raises(FormatError, match="byte-level BPE"):
        rebuild_tokenizer("qwen2", config, [(b"ab", 0, -0.0)], True)


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff ok"])
def test_surrogates_are_refused(tiny_llama: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="unpaired surrogate .* expected valid Unicode"):
        cached(tiny_llama).encode(text)


def test_no_text_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(InvalidArgument, match="prompt: got bytes, expected text"):
        cached(tiny_llama).encode(b"abc")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="at most"):
        cached(tiny_llama).encode("a" * ((16 << 20) + 1))


def test_ids_out_of_range_are_refused(tiny_llama: Path, fixtures: Path) -> None:
    for path in (tiny_llama, fixtures / "qwen2-float16.flm"):
        tokenizer = cached(path)
        for token in (-1, tokenizer.size, 1 << 40):
            with pytest.raises(InvalidArgument, match="token id: got"):
                tokenizer.decode([token])


# ---- special tokens ------------------------------------------------------------------------------
def test_special_tokens_in_text(fixtures: Path, tiny_llama: Path) -> None:
    qwen = cached(fixtures / "qwen2-float16.flm")
    parsed = qwen.encode("<|im_start|>user\nhi<|im_end|>", parse_special=True)
    assert parsed[0] == 510 and parsed[-1] == 511
    assert not {510, 511} & set(qwen.encode("<|im_start|>user\nhi<|im_end|>"))
    assert qwen.decode(parsed) == "user\nhi"

    llama = cached(tiny_llama)
    hi = llama.encode("hi")
    assert llama.encode("<s>hi</s>", parse_special=True) == [1, *hi, 2]
    assert llama.encode_prompt("hi") == [1, *hi]
    assert llama.encode_chat("<s>hi") == llama.encode_chat("hi") == [1, *hi]
    assert 1 not in llama.encode("<s>hi</s>")


def test_chatglm2_prefix(tmp_path: Path) -> None:
    """[GMASK] and sop come right after the pieces: 64790 and 64792 of 64789 in the real ones."""
    model = tiny_models.train_sentencepiece()
    count = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    config = {"model_type": "chatglm", "padded_vocab_size": "1024"}
    tokenizer = _chatglm2(tmp_path, config, model)
    hi = sentencepiece.SentencePieceProcessor(model_proto=model).encode("hi")
    assert tokenizer.encode_prompt("hi") == [count + 1, count + 3, *hi]
    assert tokenizer.encode_chat("<|user|>hi") == [count + 1, count + 3, count + 6, *hi]
    assert tokenizer.token_bytes()[count + 6] == b""


def _chatglm2(tmp_path: Path, config: dict[str, str], model: bytes) -> Tokenizer:
    import numpy as np

    weight = {"transformer.embedding.word_embeddings.weight": np.zeros((8, 8), np.float32)}
    tokens = tiny_models.vocabulary(model)
    return rebuilt(tiny_models.write_flm(tmp_path / "glm2.flm", config, tokens, weight))
