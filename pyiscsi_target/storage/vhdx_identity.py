"""What children know a VHDX disk by, its DataWriteGuid, and what it knows its own parent by.

A disk with the DataWriteGuid of its child holds all that the child does: it was merged with it, and
the child had no time to go. Such a parent fits. ([MS-VHDX] section 2.2.2: files with the same
DataWriteGuid hold the same data.) The child records it before it changes itself.
"""

from dataclasses import replace
from uuid import UUID, uuid4

from .base import BackingStore
from .vhdx_blocks import VhdxBlocks
from .vhdx_format import PARENT_LINKAGE, PARENT_LOCATOR_ITEM
from .vhdx_resize import VhdxResize


class VhdxIdentity(VhdxResize):
    """The part of a `VhdxDisk` that says which disk it is, and of which parent."""

    async def _begin_writing(self) -> None:
        await self._record_parent()
        await super()._begin_writing()

    async def begin_merge(self) -> None:
        """Let the disk be written although children of it must go on to fit, until `stamp`."""
        self._require_writable()
        await self._record_parent()
        async with self.changing:
            if self.metadata.leave_block_allocated:
                await self._headers.update()  # a new FileWriteGuid (section 2.2.2)
            else:
                await self._open_log()
            self._writes_now = True

    async def stamp(self) -> None:
        """A new DataWriteGuid, on the medium: children made before do not fit any more."""
        await self._identify(uuid4())

    async def adopt(self, child: BackingStore) -> None:
        """Be known by what the child is, on the medium: its children fit this disk from now on."""
        assert isinstance(child, VhdxBlocks)
        await self._identify(child.data_write_guid)

    async def _identify(self, data_write_guid: UUID) -> None:
        async with self.changing:
            await self._headers.update(data_write_guid=data_write_guid)

    async def _record_parent(self) -> None:
        """Know the parent by its DataWriteGuid, if it fits for having this disk's (see above)."""
        if not isinstance(self.parent, VhdxBlocks):
            return
        async with self.changing:
            guid = self.parent.data_write_guid
            if guid in self.metadata.parent_linkages:
                return
            await self._open_log()
            await self._log.append(await self._patched(await self._linkage_patch(guid)))
            await self._settle()
            await self._log.end()
            locator = {**self.metadata.locator, PARENT_LINKAGE: str(guid)}
            self.metadata = replace(self.metadata, locator=locator)

    async def _linkage_patch(self, guid: UUID) -> dict[int, bytes]:
        """The bytes of the Parent Locator item (section 2.6.2.6) that name the parent, by offset.

        The item stays as long as it is.
        """
        item = self.metadata.item(PARENT_LOCATOR_ITEM)
        data = bytearray(item.length)
        await self.file.read(item.offset, memoryview(data))
        recorded = self.metadata.locator[PARENT_LINKAGE]
        spellings = (f"{{{guid}}}", str(guid), guid.hex)
        text = next((text for text in spellings if len(text) == len(recorded)), None)
        if text is None:
            raise self._refused(f"{PARENT_LINKAGE} {recorded!r} has no room for another GUID")
        at = data.index(recorded.encode("utf-16-le"))
        return {item.offset + at: text.encode("utf-16-le")}
