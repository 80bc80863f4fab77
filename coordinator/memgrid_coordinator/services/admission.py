"""Which bytes are wanted from a volunteer, and how the others are turned down and counted."""

from __future__ import annotations

from typing import NoReturn, Protocol

from memgrid.digest import Digest
from memgrid.errors import DigestMismatchError, InvalidError, MemgridError, NotAllowedError, TooLargeError
from memgrid.units import HostId, LeaseId, Reason, ReasonCode, UploadOrder
from memgrid_coordinator.policy.repositories import lease_of
from memgrid_coordinator.records import Caller, Role


class UploadJudge(Protocol):
    """Knows which outputs are wanted from whom; the judging service."""

    async def wanted_uploads(self, host_id: HostId, lease_id: LeaseId) -> tuple[UploadOrder, ...]: ...

    async def receive_upload(self, *, host_id: HostId, lease_id: LeaseId, digest: Digest) -> None: ...

    async def refuse_upload(self, *, host_id: HostId, lease_id: LeaseId, reason: Reason) -> None: ...


class RefusedUpload(Exception):  # noqa: N818 - what happened; `error` is the error
    """A volunteer's upload that was turned down, and counted."""

    def __init__(self, reason: Reason, error: MemgridError) -> None:
        super().__init__(str(error))
        self.reason = reason
        self.error = error


_ERRORS: dict[ReasonCode, type[MemgridError]] = {
    ReasonCode.NOT_ORDERED: NotAllowedError,
    ReasonCode.UPLOAD_TOO_LARGE: TooLargeError,
    ReasonCode.UPLOAD_TRUNCATED: InvalidError,
    ReasonCode.DIGEST_MISMATCH: DigestMismatchError,
}


class Admission:
    """The gate of `grid/outputs/<lease>`: only what was ordered, and only from whom it was ordered."""

    def __init__(self, judge: UploadJudge) -> None:
        self._judge = judge

    async def orders(self, caller: Caller, repository: str, digest: Digest | None) -> tuple[UploadOrder, ...]:
        """What is wanted from this host under this name: that digest alone, if one is given. Never empty.

        Raises RefusedUpload when nothing is.
        """
        assert caller.host_id is not None
        orders = await self._judge.wanted_uploads(caller.host_id, lease_of(repository))
        if digest is not None:
            orders = tuple(order for order in orders if order.digest == digest)
        if not orders:
            text = f"no upload of {digest or 'anything'} was ordered to {repository}"
            await self.refuse(caller, repository, Reason(code=ReasonCode.NOT_ORDERED, text=text))
        return orders

    async def receive(self, caller: Caller, repository: str, digest: Digest) -> None:
        """Say that an ordered output is in the content store."""
        assert caller.host_id is not None
        await self._judge.receive_upload(host_id=caller.host_id, lease_id=lease_of(repository), digest=digest)

    async def refuse(self, caller: Caller, repository: str, reason: Reason) -> NoReturn:
        """Turn an upload down; a volunteer's is counted."""
        error = _ERRORS[reason.code](reason.text)
        if caller.role is not Role.VOLUNTEER:
            raise error
        assert caller.host_id is not None
        await self._judge.refuse_upload(host_id=caller.host_id, lease_id=lease_of(repository), reason=reason)
        raise RefusedUpload(reason, error)
