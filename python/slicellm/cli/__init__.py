"""Command lines: ftllm, slicellm, benchmark."""
