"""What the emulator tells of swaps on device "cuda": which steps wait for which copies. In order
`late` only what somebody waits for is done, so that copies which no step has needed are left."""

from __future__ import annotations

from typing import Any

import pytest
from emulator import Emulator
from ops_module import ops
from reference import models, tiny

from slicellm import _core

if ops.cuda != "simt":
    pytest.skip("only the emulator tells what is left to do", allow_module_level=True)

LATENCY = _core.LatencyModel.from_decode_table([1.0])
Plan = dict[str, Any]


@pytest.fixture(autouse=True)
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLICELLM_SIMT_ORDER", "late")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    config = models.FAMILIES["llama"]
    path = tiny.write_directory(tmp_path_factory.mktemp("model"), config, tiny.weights(config))
    return _core.Model.load(str(path), device="cuda", dtype="float16")


def task(prompt_len: int, seed: int = 0, **settings: Any) -> _core.TaskSpec:
    prompt = [(7 * i + seed) % (tiny.VOCAB - 3) + 3 for i in range(prompt_len)]
    return _core.TaskSpec(prompt=prompt, ignore_eos=True, **{"max_tokens": 6, **settings})


def run(
    model: _core.Model, policy: str | _core.Policy, tasks: list[_core.TaskSpec], blocks: int
) -> list[list[int]]:
    kv = {"kv_cache_bytes": blocks, "host_kv_bytes": 8}
    sizes = {name: count * model.kv_block_bytes for name, count in kv.items()}
    engine = _core.Engine(model, policy, LATENCY, **sizes)
    results = [handle.wait(120) for handle in engine.submit_all(tasks)]
    engine.check_integrity()
    engine.close()
    assert [r["error"] for r in results] == [""] * len(results)
    return [result["token_ids"] for result in results]


class Script(_core.Policy):
    """Plans as written down, then all that fits. After each step, how much was left to do."""

    name = "script"

    def __init__(self, emulator: Emulator, plans: list[Plan]) -> None:
        super().__init__()
        self.emulator = emulator
        self.plans = iter(plans)
        self.left: list[int] = []

    def plan(self, view: _core.View) -> _core.StepPlan:
        return _core.StepPlan(**(next(self.plans, None) or self.rest(view)))

    def rest(self, view: _core.View) -> Plan:
        plan: Plan = {"prefill": [], "decode": [], "kv": []}
        free = view.free_blocks
        for slot in view.live:
            t = view.task(slot)
            need = {"device": 0, "host": t.blocks, "none": view.blocks_for(t.prompt_len)}[t.kv]
            if need > free:
                continue
            free -= need
            if t.kv == "host":
                plan["kv"].append(("swap_in", slot))
            if t.kv == "none":
                plan["prefill"].append((slot, t.prompt_len))
            else:
                plan["decode"].append(slot)
        return plan

    def commit(
        self, plan: _core.StepPlan, duration: float, token_slots: list[int], view: _core.View
    ) -> None:
        self.left.append(self.emulator.pending())


A, B, C = 0, 1, 2  # slots; A has 1 block, B and C 2
BOTH: Plan = {"prefill": [(A, 5), (B, 20)]}
OUT, BACK = ("swap_out", B), ("swap_in", B)
COPIES = 1 + 2 + 1  # B's: a wait for the step before, the blocks, an event


@pytest.mark.parametrize(
    "blocks, plans, left",
    [
        # A runs beside B's copies; B waits for both ways.
        (
            8,
            [
                BOTH,
                {"decode": [A], "kv": [OUT]},
                {"decode": [A], "kv": [BACK]},
                {"decode": [A]},
                {"decode": [B]},
            ],
            [0, COPIES, 2 * COPIES, 2 * COPIES, 0],
        ),
        # B is back for the step that it runs in.
        (8, [BOTH, {"decode": [A], "kv": [OUT]}, {"decode": [B], "kv": [BACK]}], [0, COPIES, 0]),
        # C has other blocks than B had where there are others, and waits for the copies else.
        (8, [BOTH, {"prefill": [(C, 20)], "kv": [OUT]}], [0, COPIES]),
        (4, [BOTH, {"prefill": [(C, 20)], "kv": [OUT]}], [0, 0]),
        (3, [BOTH, {"decode": [A], "kv": [OUT]}, {"prefill": [(C, 20)]}], [0, COPIES, 0]),
        # Only as much as a step depends on: B's way out, not its way back to other blocks.
        (
            5,
            [
                BOTH,
                {"decode": [A], "kv": [OUT]},
                {"decode": [A], "kv": [BACK]},
                {"prefill": [(C, 20)]},
            ],
            [0, COPIES, 2 * COPIES, COPIES],
        ),
        # A step of copies alone takes as long as they do.
        (8, [BOTH, {"kv": [OUT]}, {"kv": [BACK]}], [0, 0, 0]),
    ],
)
def test_who_waits(model: _core.Model, blocks: int, plans: list[Plan], left: list[int]) -> None:
    tasks = [task(5), task(20, 1), task(20, 2)]
    policy = Script(Emulator(), plans)
    tokens = run(model, policy, tasks, blocks)
    assert policy.left[: len(left)] == left
    assert tokens == run(model, "orca", tasks, 16)
