"""LoRA adapters, with PEFT's settings and files."""
