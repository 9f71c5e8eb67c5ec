"""Rebuilds a tokenizer from the vocabulary of a .flm, which holds texts, ids and scores only.

What the file does not say is settled by these rules.

Which kind: `tokenizer_byte_as_char` true = byte-level BPE; ChatGLM-6B = sentencepiece unigram;
anything else = sentencepiece BPE.

sentencepiece
* Piece i is the token of id i (ChatGLM-6B: id - first id); missing ids become unused pieces.
* Piece types: <unk> is unknown; <s>, </s>, <pad> and the file's special tokens are control; the
  256 pieces <0x00> to <0xFF> are bytes if all are there; user-defined pieces (found before any
  other) are those of score 0 in a unigram model, and in a BPE model those between the control
  pieces and <0x00>, where the trainer puts them.
* Without scores (files saved by fastllm's C++ code) a BPE piece scores -id: the trainer numbers
  pieces in the order of its merges. A unigram model cannot be rebuilt without scores.
* Normaliser: a file that keeps extra white space (`tokenizer_remove_extra_whitespaces` false; if
  the key is missing, a vocabulary with a piece of two spaces) has none ("identity", as Llama);
  any other has the trainer's default, nmt_nfkc.

byte-level BPE
* A token's score is minus the index of its merge, 1 for a token that no merge makes; without
  scores the order of merges is that of the ids.
* The pair of a merge is what the earlier merges leave of the token's own text.
* The pattern that splits text before merging is the first of the family's, Llama 3's, Qwen2's and
  GPT-2's that cuts the fewest of the vocabulary's own tokens. Qwen2's comes with NFC.
* Tokens longer than one byte that no merge makes, and the file's special tokens, are added tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from .errors import FormatError, InvalidArgument, make_error, show
from .sentencepiece_proto import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    model_proto,
)
from .tokenizer import (
    MAX_ID,
    FastTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    byte_level_alphabet,
    is_steering,
)

Token = tuple[bytes, int, float]  # text as stored, id, score

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    "qwen2": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_SYMBOLS}",
    "llama3": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS}",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def rebuild_tokenizer(
    family: str,
    config: Mapping[str, str],
    tokens: Sequence[Token],
    has_scores: bool,
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer from a .flm's vocabulary.

    Raises FormatError if the vocabulary is none (repeated ids, no usable tokens), InvalidArgument
    if the rules above do not reach.
    """
    if not tokens:
        raise make_error(
            InvalidArgument, "vocabulary", "no tokens", "a vocabulary to rebuild a tokenizer from"
        )
    _check_ids(tokens)
    if _flag(config, "tokenizer_byte_as_char", False):
        return _rebuild_byte_level(family, tokens, has_scores, special_tokens)
    if family == "chatglm1" and not has_scores:
        raise make_error(
            InvalidArgument,
            "vocabulary",
            "a unigram vocabulary without scores",
            "scores (tokenizer_use_score), or ice_text.model beside the model",
        )
    return _rebuild_sentencepiece(family, config, tokens, has_scores, special_tokens)


def _check_ids(tokens: Sequence[Token]) -> None:
    seen: set[int] = set()
    for _, token_id, _ in tokens:
        if not 0 <= token_id < MAX_ID:
            raise make_error(FormatError, "token id", str(token_id), f"0 to {MAX_ID - 1}")
        if token_id in seen:
            raise make_error(FormatError, "token id", f"{token_id} twice", "each id once")
        seen.add(token_id)


def _flag(config: Mapping[str, str], key: str, fallback: bool) -> bool:
    text = config.get(key, "").lower()
    return text in ("true", "1") if text else fallback


# ---- sentencepiece -------------------------------------------------------------------------------
def _rebuild_sentencepiece(
    family: str,
    config: Mapping[str, str],
    tokens: Sequence[Token],
    has_scores: bool,
    special_tokens: Sequence[str],
) -> SentencePieceTokenizer:
    unigram = family == "chatglm1"
    offset = min(token_id for _, token_id, _ in tokens) if unigram else 0
    by_id = {token_id - offset: (text, score) for text, token_id, score in tokens}
    texts = {text: i for i, (text, _) in by_id.items()}
    if b"<unk>" not in texts:
        raise make_error(
            InvalidArgument, "vocabulary", "no <unk> piece", "a sentencepiece vocabulary"
        )
    byte_pieces = {f"<0x{b:02X}>".encode() for b in range(256)}
    has_bytes = byte_pieces <= texts.keys()
    first_byte = texts[b"<0x00>"] if has_bytes else 0
    control = {b"<s>", b"</s>", b"<pad>"} | {text.encode() for text in special_tokens}

    def kind(i: int, text: bytes, score: float) -> int:
        if text == b"<unk>":
            return UNKNOWN
        if text in control:
            return CONTROL
        if has_bytes and text in byte_pieces:
            return BYTE
        user_defined = score == 0 if unigram else i < first_byte
        return USER_DEFINED if user_defined else NORMAL

    pieces = []
    seen: set[bytes] = set()
    for i in range(max(by_id) + 1):
        text, score = by_id.get(i, (b"", 0.0))
        if not _is_utf8(text) or text in seen:
            pieces.append(Piece(f"<missing_{i}>".encode(), 0.0, UNUSED))
            continue
        seen.add(text)
        if not has_scores:
            score = -float(i)
        pieces.append(Piece(text, score, kind(i, text, score)))

    keeps_spaces = "\u2581\u2581".encode() in texts
    remove_spaces = _flag(config, "tokenizer_remove_extra_whitespaces", not keeps_spaces)
    proto = model_proto(
        pieces,
        UNIGRAM if unigram else BPE,
        normalizer="nmt_nfkc" if remove_spaces else "identity",
        add_dummy_prefix=_flag(config, "tokenizer_add_dummy_prefix", True),
        remove_extra_whitespaces=remove_spaces,
    )
    source = f"rebuilt from the vocabulary (sentencepiece {'unigram' if unigram else 'BPE'})"
    return SentencePieceTokenizer(proto, source, offset=offset, blanks=unigram)


def _is_utf8(text: bytes) -> bool:
    try:
        return bool(text.decode("utf-8"))
    except UnicodeDecodeError:
        return False


# ---- byte-level BPE ------------------------------------------------------------------------------
def _rebuild_byte_level(
    family: str, tokens: Sequence[Token], has_scores: bool, special_tokens: Sequence[str]
) -> FastTokenizer:
    alphabet = byte_level_alphabet()
    specials = set(special_tokens)
    vocab: dict[str, int] = {}
    added: list[str] = []
    ranks: dict[str, float] = {}
    for data, token_id, score in tokens:
        text = data.decode("utf-8", "replace")
        merged = len(text) > 1 and all(c in alphabet for c in text)
        vocab[text] = token_id
        if text in specials or (len(text) > 1 and (not merged or (has_scores and score == 1.0))):
            added.append(text)
        elif merged:
            ranks[text] = -score if has_scores else float(token_id)
    merges = find_merges(ranks)

    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=family == "llama")
    except Exception as error:  # the library raises plain Exception
        raise make_error(
            FormatError, "vocabulary", show(str(error)), "a byte-level BPE vocabulary"
        ) from None
    tokenizer = tokenizers.Tokenizer(bpe)
    pattern = choose_pattern(list(ranks), "llama3" if family == "llama" else "qwen2")
    if pattern == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The library keeps the id of an added token that its model knows.
    for steering, add in ((True, tokenizer.add_special_tokens), (False, tokenizer.add_tokens)):
        texts = [text for text in added if is_steering(text) is steering]
        add([tokenizers.AddedToken(t, special=steering, normalized=False) for t in texts])
    return FastTokenizer(tokenizer, f"rebuilt from the vocabulary (byte-level BPE, {pattern})")


def find_merges(ranks: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pair that each merged token (text -> rank) is made of, in the order of the ranks.

    >>> find_merges({"th": 0, "the": 1})
    [('t', 'h'), ('th', 'e')]
    """
    merges: list[tuple[str, str]] = []
    known: set[str] = {c for token in ranks for c in token}  # what the merges so far can make
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pairs = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in known and token[i:] in known
        ]
        if len(pairs) > 1:  # only then is it worth merging the text itself
            parts = _merge_below(token, ranks, rank)
            pairs = [(parts[0], parts[1])] if len(parts) == 2 else []
        merges += pairs  # none: no merge reaches the token, it exists in the table only
        known.add(token)
    return merges


def _merge_below(token: str, ranks: Mapping[str, float], limit: float) -> list[str]:
    """What merges of a rank below `limit` leave of `token`'s characters."""
    parts = list(token)
    while len(parts) > 2:
        best: float | None = None
        at = -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], limit)
            if rank < limit and (best is None or rank < best):
                best, at = rank, i
        if best is None:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def choose_pattern(merged: Sequence[str], family_pattern: str) -> str:
    """The name of the pattern that cuts the fewest merged tokens; the family's where equal."""
    alphabet = byte_level_alphabet()
    texts = []
    for token in merged:
        try:
            text = bytes(alphabet[c] for c in token).decode("utf-8")
        except UnicodeDecodeError:
            continue  # part of a character
        if unicodedata.is_normalized("NFC", text):
            texts.append(text)

    def cut(name: str) -> int:
        split = pre_tokenizers.Split(Regex(PATTERNS[name]), behavior="isolated")
        return sum(len(split.pre_tokenize_str(text)) > 1 for text in texts)

    names = [family_pattern] + [name for name in PATTERNS if name != family_pattern]
    return min(names, key=cut)
