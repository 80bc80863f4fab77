"""What an audit of a part of a unit's answer can come to."""

from __future__ import annotations

from enum import StrEnum


class Zone(StrEnum):
    """Where an audit, or one of its statistics, lies between honest noise and what no honest host makes."""

    PASS = "pass"
    SUSPICIOUS = "suspicious"
    FAULT = "fault"
