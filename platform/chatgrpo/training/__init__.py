"""GRPO itself."""
