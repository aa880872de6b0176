"""Byte ranges in files. Knows neither SCSI nor iSCSI."""
