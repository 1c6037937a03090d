"""LoRA adapters, with PEFT's settings and file format."""
