"""JSON rows to documents: content parts, chats, LLaVA, OBELICS, captions."""
