"""Reading of texts, records and documents from files."""
