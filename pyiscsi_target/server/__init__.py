"""Sockets, access control and persisted state: joins the iSCSI engine to the SCSI device server."""
