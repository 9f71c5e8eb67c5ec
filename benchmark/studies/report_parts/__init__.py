"""The parts of the laboratory's report, see report.py beside this folder."""
