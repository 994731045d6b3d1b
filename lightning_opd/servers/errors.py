"""What goes wrong with servers in the middle of a run."""

from __future__ import annotations


class ServersDownError(RuntimeError):
    """No server answers any more; the run ends, and goes on from its last checkpoint once they are back."""
