"""The model families and the code they share."""
