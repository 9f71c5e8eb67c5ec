"""Text to token ids and back, by the sentencepiece and tokenizers libraries.

Where a tokenizer comes from, first match:

1. the directory given by the user (`--tokenizer DIR`);
2. files beside the model: tokenizer.json, tokenizer.model or ice_text.model (beside a .flm only
   if their vocabulary is the one that the .flm holds);
3. the same files embedded in the .flm under the keys of `slicellm.tokenizer_files`;
4. the .flm's vocabulary, from which a tokenizer is rebuilt (`slicellm.tokenizer_rebuild`).

Prompts get what their family expects around them: Llama's and Mistral's begin-of-sequence token,
ChatGLM2/3's [gMASK] sop before, ChatGLM-6B's [gMASK] <sop> after the text.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import sentencepiece
import tokenizers

from .errors import FormatError, InvalidArgument, make_error, show

MAX_PROMPT_BYTES = 16 << 20  # far beyond any context; keeps a hostile prompt from eating memory
MAX_ID = 1 << 22  # far beyond any vocabulary; keeps a hostile id from making a huge table
SPACE = "\u2581"  # how sentencepiece pieces write a space
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# Tokens that steer a model and are never part of its text.
# ChatGLM-6B's <|tab|> and <|blank_2|> look like them, but are text.
_STEERING = re.compile(r"<\|(?!tab\||blank_\d+\|)[^|]*\|>|</?s>|<unk>|<pad>|\[[gs]?MASK\]|<[se]op>")


def is_steering(text: str) -> bool:
    """True for the tokens that mark turns and ends: hidden from text, found in templates.

    >>> is_steering("<|im_end|>"), is_steering("<tool_call>")
    (True, False)
    """
    return _STEERING.fullmatch(text) is not None


def check_text(text: str, field: str = "prompt") -> str:
    """`text`, if it is Unicode that can be encoded; else InvalidArgument."""
    if not isinstance(text, str):
        raise make_error(InvalidArgument, field, type(text).__name__, "text")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        value = f"an unpaired surrogate at character {error.start}"
        raise make_error(InvalidArgument, field, value, "valid Unicode text") from None
    if size > MAX_PROMPT_BYTES:
        expected = f"at most {MAX_PROMPT_BYTES} bytes of text"
        raise make_error(InvalidArgument, field, f"{size} bytes", expected)
    return text


def check_size(source: str, size: int) -> int:
    """`size`, if it can be a number of ids; else FormatError."""
    if size > MAX_ID:
        value = f"token id {show(size - 1)}"
        raise make_error(FormatError, source, value, f"at most {MAX_ID - 1}")
    return size


class Tokenizer(ABC):
    """Text to token ids and back. Thread-safe.

    Attributes:
        source: where it comes from, for people.
        size: number of ids; every id is below it.
        specials: the tokens that steer the model, by their text.
        prefix_ids, suffix_ids: what a prompt of this family has before and after its text.
        bos_token, eos_token: texts for chat templates, "" if there is none.
    """

    def __init__(self, source: str, size: int, specials: dict[str, int]) -> None:
        self.source = source
        self.size = check_size(source, size)
        self.specials = specials
        self.prefix_ids: list[int] = []
        self.suffix_ids: list[int] = []
        self.bos_token = ""
        self.eos_token = ""

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of `text` and nothing around it.

        `parse_special`: tokens that steer the model are found in the text ("<|im_end|>");
        otherwise they are encoded as any other text.
        """
        check_text(text)
        return self._encode_special(text) if parse_special else self._encode_plain(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued, with what the family expects around it."""
        return self.prefix_ids + self.encode(text, parse_special=True) + self.suffix_ids

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a rendered chat template, which may hold the prefix already."""
        ids = self.encode(text, parse_special=True)
        if ids[: len(self.prefix_ids)] != self.prefix_ids:
            ids = self.prefix_ids + ids
        return ids + self.suffix_ids

    def check_ids(self, ids: Sequence[int]) -> None:
        for token in ids:
            if not 0 <= token < self.size:
                expected = f"a number from 0 to {self.size - 1}"
                raise make_error(InvalidArgument, "token id", show(token), expected)

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it (U+2581 or U+0120 for a space); "" if unknown."""

    @abstractmethod
    def _encode_plain(self, text: str) -> list[int]: ...

    @abstractmethod
    def _encode_special(self, text: str) -> list[int]: ...

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without steering tokens; the space that encoding put in front is gone."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """Bytes of each id's text, [size]; joined they are the UTF-8 text of a sequence.

        Steering tokens are empty. Unlike `decode`, the space in front stays: at the start of an
        answer it belongs to the text.
        """


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model whose piece i has id `offset` + i.

    `specials` holds further tokens beside the model's control pieces. `blanks`: ChatGLM-6B's way
    with white space, where the vocabulary has pieces for it: "\\n" is <n>, "\\t" is <|tab|>, and
    2 to 80 spaces are <|blank_2|> to <|blank_80|>.
    """

    def __init__(
        self,
        model: bytes,
        source: str,
        specials: dict[str, int] | None = None,
        offset: int = 0,
        blanks: bool = False,
    ) -> None:
        try:
            sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
            raise make_error(FormatError, source, show(reason), "a sentencepiece model") from None
        self.sp = sp
        self.offset = offset
        pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
        super().__init__(source, offset + len(pieces), {})
        self._pieces = pieces
        self.add_specials(
            {
                text: offset + i
                for i, text in enumerate(pieces)
                if sp.is_control(i) or (is_steering(text) and not sp.is_unknown(i))
            }
        )
        self.add_specials(specials or {})
        self._blanks: dict[str, str] = {}
        if blanks:
            wanted = {"\n": "<n>", "\t": "<|tab|>"}
            wanted.update({" " * n: f"<|blank_{n}|>" for n in range(80, 1, -1)})
            have = set(pieces)
            self._blanks = {space: name for space, name in wanted.items() if name in have}

    def add_specials(self, specials: dict[str, int]) -> None:
        """Adds steering tokens by text and id; only while the tokenizer is being made."""
        self.specials.update(specials)
        most = max([self.size, *(i + 1 for i in specials.values())])
        self.size = check_size(self.source, most)
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _encode_plain(self, text: str) -> list[int]:
        for space, name in self._blanks.items():
            text = text.replace(space, name)
        return [self.offset + i for i in self.sp.encode(text)]

    def _encode_special(self, text: str) -> list[int]:
        # Each stretch between special tokens is encoded as a text of its own (with its space in
        # front), as the slow tokenizers of these families do.
        ids: list[int] = []
        start = 0
        for match in self._pattern.finditer(text):
            if match.start() > start:
                ids += self._encode_plain(text[start : match.start()])
            ids.append(self.specials[match.group()])
            start = match.end()
        return ids + self._encode_plain(text[start:]) if start < len(text) else ids

    def token_text(self, token_id: int) -> str:
        at = token_id - self.offset
        return self._pieces[at] if 0 <= at < len(self._pieces) else ""

    def decode(self, ids: Sequence[int]) -> str:
        self.check_ids(ids)
        hidden = set(self.specials.values())
        count = len(self._pieces)
        kept = [i - self.offset for i in ids if i not in hidden]
        text: str = self.sp.decode([i for i in kept if 0 <= i < count])
        for space, name in self._blanks.items():
            text = text.replace(name, space)
        return text

    def token_bytes(self) -> list[bytes]:
        table = [b""] * self.size
        hidden = set(self.specials.values())
        spaces = {name: space for space, name in self._blanks.items()}
        for i, piece in enumerate(self._pieces):
            if self.offset + i in hidden or self.sp.is_unused(i):
                continue
            byte = _BYTE_PIECE.fullmatch(piece) if self.sp.is_byte(i) else None
            if byte:
                data = bytes([int(byte.group(1), 16)])
            elif self.sp.is_unknown(i):
                data = self.sp.decode([i]).encode()
            else:
                data = spaces.get(piece, piece.replace(SPACE, " ")).encode()
            table[self.offset + i] = data
        return table


class FastTokenizer(Tokenizer):
    """A tokenizer of the tokenizers library (tokenizer.json); its post-processing says what
    prompts have around them."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, source: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        specials = {token.content: i for i, token in added.items() if token.special}
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        super().__init__(source, max(vocab.values(), default=-1) + 1, specials)
        self._vocab = vocab
        self._added = added
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a").ids
        if plain != framed:
            at = next((k for k in range(len(framed)) if framed[k : k + len(plain)] == plain), 0)
            self.prefix_ids = framed[:at]
            self.suffix_ids = framed[at + len(plain) :]

    @classmethod
    def from_json(cls, text: str, source: str) -> FastTokenizer:
        """Raises FormatError if `text` is no tokenizer.json that the library reads."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise make_error(FormatError, source, show(str(error)), "a tokenizer.json") from None
        return cls(tokenizer, source)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_special(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_text(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int]) -> str:
        self.check_ids(ids)
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self) -> list[bytes]:
        decoder = _decoder_types(json.loads(self._tokenizer.to_str()).get("decoder"))
        printable = byte_level_alphabet() if "ByteLevel" in decoder else None
        spaced = bool({"Metaspace", "Replace"} & decoder)
        table = [b""] * self.size
        for text, i in self._vocab.items():
            if i in self._added:
                table[i] = b"" if self._added[i].special else text.encode()
            elif printable is not None:
                table[i] = b"".join(
                    bytes([printable[c]]) if c in printable else c.encode() for c in text
                )
            elif "ByteFallback" in decoder and _BYTE_PIECE.fullmatch(text):
                table[i] = bytes([int(text[3:5], 16)])
            else:
                table[i] = (text.replace(SPACE, " ") if spaced else text).encode()
        return table


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if not decoder:
        return set()
    inner = [_decoder_types(part) for part in decoder.get("decoders", [])]
    return {decoder["type"]}.union(*inner)


def byte_level_alphabet() -> dict[str, int]:
    """Printable character -> byte, as byte-level BPE (GPT-2) writes bytes.

    Printable Latin-1 bytes stand for themselves, the others are U+0100, U+0101, ... in order.

    >>> byte_level_alphabet()["A"], byte_level_alphabet()["\u0120"]
    (65, 32)
    """
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in same]
    table = {chr(byte): byte for byte in same}
    table.update({chr(0x100 + k): byte for k, byte in enumerate(others)})
    return table
