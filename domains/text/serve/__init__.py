"""An HTTP server of a language model: OpenAI's form of completions, and sessions whose memory persists."""
