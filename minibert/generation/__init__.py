"""Text generation from prompts of token ids."""
