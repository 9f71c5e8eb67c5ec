"""Workloads, metrics and reports: what `benchmark` and the studies are made of.

tasks, arrivals, lengths, workload, taskfile   what the tasks are and when they come (orthogonal)
saturation, scenario, capacity                 how much a machine can serve; from flags to tasks
profiles, roofline, machine, runner            what runs them: a model here, a simulated machine
eventlog, task_metrics, metrics                what happened, every metric computed from that
bound, bound_*                                 what nobody could exceed
report, plot                                   tables, result file, figures
checks                                         of what comes from outside

`python -m slicellm.bench LOG` prints the tables of an event log.
"""
