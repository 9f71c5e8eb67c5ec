"""Chat templates: what they render, where they come from, and what a hostile one cannot do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicellm import FormatError, InvalidArgument, IoError, _core, chat
from slicellm.chat import ChatTemplate, find_chat_template
from slicellm.tokenizer_files import find_tokenizer, tokenizer_family

ROUNDS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
SYSTEM = {"role": "system", "content": "Be kind."}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


# ---- the families' formats, written out by hand from the models' documentation -------------------
@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("CHATML", ROUNDS[:1], "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
         "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("CHATML", [SYSTEM, *ROUNDS], "<|im_start|>system\nBe kind.<|im_end|>\n"
         "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
         "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
        ("LLAMA2", ROUNDS[:1], "<s>[INST] Hi [/INST]"),
        ("LLAMA2", [SYSTEM, *ROUNDS], "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] "
         "Hello. </s><s>[INST] Bye [/INST]"),
        ("LLAMA3", ROUNDS[:1], "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("CHATGLM1", ROUNDS[:1], "Hi"),
        ("CHATGLM1", ROUNDS, "[Round 0]\n问：Hi\n答：Hello.\n[Round 1]\n问：Bye\n答："),
        ("CHATGLM2", ROUNDS[:1], "[Round 1]\n\n问：Hi\n\n答："),
        ("CHATGLM2", ROUNDS,
         "[Round 1]\n\n问：Hi\n\n答：Hello.\n\n[Round 2]\n\n问：Bye\n\n答："),
        ("PLAIN", [SYSTEM, *ROUNDS[:1]], "Be kind.\nHi"),
    ],
)  # fmt: skip
def test_family_formats(name: str, messages: list[Any], text: str) -> None:
    assert ChatTemplate(getattr(chat, name), name, TOKENS).render(messages) == text


def test_variables_and_tools() -> None:
    template = ChatTemplate(
        "{{ tools | tojson }} {{ enable_thinking }} {{ messages[0].content }}"
        "{% generation %}!{% endgeneration %}{{ '?' if add_generation_prompt }}",
        "test",
    )
    text = template.render(ROUNDS, tools=[{"name": "é<>"}], enable_thinking=False)
    assert text == '[{"name": "é<>"}] False Hi!?'
    assert template.render(ROUNDS, False, enable_thinking=1).endswith("1 Hi!")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = ChatTemplate("{{ messages[0]['content'] }}", "test")
    assert template.render([{"role": "user", "content": parts}]) == "ab"


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_content_is_never_a_template(text: str) -> None:
    """What users write is data: no template syntax in it is run, no character is changed."""
    messages = [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}" + text}]
    assert _IDENTITY.render(messages) == "{{ 7 * 7 }}{% raw %}" + text


_IDENTITY = ChatTemplate("{{ messages[0]['content'] }}", "test")


# ---- where a template comes from -----------------------------------------------------------------
def found(path: Path, given: str | None = None) -> ChatTemplate:
    file = _core.open_model_file(str(path))
    tokenizer, config = find_tokenizer(file)
    directory = path if path.is_dir() else None
    return find_chat_template(
        tokenizer_family(file), tokenizer, file.config, config, directory, given
    )


def test_order_of_sources(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    from_config = found(directory)
    assert from_config.source == "tokenizer_config.json"
    assert from_config.render(ROUNDS[:1]) == "<s>user: Hi\nassistant:"
    (directory / "chat_template.jinja").write_text("jinja {{ messages[0].content }}")
    assert found(directory).render(ROUNDS) == "jinja Hi"
    (tmp_path / "mine.jinja").write_text("mine {{ messages[0].content }}")
    assert found(directory, str(tmp_path / "mine.jinja")).render(ROUNDS) == "mine Hi"


def test_named_templates(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert found(directory).render(ROUNDS) == "plain"


def test_fallbacks_of_recorded_files(fixtures: Path) -> None:
    assert found(fixtures / "llama-float16.flm").render(ROUNDS[:1]) == "<s>[INST] Hi [/INST]"
    qwen = found(fixtures / "qwen2-float16.flm").render(ROUNDS[:1])
    assert qwen.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert found(fixtures / "chatglm1-float16.flm").render(ROUNDS[:1]) == "Hi"
    # fastllm's C++ code wrote Llama 3's turns into a file whose vocabulary does not know them.
    assert found(fixtures / "llamacpp-float16.flm").render(ROUNDS[:1]) == "<s>[INST] Hi [/INST]"


def test_turn_texts_of_a_flm(tiny_llama: Path) -> None:
    file = _core.open_model_file(str(tiny_llama))
    tokenizer, _ = find_tokenizer(file)
    turns = {
        "pre_prompt": "<FLM_FIX_TOKEN_1>start\n",
        "user_role": "USER: ",
        "bot_role": " ASSISTANT:",
        "history_sep": "<FLM_FIX_TOKEN_2>",
    }
    template = find_chat_template("llama", tokenizer, turns, {})
    text = template.render([SYSTEM, *ROUNDS])
    assert text == ("<s>start\nUSER: Be kind.\n\nHi ASSISTANT:Hello.</s>USER: Bye ASSISTANT:")
    key = {"chat_template": "own {{ messages[-1].content }}"}
    assert find_chat_template("llama", tokenizer, {**turns, **key}, {}).render(ROUNDS) == "own Bye"


# ---- hostile and broken templates ----------------------------------------------------------------
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0]['__class__'] }}{{ messages[0].__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ (messages | attr('__class__')).x }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{% from 'os' import path %}",
        "{{ lipsum.__globals__.os }}",
        "{{ undefined_name.field }}",
        "{% if %}",
        "{{ 'unclosed'",
        "{{ 1 / 0 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(10 ** 9) }}",
        "{{ 'a' * 10 ** 11 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    ],
)
def test_bad_templates_are_refused(template: str) -> None:
    with pytest.raises(FormatError, match="chat_template: got .* expected a template") as caught:
        ChatTemplate(template, "test").render(ROUNDS)
    assert caught.value.field == "chat_template"
    assert "\n" not in str(caught.value)


def test_endless_template_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDER_SECONDS", 1.0)
    template = ChatTemplate(
        "{% for i in range(99999 if messages|length == 3 else 1) %}"
        "{% for j in range(99999 if messages|length == 3 else 1) %}{% endfor %}{% endfor %}ok",
        "test",
    )
    with pytest.raises(FormatError, match="more than 1 second"):
        template.render(ROUNDS)
    assert template.render(ROUNDS[:1]) == "ok"  # a fresh process answers


def test_long_template_is_refused() -> None:
    with pytest.raises(FormatError, match="at most"):
        ChatTemplate("a" * (1 << 20), "test")


def test_template_refuses_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", "test")
    with pytest.raises(InvalidArgument, match="roles must alternate") as caught:
        template.render(ROUNDS)
    assert caught.value.field == "messages"


def test_unreadable_template_files(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(IoError, match="expected a readable chat template"):
        found(tiny_llama_dir, str(tmp_path / "none.jinja"))
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xff")
    with pytest.raises(FormatError, match="invalid UTF-8"):
        found(tiny_llama_dir, str(tmp_path / "bytes.jinja"))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("Hi", "messages"),
        (None, "messages"),
        ([1], r"messages\[0\]"),
        ([{"content": "Hi"}], r"messages\[0\].role"),
        ([{"role": 1, "content": "Hi"}], r"messages\[0\].role"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\].content"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\].content"),
        ([*ROUNDS, {"role": "user", "content": None}], r"messages\[3\].content"),
        ([{"role": "user", "content": "Hi", "x": float("nan")}], "messages"),
        ([{"role": "user", "content": "Hi", "x": object()}], "messages"),
        ([ROUNDS[0]] * 5000, "messages"),
    ],
)
def test_bad_messages_are_refused(messages: Any, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: got .* expected "):
        _IDENTITY.render(messages)
