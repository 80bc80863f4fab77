"""The one small table at the end of the demo."""

from __future__ import annotations

from typing import Any

from rich.table import Table

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
