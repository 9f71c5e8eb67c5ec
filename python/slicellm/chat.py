"""Chat messages to a prompt's text, by the model's own jinja2 template or its family's format.

Where a model's template comes from, first match: a file given by the user (`--chat_template`), the
model directory's chat_template.jinja, `chat_template` of tokenizer_config.json, the .flm's
`chat_template` key, ChatML for Qwen2, the .flm's turn texts (`pre_prompt`, `user_role`, `bot_role`,
`history_sep`), the family's format in `FAMILY_TEMPLATES`. A family's format and turn texts are
taken only if the tokenizer knows the tokens that they are made of.

Templates come with models and are not trusted: `slicellm.chat_worker` renders them in a sandbox in
a process of its own, bounded in time, memory and output.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import FormatError, InvalidArgument, IoError, make_error, show
from .tokenizer import Tokenizer, check_text

Message = Mapping[str, Any]

MAX_TEMPLATE_CHARS = 256 << 10
MAX_RENDERED_CHARS = 4 << 20
MAX_MESSAGES = 4096
RENDER_SECONDS = 5.0  # real templates take about a millisecond

CHATML = """
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}
"""

LLAMA2 = """
{%- set found = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set found.system = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' -%}
{%- elif message['role'] == 'user' -%}
{{ bos_token + '[INST] ' + found.system + message['content'].strip() + ' [/INST]' }}
{%- set found.system = '' -%}
{%- else -%}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

LLAMA3 = """
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
   + message['content'].strip() + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif -%}
"""

# ChatGLM-6B: a first question stands alone; rounds count from 0, one line each.
CHATGLM1 = """
{%- set count = namespace(round=0) -%}
{%- set plain = (messages | selectattr('role', 'equalto', 'user') | list | length) == 1 -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ message['content'] + '\n' }}
{%- set count.round = count.round + 1 -%}
{%- elif message['role'] == 'system' -%}
{{ message['content'] + '\n' }}
{%- elif plain -%}
{{ message['content'] }}
{%- else -%}
{{ '[Round ' ~ count.round ~ ']\n问：' + message['content'] + '\n答：' }}
{%- endif -%}
{%- endfor -%}
"""

# ChatGLM2: rounds count from 1, with blank lines between.
CHATGLM2 = """
{%- set count = namespace(round=1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ message['content'] + '\n\n' }}
{%- set count.round = count.round + 1 -%}
{%- elif message['role'] == 'system' -%}
{{ message['content'] + '\n\n' }}
{%- else -%}
{{ '[Round ' ~ count.round ~ ']\n\n问：' + message['content'] + '\n\n答：' }}
{%- endif -%}
{%- endfor -%}
"""

# fastllm's turn texts; a system message joins the first question.
TURNS = """
{{- pre_prompt -}}
{%- set found = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set found.system = message['content'] + '\n\n' -%}
{%- elif message['role'] == 'assistant' -%}
{{ message['content'] + history_sep }}
{%- else -%}
{{ user_role + found.system + message['content'] + bot_role }}
{%- set found.system = '' -%}
{%- endif -%}
{%- endfor -%}
"""

PLAIN = """
{%- for message in messages -%}
{{ message['content'] + ('' if loop.last else '\n') }}
{%- endfor -%}
"""

# family -> (template, tokens that the tokenizer must know for it)
FAMILY_TEMPLATES: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "qwen2": [(CHATML, ("<|im_start|>", "<|im_end|>"))],
    "llama": [
        (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
        (LLAMA2, ("<s>", "</s>")),
    ],
    "mistral": [(LLAMA2, ("<s>", "</s>"))],
    "chatglm1": [(CHATGLM1, ())],
    "chatglm2": [(CHATGLM2, ())],
}
_TURN_KEYS = ("pre_prompt", "user_role", "bot_role", "history_sep")
_FIXED_TOKEN = re.compile(r"<FLM_FIX_TOKEN_(\d{1,7})>")


class ChatTemplate:
    """Renders chat messages to a prompt's text. Thread-safe."""

    def __init__(self, template: str, source: str, variables: Mapping[str, Any] = {}) -> None:
        if len(template) > MAX_TEMPLATE_CHARS:
            size = f"{len(template)} characters"
            expected = f"at most {MAX_TEMPLATE_CHARS}"
            raise make_error(FormatError, "chat_template", size, expected)
        self.template = template
        self.source = source
        self._variables = dict(variables)
        self._worker = _Worker()

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation: a list of {"role": ..., "content": ...}.

        With `add_generation_prompt` it ends where the assistant's answer begins. `variables` are
        the template's further ones (tools, enable_thinking, ...). Raises InvalidArgument for
        messages that are none or that the template refuses, FormatError for a broken template.
        """
        request = {
            "template": self.template,
            "variables": {
                **self._variables,
                "tools": None,
                "documents": None,
                **variables,
                "messages": check_messages(messages),
                "add_generation_prompt": bool(add_generation_prompt),
            },
            "max_chars": MAX_RENDERED_CHARS,
        }
        try:
            line = json.dumps(request, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            expected = "values that JSON can hold"
            raise make_error(InvalidArgument, "messages", show(str(error)), expected) from None
        answer = self._worker.ask(line, RENDER_SECONDS)
        if "refused" in answer:
            expected = "a conversation that the model's template takes"
            raise make_error(InvalidArgument, "messages", show(answer["refused"], 200), expected)
        if "error" in answer:
            expected = f"a template that renders ({self.source})"
            raise make_error(FormatError, "chat_template", show(answer["error"], 200), expected)
        return answer["text"]


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain objects; content given as text parts is joined."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise make_error(InvalidArgument, "messages", show(messages), "a list of messages")
    if not 0 < len(messages) <= MAX_MESSAGES:
        expected = f"1 to {MAX_MESSAGES} messages"
        raise make_error(InvalidArgument, "messages", f"{len(messages)} messages", expected)
    out = []
    for k, message in enumerate(messages):
        where = f"messages[{k}]"
        if not isinstance(message, Mapping):
            expected = "an object with role and content"
            raise make_error(InvalidArgument, where, show(message), expected)
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise make_error(InvalidArgument, f"{where}.role", show(role), "a role's name")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(_part_text(part, where) for part in content)
        if content is not None:
            check_text(content, f"{where}.content")
        elif "tool_calls" not in message:
            raise make_error(InvalidArgument, f"{where}.content", "nothing", "text")
        out.append({**message, "role": role, "content": content or ""})
    return out


def _part_text(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        expected = 'a part {"type": "text", "text": ...}'
        raise make_error(InvalidArgument, f"{where}.content", show(part), expected)
    return text


def find_chat_template(
    family: str,
    tokenizer: Tokenizer,
    model_config: Mapping[str, str],
    tokenizer_config: Mapping[str, Any],
    directory: Path | None = None,
    given: str | None = None,
) -> ChatTemplate:
    """The chat template of a model; see the module's text for the order.

    `directory`: where the model's own files are; `given`: a file named by the user.
    """
    variables: dict[str, Any] = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in tokenizer_config.items()
        if key in ("unk_token", "pad_token")
    }
    variables.update(bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    if given is not None:
        return ChatTemplate(_read_template(Path(given)), given, variables)
    if directory is not None and (directory / "chat_template.jinja").is_file():
        path = directory / "chat_template.jinja"
        return ChatTemplate(_read_template(path), str(path), variables)
    text = _default_template(tokenizer_config.get("chat_template"))
    if text:
        return ChatTemplate(text, "tokenizer_config.json", variables)
    if model_config.get("chat_template"):
        return ChatTemplate(model_config["chat_template"], "the .flm", variables)

    turns = {key: model_config.get(key, "") for key in _TURN_KEYS}
    known = tokenizer.specials
    candidates = FAMILY_TEMPLATES.get(family, [])
    if family != "qwen2" and any(turns.values()):
        by_id = {i: text for text, i in known.items()}
        turns = {
            key: _FIXED_TOKEN.sub(lambda m: by_id.get(int(m.group(1)), ""), text)
            for key, text in turns.items()
        }
        wanted = re.findall(r"<\|[^|]*\|>", "".join(turns.values()))
        if all(token in known for token in wanted):
            return ChatTemplate(TURNS, "the .flm's turn texts", {**variables, **turns})
    for template, tokens in candidates:
        if all(token in known for token in tokens):
            return ChatTemplate(template, f"the format of the {family} family", variables)
    return ChatTemplate(PLAIN, "none: messages are joined by line ends", variables)


def _default_template(value: Any) -> str:
    """chat_template of tokenizer_config.json: a text, or a list of named ones."""
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _read_template(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(4 * MAX_TEMPLATE_CHARS + 1).decode("utf-8")
    except OSError as error:
        reason = error.strerror or "no data"
        raise make_error(IoError, str(path), reason, "a readable chat template") from None
    except UnicodeDecodeError:
        raise make_error(FormatError, str(path), "invalid UTF-8", "UTF-8 text") from None


class _Worker:
    """A chat_worker process, started when it is first asked and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, line: bytes, seconds: float) -> dict[str, str]:
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = _start_worker()
                weakref.finalize(self, _end_worker, process)
            try:
                answer = _exchange(process, line, time.monotonic() + seconds)
            except BaseException:  # also on Ctrl-C: half an answer must not stay in the pipe
                _end_worker(process)
                raise
            if answer is None:
                _end_worker(process)
                return {"error": f"it takes more than {seconds:g} seconds"}
            if not answer:
                _end_worker(process)
                return {"error": "it ended the process that renders it"}
            result: dict[str, str] = json.loads(answer)
            return result


def _start_worker() -> subprocess.Popen[bytes]:
    kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "TZ")
    environment = {k: v for k, v in os.environ.items() if k in kept or k.startswith("PYTHON")}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("chat_worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _end_worker(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _exchange(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes | None:
    """Sends a line and reads one: b"" if the process ended, None after `deadline`."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except (BrokenPipeError, ConnectionResetError):
        return b""
    answer = bytearray()
    while not answer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return None
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            return b""
        answer += data
    return bytes(answer)
