"""Text requests in full feature phase: SendTargets, renegotiation, answers in several PDUs.

RFC 7143 sections 11.10 and 11.11 and appendix C. One exchange at a time on a connection.
"""

from dataclasses import replace

from .constants import CONTINUE, FINAL, RESERVED_TAG, RejectReason
from .keys import REJECT, Negotiation, Phase, Sender
from .login import Agreement, LoginPolicy
from .pdu import TextRequest, TextResponse
from .responses import ResponseWriter
from .text import Pairs, ProtocolError, TextAssembler, decode_pairs, encode_pairs

_CONTINUATION_TTT = 1


class TextExchange:
    """The text exchange of one connection; its answers go to the connection's writer."""

    def __init__(self, policy: LoginPolicy, agreement: Agreement, writer: ResponseWriter) -> None:
        self._policy = policy
        self._agreement = agreement
        self._writer = writer
        self._reset()

    def _reset(self) -> None:
        self._itt = RESERVED_TAG
        self._assembler = TextAssembler()
        self._unsent = b""

    def receive(self, request: TextRequest, text: bytes) -> None:
        """Answer one request. Raises ProtocolError, for which the request is rejected."""
        if request.flags & FINAL and request.flags & CONTINUE:
            raise ProtocolError("F and C are both set", RejectReason.INVALID_PDU_FIELD)
        if request.ttt == RESERVED_TAG:
            self._reset()
            self._itt = request.itt
        elif request.ttt != _CONTINUATION_TTT or request.itt != self._itt:
            raise ProtocolError("no such text exchange", RejectReason.INVALID_PDU_FIELD)
        if self._unsent:
            if text:
                raise ProtocolError("keys while our answer is unfinished")
            self._send(request)
            return
        try:
            whole = self._assembler.add(text, more=bool(request.flags & CONTINUE))
            if whole is not None:
                self._unsent = encode_pairs(self._answer(decode_pairs(whole)))
        except ProtocolError:
            self._reset()
            raise
        if whole is None:
            self._respond(request, b"", flags=0)
        else:
            self._send(request)

    def _answer(self, pairs: Pairs) -> Pairs:
        wishes = [value for name, value in pairs if name == "SendTargets"]
        if len(wishes) > 1:
            raise ProtocolError("SendTargets is there twice")
        rest = [pair for pair in pairs if pair[0] != "SendTargets"]
        agreement = self._agreement
        negotiation = Negotiation(
            agreement.terms.limits.offers(),
            replace(agreement.parameters),  # a negotiation that fails changes nothing
            Sender.TARGET,
            agreement.discovery,
        )
        answers = negotiation.answer(rest, Phase.FULL_FEATURE)
        agreement.parameters = negotiation.parameters
        self._writer.limit_lengths(
            agreement.parameters.max_send_data_segment_length,
            agreement.parameters.max_burst_length,
        )
        for wish in wishes:
            answers += self._send_targets(wish)
        return answers

    def _send_targets(self, wish: str) -> Pairs:
        """Appendix C: what may be asked for depends on the kind of session."""
        own_target = self._agreement.terms.name
        name = None if wish == "All" else wish.lower() or own_target
        if own_target is not None and name != own_target:
            return [("SendTargets", REJECT)]
        if wish == "" and own_target is None:
            return [("SendTargets", REJECT)]
        answers: Pairs = []
        for target, addresses in self._policy.send_targets(self._agreement.initiator_name, name):
            answers.append(("TargetName", target))
            answers += [("TargetAddress", address) for address in addresses]
        return answers

    def _send(self, request: TextRequest) -> None:
        """Send as much of the answer as one PDU may carry."""
        length = self._writer.max_segment_length
        chunk, self._unsent = self._unsent[:length], self._unsent[length:]
        if self._unsent:
            self._respond(request, chunk, flags=CONTINUE)
        elif request.flags & FINAL:
            self._reset()
            self._respond(request, chunk, flags=FINAL)
        else:
            self._respond(request, chunk, flags=0)

    def _respond(self, request: TextRequest, data: bytes, flags: int) -> None:
        response = TextResponse(
            flags=flags,
            lun=request.lun,
            itt=request.itt,
            ttt=RESERVED_TAG if flags & FINAL else _CONTINUATION_TTT,
            stat_sn=self._writer.next_stat_sn(),
        )
        self._writer.queue(response, data)
