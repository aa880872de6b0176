"""Checks of what a lost connection may not take away: a nexus's registration and reservation."""

from . import pr
from .gates import free_disk, second_paths, unprotected
from .model import Area, Check, Importance
from .reservations import expect_fenced, expect_writable
from .rig import Rig


async def loss(rig: Rig) -> str:
    """The owner's power is pulled: everything stands, as the other nodes see it."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await rig.lose(owner.nexus)
    await pr.expect_keys(other.nexus, owner.key)
    await pr.expect_holder(other.nexus, owner.key)
    await expect_fenced(rig, other.nexus)
    return "registration and reservation stand, and keep others out"


async def return_after_loss(rig: Rig) -> str:
    """The owner comes back with its ISID and is the owner still."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await rig.lose(owner.nexus)
    await owner.nexus.connect()
    await expect_writable(rig, owner.nexus)
    await pr.expect_holder(owner.nexus, owner.key)
    await pr.reserve(owner.nexus, owner.key)
    await pr.expect_keys(other.nexus, owner.key)
    return "the same ISID is the same owner, who writes and reserves without registering"


async def logout(rig: Rig) -> str:
    """An orderly logout changes nothing either."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await owner.nexus.log_out()
    await pr.expect_keys(other.nexus, owner.key)
    await pr.expect_holder(other.nexus, owner.key)
    await owner.nexus.connect()
    await expect_writable(rig, owner.nexus)
    await pr.reserve(owner.nexus, owner.key)
    return "the owner is the owner after logout and login"


async def replaced_session(rig: Rig) -> str:
    """The owner's new login replaces the session that the target still has."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    old = owner.nexus.session
    await owner.nexus.connect()
    old.drop()
    await expect_writable(rig, owner.nexus)
    await pr.expect_holder(owner.nexus, owner.key)
    await pr.expect_keys(other.nexus, owner.key)
    return "session reinstatement keeps the registration"


async def registrant(rig: Rig) -> str:
    """A registrant that owns nothing keeps its registration, too."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(other.nexus, other.key)
    await rig.lose(other.nexus)
    await pr.expect_keys(owner.nexus, owner.key, other.key)
    await other.nexus.connect()
    await expect_writable(rig, other.nexus)
    return "it comes back and writes without registering"


async def everybody(rig: Rig) -> str:
    """All nodes lose their connections at once, as when a switch fails."""
    for node in rig.nodes:
        await pr.register(node.nexus, node.key)
    owner = rig.nodes[0]
    await pr.reserve(owner.nexus, owner.key)
    await rig.lose(*(node.nexus for node in rig.nodes))
    for node in rig.nodes:
        await node.nexus.connect()
    await pr.expect_keys(owner.nexus, *(node.key for node in rig.nodes))
    await pr.expect_holder(rig.nodes[1].nexus, owner.key)
    for node in rig.nodes:
        await expect_writable(rig, node.nexus)
    return f"{len(rig.nodes)} registrations and the reservation stand"


async def other_isid(rig: Rig) -> str:
    """Another ISID of the owner is somebody else, even while the owner is gone."""
    owner = rig.nodes[0]
    await pr.hold(owner.nexus, owner.key)
    await rig.lose(owner.nexus)
    await expect_fenced(rig, owner.nexuses[1])
    await pr.expect_keys(owner.nexuses[1], owner.key)
    return "a session with another ISID does not inherit the registration"


async def released_after_return(rig: Rig) -> str:
    """What came back can be given away in order."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await rig.lose(owner.nexus)
    await owner.nexus.connect()
    await pr.release(owner.nexus, owner.key)
    await pr.expect_holder(other.nexus, None)
    await pr.register(owner.nexus, 0)
    await pr.expect_keys(other.nexus)
    return "RELEASE and unregister work after the return"


_FIX = "the target must keep registrations by initiator name and ISID, not by connection"
_FAILOVER_TEST = "Validate Disk Failover"

CHECKS = (
    Check(
        "loss",
        Area.SURVIVAL,
        "The reservation survives its owner's connection",
        "while a node is gone nobody else gets in, until it is preempted",
        "SPC-5 clauses 5.14.1 and 5.14.5",
        Importance.REQUIRED,
        loss,
        (free_disk,),
        windows=_FAILOVER_TEST,
        fix=_FIX,
    ),
    Check(
        "loss-return",
        Area.SURVIVAL,
        "The owner comes back as the owner",
        "a short loss of the network does not cost the node its disk",
        "SPC-5 clause 5.14.1, RFC 7143 section 4.4.3",
        Importance.REQUIRED,
        return_after_loss,
        (free_disk, unprotected),
        windows=_FAILOVER_TEST,
        fix=_FIX,
    ),
    Check(
        "loss-registrant",
        Area.SURVIVAL,
        "Registrants survive a lost connection",
        "nodes beside the owner go on after a loss of the network",
        "SPC-5 clause 5.14.1",
        Importance.REQUIRED,
        registrant,
        (free_disk, unprotected),
        windows=_FAILOVER_TEST,
        fix=_FIX,
    ),
    Check(
        "loss-everybody",
        Area.SURVIVAL,
        "A loss of all connections changes nothing",
        "a switch that fails does not undo the cluster's reservations",
        "SPC-5 clause 5.14.1",
        Importance.REQUIRED,
        everybody,
        (free_disk, unprotected),
        windows="Validate Simultaneous Failover",
        fix=_FIX,
    ),
    Check(
        "loss-logout",
        Area.SURVIVAL,
        "A logout changes nothing",
        "an orderly end of the session keeps registration and reservation",
        "SPC-5 clause 5.14.1",
        Importance.REQUIRED,
        logout,
        (free_disk, unprotected),
        windows=_FAILOVER_TEST,
        fix=_FIX,
    ),
    Check(
        "loss-replaced",
        Area.SURVIVAL,
        "A replaced session changes nothing",
        "a node that logs in again before the target noticed its loss is the same nexus",
        "RFC 7143 section 6.3.5",
        Importance.REQUIRED,
        replaced_session,
        (free_disk, unprotected),
        windows=_FAILOVER_TEST,
        fix=_FIX,
    ),
    Check(
        "loss-release",
        Area.SURVIVAL,
        "A node that came back can release",
        "the disk can be moved in order after a short loss",
        "SPC-5 clause 5.14.11.2",
        Importance.REQUIRED,
        released_after_return,
        (free_disk,),
        windows=_FAILOVER_TEST,
        fix=_FIX,
    ),
    Check(
        "loss-isid",
        Area.SURVIVAL,
        "Another ISID is another nexus",
        "a registration is not inherited by a session that was never registered",
        "RFC 7143 section 4.4.3.1",
        Importance.REQUIRED,
        other_isid,
        (free_disk, second_paths),
        windows="Validate Microsoft MPIO-Based Disks",
    ),
)
