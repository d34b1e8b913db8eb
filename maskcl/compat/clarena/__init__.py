"""CLArena surface (draft)."""
