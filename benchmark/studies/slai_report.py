"""Summary and figures of the study slai_claims, from its cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import slai_claims as slai
import study

TARGETS = {name: tbt / 1e3 for mix in slai.MIXES.values() for name, _, tbt in mix}


def tbt(cells: Sequence[study.Cell], name: str) -> list[float]:
    """A class's p99 TBT (s) of each seed."""
    return [float(c["tbt_s"][name]) for c in cells]


def tail_met(cells: Sequence[study.Cell], mix: str) -> bool:
    """Whether the mean over seeds of each class's p99 TBT is within its target."""
    return all(
        sum(tbt(cells, name)) / len(cells) <= TARGETS[name] for name, _, _ in slai.MIXES[mix]
    )


def capacity(cells: Sequence[study.Cell], mix: str, policy: str) -> tuple[float, str]:
    """The highest rate up to which the median TTFT is below TTFT_S and the tails are met, and what
    ends it. Between two rates the TTFT is taken as a straight line; the tails as met only where
    they are at both."""
    mine = study.chosen(cells, mix=mix, policy=policy)
    before: tuple[float, float] | None = None
    for rate in sorted({c["rate"] for c in mine}):
        at = study.chosen(mine, rate=rate)
        ttft = study.mean(at, "ttft_s")
        if not tail_met(at, mix):
            return (before[0] if before else 0.0), "p99 TBT"
        if ttft >= slai.TTFT_S:
            if before is None:
                return 0.0, "TTFT"
            share = (slai.TTFT_S - before[1]) / (ttft - before[1])
            return before[0] + share * (rate - before[0]), "TTFT"
        before = (rate, ttft)
    return (before[0] if before else 0.0), "end of the grid"


def text_of(policy: str) -> str:
    return policy.replace("slai:variant=", "slai ").replace("sarathi:order=spf", "sarathi spf")


def capacity_table(cells: Sequence[study.Cell], mix: str) -> list[str]:
    base = capacity(cells, mix, slai.SARATHI)[0]
    rows = []
    for policy in slai.POLICIES:
        reached, why = capacity(cells, mix, policy)
        gain = f"{100 * (reached / base - 1):+.0f} %" if base else "-"
        rows.append((text_of(policy), f"{reached:.2f}", gain, why))
    return study.table(("policy", "capacity (requests/s)", "over sarathi", "ended by"), rows)


def rate_table(cells: Sequence[study.Cell], mix: str) -> list[str]:
    """Median TTFT and p99 TBT at each rate."""
    names = [name for name, _, _ in slai.MIXES[mix]]
    rates = sorted({c["rate"] for c in study.chosen(cells, mix=mix, policy=slai.SARATHI)})
    rows = []
    for rate in rates:
        base = study.mean(study.chosen(cells, mix=mix, policy=slai.SARATHI, rate=rate), "ttft_s")
        for policy in slai.POLICIES:
            at = study.chosen(cells, mix=mix, policy=policy, rate=rate)
            fewer = 100 * (study.mean(at, "ttft_s") / base - 1)
            tails = (study.spread_text(tbt(at, name)) for name in names)
            median = study.spread_text(study.values(at, "ttft_s"))
            rows.append((f"{rate:g}", text_of(policy), median, f"{fewer:+.0f} %", *tails))
    head = ["requests/s", "policy", "median TTFT (s)", "beside sarathi"]
    return study.table(head + [f"p99 TBT {name} (s)" for name in names], rows)


def best_cut(
    cells: Sequence[study.Cell], mix: str, base: str, policies: Sequence[str], under: float
) -> tuple[float, str, float]:
    """The largest cut (%) of median TTFT below `base` by a policy whose tails are met, at rates
    where the policy's own median is below `under` s: the cut, the policy, the rate."""
    found = (0.0, "-", math.nan)
    for rate in sorted({c["rate"] for c in study.chosen(cells, mix=mix, policy=base)}):
        theirs = study.mean(study.chosen(cells, mix=mix, policy=base, rate=rate), "ttft_s")
        for policy in policies:
            at = study.chosen(cells, mix=mix, policy=policy, rate=rate)
            ours = study.mean(at, "ttft_s")
            if tail_met(at, mix) and ours < under:
                found = max(found, (100 * (1 - ours / theirs), policy, rate))
    return found


def seed_capacities(
    cells: Sequence[study.Cell], mix: str, policy: str
) -> list[tuple[float, float]]:
    """The capacities of `policy` and of sarathi, seed by seed."""
    seeds = sorted({c["seed"] for c in cells})
    parts = [study.chosen(cells, seed=seed) for seed in seeds]
    return [(capacity(c, mix, policy)[0], capacity(c, mix, slai.SARATHI)[0]) for c in parts]


def claims(cells: Sequence[study.Cell]) -> list[str]:
    rows: list[tuple[str, str, str, bool | None]] = []
    for mix in slai.MIXES:
        main = mix == "strict and relaxed"
        cut, policy, rate = best_cut(cells, mix, slai.SARATHI, slai.SLAI, math.inf)
        same = study.chosen(cells, mix=mix, rate=rate)
        times = (
            study.mean(study.chosen(same, policy=p), "ttft_s")
            for p in (slai.SARATHI, slai.SHORTEST, policy)
        )
        rows.append(
            (
                f"{mix}: median TTFT at least 50 % under sarathi's, at any rate, tails met",
                "-53 %" if main else "-",
                f"-{cut:.0f} % ({text_of(policy)} at {rate:g} requests/s; sarathi, sarathi spf, "
                f"slai: {', '.join(f'{t:.2f} s' for t in times)})",
                cut >= 50,
            )
        )
        cut, policy, rate = best_cut(cells, mix, slai.SARATHI, slai.SLAI, slai.TTFT_S)
        rows.append(
            (
                f"{mix}: the same where slai's own is below 0.5 s",
                "-53 %" if main else "-",
                f"-{cut:.0f} % ({text_of(policy)} at {rate:g} requests/s)",
                cut >= 50,
            )
        )
        cut, policy, rate = best_cut(cells, mix, slai.SHORTEST, slai.SLAI, slai.TTFT_S)
        rows.append(
            (
                f"{mix}: that beside sarathi with shortest prompt first",
                "-",
                f"-{cut:.0f} % ({text_of(policy)} at {rate:g} requests/s)",
                cut >= 50,
            )
        )
        base = capacity(cells, mix, slai.SARATHI)[0]
        best, policy = max((capacity(cells, mix, p)[0], p) for p in slai.SLAI)
        short = capacity(cells, mix, slai.SHORTEST)[0]
        each = [100 * (a / b - 1) for a, b in seed_capacities(cells, mix, policy)]
        rows.append(
            (
                f"{mix}: capacity at least +20 % over sarathi",
                "+26 %" if main else "-",
                f"{100 * (best / base - 1):+.1f} %, by seed {min(each):+.1f} to {max(each):+.1f} % "
                f"({text_of(policy)}: {best:.2f} and {base:.2f} requests/s); sarathi spf "
                f"{100 * (short / base - 1):+.1f} %",
                best >= 1.2 * base,
            )
        )
    return study.claims(rows)


def budgets(cells: Sequence[study.Cell]) -> list[tuple[int, float, float]]:
    """Token budget, median TTFT and mean step time (ms)."""
    found = []
    for budget in slai.BUDGETS:
        policy = f"sarathi:token_budget={budget}"
        at = study.chosen(cells, policy=policy, rate=slai.BUDGET_RATE)
        found.append((budget, 1e3 * study.mean(at, "ttft_s"), full_step_ms(at, budget)))
    return found


def full_step_ms(cells: Sequence[study.Cell], budget: int) -> float:
    """Mean time (ms) of the recorded steps that used at least nine tenths of the budget."""
    full = [s for c in cells for s in c["steps"] or () if s[2] + s[3] >= 0.9 * budget]
    return sum(s[4] for s in full) / len(full) if full else math.nan


def draw_budgets(cells: Sequence[study.Cell], path: Path) -> None:
    made, (left, right) = study.figure(2)
    ours = budgets(cells)
    x = [b for b, _, _ in ours]
    for axes, column, title in ((left, 1, "median TTFT (ms)"), (right, 2, "full step (ms)")):
        axes.plot(x, [row[column] for row in ours], "o-", color=study.COLOURS[0], label="simulated")
        published = [slai.PUBLISHED[b][column - 1] for b in x]
        axes.plot(x, published, "s--", color=study.COLOURS[1], label="published")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("token budget")
    left.set_yscale("log")
    study.save(made, path)


def draw_steps(cells: Sequence[study.Cell], path: Path) -> None:
    """KV over tasks that hold it; step time over decodes, of steps without a prompt."""
    made, (left, right) = study.figure(2)
    mix = "strict and relaxed"
    for policy, colour in ((slai.SARATHI, study.COLOURS[1]), (slai.SLAI[2], study.COLOURS[0])):
        steps = [s for c in study.chosen(cells, mix=mix, policy=policy) for s in c["steps"] or ()]
        style = {"s": 3, "alpha": 0.3, "color": colour, "label": text_of(policy)}
        left.scatter([s[0] for s in steps], [s[1] * 131072 / 1e9 for s in steps], **style)
        only = [s for s in steps if s[3] == 0]
        right.scatter([s[2] for s in only], [s[4] for s in only], **style)
    left.set_title("KV memory in use (GB)", fontsize=10)
    left.set_xlabel("tasks that hold KV")
    right.set_title("time of steps without a prompt (ms)", fontsize=10)
    right.set_xlabel("decodes in the step")
    study.save(made, path)


def draw_rates(cells: Sequence[study.Cell], path: Path) -> None:
    made, axes = study.figure(len(slai.MIXES), 5.2)
    for panel, mix in zip(axes, slai.MIXES):
        for policy, colour in zip(slai.POLICIES, study.COLOURS):
            mine = study.chosen(cells, mix=mix, policy=policy)
            rates = sorted({c["rate"] for c in mine})
            seen = [study.values(study.chosen(mine, rate=r), "ttft_s") for r in rates]
            fmt = "s--" if policy.startswith("sarathi") else "o-"
            study.draw(panel, rates, seen, fmt=fmt, color=colour, label=text_of(policy))
        panel.axhline(slai.TTFT_S, color="#999999", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_title(f"median TTFT (s), {mix}", fontsize=10)
        panel.set_xlabel("requests/s")
    study.save(made, path)


def write(results: Path) -> None:
    """summary.md and the figures."""
    setup, cells = study.read_setup(results), study.read_cells(results)
    draw_budgets(cells, results / "token_budget.png")
    draw_steps(cells, results / "steps.png")
    draw_rates(cells, results / "ttft.png")
    seeds = ", ".join(map(str, sorted({c["seed"] for c in cells})))
    lines = [
        "# SLAI's claims, simulated",
        "",
        f"Made by `{setup['command']}` at commit {setup['commit']}. Profile {setup['profile']}, "
        f"lengths of {setup['trace']}, Poisson arrivals, {setup['tasks']} requests a run, seeds "
        f"{seeds}; token budget 512, 128 rows. TBT targets as published: 0.1 s for 5 % of the "
        "requests and 0.5 s for the others, or 0.2 s for all. Capacity: the highest rate with a "
        "median TTFT below 0.5 s and each class's p99 TBT within its target, by means over seeds. "
        "Mean ± half the spread over seeds.",
        "",
        *claims(cells),
        "",
        "![median TTFT over rate](ttft.png)",
        "",
        "## What it shows",
        "",
        study.text_beside(slai.__file__),
        "",
        f"## Token budget, sarathi at {slai.BUDGET_RATE:g} requests/s",
        "",
        *study.table(
            ("budget", "median TTFT (ms)", "published", "full step (ms)", "published"),
            [
                (
                    str(b),
                    f"{t:.0f}",
                    f"{slai.PUBLISHED[b][0]}",
                    f"{s:.1f}",
                    f"{slai.PUBLISHED[b][1]}",
                )
                for b, t, s in budgets(cells)
            ],
        ),
        "",
        "![median TTFT and step time over token budget](token_budget.png)",
        "",
        "![KV memory over tasks, step time over decodes](steps.png)",
    ]
    for mix in slai.MIXES:
        lines += ["", f"## {mix}", "", *capacity_table(cells, mix), "", *rate_table(cells, mix)]
    (results / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(claims(cells)))
