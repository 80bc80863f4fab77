"""A real Prometheus for tests: scrapes what it is told to, and answers questions about it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from memgrid.endpoint import CERTIFICATE_NAME
from memgrid_coordinator.app import Coordinator
from tests.grids import eventually

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus and promtool; on Debian: apt-get install prometheus",
)


class PromQlError(Exception):
    """Prometheus did not like a question."""


class Prometheus:
    """Questions to a running Prometheus."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """What an expression gives now, a dict a series; raises PromQlError when it can't be understood."""
        found = await self._ask("/api/v1/query", {"query": expr})
        assert found["resultType"] == "vector", expr
        result: list[dict[str, Any]] = found["result"]
        return result

    async def label_values(self, label: str, selector: str) -> list[str]:
        found: list[str] = await self._ask(f"/api/v1/label/{label}/values", {"match[]": selector})
        return found

    async def rules(self) -> list[dict[str, Any]]:
        groups = (await self._ask("/api/v1/rules", {}))["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def scrapes(self) -> int:
        """Series of `up` that say 1: targets whose last scrape went well."""
        return len([one for one in await self.query("up") if one["value"][1] == "1"])

    async def _ask(self, path: str, parameters: dict[str, str]) -> Any:
        answer = (await self._http.get(path, params=parameters)).json()
        if answer["status"] != "success":
            raise PromQlError(answer["error"])
        return answer["data"]


@asynccontextmanager
async def watching(coordinator: Coordinator, folder: Path) -> AsyncIterator[Prometheus]:
    """Prometheus with the configuration that is shipped, looking at a coordinator of the test, more often."""
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(_config(coordinator))
    port = _free_port()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
            stdout=output,
            stderr=output,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

            async def is_ready() -> bool:
                assert process.returncode is None, log.read_text()
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(is_ready)
            yield Prometheus(http)
    finally:
        process.terminate()
        await process.wait()


def boards() -> dict[str, dict[str, Any]]:
    """The dashboards as Grafana is given them, by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((DASHBOARDS / "grafana").glob("*.json"))}


def panels_of(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels without the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def _config(coordinator: Coordinator) -> str:
    config = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DASHBOARDS / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{coordinator.address.http_port}"]}]
    # As its comment advises wherever the network is not one's own.
    job["tls_config"] = {"ca_file": str(coordinator.certificate.chain), "server_name": CERTIFICATE_NAME}
    return yaml.safe_dump(config)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
