"""The emulated kernel's own subsystems that have decisions to make; none knows any extension."""
