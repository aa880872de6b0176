"""THE table of checks, in the order in which they run and are reported."""

from . import (
    arbitration,
    connection,
    data,
    device,
    identity,
    preemption,
    provisioning,
    registration,
    reservations,
    survival,
)
from .model import Check

CHECKS: tuple[Check, ...] = (
    *connection.CHECKS,
    *identity.CHECKS,
    *device.CHECKS,
    *registration.CHECKS,
    *reservations.CHECKS,
    *preemption.CHECKS,
    *survival.CHECKS,
    *arbitration.CHECKS,
    *data.CHECKS,
    *provisioning.CHECKS,
)
