"""D-Bus as far as probes need it: ask one question on the system's or the session's bus, and wait a little."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from jeepney import DBusAddress, DBusErrorResponse, MessageType, Properties, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from memgrid_volunteer.owner.probes.probe import Unseen

ANSWER_LIMIT_S = 2.0

BusName = Literal["SYSTEM", "SESSION"]


class Bus:
    """One bus, dialled when it is first asked and again after it has hung up; for one thread."""

    def __init__(self, name: BusName) -> None:
        self._name = name
        self._connection: DBusConnection | None = None

    def call(self, address: DBusAddress, method: str, signature: str = "", body: tuple[Any, ...] = ()) -> Any:
        """What a method returns; a single value as itself. Raises Unseen."""
        message = new_method_call(address, method, signature or None, body)
        return self._ask(message, address)

    def property(self, address: DBusAddress, name: str) -> Any:
        """Raises Unseen."""
        return self._ask(Properties(address).get(name), address)[1]

    def properties(self, address: DBusAddress) -> dict[str, Any]:
        """All of an interface. Raises Unseen."""
        found = self._ask(Properties(address).get_all(), address)
        return {name: value for name, (_, value) in found.items()}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _ask(self, message: Any, address: DBusAddress) -> Any:
        try:
            reply = self._connected().send_and_get_reply(message, timeout=ANSWER_LIMIT_S)
            body = unwrap_msg(reply)
        except DBusErrorResponse as error:
            raise Unseen(f"{address.bus_name}: {_short(error)}") from None
        except (OSError, EOFError, KeyError, ValueError) as error:
            # Half an answer may be left on the line.
            self.close()
            raise Unseen(f"no answer on the {self._name.lower()} bus: {error or type(error).__name__}") from None
        assert reply.header.message_type is MessageType.method_return
        return body[0] if len(body) == 1 else body

    def _connected(self) -> DBusConnection:
        if self._connection is None:
            self._connection = open_dbus_connection(bus=self._name)
        return self._connection


def _short(error: DBusErrorResponse) -> str:
    text = error.data[0] if error.data and isinstance(error.data[0], str) else ""
    return text or str(error.name)
