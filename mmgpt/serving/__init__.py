"""An OpenAI-compatible server: one model, many requests, decoded together in one engine."""
