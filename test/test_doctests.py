"""The examples in the package's documentation are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import slicellm

NAMES = sorted(m.name for m in pkgutil.walk_packages(slicellm.__path__, "slicellm."))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("._core")])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = (importlib.import_module(f"slicellm.{name}") for name in ("tokenizer", "errors"))
    assert all(any(t.examples for t in finder.find(module)) for module in modules)
