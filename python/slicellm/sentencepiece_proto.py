"""Writes a sentencepiece ModelProto: how a vocabulary becomes a tokenizer again.

Only the fields that the library reads at load time are written. Field numbers are those of
sentencepiece_model.proto; the wire format is protocol buffers' (no protobuf package needed).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class Piece:
    text: bytes
    score: float
    kind: int  # NORMAL ... BYTE


def model_proto(
    pieces: Sequence[Piece],
    model_type: int,
    normalizer: str,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
) -> bytes:
    """A serialised ModelProto; a piece's index is its id.

    `normalizer` is the name of one of sentencepiece's built-in rules ("identity", "nmt_nfkc").
    """
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.kind != UNUSED}
    trainer = b"".join(
        (
            _varint_field(3, model_type),
            _varint_field(4, len(pieces)),
            _varint_field(35, any(piece.kind == BYTE for piece in pieces)),  # byte_fallback
            _varint_field(40, next(i for i, p in enumerate(pieces) if p.kind == UNKNOWN)),
            _varint_field(41, ids.get(b"<s>", -1)),
            _varint_field(42, ids.get(b"</s>", -1)),
            _varint_field(43, ids.get(b"<pad>", -1)),
        )
    )
    # The library serialises its rule's tables as a model that has only a normaliser; a message
    # that comes twice is merged, and the later value of a field wins.
    rules = sentencepiece.SentencePieceNormalizer(rule_name=normalizer).serialized_model_proto()
    spaces = b"".join(
        (
            _varint_field(3, add_dummy_prefix),
            _varint_field(4, remove_extra_whitespaces),
            _varint_field(5, True),  # escape_whitespaces: U+2581 for a space
        )
    )
    parts = [_bytes_field(1, _piece(piece)) for piece in pieces]
    return b"".join(parts) + _bytes_field(2, trainer) + rules + _bytes_field(3, spaces)


def _piece(piece: Piece) -> bytes:
    score = bytes([2 << 3 | 5]) + struct.pack("<f", piece.score)
    return _bytes_field(1, piece.text) + score + _varint_field(3, piece.kind)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are sign-extended to 64 bits
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _bytes_field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data
