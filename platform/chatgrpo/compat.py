"""The library's surface under the names that scripts written for earlier systems of this kind use."""

from __future__ import annotations

from chatgrpo.state.service import managed_state_context

__all__ = ["managed_state_context"]
