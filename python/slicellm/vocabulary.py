"""The vocabulary section that a .flm gets from a model's tokenizer files.

As fastllm's torch2flm writes it:

* sentencepiece (tokenizer.model, ice_text.model): every piece as it is, its index as id
  (ChatGLM-6B: plus `num_image_tokens`) and its score;
* tokenizer.json with BPE: every token in its printable form, score = minus the index of its merge,
  1 for a token that no merge makes; added tokens come with them;
* special tokens: all of tokenizer_config.json's, then all added tokens, if there are more of them
  than bos, eos, unk and pad, or if one of these is written out in the chat template (torch2flm
  looks at the prompts that it is given).

Different from torch2flm, where it would write what nobody can read back: tokens are in the order
of their ids, not of a hash table; a unigram tokenizer.json keeps its scores; special tokens that
are not in the vocabulary are left out (fastllm would take them for token 0).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sentencepiece

from .errors import FormatError, make_error, show
from .tokenizer_files import (
    TOKENIZER_CONFIG_KEY,
    TOKENIZER_JSON_KEY,
    TOKENIZER_MODEL_KEY,
    TokenizerFiles,
)

CHATGLM1_IMAGE_TOKENS = 20000  # ChatGLM-6B numbers its text pieces after these
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass
class Vocabulary:
    """What a .flm says of its tokenizer."""

    tokens: list[tuple[bytes, int, float]] = field(default_factory=list)  # text, id, score
    has_scores: bool = False
    special_tokens: list[str] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)  # extra keys, embedded files among them


def encode_tokenizer_model(data: bytes) -> str:
    """A sentencepiece model as the text that TOKENIZER_MODEL_KEY holds."""
    return base64.b64encode(data).decode("ascii")


def make_vocabulary(files: TokenizerFiles, family: str) -> Vocabulary:
    """The vocabulary of tokenizer files; empty where there are none.

    `family` is "chatglm1", "chatglm2" or the model_type. Raises FormatError for broken files.
    """
    result = Vocabulary()
    if not files:
        return result
    try:
        _fill(result, files, family)
        for text in (*result.special_tokens, *result.config.values()):
            text.encode()
    except UnicodeEncodeError:
        value = "half of a surrogate pair"
        raise make_error(FormatError, f"tokenizer of {files.place}", value, "Unicode") from None
    for _, token_id, score in result.tokens:
        if not (0 <= token_id < 1 << 31 and math.isfinite(score)):
            value = f"id {token_id} with score {score}"
            expected = "an id from 0 to 2^31-1 and a finite score"
            raise make_error(FormatError, f"tokenizer of {files.place}", value, expected)
    return result


def _fill(result: Vocabulary, files: TokenizerFiles, family: str) -> None:
    model = _load_sentencepiece(files)
    if model is not None:
        offset = 0
        if family == "chatglm1":
            offset = files.config.get("num_image_tokens", CHATGLM1_IMAGE_TOKENS)
            if not isinstance(offset, int):
                raise make_error(FormatError, "num_image_tokens", show(offset), "an integer")
        _add_pieces(result, model, offset)
        spaces = normalizer_flags(files.tokenizer_model or b"")
        result.config["tokenizer_add_dummy_prefix"] = str(spaces["add_dummy_prefix"])
        if spaces["remove_extra_whitespaces"]:
            result.config["tokenizer_remove_extra_whitespaces"] = "True"
    elif files.tokenizer_json is not None:
        _add_json_tokens(result, files.tokenizer_json)
    else:
        expected = "a sentencepiece model"
        raise make_error(FormatError, f"tokenizer.model of {files.place}", "other data", expected)
    result.has_scores = True
    result.special_tokens = _special_tokens(files, {text for text, _, _ in result.tokens})
    _embed(result, files)


def _embed(result: Vocabulary, files: TokenizerFiles) -> None:
    """Whole files under extra keys, so that our loader needs no rules to rebuild them."""
    if files.tokenizer_json is not None:
        result.config[TOKENIZER_JSON_KEY] = files.tokenizer_json
    if files.tokenizer_model is not None:
        result.config[TOKENIZER_MODEL_KEY] = encode_tokenizer_model(files.tokenizer_model)
    if files.config:
        result.config[TOKENIZER_CONFIG_KEY] = json.dumps(files.config, ensure_ascii=False)
    template = files.config.get("chat_template")
    if isinstance(template, str):
        result.config["chat_template"] = template


# ---- sentencepiece -------------------------------------------------------------------------------
def _load_sentencepiece(files: TokenizerFiles) -> sentencepiece.SentencePieceProcessor | None:
    """None if there is no sentencepiece model; some models call other things tokenizer.model."""
    if files.tokenizer_model is None:
        return None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=files.tokenizer_model)
    except RuntimeError:
        return None


def _add_pieces(
    result: Vocabulary, model: sentencepiece.SentencePieceProcessor, offset: int
) -> None:
    for i in range(model.get_piece_size()):
        result.tokens.append((model.id_to_piece(i).encode(), i + offset, model.get_score(i)))


def normalizer_flags(proto: bytes) -> dict[str, bool]:
    """`add_dummy_prefix` and `remove_extra_whitespaces` of a serialised sentencepiece model.

    Read from the wire format of sentencepiece_model.proto: normalizer_spec is field 3 of the model,
    the flags are its fields 3 and 4, and true where they are not written.
    """
    flags = {"add_dummy_prefix": True, "remove_extra_whitespaces": True}
    for number, spec in _proto_fields(proto):
        if number == 3 and isinstance(spec, bytes):
            for inner, value in _proto_fields(spec):
                if inner == 3:
                    flags["add_dummy_prefix"] = bool(value)
                elif inner == 4:
                    flags["remove_extra_whitespaces"] = bool(value)
    return flags


def _proto_fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffers message; the data was parsed before."""
    fields: list[tuple[int, int | bytes]] = []
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        if key & 7 == 0:
            fields.append((key >> 3, varint()))
            continue
        size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        fields.append((key >> 3, data[position : position + size]))
        position += size
    return fields


# ---- tokenizer.json ------------------------------------------------------------------------------
def _add_json_tokens(result: Vocabulary, text: str) -> None:
    try:
        data = json.loads(text)
        model = data["model"]
        scores = _json_scores(model)
        for added in data.get("added_tokens") or ():
            scores.setdefault((added["content"], int(added["id"])), 1.0)
        by_id = sorted(scores.items(), key=lambda item: item[0][1])
        result.tokens = [(token.encode(), token_id, score) for (token, token_id), score in by_id]
    except UnicodeEncodeError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise make_error(FormatError, "tokenizer.json", "another layout", "a tokenizer") from None
    result.config["tokenizer_add_dummy_prefix"] = str(_prepends_space(data.get("normalizer")))
    if "ByteLevel" in _types(data.get("decoder")):
        result.config["tokenizer_byte_as_char"] = "True"


def _json_scores(model: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """(token, id) -> score."""
    vocab = model["vocab"]
    if isinstance(vocab, list):  # unigram: [[piece, score], ...]
        return {(piece, i): float(score) for i, (piece, score) in enumerate(vocab)}
    merges: dict[str, float] = {}
    for i, pair in enumerate(model.get("merges") or ()):
        token = pair.replace(" ", "") if isinstance(pair, str) else "".join(pair)
        merges[token] = -float(i)
    return {(token, int(i)): merges.get(token, 1.0) for token, i in vocab.items()}


def _types(part: Any) -> set[str]:
    """Types of a tokenizer.json component, looking into sequences."""
    if not isinstance(part, dict):
        return set()
    inner = part.get("decoders") or part.get("normalizers") or ()
    return {str(part.get("type"))}.union(*(_types(p) for p in inner))


def _prepends_space(normalizer: Any) -> bool:
    if not isinstance(normalizer, dict):
        return False
    parts = normalizer.get("normalizers") or [normalizer]
    return any(p.get("type") == "Prepend" and p.get("prepend") in ("\u2581", " ") for p in parts)


# ---- special tokens ------------------------------------------------------------------------------
def _content(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _special_tokens(files: TokenizerFiles, vocabulary: set[bytes]) -> list[str]:
    config = files.config
    named = [_content(config.get(name)) for name in _NAMED]
    more = config.get("additional_special_tokens")
    every = named + [_content(token) for token in (more if isinstance(more, list) else ())]
    every = [text for text in dict.fromkeys(every) if text]
    common = {_content(config.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    template = config.get("chat_template")
    in_template = isinstance(template, str) and any(text and text in template for text in common)
    if len(every) <= len(common) and not in_template:
        return []
    added = config.get("added_tokens_decoder")
    if isinstance(added, dict):
        every += [_content(token) for token in added.values()]
    elif files.tokenizer_json is not None:
        tokens = json.loads(files.tokenizer_json).get("added_tokens") or ()
        every += [_content(token) for token in tokens]
    return [text for text in every if text and text.encode() in vocabulary]
