"""A loaded model: the core's packed weights with their tokenizer and chat template."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _core
from .chat import ChatTemplate, Message, find_chat_template
from .errors import InvalidArgument, Unsupported, make_error, show
from .sizes import parse_size
from .tokenizer import Tokenizer
from .tokenizer_files import find_tokenizer, tokenizer_family

# Text, token ids, or chat messages ({"role": ..., "content": ...}).
Prompt = Union[str, Sequence[int], Sequence[Message]]
Progress = Callable[[int, int], None]  # (done, in all): bytes of a load, steps of a warm-up


class Model:
    """A model on a device, or in parts on several. Immutable; engines share it.

    Args:
        path: a .flm file, an `ftllm export` directory or a Hugging Face directory.
        dtype: what the linear layers of a Hugging Face directory become ("float16", "int8",
            "int4", "int4g128", ...); None keeps the file's own. Other files keep theirs.
        device: "cpu", "numa" (a CPU whose memory is in several nodes), "cuda" (the first NVIDIA
            GPU) or "cuda:1". "cuda:0=20,cpu=8" gives the first 20 layers to the GPU and 8 to the
            CPU; other numbers than the model's are proportions. "auto" is the GPU, where there is
            one; of a model too large for it the last layers, as many as fit, and the CPU.
        threads: CPU threads; None = every usable core. A GPU has no use for it.
        activation: how quantised weights meet activations on a CPU: "auto", "float32" or "int8".
            On a GPU they are decoded and meet 16-bit ones.
        kv_cache_dtype: "float16", "int8" or, on a CPU, "float32".
        pack_cache: read packed weights from a file beside the model ("<model>.<instruction
            set>.pack") where it fits, and write it otherwise, so that the next start is quick. CPUs
            only. A warning tells when it cannot be written.
        gpu_mem_ratio: share of the GPU's memory that may be in use once an engine has its memory
            for K and V, as vLLM's gpu_memory_utilization; None = 0.9. GPUs only.
        vram_limit: most memory of the GPU that the model and its engines hold at any time, in
            bytes or as "8GiB" or "8G"; weights or K and V beyond it raise ResourceError. CUDA's own
            needs (some 100 MB for its context) come on top. GPUs only.
        tokenizer: directory with tokenizer files, if not beside or inside the model.
        chat_template: file with a jinja2 chat template, if not the model's own.
        progress: called with (bytes done, bytes in all) while loading.

    Raises IoError, FormatError, Unsupported, ResourceError or InvalidArgument, each with one clear
    sentence.

    Attributes:
        core: the core's model.
        spec: the model's numbers and switches (family, layers, hidden, vocab, ...).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dtype: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        *,
        activation: str = "auto",
        kv_cache_dtype: str = "float16",
        pack_cache: bool = False,
        gpu_mem_ratio: float | None = None,
        vram_limit: int | str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.path = check_path(path)
        self.core = _core.Model.load(
            self.path,
            dtype="auto" if dtype is None else _check_text(dtype, "dtype"),
            device=_check_text(device, "device"),
            threads=check_threads(threads),
            activation=_check_text(activation, "activation"),
            kv_cache_dtype=_check_text(kv_cache_dtype, "kv_cache_dtype"),
            pack_cache=check_switch(pack_cache, "pack_cache"),
            gpu_mem_ratio=_check_share(gpu_mem_ratio, "gpu_mem_ratio"),
            vram_limit=0 if vram_limit is None else parse_size(vram_limit, "vram_limit"),
            progress=progress,
        )
        state, error = self.core.pack_cache
        if state == "failed":
            warnings.warn(f"packed weights are not kept: {error}", RuntimeWarning, stacklevel=2)
        self.spec: dict[str, Any] = self.core.spec
        self.kv_cache_dtype = "float16" if kv_cache_dtype == "auto" else kv_cache_dtype
        self._tokenizer_directory = os.fspath(tokenizer) if tokenizer is not None else None
        self._template_file = os.fspath(chat_template) if chat_template is not None else None

    def __repr__(self) -> str:
        family, layers, hidden = (self.spec[key] for key in ("family", "layers", "hidden"))
        return f"<slicellm.Model {self.path!r}: {family}, {layers} layers of {hidden}>"

    # ---- numbers ---------------------------------------------------------------------------------
    @property
    def threads(self) -> int:
        return self.core.threads

    @property
    def device(self) -> str:
        """A description of the device, or of the parts."""
        return self.core.device

    @property
    def fingerprint(self) -> str:
        """Text that tells model, dtypes, threads and CPU apart: the key of calibrations."""
        return self.core.fingerprint

    @property
    def pack_cache(self) -> str:
        """What became of the pack cache: "off", "read", "written" or "failed"."""
        return self.core.pack_cache[0]

    @property
    def weight_bytes(self) -> int:
        return self.core.weight_bytes

    @property
    def device_bytes(self) -> int:
        """What model and engines hold of the GPU's memory now; 0 on a CPU."""
        return self.core.device_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V that one token takes, all layers."""
        spec = self.spec
        head = spec["head_dim"] * {"float32": 4, "int8": 1}.get(self.kv_cache_dtype, 2)
        if self.kv_cache_dtype == "int8":
            head += 2  # its scale
        return int(2 * spec["layers"] * spec["kv_heads"] * head)

    # ---- the forward pass ------------------------------------------------------------------------
    def forward(self, ids: Sequence[int], chunk: int = 0) -> npt.NDArray[np.float32]:
        """Logits of every token, float32 [len(ids), vocab]; for tests and tools.

        `chunk`: tokens per step, 0 = all at once. Not while an engine runs on this model.
        """
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise make_error(InvalidArgument, "chunk", show(chunk), "a number of tokens")
        return self.core.forward(check_ids(ids, "ids"), chunk)

    # ---- text ------------------------------------------------------------------------------------
    @cached_property
    def _text_parts(self) -> tuple[Tokenizer, dict[str, Any]]:
        return find_tokenizer(self.core.file, self._tokenizer_directory)

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. Raises InvalidArgument where the model has no tokenizer."""
        return self._text_parts[0]

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Chat messages to a prompt's text."""
        tokenizer, tokenizer_config = self._text_parts
        file = self.core.file
        path = Path(self.path)
        return find_chat_template(
            tokenizer_family(file),
            tokenizer,
            file.config,
            tokenizer_config,
            path if path.is_dir() else None,
            self._template_file,
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a text to be continued, chat messages, or ids as they are."""
        if isinstance(prompt, str):
            if not prompt:
                raise make_error(InvalidArgument, "prompt", "no text", "at least one character")
            return self.tokenizer.encode_prompt(prompt)
        if is_chat(prompt):
            return self.tokenizer.encode_chat(self.chat_template.render(prompt))  # type: ignore[arg-type]
        return check_ids(prompt, "prompt")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(check_ids(ids, "ids"))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes of each id's text, one entry per id; empty without a tokenizer."""
        try:
            tokenizer = self.tokenizer
        except InvalidArgument:
            if self._tokenizer_directory is not None:
                raise
            return []  # token ids in, token ids out
        table = tokenizer.token_bytes()[: self.spec["vocab"]]
        return table + [b""] * (self.spec["vocab"] - len(table))


def load(
    path: str | os.PathLike[str],
    dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    **options: Any,
) -> Model:
    """Loads a model; `options` are the further keywords of `Model`."""
    return Model(path, dtype, device, threads, **options)


def is_chat(prompt: Any) -> bool:
    """True for a list of messages (as opposed to text or token ids)."""
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def check_ids(ids: Any, field: str) -> list[int]:
    """Token ids as a list of ints: from a sequence or an integer array."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            value = f"an array of {ids.dtype} with {ids.ndim} dimensions"
            raise make_error(InvalidArgument, field, value, "a list of token ids")
        ids = ids.tolist()
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Sequence):
        raise make_error(InvalidArgument, field, show(ids), "a list of token ids")
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise make_error(InvalidArgument, field, show(token), "token ids, which are integers")
        if not 0 <= token < 1 << 31:
            raise make_error(InvalidArgument, field, show(int(token)), "token ids from 0")
    return [int(token) for token in ids]


def check_path(path: Any) -> str:
    """The path of a model, if it may be one."""
    if not isinstance(path, (str, os.PathLike)):
        raise make_error(InvalidArgument, "model", show(path), "a path")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise make_error(InvalidArgument, "model", show(text), "a path")
    if text.lower().endswith(".gguf"):
        expected = "a .flm file, an export directory or a Hugging Face directory; GGUF comes later"
        raise make_error(Unsupported, "model", show(text), expected)
    return text


def check_threads(threads: Any) -> int:
    """A thread count for the core, where 0 stands for every usable core."""
    if threads is None:
        return 0
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise make_error(InvalidArgument, "threads", show(threads), "1 to 1024, or nothing")
    return threads


def _check_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise make_error(InvalidArgument, field, show(value), "a name")
    return value


def check_switch(value: Any, field: str) -> bool:
    """True or False, and nothing that only counts as such."""
    if not isinstance(value, bool):
        raise make_error(InvalidArgument, field, show(value), "True or False")
    return value


def _check_share(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise make_error(InvalidArgument, field, show(value), "a share above 0, at most 1")
    return float(value)
