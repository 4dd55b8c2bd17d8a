"""The library's surface under the names that scripts written for earlier systems of this kind use."""

from __future__ import annotations

from chatgrpo import monitoring
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.gateway import Gateway as EnhancedGRPOGateway
from chatgrpo.jobs.orchestrator import ResourceRequirement, ResourceType, TrainingConfig, TrainingOrchestrator
from chatgrpo.monitoring import monitor_async_function
from chatgrpo.state.service import managed_state_context

__all__ = [
    "EnhancedGRPOGateway",
    "ResourceRequirement",
    "ResourceType",
    "RouteConfig",
    "TrainingConfig",
    "TrainingOrchestrator",
    "managed_state_context",
    "monitor_async_function",
    "monitoring",
]
