"""From the spec to the files of every target. One module a target; nothing here decides a value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orcheo_db.render import ansible, backup, cloudnative_pg, compose, kubernetes, terraform
from orcheo_db.spec import Spec

TARGETS = (compose, backup, kubernetes, cloudnative_pg, terraform, ansible)
# Nothing but rendered files is in these; one of a size that is gone is left over.
OWNED = (
    "compose/conf/**/*",
    "k8s/components/size-*/**/*",
    "k8s/components/images/*",
    "k8s/components/s3-backup/jobs.yaml",
    "k8s/cloudnative-pg/cluster-*.yaml",
    "terraform/modules/*/sizes.json",
    "terraform/modules/*/REFERENCE.md",
    "ansible/roles/*/defaults/main/spec.yml",
)


def render(spec: Spec) -> dict[str, str]:
    """Every rendered file: path relative to the repository -> text.

    Raises:
        SpecError: the spec has a setting that PostgreSQL or PgBouncer would refuse.
    """
    return {path: text for target in TARGETS for path, text in target.render(spec).items()}


def write(root: Path, files: Mapping[str, str]) -> list[str]:
    """Make the files under `root` as rendered and remove those that are not rendered any more.

    Returns the paths that were changed, sorted; a file that is right already is not touched.
    """
    changed = stale(root, files)
    for path in changed:
        target = root / path
        if path not in files:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(files[path], encoding="utf-8", newline="\n")
        partial.replace(target)
    return changed


def stale(root: Path, files: Mapping[str, str]) -> list[str]:
    """The paths that differ from `files`, sorted: missing, changed, or left over from a size that is gone."""
    present = {str(file.relative_to(root)) for owned in OWNED for file in root.glob(owned) if file.is_file()}
    wrong = {path for path, text in files.items() if path not in present or (root / path).read_bytes() != text.encode()}
    return sorted(wrong | (present - set(files)))
