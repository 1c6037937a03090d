"""What a model folder holds, for comparing two of them; a folder of the Hub's cache."""

import os
import pathlib
import shutil

from minibert.checkpoint.sources import open_source

SHA = {"main": "a" * 40, "v2": "b" * 40}


def contents(folder: object) -> dict[str, tuple]:
    """Every tensor of a folder: its dtype, shape and bytes, by name."""
    with open_source(str(folder)) as source:
        return {
            name: (info.dtype, info.shape, source.read(name).tobytes())
            for name, info in source.tensors.items()
        }


def cached(home: pathlib.Path, name: str, revision: str, model, **options) -> pathlib.Path:
    """Puts a model into a Hub cache as huggingface_hub lays it out: refs, blobs, links."""
    repository = home / f"models--{name.replace('/', '--')}"
    model.save_pretrained(home / "scratch", **options)
    snapshot = repository / "snapshots" / SHA[revision]
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(SHA[revision])
    for number, file in enumerate(sorted((home / "scratch").iterdir())):
        blob = repository / "blobs" / f"{revision}{number}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    shutil.rmtree(home / "scratch")
    return snapshot
