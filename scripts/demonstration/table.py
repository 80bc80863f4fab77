"""The small table at the end of each act of the demo."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from memgrid.cli.picturing import percent_text
from memgrid.text import bytes_text, flops_text, seconds_text


def summary_table(facts: dict[str, Any]) -> Table:
    """What reading a text once and for all saves each later reader of it."""
    table = Table(title=f"{facts['cube']}: {facts['cube_tokens']:,} tokens", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("reading the text", "attaching the cube", "without the text"):
        table.add_column(heading, justify="right", no_wrap=True)
    faster = f"{facts['ttft_prefill_s'] / facts['ttft_cube_s']:.1f}×"
    rows = (
        ("time to first token", seconds_text(facts["ttft_prefill_s"]), seconds_text(facts["ttft_cube_s"]), ""),
        ("faster by", "", faster, ""),
        ("divergence from reading (KL)", "0", f"{facts['kl_to_full_text']:.1e}", f"{facts['kl_without_text']:.1e}"),
        ("same first token", "", "yes" if facts["top1_agrees"] else "no", ""),
        ("size", "", bytes_text(facts["cube_bytes"]), ""),
        ("saved by each use", "", flops_text(facts["saved_flops"]), ""),
    )
    for row in rows:
        table.add_row(*row)
    table.caption = (
        f"Paid for all {facts['cubes_published']} cubes: {flops_text(facts['spent_flops'])},"
        f" of which {flops_text(facts['produced_flops'])} are the results and the rest the checking."
    )
    table.caption_justify = "left"
    return table


def distilled_table(facts: dict[str, Any]) -> Table:
    """What distilling a text once saves each later reader, and how much of the reading it keeps."""
    quality = facts["quality"]
    title = f"{facts['cube']}: {facts['tokens']:,} tokens of text, {facts['adapter']}"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("without the text", "with the cube", "reading the text"):
        table.add_column(heading, justify="right", no_wrap=True)
    smaller = facts["text_kv_bytes"] / facts["cube_bytes"]
    rows = (
        (
            f"NLL of {quality['items']} held-out answers",
            f"{quality['nll_none']:.2f}",
            f"{quality['nll_cube']:.2f}",
            f"{quality['nll_text']:.2f}",
        ),
        ("share of the gap closed", "0 %", percent_text(quality["gap_closed"]), "100 %"),
        ("memory", "0", bytes_text(facts["cube_bytes"]), bytes_text(facts["text_kv_bytes"])),
        ("smaller by", "", f"{smaller:.1f}×", ""),
        ("saved by each use", "", flops_text(facts["saved_flops"]), ""),
    )
    for row in rows:
        table.add_row(*row)
    table.caption = (
        f"Paid once: {flops_text(facts['spent_flops'])}, the cheat's included,"
        f" of which {flops_text(facts['produced_flops'])} are the results."
    )
    table.caption_justify = "left"
    return table
