"""What the emulator tells of swaps on device "cuda": which steps wait for which copies. In order
`late` only what somebody waits for is done, so that copies which no step has needed are left."""

from __future__ import annotations

from typing import Any

import pytest
from emulator import Emulator
from ops_module import ops
from reference import models, tiny

from slicellm import _core
from slicellm.policies import make_policy

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
    model: _core.Model,
    policy: str | _core.Policy,
    tasks: list[_core.TaskSpec],
    blocks: int,
    **options: Any,
) -> list[list[int]]:
    kv = {"kv_cache_bytes": blocks, "host_kv_bytes": 16}
    sizes = {name: count * model.kv_block_bytes for name, count in kv.items()}
    engine = _core.Engine(model, policy, LATENCY, **sizes, **options)
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


def test_blocks_that_are_only_read(model: _core.Model) -> None:
    """B comes back in full blocks, which it reads, and writes to a new one."""
    plans: list[Plan] = [
        {"prefill": [(A, 5), (B, 32)]},
        {"decode": [A], "kv": [OUT]},
        {"decode": [A], "kv": [BACK]},
        {"decode": [B]},
    ]
    tasks = [task(5), task(32, 1)]
    policy = Script(Emulator(), plans)
    tokens = run(model, policy, tasks, 8)
    assert policy.left[:4] == [0, COPIES, 2 * COPIES, 0]
    assert tokens == run(model, "orca", tasks, 16)


def test_a_shared_prefix_on_its_way_to_the_host(model: _core.Model) -> None:
    """A goes on reading the block that it shares with B."""
    plans: list[Plan] = [
        {"prefill": [(A, 18)]},
        {"prefill": [(B, 20)]},
        {"decode": [A], "kv": [OUT]},
        {"decode": [A, B], "kv": [BACK]},
    ]
    tasks = [task(18), task(20)]
    policy = Script(Emulator(), plans)
    tokens = run(model, policy, tasks, 8, prefix_cache=True)
    assert policy.left[:4] == [0, 0, COPIES, 0]
    assert tokens == run(model, "orca", tasks, 16)


class Watched(_core.Policy):
    """A policy of the core; of each step that runs rows and swaps only others, the copies, and what
    was left to do after it."""

    name = "watched"

    def __init__(self, emulator: Emulator, text: str) -> None:
        super().__init__()
        self.emulator = emulator
        self.policy = make_policy(text)
        self.ahead: list[tuple[set[str], int, int]] = []

    def on(self, kind: str, slot: int, view: _core.View) -> None:
        self.policy.on(kind, slot, view)

    def plan(self, view: _core.View) -> _core.StepPlan:
        return self.policy.plan(view)

    def commit(
        self, plan: _core.StepPlan, duration: float, token_slots: list[int], view: _core.View
    ) -> None:
        self.policy.commit(plan, 4e-3, token_slots, view)  # two quanta, on any machine
        rows = {*plan.decode, *(slot for slot, _ in plan.prefill)}
        swapped = {slot for kind, slot in plan.kv if kind != "drop"}
        if rows and swapped and not rows & swapped:
            copies = sum(view.task(slot).blocks for slot in swapped)
            self.ahead.append(({kind for kind, _ in plan.kv}, copies, self.emulator.pending()))


def test_fastserve_swaps_ahead_while_others_run(model: _core.Model) -> None:
    """What it swaps for later steps is left when the rows of the step are done."""
    policy = Watched(Emulator(), "fastserve:max_batch=2,quantum_ms=2,starvation_steps=1000000")
    tasks = [task(12 + 3 * i, i, max_tokens=12) for i in range(8)]
    tokens = run(model, policy, tasks, 12)
    assert {kind for kinds, _, _ in policy.ahead for kind in kinds} == {"swap_out", "swap_in"}
    assert all(left >= copies for _, copies, left in policy.ahead)
    assert tokens == run(model, "orca", tasks, 64)
