"""The native core. Prefer the names that `slicellm` re-exports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# ---- errors (bind_error.cc) ---------------------------------------------------------------------
class Error(Exception):
    field: str
    value: str
    expected: str

class InvalidArgument(Error, ValueError): ...
class FormatError(Error, ValueError): ...
class IoError(Error, OSError): ...
class Unsupported(Error, NotImplementedError): ...
class ResourceError(Error, RuntimeError): ...
class StateError(Error, RuntimeError): ...

# ---- files (bind_format.cc) ---------------------------------------------------------------------
class Weight:
    """A tensor of a model file; `decode()` gives float32 of the logical shape."""

    @staticmethod
    def from_numpy(name: str, array: npt.NDArray[Any]) -> Weight: ...  # float32/float16; copies
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...  # "float32", "float16", "bfloat16", "int8", "int4"
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def group_size(self) -> int: ...
    @property
    def scale(self) -> npt.NDArray[np.float32]: ...  # [rows * groups]
    @property
    def minimum(self) -> npt.NDArray[np.float32]: ...
    def decode(self) -> npt.NDArray[np.float32]: ...
    def convert(self, dtype: str, threads: int = 1) -> Weight: ...  # "int4g32", "float16", ...

class ModelFile:
    @property
    def kind(self) -> str: ...  # "flm", "export_dir", "hf_dir"
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def config(self) -> dict[str, str]: ...  # flat, dotted keys, values as text
    @property
    def tokens(self) -> list[tuple[bytes, int, float]]: ...  # a .flm: bytes, id, score
    @property
    def has_scores(self) -> bool: ...
    @property
    def special_tokens(self) -> list[str]: ...
    def names(self) -> list[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def weight(self, name: str) -> Weight: ...

def open_model_file(path: str) -> ModelFile: ...
def write_flm(
    path: str,
    config: dict[str, str],
    tokens: Sequence[tuple[bytes, int, float]],
    has_scores: bool,
    special_tokens: Sequence[str],
    names: Sequence[str],
    weight: Callable[[str], Weight],
    progress: Callable[[int, int], None] | None = None,
) -> None: ...
def write_export_dir(
    path: str,
    names: Sequence[str],
    weight: Callable[[str], Weight],
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = 4 << 30,
) -> None: ...

# Converts a model file or directory: linear layers to `dtype` (None keeps their types), in
# parallel, with fastllm's names for the family when the output ends in ".flm". Directories get
# weights only; slicellm.convert.export adds configuration and tokenizer files.
def export_model(
    path: str,
    output: str,
    dtype: str | None,
    extra_config: dict[str, str],
    tokens: Sequence[tuple[bytes, int, float]],
    has_scores: bool,
    special_tokens: Sequence[str],
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None: ...
def parse_dtype(text: str) -> tuple[str, int]: ...

# ---- model (bind_model.cc) ----------------------------------------------------------------------
class Model:
    @staticmethod
    def load(
        path: str,
        dtype: str = "auto",
        device: str = "cpu",
        threads: int = 0,
        activation: str = "auto",
        kv_cache_dtype: str = "float16",
        isa: str = "",
        pack_cache: bool = False,
        gpu_mem_ratio: float | None = None,  # GPUs only; None = 0.9
        vram_limit: int = 0,  # bytes; GPUs only; 0 = none
        progress: Callable[[int, int], None] | None = None,
    ) -> Model: ...
    @property
    def spec(self) -> dict[str, Any]: ...  # ModelSpec's fields by name
    @property
    def file(self) -> ModelFile: ...
    @property
    def threads(self) -> int: ...
    @property
    def device(self) -> str: ...  # description of the device, or of the parts
    @property
    def device_bytes(self) -> int: ...  # held of the GPU's memory
    @property
    def fingerprint(self) -> str: ...
    @property
    def pack_cache(self) -> tuple[str, str]: ...  # off, read, written or failed, and why
    @property
    def free_memory(self) -> int: ...  # bytes of the device's memory that are free now
    @property
    def weight_bytes(self) -> int: ...
    @property
    def kv_block_bytes(self) -> int: ...
    # Logits of every token, computed in steps of `chunk` tokens (0 = all at once) or in steps of
    # the listed sizes. `prompt_len`: how many ids are the prompt (0 = all); ChatGLM-6B needs it.
    def forward(
        self, ids: Sequence[int], chunk: int | Sequence[int] = 0, prompt_len: int = 0
    ) -> npt.NDArray[np.float32]: ...

# What `Model.spec` would be, without loading weights.
def model_spec(file: ModelFile) -> dict[str, Any]: ...

# ---- tasks (bind_task.cc) -----------------------------------------------------------------------
class TaskSpec:
    """A request for the engine; token ids only. Times in milliseconds, as in all of Python."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int = 256,
        utility: float = 1.0,
        ttft_ms: float | None = None,
        tpot_ms: float | None = None,
        deadline_ms: float | None = None,
        class_name: str = "default",
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        logprobs: int | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        stop_at_deadline: bool = False,
        arrival_s: float | None = None,
        true_output_tokens: int = 0,
    ) -> None: ...
    @property
    def prompt(self) -> list[int]: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def utility(self) -> float: ...
    @property
    def ttft_ms(self) -> float | None: ...
    @property
    def tpot_ms(self) -> float | None: ...
    @property
    def deadline_ms(self) -> float | None: ...
    @property
    def class_name(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def logprobs(self) -> int | None: ...
    @property
    def stop(self) -> list[str]: ...
    @property
    def stop_ids(self) -> list[int]: ...
    @property
    def ignore_eos(self) -> bool: ...
    @property
    def stop_at_deadline(self) -> bool: ...
    @property
    def arrival_s(self) -> float | None: ...
    @property
    def true_output_tokens(self) -> int: ...

# ---- latency (bind_latency.cc) ------------------------------------------------------------------
class LatencyModel:
    @staticmethod
    def from_json(text: str) -> LatencyModel: ...
    @staticmethod
    def from_decode_table(
        milliseconds: Sequence[float], prefill_ms: float = 20.0, prefill_ms_per_token: float = 0.4
    ) -> LatencyModel: ...
    # samples: (tokens, rows, context, chunk_work, swap_bytes, prefill_tokens, ms)
    @staticmethod
    def fit(
        samples: Sequence[tuple[int, int, float, float, float, int, float]], provenance: str = ""
    ) -> LatencyModel: ...
    def to_json(self) -> str: ...
    def decode_step_ms(self, rows: int, mean_context: float = 0.0) -> float: ...
    def predict_ms(
        self,
        tokens: int,
        rows: int,
        context: float = 0.0,
        chunk_work: float = 0.0,
        swap_bytes: float = 0.0,
        prefill_tokens: int = 0,
    ) -> tuple[float, float]: ...  # median, quantile
    def observe(
        self,
        ms: float,
        tokens: int,
        rows: int,
        context: float = 0.0,
        chunk_work: float = 0.0,
        swap_bytes: float = 0.0,
        prefill_tokens: int = 0,
    ) -> None: ...

# Measures this model on this machine: decode batches, contexts and prefill chunks.
def calibrate(
    model: Model, seconds: float = 10.0, progress: Callable[[int, int], None] | None = None
) -> LatencyModel: ...

# ---- policies (bind_policy.cc, bind_mask_matrix.cc) ---------------------------------------------
class TaskView:
    """A task as a policy sees it, made with keywords for synthetic tasks. Times are in seconds on
    the engine's clock, targets in milliseconds."""

    id: int  # -1: an empty row
    class_id: int
    utility: float
    ttft_ms: float | None
    tpot_ms: float | None
    deadline_ms: float | None
    arrival: float
    prompt_len: int
    max_tokens: int
    prefill_divisible: bool
    produced: int
    cached: int
    first_token_time: float
    last_token_time: float
    kv: str  # "none", "device", "host"
    blocks: int
    shared: int  # blocks that other tasks hold too
    ended: str  # a finish reason, set while its end is told; else "none"
    def __init__(self, **fields: Any) -> None: ...
    def pending(self) -> int: ...
    def ready_to_decode(self) -> bool: ...

class View:
    """What a policy may look at. A view that an engine lends is valid during the call only."""

    @property
    def now(self) -> float: ...
    @property
    def tasks(self) -> tuple[TaskView, ...]: ...  # copies, indexed by slot; empty rows have id -1
    @property
    def live(self) -> tuple[int, ...]: ...  # slots by arrival, then id
    @property
    def block_tokens(self) -> int: ...
    @property
    def total_blocks(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    @property
    def total_host_blocks(self) -> int: ...
    @property
    def free_host_blocks(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def max_step_tokens(self) -> int: ...
    def __init__(
        self,
        tasks: Sequence[TaskView],
        latency: LatencyModel,
        *,
        now: float = 0.0,
        block_tokens: int = 16,
        total_blocks: int = 4096,
        free_blocks: int | None = None,  # None = what the tasks leave
        total_host_blocks: int = 4096,
        free_host_blocks: int | None = None,
        block_bytes: int = 0,
        max_rows: int = 64,
        max_step_tokens: int = 2048,
    ) -> None: ...
    def copy(self) -> View: ...  # as it is now, latency model included; valid as long as it is kept
    def task(self, slot: int) -> TaskView: ...  # a copy of one row
    def blocks_for(self, tokens: int) -> int: ...
    def decode_step_ms(self, rows: int, mean_context: float = 0.0) -> float: ...
    def predict_ms(self, plan: StepPlan) -> tuple[float, float]: ...  # median, quantile

class StepPlan:
    """Sequences are read as tuples; assign a whole sequence to change one."""

    prefill: Sequence[tuple[int, int]]  # (slot, tokens)
    decode: Sequence[int]  # slots
    kv: Sequence[tuple[str, int]]  # ("swap_out" | "swap_in" | "drop", slot)
    endings: Sequence[tuple[int, str, str]]  # (slot, "rejected" | "deadline", sentence)
    padding_rows: Sequence[int]  # decode rows past their task's end: tokens in KV of each
    padding_prompts: Sequence[int]  # pad tokens of each prompt that is filled up
    # (slot, cause) of tasks that the policy no longer expects to keep their targets, each at most
    # once; not_admitted, too_late, starved, length or slow_steps
    relegated: Sequence[tuple[int, str]]
    wake_at: float
    def __init__(
        self,
        *,
        prefill: Sequence[tuple[int, int]] = (),
        decode: Sequence[int] = (),
        kv: Sequence[tuple[str, int]] = (),
        endings: Sequence[tuple[int, str, str]] = (),
        padding_rows: Sequence[int] = (),
        padding_prompts: Sequence[int] = (),
        relegated: Sequence[tuple[int, str]] = (),
        wake_at: float = ...,
    ) -> None: ...
    def runs(self) -> bool: ...
    def empty(self) -> bool: ...

class Policy:
    """Base of native policies, and of policies written in Python (define plan; on, commit and
    inspect as needed; `name` is the class's unless it sets its own). A native policy refuses calls
    out of order with StateError."""

    @property
    def name(self) -> str: ...
    def __init__(self) -> None: ...
    def on(self, kind: str, slot: int, view: View) -> None: ...  # kind: "arrive" | "finish"
    def plan(self, view: View) -> StepPlan: ...
    def commit(
        self, plan: StepPlan, duration: float, token_slots: Sequence[int], view: View
    ) -> None: ...  # duration in seconds; view as it is after the step
    def inspect(self) -> str: ...  # JSON

def make_policy(text: str) -> Policy: ...
def list_policies() -> list[dict[str, Any]]: ...  # name, source, summary, parameters
def list_dispatchers() -> list[dict[str, Any]]: ...  # likewise
def check_dispatcher(text: str) -> None: ...  # "scls:slice=64"; raises InvalidArgument
def check_plan(plan: StepPlan, view: View) -> None: ...

class MaskMatrix:
    """SLICE's decode-mask matrix: row = task, column = decode step."""

    def __init__(self, rates: Sequence[int], layout: str = "packed") -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def rates(self) -> tuple[int, ...]: ...  # ones a row, from high to low
    def column(self, j: int) -> list[int]: ...  # rows that take part in decode step j
    def to_numpy(self) -> npt.NDArray[np.uint8]: ...  # [rows, columns]

# Duration of one cycle by SLICE's formula; step_ms[i] is a decode step of i + 1 rows.
def cycle_estimate_ms(rates: Sequence[int], step_ms: Sequence[float]) -> float: ...

# ---- engine (bind_engine.cc) --------------------------------------------------------------------
class TaskHandle:
    @property
    def id(self) -> int: ...
    @property
    def done(self) -> bool: ...
    def take(self, timeout: float = -1.0) -> dict[str, Any]: ...
    def wait(self, timeout: float = -1.0) -> dict[str, Any]: ...
    # both: {id, reason, error, arrival, finish_time, prompt_tokens, token_ids, token_times,
    #        logprobs, top_logprobs, text}; times in seconds on the engine's clock

class Engine:
    def __init__(
        self,
        model: Model,
        policy: str | Policy,
        latency: LatencyModel,
        *,
        kv_cache_bytes: int = 0,  # 0 = from free memory
        host_kv_bytes: int = -1,  # swap space; -1 = as much as the device pool
        max_rows: int = 64,
        max_step_tokens: int = 2048,
        max_context: int = 0,
        max_queue: int = 100000,
        loop: str = "plain",  # or "overlap"
        prefix_cache: bool = False,  # ignored where a prompt attends both ways
        prompt_lookup: int = 0,  # most drafts of a decode row; 0 = off
        token_bytes: Sequence[bytes] = (),
        eos_ids: Sequence[int] | None = None,  # None = the model's
        record_events: bool = True,
        warm_up: bool = False,  # run steps of padding first, see src/engine/warm_up.h
        progress: Callable[[int, int], None] | None = None,  # of warming up: steps done, in all
    ) -> None: ...
    # arrival_s is on the engine's clock, see now()
    def submit(self, task: TaskSpec) -> TaskHandle: ...
    # arrival_s is in seconds after this call
    def submit_all(self, tasks: Sequence[TaskSpec]) -> list[TaskHandle]: ...
    def cancel(self, id: int) -> bool: ...
    def wait_idle(self) -> None: ...
    def close(self) -> None: ...
    # Ids of handles with something new since the last call; blocks up to `timeout` seconds. One
    # consumer thread serves any number of streams (asyncio) with it. Raises StateError once the
    # engine is closed and nothing is left.
    def wait_updates(self, timeout: float) -> list[int]: ...
    def now(self) -> float: ...
    def stats(self) -> dict[str, Any]: ...
    def inspect_policy(self) -> str: ...
    def latency_json(self) -> str: ...  # the latency model as corrected so far
    def drain_events(self) -> list[tuple[float, int, str, int]]: ...  # t, task, event, value
    def drain_steps(self) -> dict[str, npt.NDArray[Any]]: ...  # columns of StepRecord
    def check_integrity(self) -> None: ...

# ---- simulation (bind_simulation.cc) ------------------------------------------------------------
def simulate(
    policy: str | Policy,
    truth: LatencyModel,
    belief: LatencyModel,
    # name, ttft_ms, tpot_ms, deadline_ms, utility
    classes: Sequence[tuple[str, float | None, float | None, float | None, float]],
    # arrival (s, ascending), prompt_tokens, output_tokens (true; 0 = max_tokens),
    # max_tokens, class_id: one entry a task
    tasks: Mapping[str, npt.ArrayLike],
    *,
    blocks: int = 4096,
    host_blocks: int | None = None,
    block_tokens: int = 16,
    bytes_per_token: int = 4,
    jitter: float = 0.0,
    residuals: Sequence[float] | None = None,
    seed: int = 0,
    max_rows: int = 64,
    max_step_tokens: int = 2048,
    max_context: int = 0,
    loop: str = "plain",  # or "overlap"
    prefill_divisible: bool = True,
    in_flight: int = 0,  # > 0: closed loop
    record_events: bool = False,
    percentiles: Sequence[float] = (50, 99),
    instances: int = 1,  # engines, each with `policy` (a text) and seed + its number
    dispatch: str = "round_robin",  # see list_dispatchers
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Runs tasks in virtual time under `policy`, to their end, on the calling thread. A step takes
    what `truth` predicts times exp(jitter * N(0, 1)), or times a draw from `residuals` (quantiles
    at equal steps); the policy is shown `belief`. By task:
    arrival, first_token, last_token, finish, max_gap, max_lateness (s, NaN without tokens), tokens,
    reason (number of the FinishReason). Besides gaps and plan_seconds (count, mean, max,
    percentiles), num_steps, busy_seconds, prefill_seconds, decode_steps, decode_rows (padding
    included), invalid_tokens, pad_tokens, end, most_live, dispatch_state, instances (of each:
    num_steps, ended, busy_seconds, end, policy_state), the first one's latency_json and
    policy_state, and with record_events also events and steps as the engine's drain_* give them;
    ids are number + 1.
    """
