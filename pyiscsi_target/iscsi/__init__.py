"""The iSCSI engine (RFC 7143): bytes in, events out, buffers out. No I/O, no clock, no SCSI."""
