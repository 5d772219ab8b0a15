"""Experts behind a server of the OpenAI protocol."""

from errata.experts.remote.server import ServerExpert
from errata.experts.remote.settings import ServerSettings

__all__ = ["ServerExpert", "ServerSettings"]
