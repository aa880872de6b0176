"""The login phase on the wire: requests to `TargetLogin`, replies to numbered Login Responses.

RFC 7143 sections 6.3, 11.12 and 11.13. Between the agreement and the last response the server
decides on the session; only then is the connection in full feature phase.
"""

from collections.abc import Callable

from .constants import LoginStatus
from .login import Agreement, LoginPolicy, Reply, TargetLogin
from .pdu import LoginRequest, LoginResponse
from .responses import ResponseWriter
from .session import CommandWindow
from .text import ProtocolError

LOGIN_REQUESTS_MAX = 64  # of one login: more is a peer that goes round in circles
_STAGE_BITS = 0x0C


class LoginPhase:
    """One connection's login, its answers going to the connection's writer."""

    def __init__(
        self, policy: LoginPolicy, random_bytes: Callable[[int], bytes], writer: ResponseWriter
    ) -> None:
        self._login = TargetLogin(policy, random_bytes)
        self._writer = writer
        self._requests = 0
        self._request = LoginRequest()
        self._final: Reply | None = None

    @property
    def begun(self) -> bool:
        """Whether a first Login Request has come."""
        return self._requests > 0

    @property
    def initiator_name(self) -> str:
        """Who logs in, as far as it has said."""
        return self._login.initiator_name

    def receive(self, request: LoginRequest, data: bytes) -> Agreement | None:
        """Answer a request; the agreement once there is one. Raises ProtocolError."""
        self._requests += 1
        if self._requests > LOGIN_REQUESTS_MAX or self._final is not None:
            raise ProtocolError("too many login requests")
        if self._requests == 1:
            self._writer.window = CommandWindow(request.cmd_sn, 1)
        self._request = request
        reply = self._login.receive(request, data)
        if reply.agreed:
            self._final = reply
            return self._login.agreement
        self._respond(reply.flags, reply.data)
        return None

    def accept(self, tsih: int) -> Agreement:
        """Send the last response, which names the session."""
        agreement = self._login.agreement
        assert self._final is not None
        assert agreement is not None
        self._writer.window.widen(agreement.terms.queue_depth)
        self._respond(self._final.flags, self._final.data, tsih=tsih)
        return agreement

    def refuse(self, status: LoginStatus) -> None:
        """Send the response that ends the login; a peer that is no initiator gets none."""
        if self.begun:
            self._respond(self._request.flags & _STAGE_BITS, status=status)

    def _respond(self, flags: int, data: bytes = b"", status: int = 0, tsih: int = 0) -> None:
        response = LoginResponse(
            flags=flags,
            isid=self._request.isid,
            tsih=tsih or self._request.tsih,
            itt=self._request.itt,
            stat_sn=self._writer.next_stat_sn(),
            status=status,
        )
        self._writer.queue(response, data)
