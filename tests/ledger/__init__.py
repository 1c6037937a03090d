"""A record of how the library behaves, and a comparison with it, for changes that must not be felt.

`python -m tests.ledger` compares, and exits with 1 and a list if something differs; `--record`
writes the record anew; `--only PART` does either for one part: tests, signatures, commands, outputs
or artefacts. Only public names are used (`surface.py`), never where a module is.
"""
