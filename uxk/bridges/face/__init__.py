"""The kernel's tree behind one interface, :class:`~uxk.bridges.face.api.Face`, with several backends."""
