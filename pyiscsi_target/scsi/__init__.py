"""The SCSI device server (SPC-5, SBC-4): a Task in, a Result out. Knows no iSCSI."""
