"""Checks of reserving and releasing: one owner, whom everybody can name and nobody can pass by."""

from ..client import CommandFailed, ReservationType
from . import pr
from .access import data_neutral_write, wrongly_accepted, wrongly_refused
from .gates import free_disk, second_paths, unprotected
from .model import Area, Check, Finding, Importance
from .nodes import Nexus
from .pr import WE_RO
from .requests import good
from .rig import Rig
from .wording import describe_key


async def windows_sequence(rig: Rig) -> str:
    """What Windows' validation sends, in its order, from two nodes."""
    (owner, key), (other, other_key) = ((n.nexus, n.key) for n in rig.nodes[:2])
    first_key = rig.new_key()
    await pr.register(owner, first_key)
    await rig.clear(owner, first_key)
    await pr.expect_keys(owner)
    await pr.register(owner, key)
    await pr.expect_holder(owner, None)
    await pr.reserve(owner, key)
    await pr.expect_holder(owner, key)
    await pr.register(other, other_key)
    await pr.expect_holder(other, key)
    await pr.preempt(other, other_key, key)
    await pr.expect_holder(other, other_key)
    await pr.expect_keys(other, other_key)
    await pr.release(other, other_key)
    await pr.expect_holder(other, None)
    await pr.register(other, 0)
    await pr.expect_keys(owner)
    return "06h, CLEAR, 06h, RESERVE, 06h, PREEMPT, RELEASE, 06h of zero, with reads between"


async def reserve(rig: Rig) -> str:
    """READ RESERVATION before and after, by the owner, a registrant and an outsider."""
    owner, registrant = rig.nodes[:2]
    await pr.register(registrant.nexus, registrant.key)
    await pr.register(owner.nexus, owner.key)
    await pr.expect_holder(owner.nexus, None)
    await pr.reserve(owner.nexus, owner.key)
    for node in rig.nodes:
        await pr.expect_holder(node.nexus, owner.key)
    await pr.reserve(owner.nexus, owner.key)
    return f"{describe_key(owner.key)}, type {int(WE_RO)}, as every node reads it"


async def one_owner(rig: Rig) -> str:
    """A second RESERVE conflicts, whoever sends it."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    outsider = other.nexus.reservations.reserve(other.key, WE_RO)
    await pr.refused(other.nexus, "RESERVE, unregistered", outsider)
    await pr.register(other.nexus, other.key)
    rival = other.nexus.reservations.reserve(other.key, WE_RO)
    await pr.refused(other.nexus, "RESERVE of a reserved disk", rival)
    await pr.expect_holder(other.nexus, owner.key)
    return "RESERVATION CONFLICT for a registrant and for an outsider"


async def wrong_key(rig: Rig) -> str:
    """What changes reservations wants the key that the nexus is registered with."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    reservations, wrong = owner.nexus.reservations, other.key
    what = "with a wrong key"
    await pr.refused(owner.nexus, f"RESERVE {what}", reservations.reserve(wrong, WE_RO))
    await pr.refused(owner.nexus, f"RELEASE {what}", reservations.release(wrong, WE_RO))
    await pr.refused(owner.nexus, f"CLEAR {what}", reservations.clear(wrong))
    preempt = reservations.preempt(wrong, owner.key, WE_RO)
    await pr.refused(owner.nexus, f"PREEMPT {what}", preempt)
    await pr.expect_keys(owner.nexus, owner.key)
    await pr.expect_holder(owner.nexus, owner.key)
    return "RESERVE, RELEASE, CLEAR and PREEMPT conflict"


async def outsiders_refused(rig: Rig) -> str:
    """A node that is not registered cannot meddle with the reservation."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    reservations, key = other.nexus.reservations, owner.key
    what = "with the owner's key, unregistered"
    await pr.refused(other.nexus, f"RELEASE {what}", reservations.release(key, WE_RO))
    await pr.refused(other.nexus, f"CLEAR {what}", reservations.clear(key))
    await pr.refused(other.nexus, f"PREEMPT {what}", reservations.preempt(key, key, WE_RO))
    await pr.expect_holder(owner.nexus, key)
    return "RELEASE, CLEAR and PREEMPT of an outsider conflict, even with the owner's key"


async def outsiders_read(rig: Rig) -> str:
    """Under Write Exclusive everybody may read."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    if wrong := await wrongly_refused(rig, other.nexus):
        raise Finding(f"unregistered: {'; '.join(wrong)}", "GOOD")
    return "reads, INQUIRY, REPORT LUNS, READ CAPACITY, TEST UNIT READY, PERSISTENT RESERVE IN"


async def outsiders_cannot_write(rig: Rig) -> str:
    """Nothing that changes data or settings passes."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    if wrong := await wrongly_accepted(rig, other.nexus):
        raise Finding(f"unregistered: {'; '.join(wrong)}", "RESERVATION CONFLICT")
    tried = data_neutral_write(rig).name
    return f"{tried}, SYNCHRONIZE CACHE and their kin end in RESERVATION CONFLICT"


async def registrants_write(rig: Rig) -> str:
    """Registrants share the disk with the owner: this is what Windows relies on."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(other.nexus, other.key)
    for nexus in (owner.nexus, other.nexus):
        await expect_writable(rig, nexus)
    return "the owner and another registrant write"


async def expect_writable(rig: Rig, nexus: Nexus) -> None:
    """The reservation lets the nexus write. Raises Finding."""
    request = data_neutral_write(rig)
    await good(nexus.send(request), f"{request.name} by {nexus}")


async def expect_fenced(rig: Rig, nexus: Nexus) -> None:
    """The reservation keeps the nexus from writing. Raises Finding."""
    if wrong := await wrongly_accepted(rig, nexus):
        raise Finding(f"{nexus}, not registered: {'; '.join(wrong)}", "RESERVATION CONFLICT")


async def other_path_is_outside(rig: Rig) -> str:
    """A registration is of one nexus, not of the node."""
    owner, other = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(other.nexus, other.key)
    await expect_writable(rig, other.nexus)
    await expect_fenced(rig, other.nexuses[1])
    await pr.register(other.nexuses[1], other.key)
    await expect_writable(rig, other.nexuses[1])
    return "a path may write once it is registered itself"


async def release(rig: Rig) -> str:
    """RELEASE tells the other registrants, and nobody else."""
    owner, registrant = rig.nodes[:2]
    await pr.register(registrant.nexus, registrant.key)
    await pr.hold(owner.nexus, owner.key)
    await pr.release(owner.nexus, owner.key)
    await pr.expect_holder(owner.nexus, None)
    await pr.expect_keys(owner.nexus, owner.key, registrant.key)
    return "no reservation, registrations kept"


async def release_attention(rig: Rig) -> str:
    """2Ah/04h to the other registrants, and to nobody else."""
    owner, registrant, outsiders = rig.nodes[0], rig.nodes[1], rig.nodes[2:]
    await pr.register(registrant.nexus, registrant.key)
    await pr.hold(owner.nexus, owner.key)
    await pr.release(owner.nexus, owner.key)
    await pr.expect_attentions(registrant.nexus, pr.RESERVATION_RELEASED)
    for node in (owner, *outsiders):
        await pr.expect_attentions(node.nexus)
    return "2Ah/04h to the registrant, nothing to the owner"


async def release_by_others(rig: Rig) -> str:
    """RELEASE of a registrant that holds nothing is GOOD and does nothing."""
    owner, registrant = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(registrant.nexus, registrant.key)
    await pr.release(registrant.nexus, registrant.key)
    await pr.expect_holder(owner.nexus, owner.key)
    return "GOOD, and the reservation stands"


async def owner_unregisters(rig: Rig) -> str:
    """The owner's reservation ends with its registration, and the registrants are told."""
    owner, registrant = rig.nodes[:2]
    await pr.register(registrant.nexus, registrant.key)
    await pr.hold(owner.nexus, owner.key)
    await pr.register(owner.nexus, 0)
    await pr.expect_holder(registrant.nexus, None)
    await pr.expect_keys(registrant.nexus, registrant.key)
    return "no reservation, the other's registration kept"


async def owner_unregisters_attention(rig: Rig) -> str:
    """2Ah/04h to the other registrants."""
    owner, registrant = rig.nodes[:2]
    await pr.register(registrant.nexus, registrant.key)
    await pr.hold(owner.nexus, owner.key)
    await pr.register(owner.nexus, 0)
    await pr.expect_attentions(registrant.nexus, pr.RESERVATION_RELEASED)
    await pr.expect_attentions(owner.nexus)
    return "2Ah/04h to the registrant, nothing to the owner"


async def clear(rig: Rig) -> str:
    """CLEAR by a registrant that is not the owner takes everything away."""
    owner, registrant = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(registrant.nexus, registrant.key)
    await rig.clear(registrant.nexus, registrant.key)
    await pr.expect_keys(owner.nexus)
    await pr.expect_holder(owner.nexus, None)
    return "no registration and no reservation"


async def clear_attention(rig: Rig) -> str:
    """2Ah/03h to the other registrants."""
    owner, registrant = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    await pr.register(registrant.nexus, registrant.key)
    await rig.clear(registrant.nexus, registrant.key)
    await pr.expect_attentions(owner.nexus, pr.RESERVATION_PREEMPTED)
    await pr.expect_attentions(registrant.nexus)
    return "2Ah/03h to the other registrant, nothing to the one who asked"


_OTHER_TYPES = tuple(kind for kind in ReservationType if kind is not pr.WE_RO)


async def other_types(rig: Rig) -> str:
    """The other five types, which other clusters use."""
    nexus, key = rig.first, rig.nodes[0].key
    await pr.register(nexus, key)
    missing = []
    for kind in _OTHER_TYPES:
        try:
            await nexus.reservations.reserve(key, kind)
            found = await pr.read_reservation(nexus)
            await nexus.reservations.release(key, kind)
        except CommandFailed as error:
            missing.append(f"type {int(kind)}: {error.result}")
            continue
        if found is None or found.type != kind:
            missing.append(f"type {int(kind)}: READ RESERVATION tells another")
    if missing:
        raise Finding("; ".join(missing), "all six types")
    return "types 1, 3, 6, 7 and 8 beside 5"


_PR_TEST = "Validate SCSI-3 Persistent Reservation"

CHECKS = (
    Check(
        "windows-sequence",
        Area.RESERVATION,
        "The calls of Windows' validation, in its order",
        "register, clear, reserve, read, preempt, release and unregister work hand in hand",
        "SPC-5 clause 5.14",
        Importance.REQUIRED,
        windows_sequence,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "reserve",
        Area.RESERVATION,
        "A node reserves, and all can read who owns the disk",
        "READ RESERVATION tells none, mine and another's",
        "SPC-5 clause 5.14.9",
        Importance.REQUIRED,
        reserve,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "one-owner",
        Area.RESERVATION,
        "There is one owner",
        "a reserved disk cannot be reserved by another node",
        "SPC-5 clause 5.14.9",
        Importance.REQUIRED,
        one_owner,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "wrong-key",
        Area.RESERVATION,
        "A wrong key changes nothing",
        "requests with another key than the nexus's own conflict",
        "SPC-5 clause 5.14.1",
        Importance.REQUIRED,
        wrong_key,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "outsiders-refused",
        Area.RESERVATION,
        "Outsiders cannot take the reservation away",
        "only registered nexuses release, clear and preempt",
        "SPC-5 clause 5.14.1",
        Importance.REQUIRED,
        outsiders_refused,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "outsiders-read",
        Area.RESERVATION,
        "Outsiders can read and look",
        "a node finds its disks while another node owns them",
        "SPC-5 tables 71 and 72, SBC-4 table 15",
        Importance.REQUIRED,
        outsiders_read,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "outsiders-write",
        Area.RESERVATION,
        "Outsiders cannot write",
        "a node that is not a member of the cluster cannot damage the disk",
        "SPC-5 tables 71 and 72, SBC-4 table 15",
        Importance.REQUIRED,
        outsiders_cannot_write,
        (free_disk,),
        windows=_PR_TEST,
        fix="do not use this target for a cluster: it does not protect the disk",
    ),
    Check(
        "registrants-write",
        Area.RESERVATION,
        "Registrants write beside the owner",
        "type 5 is for all registrants: cluster shared volumes need it",
        "SPC-5 clause 5.14.10",
        Importance.REQUIRED,
        registrants_write,
        (free_disk, unprotected),
        windows=_PR_TEST,
    ),
    Check(
        "paths-apart",
        Area.RESERVATION,
        "Each path is registered by itself",
        "a registration counts for one I_T nexus, not for all of the node",
        "SPC-5 clause 5.14.7",
        Importance.REQUIRED,
        other_path_is_outside,
        (free_disk, unprotected, second_paths),
        windows="Validate Microsoft MPIO-Based Disks",
    ),
    Check(
        "release",
        Area.RESERVATION,
        "RELEASE ends the reservation and keeps registrations",
        "the owner can give the disk away",
        "SPC-5 clause 5.14.11.2",
        Importance.REQUIRED,
        release,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "release-attention",
        Area.RESERVATION,
        "RELEASE is told to the other registrants",
        "unit attention 2Ah/04h, to them and to nobody else",
        "SPC-5 clause 5.14.11.2",
        Importance.RECOMMENDED,
        release_attention,
        (free_disk,),
    ),
    Check(
        "release-others",
        Area.RESERVATION,
        "Only the owner can release",
        "RELEASE of another registrant is GOOD and changes nothing",
        "SPC-5 clause 5.14.11.2",
        Importance.REQUIRED,
        release_by_others,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "owner-unregisters",
        Area.RESERVATION,
        "The owner's unregistering ends its reservation",
        "no reservation is left behind that nobody holds",
        "SPC-5 clause 5.14.11.3",
        Importance.REQUIRED,
        owner_unregisters,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "owner-unregisters-attention",
        Area.RESERVATION,
        "The owner's unregistering is told",
        "unit attention 2Ah/04h to the other registrants",
        "SPC-5 clause 5.14.11.3",
        Importance.RECOMMENDED,
        owner_unregisters_attention,
        (free_disk,),
    ),
    Check(
        "clear",
        Area.RESERVATION,
        "CLEAR takes everything away",
        "any registrant can start afresh",
        "SPC-5 clause 5.14.11.6",
        Importance.REQUIRED,
        clear,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "clear-attention",
        Area.RESERVATION,
        "CLEAR is told to the other registrants",
        "unit attention 2Ah/03h, to them and not to the one who asked",
        "SPC-5 clause 5.14.11.6",
        Importance.RECOMMENDED,
        clear_attention,
        (free_disk,),
    ),
    Check(
        "other-types",
        Area.RESERVATION,
        "The other five types can be reserved",
        "clusters other than Windows' find the type that they use",
        "SPC-5 clause 6.16.3.4",
        Importance.INFORMATIONAL,
        other_types,
        (free_disk,),
    ),
)
