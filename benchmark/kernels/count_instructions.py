"""Counts what the inner loops of the ARM matrix kernels are made of, where they cannot be timed.

    python benchmark/kernels/count_instructions.py build-arm/CMakeFiles/slicellm_core.dir/src/cpu

For each kernel (of quantised weights those for compact ones) and the number of tokens of its tile:
instructions of the innermost loops that multiply, how many of them multiply, load or store, and
multiply-adds an instruction. A loop "with scales" takes a block of 32 columns from codes to sums in
floating point; without, it is four steps of eight columns, or one column of floats.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

Code = list[tuple[int, str]]  # address, instruction

# Multiply-adds of one instruction.
WORK = {"smmla": 32, "sdot": 16, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "fmla": 4}
KERNELS = {
    r"integer_tile<Neon, Dots<true, \d+>, true, (\d+)>": "int4",
    r"integer_tile<Neon, Dots<false, \d+>, true, (\d+)>": "int8",
    r"decoded_tile<Neon, true, true, (\d+)>": "int4, float32 activations",
    r"decoded_tile<Neon, false, true, (\d+)>": "int8, float32 activations",
    r"float_tile<Neon, \(WeightKind\)0, 2, (\d+)>": "float32",
    r"float_tile<Neon, \(WeightKind\)1, 2, (\d+)>": "float16",
    r"float_tile<Neon, \(WeightKind\)2, 2, (\d+)>": "bfloat16",
}


def functions(path: Path) -> Iterator[tuple[str, Code]]:
    """Name and instructions of each function of an object file."""
    command = ["aarch64-linux-gnu-objdump", "-dC", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for match in re.finditer(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)+)", text, re.MULTILINE):
        lines = re.findall(r"^\s+([0-9a-f]+):\s+(.*)$", match[2], re.MULTILINE)
        name = re.sub(r"slicellm::cpu::|\(anonymous namespace\)::", "", match[1])
        yield name, [(int(address, 16), line) for address, line in lines]


def inner_loops(code: Code) -> list[list[str]]:
    """Operations of the loops without loops in them: from a branch's target back to the branch."""
    index = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for end, (address, line) in enumerate(code):
        branch = re.match(r"(?:b|cb|tb)\S*\s.*?([0-9a-f]+) <", line)
        if branch and int(branch[1], 16) <= address and int(branch[1], 16) in index:
            loops.append((index[int(branch[1], 16)], end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[line.split()[0] for _, line in code[first : last + 1]] for first, last in inner]


def describe(loop: list[str]) -> str:
    """Counts of one loop."""
    multiplies = [operation for operation in loop if operation in WORK]
    if "scvtf" in loop:  # its other products are of scales
        multiplies = [operation for operation in multiplies if operation != "fmla"] or multiplies
    memory = sum(operation.startswith(("ld", "st", "prfm")) for operation in loop)
    work = sum(WORK[operation] for operation in multiplies)
    scales = ", with scales" if "uzp1" in loop or "mla" in loop else ""
    return (
        f"{len(loop)} instructions, {len(multiplies)} multiply, {memory} access memory, "
        f"{work / len(loop):.2f} multiply-adds each{scales}"
    )


def main() -> None:
    """Prints one line a loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the object files")
    for isa in ("neon", "dotprod", "i8mm"):
        for name, code in functions(parser.parse_args().folder / f"linear_{isa}.cc.o"):
            for pattern, weights in KERNELS.items():
                match = re.search(pattern, name)
                for loop in inner_loops(code) if match else []:
                    if match and any(operation in WORK for operation in loop):
                        print(f"{isa}, {weights}, {match[1]} tokens: {describe(loop)}")


if __name__ == "__main__":
    main()
