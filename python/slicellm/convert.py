"""Conversion of models: what `ftllm export` does."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from . import _core
from .errors import FormatError, IoError, make_error
from .tokenizer_files import (
    TOKENIZER_CONFIG_KEY,
    TOKENIZER_JSON_KEY,
    TOKENIZER_MODEL_KEY,
    read_directory,
    read_embedded,
    tokenizer_family,
)
from .vocabulary import Vocabulary, encode_tokenizer_model, make_vocabulary

__all__ = [
    "TOKENIZER_CONFIG_KEY",
    "TOKENIZER_JSON_KEY",
    "TOKENIZER_MODEL_KEY",
    "encode_tokenizer_model",
    "export",
]

# Files of a Hugging Face directory that belong to a model beside its weights.
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "ice_text.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# ChatGLM's tokenizer and configuration are code; copied for other programs, never run here.
_SIDE_PATTERNS = ("tokenization_*.py", "configuration_*.py", "modeling_*.py")
# Keys of a .flm that are no part of a model's config.json.
_FLM_ONLY = ("slicellm.", "tokenizer_", "peft", "model_directory", "_")
_FLM_ONLY_EXACT = ("chat_template", "pre_prompt", "user_role", "bot_role", "history_sep")


def export(
    model_path: str,
    output: str,
    dtype: str = "auto",
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Converts a model to `output`: a .flm file if its name ends so, otherwise a directory.

    `model_path`: a .flm, an export directory or a Hugging Face directory. `dtype`: of the linear
    layers ("int4g128", "int8", "float16", ...); "auto" is float16 for Hugging Face input and keeps
    everything else as it is. `threads`: 0 = all cores. `progress(done, total)` counts bytes read.
    Both kinds of output hold the tokenizer too, if the model has one. Raises FormatError, IoError,
    Unsupported or InvalidArgument.
    """
    file = _core.open_model_file(model_path)
    if file.kind != "flm":
        for path in _side_files(Path(model_path)):
            _check_inside(path, Path(model_path))
    target: str | None = dtype
    if dtype == "auto":
        target = "float16" if file.kind == "hf_dir" else None
    if output.endswith(".flm"):
        words = _vocabulary(file)
        _core.export_model(
            model_path,
            output,
            target,
            words.config,
            words.tokens,
            words.has_scores,
            words.special_tokens,
            threads,
            progress,
        )
        return
    _core.export_model(model_path, output, target, {}, [], False, [], threads, progress)
    if file.kind == "flm":
        _write_side_files(file, Path(output))
    else:
        _copy_side_files(Path(model_path), Path(output))


def _vocabulary(file: _core.ModelFile) -> Vocabulary:
    if file.kind == "flm":  # its configuration is carried over as a whole
        return Vocabulary(file.tokens, file.has_scores, file.special_tokens)
    directory = Path(file.path)
    words = make_vocabulary(read_directory(directory), tokenizer_family(file))
    template = directory / "chat_template.jinja"
    if template.is_file():
        try:
            words.config["chat_template"] = template.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise make_error(FormatError, template.name, "invalid UTF-8", "UTF-8 text") from None
    return words


# ---- directory to directory ----------------------------------------------------------------------
def _side_files(directory: Path) -> list[Path]:
    paths = [directory / name for name in _SIDE_FILES]
    for pattern in _SIDE_PATTERNS:
        paths += sorted(directory.glob(pattern))
    return [path for path in paths if path.is_file()]


def _copy_side_files(source: Path, target: Path) -> None:
    for path in _side_files(source):
        with path.open("rb") as stream:
            _write(target / path.name, stream)


def _check_inside(path: Path, directory: Path) -> None:
    """A link must stay in the model's directory or its Hugging Face cache's blobs."""
    parent, root = path.resolve().parent, directory.resolve()
    cached = root.parent.name == "snapshots" and parent == root.parent.parent / "blobs"
    if parent != root and not cached:
        value = "a link out of the model directory"
        raise make_error(FormatError, path.name, value, "a file inside it")


def _write(path: Path, content: BinaryIO) -> None:
    """Writes a file under a temporary name and renames it."""
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            shutil.copyfileobj(content, stream)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or "no data"
        raise make_error(IoError, str(path), reason, "a file that can be written") from None


# ---- .flm to directory ---------------------------------------------------------------------------
def _write_side_files(file: _core.ModelFile, target: Path) -> None:
    contents = {"config.json": json_config(file.config)}
    embedded = read_embedded(file.config)
    if embedded.tokenizer_json is not None:
        contents["tokenizer.json"] = embedded.tokenizer_json.encode()
    if embedded.tokenizer_model is not None:
        name = "ice_text.model" if tokenizer_family(file) == "chatglm1" else "tokenizer.model"
        contents[name] = embedded.tokenizer_model
    if TOKENIZER_CONFIG_KEY in file.config:
        contents["tokenizer_config.json"] = file.config[TOKENIZER_CONFIG_KEY].encode()
    for name, data in contents.items():
        _write(target / name, io.BytesIO(data))


def json_config(config: Mapping[str, str]) -> bytes:
    """A config.json from a .flm's flat text: dotted keys become objects, literals their values."""
    result: dict[str, Any] = {}
    for key, text in sorted(config.items()):
        if key.startswith(_FLM_ONLY) or key in _FLM_ONLY_EXACT:
            continue
        *path, name = key.split(".")
        inner = result
        for part in path:
            node = inner.get(part)
            inner[part] = node if isinstance(node, dict) else {}
            inner = inner[part]
        inner[name] = _literal(text)
    if not result.get("model_type"):
        result["model_type"] = "chatglm"  # what .flm files before version 2 mean
    return (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode()


def _literal(text: str) -> Any:
    """The value that Python's str() or a JSON dump wrote as `text`; text if it is none."""
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    if text.startswith("torch."):
        return text[len("torch.") :]
    for candidate in (text, text.replace("'", '"')):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    return text
