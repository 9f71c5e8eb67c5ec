"""Finds a model's tokenizer: a directory's files, files embedded in a .flm, or its vocabulary."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._core import ModelFile
from .errors import FormatError, InvalidArgument, IoError, make_error, show
from .tokenizer import MAX_ID, FastTokenizer, SentencePieceTokenizer, Tokenizer
from .tokenizer_rebuild import rebuild_tokenizer

# Extra keys of a .flm that hold a tokenizer file as it was; fastllm ignores unknown keys.
TOKENIZER_JSON_KEY = "slicellm.tokenizer_json"  # text
TOKENIZER_MODEL_KEY = "slicellm.tokenizer_model"  # base64 of tokenizer.model or ice_text.model
TOKENIZER_CONFIG_KEY = "slicellm.tokenizer_config"  # text of tokenizer_config.json

MAX_FILE_BYTES = 256 << 20
# ChatGLM2/3 number their own tokens right after the sentencepiece pieces.
_CHATGLM2_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_CHATGLM3_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


@dataclass
class TokenizerFiles:
    """The tokenizer files of one place: a directory or the extra keys of a .flm."""

    place: str
    tokenizer_json: str | None = None
    tokenizer_model: bytes | None = None
    config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json

    def __bool__(self) -> bool:
        return self.tokenizer_json is not None or self.tokenizer_model is not None


def read_directory(path: Path) -> TokenizerFiles:
    """Tokenizer files in a directory; those that are absent are None."""
    model = path / "tokenizer.model"
    if not model.is_file():
        model = path / "ice_text.model"
    json_data = _read(path / "tokenizer.json")
    config_data = _read(path / "tokenizer_config.json")
    return TokenizerFiles(
        str(path),
        _text(json_data, path / "tokenizer.json") if json_data is not None else None,
        _read(model),
        _parse_object(_text(config_data, path / "tokenizer_config.json"), "tokenizer_config.json")
        if config_data is not None
        else {},
    )


def read_embedded(config: Mapping[str, str]) -> TokenizerFiles:
    """Tokenizer files in the extra keys of a .flm."""
    model = None
    if TOKENIZER_MODEL_KEY in config:
        try:
            model = base64.b64decode(config[TOKENIZER_MODEL_KEY], validate=True)
        except (binascii.Error, ValueError):
            raise make_error(FormatError, TOKENIZER_MODEL_KEY, "other text", "base64") from None
    text = config.get(TOKENIZER_CONFIG_KEY)
    return TokenizerFiles(
        "the .flm",
        config.get(TOKENIZER_JSON_KEY),
        model,
        _parse_object(text, TOKENIZER_CONFIG_KEY) if text else {},
    )


def tokenizer_family(file: ModelFile) -> str:
    """The model family as far as tokenizers differ: "chatglm1", "chatglm2" or the model_type."""
    family = file.config.get("model_type", "chatglm")  # old .flm files do not say
    if family == "chatglm":
        first = "transformer.word_embeddings.weight" in file
        return "chatglm1" if first else "chatglm2"
    return family


def find_tokenizer(
    file: ModelFile, directory: str | None = None
) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a model file, and what its tokenizer_config.json says.

    `directory`: where the user says that the tokenizer files are. Raises FormatError for broken
    tokenizer files, InvalidArgument where there is none and none can be rebuilt.
    """
    family = tokenizer_family(file)
    if directory is not None:
        path = Path(directory)
        if not path.is_dir():
            raise make_error(IoError, "tokenizer", show(directory), "a directory")
        files = read_directory(path)
        if not files:
            raise make_error(
                InvalidArgument,
                "tokenizer",
                show(directory),
                "a directory with tokenizer.json, tokenizer.model or ice_text.model",
            )
        return make_tokenizer(files, family, file), files.config
    path = Path(file.path)
    beside = read_directory(path if path.is_dir() else path.parent)
    if beside:
        tokenizer = make_tokenizer(beside, family, file)
        if _same_vocabulary(tokenizer, file):
            return tokenizer, beside.config
    embedded = read_embedded(file.config)
    if embedded:
        return make_tokenizer(embedded, family, file), embedded.config
    if not file.tokens:
        raise make_error(
            InvalidArgument,
            "tokenizer",
            "none beside or inside the model",
            "tokenizer.json or tokenizer.model beside it, or --tokenizer DIR; "
            "prompts as token ids work without",
        )
    rebuilt = rebuild_tokenizer(
        family, file.config, file.tokens, file.has_scores, file.special_tokens
    )
    _frame(rebuilt, family, embedded.config, file.config)
    return rebuilt, embedded.config


def make_tokenizer(files: TokenizerFiles, family: str, file: ModelFile) -> Tokenizer:
    """A tokenizer from tokenizer files, with what the family puts around prompts."""
    tokenizer: Tokenizer
    if files.tokenizer_json is not None:
        source = f"tokenizer.json of {files.place}"
        tokenizer = FastTokenizer.from_json(files.tokenizer_json, source)
    else:
        assert files.tokenizer_model is not None
        source = f"sentencepiece model of {files.place}"
        specials = _added_tokens(files.config)
        offset = 0
        if family == "chatglm1":
            first = min((token_id for _, token_id, _ in file.tokens), default=0)
            offset = _int(files.config.get("num_image_tokens"), first)
            if offset < 0:
                where = "tokenizer_config.json: num_image_tokens"
                raise make_error(FormatError, where, show(offset), "a number of at least 0")
        tokenizer = SentencePieceTokenizer(
            files.tokenizer_model, source, specials, offset, blanks=family == "chatglm1"
        )
    _frame(tokenizer, family, files.config, file.config)
    return tokenizer


def _frame(
    tokenizer: Tokenizer, family: str, config: Mapping[str, Any], model: Mapping[str, str]
) -> None:
    """Sets what a prompt has around its text."""
    if family == "chatglm1" and not tokenizer.suffix_ids:
        specials = tokenizer.specials
        gmask = _int(model.get("gmask_token_id"), specials.get("[gMASK]", -1))
        sop = specials.get("<sop>", _int(model.get("bos_token_id"), -1))
        tokenizer.suffix_ids = [i for i in (gmask, sop) if 0 <= i < tokenizer.size]
        return
    if family == "chatglm2" and isinstance(tokenizer, SentencePieceTokenizer):
        vocab = _int(model.get("padded_vocab_size"), _int(model.get("vocab_size"), 65024))
        _add_chatglm2_tokens(tokenizer, vocab)
        return
    tokenizer.bos_token = _token_text(config.get("bos_token"))
    tokenizer.eos_token = _token_text(config.get("eos_token"))
    by_id = {i: text for text, i in tokenizer.specials.items()}
    bos = tokenizer.specials.get(tokenizer.bos_token, _int(model.get("bos_token_id"), -1))
    tokenizer.bos_token = tokenizer.bos_token or by_id.get(bos, "")
    eos = _int(model.get("eos_token_id"), -1)
    tokenizer.eos_token = tokenizer.eos_token or by_id.get(eos, "")
    add_bos = config.get("add_bos_token")
    if add_bos is None and isinstance(tokenizer, SentencePieceTokenizer):
        add_bos = family in ("llama", "mistral")
    if add_bos is True and bos in by_id:
        tokenizer.prefix_ids = [bos]
    elif add_bos is False and tokenizer.prefix_ids == [bos]:
        tokenizer.prefix_ids = []


def _add_chatglm2_tokens(tokenizer: SentencePieceTokenizer, vocab: int) -> None:
    count = tokenizer.sp.get_piece_size()
    names = enumerate(_CHATGLM2_TOKENS + _CHATGLM3_ROLES, start=count)
    tokenizer.add_specials({text: i for i, text in names if i < vocab})
    prefix = [tokenizer.specials.get(text, vocab) for text in ("[gMASK]", "<sop>")]
    tokenizer.prefix_ids = [i for i in prefix if i < vocab]


def _same_vocabulary(tokenizer: Tokenizer, file: ModelFile) -> bool:
    """Whether tokenizer files that happen to lie beside a .flm are that model's: every token that
    the .flm holds has the same text there. True where there is nothing to compare."""
    if file.kind != "flm" or not file.tokens:
        return True
    return all(
        tokenizer.token_text(token_id) == text.decode("utf-8", "replace")
        for text, token_id, _ in file.tokens
    )


def _added_tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Added tokens of a tokenizer_config.json: text -> id."""
    out = {}
    table = config.get("added_tokens_decoder")
    for token_id, token in (table if isinstance(table, dict) else {}).items():
        if not re.fullmatch("[0-9]{1,9}", token_id) or int(token_id) >= MAX_ID:
            where, expected = "tokenizer_config.json: added_tokens_decoder", f"0 to {MAX_ID - 1}"
            raise make_error(FormatError, where, show(token_id), f"ids from {expected}")
        text = _token_text(token)
        if text and isinstance(token, dict) and token.get("special"):
            out[text] = int(token_id)
    return out


def _token_text(value: Any) -> str:
    """A token of tokenizer_config.json is a text or an object with its text as `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _int(value: Any, fallback: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return fallback


def _read(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "no data"
        raise make_error(IoError, str(path), reason, "a readable file") from None
    if len(data) > MAX_FILE_BYTES:
        raise make_error(FormatError, str(path), "more", f"at most {MAX_FILE_BYTES} bytes")
    return data


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise make_error(FormatError, str(path), "invalid UTF-8", "UTF-8 text") from None


def _parse_object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise make_error(FormatError, name, "invalid JSON", "a JSON object") from None
    if not isinstance(value, dict):
        raise make_error(FormatError, name, type(value).__name__, "a JSON object")
    return value
