"""What both sides of the boundary share: ids, entries, manifests.  Data only, no behaviour."""
