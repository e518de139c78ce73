"""Numbers of builds and projects, where commands look for them."""

from __future__ import annotations

from buildrunner.plan.identity import new_build_id, project_number

__all__ = ["new_build_id", "project_number"]
