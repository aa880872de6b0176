"""Checks of PREEMPT: whoever holds a key loses everything and is told, and nobody else is."""

from . import pr
from .gates import free_disk, second_paths, third_nexus, unprotected
from .model import Area, Check, Importance
from .nodes import Node
from .pr import WE_RO
from .reservations import expect_fenced, expect_writable
from .rig import Rig


async def _owner_and_challenger(rig: Rig) -> tuple[Node, Node]:
    """Node 2 owns the disk, node 1 is registered and will preempt it."""
    challenger, owner = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(challenger.nexus, challenger.key)
    return owner, challenger


async def preempt(rig: Rig) -> str:
    """PREEMPT of the owner's key: the reservation changes hands in one step."""
    owner, challenger = await _owner_and_challenger(rig)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    for node in (challenger, owner):
        await pr.expect_holder(node.nexus, challenger.key)
        await pr.expect_keys(node.nexus, challenger.key)
    return "the challenger holds the reservation, the owner's registration is gone"


async def bystanders_keep(rig: Rig) -> str:
    """Who is registered with another key is not touched."""
    owner, challenger = await _owner_and_challenger(rig)
    bystander, key = rig.bystander()
    await pr.register(bystander, key)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    await pr.expect_keys(bystander, challenger.key, key)
    await expect_writable(rig, bystander)
    return f"{bystander} is registered and writes as before"


async def attention(rig: Rig) -> str:
    """2Ah/05h to the victim; not to the one who asked, nor to a bystander."""
    owner, challenger = await _owner_and_challenger(rig)
    bystander, key = rig.bystander()
    await pr.register(bystander, key)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    await pr.expect_attentions(owner.nexus, pr.REGISTRATION_PREEMPTED)
    await pr.expect_attentions(challenger.nexus)
    await pr.expect_attentions(bystander)
    return "2Ah/05h to the victim, nothing to the others"


async def fenced(rig: Rig) -> str:
    """The preempted node can neither write nor reserve."""
    owner, challenger = await _owner_and_challenger(rig)
    await expect_writable(rig, owner.nexus)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    await expect_fenced(rig, owner.nexus)
    again = owner.nexus.reservations.reserve(owner.key, WE_RO)
    await pr.refused(owner.nexus, "RESERVE by the preempted node", again)
    await expect_writable(rig, challenger.nexus)
    return "the victim's writes end in RESERVATION CONFLICT"


async def comes_back(rig: Rig) -> str:
    """Registered again, the preempted node writes again, and owns nothing."""
    owner, challenger = await _owner_and_challenger(rig)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    await pr.register(owner.nexus, owner.key)
    await expect_writable(rig, owner.nexus)
    await pr.expect_holder(owner.nexus, challenger.key)
    return "it writes once it has registered"


async def registrant(rig: Rig) -> str:
    """The owner preempts a registrant's key: a defender drives a challenger away like this."""
    owner, challenger = await _owner_and_challenger(rig)
    await pr.preempt(owner.nexus, owner.key, challenger.key)
    await pr.expect_keys(owner.nexus, owner.key)
    await pr.expect_holder(challenger.nexus, owner.key)
    await expect_fenced(rig, challenger.nexus)
    late = challenger.nexus.reservations.preempt(challenger.key, owner.key, WE_RO)
    await pr.refused(challenger.nexus, "PREEMPT by the preempted node", late)
    return "the registration is gone, the reservation stands"


async def unknown_key(rig: Rig) -> str:
    """A key that nobody has (any more): the race is lost, and the loser must hear of it."""
    owner, challenger = await _owner_and_challenger(rig)
    pending = challenger.nexus.reservations.preempt(challenger.key, rig.new_key(), WE_RO)
    await pr.refused(challenger.nexus, "PREEMPT of a key that nobody has", pending)
    await pr.expect_holder(owner.nexus, owner.key)
    await pr.expect_keys(owner.nexus, owner.key, challenger.key)
    return "RESERVATION CONFLICT, and nothing changed"


async def all_paths(rig: Rig) -> str:
    """One key on two paths: both go, and both are told."""
    challenger, owner = rig.nodes[:2]
    paths = owner.nexuses[:2]
    for nexus in paths:
        await pr.register(nexus, owner.key)
    await pr.reserve(paths[0], owner.key)
    await pr.register(challenger.nexus, challenger.key)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    await pr.expect_keys(challenger.nexus, challenger.key)
    for nexus in paths:
        await expect_fenced(rig, nexus)
    return "both registrations of the node are gone"


async def all_paths_attention(rig: Rig) -> str:
    """2Ah/05h on each path of the victim."""
    challenger, owner = rig.nodes[:2]
    paths = owner.nexuses[:2]
    for nexus in paths:
        await pr.register(nexus, owner.key)
    await pr.reserve(paths[0], owner.key)
    await pr.register(challenger.nexus, challenger.key)
    await pr.preempt(challenger.nexus, challenger.key, owner.key)
    for nexus in paths:
        await pr.expect_attentions(nexus, pr.REGISTRATION_PREEMPTED)
    for nexus in challenger.nexuses[:2]:
        await pr.expect_attentions(nexus)
    return "2Ah/05h on both paths, nothing to the challenger's"


async def preempt_and_abort(rig: Rig) -> str:
    """PREEMPT AND ABORT, with which fence_scsi and others fence."""
    owner, challenger = await _owner_and_challenger(rig)
    await pr.preempt(challenger.nexus, challenger.key, owner.key, abort=True)
    await pr.expect_holder(owner.nexus, challenger.key)
    await pr.expect_keys(challenger.nexus, challenger.key)
    await pr.expect_attentions(owner.nexus, pr.REGISTRATION_PREEMPTED)
    await pr.expect_attentions(challenger.nexus)
    return "as PREEMPT, with the victim's commands aborted"


_PR_TEST = "Validate SCSI-3 Persistent Reservation"
_MPIO_TEST = "Validate Microsoft MPIO-Based Disks"

CHECKS = (
    Check(
        "preempt",
        Area.PREEMPTION,
        "PREEMPT takes the disk over",
        "the key of the owner is all it takes, and there is never a moment without owner",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        preempt,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "preempt-bystanders",
        Area.PREEMPTION,
        "PREEMPT leaves the others alone",
        "a failover does not throw out the nodes that are well",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        bystanders_keep,
        (free_disk, unprotected, third_nexus),
        windows=_PR_TEST,
    ),
    Check(
        "preempt-attention",
        Area.PREEMPTION,
        "The victim is told, and nobody else",
        "unit attention 2Ah/05h: a node learns that it was put out",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        attention,
        (free_disk, third_nexus),
        windows=_PR_TEST,
    ),
    Check(
        "preempt-fences",
        Area.PREEMPTION,
        "The preempted node cannot write any more",
        "two nodes never believe to own the disk: this is what keeps the data whole",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        fenced,
        (free_disk, unprotected),
        windows="Validate Disk Failover",
        fix="do not use this target for a cluster: it does not protect the disk",
    ),
    Check(
        "preempt-return",
        Area.PREEMPTION,
        "The preempted node may come back",
        "it registers and writes, and the new owner stays the owner",
        "SPC-5 clause 5.14.7",
        Importance.REQUIRED,
        comes_back,
        (free_disk, unprotected),
        windows="Validate Disk Failover",
    ),
    Check(
        "preempt-registrant",
        Area.PREEMPTION,
        "The owner can drive a registrant away",
        "a defender removes a challenger's registration and keeps the disk",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        registrant,
        (free_disk,),
        windows="Validate Disk Arbitration",
    ),
    Check(
        "preempt-unknown",
        Area.PREEMPTION,
        "PREEMPT of a key that nobody has conflicts",
        "who comes second in a race hears that it has lost",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        unknown_key,
        (free_disk,),
        windows="Validate Multiple Arbitration",
    ),
    Check(
        "preempt-paths",
        Area.PREEMPTION,
        "PREEMPT drops every path of the victim",
        "a node with multipath I/O is put out whole: one key, several nexuses",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        all_paths,
        (free_disk, second_paths),
        windows=_MPIO_TEST,
    ),
    Check(
        "preempt-paths-attention",
        Area.PREEMPTION,
        "Every path of the victim is told",
        "unit attention 2Ah/05h on each of them",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        all_paths_attention,
        (free_disk, second_paths),
        windows=_MPIO_TEST,
    ),
    Check(
        "preempt-abort",
        Area.PREEMPTION,
        "PREEMPT AND ABORT works",
        "fence agents of other clusters (fence_scsi) can use the disk",
        "SPC-5 clause 5.14.11.5",
        Importance.RECOMMENDED,
        preempt_and_abort,
        (free_disk,),
        fix="Windows does not need it; Pacemaker's fence_scsi does",
    ),
)
