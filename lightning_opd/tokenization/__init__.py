"""Between text and tokens: chat templates, stop tokens, tool calls, compatibility of vocabularies."""
