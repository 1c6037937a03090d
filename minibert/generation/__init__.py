"""From prompts to generated token ids."""
