"""How much one command may ask for; VPD page B0h reports exactly what the handlers enforce.

Counts are in logical blocks unless the name says otherwise. Zero means "no limit" only where
SBC-4 clause 6.6.4 says so.
"""

MAXIMUM_TRANSFER_LENGTH_BYTES = 16 << 20  # bounds the memory that one command can pin
OPTIMAL_TRANSFER_LENGTH_BYTES = 1 << 20  # larger ones gain nothing over MaxBurstLength

# The field in B0h and the one in the CDB (COMPARE AND WRITE byte 13) have eight bits, and VMware
# asks for one block only: all that the format can say is cheap to serve.
MAXIMUM_COMPARE_AND_WRITE_LENGTH = 255

# One hole punched per descriptor, so the descriptor count bounds the system calls of a command on a
# raw disk; of an image each block is looked at, so the LBA count keeps a command well under an
# initiator's time-out (and no higher one, but FFFFFFFFh, passes libiscsi's tests).
MAXIMUM_UNMAP_LBA_COUNT = 1 << 20
MAXIMUM_UNMAP_BLOCK_DESCRIPTOR_COUNT = 256

# The same as for data that is transferred: what may be written with one command. It bounds the
# work behind a single status, well under an initiator's time-out on a slow disk.
MAXIMUM_WRITE_SAME_LENGTH_BYTES = MAXIMUM_TRANSFER_LENGTH_BYTES

# An atomic write holds the range against all others and is one write to the host; 1 MiB is as
# far as a burst reaches. Alignment and granularity: one block.
MAXIMUM_ATOMIC_TRANSFER_LENGTH_BYTES = 1 << 20
ATOMIC_ALIGNMENT = 0
ATOMIC_TRANSFER_LENGTH_GRANULARITY = 0
MAXIMUM_ATOMIC_TRANSFER_LENGTH_WITH_ATOMIC_BOUNDARY = 0
MAXIMUM_ATOMIC_BOUNDARY_SIZE = 0

# What logical block provisioning counts in (SBC-4 clause 4.7.3.7): the THRESHOLD EXPONENT of page
# B2h says how many blocks these are; log page 0Ch and mode page 1Ch/02h have the counts.
THRESHOLD_SET_BYTES = 1 << 20
