"""What a grid tells everybody about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GridFacts:
    """What `GET /v1/grid` tells; `url` with its certificate's fingerprint is what people are given to join."""

    name: str
    version: str
    grpc_port: int
    grid_key: str
    """The Ed25519 public key that signs cubes, as hex."""
    enrolment: str
    max_blob_bytes: int
    url: str
