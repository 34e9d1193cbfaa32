"""Write a run's network as a folder and a .zip for others: a bundle (`bundles`).

    resnet-se bundle run=DIR [out=PATH]

`resnet_se.load` opens it where the run was never seen.  Paths of this machine stay out
of it.  The model card has Hugging Face's head; the licence is the user's to add.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
from omegaconf import DictConfig
from safetensors.torch import save

from resnet_se.config.schema import PRIVATE
from resnet_se.inference.pretrained import Pretrained, read
from resnet_se.models.complexity import parameter_counts
from resnet_se.runs import bundle
from resnet_se.utils.errors import UserError
from resnet_se.utils.files import atomic_file, check_file, writing

HUBCONF = '''\
"""For torch.hub: torch.hub.load(PATH, "network", source="local")."""

from pathlib import Path

dependencies = ["torch", "resnet_se"]


def network(trust: bool = False):
    """The trained network of this folder, in eval mode (`resnet_se.load`)."""
    import resnet_se

    return resnet_se.load(Path(__file__).parent, trust=trust)
'''


def bundle_run(cfg: DictConfig) -> Path:
    """Write the folder and the .zip; return the folder.

    Raises:
        UserError: no run there, or `out` is something else than a bundle already.
    """
    if bundle.is_bundle(Path(cfg.run)):
        raise UserError(f"run: expected a run directory, got the bundle {cfg.run}")
    model = read(cfg.run)
    if model.note:
        print(f"note: {model.note}")
    out = Path(cfg.out or Path("bundles", model.default_name))
    if out.suffix == ".zip":
        out = out.with_suffix("")
    if out.name in ("", ".."):
        raise UserError(f"out: expected the name of a folder to make, got {out}")
    if out.exists() and not (out / bundle.MANIFEST).is_file() and _is_full(out):
        raise UserError(f"out: {out} is there and is no bundle; name another")
    check_file(out.with_name(f"{out.name}.zip"))
    files = _files(model)
    with writing(out, folder=out.parent):
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bundle-") as folder:
            new = Path(folder, "new")
            new.mkdir()
            for name, content in files.items():
                (new / name).write_bytes(content)
            if out.exists():
                os.replace(out, Path(folder, "old"))
            os.replace(new, out)
        with atomic_file(out.with_name(f"{out.name}.zip")) as file:
            _write_zip(file, out.name, files)
    size = sum(map(len, files.values())) / 1e6
    print(f"{out} and {out}.zip: {size:.1f} MB, {', '.join(files)}")
    return out


def _is_full(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())


def _files(model: Pretrained) -> dict[str, bytes]:
    weights = {k: v.contiguous() for k, v in model.net.state_dict().items()}
    files = {
        bundle.WEIGHTS: save(weights),
        bundle.CONFIG: _json(_public_config(model.config)),
        bundle.RECORD: _json(_public_record(model.record)),
    }
    manifest: dict[str, Any] = {
        "format": bundle.FORMAT,
        "classes": model.classes,
        "size": model.size,
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "fingerprint": model.fingerprint,
        "files": {k: hashlib.sha256(v).hexdigest() for k, v in files.items()},
    }
    manifest["checksum"] = bundle.checksum(manifest)
    files[bundle.MANIFEST] = _json(manifest)
    files["README.md"] = _card(model).encode()
    files["hubconf.py"] = HUBCONF.encode()
    return files


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _public_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without where and how the run was made, on whose machine."""
    public = copy.deepcopy(config)
    for key in PRIVATE:
        *parents, leaf = key.split(".")
        node = public
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    return public


def _public_record(record: dict[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    private = tuple(f"{key}{end}" for key in PRIVATE for end in (".", "="))
    overrides = [
        text
        for text in record.get("overrides", ())
        if not text.lstrip("+~").startswith(private)
    ]
    return record | {"overrides": overrides}


def _card(model: Pretrained) -> str:
    record = model.record or {}
    test = record.get("test") or {}
    figures = {"test accuracy": "acc", "test accuracy with TTA": "acc_tta"}
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("resnet_se.runs", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    unknown = {"name": "unknown", "origin": "no record"}
    return templates.get_template("card.md.j2").render(
        name=model.default_name,
        classes=model.classes,
        size=model.size,
        network=str(model.config.get("model", {}).get("_target_")),
        parameters=parameter_counts(model.net)["total"],
        fingerprint=model.fingerprint,
        data=unknown | record.get("data", {}),
        seed=record.get("seed"),
        images=test.get("images"),
        metrics=[(k, test[v]) for k, v in figures.items() if test.get(v) is not None],
        note=model.note or "the run was not tested",
    )


def _write_zip(file: BinaryIO, folder: str, files: dict[str, bytes]) -> None:
    """Write the same bytes for the same files at any time."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(f"{folder}/{name}")
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
