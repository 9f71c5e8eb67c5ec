"""A policy that does anything the rules allow, for tests of what must not depend on a schedule."""

from __future__ import annotations

import random

from slicellm import _core


class RandomPolicy(_core.Policy):
    """Random rows, chunk sizes, pauses, swaps, drops and padding, from a seed."""

    name = "random"

    def __init__(
        self, seed: int, pause: float = 0.3, move: float = 0.08, padding: float = 0.3
    ) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.pause, self.move, self.padding = pause, move, padding
        self.moves: dict[str, int] = {
            "swap_out": 0,
            "swap_in": 0,
            "drop": 0,
            "chunk": 0,
            "pad_row": 0,
            "pad_prompt": 0,
        }

    def plan(self, view: _core.View) -> _core.StepPlan:
        if not view.live:
            return _core.StepPlan()
        rng = self.random
        slots = list(view.live)
        rng.shuffle(slots)
        prefill, decode, kv = [], [], []
        free, free_host = view.free_blocks, view.free_host_blocks
        spare = int(rng.random() < self.padding)  # a row that tasks leave to padding
        rows, tokens = view.max_rows - spare, view.max_step_tokens
        for slot in slots:
            task = view.task(slot)
            place, blocks, cached = task.kv, task.blocks, task.cached
            freed = blocks - task.shared
            if place != "none" and rng.random() < self.move:
                kv.append(("drop", slot))
                free, free_host = (
                    (free + freed, free_host) if place == "device" else (free, free_host + blocks)
                )
                place, blocks, cached = "none", 0, 0
            elif place == "device" and blocks <= free_host and rng.random() < self.move:
                kv.append(("swap_out", slot))
                free, free_host, place = free + freed, free_host - blocks, "host"
            elif place == "host" and blocks <= free and rng.random() < 0.3:
                kv.append(("swap_in", slot))
                free, free_host, place = free - blocks, free_host + blocks, "device"
            if place == "host" or rows == 0 or rng.random() < self.pause:
                continue
            pending = task.prompt_len + task.produced - cached
            ready = task.produced > 0 and pending == 1
            n = pending
            if not ready and task.prefill_divisible:
                n = rng.randint(1, pending)
                self.moves["chunk"] += n < pending
            need = max(0, view.blocks_for(cached + n) - blocks)
            if n > tokens or need > free:
                continue
            free, tokens, rows = free - need, tokens - n, rows - 1
            if ready:
                decode.append(slot)
            else:
                prefill.append((slot, n))
        if prefill or decode or rng.random() < 0.5:
            for kind, _ in kv:
                self.moves[kind] += 1
            pads = self.pad(view, rows + spare, tokens, free)
            idle = not (prefill or decode or kv or any(pads.values()))
            wake = {"wake_at": view.now + 1e-4} if idle else {}
            return _core.StepPlan(prefill=prefill, decode=decode, kv=kv, **pads, **wake)
        return self.force(view)

    def pad(self, view: _core.View, rows: int, tokens: int, free: int) -> dict[str, list[int]]:
        """Padding within what the rest of the step left over."""
        rng = self.random
        longest = max(view.task(s).prompt_len + view.task(s).max_tokens for s in view.live)
        pad_rows: list[int] = []
        prompts: list[int] = []
        while tokens > 0 and rng.random() < self.padding:
            is_row = rows > 0 and longest > 1 and rng.random() < 0.7
            n = rng.randint(1, longest - 1 if is_row else min(tokens, longest))
            need = view.blocks_for(n + is_row)
            if need > free:
                break
            (pad_rows if is_row else prompts).append(n)
            free, rows, tokens = free - need, rows - is_row, tokens - (1 if is_row else n)
        self.moves["pad_row"] += len(pad_rows)
        self.moves["pad_prompt"] += len(prompts)
        return {"padding_rows": pad_rows, "padding_prompts": prompts}

    def force(self, view: _core.View) -> _core.StepPlan:
        """The oldest task alone, everything else dropped: always possible, though blocks that
        several tasks share only count as free after the drop."""
        kv = [("drop", slot) for slot in view.live if view.task(slot).kv != "none"]
        self.moves["drop"] += len(kv)
        task = view.task(view.live[0])
        held = (view.task(slot) for slot in view.live)
        free = view.free_blocks + sum(t.blocks - t.shared for t in held if t.kv == "device")
        if free == 0:
            return _core.StepPlan(kv=kv)
        n = min(
            task.prompt_len + task.produced,
            view.max_step_tokens,
            free * view.block_tokens,
        )
        return _core.StepPlan(prefill=[(view.live[0], n)], kv=kv)
