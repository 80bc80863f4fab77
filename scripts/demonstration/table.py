"""The one small table at the end of the demo."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from memgrid.text import flops_text


def summary_table(facts: dict[str, Any]) -> Table:
    """What reading a text once and for all saves each later reader of it."""
    table = Table(title=f"{facts['cube']}: {facts['cube_tokens']:,} tokens", title_justify="left", min_width=66)
    table.add_column("")
    for heading in ("reading the text", "attaching the cube", "without either"):
        table.add_column(heading, justify="right")
    faster = facts["ttft_prefill_s"] / facts["ttft_cube_s"]
    table.add_row(
        "time to first token",
        f"{facts['ttft_prefill_s']:.2f} s",
        f"{facts['ttft_cube_s']:.2f} s ({faster:.0f}× faster)",
        "",
    )
    table.add_row("KL to having read it", "0", f"{facts['kl_to_full_text']:.1e}", f"{facts['kl_without_text']:.2f}")
    table.add_row("same first token", "", "yes" if facts["top1_agrees"] else "no", "")
    table.add_row("size", "", f"{facts['cube_bytes'] / 1e6:.1f} MB", "")
    table.add_row("computed by the reader", flops_text(facts["saved_flops"]), "only the question", "")
    table.caption = (
        f"all {facts['cubes_published']} cubes: {flops_text(facts['produced_flops'])} of results,"
        f" {flops_text(facts['spent_flops'])} spent with the checking,"
        f" {len(facts['reports_rejected'])} reports rejected"
    )
    table.caption_justify = "left"
    return table
