"""What is well with a grid and what is not: what was measured becomes a finding with advice."""

from __future__ import annotations

from datetime import datetime, timedelta

from memgrid.findings import Finding, Level
from memgrid.text import bytes_text, seconds_text

DISK_LOW = 0.1
"""Share of a disk below which its owner should do something."""
DISK_LAST_BYTES = 512 << 20
"""Below this commits may fail any moment."""
SYNC_SLOW_S = 0.05
FILES_FEW = 4096
"""Each connected volunteer takes a file; the system's usual 1,024 are soon used up."""
CERTIFICATE_SOON = timedelta(days=21)
CLOCK_BACK = timedelta(minutes=1)
QUEUE_OLD = timedelta(minutes=10)


def disk(about: str, *, free_bytes: int, total_bytes: int) -> Finding:
    """Room on the disk of a folder.

    >>> disk("data disk", free_bytes=2 << 30, total_bytes=100 << 30).level
    <Level.WARNING: 'warning'>
    """
    text = f"{bytes_text(free_bytes)} of {bytes_text(total_bytes)} free"
    advice = "free some, or move the folder to a larger disk; `memgrid coordinator gc` removes what nobody names"
    if free_bytes < DISK_LAST_BYTES:
        return Finding(level=Level.BAD, about=about, text=text, advice=advice)
    if free_bytes < DISK_LOW * total_bytes:
        return Finding(level=Level.WARNING, about=about, text=text, advice=advice)
    return Finding(level=Level.OK, about=about, text=text)


def sync_time(took_s: float) -> Finding:
    """How long the disk takes to say that something is safe: every commit waits for it.

    >>> sync_time(0.004).text
    'a write is safe after 4.0 ms'
    """
    text = f"a write is safe after {1000 * took_s:.1f} ms"
    if took_s > SYNC_SLOW_S:
        advice = "every commit waits so long; prefer a local disk to one of the network"
        return Finding(level=Level.WARNING, about="disk speed", text=text, advice=advice)
    return Finding(level=Level.OK, about="disk speed", text=text)


def open_files(limit: int) -> Finding:
    """How many files, and so connections, the process may have open.

    >>> open_files(1024).level
    <Level.WARNING: 'warning'>
    """
    if limit < FILES_FEW:
        advice = f"no room for more than {limit // 2} volunteers at once: ulimit -n 65536, or LimitNOFILE=65536"
        return Finding(level=Level.WARNING, about="open files", text=f"at most {limit}", advice=advice)
    return Finding(level=Level.OK, about="open files", text=f"at most {limit}")


def certificate(expires_at: datetime, now: datetime) -> Finding:
    """Whether clients will go on accepting the certificate."""
    text = f"good until {expires_at:%Y-%m-%d %H:%M} UTC"
    advice = "renew it and start the coordinator again; a self-made one is made anew once keys/tls.* are gone"
    if expires_at <= now:
        text = f"ran out at {expires_at:%Y-%m-%d %H:%M} UTC: nobody connects"
        return Finding(level=Level.BAD, about="certificate", text=text, advice=advice)
    level = Level.WARNING if expires_at - now < CERTIFICATE_SOON else Level.OK
    return Finding(level=level, about="certificate", text=text, advice=advice if level is Level.WARNING else "")


def clock(last_event_at: datetime | None, now: datetime) -> Finding:
    """Whether the machine's clock has gone back behind what it stamped itself."""
    if last_event_at is None or last_event_at - now < CLOCK_BACK:
        return Finding(level=Level.OK, about="clock", text=f"{now:%Y-%m-%d %H:%M:%S} UTC")
    behind_s = (last_event_at - now).total_seconds()
    text = f"it shows {now:%Y-%m-%d %H:%M:%S} UTC, {seconds_text(behind_s)} before the last thing that happened"
    return Finding(level=Level.BAD, about="clock", text=text, advice="let NTP set it: deadlines come late until then")


def queue(*, open_units: int, hosts_alive: int, oldest: timedelta | None) -> Finding:
    """Whether somebody works on what is to be done."""
    text = f"{open_units:,} units wait for a host, {hosts_alive:,} hosts are alive"
    if oldest is not None:
        text += f", the oldest for {seconds_text(oldest.total_seconds())}"
    if open_units and not hosts_alive:
        advice = "invite volunteers, or see whether they can reach the grid's address"
        return Finding(level=Level.WARNING, about="work", text=text, advice=advice)
    if oldest is not None and oldest > QUEUE_OLD:
        advice = "`memgrid explain` tells of one such unit why nobody gets it: one account is one voice"
        return Finding(level=Level.WARNING, about="work", text=text, advice=advice)
    return Finding(level=Level.OK, about="work", text=text)
