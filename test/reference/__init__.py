"""Models written again in numpy float64, from their papers and configurations, as references.

They share no code with the engine: one plain file per family, whole sequences at once, no cache.
"""
