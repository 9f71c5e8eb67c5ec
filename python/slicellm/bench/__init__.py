"""Workloads, metrics and reports: what `benchmark` and the studies are made of.

arrivals, lengths, workload, taskfile   what the tasks are and when they come (orthogonal parts)
saturation, scenario                    how much a machine can serve; from flags to tasks
runner, eventlog, metrics               a run, what happened in it, every metric computed from that
report, plot                            tables, result file, figure
"""
