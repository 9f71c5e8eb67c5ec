"""LLM inference for one edge box that keeps a promise to each request.

A request is a Task: a prompt with service-level objectives (time to the first token, time per
token, deadline) and a utility. An Engine decides, step by step, which tasks take part in the next
forward pass, so that as much utility as possible is delivered in time.

>>> import slicellm                                                     # doctest: +SKIP
>>> model = slicellm.load("model.flm", threads=2)
>>> with slicellm.Engine(model, policy="slice") as engine:
...     result = engine.generate("Hello", ttft_ms=500, tpot_ms=100, max_tokens=32)
>>> result.text, result.slo_met
"""

from __future__ import annotations

from . import calibration
from ._core import LatencyModel, MaskMatrix, Policy, StepPlan, TaskView, View
from .chat import ChatTemplate
from .engine import AsyncStream, Engine, Stream
from .errors import (
    Error,
    FormatError,
    InvalidArgument,
    IoError,
    ResourceError,
    StateError,
    Unsupported,
)
from .model import Model, load
from .simulation import Simulation, simulate
from .task import Piece, Result, Task
from .tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "AsyncStream",
    "ChatTemplate",
    "Engine",
    "Error",
    "FormatError",
    "InvalidArgument",
    "IoError",
    "LatencyModel",
    "MaskMatrix",
    "Model",
    "Piece",
    "Policy",
    "ResourceError",
    "Result",
    "Simulation",
    "StateError",
    "StepPlan",
    "Stream",
    "Task",
    "TaskView",
    "Tokenizer",
    "Unsupported",
    "View",
    "__version__",
    "calibration",
    "load",
    "simulate",
]
