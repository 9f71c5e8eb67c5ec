"""The policies that the tests of rules for all policies run: parameters that make small cases busy,
and the defaults of every other policy of the registry, but for the one that knows more than views
tell."""

from __future__ import annotations

from slicellm.policies import list_policies

BUSY = [
    "slice",
    "slice:ratio=0.5,mask_layout=spread",
    "slice:boost_after_ms=100,age_after_ms=300",
    "orca:max_batch=4",
    "fastserve:max_batch=3,starvation_steps=20,starvation_ms=200",
    "static:batch=4",
    "ils:max_parallel=3",
    "scls:slice=5,gamma_ms=40",
    "sarathi:token_budget=16",
    "sarathi:token_budget=24,order=spf",
    "vllm:max_num_batched_tokens=40",
    "vllm:order=priority,watermark=0.2",
    "slai:token_budget=16,variant=fcfs_fixed",
    "slai:token_budget=16,variant=spf_fixed",
    "slai:token_budget=16,variant=spf_dynamic",
    "slai:token_budget=16,variant=spf_dynamic_user_priority",
    "rad-like:tile=4,token_budget=24",
    "edf:max_batch=4",
    "priority-pause:max_batch=4,max_pause_steps=3",
    "priority-pause:max_batch=3,reserved_rows=2,max_pause_steps=0,order=fcfs",
]
_LEFT_OUT = {text.split(":")[0] for text in BUSY} | {"pace-told"}
POLICIES = BUSY + [p["name"] for p in list_policies() if p["name"] not in _LEFT_OUT]
