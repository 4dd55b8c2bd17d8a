"""Letting the policy speak, for rollouts and for chat alike."""
