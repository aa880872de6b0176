"""Names for the numbers of RFC 7143: opcodes, flags, codes and reasons. Nothing else."""

from enum import IntEnum, IntFlag

BHS_LENGTH = 48  # bytes in a Basic Header Segment (RFC 7143 section 11.2)
RESERVED_TAG = 0xFFFFFFFF  # "no task": the reserved value of ITT and TTT
ISCSI_PORT = 3260  # the iscsi-target system port, section 15
PROTOCOL_VERSION = 0x00  # section 11.12.4: the only version there is
SERIAL_MASK = 0xFFFFFFFF  # serial numbers are 32 bits and wrap (RFC 1982)


class Opcode(IntEnum):
    """Section 11.2.1.2."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


OPCODE_MASK = 0x3F
IMMEDIATE = 0x40  # the I bit, beside the opcode
FINAL = 0x80  # the F bit of most PDUs
CONTINUE = 0x40  # the C bit of text and login PDUs
TRANSIT = 0x80  # the T bit of login PDUs


class CommandFlag(IntFlag):
    """SCSI Command, section 11.3.1."""

    READ = 0x40
    WRITE = 0x20
    ATTRIBUTE = 0x07


class DataInFlag(IntFlag):
    """SCSI Data-In, section 11.7; the residual bits are also those of the SCSI Response."""

    ACKNOWLEDGE = 0x40
    OVERFLOW = 0x04
    UNDERFLOW = 0x02
    STATUS = 0x01


class Stage(IntEnum):
    """Login stages, section 11.12.3."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


class LoginStatus(IntEnum):
    """Status class and detail as one 16-bit number, section 11.13.5."""

    SUCCESS = 0x0000
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


class RejectReason(IntEnum):
    """Section 11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    WAITING_FOR_LOGOUT = 0x0C


class TaskManagement(IntEnum):
    """Functions: RFC 7143 section 11.5.1; from QUERY_TASK on RFC 7144 section 4.1."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8
    QUERY_TASK = 9
    QUERY_TASK_SET = 10
    I_T_NEXUS_RESET = 11
    QUERY_ASYNCHRONOUS_EVENT = 12


class TaskManagementResponse(IntEnum):
    """RFC 7143 section 11.6.1; FUNCTION_SUCCEEDED from RFC 7144."""

    FUNCTION_COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    FUNCTION_SUCCEEDED = 7
    FUNCTION_REJECTED = 255


class LogoutReason(IntEnum):
    """Section 11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_CONNECTION_FOR_RECOVERY = 2


class LogoutResponseCode(IntEnum):
    """Section 11.15.1."""

    CLOSED = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


class AsyncEvent(IntEnum):
    """Section 11.9.1."""

    SCSI_EVENT = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROPPED = 2
    SESSION_DROPPED = 3
    NEGOTIATION_REQUESTED = 4
    TASKS_TERMINATED = 5
    VENDOR_SPECIFIC = 255


class AhsType(IntEnum):
    """Additional Header Segments, section 11.2.2.1."""

    EXTENDED_CDB = 1
    BIDIRECTIONAL_READ_LENGTH = 2
