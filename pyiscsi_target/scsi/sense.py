"""Sense data: why a command failed, raised as an exception and encoded for the wire.

Whatever refuses a command raises `ScsiError` (or `StatusError` for the statuses that carry no
sense); `logical_unit` and `target_device` turn it into a Result in one place. This module knows
neither commands nor storage.
"""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum

from .task import Status


class SenseKey(IntEnum):
    """SPC-5 table 48, sense keys."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class Asc(Enum):
    """Additional sense code and qualifier, named as in SPC-5 annex F."""

    NO_ADDITIONAL_SENSE_INFORMATION = (0x00, 0x00)
    OPERATION_IN_PROGRESS = (0x00, 0x16)
    PERIPHERAL_DEVICE_WRITE_FAULT = (0x03, 0x00)
    LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE = (0x04, 0x00)
    LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY = (0x04, 0x01)
    LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED = (0x04, 0x02)
    LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED = (0x04, 0x03)
    LOGICAL_UNIT_NOT_ACCESSIBLE_ASYMMETRIC_ACCESS_STATE_TRANSITION = (0x04, 0x0A)
    LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_STANDBY_STATE = (0x04, 0x0B)
    LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_UNAVAILABLE_STATE = (0x04, 0x0C)
    WRITE_ERROR = (0x0C, 0x00)
    WRITE_ERROR_UNEXPECTED_UNSOLICITED_DATA = (0x0C, 0x0C)
    WRITE_ERROR_NOT_ENOUGH_UNSOLICITED_DATA = (0x0C, 0x0D)
    INFORMATION_UNIT_TOO_SHORT = (0x0E, 0x01)
    INFORMATION_UNIT_TOO_LONG = (0x0E, 0x02)
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = (0x0E, 0x03)
    UNRECOVERED_READ_ERROR = (0x11, 0x00)
    PARAMETER_LIST_LENGTH_ERROR = (0x1A, 0x00)
    MISCOMPARE_DURING_VERIFY_OPERATION = (0x1D, 0x00)
    INVALID_COMMAND_OPERATION_CODE = (0x20, 0x00)
    LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = (0x21, 0x00)
    INVALID_FIELD_IN_CDB = (0x24, 0x00)
    LOGICAL_UNIT_NOT_SUPPORTED = (0x25, 0x00)
    INVALID_FIELD_IN_PARAMETER_LIST = (0x26, 0x00)
    PARAMETER_NOT_SUPPORTED = (0x26, 0x01)
    PARAMETER_VALUE_INVALID = (0x26, 0x02)
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = (0x26, 0x04)
    WRITE_PROTECTED = (0x27, 0x00)
    LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED = (0x27, 0x02)
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = (0x27, 0x07)
    NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED = (0x28, 0x00)
    POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED = (0x29, 0x00)
    POWER_ON_OCCURRED = (0x29, 0x01)
    SCSI_BUS_RESET_OCCURRED = (0x29, 0x02)
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = (0x29, 0x03)
    DEVICE_INTERNAL_RESET = (0x29, 0x04)
    I_T_NEXUS_LOSS_OCCURRED = (0x29, 0x07)
    PARAMETERS_CHANGED = (0x2A, 0x00)
    MODE_PARAMETERS_CHANGED = (0x2A, 0x01)
    LOG_PARAMETERS_CHANGED = (0x2A, 0x02)
    RESERVATIONS_PREEMPTED = (0x2A, 0x03)
    RESERVATIONS_RELEASED = (0x2A, 0x04)
    REGISTRATIONS_PREEMPTED = (0x2A, 0x05)
    ASYMMETRIC_ACCESS_STATE_CHANGED = (0x2A, 0x06)
    CAPACITY_DATA_HAS_CHANGED = (0x2A, 0x09)
    COMMAND_SEQUENCE_ERROR = (0x2C, 0x00)
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = (0x2F, 0x00)
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = (0x38, 0x07)
    SAVING_PARAMETERS_NOT_SUPPORTED = (0x39, 0x00)
    MEDIUM_NOT_PRESENT = (0x3A, 0x00)
    LOGICAL_UNIT_FAILURE = (0x3E, 0x01)
    LOGICAL_UNIT_FAILED_SELF_TEST = (0x3E, 0x03)
    INQUIRY_DATA_HAS_CHANGED = (0x3F, 0x03)
    REPORTED_LUNS_DATA_HAS_CHANGED = (0x3F, 0x0E)
    INTERNAL_TARGET_FAILURE = (0x44, 0x00)
    PERSISTENT_RESERVATION_INFORMATION_LOST = (0x44, 0x01)
    INVALID_MESSAGE_ERROR = (0x49, 0x00)
    DATA_PHASE_ERROR = (0x4B, 0x00)
    OVERLAPPED_COMMANDS_ATTEMPTED = (0x4E, 0x00)
    MEDIUM_REMOVAL_PREVENTED = (0x53, 0x02)
    SYSTEM_RESOURCE_FAILURE = (0x55, 0x00)
    INSUFFICIENT_RESOURCES = (0x55, 0x03)
    INSUFFICIENT_REGISTRATION_RESOURCES = (0x55, 0x04)


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """The byte (and its most significant bit) in error, in the CDB or in the parameter data."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True

    def encode(self) -> bytes:
        """Field pointer sense key specific data, three bytes (SPC-5 clause 4.4.2.4.2)."""
        flags = 0x80 | (0x40 if self.in_cdb else 0)
        if self.bit is not None:
            flags |= 0x08 | self.bit
        return struct.pack(">BH", flags, self.byte)


class StatusError(Exception):
    """A command ends in a status other than CHECK CONDITION, without sense data."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class ReservationConflict(StatusError):
    """Another I_T nexus holds a reservation that forbids the command (SPC-5 clause 5.14)."""

    def __init__(self) -> None:
        super().__init__(Status.RESERVATION_CONFLICT)


class ScsiError(Exception):
    """A command ends in CHECK CONDITION; carries its sense data.

    `information` and `command_specific` are the fields of those names, None where not valid.
    """

    def __init__(
        self,
        sense_key: SenseKey,
        asc: Asc,
        *,
        field: FieldPointer | None = None,
        information: int | None = None,
        command_specific: int | None = None,
    ) -> None:
        super().__init__(f"{sense_key.name}: {asc.name}")
        self.sense_key = sense_key
        self.asc = asc
        self.field = field
        self.information = information
        self.command_specific = command_specific


def invalid_cdb_field(byte: int, bit: int | None = None) -> ScsiError:
    """ILLEGAL REQUEST, INVALID FIELD IN CDB, pointing at the field's most significant bit."""
    return ScsiError(
        SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, field=FieldPointer(byte, bit)
    )


def invalid_parameter_field(byte: int, bit: int | None = None) -> ScsiError:
    """ILLEGAL REQUEST, INVALID FIELD IN PARAMETER LIST, pointing into the parameter list."""
    return ScsiError(
        SenseKey.ILLEGAL_REQUEST,
        Asc.INVALID_FIELD_IN_PARAMETER_LIST,
        field=FieldPointer(byte, bit, in_cdb=False),
    )


def parameter_list_length_error() -> ScsiError:
    """ILLEGAL REQUEST, PARAMETER LIST LENGTH ERROR."""
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)


def medium_not_present() -> ScsiError:
    """What a unit whose medium is ejected answers to commands that need it."""
    return ScsiError(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)


def no_sense() -> ScsiError:
    """What REQUEST SENSE reports when there is nothing to report (SPC-5 clause 6.39)."""
    return ScsiError(SenseKey.NO_SENSE, Asc.NO_ADDITIONAL_SENSE_INFORMATION)


def encode_sense(error: ScsiError, descriptor: bool) -> bytes:
    """Current sense data, in descriptor or fixed format (SPC-5 clause 4.4).

    The control mode page's D_SENSE bit chooses the format for a failed command, the DESC bit of
    the CDB for REQUEST SENSE.
    """
    return _encode_descriptor(error) if descriptor else _encode_fixed(error)


_FIXED = struct.Struct(">BBBIBIBBB3s")
_FIXED_MAX = 0xFFFFFFFF
_VALID = 0x80


def _encode_fixed(error: ScsiError) -> bytes:
    """SPC-5 clause 4.4.3; a value too wide for its four bytes is left out."""
    information = error.information
    valid = information is not None and information <= _FIXED_MAX
    specific = error.command_specific
    asc, ascq = error.asc.value
    return _FIXED.pack(
        0x70 | (_VALID if valid else 0),
        0,
        error.sense_key,
        information if information is not None and valid else 0,
        _FIXED.size - 8,
        specific if specific is not None and specific <= _FIXED_MAX else 0,
        asc,
        ascq,
        0,
        error.field.encode() if error.field else bytes(3),
    )


def _encode_descriptor(error: ScsiError) -> bytes:
    """SPC-5 clause 4.4.2, with the descriptors whose content is known."""
    descriptors = b""
    if error.information is not None:
        descriptors += struct.pack(">BBBBQ", 0x00, 0x0A, _VALID, 0, error.information)
    if error.command_specific is not None:
        descriptors += struct.pack(">BBHQ", 0x01, 0x0A, 0, error.command_specific)
    if error.field is not None:
        descriptors += struct.pack(">BBH3sB", 0x02, 0x06, 0, error.field.encode(), 0)
    header = bytes((0x72, error.sense_key, *error.asc.value, 0, 0, 0, len(descriptors)))
    return header + descriptors
