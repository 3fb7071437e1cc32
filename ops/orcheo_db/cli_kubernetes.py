"""`orcheo-db kubernetes images|load`: this repository's images to where a cluster finds them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click
import yaml

from orcheo_db import handed
from orcheo_db.backup_secrets import read_credentials
from orcheo_db.command import Context, Group, pass_context
from orcheo_db.console import say
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.host import ensure_docker
from orcheo_db.images import ensure_images
from orcheo_db.render.kubernetes import bucket_secret
from orcheo_db.render.kubernetes import images as tags
from orcheo_db.spec import Spec
from orcheo_db.targets.backup import bucket_of
from orcheo_db.targets.compose import ROOT

# How each kind of cluster takes images from a tar on its standard input (`docker save`); kind reads Docker's own images by name.
LOADERS: dict[str, tuple[str, ...]] = {
    "k3s": ("k3s", "ctr", "images", "import", "-"),
    "containerd": ("ctr", "--namespace=k8s.io", "images", "import", "-"),
}
CLUSTERS = ("kind", *LOADERS)
OWN = Path("k8s") / "local"  # git-ignored: an overlay that takes the images from one's own registry


@click.group("kubernetes", cls=Group)
def kubernetes_group() -> None:
    """Kubernetes: the images, to a registry or into a cluster of this machine."""


def _built(context: Context) -> list[str]:
    """Every image, built where it is missing or out of date; their references."""
    target = context.stack()
    ensure_docker(install=False)
    ensure_images(target.spec, ROOT, target.store.path / "logs")
    return list(target.spec.image_tags().values())


def _run(*argv: str) -> None:
    if subprocess.run(argv).returncode != 0:
        raise CheckFailed(f"{' '.join(argv)} failed: see above")


def overlay(spec: Spec, registry: str) -> str:
    """A kustomization that is the default one with its images from `registry`."""
    document = tags(spec)
    for image in document["images"]:
        image["name"], image["newName"] = image["newName"], f"{registry}/{image['newName']}"
    document |= {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../overlays/default"],
    }
    return (
        "# Written by `make k8s-images`. Another overlay, or your own patches: change it, it is yours.\n"
        + yaml.safe_dump(document, sort_keys=False)
    )


@kubernetes_group.command("images")
@click.option(
    "--registry",
    required=True,
    metavar="REGISTRY",
    help="Where the cluster pulls from, for example registry.example.com/team.",
)
@pass_context
def images_(context: Context, /, registry: str) -> None:
    """Build the images, push them to REGISTRY, and write the overlay k8s/local that uses them."""
    registry = registry.strip().rstrip("/")
    if not registry or "://" in registry or " " in registry:
        raise UserError(
            f"--registry {registry!r}: expected a host and a path without a scheme, such as registry.example.com/team"
        )
    file = ROOT / OWN / "kustomization.yaml"
    wanted = overlay(context.spec(), registry)
    if file.is_file() and file.read_text(encoding="utf-8") != wanted:
        raise UserError(f"{file} is there and is not what this would write: move it away, or change its images by hand")
    for tag in _built(context):
        _run("docker", "tag", tag, f"{registry}/{tag}")
        _run("docker", "push", f"{registry}/{tag}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(wanted, encoding="utf-8")
    context.print({"registry": registry, "overlay": str(OWN)}, f"Pushed. Now: kubectl apply -k {OWN}")


@kubernetes_group.command("bucket")
@click.option(
    "--credentials",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    help="The bucket's credentials: second.toml, as on Compose (README, Backups).",
)
@pass_context
def bucket_(context: Context, /, file: Path) -> None:
    """Print Secret orcheo-db-bucket for component s3-backup, from [backup.second] of the spec: pipe it into kubectl apply."""
    spec = context.spec()
    where = spec.backup.second
    if where.type == "none":
        raise UserError(
            "ops/spec.toml has no second repository ([backup.second] type = none): say there where the bucket is"
        )
    options, files = bucket_of(where, read_credentials(file.expanduser(), where.type))
    more = {each.path.removeprefix("secrets/"): each.content for each in files} | {
        "credentials.conf": handed.options(options)
    }
    document = bucket_secret(spec, more, options.get("repo1-azure-account", ""))
    context.print(document, None)
    if not context.as_json:
        click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)


@kubernetes_group.command("load")
@click.option("--cluster", type=click.Choice(CLUSTERS), required=True, help="What runs the cluster on this machine.")
@click.option("--name", default="kind", show_default=True, metavar="NAME", help="kind: the cluster's name.")
@pass_context
def load_(context: Context, /, cluster: str, name: str) -> None:
    """Build the images and load them into a cluster of this machine, which then pulls nothing."""
    program = "kind" if cluster == "kind" else LOADERS[cluster][0]
    if shutil.which(program) is None:
        raise UserError(f"{program} is not on this machine's PATH: run this where the cluster runs")
    built = _built(context)
    if cluster == "kind":
        _run("kind", "load", "docker-image", f"--name={name}", *built)
    else:
        say(f"loading {len(built)} images into {cluster} …")
        with subprocess.Popen(["docker", "save", *built], stdout=subprocess.PIPE) as saving:
            loaded = subprocess.run(LOADERS[cluster], stdin=saving.stdout)
            assert saving.stdout is not None
            saving.stdout.close()
        if loaded.returncode or saving.wait():
            raise CheckFailed(
                f"{' '.join(LOADERS[cluster])} failed: see above{'' if os.geteuid() == 0 else ' (it wants root)'}"
            )
    context.print({"cluster": cluster, "images": built}, f"Loaded. Now: kubectl apply -k {Path('k8s')}")
