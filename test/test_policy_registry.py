"""The registry: policies by name, and their parameters as a user may get them wrong."""

from __future__ import annotations

import doctest

import pytest

from slicellm import _core, policies

NAMES = ["slice", "pace", "orca", "fastserve"]


def test_list_policies() -> None:
    infos = policies.list_policies()
    assert [info["name"] for info in infos][: len(NAMES)] == NAMES
    for info in infos:
        assert info["source"] and info["summary"]
        assert policies.make_policy(info["name"]).name == info["name"]
        for parameter in info["parameters"]:  # defaults are accepted as they are printed
            policies.make_policy(f"{info['name']}:{parameter['name']}={parameter['default']}")
            assert parameter["help"]


def test_parameters() -> None:
    text = "slice:ratio=0.9,mask_layout=spread"
    policy = policies.make_policy(text)
    state = policies.snapshot(policy)
    assert (state["budget_ms"], state["layout"]) == (900, "spread")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'policy: got "", expected one of slice, pace, orca, fastserve'),
        ("Slice", 'policy: got "Slice", expected one of slice, pace, orca, fastserve'),
        (" slice", 'policy: got " slice", expected one of'),
        ("slice:", "policy slice: got a colon at the end, expected parameters as name=value"),
        ("slice:ratio", 'policy slice: got "ratio", expected parameters as name=value,name=value'),
        ("slice:ratio=1,", "policy slice: got a comma at the end, expected parameters"),
        ("slice:,", 'policy slice: got "", expected parameters as name=value,name=value'),
        ("slice:ratoi=1", 'policy slice: got parameter "ratoi", expected one of ratio, cycle_ms,'),
        ("slice:=1", 'policy slice: got parameter "", expected one of ratio'),
        ("slice:ratio=1,ratio=1", "slice:ratio: got it twice, expected it once"),
        ("slice:ratio=", 'slice:ratio: got "", expected a number above 0, at most 100'),
        ("slice:ratio=nan", 'slice:ratio: got "nan", expected a number above 0, at most 100'),
        ("slice:ratio=inf", 'slice:ratio: got "inf", expected a number above 0'),
        ("slice:ratio=0", 'slice:ratio: got "0", expected a number above 0'),
        ("slice:ratio=-1", 'slice:ratio: got "-1", expected a number above 0'),
        ("slice:ratio=1e3", 'slice:ratio: got "1e3", expected a number above 0, at most 100'),
        ("slice:ratio=0.9x", 'slice:ratio: got "0.9x", expected a number'),
        ("slice:ratio=0,9", 'policy slice: got "9", expected parameters as name=value'),
        ("slice:ratio=1e999", 'slice:ratio: got "1e999", expected a number'),
        ("slice:mask_layout=left", 'slice:mask_layout: got "left", expected one of packed, spread'),
        ("slice:age_factor=2", 'slice:age_factor: got "2", expected a number from 0 to 1'),
        ("slice:boost_after_ms=-5", 'slice:boost_after_ms: got "-5", expected a number from 0'),
        ("orca:max_batch=0", 'orca:max_batch: got "0", expected an integer from 1 to 1048576'),
        ("orca:max_batch=2.5", 'orca:max_batch: got "2.5", expected an integer from 1'),
        ("orca:max_batch=99999999999", 'orca:max_batch: got "99999999999", expected an integer'),
        ("orca:max_batch=True", 'orca:max_batch: got "True", expected an integer'),
        ("fastserve:quantum_ms=0", 'fastserve:quantum_ms: got "0", expected a number above 0'),
        ("fastserve:host_reserve=1.1", 'fastserve:host_reserve: got "1.1", expected a number from'),
    ],
)
def test_malformed(text: str, sentence: str) -> None:
    with pytest.raises(_core.InvalidArgument) as error:
        policies.make_policy(text)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_documentation_examples_run() -> None:
    assert doctest.testmod(policies, report=True).failed == 0
    assert doctest.testmod(policies).attempted > 8
