"""Renders chat templates in a process of its own: `python chat_worker.py` on pipes.

A template comes with a model and is not trusted. It runs in jinja2's immutable sandbox, and this
process can neither open files nor take more memory than it is given; whoever started it bounds its
time by ending it. One JSON object a line comes in, one goes out:

    {"template": str, "variables": {...}, "max_chars": int}  ->  {"text": str}
                                                              or {"error": str} (the template's
                                                              fault) or {"refused": str} (the
                                                              template refuses the messages)
"""

from __future__ import annotations

import datetime
import json
import sys
from functools import lru_cache
from typing import Any

if __name__ == "__main__":
    del sys.path[0]  # the package's own directory; its modules are no top-level modules

import jinja2
import jinja2.debug  # it reports errors; once files are out of reach it cannot be imported any more
import jinja2.ext
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30


class MessagesRefusedError(jinja2.TemplateError):
    """Raised by a template with raise_exception()."""


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's part for training; here it
    only stands for what is inside."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which touching what is unsafe ends the rendering at once."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"access to attribute {attribute!r} is unsafe")


def raise_exception(message: str) -> None:
    raise MessagesRefusedError(str(message))


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def make_environment() -> Environment:
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        autoescape=False,
    )
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.filters["tojson"] = to_json
    return environment


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    return make_environment().from_string(source)


def render(source: str, variables: dict[str, Any], max_chars: int) -> dict[str, str]:
    """The answer to one request; everything a template can do wrong becomes an "error"."""
    parts, size = [], 0
    try:
        for part in compile_template(source).generate(**variables):
            size += len(part)
            if size > max_chars:
                return {"error": f"it writes more than {max_chars} characters"}
            parts.append(part)
    except MessagesRefusedError as error:
        return {"refused": str(error)[:1000]}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # whatever a template does, the answer is a sentence
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    return {"text": "".join(parts)}


def limit_process() -> None:
    """No more memory than MEMORY_BYTES and no file beyond the pipes, where the system can."""
    try:
        import resource
    except ImportError:  # not on every system; time and output stay bounded
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def main() -> None:
    render("{{ [1] | tojson }}{{ strftime_now('%Y') }}", {}, 100)  # imports what is needed
    limit_process()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = render(request["template"], request["variables"], request["max_chars"])
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
