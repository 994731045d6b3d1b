"""Clients of running inference servers; servers that are started and stopped on this machine."""

from lightning_opd.servers.errors import ServersDownError
from lightning_opd.servers.pool import ServerPool
from lightning_opd.servers.vllm import ServedModel, TokenScores, models_of, scores_of, scoring_request

__all__ = [
    "ServedModel",
    "ServerPool",
    "ServersDownError",
    "TokenScores",
    "models_of",
    "scores_of",
    "scoring_request",
]
