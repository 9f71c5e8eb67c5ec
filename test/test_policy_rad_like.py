"""rad-like by hand: whole tiles of tokens, and which decodes are left out."""

from __future__ import annotations

from collections.abc import Sequence

from slicellm.policies import LatencyModel, SyntheticTable, latency_from_table, list_policies

LINEAR = [10.0 + b for b in range(1, 33)]


def table(
    policy: str, decode_ms: Sequence[float] = LINEAR, prefill_ms: float = 20.0, **fields: int
) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table(decode_ms, prefill_ms, 0.4), **fields)


def test_prompts_fill_the_largest_multiple_where_tokens_cost_the_same() -> None:
    t = table("rad-like:tile=16,token_budget=40")
    a = t.add(prompt_len=100)
    assert t.step().prefill == ((a, 32),)  # 32, not 40: whole tiles
    assert [t.step().prefill for _ in range(3)] == [((a, 32),), ((a, 32),), ((a, 4),)]
    b, c = t.add(prompt_len=40), t.add(prompt_len=40)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((b, 31),)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((b, 9), (c, 22))


def test_a_budget_below_a_tile_is_used_as_it_is() -> None:
    t = table("rad-like:tile=64,token_budget=10")
    t.add(prompt_len=15)
    assert t.step().prefill == ((0, 10),)
    assert t.step().prefill == ((0, 5),)
    t.add(prompt_len=15)
    plan = t.step()
    assert plan.decode == (0,) and plan.prefill == ((1, 9),)


def test_the_total_with_most_tokens_a_second() -> None:
    # A chunk of n tokens takes 10 + n + 0.039 n^2 / 2 ms. Tokens a second at 8, 16, 24 and 32:
    # 8 / 19.25 = 0.416, 16 / 30.99 = 0.516, 24 / 45.23 = 0.531, 32 / 61.97 = 0.516.
    def milliseconds(n: int) -> float:
        return 10 + n + 0.039 * n * n / 2

    samples = [(n, 1, 0.0, n * n / 2, 0.0, n, milliseconds(n)) for n in (4, 8, 16, 24, 32, 48, 64)]
    samples += [(n, 1, 0.0, n * 100.0, 0.0, n, 10 + n + 0.039 * n * 100) for n in (8, 32, 64)]
    samples += [(n, n, 0.0, 0.0, 0.0, 0, 10.0 + n) for n in (1, 2, 4, 8, 16, 32, 64)]
    latency = LatencyModel.fit(samples, "by hand")
    t = SyntheticTable("rad-like:tile=8,token_budget=64", latency)
    t.add(prompt_len=200)
    assert t.step().prefill == ((0, 24),)


def test_decodes_beyond_a_tile_wait_where_that_is_faster() -> None:
    # Six rows take two tiles: 6 / 20 ms; four 4 / 10 ms. The four with the oldest tokens run.
    t = table("rad-like:tile=4", [10] * 4 + [20] * 4)
    for _ in range(6):
        t.add(max_tokens=50)
    assert len(t.step().prefill) == 6
    assert [t.step().decode for _ in range(4)] == [
        (0, 1, 2, 3),
        (4, 5, 0, 1),
        (2, 3, 0, 1),  # 0, 1, 4 and 5 had theirs together: by arrival
        (4, 5, 0, 1),
    ]


def test_all_decodes_run_where_a_part_is_not_faster() -> None:
    t = table("rad-like:tile=4")  # 6 / 16 ms against 4 / 14 ms
    for _ in range(6):
        t.add()
    t.step()
    assert t.step().decode == (0, 1, 2, 3, 4, 5)
    t = table("rad-like:tile=8", [10] * 8 + [20] * 8)  # six rows are within one tile
    for _ in range(6):
        t.add()
    t.step()
    assert t.step().decode == (0, 1, 2, 3, 4, 5)


def test_all_decodes_run_beside_prompts() -> None:
    t = table("rad-like:tile=4,token_budget=16", [10] * 4 + [20] * 4)
    for _ in range(6):
        t.add(prompt_len=1)
    t.step()
    t.add(prompt_len=20)
    plan = t.step()
    assert plan.decode == (0, 1, 2, 3, 4, 5) and plan.prefill == ((6, 10),)


def test_it_does_not_pass_for_the_published_policy() -> None:
    (info,) = (info for info in list_policies() if info["name"] == "rad-like")
    assert "not the published policy" in info["source"]
